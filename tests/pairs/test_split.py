"""The validation split depends on names and labels only."""

import numpy as np
import pytest

from pocketclip.errors import ConfigError
from pocketclip.pairs.split import hold_out

NAMES = [f"photo-{k:03d}.jpg" for k in range(100)]
LABELS = ["common"] * 80 + ["rare"] * 18 + ["twice"] * 2


def test_each_label_is_held_out_in_proportion():
    held_out = hold_out(NAMES, LABELS, share=0.1)
    counts = [int(held_out[np.array(LABELS) == name].sum()) for name in ("common", "rare", "twice")]
    assert counts == [8, 2, 1]


def test_order_changes_nothing():
    order = np.random.default_rng(0).permutation(100)
    shuffled = hold_out([NAMES[k] for k in order], [LABELS[k] for k in order])
    assert (shuffled == hold_out(NAMES, LABELS)[order]).all()


def test_the_choice_is_the_same_on_every_machine():
    assert [NAMES[k] for k in np.flatnonzero(hold_out(NAMES, share=0.03))] == [
        "photo-012.jpg", "photo-026.jpg", "photo-087.jpg"
    ]  # fmt: skip


def test_new_samples_hardly_change_the_choice():
    before = {n for n, out in zip(NAMES, hold_out(NAMES), strict=True) if out}
    names = [*NAMES, *(f"new-{k}.jpg" for k in range(10))]
    after = {n for n, out in zip(names, hold_out(names), strict=True) if out}
    assert len(before - after) <= 2


def test_a_single_sample_stays():
    assert hold_out(["a", "b"], ["x", "y"]).tolist() == [False, False]
    assert hold_out([], []).tolist() == []


def test_purposes_are_independent():
    assert (hold_out(NAMES) != hold_out(NAMES, purpose="test")).any()


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigError, match="share to hold out"):
        hold_out(NAMES, share=share)


def test_labels_of_another_length_are_refused():
    with pytest.raises(ConfigError, match="100 names have 99 labels"):
        hold_out(NAMES, LABELS[1:])
