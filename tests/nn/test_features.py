"""Feature maps and tokens of the image towers; see also the golden models."""

from __future__ import annotations

import functools

import pytest
import torch

from pocketclip import zoo
from pocketclip.errors import ConfigError
from pocketclip.feature_maps import check_sides, feature_maps, map_size, token_width
from pocketclip.nn.build import random_model
from tests.golden_features import image
from tests.golden_weights import randomise


@functools.cache
def small(name):
    model = random_model(name, seed=0)
    randomise(model)
    return model


@pytest.mark.parametrize("name", ["tiny", "small", "coca-tiny"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (70, 90)])
def test_shapes_and_strides(name, size):
    model = small(name)
    is_vit = isinstance(model.config.image, zoo.ViTConfig)
    if is_vit and size == (70, 90):
        with pytest.raises(ValueError, match="multiples of 8"):
            model.image.features(image(*size))
        with pytest.raises(ConfigError, match=r"multiples of 8, not 70 x 90 pixels: resize"):
            check_sides(model.config.image, *size)
        return
    check_sides(model.config.image, *size)
    with torch.inference_mode():
        maps = model.image.features(image(*size, batch=2))
        tokens = model.image.tokens(image(*size, batch=2))
    for about, found in zip(model.image.feature_maps(), maps, strict=True):
        sides = [map_size(side, about.stride) for side in size]
        assert found.shape == (2, about.channels, *sides)
    assert tokens.shape[2] == token_width(model.config)
    if not is_vit:
        assert tokens.shape[1] == maps[-1].shape[2] * maps[-1].shape[3]


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_embedding_is_the_head_of_the_mean_token(name):
    tower = small(name).image
    with torch.inference_mode():
        tokens = tower.tokens(image(64, 64))
        torch.testing.assert_close(tower.head(tokens.mean(1)), tower(image(64, 64)))


@pytest.mark.parametrize("name", ["tiny", "coca-tiny"])
def test_maps_by_index(name):
    tower = small(name).image
    last = len(tower.stages if name == "tiny" else tower.blocks) - 1
    with torch.inference_mode():
        every = tower.features(image(64, 64), range(last + 1))
        first, final = tower.features(image(64, 64), [-1, 0])
        assert len(tower.features(image(64, 64), [0])) == 1
    assert [m.index for m in tower.feature_maps([-1, 0])] == [0, last]
    torch.testing.assert_close(first, every[0])
    torch.testing.assert_close(final, every[-1])
    for wrong in ([last + 1], [], [0, -last - 1]):
        with pytest.raises(ConfigError):
            tower.features(image(64, 64), wrong)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["tiny", "coca-tiny"])
def test_gradients_flow_in_training(name, recompute):
    model = random_model(name, seed=1).train()
    model.set_gradient_checkpointing(recompute)
    for out in (model.image.features(image(64, 96, batch=2)), [model.image.tokens(image(64, 64))]):
        model.zero_grad()
        sum(x.square().mean() for x in out).backward()
        without = {n for n, p in model.image.named_parameters() if p.grad is None}
        assert not {n for n in without if n.startswith(("stem", "stages", "blocks"))}


def test_default_maps_of_transformers():
    plain = zoo.entry("vit-b16").config.image
    assert [m.name for m in feature_maps(plain)] == ["block2", "block5", "block8", "block11"]
    assert {m.stride for m in feature_maps(plain)} == {16}
    five = zoo.entry("mobileclip2-s3").config.image
    assert [m.stride for m in feature_maps(five)] == [4, 8, 16, 32, 64]
