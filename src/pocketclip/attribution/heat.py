"""The heat of a text in an image: which positions of a feature map raise its score.

Two readings of MCi are multiplied, since they fail in different pictures:

- HiResCAM (arXiv 2011.08891), section 3: the gradient of the score with respect to a fine map,
  times the map, summed over the channels;
- the exact parts of the score: the embedding is the mean of the tokens under a linear head
  (MobileCLIP, arXiv 2311.17049, section 3.2), so the score is a mean over the positions of the last
  map; those above the average count. The last stage mixes all positions by attention, so that a
  part says less about its place than in a purely convolutional network.

Vision transformers: Grad-CAM (arXiv 1610.02391), section 3: the gradient's mean over the positions
weights the channels. docs/how-to/explain.md has figures of each.

Shapes: B batch, C channels, S side of the image, h w height and width of the map, T texts, N
patches, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketclip.errors import EmbeddingError
from pocketclip.feature_maps import FeatureMap, map_size
from pocketclip.nn.mci import MCi

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP
    from pocketclip.nn.vit import ViT

MIN_POSITIONS = 8
"""The fewest positions per side of the map that HiResCAM reads; coarser ones miss objects."""
_MIN_PARTS = 4
"""The fewest positions per side of a last map whose parts are used."""


def explained_map(tower: MCi | ViT, side: int) -> FeatureMap:
    """Return the map of an image tower that gradients are computed for.

    MCi: the deepest one before the last stage with at least `MIN_POSITIONS` positions per side: at
    256 pixels the one of stride 16. A vision transformer: the states after a third of its blocks.

    Args:
        tower: the image tower.
        side: S.
    """
    if not isinstance(tower, MCi):
        return tower.feature_maps([-(-len(tower.blocks) // 3) - 1])[0]
    *maps, _ = tower.feature_maps()
    fine = [m for m in maps if map_size(side, m.stride) >= MIN_POSITIONS]
    return (fine or maps[:1])[-1]


def heat(
    model: CLIP, pixels: NDArray[np.float32], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return one map (T, h, w) per direction, 0 to 1; larger values raise the score more.

    Args:
        model: in evaluation mode.
        pixels: of one image, preprocessed, (3, S, S).
        directions: (T, D); the score of a direction is its product with the unit embedding.

    Raises:
        EmbeddingError: the model gives values that are not finite.
    """
    tower, weight = model.image, model.logit_scale
    wanted = torch.from_numpy(directions).to(weight.device)
    batch = torch.from_numpy(pixels[None]).to(weight.device, weight.dtype)
    about = explained_map(tower, pixels.shape[-1])
    if isinstance(tower, MCi):
        states, gradients, tokens = _gradients(tower, tower.stages[about.index], batch, wanted)
        heats = _positive((gradients * states).sum(2)[:, 0])  # of (T, 1, C, h, w)
        if min(tokens.shape[2:]) >= _MIN_PARTS:
            heats = _product(heats, _parts(tower.head, tokens, wanted))
    else:
        states, gradients, _ = _gradients(tower, tower.blocks[about.index], batch, wanted)
        weights = gradients[:, 0, 1:].mean(1)  # (T, C) of (T, 1, N + 1, C)
        side = pixels.shape[-1] // tower.stride
        heats = _positive((states[0, 1:] @ weights.T).T.reshape(len(wanted), side, side))
    found: NDArray[np.float32] = heats.cpu().numpy()
    if not np.isfinite(found).all():
        raise EmbeddingError("the photograph", "the model gives values that are not finite")
    return found


def _gradients(
    tower: MCi | ViT, layer: nn.Module, pixels: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer's output (1, ...), the gradients (T, 1, ...) of each score, and MCi's tokens.

    The tokens are (1, 2C, h, w), those of a vision transformer empty.
    """
    kept: dict[str, Tensor] = {"tokens": pixels.new_empty(0)}

    def keep_states(_layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        kept["states"] = output.detach().requires_grad_()  # a leaf: nothing before needs a gradient
        return kept["states"]

    def keep_tokens(_layer: Any, _inputs: Any, output: Tensor) -> None:
        kept["tokens"] = output.detach().float()

    handles = [layer.register_forward_hook(keep_states)]
    if isinstance(tower, MCi):
        handles.append(tower.expand.register_forward_hook(keep_tokens))
    try:
        with torch.enable_grad():
            scores = directions @ F.normalize(tower(pixels)[0].float(), dim=-1)
            states = kept["states"]
            found = [torch.autograd.grad(s, states, retain_graph=True)[0] for s in scores]
    finally:
        for handle in handles:
            handle.remove()
    return states.detach().float(), torch.stack(found).float(), kept["tokens"]


def _parts(head: nn.Module, tokens: Tensor, directions: Tensor) -> Tensor:
    """Return each position's part in the scores (T, h, w), above the average, largest 1."""
    with torch.no_grad():
        rows = tokens[0].flatten(1).T.to(next(head.parameters()).dtype)
        parts = (head(rows).float() @ directions.T).T.reshape(-1, *tokens.shape[2:])
    return _positive(parts - parts.mean((1, 2), keepdim=True))


def _product(fine: Tensor, coarse: Tensor) -> Tensor:
    """Return maps (T, h, w) times coarser ones; `fine` itself where nothing would be left."""
    grown = F.interpolate(coarse[:, None], fine.shape[1:], mode="bicubic")[:, 0]
    both = _positive(fine * grown.clamp_min(0))
    return torch.where(both.amax((1, 2), keepdim=True) > 0, both, fine)


def _positive(maps: Tensor) -> Tensor:
    """Return maps (T, h, w) without negative values, the largest 1; a map of zeros stays so."""
    positive = maps.clamp_min(0)
    largest = positive.amax((1, 2), keepdim=True)
    return positive / torch.where(largest > 0, largest, torch.ones_like(largest))
