"""Makes text from elsewhere (file names, labels, captions) safe to show and store.

File names are bytes. Python decodes bytes that are not UTF-8 to lone surrogates (`os.fsdecode`,
"surrogateescape"), which cannot be encoded as UTF-8. This module writes them as `\\udcff`: in JSON
that is an escape, so `os.fsencode(json.loads(text))` restores the bytes.

    escape_controls("a\\x1b[2Jb") == "a\\\\x1b[2Jb"
    dump_json(["caf\\udce9"]) == '["caf\\\\udce9"]'
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

# Terminal controls (C0 and C1), characters that reorder the text around them (bidirectional marks,
# embeddings, overrides, isolates), line separators, and lone surrogates.
_HARMFUL = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
_ON_A_LINE = re.compile(rf"[\x00-\x1f{_HARMFUL}]")
_IN_JSON = re.compile(f"[{_HARMFUL}]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Return `text` for one line of a terminal, with everything but plain text escaped.

    Line ends, tabs, escape sequences, other controls and bidirectional marks become `\\n`,
    `\\x1b`, `\\u202e`; bytes of a name that are not UTF-8 become `\\udcff`. The result can be
    encoded as UTF-8.
    """
    return _ON_A_LINE.sub(_escaped, text)


def escape_surrogates(text: str) -> str:
    """Return `text` with lone surrogates as `\\udcff`, for formats that have no escapes."""
    return _SURROGATES.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def dump_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return `value` as valid JSON that is safe to show.

    A JSON parser restores the original strings. Non-finite numbers, which JSON lacks, become null.

    Args:
        value: plain JSON types; tuples become lists.
        indent: spaces per level; None for one line.
        ascii_only: escape all other characters, for streams that are not UTF-8.
    """
    text = json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False, indent=indent)
    return _IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def name_text(path: str | os.PathLike[str]) -> str:
    """Return a file name as text, decoded as UTF-8 in every locale.

    Bytes that are not UTF-8 become lone surrogates, as `os.fsdecode` returns them in a UTF-8
    locale. In a locale such as POSIX, Python itself decodes names differently.
    """
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def argument_text(argument: str) -> str | None:
    """Return a command-line argument as text, or None if it is not UTF-8.

    Python decodes arguments by the locale: in the POSIX locale, UTF-8 arrives as surrogates and is
    decoded again here.
    """
    if not _SURROGATES.search(argument):
        return argument
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return None
