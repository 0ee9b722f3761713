"""Values of a loaded JSON or YAML document, taken with their types checked.

shards = field(raw, "shards", list, what="out/index.json")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from pocketclip.errors import ParseError, one_line

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


@overload
def field(raw: object, name: str, kind: type[T], *, what: str = ...) -> T: ...
@overload
def field(raw: object, name: str, kind: type[T], *, what: str = ..., default: D) -> T | D: ...
def field(
    raw: object, name: str, kind: type[T], *, what: str = "the text", default: Any = _REQUIRED
) -> Any:
    """Return `raw[name]` after checking its type.

    For `kind=float`, whole numbers are accepted and converted. Booleans, NaN and infinities do
    not count as numbers. With `default=None`, null counts as missing.

    Args:
        raw: the value that `load_json` or `load_yaml` returned.
        name: the key.
        kind: the required type: dict, list, str, int, float or bool.
        what: the name of the document in error messages.
        default: returned if the key is missing; without a default, a missing key is an error.

    Raises:
        ParseError: `raw` is not an object, the key is missing, or its value has another type.
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
    """Return the list `raw[name]` after checking that each entry is of `kind`, as `field` does.

    Raises:
        ParseError: the key is missing, its value is not a list, or an entry has another type.
    """
    values = field(raw, name, list, what=what)
    return [typed(value, kind, what=f'{what}: "{name}"[{k}]') for k, value in enumerate(values)]


def typed(value: object, kind: type[T], *, what: str) -> T:
    """Return `value` after checking that it is of `kind`, as `field` does.

    Raises:
        ParseError: it has another type; the message begins with `what`.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and is_number and _is_finite(value):
        return float(value)  # type: ignore[arg-type,return-value]
    allowed = is_number if kind is int else kind is not float
    if allowed and isinstance(value, kind):
        return value
    raise ParseError(f"{what} should be {_KINDS.get(kind, kind.__name__)}, not {kind_of(value)}")


def reason_of(error: Exception) -> str:
    """Return one line that says why a loaded value is unusable, such as a missing key."""
    if isinstance(error, KeyError) and error.args:
        return f'"{error.args[0]}" is missing'
    return one_line(error)


def kind_of(value: object) -> str:
    """Return the type of a JSON value in words, with the value if it is short."""
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
    except OverflowError:  # an int larger than any float
        return False
