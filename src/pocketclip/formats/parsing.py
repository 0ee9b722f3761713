"""Text from elsewhere, read with limits: lines, JSON and YAML.

    raw = read_json("out/index.json")
    shards = field(raw, "shards", list, what="out/index.json")
    captions = split_lines(text)

Every loader limits bytes, memory and depth before it builds anything, takes finite numbers only
unless asked otherwise, and raises `ParseError`, whatever is wrong. JSON needs nothing but the
standard library; YAML needs pyyaml, and is read as JSON's types: YAML 1.2's true and false are the
only booleans (`NO` is text), dates are text, and numbers are decimal unless they begin with 0x
or 0o.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

from pocketclip.errors import MissingDependencyError, ParseError

MAX_BYTES = 64 << 20
"""Largest JSON text, in bytes, unless a caller says otherwise."""
MAX_MEMORY = 512 << 20
"""Largest JSON value, in bytes of memory as estimated from its text."""
MAX_LINES_MEMORY = 1 << 30
"""Largest list of lines, in bytes of memory as estimated from its text."""
MAX_DEPTH = 100
"""Levels of nesting, of JSON and YAML."""
MAX_YAML_BYTES = 256 << 10
"""Largest YAML text, in bytes: the reader takes about a second for 100 kB."""
MAX_YAML_NODES = 100_000
"""Values of a YAML text, with every alias counted as what it stands for."""

# What values take in memory at most, by the sign that begins or precedes them.
_CONTAINER_BYTES = 240
_VALUE_BYTES = 96
_STRINGS_AND_BRACKETS = re.compile(rb'"[^"]*"|[\[{\]}]')
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_TAG = "tag:yaml.org,2002:"
_MOST_DIGITS = 308
_NUMBER = r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
_PLAIN = (  # what a YAML value without quotes is: type, pattern, first signs
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ("~", "n", "N", "")),
    ("int", "[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
    ("merge", "<<", "<"),
)
_HUGE_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")
_MANY_DIGITS = re.compile(rf"[0-9]{{{_MOST_DIGITS}}}")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")
D = TypeVar("D")
_REQUIRED: Any = object()
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def split_lines(text: str) -> list[str]:
    """Return the lines of `text`, without their ends, a leading BOM, and an empty last line.

    A line ends at LF or CR LF and nowhere else; `str.splitlines` also splits at form feeds,
    U+0085, U+2028 and others, which stand within captions.
    """
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if not lines[-1]:
        lines.pop()
    return lines


def load_lines(
    data: bytes, *, what: str = "the text", max_memory: int = MAX_LINES_MEMORY
) -> list[str]:
    """Return the lines of UTF-8 text, as `split_lines` does, within a limit of memory.

    Args:
        data: the text.
        what: begins error messages.
        max_memory: largest size in bytes of the lines in memory, with what is needed to make them.

    Raises:
        ParseError: it is not UTF-8, or holds too many lines.
    """
    # The bytes, the whole text, and the lines; each line is an object of its own.
    if 3 * len(data) + 64 * data.count(b"\n") > max_memory:
        raise ParseError(f"{what} holds too many lines; split it into parts")
    try:
        return split_lines(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ParseError(f"{what} is not UTF-8 text (byte {error.start})") from error


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
    """Return the value of a JSON text; bytes are UTF-8, UTF-16 or UTF-32, with or without BOM.

    Args:
        text: one JSON value.
        what: begins error messages: a path, or a path and a line.
        max_bytes: largest length of `text`.
        max_memory: largest size of the value in memory, as estimated before it is built.
        max_depth: deepest nesting of lists and objects.
        constants: whether NaN, Infinity and numbers too large for a float (1e999) are taken, as
            floats, instead of refused.
        surrogates: whether halves of surrogate pairs are taken; they stand for bytes of file
            names that are not UTF-8, and cannot be written as UTF-8.

    Raises:
        ParseError: it is not JSON, an object has a key twice, or a limit is exceeded.
    """
    data, string = _encoded(text, what, max_bytes, surrogates)
    _check_memory(data, what, max_memory)
    _check_depth(data, what, max_depth)
    hooks: dict[str, Any] = {}
    if _has_huge_number(string):
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
        place = f"line {error.lineno} column {error.colno}" if "\n" in string else (
            f"column {error.colno}"
        )  # fmt: skip
        raise ParseError(f"{what} is not JSON: {error.msg} ({place})") from None
    except ValueError as error:  # of the hooks
        raise ParseError(f"{what} is not usable JSON: {one_line(error)}") from None
    if not surrogates and _SURROGATE_ESCAPE.search(data):
        _check_surrogates(value, what)
    return value


def read_json(path: str | Path, *, what: str = "", **limits: Any) -> Any:
    """Return the value of a local JSON file; `limits` are those of `load_json`.

    For a path that may lie in an object store: `load_json(storage.read_bytes(path), what=path)`.

    Raises:
        ParseError: as `load_json`, beginning with the path unless there is `what`.
        OSError: it cannot be read.
    """
    max_bytes = limits.get("max_bytes", MAX_BYTES)
    with Path(path).open("rb") as stream:
        data = stream.read(max_bytes + 1)  # not more of it than the limit needs
    return load_json(data, what=what or str(path), **limits)


def read_json_lines(
    data: bytes, *, what: str = "the text", **limits: Any
) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for each line of JSON lines that is not blank.

    `limits` are those of `load_json`, for each line.

    Raises:
        ParseError: a line is not JSON or exceeds a limit; the message names it.
    """
    for number, line in enumerate(split_lines(_decoded(data, what)), 1):
        if line.strip():
            yield number, load_json(line, what=f"{what} line {number}", **limits)


