"""The types that the packages share.

Shapes: A augmentations of an image, B batch, D embedding, n captions under one key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
"""Named arrays: a model's weights under the names of our torch modules; floats are float32."""


class LazyArrays(Arrays):
    """Named arrays, each read anew at every access, so that nobody holds all of them.

    Args:
        readers: by name, a function without arguments that returns the array.
    """

    def __init__(self, readers: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers  # Mapping's own would read the array


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
    views: Sequence[bytes] | None = None
    """Of a materialised set: the A augmented images, encoded, at the size that the index states."""
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
