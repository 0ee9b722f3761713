"""JSON from elsewhere, read with limits.

    raw = read_json("out/index.json")

Every loader limits bytes, memory and depth before it builds anything, takes finite numbers only
by default, and raises `ParseError` for every fault.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from pocketclip.errors import ParseError, one_line
from pocketclip.formats.lines import decode, split_lines

MAX_BYTES = 64 << 20
"""Default limit on a JSON text, in bytes."""
MAX_MEMORY = 512 << 20
"""Default limit on the memory of a JSON value, in bytes, as estimated from its text."""
MAX_DEPTH = 100
"""Default limit on the nesting of JSON and YAML, in levels."""
MAX_DIGITS = 308
"""Digits of the largest float; a longer number is refused."""

# Upper bounds on the memory of a value, by the character that begins or precedes it.
_CONTAINER_BYTES = 240
_VALUE_BYTES = 96
_FEW_BYTES = 64 << 20
_STRINGS_AND_BRACKETS = re.compile(rb'"[^"]*"|[\[{\]}]')
_STRINGS = re.compile(rb'"[^"]*"')
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_COUNTED = bytes(set(range(256)) - set(b'[{,:"'))
_HUGE_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")
_MANY_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS}}}")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_json(
    text: str | bytes | bytearray | memoryview,
    *,
    what: str = "the text",
    max_bytes: int = MAX_BYTES,
    max_memory: int = MAX_MEMORY,
    max_depth: int = MAX_DEPTH,
    constants: bool = False,
    surrogates: bool = False,
) -> Any:
    """Return the value of a JSON text.

    Args:
        text: one JSON value; bytes are UTF-8, UTF-16 or UTF-32, with or without BOM.
        what: the name of the text in error messages: a path, or a path and a line number.
        max_bytes: limit on the length of `text`.
        max_memory: limit on the value's memory in bytes, estimated before the value is built.
        max_depth: limit on the nesting of lists and objects.
        constants: accept NaN, Infinity and numbers too large for a float (1e999), as floats.
        surrogates: accept lone surrogates. They represent bytes of file names that are not
            UTF-8, and cannot be written as UTF-8.

    Raises:
        ParseError: the text is not JSON, an object repeats a key, or a limit is exceeded.
    """
    data, string = encode(text, what, max_bytes, surrogates)
    _check_memory(data, what, max_memory)
    _check_depth(data, what, max_depth)
    hooks: dict[str, Any] = {}
    # Of few values each number is looked at: searching long texts for one would take longer.
    if max_memory - len(data) <= _FEW_BYTES or _has_huge_number(string):
        hooks = {"parse_int": _bounded} if constants else _BOUNDED
    try:
        value = json.loads(
            string,
            object_pairs_hook=_without_duplicates,
            parse_constant=None if constants else _refuse_constant,
            **hooks,
        )
    except RecursionError:
        raise ParseError(f"{what} is nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in string else ""
        raise ParseError(f"{what} is not JSON: {error.msg} ({line}column {error.colno})") from None
    except ValueError as error:  # raised by the hooks
        raise ParseError(f"{what} is not usable JSON: {one_line(error)}") from None
    if not surrogates and _SURROGATE_ESCAPE.search(data):
        check_surrogates(value, what)
    return value


def read_json(path: str | Path, *, what: str = "", **limits: Any) -> Any:
    """Return the value of a local JSON file; `limits` are those of `load_json`.

    For a path that may be in an object store: `load_json(storage.read_bytes(path), what=path)`.

    Raises:
        ParseError: as `load_json`; the message begins with `what`, by default the path.
        OSError: the file cannot be read.
    """
    max_bytes = limits.get("max_bytes", MAX_BYTES)
    with Path(path).open("rb") as stream:
        data = stream.read(max_bytes + 1)  # enough to exceed the limit
    return load_json(data, what=what or str(path), **limits)


def read_json_lines(
    data: bytes, *, what: str = "the text", **limits: Any
) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for each line of JSON Lines that is not blank.

    `limits` are those of `load_json` and apply to each line.

    Raises:
        ParseError: a line is not JSON or exceeds a limit; the message names the line.
    """
    for number, line in enumerate(split_lines(decode(data, what)), 1):
        if line.strip():
            yield number, load_json(line, what=f"{what} line {number}", **limits)


