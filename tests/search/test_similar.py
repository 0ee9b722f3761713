"""Groups among the hits of a search: around the best one, in the order of the ranking."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip.errors import ConfigError
from pocketclip.search.similar import DuplicateLimits, group_similar, may_be_copies


def unit(*angles):
    return np.array([[np.cos(a), np.sin(a)] for a in np.radians(angles)], np.float32)


def test_hash_and_embedding_must_both_agree():
    vectors = unit(0, 1, 2, 90, 3)
    hashes = [0b0000, 0b0011, (1 << 20) - 1, 0b0000, None]
    assert group_similar(vectors, hashes) == [[0, 1], [2], [3], [4]]
    assert group_similar(vectors[:0], []) == []


def test_a_chain_is_not_one_group():
    """Each is close to the next only: around the first one there is one more."""
    hashes = [(1 << 8 * n) - 1 for n in range(7)]
    assert group_similar(unit(*[0] * 7), hashes) == [[0, 1], [2, 3], [4, 5], [6]]
    limits = DuplicateLimits(near_similarity=0.999)
    assert group_similar(unit(0, 2, 4, 6), [5] * 4, limits=limits) == [[0, 1], [2, 3]]


def test_photographs_without_a_hash_are_alone():
    assert group_similar(unit(0, 0), [None, None]) == [[0], [1]]


@pytest.mark.parametrize(
    ("times", "ratios", "copies"),
    [
        ((100.0, 100.0), (1.5, 1.5), True),
        ((100.0, 101.0), (1.5, 1.5), False),
        ((100.25, 100.0), (1.5, 1.5), True),
        ((100.25, 100.75), (1.5, 1.5), False),
        ((100.99, 101.0), (1.5, 1.5), False),
        ((np.nan, 100.0), (1.5, 1.5), True),
        ((100.0, np.nan), (1.5, 1.4), True),
        ((np.nan, np.nan), (1.5, 0.667), False),
    ],
)
def test_copies_have_the_time_of_their_shot(times, ratios, copies):
    one, other = np.array(times)[:1], np.array(times)[1:]
    found = may_be_copies((one[0], ratios[0]), (other, np.array(ratios[1:])))
    assert found.tolist() == [copies]


def test_limits_out_of_range():
    with pytest.raises(ConfigError, match="near_distance is 40: it goes from 0 to 12"):
        DuplicateLimits(near_distance=40)
    with pytest.raises(ConfigError, match="burst_similarity is nan"):
        DuplicateLimits(burst_similarity=float("nan"))
