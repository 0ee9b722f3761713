"""Caption generation: nucleus, top-k and greedy sampling and beam search, with a KV cache.

The conventions are open_clip's: the second-to-last id of the vocabulary starts a text, the last
one ends it, and 0 is padding. Neither the start token nor padding is ever sampled.

Shapes: B images, n captions (or beams) per image, R rows (B n), T text tokens, S image tokens,
C channels, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketclip.caption_settings import Settings
from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.nn.decoder import Decoder
from pocketclip.nn.sampling import draw_uniforms, sample_ids
from pocketclip.nn.text import TextTower
from pocketclip.nn.transformer import KVCache
from pocketclip.nn.vit import ViT
from pocketclip.tokenizer import PAD
from pocketclip.zoo import ModelConfig

# Finished rows leave the batch once fewer than this share of the rows is still live. Copying the
# keys and values whenever a row finishes would cost more than it saves.
_COMPACT_BELOW = 0.8
_ROWS_PER_DRAW = 16  # few enough rows that their weights stay in the CPU cache


class Captioner(Protocol):
    """The parts of `pocketclip.nn.coca.CoCa` that generation uses."""

    config: ModelConfig
    image: ViT
    text: TextTower
    decoder: Decoder
    logit_scale: nn.Parameter
    training: bool

    def as_tensor(self, array: Tensor | NDArray[Any]) -> Tensor:
        """Return `array` on the model's device."""
        ...

    def image_tokens(self, pixels: Tensor | NDArray[Any]) -> Tensor:
        """Return the tokens (B, S, C) that the decoder attends to."""
        ...

    def train(self, mode: bool = True) -> Captioner:
        """Set training mode."""
        ...


def generate(
    model: Captioner,
    pixels: Tensor | NDArray[Any] | None = None,
    *,
    image_tokens: Tensor | None = None,
    captions_per_image: int = 1,
    seeds: Sequence[int] | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Generate captions.

    Args:
        model: the captioner. It runs in evaluation mode; its mode is restored afterwards.
        pixels: preprocessed images (B, 3, H, W).
        image_tokens: the result of `CoCa.image_tokens` (B, S, C), in place of `pixels`.
        captions_per_image: n. Beam search returns the n best texts, best first.
        seeds: B n integers of at least 0, one per caption; the default is 0, 1, 2, ... A caption
            depends on its image and its seed only, not on the other captions in the batch, apart
            from the rounding of matrix products. Greedy and beam search use no seeds.
        **settings: fields of `pocketclip.caption_settings.Settings`.

    Returns:
        B n lists of ids without start, end and padding; captions of one image are adjacent.

    Raises:
        ConfigError: an unknown or invalid setting, or a compiled model.
        PocketclipError: the model's output is NaN.
        ValueError: both or neither of `pixels` and `image_tokens`, or a wrong number of seeds.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r} (settings: {', '.join(sorted(known))})")
    chosen = Settings(**settings).checked(model.config.text.context_length)
    if not isinstance(model.image, ViT) or not isinstance(model.text, TextTower):
        raise ConfigError(
            "a compiled model only embeds: generate captions with the model it was compiled from"
        )
    if (pixels is None) == (image_tokens is None):
        raise ValueError("give either pixels or image_tokens")
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            if image_tokens is None:
                assert pixels is not None
                image_tokens = model.image_tokens(model.as_tensor(pixels).to(model.logit_scale))
            tokens = image_tokens.to(model.logit_scale)
            if chosen.method == "beam":
                return _beam(model, tokens, chosen, captions_per_image)
            return _sample(model, tokens, chosen, captions_per_image, seeds)
    finally:
        model.train(was_training)


