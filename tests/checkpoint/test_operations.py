"""Parameters and operations from a configuration: open_clip's figures, and torch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pocketclip import zoo
from pocketclip.checkpoint.operations import forward_operations, measure
from pocketclip.nn import reparam
from pocketclip.nn.build import build, random_model
from pocketclip.nn.upcycle import upcycle

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


def test_sparse_b16_as_published():
    """CLIP-UP's 30 % of a dense L/14's operations: 8 experts, 2 per token, half of the blocks."""
    config = zoo.sparse_config(zoo.entry("vit-b16").config, experts=8, top_k=2)
    size = measure(config)
    assert size.params_million == pytest.approx(436.2, abs=0.1)
    assert size.active_params_million == pytest.approx(190.6, abs=0.1)
    assert size.gflop == pytest.approx(54.2, abs=0.1)
    larger = measure(zoo.entry("vit-l14").config).gflop
    assert 100 * size.gflop / larger == pytest.approx(30.9, abs=0.05)


@pytest.mark.parametrize("name", ["vit-b16", "mobileclip2-s0", "coca-vit-l14"])
def test_all_parameters_of_a_dense_model_are_active(name):
    size = measure(zoo.entry(name).config)
    assert size.active_params_million == size.params_million


def test_a_sparse_layer_adds_its_router_and_what_k_experts_do():
    dense = zoo.entry("vit-b16").config
    sparse = zoo.sparse_config(dense, experts=4, top_k=3, layers=[5], towers=("image",))
    one, other = measure(dense), measure(sparse)
    width, hidden, tokens = 768, 3072, 197
    expert = 2 * width * hidden + width + hidden
    assert other.image_params - one.image_params == 3 * expert + 4 * width
    assert other.image_active_params - one.image_active_params == 2 * expert + 4 * width
    products = tokens * (2 * 2 * width * hidden + 4 * width)
    assert other.image_operations - one.image_operations == 2 * products
    assert other.text_operations == one.text_operations


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit-b16", {"image.width": 32, "image.heads": 4, "text.width": 32, "text.heads": 4}),
        ("tiny", {}),
        ("mobileclip-s0", {"image.depths": [1, 1, 1, 1], "text.width": 64, "text.heads": 4}),
        ("coca-tiny", {}),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_what_the_forward_pass_computes_as_torch_counts(name, changes, sparse):
    model = random_model(name, seed=0, **changes, image_size=64)
    if sparse:
        model = upcycle(model, experts=3, top_k=2)
    model = reparam.fuse(model).eval().requires_grad_(False)
    config, tokens = model.config, 9
    expected = forward_operations(config, tokens=tokens)
    assert expected.tokens == (
        tokens if config.text.ignores_padding else config.text.context_length
    )
    ids = torch.zeros(1, expected.tokens, dtype=torch.int64)
    ids[0, tokens - 1] = 5
    assert _counted_on_cpu(model.encode_image, torch.zeros(1, 3, 64, 64)) == expected.image
    assert _counted_on_cpu(model.encode_text, ids) == expected.text


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit-b16", {"image.width": 32, "image.heads": 4, "text.width": 32, "text.heads": 4}),
        ("mobileclip-s0", {"image.depths": [1, 1, 1, 1], "text.width": 64, "text.heads": 4}),
        ("mobileclip2-s3", {"image.depths": [1, 1, 1, 1, 1], "text.layers": 2}),
    ],
)
def test_what_a_training_step_computes_as_torch_counts(name, changes):
    """A forward pass with all branches, and twice as much for the backward pass."""
    model = random_model(name, seed=0, **changes, image_size=64).train()
    config, tokens = model.config, 9
    expected = forward_operations(config, tokens=tokens, fused=False)
    assert (expected.image > forward_operations(config, tokens=tokens).image) == (name != "vit-b16")
    ids = torch.zeros(2, expected.tokens, dtype=torch.int64)
    ids[:, tokens - 1] = 5
    pixels = torch.zeros(2, 3, 64, 64, requires_grad=True)
    assert _counted_on_cpu(model.encode_image, pixels) == 2 * expected.image
    assert _counted_on_cpu(model.encode_text, ids) == 2 * expected.text
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.encode_image(pixels).sum().backward()
    if name == "vit-b16":  # for grouped convolutions, torch counts the backward pass as ungrouped
        assert counter.get_total_flops() == 3 * 2 * expected.image


def _counted_on_cpu(encode, inputs):
    # Torch does not count the attention of its fast kernels for CPUs.
    kernels = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), kernels:
        encode(inputs)
    return counter.get_total_flops()
