"""Writing captions: nucleus, top-k, greedy and beam search, with keys and values kept.

The conventions are open_clip's: a text begins with the vocabulary's last id but one, ends with its
last, and 0 is padding. Neither the start nor padding is ever chosen.

Shapes: B images, n captions (or beams) per image, R rows (B n), T tokens, S tokens of the image,
C channels, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketclip.caption_settings import Settings
from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.nn.sampling import choose, uniforms
from pocketclip.nn.text import PAD, TextTower
from pocketclip.nn.transformer import Past
from pocketclip.nn.vit import ViT

if TYPE_CHECKING:
    from pocketclip.nn.coca import CoCa

# Below this share of live rows, those that have ended are taken out of the batch; copying the
# keys and values at every ending would cost more than it saves.
_CROWDED = 0.8
_ROWS = 16  # drawn for at a time, so that their weights stay in the cache


def generate(
    model: CoCa,
    pixels: Tensor | NDArray[Any] | None = None,
    *,
    image_tokens: Tensor | None = None,
    captions_per_image: int = 1,
    seeds: Sequence[int] | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Write captions.

    Args:
        model: the captioner; used in evaluation mode, and left in the mode that it was in.
        pixels: preprocessed images (B, 3, H, W).
        image_tokens: instead of `pixels`, what `CoCa.image_tokens` returned for them, (B, S, C).
        captions_per_image: n. With beams, the n best texts, best first.
        seeds: B n whole numbers from 0, one per caption: a caption depends on its image and its
            seed and not on what else is in the batch, apart from the rounding of matrix products.
            Default: 0, 1, 2, ... Greedy and beam search draw nothing.
        **settings: see `Settings`.

    Returns:
        B n lists of ids without start, end and padding; captions of one image stand together.

    Raises:
        ConfigError: a setting that does not exist or makes no sense.
        PocketclipError: the model's output is not a number.
        ValueError: both or neither of pixels and image tokens, or a wrong number of seeds.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r} (settings: {', '.join(sorted(known))})")
    chosen = Settings(**settings).checked(model.config.text.context_length)
    if not isinstance(model.image, ViT) or not isinstance(model.text, TextTower):
        raise ConfigError("a compiled model only embeds; write captions with the one it is made of")
    if (pixels is None) == (image_tokens is None):
        raise ValueError("give pixels or image_tokens, and not both")
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if image_tokens is None:
                assert pixels is not None
                image_tokens = model.image_tokens(model._tensor(pixels).to(model.logit_scale))
            tokens = image_tokens.to(model.logit_scale)
            if chosen.method == "beam":
                return _beam(model, tokens, chosen, captions_per_image)
            return _sample(model, tokens, chosen, captions_per_image, seeds)
    finally:
        model.train(was_training)


class _State:
    """The texts so far: their ids, and the keys and values of every layer."""

    def __init__(self, model: CoCa, image_tokens: Tensor, per_image: int, settings: Settings):
        self.model, self.settings = model, settings
        vocabulary = model.config.text.vocab_size
        self.start, self.end = vocabulary - 2, vocabulary - 1
        rows = len(image_tokens) * per_image
        self.ids = torch.full((rows, 1), self.start, device=image_tokens.device)
        self._seen = model.decoder.keys_values(image_tokens)
        self._text = [Past() for _ in model.text.blocks]
        self._decoder = [Past() for _ in model.decoder.blocks]

    @property
    def may_end(self) -> bool:
        return self.ids.shape[1] >= self.settings.min_length

    @property
    def is_full(self) -> bool:
        """Whether nothing but the end can follow."""
        return self.ids.shape[1] >= self.settings.max_length - 1

    def logits(self) -> Tensor:
        """Read the last ids; return what follows, float32 (R, V)."""
        x = self.model.text.step(self.ids[:, -1], self._text)
        logits = self.model.decoder.step(x, self._decoder, self._seen).float()
        if logits.sum().isnan():
            raise PocketclipError(
                f"the captioner's output in {x.dtype} is not a number: its weights are damaged, or "
                "the precision does not do (take float32 or bfloat16)"
            )
        if self.settings.repetition_penalty != 1.0:
            penalty = self.settings.repetition_penalty
            old = logits.gather(1, self.ids)
            logits.scatter_(1, self.ids, torch.where(old < 0, old * penalty, old / penalty))
        return logits if self.settings.temperature == 1.0 else logits / self.settings.temperature

    def forbid(self, scores: Tensor) -> Tensor:
        """Set what cannot follow to minus infinity, in place."""
        scores[:, [PAD, self.start]] = -torch.inf
        if not self.may_end:
            scores[:, self.end] = -torch.inf
        return scores

    def select(self, rows: Tensor, images: Tensor | None = None) -> None:
        """Keep these rows, in their order, and these images, all of them by default."""
        self.ids = self.ids.index_select(0, rows)
        for past in (*self._text, *self._decoder):
            past.select(rows)
        if images is not None:
            self._seen = [
                (keys.index_select(0, images), values.index_select(0, images))
                for keys, values in self._seen
            ]

    def append(self, ids: Tensor) -> None:
        self.ids = torch.cat([self.ids, ids.unsqueeze(1)], dim=1)


def _sample(
    model: CoCa, tokens: Tensor, settings: Settings, n: int, seeds: Sequence[int] | None
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
    draws = uniforms(seeds, settings.max_length)
    nucleus = settings.method == "nucleus"
    cut = {"top_p": settings.top_p} if nucleus else {"top_k": settings.top_k}
    state = _State(model, tokens, n, settings)
    places = np.arange(count).reshape(-1, n)  # which caption each row of the batch is
    live = np.ones_like(places, dtype=bool)
    while not state.is_full:
        logits = state.forbid(state.logits())
        if settings.method == "greedy":
            ids = logits.argmax(-1)
        else:
            draw = torch.from_numpy(draws[places.ravel(), state.ids.shape[1] - 1])
            draw = draw.to(logits.device)
            parts = zip(torch.split(logits, _ROWS), torch.split(draw, _ROWS), strict=True)
            ids = torch.cat([choose(*part, **cut) for part in parts])
        state.append(ids)
        for row, chosen in enumerate(ids.tolist()):
            if live.flat[row]:
                if chosen == state.end:
                    live.flat[row] = False
                else:
                    out[places.flat[row]].append(chosen)
        if not live.any():
            break
        kept = _remaining(live)
        if kept is not None:
            images, rows = kept
            state.select(*(torch.from_numpy(i).to(tokens.device) for i in (rows, images)))
            width = len(rows) // len(images)
            places, live = (a.ravel()[rows].reshape(-1, width) for a in (places, live))
    return out


def _remaining(live: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return which images (B,) and rows (R,) to keep, or None to keep all.

    Every image keeps as many rows as the one with the most live ones, so that the batch stays
    rectangular.
    """
    images = np.flatnonzero(live.any(1))
    width = int(live.sum(1).max())
    if len(images) * width > _CROWDED * live.size:
        return None
    order = np.argsort(~live[images], axis=1, kind="stable")[:, :width]
    return images, (images[:, None] * live.shape[1] + order).ravel()


