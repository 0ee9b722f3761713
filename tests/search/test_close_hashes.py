"""All close pairs of hashes are found, each once."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip.search.duplicates import close_hashes
from pocketclip.search.duplicates.close_hashes import TooManyPairsError, close_pairs
from pocketclip.search.indexing.perceptual_hash import BITS, hamming_distances


@pytest.fixture(scope="module")
def hashes():
    """2,000 distinct hashes, of which a third are a few bits from another."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2000, BITS), dtype=np.uint8)
    for row in range(0, 2000, 3):
        bits[row] = bits[row - 1]
        bits[row, rng.permutation(BITS)[: rng.integers(1, 14)]] ^= 1
    return np.unique((bits.astype(np.uint64) << np.arange(BITS, dtype=np.uint64)).sum(1))


@pytest.mark.parametrize("distance", [1, 3, 8, 12])
@pytest.mark.parametrize("equal", [1, 2, 3, None])
def test_all_pairs_once(hashes, distance, equal, monkeypatch):
    if equal is not None:
        monkeypatch.setattr(close_hashes, "_equal_blocks", lambda *_: equal)
    apart = hamming_distances(hashes[:, None], hashes[None])
    expected = np.argwhere(np.triu(apart <= distance, 1))
    first, second = close_pairs(hashes, distance)
    found = np.stack([first, second], 1)
    assert np.array_equal(found[np.lexsort((second, first))], expected)
    assert len(expected) > 30


def test_nothing_to_compare(hashes):
    assert close_pairs(hashes, 0)[0].tolist() == []
    assert close_pairs(hashes[:1], 8)[0].tolist() == []


def test_too_many_pairs(monkeypatch):
    monkeypatch.setattr(close_hashes, "MAX_PAIRS", 1000)
    with pytest.raises(TooManyPairsError):
        close_pairs(np.arange(1 << 8, dtype=np.uint64), 8)
