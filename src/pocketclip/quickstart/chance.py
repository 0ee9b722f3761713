"""Chance that is the same on every machine and with every version of numpy.

Numpy promises the raw bits of its generators, not what its distributions make of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Chance:
    """Draws that are a pure function of some whole numbers."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1."""
        return int(self.uniform() * count)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of `options`."""
        return options[self.below(len(options))]

    def weighted(self, weights: dict[T, float]) -> T:
        """Return a key with a probability in proportion to its value."""
        left = self.uniform() * sum(weights.values())
        for option, weight in weights.items():
            left -= weight
            if left < 0:
                return option
        return option

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Return `count` different ones of `options`, in a random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def many(self, count: int) -> NDArray[np.float32]:
        """Return `count` numbers in [0, 1), float32."""
        return (self._bits.random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(
            2.0**-24
        )
