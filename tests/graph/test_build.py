"""The graph room against torch: embeddings, kernels, and both precisions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pocketclip import zoo
from pocketclip.errors import ExportError
from pocketclip.graph.build import write_tower
from pocketclip.infer.backends import onnx_session
from pocketclip.nn.build import build_empty
from pocketclip.nn.reparam import fuse
from pocketclip.tokenizer import Tokenizer
from tests.golden_weights import randomise

# Every block of the zoo, at a size that takes a moment.
CONFIGS = {
    "tiny": {},
    "mct": {"text": {"repmixer": True, "embedding_buckets": None}},
    "five-stage": {
        "image": {
            "depths": (1, 1, 1, 1, 1), "widths": (16, 32, 64, 128, 256), "attention_stages": 2,
            "squeeze_excite_stages": 0, "attention_norm": "layer", "stem_scale": False,
        },
        "text": {"causal": True, "activation": "quick_gelu"},
        "preprocess": {"mean": zoo.CLIP_MEAN, "std": zoo.CLIP_STD, "interpolation": "bicubic"},
    },
    "coca-tiny": {"text": {"embedding_buckets": None}},
}  # fmt: skip
VITS = {
    "patch": zoo.ViTConfig(width=64, layers=2, heads=2, patch_size=16, activation="quick_gelu"),
    "conv": zoo.ViTConfig(
        width=64, layers=2, heads=2, patch_size=16, stem="conv", stem_padding=1, pre_norm=False,
        class_position=False, eps=1e-6,
    ),
}  # fmt: skip


def make_model(name, *, double=False):
    """Return a model with random values: of the configurations above, or of the zoo."""
    torch.manual_seed(0)
    if name in VITS:
        config = dataclasses.replace(zoo.entry("tiny").config, image=VITS[name])
    elif name in CONFIGS:
        base = "coca-tiny" if name == "coca-tiny" else "tiny"
        config = zoo.override(zoo.entry(base).config, **CONFIGS[name])
    else:
        config = zoo.entry(name).config
    model = build_empty(config).to_empty(device="cpu").eval()
    model = model.double() if double else model
    randomise(model)
    return model


def _weights(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _run(path, rows):
    session = onnx_session(str(path), 1)
    return session.run(None, {session.get_inputs()[0].name: rows})[0]


def _inputs(config):
    torch.manual_seed(1)
    pixels = torch.rand(3, 3, config.image_size, config.image_size)
    texts = ["a photo of a cat", "dog", "two people ride their bicycles " * 9]
    ids = torch.from_numpy(Tokenizer(warn=False)(texts, config.text.context_length))
    return {"image": pixels, "text": ids}


@pytest.mark.parametrize("name", [*CONFIGS, *VITS])
@pytest.mark.parametrize("form", ["unfused", "fused", "fused before"])
def test_a_graph_computes_what_the_model_does(name, form, tmp_path):
    model = make_model(name)
    weights = _weights(fuse(model) if form == "fused before" else model)
    for kind, rows in _inputs(model.config).items():
        encode = model.encode_image if kind == "image" else model.encode_text
        with torch.no_grad():
            expected = encode(rows, normalize=True).numpy()
        path = tmp_path / f"{kind}.onnx"
        entry = write_tower(
            weights, model.config, kind, path, fuse=form != "unfused", normalize=True
        )
        assert np.abs(_run(path, rows.numpy()) - expected).max() < 1e-6
        assert entry["file"] == path.name
        assert entry["output"]["shape"] == [None, model.config.embed_dim]
        if kind == "text" and model.config.text.ignores_padding:
            short = _run(path, rows.numpy()[:2, :9])
            assert np.abs(short - expected[:2]).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_model_of_the_zoo(name, tmp_path):
    model = make_model(name)
    with torch.no_grad():
        for label, value in model.named_parameters():
            if "layer_scale" in label:  # larger ones make the deepest towers chaotic in float32
                value.mul_(0.3)
    weights, config = _weights(model), model.config
    for kind, rows in _inputs(config).items():
        encode = model.encode_image if kind == "image" else model.encode_text
        with torch.no_grad():
            expected = encode(rows, normalize=True).numpy()
        path = tmp_path / "tower.onnx"
        for form in ({}, {"fuse": False}, {"precision": "fp16"}):
            write_tower(weights, config, kind, path, normalize=True, **form)
            actual = _run(path, rows.numpy())
            if "precision" in form:
                assert (actual * expected).sum(-1).min() > 0.9999
            else:
                assert np.abs(actual - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["five-stage", *VITS])
def test_levels_and_photographs_are_scaled_in_the_graph(name, tmp_path):
    model = make_model(name)
    preprocess = zoo.entry("mobileclip2-s3").config.preprocess  # has a mean
    config = dataclasses.replace(model.config, preprocess=dataclasses.replace(preprocess, size=64))
    weights = _weights(model)
    levels = np.random.RandomState(0).randint(0, 256, (2, 3, 64, 64)).astype(np.float32)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (zoo.CLIP_MEAN, zoo.CLIP_STD))
    write_tower(weights, config, "image", tmp_path / "a.onnx")
    expected = _run(tmp_path / "a.onnx", ((levels / 255 - mean) / std).astype(np.float32))
    for fused in (True, False):
        path = tmp_path / f"{fused}.onnx"
        write_tower(weights, config, "image", path, pixels="levels", fuse=fused)
        error = np.abs(_run(path, levels) - expected).max() / np.abs(expected).max()
        assert error < 1e-5
    write_tower(weights, config, "image", tmp_path / "photo.onnx", pixels="photo")
    photo = levels.transpose(0, 2, 3, 1).astype(np.uint8)  # of the tower's size: nothing to resize
    error = np.abs(_run(tmp_path / "photo.onnx", photo) - expected).max() / np.abs(expected).max()
    assert error < 1e-5


def test_fp16_halves_the_files_and_keeps_the_embeddings(tmp_path):
    model = make_model("five-stage")
    for kind, rows in _inputs(model.config).items():
        results = {}
        for precision in ("fp32", "fp16"):
            path = tmp_path / f"{precision}.onnx"
            write_tower(
                _weights(model), model.config, kind, path, precision=precision, normalize=True
            )
            results[precision] = _run(path, rows.numpy())
        sizes = [(tmp_path / f"{p}.onnx.data").stat().st_size for p in ("fp16", "fp32")]
        assert sizes[0] < 0.6 * sizes[1]
        assert (results["fp32"] * results["fp16"]).sum(-1).min() > 0.9999


def test_weights_that_cannot_be_stored_are_refused(tmp_path):
    model = make_model("tiny")
    weights = _weights(model)
    name = "image.stages.3.blocks.0.mlp.fc1.weight"
    weights[name] = weights[name] * 1e7
    with pytest.raises(ExportError, match=r"fc1\.weight has values beyond float16: use fp32"):
        write_tower(weights, model.config, "image", tmp_path / "a.onnx", precision="fp16")
    weights[name] = weights[name] * np.nan
    with pytest.raises(ExportError, match=r"fc1\.weight is not finite"):
        write_tower(weights, model.config, "image", tmp_path / "b.onnx")
