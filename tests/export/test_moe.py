"""Sparse models in ONNX and OpenVINO: whole exports, and experts in int8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pocketclip import checkpoint
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import read_stored
from pocketclip.errors import ExportError
from pocketclip.export import quantize_onnx as quantize_onnx_module
from pocketclip.export import web
from pocketclip.export.job import export
from pocketclip.export.quantize_onnx import quantize_onnx
from pocketclip.export.sensitivity import cosines
from pocketclip.graph.moe import mixture
from pocketclip.graph.tower import Tower
from pocketclip.graph.writer import GraphWriter
from pocketclip.infer.convert import convert
from pocketclip.infer.web_models import runtimes
from pocketclip.nn.moe import MoE
from tests.graph.test_moe import Rows, run, sparse_model

WIDTH = 32


def rows_for(channel: int, count: int = 8) -> Rows:
    """Return tokens (N, C) that choose the expert of a channel and a random one of 0 to 2."""
    rng = np.random.default_rng(channel)
    rows = rng.standard_normal((count, WIDTH)).astype(np.float32)
    rows[:, 3] = -20
    rows[:, channel] = 20  # so that all batches have one range
    return rows


@pytest.fixture(scope="module")
def layer(tmp_path_factory: Any) -> Path:
    """A mixture of four experts alone, expert e chosen by a large value in channel e."""
    torch.manual_seed(0)
    moe = MoE(WIDTH, 2 * WIDTH, nn.GELU(), experts=4, top_k=2)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4, WIDTH))
    weights = {f"mlp.{name}": value.detach().numpy() for name, value in moe.named_parameters()}
    graph = GraphWriter(tmp_path_factory.mktemp("layer") / "layer.onnx", "layer")
    tower = Tower(graph=graph, weights=weights, fused=True)
    x = graph.input("x", np.float32, ["batch", WIDTH])
    graph.output("y", mixture(tower, x, "mlp", activation="gelu", top_k=2), ["batch", WIDTH])
    graph.save()
    return graph.path


def int8(layer: Path, runtime: str, folder: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    """Calibrate with tokens none of which chooses expert 3."""
    calibration = [rows_for(channel) for channel in (0, 1, 2)]
    if runtime == "onnxruntime":
        path = folder / "int8.onnx"
        return path, quantize_onnx(layer, path, calibration, **options)
    pytest.importorskip("nncf")
    from pocketclip.export.quantize_openvino import quantize_openvino

    path = folder / "int8.xml"
    return path, quantize_openvino(layer, path, calibration, **options)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_is_right_for_an_expert_that_calibration_did_not_choose(
    layer: Path, runtime: str, tmp_path: Path
) -> None:
    path, facts = int8(layer, runtime, tmp_path)
    assert facts["kept"] == []
    assert facts["quantised"] == 2  # all experts of a layer count as one
    rows = rows_for(3)
    found = run(path, rows, runtime)
    assert 0.998 < cosines(found, run(layer, rows, runtime)).min() < 0.999999


def test_int8_of_a_tower_beyond_2_gb_is_refused(
    layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_onnx_module, "_MAX_BYTES", 10_000)
    with pytest.raises(ExportError, match=r"0\.0 GB of weights in fp32 .* take fp16, or OpenVINO"):
        int8(layer, "onnxruntime", tmp_path)


def test_layers_of_experts_are_kept_together(layer: Path, tmp_path: Path) -> None:
    """In OpenVINO, where the rounding of their input stands before the sorting."""
    pytest.importorskip("nncf")
    import openvino

    _, nothing = int8(layer, "openvino", tmp_path)
    path, facts = int8(layer, "openvino", tmp_path, keep=["mlp.fc1"])
    assert (facts["kept"], facts["quantised"]) == (["mlp.fc1"], 1)
    assert facts["min_cosine"] > nothing["min_cosine"]
    operations = openvino.Core().read_model(os.fspath(path)).get_ordered_ops()
    rounded = [o.get_friendly_name() for o in operations if o.get_type_name() == "FakeQuantize"]
    assert [name.partition("/")[0] for name in rounded] == ["mlp.act"] * 4


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("onnx", "fp32"),
        ("onnx", "int8"),
        pytest.param("openvino", "fp16", marks=pytest.mark.slow),
        pytest.param("openvino", "bf16", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)
def test_whole_exports_pass_their_gates(target: str, precision: str, tmp_path: Path) -> None:
    model = sparse_model("vit-b16", 0.2, **{"image.layers": 2, "text.layers": 2})
    photos = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(16)]
    bundle = export(
        model, tmp_path / "bundle", target=target, precision=precision,
        calibration=photos if precision == "int8" else (),
    )  # fmt: skip
    assert bundle.config == model.config
    # Without a processor for bf16, the figures are those of fp32.
    assert bundle.verification["verified"] or precision == "bf16"


def test_conversion_without_torch_gives_the_same_graph(tmp_path: Path) -> None:
    model = sparse_model("mobileclip-s0")
    checkpoint.save(model, tmp_path / "model")
    exported = export(model, tmp_path / "exported", target="onnx", normalize=True)
    stored = read_stored(resolve_model(tmp_path / "model"))
    assert runtimes(exported) == ("wasm",)
    converted = convert(stored, tmp_path / "converted", normalize=True)
    assert converted.space_id == exported.space_id
    for name in ("image.onnx", "text.onnx", "text.onnx.data"):
        one, other = (folder / name for folder in (exported.folder, converted.folder))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_copy_for_webgpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_check", lambda *_: None)  # the pages, which are not reached
    checkpoint.save(sparse_model("mobileclip-s0"), tmp_path / "model")
    with pytest.raises(ExportError, match="WebGPU does not run the mixtures of experts"):
        web.export_web(
            tmp_path / "model", tmp_path / "site", precision="fp16", webgpu_precision="fp32"
        )
