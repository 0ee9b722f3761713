"""The entry of a tower in `bundle.json`: its file, its input and its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Kind = Literal["image", "text"]
"""Which tower of a model."""


class Port(NamedTuple):
    """An input or output of an exported tower."""

    name: str
    dtype: str
    shape: Sequence[int | None]
    """None for an axis of any size."""


def describe_port(name: str, dtype: str, shape: Sequence[int | None]) -> dict[str, Any]:
    """Return an input or output as `bundle.json` has it."""
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def tower_facts(
    file: str,
    input_port: Port,
    output_port: Port,
    *,
    kept: Sequence[str] = (),
    notes: Sequence[str] = (),
    dynamic_batch: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return the entry of a tower in `bundle.json`.

    Args:
        file: its name in the bundle.
        input_port: its input.
        output_port: its output.
        kept: layers that int8 left in higher precision.
        notes: sentences for the user.
        dynamic_batch: the batch may have any size.
        more: further keys.
    """
    return {
        "file": file,
        "input": describe_port(*input_port),
        "output": describe_port(*output_port),
        "dynamic_batch": dynamic_batch,
        "kept": list(kept),
        "notes": list(notes),
        **more,
    }
