"""The line between start and end: exact ends, statistics estimated anew, the choice of a point."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pocketclip.errors import PocketclipError
from pocketclip.finetune.generic import held_out_captions, training_captions
from pocketclip.finetune.interpolate import (
    Point,
    Way,
    choose,
    estimate_statistics,
    line,
    mix,
    score,
)
from pocketclip.nn.build import random_model
from pocketclip.nn.reparam import fuse

PIXELS = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _images():
    yield from PIXELS.split(16)  # the last batch is smaller


def _none():
    raise AssertionError("no statistics to estimate")


def _with_statistics(model, shift):
    """Give a model's BatchNorm layers some statistics that differ from the default."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(shift)
            module.running_var.mul_(1 + shift)
    return model


@pytest.fixture(scope="module")
def ends():
    first = _with_statistics(random_model("tiny", seed=0, drop_path=0.5), 0.1)
    last = _with_statistics(random_model("tiny", seed=1, drop_path=0.5), 0.2)
    with torch.no_grad():
        last.logit_scale.add_(1)
    return first, last


def _same(model, other):
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_ends_are_the_models_themselves(ends):
    for a, model in zip((0, 1), ends, strict=True):
        found = mix(*ends, a, _none)
        assert _same(found, model)
        assert found is not model
        assert not found.training
        assert found.space_id == model.space_id


def test_weights_lie_between_and_neither_end_changes(ends):
    before = [copy.deepcopy(model.state_dict()) for model in ends]
    found = mix(*ends, 0.25, _images)
    assert found.space_id not in {model.space_id for model in ends}
    for name, value in found.named_parameters():
        wanted = 0.75 * before[0][name] + 0.25 * before[1][name]
        torch.testing.assert_close(value, wanted, msg=name)
    assert found.logit_scale.item() == pytest.approx(ends[0].logit_scale.item() + 0.25)
    for model, state in zip(ends, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def _norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def _estimated(model, images=lambda: iter([PIXELS])):
    model = copy.deepcopy(model).eval()
    estimate_statistics(list(_norms(model).values()), model, images, ["a pear", "an apple"])
    return model


def test_estimated_statistics_are_those_of_the_images(ends):
    found = _estimated(ends[0])
    layer = found.image.stem[0].conv
    values = layer.conv(PIXELS).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.bn.running_mean, values.mean(1))
    torch.testing.assert_close(layer.bn.running_var, values.var(1))
    # Further layers: what reaches them in a pass with the batch's own statistics.
    trained, reached = copy.deepcopy(found), {}
    for name, module in _norms(trained).items():
        module.train().register_forward_pre_hook(
            lambda _module, inputs, name=name: reached.__setitem__(name, inputs[0])
        )
    trained.encode_image(PIXELS)
    assert reached.keys() == _norms(found).keys()
    for name, norm in _norms(found).items():
        values = reached[name].transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, values.var(1), rtol=1e-3, atol=1e-6)
        assert norm.momentum == 0.1
        assert not norm.training


def test_batches_count_by_their_size(ends):
    found = _estimated(ends[0], _images).image.stem[0].conv
    means = [found.conv(batch).transpose(0, 1).flatten(1).mean(1) for batch in _images()]
    torch.testing.assert_close(found.bn.running_mean, (2 * means[0] + means[1]) / 3)


def test_statistics_between_are_estimated_and_corrected_by_the_ends(ends):
    a, found = 0.25, mix(*ends, 0.25, _images)
    estimated, missed = _estimated(found, _images), []
    for end in ends:
        missed.append((_norms(end), _norms(_estimated(end, _images))))
    for name, norm in _norms(found).items():
        (first, first_estimated), (last, last_estimated) = (
            (own[name], guessed[name]) for own, guessed in missed
        )
        mean = _norms(estimated)[name].running_mean
        mean = mean + (1 - a) * (first.running_mean - first_estimated.running_mean)
        mean = mean + a * (last.running_mean - last_estimated.running_mean)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        variance = _norms(estimated)[name].running_var + norm.eps
        for own, guessed, share in ((first, first_estimated, 1 - a), (last, last_estimated, a)):
            ratio = (own.running_var + norm.eps) / (guessed.running_var + norm.eps)
            variance = variance * ratio**share
        torch.testing.assert_close(norm.running_var, variance - norm.eps, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("a", "end"), [(1e-6, 0), (1 - 1e-6, 1)])
def test_the_line_has_no_step_at_its_ends(ends, a, end):
    found, wanted = (model.encode_image(PIXELS) for model in (mix(*ends, a, _images), ends[end]))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.std().item())


def test_nothing_is_random(ends):
    assert _same(mix(*ends, 0.5, _images), mix(*ends, 0.5, _images))


