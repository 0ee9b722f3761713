"""Arguments that take several paths or patterns, or a single one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def listed(given: str | os.PathLike[str] | Iterable[T]) -> list[T]:
    """Return several as a list, and a single text or path as a list of one.

    A text would be taken apart otherwise: its first character, "/", is a folder too, and "*", a
    pattern that leaves out everything.
    """
    if isinstance(given, (str, bytes, os.PathLike)):
        return [given]  # type: ignore[list-item]
    return list(given)
