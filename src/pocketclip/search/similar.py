"""When two photographs count as alike: the limits, and the groups among a few photographs.

    groups = group_similar(vectors, hashes)  # [[0, 3], [1], [2]]

A group is one photograph, the best, and those that are alike to that one. So a chain of photographs
of which each resembles only the next is not one group.

Shapes: K photographs, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ConfigError
from pocketclip.search.indexing.perceptual_hash import hamming_distances

MOST_BITS = 12
"""The largest `near_distance`: hashes of unrelated photographs begin to be as close as that."""
_MOST_ASPECT = 1.25  # a crop changes the ratio of the sides a little
_SAME_MOMENT = 0.02  # seconds by which fractions of one time may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateLimits:
    """What counts as a near duplicate, and as a burst."""

    near_distance: int = 8
    """Near duplicates: the most bits in which the perceptual hashes differ, of 63."""
    near_similarity: float = 0.9
    """And the least cosine similarity of the embeddings."""
    near_pixels: float = 0.97
    """And the least correlation of the pixels, of one picture with the other or a part of it; -1:
    they are not compared, and no file is read. `group_similar` never compares them."""
    burst_seconds: float = 3.0
    """Bursts: the most seconds from one photograph to the next."""
    burst_similarity: float = 0.85
    """And the least cosine similarity of each to the best one."""

    def __post_init__(self) -> None:
        ranges = {
            "near_distance": (0, MOST_BITS), "near_similarity": (-1, 1),
            "near_pixels": (-1, 1), "burst_seconds": (0, 3600), "burst_similarity": (-1, 1),
        }  # fmt: skip
        for field in fields(self):
            low, high = ranges[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise ConfigError(f"{field.name} is {value}: it goes from {low} to {high}")


DEFAULT_LIMITS = DuplicateLimits()


def may_be_copies(
    first: tuple[float, float], others: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.bool_]:
    """Return which of some photographs (K,) may show the same shot as the first one.

    Copies of one shot have the camera's time of that shot, or lost it. Their sides have nearly the
    same ratio.

    Args:
        first: its capture time, NaN if unknown, and its width by its height.
        others: the same (K,) and (K,).
    """
    time, ratio = first
    times, ratios = others
    apart = np.abs(times - time)
    # Some copies lose the fraction of the second.
    exact = (times % 1 != 0) & (time % 1 != 0)
    same_time = np.where(exact, apart <= _SAME_MOMENT, np.floor(times) == np.floor(time))
    unknown = np.isnan(times) | np.isnan(time)
    change = np.maximum(ratios / ratio, ratio / ratios)
    return (unknown | same_time) & ~(change > _MOST_ASPECT)


def group_similar(
    vectors: NDArray[np.float32],
    hashes: Sequence[int | None],
    *,
    limits: DuplicateLimits = DEFAULT_LIMITS,
) -> list[list[int]]:
    """Return groups of near duplicates among photographs that are in the order of their rank.

    Args:
        vectors: embeddings (K, D) of unit length.
        hashes: perceptual hashes (K,). A photograph without one, which is blank, is alone.
        limits: only those of near duplicates matter.

    Returns:
        Positions, each once. The groups are in the order of their first members, which rank best,
        and so are the members of each group.
    """
    known = np.array([one is not None for one in hashes], np.bool_)
    bits = np.array([one or 0 for one in hashes], np.uint64)
    free = np.ones(len(hashes), np.bool_)
    groups = []
    for best in range(len(hashes)):
        if not free[best]:
            continue
        free[best] = False
        members = [best]
        if known[best]:
            others = np.flatnonzero(free & known)
            close = hamming_distances(bits[others], bits[best : best + 1]) <= limits.near_distance
            others = others[close]
            alike = others[vectors[others] @ vectors[best] >= limits.near_similarity]
            free[alike] = False
            members += alike.tolist()
        groups.append(members)
    return groups
