"""The golden cases as tensors, see `golden_values`; and random weights for any model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests import golden_values
from tests.golden_values import FOLDER, TAGS, fill, standard_normal

__all__ = [
    "FOLDER",
    "TAGS",
    "Golden",
    "fill",
    "golden",
    "randomise",
    "relative_error",
    "standard_normal",
]


@dataclass(frozen=True)
class Golden:
    shapes: dict[str, tuple[int, ...]]
    pixels: torch.Tensor
    ids: torch.Tensor
    image: np.ndarray[Any, Any]
    text: np.ndarray[Any, Any]

    def state(self, *, has_text: bool = True) -> dict[str, torch.Tensor]:
        """Return the weights by name; without text, the text tower's are zeros."""
        return {
            name: torch.from_numpy(fill(name, shape))
            if has_text or name.startswith(("visual.", "image_encoder."))
            else torch.zeros(shape)
            for name, shape in self.shapes.items()
        }


def golden(tag: str) -> Golden:
    case = golden_values.values(tag)
    return Golden(
        shapes=case.shapes,
        pixels=torch.from_numpy(case.pixels),
        ids=torch.from_numpy(case.ids),
        image=case.image,
        text=case.text,
    )


def relative_error(out: torch.Tensor, ref: np.ndarray[Any, Any]) -> float:
    return golden_values.relative_error(out.numpy(), ref)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter and BatchNorm statistic with plausible, distinct values, quickly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            leaf = name.rpartition(".")[2]
            if not value.is_floating_point() or leaf == "logit_scale":
                continue
            noise = torch.empty(value.shape).uniform_(-1.7, 1.7, generator=generator)
            if leaf == "running_var":
                noise = 1 + 0.4 * noise.tanh()
            elif "layer_scale" in leaf:
                noise = 0.1 + 0.03 * noise
            elif value.ndim == 1 and leaf == "weight":
                noise = 1 + 0.2 * noise
            elif value.ndim == 1 or leaf in ("position", "class_token"):
                noise = 0.1 * noise
            elif "embedding" not in name:
                noise = noise / math.sqrt(math.prod(value.shape[1:]))
            value.copy_(noise)
