"""YAML from elsewhere, read with limits and as JSON's types.

    recipe = read_yaml("recipe.yaml")

YAML 1.2's true and false are the only booleans (`NO` is text), dates are text, and numbers are
decimal unless they begin with 0x or 0o. Needs pyyaml.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from pocketclip.errors import MissingDependencyError, ParseError, how_to_install, one_line
from pocketclip.formats.json_text import MAX_DEPTH, MAX_DIGITS, check_surrogates, encode

MAX_YAML_BYTES = 256 << 10
"""Default limit on a YAML text, in bytes. pyyaml takes about a second for 100 kB."""
MAX_YAML_NODES = 100_000
"""Limit on the values of a YAML text, with every alias counted as its expansion."""

_TAG = "tag:yaml.org,2002:"
_NUMBER = r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
_PLAIN = (  # types of unquoted YAML values: type, pattern, first characters
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ("~", "n", "N", "")),
    ("int", "[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
    ("merge", "<<", "<"),
)


def load_yaml(
    text: str | bytes,
    *,
    what: str = "the text",
    max_bytes: int = MAX_YAML_BYTES,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """Return the value of a YAML text, using JSON's types only; None for an empty text.

    Args:
        text: one document; bytes are UTF-8, or UTF-16 with a BOM.
        what: the name of the text in error messages.
        max_bytes: limit on the length of `text`.
        max_depth: limit on the nesting.

    Raises:
        ParseError: the text is not YAML, or it holds a tag, a key that is repeated or not text,
            or a number that is not finite, or it exceeds a limit.
        MissingDependencyError: pyyaml is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            f"YAML is read with pyyaml: {how_to_install('train')}"
        ) from None
    _, string = encode(text, what, max_bytes, surrogates=False)
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
        position = f" (line {mark.line + 1} column {mark.column + 1})" if mark else ""
        reason = error.problem or error.context or "it is malformed"
        kind = "usable YAML" if isinstance(error, _refusal()) else "YAML"
        raise ParseError(f"{what} is not {kind}: {one_line(reason)}{position}") from None
    except yaml.YAMLError as error:
        raise ParseError(f"{what} is not YAML: {one_line(error)}") from None
    except RecursionError:
        raise ParseError(f"{what} is nested too deeply to be read") from None
    check_surrogates(value, what)
    return value


def read_yaml(path: str | Path, *, what: str = "") -> Any:
    """Return the value of a local YAML file, as `load_yaml` does.

    Raises:
        ParseError: as `load_yaml`; the message begins with `what`, by default the path.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        data = stream.read(MAX_YAML_BYTES + 1)
    return load_yaml(data, what=what or str(path))


def dump_yaml(value: Any) -> str:
    """Return a value of JSON's types as YAML text, from which `load_yaml` gives an equal value."""
    import yaml

    text: str = yaml.dump(value, Dumper=_yaml_dumper(), sort_keys=False, allow_unicode=True)
    return text


@functools.lru_cache(maxsize=1)
def _yaml_composer() -> Any:
    """Return pyyaml's safe loader with YAML 1.2's plain types and a depth limit.

    It only composes nodes. `_value_of` converts them to values, so no tag can construct an object.
    """
    import yaml

    class Composer(yaml.SafeLoader):
        # Without the resolvers of YAML 1.1: dates, `on`, octal 010 and base 60 (1:30).
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
    """Return pyyaml's safe dumper, which also quotes text that would load as another type."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    for name, pattern, first in _PLAIN:
        Dumper.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern})$"), list(first))
    return Dumper


def _check_nodes(root: Any, max_depth: int) -> None:
    """Limit the number and depth of the nodes below `root`, with each alias counted as expanded."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > MAX_YAML_NODES:
            _refuse(root, f"more than {MAX_YAML_NODES:,} values; are there aliases of aliases?")
        if depth > max_depth:
            _refuse(node, f"nested more than {max_depth} levels deep")
        if isinstance(node.value, list):
            for child in node.value:  # of a mapping: (key, value)
                children = child if isinstance(child, tuple) else (child,)
                waiting += [(each, depth + 1) for each in children]


def _value_of(node: Any) -> Any:
    """Return the value of a node, in JSON's types."""
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node.value, str):
        return _scalar_of(node, kind)
    if kind == "seq" and node.id == "sequence":
        return [_value_of(child) for child in node.value]
    if kind == "map" and node.id == "mapping":
        return _mapping_of(node)
    return _refuse(node, f"the tag {node.tag!r} is not supported; remove it")


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
        if kind == "int" and len(text) <= MAX_DIGITS:
            return int(plain, {"0o": 8, "0x": 16}.get(plain[:2], 10))
        if kind == "float" and math.isfinite(float(plain)):
            return float(plain)
    except (KeyError, ValueError):
        pass  # refused below
    if kind in ("int", "float", "bool"):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        _refuse(node, f"{shown} is not {'true or false' if kind == 'bool' else 'a finite number'}")
    return _refuse(node, f"the tag {node.tag!r} is not supported; remove it, or use quotes")


def _mapping_of(node: Any) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == f"{_TAG}merge":
            for mapping in value.value if value.id == "sequence" else [value]:
                if mapping.id != "mapping":
                    _refuse(mapping, "`<<` merges mappings only")
                merged = {**_mapping_of(mapping), **merged}
        elif key.tag != f"{_TAG}str" or not isinstance(key.value, str):
            shown = f" {key.value!r}" if isinstance(key.value, str) else ""
            _refuse(key, f"the key{shown} is not text; put it in quotes")
        elif key.value in own:
            _refuse(key, f"the key {key.value!r} occurs twice in one mapping; remove one")
        else:
            own[key.value] = _value_of(value)
    return {**merged, **own}


@functools.lru_cache(maxsize=1)
def _refusal() -> Any:
    """Return the class of our own errors about YAML that pyyaml accepts."""
    import yaml

    return type("Refusal", (yaml.MarkedYAMLError,), {})


def _refuse(node: Any, problem: str) -> NoReturn:
    raise _refusal()(problem=problem, problem_mark=node.start_mark)
