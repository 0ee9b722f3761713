"""Opening what an `Encoder` runs: a bundle, a model in torch, or without torch one converted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from pocketclip import devices, zoo
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.errors import BundleError, ConfigError, how_to_install
from pocketclip.infer.backends import RUNS, missing_backend
from pocketclip.infer.bundle import Bundle, read
from pocketclip.progress import ProgressReporter

if TYPE_CHECKING:
    import torch

    from pocketclip.nn.clip import CLIP

log = logging.getLogger(__name__)
Reporter = ProgressReporter | Callable[[str], None] | None
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def open_model(
    source: str | os.PathLike[str] | ModelSource,
    model: str | None = None,
    fuse: bool = True,
    offline: bool = False,
    revision: str | None = None,
    *,
    backend: str,
    device: str,
    threads: int | None,
    precision: str | None,
    reporter: Reporter = None,
) -> CLIP | Bundle:
    """Return the model or bundle; arguments that do not fit it are refused before it is read.

    The arguments are those of `pocketclip.infer.encoder.load`.
    """
    if not isinstance(source, ModelSource):
        source = resolve_model(source, revision=revision)
    if source.kind == "bundle":
        return _read_bundle(source, model)
    if is_converted(source):
        from pocketclip.infer.ready import open_ready

        _refuse_for_converted(source, backend, device, precision)
        return open_ready(source, model, offline=offline, reporter=reporter)
    if backend not in ("auto", "torch"):
        raise BundleError(
            f"backend {backend!r} runs bundles, and {source.text} is not one: export it with "
            f"`pocketclip export {source.text} --format openvino --out DIR`"
        )
    refuse_threads(threads)
    from pocketclip import checkpoint

    torch_dtype(precision, devices.resolve_device(device))
    return checkpoint.load(source, model, fuse, offline=offline)


def is_converted(source: ModelSource) -> bool:
    """Return whether a source is run as a bundle that is made of it: torch is not installed."""
    return source.kind in ("hub", "file", "checkpoint") and not devices.has_torch()


def _refuse_for_converted(
    source: ModelSource, backend: str, device: str, precision: str | None
) -> None:
    """Refuse what needs torch before a model is fetched and converted.

    Raises:
        BundleError: no such backend.
        ConfigError: a device or precision that only torch has.
        MissingDependencyError: the backend is torch, or is not installed.
    """
    if backend == "torch":
        devices.need_torch()
    backends = RUNS["onnx"] if backend == "auto" else (backend,)
    if not set(backends) <= set(RUNS["onnx"]):
        raise BundleError(
            f"backend {backend!r} cannot run a converted model: use {' or '.join(RUNS['onnx'])}"
        )
    if backend != "auto" and not devices.is_installed(backend):
        raise missing_backend(source.text, backend)
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"without torch, {source.text} runs on the CPU: leave out device {device!r}, or "
            f"install torch: {how_to_install('train')}"
        )
    if precision not in (None, "fp32", "bf16"):
        raise ConfigError(
            f"without torch, {source.text} is computed in fp32, or with OpenVINO in bf16: leave "
            f"out precision {precision!r}, or install torch: {how_to_install('train')}"
        )
    if precision == "bf16" and not ("openvino" in backends and devices.is_installed("openvino")):
        raise ConfigError(
            f"without torch only OpenVINO computes in bf16, and it is not installed or not the "
            f"backend: {how_to_install('openvino')}, or leave out the precision"
        )


def _read_bundle(source: ModelSource, model: str | None) -> Bundle:
    assert source.path is not None
    if source.note:
        log.warning("%s", source.note)
    bundle = read(source.path)
    expected = source.model if model is None else zoo.resolve(model)
    if expected is not None and zoo.entry(expected).config.name != bundle.config.name:
        raise BundleError(f"{source.path} holds {bundle.config.name}, not {expected}")
    return bundle


def refuse_threads(threads: int | None) -> None:
    """Refuse a number of threads for a model in torch.

    Raises:
        ConfigError: `threads` is not None.
    """
    if threads is not None:
        raise ConfigError(
            "threads is for bundles; for a model in torch call torch.set_num_threads(N), which "
            "applies to the whole process"
        )


def torch_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision (`fp32`, `bf16`, `fp16`, `auto`; None is `fp32`)."""
    name = precision or "fp32"
    return devices.resolve_dtype(_DTYPES.get(name, name), device)
