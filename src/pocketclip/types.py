"""The contracts between the rooms of the package.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]


@runtime_checkable
class Encoder(Protocol):
    """Anything that embeds images and texts into one space: a torch model, fused or exported."""

    @property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        ...

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities before a softmax."""
        ...

    @property
    def space_id(self) -> str:
        """The identity of the embedding space; embeddings of different spaces never mix."""
        ...

    def encode_image(self, images: Sequence[Any]) -> Embeddings:
        """Return unit embeddings (B, D) of images: paths, bytes, PIL images or arrays."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Return unit embeddings (B, D) of texts."""
        ...