def test_frozen_statistics_stay(ends):
    last = copy.deepcopy(ends[0])
    with torch.no_grad():
        last.image.head.weight.mul_(2)
    assert mix(ends[0], last, 0.5, _none).image.stem[0].conv.bn.running_mean[0] == pytest.approx(
        ends[0].image.stem[0].conv.bn.running_mean[0].item()
    )


def test_a_text_tower_with_batch_norm_uses_texts():
    start, end = (random_model("tiny", seed=seed, **{"text.repmixer": True}) for seed in (0, 1))
    end = _with_statistics(end, 0.1)
    end.image.load_state_dict(start.image.state_dict())
    found = [mix(start, end, 0.5, _none, texts=texts) for texts in (None, ["a pear", "an apple"])]
    norms = [next(m for m in model.text.modules() if isinstance(m, nn.BatchNorm2d))
             for model in found]  # fmt: skip
    assert not torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_a_model_without_batch_norm_needs_no_images():
    cut = {"text.layers": 1, "text.width": 64, "text.embedding_buckets": 512, "image.layers": 1,
           "image.width": 64, "image.heads": 2, "text.heads": 2}  # fmt: skip
    start, end = (random_model("vit-b16", seed=seed, **cut) for seed in (0, 1))
    found = mix(start, end, 0.5, _none).image.head.weight
    torch.testing.assert_close(found, (start.image.head.weight + end.image.head.weight) / 2)


def test_what_has_no_line_is_refused(ends):
    with pytest.raises(PocketclipError, match="the end of the line is fused"):
        mix(ends[0], fuse(ends[1]), 0.5, _images)
    with pytest.raises(PocketclipError, match="differ in embed_dim"):
        line(ends[0], random_model("tiny", seed=0, embed_dim=8), _images, _none, _none)
    with pytest.raises(PocketclipError, match="from 0 to 1, not 2"):
        mix(*ends, 2, _images)
    with pytest.raises(PocketclipError, match="no images"):
        mix(*ends, 0.5, lambda: iter(()))
    added = copy.deepcopy(ends[1])
    added.image.head.register_parameter("down", nn.Parameter(torch.zeros(2)))
    with pytest.raises(PocketclipError, match=r"image\.head\.down: merge added layers"):
        mix(ends[0], added, 0.5, _images)


def test_a_way_looks_at_the_ends_once(ends):
    calls = []

    def images():
        calls.append(1)
        return _images()

    way = Way(*ends, images)
    points = [score(way, a, lambda model: model.logit_scale.item(), lambda _m: 1)
              for a in (0, 0.3, 0.6, 1)]  # fmt: skip
    assert len(calls) == 4  # once per end, and once per point between them
    assert _same(way.at(0.3), mix(*ends, 0.3, _images))
    assert [point.a for point in points] == [0, 0.3, 0.6, 1]


def test_the_line_scores_each_point_once(ends):
    seen = []
    scores = line(
        *ends, _images, lambda model: -model.logit_scale.item(), lambda _model: 1,
        points=(1, 0, 0.5, 0.5), advance=seen.append,
    )  # fmt: skip
    assert [point.a for point in scores] == [0, 0.5, 1]
    assert seen == scores
    assert scores[0].validation > scores[1].validation > scores[2].validation
    with pytest.raises(PocketclipError, match="validation score at a = 0 is nan"):
        line(*ends, _images, lambda _model: math.nan, lambda _model: 1)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([(0, 0.2, 1.0), (0.5, 0.6, 0.97), (1, 0.8, 0.7)], 0.5),  # the best that keeps enough
        ([(0, 0.2, 1.0), (0.5, 0.6, 0.949), (1, 0.8, 0.7)], 0),  # only the start does
        ([(1, 0.6, 1.0), (0.5, 0.6, 0.95), (0, 0.2, 1.0)], 0.5),  # a tie: nearer to the start
        ([(0, 0.7, 1.0), (0.5, 0.6, 1.0), (1, 0.5, 1.0)], 0),  # the start is the best
        ([(0, 0.2, 0.94), (1, 0.8, 0.94)], 0),  # the start keeps all by definition
    ],
)
def test_the_choice(rows, wanted):
    assert choose([Point(*row) for row in rows]).a == wanted


def test_a_choice_that_cannot_be_made_is_refused():
    with pytest.raises(PocketclipError, match="include the start"):
        choose([Point(0.5, 0.6, 0.9)])
    with pytest.raises(PocketclipError, match="retention score at a = 0 is nan"):
        choose([Point(0, 0.6, math.nan)])


def test_generic_captions_are_disjoint():
    trained, held_out = training_captions(), held_out_captions()
    assert len(set(trained)) == len(trained) >= 200
    assert len(set(held_out)) == len(held_out) >= 200
    names = {caption.removeprefix("an image of ") for caption in held_out}
    assert not names & {c.removeprefix("a photo of ").removeprefix("a picture of ")
                        for c in trained}  # fmt: skip