def digest_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return the SHA-256 of a JSON value as hex; the order of keys does not matter.

    `default` converts values that JSON has no type for, as for `json.dumps`.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=default)
    return hashlib.sha256(text.encode()).hexdigest()


def encode(
    text: str | bytes | bytearray | memoryview, what: str, limit: int, surrogates: bool
) -> tuple[bytes, str]:
    """Return `text` as UTF-8 and as str, without a BOM."""
    if len(text) > limit:
        raise ParseError(f"{what} is larger than the limit of {limit:,} bytes")
    if not isinstance(text, str):
        data = bytes(text)
        string = decode(data, what).removeprefix("\ufeff")
        return (data if json.detect_encoding(data) == "utf-8" else string.encode()), string
    try:
        data = text.encode("utf-8", "surrogatepass" if surrogates else "strict")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ParseError(
            f"{what} holds \\u{code:04x}, half of a surrogate pair; write the whole character"
        ) from None
    if len(data) > limit:
        raise ParseError(f"{what} is larger than the limit of {limit:,} bytes")
    return data, text.removeprefix("\ufeff")


def check_surrogates(value: Any, what: str) -> None:
    """Raise ParseError if any text within `value` holds a lone surrogate."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            match = _SURROGATE.search(item)
            if match:
                raise ParseError(
                    f"{what} holds \\u{ord(match[0]):04x}, half of a surrogate pair; "
                    "write the whole character"
                )
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()


def _check_memory(data: bytes, what: str, limit: int) -> None:
    def estimate(text: bytes) -> int:
        containers = text.count(b"[") + text.count(b"{")
        return _CONTAINER_BYTES * containers + _VALUE_BYTES * (text.count(b",") + text.count(b":"))

    # The first estimate also counts commas within strings, which is quick; the exact one is made
    # only if the first exceeds the limit.
    estimated = estimate(data) + len(data)
    if estimated <= limit:
        return
    # Without the strings, as `_check_depth` does it. One string at a time is counted: a list of all
    # pieces between them would itself take a gigabyte.
    marks = _without_escapes(data).translate(None, _NOT_COUNTED).replace(b'""', b"")
    within = sum(estimate(match[0]) for match in _STRINGS.finditer(marks))
    if estimate(marks) - within + len(data) > limit:
        raise ParseError(f"{what} holds too many values: they need over {limit:,} bytes of memory")


def _check_depth(data: bytes, what: str, limit: int) -> None:
    """Refuse deep nesting without recursion; json's own limit depends on the caller."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return
    data = _without_escapes(data)
    # Quotes around brackets within a string never become adjacent, so they remain.
    brackets = data.translate(None, _NOT_STRUCTURE)
    left = brackets.replace(b'""', b"")
    budget = 8 * len(left)
    for _ in range(limit // 2):  # each round removes one or two levels
        if not left:
            return
        before, left = left, left.replace(b"[]", b"").replace(b"{}", b"")
        budget -= len(before)
        if len(left) == len(before) or budget < 0:
            break
    depth = 0
    for match in _STRINGS_AND_BRACKETS.finditer(brackets):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > limit:
                raise ParseError(f"{what} is nested more than {limit} levels deep")
        elif token in (b"]", b"}"):
            depth -= 1


def _without_escapes(data: bytes) -> bytes:
    """Return JSON in which each quote begins or ends a string."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data


def _has_huge_number(text: str) -> bool:
    """Return whether the text may hold a huge number, in a value or within a string."""
    if _HUGE_EXPONENT.search(text):
        return True
    stride = MAX_DIGITS // 2  # a long run of digits covers two adjacent positions
    if not re.search("[0-9][0-9]", text[::stride]):
        return False
    return _MANY_DIGITS.search(text) is not None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:80]!r} occurs twice in one object; remove one")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:  # converting takes quadratic time
        raise ValueError(f"{text[:40]}... is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


_BOUNDED: dict[str, Any] = {"parse_int": _bounded, "parse_float": _finite}
