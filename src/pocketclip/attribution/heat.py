"""The heat of a text in an image: how much each position of a feature map raises its score.

MCi: HiResCAM (arXiv 2011.08891), section 3: the gradient of the score with respect to a feature
map, times the map, summed over the channels. Vision transformers: Grad-CAM (arXiv 1610.02391),
section 3: the same with the gradient's mean over the positions. Both were chosen by how often the
hottest point lies in the right object; docs/how-to/explain.md has the figures, also of the exact
parts of an MCi embedding, which is the mean of its tokens under a linear head.

Shapes: B batch, C channels, S side of the image, h w height and width of the map, T texts,
D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pocketclip.errors import EmbeddingError
from pocketclip.feature_maps import FeatureMap, map_size
from pocketclip.nn.mci import MCi

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP
    from pocketclip.nn.vit import ViT

MIN_POSITIONS = 8
"""The fewest positions per side of an MCi map that is explained; coarser ones miss objects."""


def explained_map(tower: MCi | ViT, side: int) -> FeatureMap:
    """Return the map of an image tower that is explained.

    MCi: the deepest one before the last stage with at least `MIN_POSITIONS` positions per side: at
    256 pixels the one of stride 16. The last stage mixes all positions by attention. A vision
    transformer: the states after a third of its blocks.

    Args:
        tower: the image tower.
        side: S.
    """
    if not isinstance(tower, MCi):
        return tower.feature_maps([-1 if tower.pool is not None or len(tower.blocks) < 2 else -2])[
            0
        ]
    *maps, _ = tower.feature_maps()
    fine = [m for m in maps if map_size(side, m.stride) >= MIN_POSITIONS]
    return (fine or maps[:1])[-1]


def heat(
    model: CLIP, pixels: NDArray[np.float32], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return one map (T, h, w) per direction; larger values raise the score more.

    Args:
        model: in evaluation mode.
        pixels: of one image, preprocessed, (3, S, S).
        directions: (T, D); the score of a direction is its product with the unit embedding.

    Raises:
        EmbeddingError: the model gives values that are not finite.
    """
    tower, weight = model.image, model.logit_scale
    about = explained_map(tower, pixels.shape[-1])
    layers = tower.stages if isinstance(tower, MCi) else tower.blocks
    kept: list[torch.Tensor] = []

    def keep(_layer: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        # A leaf: nothing before it needs a gradient.
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = layers[about.index].register_forward_hook(keep)
    try:
        with torch.enable_grad():
            batch = torch.from_numpy(pixels[None]).to(weight.device, weight.dtype)
            unit = F.normalize(tower(batch)[0].float(), dim=-1)
            scores = torch.from_numpy(directions).to(weight.device) @ unit
            gradients = [torch.autograd.grad(s, kept[0], retain_graph=True)[0] for s in scores]
    finally:
        handle.remove()
    positions = kept[0].detach().float()
    if isinstance(tower, MCi):
        grid = torch.cat([(g.float() * positions).sum(1) for g in gradients])  # of (1, C, h, w)
    else:
        patches, side = positions[:, 1:], pixels.shape[-1] // tower.stride  # of (1, N + 1, C)
        weights = torch.cat([g[:, 1:].float().mean(1) for g in gradients])  # (T, C)
        grid = (patches @ weights.T)[0].T.reshape(len(scores), side, side)
    found: NDArray[np.float32] = grid.cpu().numpy()
    if not np.isfinite(found).all():
        raise EmbeddingError("the photograph", "the model gives values that are not finite")
    return found
