"""The model behind a server: one worker per tower, fed from bounded queues.

    engine = Engine(encoder, Limits())
    embeddings = await engine.embed_images([data, ...])

Shapes: B inputs, D embedding.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from pocketclip.embeddings import unit_length
from pocketclip.infer.text_cache import CachedText
from pocketclip.serve.encoding.engine_stats import CacheStats, EngineStats
from pocketclip.serve.encoding.image_queue import ImageQueue
from pocketclip.serve.encoding.text_queue import TextQueue
from pocketclip.serve.settings import Limits
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

_CHARACTERS_AT_ONCE = 1 << 16
"""Hashing more than this for the cache would hold the event loop up."""


class TextEmbeddings(NamedTuple):
    """Embeddings of texts, and how long the texts were."""

    embeddings: Embeddings
    """(B, D), of unit length."""
    tokens: int
    """Of all texts together, as the model read them: each with a start and an end token, and of at
    most the model's context."""


class Engine:
    """A model for many requests at a time; its methods belong to one event loop.

    Requests take turns: one that brings many inputs delays others by about one call of the tower.
    A call that is cancelled is dropped before its inputs are encoded.

    Args:
        encoder: the model.
        limits: sizes and counts.
    """

    def __init__(self, encoder: Encoder, limits: Limits | None = None) -> None:
        self._encoder = encoder
        limits = limits or Limits()
        self._images = ImageQueue(limits, encoder.decoder_threads())
        self._texts = TextQueue(limits)
        self._hits = self._misses = 0  # of models that were replaced

    @property
    def encoder(self) -> Encoder:
        """The model that answers now."""
        return self._encoder

    def stats(self) -> EngineStats:
        """Return what waits and what was done."""
        cache = self._encoder.text_cache
        hits, misses = self._hits + cache.hits, self._misses + cache.misses
        return EngineStats(
            self._texts.stats(), self._images.stats(),
            CacheStats(hits, misses, cache.bytes, len(cache)),
        )  # fmt: skip

    async def embed_texts(
        self, texts: Sequence[str], *, wait: bool = False, encoder: Encoder | None = None
    ) -> TextEmbeddings:
        """Return unit embeddings (B, D) of texts, equal to `Encoder.encode_text` within 1e-6.

        Args:
            texts: texts longer than the model's context are truncated.
            wait: if too many texts wait, wait for room instead of raising.
            encoder: the model; None for the one that answers now. A request that makes several
                calls gives the same one to each, since it may be replaced in between.

        Raises:
            RequestError: too many texts wait (429), or the server is ending (503).
            EmbeddingError: as `Encoder.encode_text`; texts are named by their position.
        """
        texts = list(texts)
        encoder = encoder or self._encoder
        if not texts:
            return TextEmbeddings(np.empty((0, encoder.embed_dim), np.float32), 0)
        if sum(map(len, texts)) <= _CHARACTERS_AT_ONCE:
            known = encoder.text_cache.lookup(texts)
        else:
            known = await asyncio.to_thread(encoder.text_cache.lookup, texts)
        missing: dict[str, int] = {}
        for position, text in enumerate(texts):
            if text not in known:
                missing.setdefault(text, position)
        if missing:
            known |= await self._texts.embed(encoder, missing, wait=wait)
        return _collected([known[text] for text in texts])

    async def embed_images(
        self, images: Sequence[bytes], *, wait: bool = False, encoder: Encoder | None = None
    ) -> Embeddings:
        """Return unit embeddings (B, D) of image files, equal to `Encoder.encode_image`.

        Args:
            images: contents of files.
            wait: as for texts.
            encoder: as for texts.

        Raises:
            RequestError: a file is too large (413), too many images wait (429), or the server is
                ending (503).
            ImageError: an image cannot be opened or has too many pixels; the message names its
                position.
            EmbeddingError: as `Encoder.encode_image`.
        """
        return await self._images.embed(encoder or self._encoder, images, wait=wait)

    async def warm(self) -> None:
        """Load both towers, and encode an image and a text.

        Raises:
            PocketclipError: the model does not work.
        """
        await asyncio.to_thread(_warm, self._encoder)

    async def replace(self, encoder: Encoder) -> None:
        """Answer with another model from now on; calls that were made before get the old one.

        Its towers are loaded, and each has encoded something, before the switch. The cache of texts
        belongs to the model.

        Raises:
            PocketclipError: the model does not work; the old one stays.
        """
        await asyncio.to_thread(_warm, encoder)
        old = self._encoder.text_cache
        self._hits, self._misses = self._hits + old.hits, self._misses + old.misses
        self._encoder = encoder

    async def close(self) -> None:
        """End the workers; calls that wait get a RequestError (503)."""
        self._images.close()
        self._texts.close()


def _collected(entries: Sequence[CachedText]) -> TextEmbeddings:
    rows = np.stack([entry.embedding for entry in entries])
    unit = unit_length(rows, lambda row: f"text {row} (counted from 0)")
    return TextEmbeddings(unit, sum(entry.tokens for entry in entries))


def _warm(encoder: Encoder) -> None:
    side = encoder.config.image_size
    photo = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(photo, "JPEG")
    encoder.encode_image([photo.getvalue()], normalize=False)
    ids = encoder.tokenizer(["a photo"], encoder.config.text.context_length)
    encoder.encode_ids(ids, normalize=False)
