"""Stochastic depth, gradient checkpointing and freezing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from pocketclip.errors import ConfigError
from pocketclip.nn.build import create_model, random_model
from pocketclip.nn.transformer import DropPath


def _gradients(model, pixels, ids):
    model.zero_grad()
    image, text, scale = model(pixels, ids)
    (scale * image @ text.T).logsumexp(1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics():
    pixels, ids = torch.rand(4, 3, 64, 64), torch.randint(1, 49407, (4, 16))
    plain = random_model("tiny", seed=0).train()
    saving = random_model("tiny", seed=0, gradient_checkpointing=True).train()
    wanted, found = _gradients(plain, pixels, ids), _gradients(saving, pixels, ids)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    # The recomputed pass must not count the batch twice.
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(saving.get_buffer(name), buffer, msg=name)
    assert saving.image.stages[0].blocks[0].mixer.norm.num_batches_tracked == 1


@pytest.mark.slow
def test_channels_last_images_give_the_same_gradients():
    # In a process of its own: where this goes wrong, memory is overwritten.
    code = """
import torch
from pocketclip.nn.reparam import RepConv
torch.manual_seed(0)
block = RepConv(3, 16, 3, stride=2).train()
found = []
for form in (torch.contiguous_format, torch.channels_last):
    block.zero_grad()
    pixels = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    out = block(pixels.contiguous(memory_format=form))
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    found.append(block.scale.conv.weight.grad.clone())
torch.testing.assert_close(*found, rtol=1e-3, atol=1e-1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_gradient_checkpointing_replays_stochastic_depth():
    model = create_model("tiny", drop_path=0.5, gradient_checkpointing=True)
    pixels, ids = torch.rand(4, 3, 64, 64), torch.randint(1, 49407, (4, 16))
    torch.manual_seed(3)
    found = _gradients(model, pixels, ids)
    model.set_gradient_checkpointing(False)
    torch.manual_seed(3)
    wanted = _gradients(model, pixels, ids)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25).train()
    torch.manual_seed(0)
    out = layer(torch.ones(4000, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out[:, 0] == out[:, 1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(torch.ones(2, 3)), torch.ones(2, 3))


def test_drop_path_rises_with_depth():
    model = create_model("mobileclip2-s0", drop_path=0.1, **{"text.layers": 1})
    rates = [m.rate for m in model.image.modules() if isinstance(m, DropPath)]
    assert len(rates) == 20
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_refuses_senseless_rates(rate):
    with pytest.raises((ConfigError, ValueError), match="drop_path"):
        create_model("tiny", drop_path=rate)


def _step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    image, text, scale = model(torch.rand(4, 3, 64, 64), torch.randint(1, 49407, (4, 16)))
    (scale * (image * text)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_does_not_move(tower):
    model = create_model("tiny")
    model.freeze(tower)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _step(model)
    moved = {k.partition(".")[0] for k, v in model.state_dict().items() if (v != before[k]).any()}
    assert moved == {"logit_scale", {"image": "text", "text": "image"}[tower]}


def test_all_but_the_last_blocks_can_be_frozen():
    model = create_model("tiny")
    model.freeze("image", train_last=2)
    model.train()
    before = {k: v.clone() for k, v in model.image.state_dict().items()}
    _step(model)
    after = model.image.state_dict()
    moved = {k for k, v in after.items() if (v != before[k]).any()}
    # five blocks in stages of 1, 1, 2, 1: the last two are the second of stage 2 and stage 3
    allowed = ("stages.2.blocks.1", "stages.3", "expand", "head")
    assert moved
    assert all(name.startswith(allowed) for name in moved)
    for part in ("stages.2.blocks.1.", "stages.3.downsample.", "stages.3.position.", "head."):
        assert any(name.startswith(part) for name in moved), part


# Each kind of tower in the zoo, as small as it can be.
_SMALL_TEXT = {"text.width": 32, "text.heads": 2, "text.layers": 1, "text.context_length": 16,
               "text.embedding_buckets": 512}  # fmt: skip
_SMALL_VIT = {"image_size": 32, "image.width": 32, "image.heads": 2, "image.layers": 2}
_SMALL_MCI = {"image_size": 64, "image.widths": (16, 16, 32, 32), "image.depths": (1, 1, 1, 1)}
SMALL_MODELS = {
    "tiny": {},
    "mobileclip-s0": {**_SMALL_MCI, **_SMALL_TEXT},  # a text tower with RepMixer
    "mobileclip2-s3": {
        **_SMALL_TEXT, "image_size": 64, "image.widths": (16, 16, 16, 32, 32),
        "image.depths": (1, 1, 1, 1, 1),
    },
    "mobileclip-b": {**_SMALL_VIT, **_SMALL_TEXT},
    "vit-b16": {**_SMALL_VIT, **_SMALL_TEXT},
    "coca-tiny": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_head_alone_can_be_trained(name):
    model = random_model(name, seed=0, **SMALL_MODELS[name])
    model.freeze("image", train_last="head")
    model.freeze("text", train_last="head")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    heads = {n for n in trained if n.startswith(("image.", "text."))}
    weights = {"image.head.weight", "text.head.weight"}
    assert weights <= heads <= weights | {"image.head.bias"}
    assert ("image.head.bias" in heads) == model.config.image.head_bias
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    size = model.config.image_size
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    image, text, scale = model(torch.rand(4, 3, size, size), torch.randint(1, 49407, (4, 16)))[:3]
    (scale * (image * text)).sum().backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if (v != before[k]).any()}
    assert moved == heads | {"logit_scale"}


def test_freezing_more_blocks_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="0 to 2"):
        create_model("tiny").freeze("text", train_last=3)
    with pytest.raises(ValueError, match="or 'head', not 'tail'"):
        create_model("tiny").freeze("text", train_last="tail")


def test_an_unknown_tower_is_an_error():
    with pytest.raises(ValueError, match="'image' or 'text'"):
        create_model("tiny").freeze("vision")


def test_frozen_statistics_hold_when_a_tower_alone_is_set_to_training():
    model = create_model("tiny")
    model.freeze("image")
    norm = model.image.stem[0].conv.bn
    model.image.train()
    assert not norm.training
    model.unfreeze()
    assert norm.training
    assert all(p.requires_grad for p in model.parameters())


def test_batch_norm_statistics_can_be_frozen_alone():
    model = create_model("tiny")
    model.freeze_batch_norm_statistics()
    model.train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    _step(model)
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(not m.training and m.weight.requires_grad for m in norms)
