"""The parameters that a configuration describes are those of the model in torch."""

from __future__ import annotations

import pytest
from torch import nn

from pocketclip import zoo
from pocketclip.checkpoint import parameters
from pocketclip.nn.build import build_empty
from pocketclip.nn.reparam import fuse

# Beside the zoo: one configuration for each choice that no model of the zoo makes.
OTHERS = {
    "vit-b16, conv stem, bias": zoo.override(
        zoo.entry("mobileclip-b").config,
        image={"head_bias": True, "pre_norm": True, "class_position": True, "layers": 1},
    ),
    "mci without bias, all attention": zoo.override(
        zoo.entry("tiny").config,
        image={"head_bias": False, "attention_stages": 4, "head_dim": 16, "mlp_ratio": 1.3},
    ),
    "mci, layer norm, no attention": zoo.override(
        zoo.entry("tiny").config,
        image={"attention_norm": "layer", "attention_stages": 0, "squeeze_excite_stages": 9},
    ),
    "mct, composed embedding, class token": zoo.override(
        zoo.entry("mobileclip-s0").config,
        text={"embedding_buckets": 1000, "causal": True, "mlp_ratio": 2.5},
    ),
    "pooling without a decoder": zoo.override(
        zoo.entry("coca-tiny").config, decoder=None, embed_dim=64
    ),
}  # fmt: skip
CONFIGS = {name: entry.config for name, entry in zoo.ZOO.items()} | OTHERS
# One of each kind of tower; the others are slow tests.
QUICK = {"tiny", "coca-tiny", "mobileclip-s0", "mobileclip2-s3", "mobileclip2-b", *OTHERS}


def _kinds(part, prefix=""):
    yield prefix.removesuffix("."), part.kind
    for name, child in part.children.items():
        yield from _kinds(child, f"{prefix}{name}.")


def _same(config, model, *, fused):
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert list(parameters.shapes(config, fused=fused).items()) == list(expected.items())
    kinds = {name: type(model.get_submodule(name)).__name__.lstrip("_")
             for name, _ in _kinds(parameters.describe(config, fused=fused))}  # fmt: skip
    assert dict(_kinds(parameters.describe(config, fused=fused))) == kinds


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]
)
def test_entries_and_kinds_are_those_of_torch(name):
    model = build_empty(CONFIGS[name])
    _same(CONFIGS[name], model, fused=False)
    _same(CONFIGS[name], fuse(model), fused=True)
    # The only entries that are no floats.
    integers = {n for n, v in model.state_dict().items() if not v.is_floating_point()}
    assert all(n.endswith("num_batches_tracked") for n in integers)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == bool(integers)
