"""Groups, rates and averages, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pocketclip.nn.build import random_model
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.train.optim import WeightAverage, learning_rate, parameter_groups
from pocketclip.train.sections import ScheduleSection


def _names(model, group):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


@pytest.mark.parametrize("name", ["tiny", "mobileclip-s0", "coca-tiny"])
def test_norms_biases_and_scales_do_not_decay(name):
    overrides = {"image.depths": (1, 1, 1, 1)} if name == "mobileclip-s0" else {}
    model = random_model(name, seed=0, **overrides)
    decaying, others = parameter_groups(model, 0.2)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    decays, exempt = _names(model, decaying), _names(model, others)
    assert decays | exempt == {name for name, _ in model.named_parameters()}
    assert not decays & exempt
    assert "logit_scale" in exempt
    for parameter in exempt:
        leaf = parameter.rsplit(".", 1)[-1]
        owner = model.get_submodule(parameter.rpartition(".")[0])
        norm = isinstance(owner, (nn.BatchNorm2d, nn.LayerNorm))
        value = model.get_parameter(parameter)
        vector = value.numel() == max(value.shape, default=1)
        assert norm or leaf == "bias" or vector or "scale" in leaf
    for parameter in decays:
        assert model.get_parameter(parameter).ndim >= 2
        assert not parameter.endswith(("bias", "layer_scale", ".bn.weight"))
    # Every convolution, matrix and table of words decays.
    for module_name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert f"{module_name}.weight" in decays


def test_frozen_parameters_are_in_no_group():
    model = random_model("tiny", seed=0)
    model.freeze("text")
    grouped = set().union(*(_names(model, group) for group in parameter_groups(model, 0.1)))
    assert grouped
    assert not any(name.startswith("text.") for name in grouped)


def test_the_rate_of_each_step():
    cosine = ScheduleSection(kind="cosine", warmup=4)
    rates = [learning_rate(step, 12, 1.0, cosine) for step in range(12)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)
    assert rates[6] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < rates[11] < 0.05

    longer = ScheduleSection(kind="cosine", warmup=2, constant=8)
    rates = [learning_rate(step, 12, 2.0, longer) for step in range(12)]
    assert rates[1:9] == [2.0] * 8
    assert rates[10] == pytest.approx(1.0)

    floor = ScheduleSection(kind="cosine", warmup=4, min_lr=0.1)
    rates = [learning_rate(step, 12, 1.0, floor) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.55)
    assert rates[12] == 0.1
    assert rates[4:] == sorted(rates[4:], reverse=True)

    constant = ScheduleSection(kind="constant", warmup=2)
    assert [learning_rate(s, 5, 1.0, constant) for s in range(5)] == [0.5, 1, 1, 1, 1]


def test_an_average_follows_the_weights():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = WeightAverage(layer, decay=0.9)
    expected = 0.0
    for step in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        average.update(layer)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.state["weight"].item() == pytest.approx(expected, rel=1e-5)
    other = WeightAverage(layer, decay=0.9)
    other.load_state_dict(average.state_dict())
    assert other.steps == 199
    assert torch.equal(other.state["weight"], average.state["weight"])
    assert other.state["weight"] is not average.state["weight"]


def test_counts_are_copied_not_averaged():
    norm = nn.BatchNorm2d(2)
    average = WeightAverage(norm, decay=0.5)
    norm(torch.randn(4, 2, 3, 3))
    average.update(norm)
    assert average.state["num_batches_tracked"].item() == 1


def test_the_rate_falls_from_the_head_to_the_input_layers():
    model = random_model("tiny", seed=0)  # five blocks of the image tower, two of the text's
    groups = parameter_groups(model, 0.2, layer_decay=0.5)
    found = {name: g["lr_scale"] for g in groups for name in _names(model, g)}
    assert found.keys() == {name for name, _ in model.named_parameters()}
    expected = {
        "logit_scale": 1, "image.head": 1, "image.expand": 1, "image.stages.3": 0.5,
        "image.stages.2.blocks.1": 0.25, "image.stages.2.blocks.0": 0.125,
        "image.stages.2.downsample": 0.125, "image.stages.1": 0.5**4, "image.stages.0": 0.5**5,
        "image.stem": 0.5**6, "text.head": 1, "text.norm": 1, "text.blocks.1": 0.5,
        "text.blocks.0": 0.25, "text.embedding": 0.125, "text.position": 0.125,
    }  # fmt: skip
    for name, scale in found.items():
        assert scale == expected[next(key for key in expected if name.startswith(key))], name
    # As without: what decays, decays.
    decaying, others = parameter_groups(model, 0.2)
    for group in groups:
        same = decaying if group["weight_decay"] else others
        assert _names(model, group) <= _names(model, same)
    assert "lr_scale" not in decaying


def test_positions_of_a_vision_transformer_have_the_lowest_rate():
    model = random_model("coca-tiny", seed=0)
    groups = parameter_groups(model, 0.2, layer_decay=0.5)
    found = {name: g["lr_scale"] for g in groups for name in _names(model, g)}
    lowest = {"image.position", "image.class_token", "image.stem.weight", "image.norm_pre.weight"}
    assert {found[name] for name in lowest} == {0.5**4}
    assert {found["image.pool.q.weight"], found["decoder.head.weight"]} == {1}


def test_factors_are_trained_instead_of_the_weights_they_adapt():
    model = random_model("tiny", seed=0)
    updates = LowRankUpdates(model, rank=1, alpha=2, towers=("text",), seed=0)
    model.freeze("image", train_last="head")
    groups = parameter_groups(model, 0.2, layer_decay=0.5, updates=updates)
    grouped = {id(p): g for g in groups for p in g["params"]}
    trained = {"logit_scale", "image.head.weight", "image.head.bias"}
    assert {n for n, p in model.named_parameters() if id(p) in grouped} == trained
    factors = {n: updates.factors(n) for n in updates.names()}
    assert len(grouped) == len(trained) + 2 * len(factors)
    for name, scale in {"text.head.weight": 1, "text.blocks.0.attn.qkv.weight": 0.25}.items():
        for factor in factors[name]:
            assert grouped[id(factor)]["lr_scale"] == scale
            assert grouped[id(factor)]["weight_decay"] == 0.2
