"""Parameters and operations from a configuration: open_clip's figures, and torch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pocketclip import zoo
from pocketclip.checkpoint.operations import measure
from pocketclip.nn import reparam
from pocketclip.nn.build import build

PUBLISHED = [name for name, entry in zoo.ZOO.items() if entry.published is not None]
# Millions of parameters and GFLOP, in open_clip's table of models.
OPEN_CLIP = {
    "vit-b16": (149.62, 41.09),
    "vit-l14": (427.62, 175.33),
    "vit-l14-quickgelu": (427.62, 175.33),
}


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_as_open_clip_counts(name):
    size = measure(zoo.entry(name).config)
    assert (round(size.params_million, 2), round(size.gflop, 2)) == OPEN_CLIP[name]


def test_a_tower_of_open_clips():
    """Its profile of ViT-B-16 has 35.13 GFLOP for the image and 5.96 for the text."""
    size = measure(zoo.entry("vit-b16").config)
    assert round(size.image_operations / 1e9, 2) == 35.13
    assert round(size.text_operations / 1e9, 2) == 5.96
    assert round(size.image_params / 1e6, 2) == 86.19


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    size, facts = measure(zoo.entry(name).config), zoo.entry(name).published
    assert size.image_params / 1e6 == pytest.approx(facts.image_params_million, rel=2e-3, abs=0.05)
    assert size.text_params / 1e6 == pytest.approx(facts.text_params_million, rel=2e-3, abs=0.05)


def counted(model, tower, *shape, dtype=torch.float32):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        getattr(model, tower)(torch.zeros(shape, dtype=dtype, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "size"), [("tiny", 96), ("mobileclip-s0", 256)])
def test_as_torch_counts(name, size):
    """Towers that send every token through every block: all but plain text transformers."""
    config = zoo.override(zoo.entry(name).config, image_size=size)
    with torch.device("meta"):
        model = build(config)
    model = reparam.fuse(model.eval()).eval()
    expected = measure(config)
    assert counted(model, "encode_image", 1, 3, size, size) == expected.image_operations
    if config.text.repmixer:
        ids = (1, config.text.context_length)
        assert counted(model, "encode_text", *ids, dtype=torch.int64) == expected.text_operations
    assert sum(p.numel() for p in model.image.parameters()) == expected.image_params


@pytest.mark.parametrize("changes", [{"image_size": 288}, {"text.context_length": 32}])
def test_the_size_of_the_input_counts(changes):
    config = zoo.entry("mobileclip2-s3").config
    size, other = measure(config), measure(zoo.override(config, **changes))
    assert other.image_params == size.image_params
    grown = other.image_operations > size.image_operations
    assert (grown, other.text_operations < size.text_operations) == (
        "image_size" in changes, "image_size" not in changes,
    )  # fmt: skip
