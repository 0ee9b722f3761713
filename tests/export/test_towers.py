"""Towers in export form compute what the model computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pocketclip.export.towers import prepare
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import moe_layers
from tests.bundles import CUTS, model
from tests.export import phones
from tests.golden_weights import randomise, relative_error

EXACT = 1e-12
SPARSE = "sparse"


@pytest.mark.parametrize("name", [*CUTS, SPARSE])
def test_towers_are_the_model(name, monkeypatch):
    monkeypatch.setattr(CLIP, "float", lambda self: self)  # to fold in double precision
    clip = (phones.sparse_model() if name == SPARSE else model.__wrapped__(name)).double()
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    towers = prepare(clip)
    size = clip.config.image_size
    pixels = torch.rand(2, 3, size, size).double()
    ids = torch.randint(1, 49407, (2, clip.config.text.context_length))
    with torch.inference_mode():
        for tower, encode, given in (
            (towers.image, clip.encode_image, pixels),
            (towers.text, clip.encode_text, ids),
        ):
            assert relative_error(tower(given), encode(given).numpy()) < EXACT
            assert not any(p.requires_grad for p in tower.parameters())
    assert all(torch.equal(value, before[key]) for key, value in clip.state_dict().items())


@pytest.mark.parametrize("name", CUTS)
def test_unit_embeddings(name):
    clip = model(name)
    plain, unit = prepare(clip), prepare(clip, normalize=True)
    assert unit.normalized
    with torch.inference_mode():
        for tower, other, example in (
            (plain.image, unit.image, plain.image_example),
            (plain.text, unit.text, plain.text_example),
        ):
            wanted = F.normalize(tower.double()(_wide(example)), dim=-1)
            assert relative_error(other.double()(_wide(example)), wanted.numpy()) < EXACT


def _wide(example):
    return example.double() if example.is_floating_point() else example


def test_a_captioner_gives_its_two_towers():
    """The class token stands after the text: nothing may be trimmed there."""
    coca = random_model("coca-tiny", seed=0)
    randomise(coca)
    towers = prepare(coca)
    assert not towers.config.text.ignores_padding
    ids = torch.zeros(2, coca.config.text.context_length, dtype=torch.int64)
    ids[:, :4] = torch.tensor([49406, 320, 1125, 49407])
    with torch.inference_mode():
        assert relative_error(towers.text(ids), coca.eval().encode_text(ids).numpy()) < 1e-5


def test_mixtures_of_experts_become_layers_of_their_own():
    """Every expert is computed, whatever the example chose, also in a traced tower."""
    towers = phones.towers("sparse", smaller=False)
    for kind in ("image", "text"):
        tower, example = phones.of(towers, kind)
        assert not moe_layers(tower)
        names = [name for name, _ in tower.named_parameters()]
        assert "tower.blocks.1.mlp.experts.2.fc1.weight" in names
        traced = torch.export.export(tower, (example[:1],)).module()
        for row in phones.inputs(towers, kind):
            given = torch.from_numpy(row)
            assert relative_error(traced(given), tower(given).numpy()) < 1e-5
