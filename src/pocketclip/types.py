"""The contracts between the rooms of the package.

Shapes: A augmentations of an image, B batch, D embedding, n captions under one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]


@dataclass(slots=True, kw_only=True)
class Pair:
    """One raw image with its captions, as it was found."""

    uid: str
    """Its name in every shard; has no dot and no slash."""
    image: bytes | None = None
    """The encoded file (JPEG, PNG, ...), not decoded; None where only the URL is known."""
    captions: dict[str, list[str]] = field(default_factory=dict)
    """Captions by key; the ground truth stands under `text`."""
    url: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """Whatever else came with it, as plain JSON types."""


@dataclass(slots=True, kw_only=True)
class Bad:
    """A pair that cannot be used, and why."""

    uid: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Sample(Pair):
    """A pair with its reinforcements.

    The embedding of caption i under key K is row i of `embeddings[K + "_emb"]`: captions and
    embeddings are tied by key and position, never by a position shared between keys.
    """

    param_aug: list[Any] | None = None
    """A packed augmentations, see `pocketclip.augment`."""
    embeddings: dict[str, Embeddings] = field(default_factory=dict)
    """`image_emb` (A, D), `text_emb` (1, D), `syn_text_emb` (n, D), ...; float32."""


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
