"""Mixtures of experts in graphs, against torch, with routings that differ from batch to batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pocketclip.graph import proto
from pocketclip.graph.build import write_tower
from pocketclip.graph.features import write_features
from pocketclip.graph.moe import mixture
from pocketclip.graph.tower import Tower
from pocketclip.graph.writer import GraphWriter, StoredArrays
from pocketclip.infer.backends import onnx_session, openvino_runner
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import MoE, moe_layers
from pocketclip.nn.upcycle import upcycle
from pocketclip.tokenizer import Tokenizer
from tests.golden_weights import randomise
from tests.nn.test_moe import TOWERS

RUNTIMES = ("onnxruntime", "openvino")
TEXTS = ["a photo of a dog", "two cats on a red mat in the sun", "x", "a blue bus " * 30]
WITH_OPENVINO = ("vit-b16", "coca-tiny")
Rows = NDArray[Any]


def sparse_model(name: str, router: float = 1.0, **changes: Any) -> CLIP:
    """Return a sparse model with experts that differ, and routers that choose all of them.

    Args:
        name: of the model that it is like.
        router: standard deviation of the routers' weights. The larger, the more a token's second
            expert depends on rounding.
        changes: to the configuration.
    """
    dense = random_model(name, seed=0, **(TOWERS[name] | changes))
    randomise(dense)
    model = upcycle(dense, experts=5, top_k=2, noise=1.0)
    torch.manual_seed(2)
    with torch.no_grad():
        for layer in moe_layers(model).values():
            layer.router.weight.normal_(std=router)
    return model.eval()


def run(path: Path, rows: Rows, runtime: str) -> Rows:
    if runtime == "openvino":
        pytest.importorskip("openvino")
        return openvino_runner(str(path), 1)(rows)
    session = onnx_session(str(path), 1)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: rows})[0])


def rows_of(model: CLIP, kind: str) -> Rows:
    if kind == "text":
        return Tokenizer(warn=False)(TEXTS, model.config.text.context_length)
    size, rng = model.config.image_size, np.random.default_rng(0)
    return np.asarray(rng.random((4, 3, size, size)), np.float32)


# Tokens of four channels, of which the router takes the largest two; the others add a little.
BATCHES = {
    "every expert": [[5, 1, 0, 0], [0, 5, 1, 0], [0, 0, 5, 1], [1, 0, 0, 5]],
    "an expert without tokens": [[5, 1, 0, 0], [1, 5, 0, 0], [0, 5, 1, 0], [1, 0, 5, 0]],
    "the same for all": [[5, 4, 0, 0], [5, 3, 0, 0], [5, 2, 0, 0], [5, 1, 0, 0]],
    "one token": [[0, 0, 1, 5]],
    # The other probabilities are zero, and which of these is second makes no difference.
    "one expert with all the weight": [[200, 0, 0, 0], [0, 0, 200, 0]],
}


@pytest.mark.parametrize("form", ["sorted", "all"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_layer_routes_by_its_input(form: str, runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    moe = MoE(4, 16, nn.GELU(), experts=4, top_k=2).eval()
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4))
    graph = GraphWriter(tmp_path / "layer.onnx", "layer")
    weights = {f"mlp.{name}": value.numpy() for name, value in moe.state_dict().items()}
    tower = Tower(graph=graph, weights=weights, fused=form == "sorted")
    x = graph.input("x", np.float32, ["batch", "tokens", 4])
    y = mixture(tower, x, "mlp", activation="gelu", top_k=2)
    graph.output("y", y, ["batch", "tokens", 4])
    graph.save()
    used = set()
    for name, tokens in BATCHES.items():
        for shape in ((1, -1, 4), (-1, 1, 4)):
            batch = torch.tensor(tokens, dtype=torch.float32).view(shape)
            with torch.no_grad():
                expected = moe(batch).numpy()
            used.add(
                len(set(moe.router_logits(batch.view(-1, 4)).topk(2).indices.flatten().tolist()))
            )
            actual = run(graph.path, batch.numpy(), runtime)
            assert actual.shape == expected.shape
            assert np.abs(actual - expected).max() < 1e-6 * max(1, np.abs(expected).max()), name
    assert used >= {2, 3, 4}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_compute_what_torch_does(name: str, tmp_path: Path) -> None:
    model = sparse_model(name)
    for kind in ("image", "text"):
        rows, path = rows_of(model, kind), tmp_path / f"{kind}.onnx"
        encode = model.encode_image if kind == "image" else model.encode_text
        with torch.no_grad():
            expected = encode(torch.from_numpy(rows), normalize=True).numpy()
        write_tower(model.arrays(), model.config, kind, path, normalize=True)
        for runtime in RUNTIMES if name in WITH_OPENVINO else RUNTIMES[:1]:
            assert np.abs(run(path, rows, runtime) - expected).max() < 3e-6
            assert np.abs(run(path, rows[:1], runtime) - expected[:1]).max() < 3e-6
        if kind == "text" and model.config.text.ignores_padding:
            short = run(path, rows[:3, :16], "onnxruntime")
            assert np.abs(short - expected[:3]).max() < 3e-6


def test_the_form_to_compare_with_computes_every_expert(tmp_path: Path) -> None:
    model = sparse_model("vit-b16")
    rows = rows_of(model, "image")
    with torch.no_grad():
        expected = model.encode_image(torch.from_numpy(rows), normalize=True).numpy()
    path = tmp_path / "image.onnx"
    write_tower(model.arrays(), model.config, "image", path, normalize=True, fuse=False)
    assert np.abs(run(path, rows, "onnxruntime") - expected).max() < 3e-6
    operators = {node.op_type for node in proto.read_model(path).graph.node}
    assert "NonZero" not in operators


def test_fp16_stores_experts_in_half_the_space_and_routers_whole(tmp_path: Path) -> None:
    model = sparse_model("vit-b16")
    rows, results = rows_of(model, "image"), {}
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}.onnx"
        write_tower(
            model.arrays(), model.config, "image", path, normalize=True, precision=precision
        )
        results[precision] = run(path, rows, "onnxruntime")
    sizes = [(tmp_path / f"{p}.onnx.data").stat().st_size for p in ("fp16", "fp32")]
    assert sizes[0] < 0.6 * sizes[1]
    assert (results["fp32"] * results["fp16"]).sum(-1).min() > 0.999
    tensors = {t.name: t.data_type for t in proto.read_model(path).graph.initializer}
    routers = [code for name, code in tensors.items() if ".router." in name]
    assert routers == [proto.FLOAT] * len(moe_layers(model.image))


def test_feature_maps_of_a_sparse_tower(tmp_path: Path) -> None:
    model = sparse_model("vit-b16")
    stored = StoredArrays()
    write_tower(model.arrays(), model.config, "image", tmp_path / "image.onnx", stored=stored)
    path = tmp_path / "features.onnx"
    entry = write_features(model.arrays(), model.config, path, stored=stored)
    pixels = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        maps = model.image.features(pixels)
    session = onnx_session(str(path), 1)
    found = session.run([about["name"] for about in entry["maps"]], {"pixels": pixels.numpy()})
    for actual, expected in zip(found, maps, strict=True):
        assert np.abs(actual - expected.numpy()).max() < 1e-5 * expected.abs().max()
    # The towers' weights are stored once.
    data = path.with_name("features.onnx.data")
    assert not data.exists() or data.stat().st_size < 4096
