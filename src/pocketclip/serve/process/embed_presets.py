"""Embeds the presets of the pages after a server's start, so that they need no text tower."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pocketclip.infer.encoder import Encoder
from pocketclip.pages.presets import encode_presets, preset_prompts

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle
    from pocketclip.serve.services import Services
    from pocketclip.types import Embeddings


async def embed_presets(services: Services) -> None:
    """Embed the presets for every model that is offered, one after the other.

    Raises:
        PocketclipError: a model does not work.
        RequestError: the server is ending.
    """
    prompts = preset_prompts()
    for model in services.offer.models:
        if model.space_id in services.offer.presets:
            continue
        encoder = services.engine.encoder
        if encoder.space_id == model.space_id:
            found = await services.engine.embed_texts(prompts, wait=True, encoder=encoder)
            embeddings = found.embeddings
        else:
            embeddings = await asyncio.to_thread(
                _embed, model.most_precise, prompts, services.settings.threads
            )
        content = encode_presets(model.space_id, prompts, embeddings)
        services.offer = services.offer.with_presets(model.space_id, content)


def _embed(bundle: Bundle, prompts: Sequence[str], threads: int | None) -> Embeddings:
    encoder = Encoder(bundle, "onnxruntime", threads=threads, memory_arena=False)
    return encoder.encode_text(prompts)
