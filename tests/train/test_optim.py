"""Groups, rates and averages, against values worked out by hand."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from pocketclip.nn.build import random_model
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.train.optim import (
    WeightAverage,
    learning_rate,
    make_optimizer,
    parameter_groups,
)
from pocketclip.train.sections import OptimizerSection, ScheduleSection


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


def test_the_average_is_that_of_one_tensor_at_a_time():
    model = random_model("tiny", seed=0)
    average = WeightAverage(model, decay=0.5)
    expected = {name: value.clone() for name, value in average.state.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 30):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
                else:
                    value.add_(1)
        allowed = step % 5 > 0
        if allowed:
            decay = min(0.5, (1 + step) / (10 + step))  # crosses 0.5, where lerp's formula changes
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    expected[name].lerp_(value, 1 - decay)
                else:
                    expected[name].copy_(value)
        else:
            with torch.no_grad():
                next(model.buffers()).fill_(math.nan)
        average.update(model, where=None if step % 2 and allowed else torch.tensor(allowed))
        with torch.no_grad():
            next(model.buffers()).nan_to_num_()
    assert average.state.keys() == expected.keys()
    assert any(not value.is_floating_point() for value in expected.values())
    for name, value in expected.items():
        assert torch.equal(average.state[name], value), name


def _trained(optimizer, weight, steps):
    for step in range(steps):
        weight.grad = torch.full_like(weight, 0.1 + step)
        optimizer.step()
    return weight


def _adamw(fused, weight, **settings):
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    return make_optimizer(groups, OptimizerSection(**settings), fused=fused)


@pytest.mark.parametrize("saved_fused", [None, False, True])
@pytest.mark.parametrize("fused", [None, True])
def test_an_optimiser_keeps_its_kernels_when_it_loads_a_state(saved_fused, fused):
    start = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = nn.Parameter(start.clone())
    _trained(_adamw(None, whole), whole, 3)

    first = nn.Parameter(start.clone())
    saving = _adamw(saved_fused, first)
    _trained(saving, first, 1)
    state = saving.state_dict()
    state["param_groups"][0]["fused"] = saved_fused
    if saved_fused is False:
        del state["param_groups"][0]["foreach"]  # an older torch's
    # Another memory format, as a run may have that moves from a CPU to a GPU.
    weight = nn.Parameter(first.detach().clone(memory_format=torch.channels_last))
    loading = _adamw(fused, weight)
    loading.load_state_dict(state)
    assert loading.param_groups[0]["fused"] is fused
    moments = loading.state[weight]
    assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == weight.stride()
    assert torch.equal(moments["exp_avg"], saving.state[first]["exp_avg"])
    for step in (1, 2):
        weight.grad = torch.full_like(weight, 0.1 + step)
        loading.step()
    assert moments["step"].item() == 3
    torch.testing.assert_close(weight.detach(), whole.detach(), rtol=1e-6, atol=1e-7)
    if not (saved_fused or fused):
        assert torch.equal(weight, whole)


def test_a_state_of_other_groups_is_refused():
    weight = nn.Parameter(torch.ones(2, 2))
    state = _adamw(None, weight).state_dict()
    state["param_groups"] *= 2
    with pytest.raises(ValueError, match="number of parameter groups"):
        _adamw(True, weight).load_state_dict(state)


def test_cpu_parameters_are_updated_by_torchs_default_kernels():
    weight = nn.Parameter(torch.ones(2, 2))
    assert _adamw(None, weight).param_groups[0]["fused"] is None


@pytest.mark.cuda
@pytest.mark.parametrize("saved_on", ["cpu", "cuda"])
def test_cuda_parameters_are_updated_by_one_kernel(saved_on):
    first = nn.Parameter(torch.ones(8, 4, 3, 3, device=saved_on))
    saving = _adamw(None, first)
    _trained(saving, first, 2)
    weight = nn.Parameter(first.detach().to("cuda", memory_format=torch.channels_last))
    optimizer = _adamw(None, weight)
    optimizer.load_state_dict(torch.load(_stored(saving.state_dict()), map_location="cpu"))
    assert optimizer.param_groups[0]["fused"] is True
    assert all(value.is_cuda for value in optimizer.state[weight].values())
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["step"].item() == 3

    back = nn.Parameter(weight.detach().cpu())
    unfused = _adamw(None, back)
    unfused.load_state_dict(torch.load(_stored(optimizer.state_dict()), map_location="cpu"))
    assert not unfused.param_groups[0]["fused"]
    assert unfused.state[back]["step"].is_cpu


def _stored(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


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
