"""The types that the packages share.

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
    """One raw image with its captions."""

    uid: str
    """Its name in every shard; contains no dot or slash."""
    image: bytes | None = None
    """The encoded file (JPEG, PNG, ...), not decoded; None if only the URL is known."""
    captions: dict[str, list[str]] = field(default_factory=dict)
    """Captions by key; the original ones are under `text`."""
    url: str | None = None
    """Where the image was fetched from, or can be."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Further fields of the source, as plain JSON types."""


@dataclass(slots=True, kw_only=True)
class Bad:
    """A pair that cannot be used, and why."""

    uid: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Sample(Pair):
    """A pair with its reinforcements.

    The embedding of caption i under key K is row i of `embeddings[K + "_emb"]`. Positions are never
    shared between keys.
    """

    param_aug: list[Any] | None = None
    """The A augmentations in the packed format, see `pocketclip.augment`."""
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
        """The identity of the embedding space; never compare embeddings of different spaces."""
        ...

    def encode_image(self, images: Sequence[Any]) -> Embeddings:
        """Return unit embeddings (B, D) of images: paths, bytes, PIL images or arrays."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Return unit embeddings (B, D) of texts."""
        ...