class _DecodingState:
    """The texts so far: their ids, and the KV cache of every layer."""

    def __init__(self, model: Captioner, image_tokens: Tensor, per_image: int, settings: Settings):
        self.model, self.settings = model, settings
        vocabulary = model.config.text.vocab_size
        self.start, self.end = vocabulary - 2, vocabulary - 1
        rows = len(image_tokens) * per_image
        self.ids = torch.full((rows, 1), self.start, device=image_tokens.device)
        self._image_kv = model.decoder.keys_values(image_tokens)
        self._text_caches = [KVCache() for _ in model.text.blocks]
        self._decoder_caches = [KVCache() for _ in model.decoder.blocks]

    @property
    def can_end(self) -> bool:
        """Whether the texts have the minimum length, so that the end token may follow."""
        return self.ids.shape[1] >= self.settings.min_length

    @property
    def is_full(self) -> bool:
        """Whether only the end token fits within the maximum length."""
        return self.ids.shape[1] >= self.settings.longest - 1

    def logits(self) -> Tensor:
        """Feed the last ids to the model; return the float32 logits (R, V) of the next ones."""
        x = self.model.text.step(self.ids[:, -1], self._text_caches)
        logits = self.model.decoder.step(x, self._decoder_caches, self._image_kv).float()
        if logits.sum().isnan():
            raise PocketclipError(
                f"the captioner's output in {x.dtype} is NaN: its weights are damaged, or it "
                "overflows in this precision (use float32 or bfloat16)"
            )
        if self.settings.repetition_penalty != 1.0:
            penalty = self.settings.repetition_penalty
            old = logits.gather(1, self.ids)
            logits.scatter_(1, self.ids, torch.where(old < 0, old * penalty, old / penalty))
        return logits if self.settings.temperature == 1.0 else logits / self.settings.temperature

    def mask_forbidden(self, scores: Tensor) -> Tensor:
        """Set the scores (R, V) of ids that cannot follow to minus infinity, in place."""
        scores[:, [PAD, self.start]] = -torch.inf
        if not self.can_end:
            scores[:, self.end] = -torch.inf
        return scores

    def select(self, rows: Tensor, images: Tensor | None = None) -> None:
        """Keep the given rows, in that order, and the given images (default: all)."""
        self.ids = self.ids.index_select(0, rows)
        for cache in (*self._text_caches, *self._decoder_caches):
            cache.select(rows)
        if images is not None:
            self._image_kv = [
                (keys.index_select(0, images), values.index_select(0, images))
                for keys, values in self._image_kv
            ]

    def append(self, ids: Tensor) -> None:
        """Append the next id of each row, (R,)."""
        self.ids = torch.cat([self.ids, ids.unsqueeze(1)], dim=1)


def _sample(
    model: Captioner, tokens: Tensor, settings: Settings, n: int, seeds: Sequence[int] | None
) -> list[list[int]]:
    count = len(tokens) * n
    if n < 1 or (settings.method == "greedy" and n > 1):
        raise ConfigError(f"{settings.method}: captions_per_image cannot be {n}")
    seeds = range(count) if seeds is None else seeds
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} captions")
    out: list[list[int]] = [[] for _ in range(count)]
    if not count:
        return out
    draws = draw_uniforms(seeds, settings.longest)
    nucleus = settings.method == "nucleus"
    truncation = {"top_p": settings.top_p} if nucleus else {"top_k": settings.top_k}
    state = _DecodingState(model, tokens, n, settings)
    captions = np.arange(count).reshape(-1, n)  # the caption that each row of the batch holds
    live = np.ones_like(captions, dtype=bool)
    while not state.is_full:
        logits = state.mask_forbidden(state.logits())
        if settings.method == "greedy":
            ids = logits.argmax(-1)
        else:
            draw = torch.from_numpy(draws[captions.ravel(), state.ids.shape[1] - 1])
            draw = draw.to(logits.device)
            chunks = zip(
                torch.split(logits, _ROWS_PER_DRAW), torch.split(draw, _ROWS_PER_DRAW), strict=True
            )
            ids = torch.cat([sample_ids(*chunk, **truncation) for chunk in chunks])
        state.append(ids)
        for row, chosen in enumerate(ids.tolist()):
            if live.flat[row]:
                if chosen == state.end:
                    live.flat[row] = False
                else:
                    out[captions.flat[row]].append(chosen)
        if not live.any():
            break
        selection = _compact(live)
        if selection is not None:
            images, rows = selection
            state.select(*(torch.from_numpy(i).to(tokens.device) for i in (rows, images)))
            width = len(rows) // len(images)
            captions, live = (a.ravel()[rows].reshape(-1, width) for a in (captions, live))
    return out


