"""What teachers and captioners of all libraries have in common.

Shapes: B images or texts, n captions per image, T tokens, S side of a square in pixels,
D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketclip.reinforce.sampling import Sampling
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Ids = NDArray[np.int64]


class Towers(Protocol):
    """The image and text tower of a teacher, with its tokenizer; one class per library."""

    embed_dim: int
    logit_scale: float
    """The multiplier of cosine similarities, not its logarithm."""
    logit_bias: float
    space_id: str
    context_length: int
    trims: bool
    """Whether padding after a caption's end cannot change its embedding, and may be cut off."""
    image_batch: int
    """Images per forward pass."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to embeddings (B, D), not normalised."""
        ...

    def tokenize(self, texts: list[str]) -> tuple[Ids, Ids]:
        """Return ids (B, T), cut to the context, and their lengths without padding (B,)."""
        ...

    def encode_ids(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Map ids (B, T) and their lengths (B,) to embeddings (B, D), not normalised."""
        ...

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of the whole `text`, with its start and end token."""
        ...


class Writer(Protocol):
    """The model of a captioner, with its tokenizer; one class per library."""

    sampling: Sampling
    """How it draws, fitted to the model."""

    def write(self, pixels: Tensor, per_image: int, seeds: Sequence[int]) -> list[str]:
        """Return the B n captions of pixels (B, 3, S, S), in the order of the images."""
        ...


Captioning = tuple[Writer, dict[str, Any], SquareTransform, Scaling]
"""A loaded captioner: its writer, the facts that identify it, its transform and its scaling."""


class Pixels:
    """Turns squares (B, S, S, 3) into the pixels (B, 3, S, S) that a model takes, on its device."""

    def __init__(self, scaling: Scaling, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)

        self.device, self.dtype = device, dtype
        # Tensors, not numbers: a GPU divides by a number by multiplying with its rounded inverse.
        self.divisor = column([scaling.divisor])
        self.mean, self.std = column(scaling.mean), column(scaling.std)
        self.is_identity = set(scaling.mean) == {0.0} and set(scaling.std) == {1.0}

    def __call__(self, squares: NDArray[np.uint8]) -> Tensor:
        """Return the pixels of squares (B, S, S, 3)."""
        import torch

        # Torch warns of read-only arrays (from other processes), though nothing writes here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
            batch = torch.from_numpy(np.ascontiguousarray(squares)).to(self.device)
        return self.scale(batch.permute(0, 3, 1, 2))

    def scale(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, S, S) scaled as `pocketclip.preprocess.Preprocess` does.

        They are computed in float32.
        """
        import torch

        on_device = images.to(self.device)
        out = on_device.to(torch.float32, memory_format=torch.contiguous_format)
        out = out.div_(self.divisor)
        if not self.is_identity:
            out = out.sub_(self.mean).div_(self.std)
        return out.to(self.dtype)
