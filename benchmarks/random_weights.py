"""Random weights whose outputs are as sensitive to rounding as those of trained ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketclip.nn.clip import CLIP


def give_statistics(model: CLIP, pixels: Tensor, ids: Tensor) -> CLIP:
    """Give a model with random weights plausible statistics, and return it in evaluation mode.

    BatchNorm gets those of the inputs. Layer scales are so small initially that blocks have no
    effect, and nothing that goes wrong in them would be seen.

    Args:
        model: changed in place.
        pixels: (B, 3, S, S).
        ids: (B, T).
    """
    with torch.no_grad():
        for title, value in model.named_parameters():
            if "layer_scale" in title:
                value.fill_(0.1)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # the plain mean over all batches
                module.train()
        model.encode_image(pixels)
        model.encode_text(ids)
    return model.eval()
