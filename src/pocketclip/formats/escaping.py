"""Text that came from elsewhere (names of files, labels, captions), made safe to show and store.

A name of a file is bytes. Python decodes those that are not UTF-8 to lone surrogates
(`os.fsdecode`, "surrogateescape"), which nothing can encode again by accident. Here they become
`\\udcff`: in JSON that is an escape, so that `os.fsencode(json.loads(text))` gives the bytes back.

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

# What a terminal obeys (C0 and C1 controls), what changes the order of the text around it
# (bidirectional marks, embeddings, overrides, isolates), line separators, and lone surrogates.
_HARMFUL = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
_ON_A_LINE = re.compile(rf"[\x00-\x1f{_HARMFUL}]")
_IN_JSON = re.compile(f"[{_HARMFUL}]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Return `text` for one line of a terminal: whatever is no plain text is escaped.

    Line ends, tabs, escape sequences, other controls and bidirectional marks become `\\n`,
    `\\x1b`, `\\u202e`; bytes of a name that are not UTF-8 become `\\udcff`. The result can be
    encoded in UTF-8.
    """
    return _ON_A_LINE.sub(_escaped, text)


def escape_surrogates(text: str) -> str:
    """Return `text` with lone surrogates as `\\udcff`, for formats that have no escapes."""
    return _SURROGATES.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def dump_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return `value` as JSON that is safe to show, and that is valid whatever stands in it.

    Strings come back from a JSON parser as they were. Numbers that are not finite, which JSON
    does not have, become null.

    Args:
        value: of plain JSON types; tuples are lists.
        indent: blanks per level; None for one line.
        ascii_only: escape everything else than ASCII, for a stream that is not UTF-8.
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
    """Return a file's name as text that is the same in every locale: its bytes read as UTF-8.

    Bytes that are not UTF-8 are lone surrogates, as `os.fsdecode` has them where the locale is
    UTF-8. In a locale such as POSIX, Python itself decodes names by another encoding.
    """
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def argument_text(argument: str) -> str | None:
    """Return an argument of the command line as text, or None if it is none.

    Python decodes arguments by the locale. What is UTF-8 on a terminal whose locale is POSIX
    comes as surrogates, and is decoded here once more.
    """
    if not _SURROGATES.search(argument):
        return argument
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return None
