"""Calls of the engine for one request: texts and images at the same time, errors named by field.

Shapes: B texts or images, D embedding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pocketclip.embeddings import image_name
from pocketclip.errors import ImageError
from pocketclip.serve.encoding.engine import Engine, TextEmbeddings
from pocketclip.serve.errors import RequestError
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

A = TypeVar("A")
B = TypeVar("B")


async def embed_both(
    texts: Sequence[str], images: Mapping[str, bytes], engine: Engine, encoder: Encoder
) -> tuple[TextEmbeddings, Embeddings]:
    """Return unit embeddings (B, D) of texts, and of image files.

    If one of the two fails, the other is dropped.

    Args:
        texts: may be none.
        images: by the names of their fields; may be none.
        engine: what embeds.
        encoder: the model; the same for both, though the engine may get another one meanwhile.

    Raises:
        RequestError: 400, a file is no image; or as `Engine.embed_texts` and `embed_images`.
        EmbeddingError: as `Engine.embed_texts` and `embed_images`.
    """
    return await both(_embed_texts(texts, engine, encoder), embed_images(images, engine, encoder))


async def both(one: Awaitable[A], other: Awaitable[B]) -> tuple[A, B]:
    """Return what both return; if one fails or the request is cancelled, the other is cancelled."""
    first, second = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        return await asyncio.gather(first, second)
    finally:
        first.cancel()
        second.cancel()


async def _embed_texts(texts: Sequence[str], engine: Engine, encoder: Encoder) -> TextEmbeddings:
    if not texts:
        return TextEmbeddings(np.empty((0, encoder.embed_dim), np.float32), 0)
    return await engine.embed_texts(texts, encoder=encoder)


async def embed_images(images: Mapping[str, bytes], engine: Engine, encoder: Encoder) -> Embeddings:
    """Return unit embeddings (B, D) of image files; arguments and errors as for `embed_both`."""
    if not images:
        return np.empty((0, encoder.embed_dim), np.float32)
    try:
        return await engine.embed_images(list(images.values()), encoder=encoder)
    except ImageError as error:
        if error.index is None:
            raise
        name = list(images)[error.index]
        reason = str(error).removeprefix(f"{image_name(None, error.index)}: ")
        raise RequestError(400, f"{name}: {reason}", param=name) from error
