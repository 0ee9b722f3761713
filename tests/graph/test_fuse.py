"""Fusing in numpy against fusing in torch, both in float64."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip.export.towers import source_path
from pocketclip.graph.build import write_tower
from pocketclip.graph.writer import GraphWriter
from pocketclip.nn.cpu_optimize import fold_layer_scales
from pocketclip.nn.reparam import fuse
from tests.graph.test_build import CONFIGS, VITS, make_model


@pytest.mark.parametrize("name", [*CONFIGS, *VITS])
def test_every_fused_weight_is_torchs(name, tmp_path, monkeypatch):
    model = make_model(name).double()
    written = {}
    weight = GraphWriter.weight

    def record(self, label, array, **settings):
        written[label] = np.array(array)  # before it is rounded to float32
        return weight(self, label, array, **settings)

    monkeypatch.setattr(GraphWriter, "weight", record)
    state = {label: value.numpy() for label, value in model.state_dict().items()}
    for kind in ("image", "text"):
        write_tower(state, model.config, kind, tmp_path / f"{kind}.onnx")
    fused = fold_layer_scales(fuse(model)).state_dict()
    compared = 0
    for label, value in fused.items():
        path, _, leaf = label.rpartition(".")
        path = source_path(path).replace(".mixer.norm", ".norm")
        expected = value.numpy()
        scale = f"{path.removesuffix('.mlp.fc2')}.layer_scale"
        if scale in fused:  # torch keeps the layer scales of token mixers, the graph folds them
            gain = fused[scale].numpy().reshape(-1)
            expected = expected * gain.reshape(-1, *[1] * (expected.ndim - 1))
        if path.endswith(".attn.qkv"):  # the graph scales the queries in the weights
            heads = model.get_submodule(path.removesuffix(".qkv")).heads
            width = len(expected) // 3
            gain = np.where(np.arange(len(expected)) < width, (width // heads) ** -0.5, 1.0)
            expected = expected * gain.reshape(-1, *[1] * (expected.ndim - 1))
        actual = written.get(f"{path}.{leaf}")
        if actual is None or path == "image.pool" or label.startswith(("decoder", "text.position")):
            # What is left out: biases of zeros, and what no tower reads.
            assert leaf != "weight" or path.startswith(("decoder", "image.pool")), label
            continue
        if leaf not in ("position", "class_token"):
            forms = (expected, expected.T) if expected.ndim == 2 else (expected,)  # of products
            errors = [np.abs(actual.reshape(-1) - form.reshape(-1)).max() for form in forms]
            assert min(errors) < 1e-10, label
            compared += 1
    assert compared > 40
