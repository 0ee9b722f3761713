"""The model behind a server: one worker per tower, fed from bounded queues.

    engine = Engine(encoder, Limits())
    embeddings = await engine.embed_images([data, ...])

Shapes: B inputs, D embedding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from pocketclip.serve.settings import Limits
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder


class TextEmbeddings(NamedTuple):
    """Embeddings of texts, and how long the texts were."""

    embeddings: Embeddings
    """(B, D), of unit length."""
    tokens: int
    """Of all texts together, as the model read them."""


class TowerStats(NamedTuple):
    """What a tower has to do, and did since the start."""

    waiting: int = 0
    """Inputs in the queue now."""
    encoded: int = 0
    """Inputs that were encoded."""
    seconds: float = 0.0
    """That the tower computed."""
    dropped: int = 0
    """Inputs that were not encoded, since their call was cancelled."""


class CacheStats(NamedTuple):
    """The cache of text embeddings."""

    hits: int = 0
    """Texts that were there."""
    misses: int = 0
    """Texts that were not."""
    bytes: int = 0
    entries: int = 0


class EngineStats(NamedTuple):
    """The work of an engine."""

    texts: TowerStats = TowerStats()
    images: TowerStats = TowerStats()
    cache: CacheStats = CacheStats()


class Engine:
    """A model for many requests at a time; its methods belong to one event loop.

    A call that is cancelled is dropped before its inputs are encoded.
    """

    def __init__(self, encoder: Encoder, limits: Limits | None = None) -> None:
        self._encoder = encoder
        self._limits = limits or Limits()
        self._pool = ThreadPoolExecutor(1)

    @property
    def encoder(self) -> Encoder:
        """The model that answers now."""
        return self._encoder

    def stats(self) -> EngineStats:
        """Return the queues, the work done and the cache as they are now."""
        return EngineStats()

    async def embed_texts(
        self, texts: Sequence[str], *, wait: bool = False, encoder: Encoder | None = None
    ) -> TextEmbeddings:
        """Return unit embeddings (B, D) of texts.

        Args:
            texts: one or more.
            wait: for room in a full queue, rather than to refuse.
            encoder: the model; None: the one that answers now.

        Raises:
            RequestError: too many texts wait (429), or the server is ending (503).
            EmbeddingError: as `Encoder.encode_text`.
        """
        del wait, encoder
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._pool, self._encoder.encode_text, list(texts))
        return TextEmbeddings(rows, 0)

    async def embed_images(
        self, images: Sequence[bytes], *, wait: bool = False, encoder: Encoder | None = None
    ) -> Embeddings:
        """Return unit embeddings (B, D) of image files.

        Args:
            images: the bytes of files.
            wait: as for texts.
            encoder: the model; None: the one that answers now.

        Raises:
            RequestError: too many images wait (429), or the server is ending (503).
            ImageError: an image cannot be opened; the message names its position.
            EmbeddingError: as `Encoder.encode_image`.
        """
        del wait, encoder
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._encoder.encode_image, list(images))

    async def replace(self, encoder: Encoder) -> None:
        """Answer with another model from now on; what is being encoded is finished by the old one.

        Its towers are loaded, and each has encoded something, before the switch.

        Raises:
            PocketclipError: the model does not work; the old one stays.
        """
        self._encoder = encoder

    async def close(self) -> None:
        """End the workers; calls that wait get a RequestError (503)."""
        self._pool.shutdown(wait=False, cancel_futures=True)
