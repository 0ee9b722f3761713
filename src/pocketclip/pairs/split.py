"""The validation split: which samples are held out, decided by their names.

    held_out = hold_out(["a.jpg", "b.jpg", ...], labels=["cat", "dog", ...])

The same names are held out in every run and on every machine, in any order, and wherever the
folder lies. With labels, each of them is held out in proportion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ConfigError


def hold_out(
    names: Sequence[str],
    labels: Sequence[Hashable] | None = None,
    *,
    share: float = 0.1,
    purpose: str = "validation",
) -> NDArray[np.bool_]:
    """Return which samples (N,) are held out.

    Of n samples with one label, `share * n` are held out, rounded: at least one if there are two
    or more, and never all.

    Args:
        names: unique names, relative to their folder, so that moving it changes nothing.
        labels: one per name; None: all samples count as one class.
        share: the share to hold out, above 0 and below 1.
        purpose: splits for different purposes are independent of each other.

    Raises:
        ConfigError: the share is out of range, or `labels` has another length.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share to hold out is {share:g}; it must be above 0 and below 1")
    if labels is not None and len(labels) != len(names):
        raise ConfigError(f"{len(names)} names have {len(labels)} labels")
    groups: dict[Hashable, list[int]] = {}
    for position, label in enumerate(labels if labels is not None else [None] * len(names)):
        groups.setdefault(label, []).append(position)
    held_out = np.zeros(len(names), bool)
    for positions in groups.values():
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        held_out[sorted(positions, key=lambda p: draw(purpose, names[p]))[:count]] = True
    return held_out


def draw(purpose: str, name: str) -> bytes:
    """Return what a name is sorted by; orders of different purposes are independent."""
    # File names may be any bytes, hence surrogates.
    return hashlib.sha256(f"{purpose}\0{name}".encode("utf-8", "surrogatepass")).digest()
