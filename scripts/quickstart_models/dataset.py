"""The training set of the shipped models: scenes with correct captions, and random crops.

Shapes: N scenes, B batch, S side in pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketclip.quickstart.captions import right_caption
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import draw_scene
from pocketclip.tokenizer import Tokenizer

SEED = 2311
SIDE, DRAWN = 64, 80
CAPTIONS = 6
"""Correct captions per scene; each step draws one of them."""
CONTEXT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneDataset:
    """Scenes and their captions."""

    images: Tensor
    """uint8 (N, 3, DRAWN, DRAWN)."""
    ids: Tensor
    """int64 (N, CAPTIONS, T)."""

    def first(self, count: int) -> SceneDataset:
        """Return the first `count` scenes."""
        return SceneDataset(images=self.images[:count], ids=self.ids[:count])

    def batches(
        self, steps: int, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield random crops (B, 3, S, S) and the ids (B, T) of one caption each."""
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(self.images), generator=generator)
            rows, order = order[:size], order[size:]
            which = torch.randint(CAPTIONS, (len(rows),), generator=generator)
            yield crop(self.images[rows], generator), self.ids[rows, which]


def draw_dataset(count: int) -> SceneDataset:
    """Draw `count` scenes and their captions."""
    images = np.empty((count, 3, DRAWN, DRAWN), np.uint8)
    texts: list[str] = []
    for index in range(count):
        scene = draw_scene("teaching", seed=SEED, index=index)
        pixels = render(scene, side=DRAWN, rng=ReplayRNG(SEED, 3, index))
        images[index] = pixels.transpose(2, 0, 1)
        texts += [
            right_caption("teaching", seed=SEED, index=index, draw=k) for k in range(CAPTIONS)
        ]
    ids = torch.from_numpy(Tokenizer()(texts, CONTEXT))
    return SceneDataset(images=torch.from_numpy(images), ids=ids.reshape(count, CAPTIONS, -1))


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return random crops (B, 3, S, S) of 65 to 100 % of each image's area."""
    count = len(images)
    area = 0.65 + 0.35 * torch.rand(count, 1, generator=generator)
    aspect = (0.3 * (torch.rand(count, 1, generator=generator) - 0.5)).exp()
    scale = (area.sqrt() * torch.cat([aspect, 1 / aspect], 1)).clamp(max=1)  # (B, 2)
    shift = (1 - scale) * (2 * torch.rand(count, 2, generator=generator) - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0], scale[:, 1], shift
    grid = F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
