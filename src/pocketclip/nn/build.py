"""Models built from a configuration: a `CLIP`, or a `CoCa` if it has a decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import random
from torch.overrides import TorchFunctionMode

from pocketclip import zoo
from pocketclip.nn.clip import CLIP
from pocketclip.nn.coca import CoCa


def create_model(name: str, **overrides: Any) -> CLIP:
    """Return the named model, unfused, with random weights, in training mode.

    Captioners are instances of `pocketclip.nn.coca.CoCa`.

    Args:
        name: a zoo name in any spelling (`mobileclip2-s0`, `MobileCLIP2_S0`, ...).
        **overrides: configuration fields, see `pocketclip.zoo.override`.

    Raises:
        UnknownModelError: unknown model or field.
    """
    return build(zoo.override(zoo.entry(name).config, **overrides))


def build(config: zoo.ModelConfig) -> CLIP:
    """Return a model of this configuration: a `CLIP`, or a `CoCa` if it has a decoder."""
    if config.decoder is None:
        return CLIP(config)
    return CoCa(config)


def build_empty(config: zoo.ModelConfig) -> CLIP:
    """Return the model on the meta device: shapes without storage."""
    with torch.device("meta"), _SkipInit():
        return build(config)


class _SkipInit(TorchFunctionMode):
    """Skips the initialisation of parameters.

    On the meta device it has no effect, but its first call imports torch's compiler: 1.5 s.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or (
            getattr(func, "__name__", "") in _IN_PLACE
        ):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


_IN_PLACE = frozenset({"normal_", "uniform_", "fill_", "zero_"})


def random_model(name: str, *, seed: int, **overrides: Any) -> CLIP:
    """Return `create_model(name)` in evaluation mode, with weights that depend on `seed` only."""
    with random.fork_rng(devices=[]):
        random.manual_seed(seed)
        return create_model(name, **overrides).eval()
