"""Dimensions, logit scales and weights of the teachers: where they are from, and what is logged."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from pocketclip.errors import ConfigError
from pocketclip.train.recipe import load_recipe
from pocketclip.train.teacher_settings import teacher_settings

HUB = "hf-hub:apple/DFN2B-CLIP-ViT-L-14"


def loader(names=("vit-l14", HUB), scales=(None, None), dims=(8, 4)):
    """Return what the loader knows of a set's index."""
    facts = {"teacher_names": names, "teacher_scales": scales, "teacher_dims": dims, "width": 0}
    return SimpleNamespace(**facts)


def settle(index, teachers=(), **loss):
    base = {"model": {"name": "tiny"}, "steps": 2, "batch_size": 4, "schedule": {"warmup": 0}}
    data = {"data": {"reinforced": False}, "teachers": ["tiny"]} if teachers else {}
    recipe = load_recipe({**base, **data, "loss": {"weights": [0.0, 1.0], **loss}})
    return teacher_settings(recipe, index, teachers)


@pytest.mark.parametrize(
    ("index", "loss", "scales", "said"),
    [
        (loader(), {}, (50, 70), "50 (published for vit-l14), 70 (published for hf-hub:apple"),
        (loader(scales=(100.0, None)), {}, (100, 70), "100 (the dataset), 70 (published for hf"),
        (loader(scales=(100.0, 90.0)), {}, (100, 90), "100, 90 (the dataset)"),
        (loader(), {"teacher_scales": [33, 44]}, (33, 44), "33, 44 (loss.teacher_scales)"),
        (loader(), {"teacher_weights": [3, 1]}, (50, 70), "weights of the teachers: 0.75, 0.25"),
    ],
)
def test_where_the_scales_are_from(index, loss, scales, said, caplog):
    caplog.set_level(logging.INFO)
    assert settle(index, **loss) == ((8, 4), scales, ())
    assert said in caplog.text


def test_a_live_teachers_scale_is_its_own(caplog):
    caplog.set_level(logging.INFO)
    live = SimpleNamespace(embed_dim=8, logit_scale=41.5)
    assert settle(loader((), (), ()), [live])[1] == (41.5,)
    assert "41.5 (the teacher itself)" in caplog.text


@pytest.mark.parametrize(
    ("index", "loss", "message"),
    [
        (loader(("mine", HUB)), {}, r"states \[None, 70\]; set loss\.teacher_scales"),
        # An architecture of open_clip's, of which there are several weights.
        (loader(("open_clip:ViT-L-14", HUB)), {}, r"set loss\.teacher_scales"),
        (loader((), (), ()), {}, r"set loss\.teacher_dims"),
        # A sigmoid's scale is none of those that are published, which a softmax has.
        (loader(), {"kind": "siglip"}, r"states \[None, None\]; set loss\.teacher_scales"),
        (loader(), {"teacher_weights": [1, 2, 3]}, "has 3 weights for 2 teachers"),
    ],
)
def test_what_is_missing(index, loss, message):
    with pytest.raises(ConfigError, match=message):
        settle(index, **loss)
