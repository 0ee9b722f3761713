"""What a root leaves out: patterns for names, in `--exclude` and in ignore files.

The syntax is that of `.gitignore`, for file names as text in composed Unicode (NFC):

| pattern | leaves out |
|---|---|
| `*.png` | files and folders of such a name, at any depth |
| `Screenshots/` | folders of that name, with everything in them |
| `/2019`, `2019/raw` | a path from the folder of the ignore file, or from the root |
| `**/tmp`, `a/**/b`, `a/**` | `**` between slashes stands for any number of folders |
| `!best.png` | keeps what an earlier pattern leaves out |

`*` and `?` do not match a slash, `[a-z]` and `[!a-z]` match one character, `\\` takes away the
meaning of the next character. Capital letters matter. The last pattern that matches decides, and
those of a deeper ignore file come later. What is in a folder that is left out stays out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

IGNORE_FILE = b".pocketclipignore"
"""Holds one pattern a line; blank lines, and lines that begin with `#`, are skipped."""
NO_MEDIA = b".nomedia"
"""Leaves out its folder, with everything below."""
_MAX_IGNORE_FILE = 1 << 20
_MAX_PATTERN = 1000  # characters


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line of an ignore file."""

    text: str
    base: str
    """The folder that it is for, as it is in paths: with a slash at the end, or empty."""
    regex: re.Pattern[str]
    """Of the whole path below `base`."""
    keeps: bool
    folders_only: bool


Patterns: TypeAlias = tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a root leaves out besides hidden files and what its ignore files say."""

    exclude: tuple[str, ...] = ()
    """Patterns, from the root."""
    own_roots: frozenset[bytes] = field(default_factory=frozenset)
    """Folders in it, relative, that are roots of their own: no file is listed twice."""


def as_text(path: bytes) -> str:
    """Return a path as patterns see it; bytes that are not UTF-8 become lone surrogates."""
    text = path.decode("utf-8", "surrogateescape")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def compile_patterns(lines: Sequence[str], base: bytes = b"") -> Patterns:
    """Return the patterns of an ignore file's lines.

    Args:
        lines: one pattern each; blank ones and comments are skipped.
        base: the folder of the ignore file, relative to the root.

    Raises:
        ValueError: a pattern is too long.
    """
    folder = as_text(base) + "/" if base else ""
    found = [_compile(line, folder) for line in lines]
    return tuple(pattern for pattern in found if pattern is not None)


def read_ignore_file(path: bytes, base: bytes) -> Patterns:
    """Return the patterns of an ignore file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or has a pattern that is.
    """
    with open(path, "rb") as stream:  # noqa: PTH123
        data = stream.read(_MAX_IGNORE_FILE + 1)
    if len(data) > _MAX_IGNORE_FILE:
        raise ValueError(f"it has more than {_MAX_IGNORE_FILE:,} bytes")
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return compile_patterns(text.split("\n"), base)


def leaves_out(patterns: Patterns, path: str, *, folder: bool) -> bool:
    """Return whether patterns leave out a path, given as `as_text` writes it."""
    for pattern in reversed(patterns):
        if pattern.folders_only and not folder:
            continue
        if pattern.regex.fullmatch(path, len(pattern.base)):
            return not pattern.keeps
    return False


def anchored(pattern: str, below: bytes) -> str:
    """Return a pattern for the root that means what `pattern` means in the folder `below`."""
    if not below or not pattern.strip():
        return pattern
    folder = re.sub(r"([\\*?\[])", r"\\\1", as_text(below))
    mark, rest = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    inner = "" if "/" in rest.rstrip("/") else "**/"
    return f"{mark}/{folder}/{inner}{rest.removeprefix('/')}"


def _compile(line: str, base: str) -> Pattern | None:
    text = line.rstrip("\r\n")
    stripped = text.rstrip(" ")
    if stripped.endswith("\\") and stripped != text:
        stripped += " "  # a space at the end that is meant
    text = stripped
    if not text or text.startswith("#"):
        return None
    if len(text) > _MAX_PATTERN:
        raise ValueError(f"a pattern has more than {_MAX_PATTERN:,} characters")
    keeps = text.startswith("!")
    body = unicodedata.normalize("NFC", text[keeps:])
    folders_only = body.endswith("/")
    parts = [part for part in body.split("/") if part]
    if not parts:
        return None
    if "/" not in body.rstrip("/"):
        parts.insert(0, "**")
    return Pattern(text, base, re.compile(_path_regex(parts), re.DOTALL), keeps, folders_only)


def _path_regex(parts: list[str]) -> str:
    """Return the regular expression of a path from the parts of a pattern between slashes.

    What stands between two `**`, or between two stars in a name, is matched at the first place and
    never elsewhere, which finds every match: no pattern takes longer than quadratic time.
    """
    names = [part if part == "**" else _name_regex(part, f"n{i}_") for i, part in enumerate(parts)]
    runs: list[list[str]] = [[]]
    for name in names:
        if name == "**":
            runs.append([])
        else:
            runs[-1].append(name)
    if len(runs) == 1:
        return "/".join(names)
    first, *middle, last = ["/".join(run) for run in runs]
    regex = first + "/" if first else ""
    for index, run in enumerate(middle):
        if run:
            regex += _at_first_place("(?:[^/]+/)*?", f"{run}/", f"r{index}")
    # At the end, `**` stands for everything in a folder, but not for the folder.
    return regex + (f"(?:[^/]+/)*{last}" if last else ".+")


def _at_first_place(before: str, run: str, group: str) -> str:
    """Return a regular expression for `run` after as little of `before` as possible."""
    return f"(?=(?P<{group}>{before}{run}))(?P={group})"


def _name_regex(part: str, prefix: str) -> str:
    """Return the regular expression of one name; `prefix` is of its groups' names."""
    runs = [""]
    at = 0
    while at < len(part):
        character = part[at]
        at += 1
        if character == "*":
            if runs[-1] or len(runs) == 1:
                runs.append("")
        elif character == "?":
            runs[-1] += "[^/]"
        elif character == "[":
            length, set_regex = _set_regex(part[at:])
            runs[-1] += set_regex
            at += length
        else:
            if character == "\\" and at < len(part):
                character = part[at]
                at += 1
            runs[-1] += re.escape(character)
    if len(runs) == 1:
        return runs[0]
    middle = "".join(
        _at_first_place("[^/]*?", run, f"{prefix}{index}") for index, run in enumerate(runs[1:-1])
    )
    return f"{runs[0]}{middle}[^/]*{runs[-1]}"


def _set_regex(rest: str) -> tuple[int, str]:
    """Return how much of `rest`, which follows "[", is a set of characters, and its regex."""
    negated = rest[:1] in ("!", "^")
    end = rest.find("]", 1 + negated)
    if end < 0:
        return 0, r"\["
    inner = rest[negated:end]
    items, at = "", 0
    while at < len(inner):
        low = inner[at]
        if inner[at + 1 : at + 2] == "-" and at + 2 < len(inner):
            high = inner[at + 2]
            if low <= high:  # a range that is upside down has no characters
                items += f"{re.escape(low)}-{re.escape(high)}"
            at += 3
        else:
            items += re.escape(low)
            at += 1
    if negated:
        return end + 1, f"[^/{items}]"
    return end + 1, f"(?!/)[{items}]" if items else "(?!)"
