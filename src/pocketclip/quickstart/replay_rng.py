"""Random numbers that are the same on every machine and with every version of numpy.

Numpy guarantees the raw bits of its generators, but not what its distributions make of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class ReplayRNG:
    """A generator whose draws are a pure function of the integers that seed it."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def integers(self, high: int) -> int:
        """Return an integer in [0, high)."""
        return int(self.uniform() * high)

    def choice(self, options: Sequence[T]) -> T:
        """Return one of `options`, all equally likely."""
        return options[self.integers(len(options))]

    def weighted_choice(self, weights: dict[T, float]) -> T:
        """Return a key with a probability proportional to its value."""
        remaining = self.uniform() * sum(weights.values())
        for option, weight in weights.items():
            remaining -= weight
            if remaining < 0:
                return option
        return option

    def bernoulli(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def random(self, count: int) -> NDArray[np.float32]:
        """Return `count` numbers in [0, 1), float32."""
        return (self._bits.random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(
            2.0**-24
        )