def _compact(live: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return the indices of the images (B,) and rows (R,) to keep, or None to keep all.

    Every image keeps as many rows as the image with the most live rows, so that the batch stays
    rectangular.
    """
    images = np.flatnonzero(live.any(1))
    width = int(live.sum(1).max())
    if len(images) * width > _COMPACT_BELOW * live.size:
        return None
    order = np.argsort(~live[images], axis=1, kind="stable")[:, :width]
    return images, (images[:, None] * live.shape[1] + order).ravel()


def _beam(model: Captioner, tokens: Tensor, settings: Settings, n: int) -> list[list[int]]:
    """Search with beams for the texts of highest score; with enough beams, exhaustively.

    The score of a text is the sum of the log-probabilities of its ids, end token included, divided
    by their number to the power `length_penalty`. Forbidden ids are excluded without renormalising
    the other probabilities. A text cut at `max_length` has no end token to count. An image is done
    once none of its beams can exceed the scores of its n finished texts.
    """
    beams = settings.beams
    if not 1 <= n <= beams:
        raise ConfigError(f"beam: captions_per_image is 1 to beams ({beams}), not {n}")
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in tokens]
    if not finished:
        return []
    state = _DecodingState(model, tokens, beams, settings)
    images = list(range(len(tokens)))  # the image of each group of rows
    scores = torch.full((len(images), beams), -torch.inf, dtype=torch.float64, device=tokens.device)
    scores[:, 0] = 0.0  # all beams start equal: continue from one of them
    longest = (settings.longest - 2) ** settings.length_penalty
    while images and not state.is_full:
        length = state.ids.shape[1] ** settings.length_penalty  # counts the next id
        logits = state.logits()
        following = state.mask_forbidden(_log_softmax(logits)).reshape(len(images), beams, -1)
        total = following.to(scores.device) + scores.unsqueeze(-1)  # (B, n, V)
        if state.can_end:
            _add_finished(finished, images, state.ids, total[:, :, state.end] / length, n)
            total[:, :, state.end] = -torch.inf
        scores, best = total.flatten(1).topk(beams, dim=-1)
        parents = (
            best // total.shape[-1] + torch.arange(len(images), device=best.device)[:, None] * beams
        )
        state.select(parents.flatten())
        state.append((best % total.shape[-1]).flatten())
        bounds = (scores[:, 0] / longest).tolist()  # no continuation scores higher
        live = [
            group
            for group, (image, bound) in enumerate(zip(images, bounds, strict=True))
            if bound > -np.inf and (len(finished[image]) < n or finished[image][-1][0] < bound)
        ]
        if len(live) < len(images):
            images = [images[group] for group in live]
            groups = torch.tensor(live, device=tokens.device, dtype=torch.int64)
            scores = scores[groups]
            rows = groups[:, None] * beams + torch.arange(beams, device=tokens.device)
            state.select(rows.flatten(), groups)
    if images:
        _add_finished(finished, images, state.ids, scores / longest, n)
    # A vocabulary of a few words may have fewer than n texts: repeat the last one.
    return [texts[min(rank, len(texts) - 1)][1] for texts in finished for rank in range(n)]


def _log_softmax(logits: Tensor) -> Tensor:
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.log_softmax(-1, dtype=exact)


def _add_finished(
    finished: list[list[tuple[float, list[int]]]],
    images: list[int],
    ids: Tensor,
    scores: Tensor,
    n: int,
) -> None:
    """Merge texts (R, T) with scores (B, beams) into each image's n best, best first."""
    beams = scores.shape[1]
    for group, (image, row) in enumerate(zip(images, scores.tolist(), strict=True)):
        worst = finished[image][-1][0] if len(finished[image]) == n else -np.inf
        for beam, score in enumerate(row):
            if score > worst:
                text = ids[group * beams + beam, 1:].tolist()
                finished[image].append((score, text))
        finished[image] = sorted(finished[image], key=lambda text: -text[0])[:n]
