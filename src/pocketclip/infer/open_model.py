"""Opening what an `Encoder` runs: a bundle, or a model in torch."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from pocketclip import devices, zoo
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.errors import BundleError, ConfigError
from pocketclip.infer.bundle import Bundle, read

if TYPE_CHECKING:
    import torch

    from pocketclip.nn.clip import CLIP

log = logging.getLogger(__name__)
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
) -> CLIP | Bundle:
    """Return the model or bundle; arguments that do not fit it are refused before it is read.

    The arguments are those of `pocketclip.infer.encoder.load`.
    """
    if not isinstance(source, ModelSource):
        source = resolve_model(source, revision=revision)
    if source.kind == "bundle":
        return _read_bundle(source, model)
    if backend not in ("auto", "torch"):
        raise BundleError(
            f"backend {backend!r} runs bundles, and {source.text} is not one: export it with "
            f"`pocketclip export {source.text} --format openvino --out DIR`"
        )
    refuse_threads(threads)
    from pocketclip import checkpoint

    torch_dtype(precision, devices.resolve_device(device))
    return checkpoint.load(source, model, fuse, offline=offline)


def _read_bundle(source: ModelSource, model: str | None) -> Bundle:
    assert source.path is not None
    if source.note:
        log.warning("%s", source.note)
    bundle = read(source.path)
    expected = source.model if model is None else zoo.resolve(model)
    if expected not in (None, bundle.config.name):
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