def load_yaml(
    text: str | bytes,
    *,
    what: str = "the text",
    max_bytes: int = MAX_YAML_BYTES,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """Return the value of a YAML text, of JSON's types only; None if it is empty.

    Args:
        text: one document; bytes are UTF-8, or UTF-16 with a BOM.
        what: begins error messages.
        max_bytes: largest length of `text`.
        max_depth: deepest nesting.

    Raises:
        ParseError: it is not YAML, has tags, a key that is not text or stands there twice, a
            number that is not finite, or exceeds a limit.
        MissingDependencyError: pyyaml is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            'YAML is read with pyyaml: pip install "pocketclip[train]"'
        ) from None
    _, string = _encoded(text, what, max_bytes, surrogates=False)
    try:
        composer = _yaml_composer()(string)
        composer.max_depth = max_depth
        node = composer.get_single_node()
        if node is None:
            return None
        _check_nodes(node, max_depth)
        value = _value_of(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1} column {mark.column + 1})" if mark else ""
        reason = error.problem or error.context or "it does not fit together"
        kind = "usable YAML" if isinstance(error, _refusal()) else "YAML"
        raise ParseError(f"{what} is not {kind}: {one_line(reason)}{place}") from None
    except yaml.YAMLError as error:
        raise ParseError(f"{what} is not YAML: {one_line(error)}") from None
    except RecursionError:
        raise ParseError(f"{what} is nested too deeply to be read") from None
    _check_surrogates(value, what)
    return value


def read_yaml(path: str | Path, *, what: str = "") -> Any:
    """Return the value of a local YAML file, as `load_yaml` does.

    Raises:
        ParseError: as `load_yaml`, beginning with the path unless there is `what`.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as stream:
        data = stream.read(MAX_YAML_BYTES + 1)
    return load_yaml(data, what=what or str(path))


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys and of blanks."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def dump_yaml(value: Any) -> str:
    """Return a value of JSON's types as YAML; `load_yaml` returns an equal value."""
    import yaml

    text: str = yaml.dump(value, Dumper=_yaml_dumper(), sort_keys=False, allow_unicode=True)
    return text


@overload
def field(raw: object, name: str, kind: type[T], *, what: str = ...) -> T: ...
@overload
def field(raw: object, name: str, kind: type[T], *, what: str = ..., default: D) -> T | D: ...
def field(
    raw: object, name: str, kind: type[T], *, what: str = "the text", default: Any = _REQUIRED
) -> Any:
    """Return `raw[name]`, which is of `kind`: dict, list, str, int, float or bool.

    A whole number is a float too, and is returned as one; true and false are no numbers, and
    neither are NaN and infinities. With `default`, null counts as missing if `default` is None.

    Args:
        raw: what `load_json` or `load_yaml` returned.
        name: the key.
        kind: the type.
        what: begins error messages.
        default: returned where there is no such key; without it that is an error.

    Raises:
        ParseError: `raw` is no object, the key is missing, or its value is of another type.
    """
    if not isinstance(raw, Mapping):
        raise ParseError(f"{what} should be an object with {name!r}, not {kind_of(raw)}")
    if name not in raw:
        if default is _REQUIRED:
            raise ParseError(f'{what}: "{name}" is missing')
        return default
    value = raw[name]
    if value is None and default is None:
        return None
    return typed(value, kind, what=f'{what}: "{name}"')


def items(raw: object, name: str, kind: type[T], *, what: str = "the text") -> list[T]:
    """Return the list `raw[name]`, whose entries are all of `kind` as `field` takes it.

    Raises:
        ParseError: it is missing, no list, or an entry is of another type.
    """
    values = field(raw, name, list, what=what)
    return [typed(value, kind, what=f'{what}: "{name}"[{k}]') for k, value in enumerate(values)]


def typed(value: object, kind: type[T], *, what: str) -> T:
    """Return `value` if it is of `kind`, as `field` takes it.

    Raises:
        ParseError: it is not; `what` begins the message.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number and _is_finite(value):
        return float(value)  # type: ignore[arg-type,return-value]
    good = number if kind is int else kind is not float
    if good and isinstance(value, kind):
        return value
    raise ParseError(f"{what} should be {_KINDS.get(kind, kind.__name__)}, not {kind_of(value)}")


def reason_of(error: Exception) -> str:
    """Return in words why a loaded value could not be used: a key that is missing, or the error."""
    if isinstance(error, KeyError) and error.args:
        return f'"{error.args[0]}" is missing'
    return one_line(error)


def kind_of(value: object) -> str:
    """Return the type of a JSON value in words, with the value where that is short."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}" if abs(value) < 10**30 else "a huge number"
    if isinstance(value, str):
        shown = value if len(value) <= 40 else value[:40] + "..."
        return f"the text {shown!r}"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def _encoded(
    text: str | bytes | bytearray | memoryview, what: str, limit: int, surrogates: bool
) -> tuple[bytes, str]:
    """Return `text` as UTF-8 and as str, without a BOM."""
    if len(text) > limit:
        raise ParseError(f"{what} is larger than {limit:,} bytes, the limit for it")
    if not isinstance(text, str):
        data = bytes(text)
        string = _decoded(data, what).removeprefix("\ufeff")
        return (data if json.detect_encoding(data) == "utf-8" else string.encode()), string
    try:
        data = text.encode("utf-8", "surrogatepass" if surrogates else "strict")
    except UnicodeEncodeError as error:
        sign = ord(text[error.start])
        raise ParseError(
            f"{what} holds \\u{sign:04x}, half of a character; write it whole"
        ) from None
    if len(data) > limit:
        raise ParseError(f"{what} is larger than {limit:,} bytes, the limit for it")
    return data, text.removeprefix("\ufeff")


def _decoded(data: bytes, what: str) -> str:
    encoding = json.detect_encoding(data)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and not encoding.startswith("utf-32"):
        encoding = "utf-16"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ParseError(
            f"{what} is not {encoding.upper().removesuffix('-SIG')} text (byte {error.start + 1})"
        ) from None


def _check_memory(data: bytes, what: str, limit: int) -> None:
    def needed(text: bytes) -> int:
        containers = text.count(b"[") + text.count(b"{")
        return _CONTAINER_BYTES * containers + _VALUE_BYTES * (text.count(b",") + text.count(b":"))

    # Commas within strings count at first, which is quick; only a text that fails is read closer.
    if needed(data) + len(data) > limit and needed(_STRINGS.sub(b"", data)) + len(data) > limit:
        raise ParseError(f"{what} holds too many values: over {limit:,} bytes of memory")


def _check_depth(data: bytes, what: str, limit: int) -> None:
    """Refuse deep nesting without recursion; json's own limit depends on who calls it."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Quotes that enclose brackets never become neighbours, so they remain.
    signs = data.translate(None, _NOT_STRUCTURE)
    left = signs.replace(b'""', b"")
    effort = 8 * len(left)
    for _ in range(limit // 2):  # each round takes one or two levels away
        if not left:
            return
        before, left = left, left.replace(b"[]", b"").replace(b"{}", b"")
        effort -= len(before)
        if len(left) == len(before) or effort < 0:
            break
    depth = 0
    for found in _STRINGS_AND_BRACKETS.finditer(signs):
        sign = found[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth > limit:
                raise ParseError(f"{what} is nested more than {limit} levels deep")
        elif sign in (b"]", b"}"):
            depth -= 1


def _has_huge_number(text: str) -> bool:
    """Return whether some number, or a part of a text that looks like one, may be huge."""
    if _HUGE_EXPONENT.search(text):
        return True
    stride = _MOST_DIGITS // 2  # a long row of digits holds two neighbours of a sample of these
    if not re.search("[0-9][0-9]", text[::stride]):
        return False
    return _MANY_DIGITS.search(text) is not None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object; remove one")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")


def _bounded(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # reading it takes time as the square of its length
        raise ValueError(f"{text[:40]}... is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


_BOUNDED: dict[str, Any] = {"parse_int": _bounded, "parse_float": _finite}


def _check_surrogates(value: Any, what: str) -> None:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            found = _SURROGATE.search(part)
            if found:
                raise ParseError(
                    f"{what} holds \\u{ord(found[0]):04x}, half of a character; write it whole"
                )
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part
            waiting += part.values()


@functools.lru_cache(maxsize=1)
def _yaml_composer() -> Any:
    """Return pyyaml's safe loader with YAML 1.2's plain types and a limit of depth.

    It composes nodes only: `_value_of` makes values of them, so that no tag makes anything else.
    """
    import yaml

    class Composer(yaml.SafeLoader):
        # Not those of YAML 1.1: dates, `on`, octal 010 and base 60 (1:30).
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as pyyaml declares it
        max_depth = MAX_DEPTH
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > self.max_depth:
                event = self.peek_event()  # type: ignore[no-untyped-call]
                _refuse(event, f"nested more than {self.max_depth} levels deep")
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    for name, pattern, first in _PLAIN:
        Composer.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern})$"), list(first))
    return Composer


@functools.lru_cache(maxsize=1)
def _yaml_dumper() -> Any:
    """Return pyyaml's safe dumper that also quotes a text which `load_yaml` would not read so."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    for name, pattern, first in _PLAIN:
        Dumper.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern})$"), list(first))
    return Dumper


