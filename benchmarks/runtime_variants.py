"""The variants of a model that `runtime.py` times: eager torch, plain ONNX Runtime, our bundles."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from encode import open_clip_peer
from pocketclip import checkpoint, zoo
from pocketclip.devices import is_installed
from pocketclip.errors import PocketclipError
from pocketclip.export.job import export
from pocketclip.infer import backends
from pocketclip.infer.bundle import Bundle, is_bundle, read
from pocketclip.infer.comparison import CAPTIONS, own_photos
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer
from random_weights import give_statistics

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
VARIANTS = ("openvino_fp32", "openvino_bf16", "onnx_fp32", "onnx_int8", "openvino_int8")
CALIBRATION = 32  # crops, where no folder is given
Run = Callable[[NDArray[Any]], NDArray[Any]]


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    return is_installed("openvino") and backends.has_bf16()


def make_model(name: str) -> CLIP:
    """Return a checkpoint, or a named model with random weights and plausible statistics.

    The weights of a name are never the published ones: they do not change the times.
    """
    if zoo.find(name) is None or Path(name).exists():
        return checkpoint.load(name)
    model = random_model(zoo.resolve(name), seed=0)
    rows = inputs(model.config, crops(8))
    return give_statistics(model, *(torch.from_numpy(rows[key]) for key in ("image", "text")))


def crops(count: int) -> list[Image.Image]:
    """Return random crops of the package's photographs."""
    rng = np.random.default_rng(0)
    squares = []
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(rng.uniform(0.5, 1.0) * min(photo.size))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
        squares.append(photo.crop((left, top, left + side, top + side)))
    return squares


def inputs(config: zoo.ModelConfig, photos: list[Any]) -> dict[str, NDArray[Any]]:
    """Return inputs of both towers: pixels of `photos`, ids of the captions of the exporter."""
    tokenizer = Tokenizer(warn=False)
    return {
        "image": Preprocess(config.preprocess).batch(photos),
        "text": tokenizer(list(CAPTIONS), config.text.context_length),
    }


def check_inputs(config: zoo.ModelConfig) -> dict[str, NDArray[Any]]:
    """Return the inputs that cosines are computed on."""
    return inputs(config, list(own_photos()))


def make_bundle(
    model: CLIP, variant: str, folder: Path, calibration: Sequence[Any]
) -> Bundle | str:
    """Return the bundle in `folder`, exported if it is missing; or the reason why it cannot be."""
    if variant == "openvino_bf16" and not has_bf16():
        return "this processor has no bfloat16"
    if is_bundle(folder):
        try:
            return read(folder, space_id=model.space_id)
        except PocketclipError as error:
            print(f"{folder} is exported again: {error}", file=sys.stderr)
    target, precision = variant.split("_")
    print(f"{model.config.name}: exporting {variant}", file=sys.stderr)
    try:
        return export(model, folder, target=target, precision=precision, calibration=calibration)
    except PocketclipError as error:
        return str(error) or repr(error)


def bundle_run(bundle: Bundle, tower: str, threads: int) -> Run:
    """Return a function that runs one tower of a bundle in its target's backend."""
    backend = "openvino" if bundle.target == "openvino" else "onnxruntime"
    encoder = Encoder(bundle, backend, threads=threads)
    encoder.load(tower)
    return encoder.backend.image if tower == "image" else encoder.backend.text


def eager_run(tower: nn.Module) -> Run:
    """Return a function that runs a tower in eager torch."""

    def run(array: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            embeddings: NDArray[Any] = tower(torch.from_numpy(array)).numpy()
        return embeddings

    return run


def peer_run(name: str, tower: str) -> Run | None:
    """Return a function that runs open_clip's fused tower in eager torch, or None."""
    if zoo.find(name) is None:
        return None
    peer = open_clip_peer(zoo.resolve(name))
    if peer is None:
        return None
    return eager_run(getattr(peer, f"encode_{tower}"))


def plain_run(tower: nn.Module, example: NDArray[Any], path: Path, threads: int) -> Run:
    """Return a function that runs a fused tower in ONNX Runtime with a default session.

    The tower is exported with torch's exporter in operator set 18, with which ONNX Runtime is
    fastest. Only the number of threads is set.

    Args:
        tower: the fused tower.
        example: an input of it, (B, ...).
        path: the file to export to; reused if it exists.
        threads: number of threads per call.
    """
    import onnxruntime

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = torch.from_numpy(np.repeat(example[:1], 2, axis=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's warnings about itself
            torch.onnx.export(
                tower, (rows,), path, dynamo=True, opset_version=18, verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(array: NDArray[Any]) -> NDArray[Any]:
        embeddings: NDArray[Any] = session.run(None, {name: array})[0]
        return embeddings

    return run


def cosine(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the smallest cosine of the rows of two arrays (N, D)."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (actual, expected))
    return float((a.astype(np.float64) * b).sum(1).min())