def _beam(model: CoCa, tokens: Tensor, settings: Settings, n: int) -> list[list[int]]:
    """Beam search: the best of the texts that it comes across, exhaustive with beams enough.

    A text's score is the sum of its ids' log-probabilities, its end's included, divided by their
    number to the power `length_penalty`. What may not follow is excluded without raising the
    probability of the rest. A text cut at `max_length` has no end to count. An image is done when
    none of its beams can come to a better score than what it has.
    """
    beams = settings.beams
    if not 1 <= n <= beams:
        raise ConfigError(f"beam: captions_per_image is 1 to beams ({beams}), not {n}")
    found: list[list[tuple[float, list[int]]]] = [[] for _ in tokens]
    if not found:
        return []
    state = _State(model, tokens, beams, settings)
    images = list(range(len(tokens)))  # which image each group of rows is
    scores = torch.full((len(images), beams), -torch.inf, dtype=torch.float64, device=tokens.device)
    scores[:, 0] = 0.0  # all beams are alike at first: go on from one
    longest = (settings.max_length - 2) ** settings.length_penalty
    while images and not state.is_full:
        length = state.ids.shape[1] ** settings.length_penalty  # of the ids and the next
        logits = state.logits()
        following = state.forbid(_log_softmax(logits)).reshape(len(images), beams, -1)
        total = following.to(scores.device) + scores.unsqueeze(-1)  # (B, n, V)
        if state.may_end:
            _note(found, images, state.ids, total[:, :, state.end] / length, n)
            total[:, :, state.end] = -torch.inf
        scores, best = total.flatten(1).topk(beams, dim=-1)
        parents = (
            best // total.shape[-1] + torch.arange(len(images), device=best.device)[:, None] * beams
        )
        state.select(parents.flatten())
        state.append((best % total.shape[-1]).flatten())
        hopes = (scores[:, 0] / longest).tolist()
        live = [
            place
            for place, (image, hope) in enumerate(zip(images, hopes, strict=True))
            if hope > -np.inf and (len(found[image]) < n or found[image][-1][0] < hope)
        ]
        if len(live) < len(images):
            images = [images[place] for place in live]
            kept = torch.tensor(live, device=tokens.device, dtype=torch.int64)
            scores = scores[kept]
            rows = kept[:, None] * beams + torch.arange(beams, device=tokens.device)
            state.select(rows.flatten(), kept)
    if images:
        _note(found, images, state.ids, scores / longest, n)
    # A vocabulary of a few words may have fewer texts than are asked for.
    return [texts[min(place, len(texts) - 1)][1] for texts in found for place in range(n)]


def _log_softmax(logits: Tensor) -> Tensor:
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.log_softmax(-1, dtype=exact)


def _note(
    found: list[list[tuple[float, list[int]]]],
    images: list[int],
    ids: Tensor,
    scores: Tensor,
    n: int,
) -> None:
    """Put texts (R, T) with scores (B, n) among each image's best n."""
    beams = scores.shape[1]
    for place, (image, row) in enumerate(zip(images, scores.tolist(), strict=True)):
        worst = found[image][-1][0] if len(found[image]) == n else -np.inf
        for beam, score in enumerate(row):
            if score > worst:
                text = ids[place * beams + beam, 1:].tolist()
                found[image].append((score, text))
        found[image] = sorted(found[image], key=lambda text: -text[0])[:n]
