"""Fusing in numpy against fusing in torch, both in float64."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip import zoo
from pocketclip.graph.build import write_tower
from pocketclip.graph.writer import GraphWriter
from pocketclip.nn.cpu_optimize import fold_layer_scales
from pocketclip.nn.reparam import fuse
from tests.graph.test_build import CONFIGS, VITS, make_model


def _fused_by_torch(model):
    """Return the weights of the fused model as the graph has them: all scales folded in."""
    out = {}
    fused = fold_layer_scales(fuse(model)).state_dict()
    for label, value in fused.items():
        path, _, leaf = label.rpartition(".")
        # `fold_layer_scales` wraps attention blocks.
        path = path.replace(".mixer.attn.", ".attn.").replace(".mixer.norm", ".norm")
        array, gain = value.numpy(), 1.0
        scale = f"{path.removesuffix('.mlp.fc2')}.layer_scale"
        if scale in fused:  # torch keeps the layer scales of token mixers
            gain = fused[scale].numpy().reshape(-1)
        elif path.endswith(".attn.qkv"):  # and the scale of the queries
            heads = model.get_submodule(path.removesuffix(".qkv")).heads
            width = len(array) // 3
            gain = np.where(np.arange(len(array)) < width, (width // heads) ** -0.5, 1.0)
        out[path, leaf] = array * np.reshape(gain, (-1, *[1] * (array.ndim - 1)))
    return out


def _in_torchs_order(written):
    """Return what the graph writes as torch has it: split modules joined, channels in order."""
    out = {tuple(label.rsplit(".", 1)): array for label, array in written.items()}
    for path, leaf in list(out):
        if path.endswith(".attn.q") and leaf == "weight":
            whole = path.removesuffix(".q") + ".qkv"
            for leaf in ("weight", "bias"):
                parts = [out.get((f"{whole[:-3]}{x}", leaf)) for x in "qkv"]
                zeros = np.zeros(len(out[path, "weight"]))
                out[whole, leaf] = np.concatenate([zeros if p is None else p for p in parts])
        elif path.endswith(".conv.0") and leaf == "weight":
            conv = path.removesuffix(".0")
            for leaf in ("weight", "bias"):
                parts = [out[f"{conv}.{i}", leaf] for i in (0, 1)]
                out[conv, leaf] = np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
            order = np.arange(len(out[conv, "weight"])).reshape(-1, 2).T.flatten()
            block = conv.removesuffix(".conv")
            reader = "image.head" if block == "image.expand" else f"{block[:-5]}.proj.conv"
            for entry, axis in {
                (f"{block}.se.fc1", "weight"): 1, (f"{block}.se.fc2", "weight"): 0,
                (f"{block}.se.fc2", "bias"): 0, (reader, "weight"): 1,
            }.items():  # fmt: skip
                if entry in out:
                    axis = 0 if entry[0] == "image.head" else axis  # stored as (in, out)
                    out[entry] = np.take(out[entry], np.argsort(order), axis)
    return out


@pytest.mark.parametrize(
    "name",
    [
        *CONFIGS,
        *VITS,
        *(pytest.param(name, marks=pytest.mark.slow) for name in zoo.ZOO if name not in CONFIGS),
    ],
)
def test_every_fused_weight_is_torchs(name, tmp_path, monkeypatch):
    model = make_model(name, double=True)
    written = {}
    weight = GraphWriter.weight

    def record(self, label, array, **settings):
        written[label] = np.array(array)  # before it is rounded to float32
        return weight(self, label, array, **settings)

    monkeypatch.setattr(GraphWriter, "weight", record)
    state = {label: value.numpy() for label, value in model.state_dict().items()}
    for kind in ("image", "text"):
        write_tower(state, model.config, kind, tmp_path / f"{kind}.onnx")
    actual = _in_torchs_order(written)
    compared = 0
    for (path, leaf), expected in _fused_by_torch(model).items():
        if path.startswith(("decoder", "image.pool", "text.embedding")) or leaf not in (
            "weight", "bias"
        ):  # fmt: skip
            continue
        array = actual.get((path, leaf), np.zeros(len(expected)) if leaf == "bias" else None)
        if expected.ndim == 2 and array.ndim == 2:
            expected = expected.T  # of a product with tokens; a 1x1 convolution is as in torch
        assert np.abs(array.reshape(-1) - expected.reshape(-1)).max() < 1e-10, (path, leaf)
        compared += 1
    assert compared > 40
