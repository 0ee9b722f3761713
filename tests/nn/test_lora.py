"""Low-rank updates: what they train, and that they are LoRA's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pocketclip import checkpoint
from pocketclip.errors import CheckpointError
from pocketclip.nn.build import random_model
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.nn.reparam import fuse
from pocketclip.nn.upcycle import upcycle
from tests.nn.test_training_options import SMALL_MODELS

TOWERS = ("image", "text")


def _batch(model):
    draw = torch.Generator().manual_seed(1)
    size, dtype = model.config.image_size, model.logit_scale.dtype
    pixels = torch.rand(4, 3, size, size, generator=draw, dtype=dtype)
    return pixels, torch.randint(1, 49407, (4, 16), generator=draw)


def _loss(outputs):
    image, text, scale = outputs[:3]
    return (scale * image @ text.T).logsumexp(1).sum()


def _step(model, updates, rate=0.5):
    _loss(model(*_batch(model))).backward()
    updates.take_gradients()
    with torch.no_grad():
        for name in updates.names():
            for factor in updates.factors(name):
                factor -= rate * factor.grad
    updates.merge()
    model.zero_grad()


@pytest.mark.parametrize("name", [n for n in SMALL_MODELS if n != "coca-tiny"])
def test_only_linear_layers_of_the_towers_move_and_start_from_where_they_are(name):
    model = random_model(name, seed=0, **SMALL_MODELS[name]).double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    updates = LowRankUpdates(model, rank=2, alpha=4, towers=TOWERS, seed=0)
    updates.merge()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for _ in range(2):  # the first step moves B only
        _step(model, updates)
    moved = {k for k, v in model.state_dict().items() if (v != before[k]).any()}
    assert moved == set(updates.names())
    for adapted in moved:
        layer = model.get_submodule(adapted.removesuffix(".weight"))
        assert isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)
        assert "stem" not in adapted
        change = (model.get_parameter(adapted).detach() - before[adapted]).flatten(1)
        values = torch.linalg.svdvals(change)
        assert values[0] > 0
        assert values[2:].sum() < 1e-5 * values[0]  # of rank 2
    kinds = {adapted.rsplit(".", 2)[1] for adapted in moved}
    assert kinds >= {"qkv", "proj", "fc1", "fc2", "head"}
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("recomputed", [False, True])
def test_factors_have_the_gradients_of_the_unmerged_form(recomputed):
    model = random_model("tiny", seed=0).double().train()
    model.set_gradient_checkpointing(recomputed)
    updates = LowRankUpdates(model, rank=3, alpha=5, towers=TOWERS, seed=0)
    with torch.no_grad():
        for name in updates.names():
            updates.factors(name)[1].normal_(0, 0.1)
    updates.merge()
    state = updates.state_dict()
    merged = model(*_batch(model))
    _loss(merged).backward()
    updates.take_gradients()

    # Base weights plus factors, by torch's own differentiation of that sum.
    leaves = {n: [f.detach().clone().requires_grad_() for f in updates.factors(n)] for n in state}
    weights = {
        n: state[n]["base"] + (b @ a).view_as(state[n]["base"]) * 5 / 3
        for n, (a, b) in leaves.items()
    }
    model.set_gradient_checkpointing(False)
    unmerged = functional_call(model, weights, _batch(model))
    for one, other in zip(merged, unmerged, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    _loss(unmerged).backward()
    assert model.get_parameter("image.head.weight").grad is None
    for name, pair in leaves.items():
        for factor, leaf in zip(updates.factors(name), pair, strict=True):
            torch.testing.assert_close(factor.grad, leaf.grad, rtol=1e-9, atol=1e-12)


def test_one_tower_can_be_adapted():
    model = random_model("tiny", seed=0)
    updates = LowRankUpdates(model, rank=2, alpha=4, towers=("text",), seed=0)
    assert all(name.startswith("text.") for name in updates.names())
    assert all(p.requires_grad for p in model.image.parameters())
    assert updates.factors("image.head.weight") == []


def test_an_adapted_model_is_saved_loaded_and_fused_as_any_other(tmp_path):
    model = random_model("tiny", seed=0).train()
    updates = LowRankUpdates(model, rank=2, alpha=4, towers=TOWERS, seed=0)
    _step(model, updates)
    model.eval()
    with torch.no_grad():
        expected = model(*_batch(model))[:2]
    checkpoint.save(model, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model").eval()
    assert not torch.equal(loaded.image.head.weight, random_model("tiny", seed=0).image.head.weight)
    with torch.no_grad():
        for one, other in zip(expected, loaded(*_batch(model))[:2], strict=True):
            assert torch.equal(one, other)
        for one, other in zip(expected, fuse(model)(*_batch(model))[:2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_state_of_updates_can_be_continued():
    def adapted(rank=2, seed=0, towers=TOWERS):
        model = random_model("tiny", seed=0).train()
        return model, LowRankUpdates(model, rank=rank, alpha=4, towers=towers, seed=seed)

    model, updates = adapted()
    _step(model, updates)
    other, continued = adapted(seed=7)
    other.load_state_dict(model.state_dict())
    continued.load_state_dict(updates.state_dict())
    for one in (model, other):
        assert one.image.head.weight.requires_grad
    _step(model, updates)
    _step(other, continued)
    for (name, one), another in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(one, another), name
    with pytest.raises(CheckpointError, match="another rank"):
        adapted(rank=3)[1].load_state_dict(updates.state_dict())
    with pytest.raises(CheckpointError, match="other layers"):
        adapted(towers=("text",))[1].load_state_dict(updates.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"towers": ()}, "towers must name"),
        ({"towers": ("text", "text")}, "towers must name"),
    ],
)
def test_senseless_settings_are_refused(fields, message):
    settings = {"rank": 2, "alpha": 4.0, "towers": TOWERS, "seed": 0, **fields}
    with pytest.raises(ValueError, match=message):
        LowRankUpdates(random_model("tiny", seed=0), **settings)


def test_a_fused_model_is_refused():
    with pytest.raises(ValueError, match="adapt the unfused one"):
        LowRankUpdates(fuse(random_model("tiny", seed=0)), rank=2, alpha=4, towers=TOWERS, seed=0)


def test_a_sparse_model_is_refused():
    changes = {"image_size": 32, "image.layers": 2, "text.layers": 2}
    sparse = upcycle(random_model("coca-tiny", seed=0, **changes))
    with pytest.raises(ValueError, match="mixtures of experts"):
        LowRankUpdates(sparse, rank=2, alpha=4, towers=TOWERS, seed=0)