def _check_nodes(root: Any, max_depth: int) -> None:
    """Count the nodes below `root`, each alias as what it stands for."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > MAX_YAML_NODES:
            _refuse(root, f"more than {MAX_YAML_NODES:,} values; are there aliases of aliases?")
        if depth > max_depth:
            _refuse(node, f"nested more than {max_depth} levels deep")
        if isinstance(node.value, list):
            for part in node.value:
                pair = part if isinstance(part, tuple) else (part,)
                waiting += [(one, depth + 1) for one in pair]


def _value_of(node: Any) -> Any:
    """Return what a node stands for, in JSON's types."""
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node.value, str):
        return _scalar_of(node, kind)
    if kind == "seq" and node.id == "sequence":
        return [_value_of(part) for part in node.value]
    if kind == "map" and node.id == "mapping":
        return _mapping_of(node)
    return _refuse(node, f"the tag {node.tag!r} is not known here; remove it")


def _scalar_of(node: Any, kind: str) -> Any:
    text = node.value
    plain = text.replace("_", "")
    try:
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int" and len(text) <= _MOST_DIGITS:
            return int(plain, {"0o": 8, "0x": 16}.get(plain[:2], 10))
        if kind == "float" and math.isfinite(float(plain)):
            return float(plain)
    except (KeyError, ValueError):
        pass  # as any other that is none
    if kind in ("int", "float", "bool"):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        _refuse(node, f"{shown} is not {'true or false' if kind == 'bool' else 'a finite number'}")
    return _refuse(node, f"the tag {node.tag!r} is not known here; remove it, or use quotes")


def _mapping_of(node: Any) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == f"{_TAG}merge":
            for part in value.value if value.id == "sequence" else [value]:
                if part.id != "mapping":
                    _refuse(part, "`<<` merges mappings only")
                merged = {**_mapping_of(part), **merged}
        elif key.tag != f"{_TAG}str" or not isinstance(key.value, str):
            shown = f" {key.value!r}" if isinstance(key.value, str) else ""
            _refuse(key, f"the key{shown} is not text; put it in quotes")
        elif key.value in own:
            _refuse(key, f"the key {key.value!r} stands twice in one mapping; remove one")
        else:
            own[key.value] = _value_of(value)
    return {**merged, **own}


@functools.lru_cache(maxsize=1)
def _refusal() -> Any:
    """Return the class of our own errors, of YAML that pyyaml takes."""
    import yaml

    return type("Refusal", (yaml.MarkedYAMLError,), {})


def _refuse(place: Any, problem: str) -> NoReturn:
    raise _refusal()(problem=problem, problem_mark=place.start_mark)


def one_line(error: object) -> str:
    """Return what an error says in one line of up to 200 characters, or its type."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
