"""What becomes of a sample: which view, which caption, which embeddings; and batches of them.

Choices are pure functions of (seed, epoch, uid). A sample that cannot be used is replaced by
another one, which its position decides, and is named in the batch.

Shapes: B batch, S side of the image, T tokens, D the teachers' dimensions together.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pocketclip import zoo
from pocketclip.augment import Augmentation, rng_for
from pocketclip.errors import (
    AugmentationError,
    DataError,
    ImageError,
    PocketclipError,
    TokenizerError,
)
from pocketclip.shards.layout import MORE
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.order import WINDOW, Order
from pocketclip.train.rawpairs import PairSource
from pocketclip.train.sources import ShardError, ShardSource, augmentation_of
from pocketclip.train.views import View, size_of
from pocketclip.types import Embeddings, Sample

_ATTEMPTS = 16
_PLAIN: dict[str, Any] = {
    "random_resized_crop": {"size": 224, "scale": [0.9, 1.0], "interpolation": "bicubic"}
}
"""open_clip's augmentation, for data without stored ones."""
_BAD = (DataError, ImageError, AugmentationError, TokenizerError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What of which samples is used; the fields are those of a recipe's `data`."""

    source: str | tuple[str, ...]
    reinforced: bool = True
    embeddings: bool = True
    """With `reinforced`: whether the stored embeddings are wanted."""
    captions: Literal["both", "mix", "truth", "synthetic"] = "both"
    truth_ratio: float = 0.5
    caption_pattern: str = ".*"
    augmentation: Literal["random", "sequential"] = "random"
    image_augmentation: dict[str, Any] | None = None
    fast: bool = False
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    where: dict[str, str] = field(default_factory=dict)
    cache_dir: str | None = None
    shuffle_window: int = WINDOW
    """Samples among which a process shuffles; shards are shuffled as wholes beyond it."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """Samples of one step, or of one micro-batch, and process."""

    images: Tensor
    """uint8 (B, 3, S, S), before `normalise`; in memory the channels lie together."""
    captions: list[Tensor]
    """One or two of int64 (B, T)."""
    uids: list[str]
    texts: list[list[str]] = field(default_factory=list)
    """The captions as they were."""
    teacher_image: Tensor | None = None
    """float32 (B, D), of the views in `images`."""
    teacher_captions: list[Tensor] = field(default_factory=list)
    """float32 (B, D) each, parallel to `captions`."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Samples that others stand in for, and why."""

    def pin_memory(self) -> Batch:
        """Put the tensors where a GPU can fetch them; the data loader calls this."""
        self.images = self.images.pin_memory()
        self.captions = [ids.pin_memory() for ids in self.captions]
        if self.teacher_image is not None:
            self.teacher_image = self.teacher_image.pin_memory()
        self.teacher_captions = [rows.pin_memory() for rows in self.teacher_captions]
        return self


def normalise(images: Tensor, preprocess: zoo.PreprocessConfig) -> Tensor:
    """Return what the image tower takes, float32 (B, 3, S, S), of uint8 images."""
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    mean = pixels.new_tensor(preprocess.mean).view(3, 1, 1)
    std = pixels.new_tensor(preprocess.std).view(3, 1, 1)
    plain = preprocess.mean == (0.0, 0.0, 0.0) and preprocess.std == (1.0, 1.0, 1.0)
    # A processor takes one image after the other, which its cache holds; an accelerator all.
    parts = zip(pixels, images, strict=True) if images.is_cpu else [(pixels, images)]
    for out, given in parts:
        out.copy_(given).div_(255)
        if not plain:
            out.sub_(mean).div_(std)
    return pixels


@dataclass(slots=True)
class _Chosen:
    """What is used of one sample."""

    uid: str
    pixels: NDArray[np.uint8]
    texts: list[str]
    teacher_image: Embeddings | None
    teacher_captions: list[Embeddings]


def _chance(seed: int, epoch: int, uid: str) -> list[int]:
    """Return three random words of 64 bits, a pure function of the arguments."""
    identity = json.dumps(["sample", seed, epoch, uid]).encode("ascii")
    digest = hashlib.sha256(identity).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16)]


class Batches(Dataset["Batch | PocketclipError"]):
    """Batch k by its number; a copy of this is in each worker."""

    def __init__(
        self,
        config: DataConfig,
        source: ShardSource | PairSource,
        order: Order,
        model: zoo.ModelConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        self.config, self.source, self.order = config, source, order
        self.batch_size, self.seed = batch_size, seed
        self.context = model.text.context_length
        self.width = sum(source.index.teacher_dims) if source.index else 0
        self.tokenizer = Tokenizer(warn=False)
        self.pattern = re.compile(config.caption_pattern)
        if config.reinforced:
            augmentation = augmentation_of(source, config.source)
        else:
            augmentation = Augmentation.from_config(config.image_augmentation or _PLAIN)
        self.view = View(augmentation, model.image_size, fast=config.fast)

    def __getitem__(self, number: int) -> Batch | PocketclipError:
        # Torch would wrap what a worker raises in a text of many lines: errors come as values.
        try:
            return self._batch(number)
        except PocketclipError as error:
            return error

    def _batch(self, number: int) -> Batch:
        skipped: list[tuple[str, str]] = []
        first = number * self.batch_size
        rows = [self.sample(first + i, skipped) for i in range(self.batch_size)]
        texts = [list(column) for column in zip(*(row.texts for row in rows), strict=True)]
        ids = [torch.from_numpy(self.tokenizer(column, self.context)) for column in texts]
        images = np.stack([row.pixels for row in rows])
        teacher_rows = [row.teacher_image for row in rows if row.teacher_image is not None]
        columns = zip(*(row.teacher_captions for row in rows), strict=True)
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            captions=ids,
            uids=[row.uid for row in rows],
            texts=texts,
            teacher_image=torch.from_numpy(np.stack(teacher_rows)) if teacher_rows else None,
            teacher_captions=[torch.from_numpy(np.stack(column)) for column in columns],
            skipped=skipped,
        )

    def sample(self, position: int, skipped: list[tuple[str, str]]) -> _Chosen:
        """Return the sample at a position, or the first usable one that can stand in for it."""
        reason = ""
        for attempt in range(_ATTEMPTS):
            place = self.order.at(position, attempt)
            uid = f"{place.index} of shard {place.shard}"
            try:
                sample = self.source.read(place.shard, place.index)
                uid = sample.uid
                return self._chosen(sample, place.epoch)
            except ShardError:
                raise
            except _BAD as error:
                reason = str(error)
                skipped.append((uid, reason))
        raise DataError(
            f"{self.config.source}: {_ATTEMPTS} samples in a row cannot be used; the last one, "
            f"{skipped[-1][0]}: {reason}"
        )

    def _chosen(self, sample: Sample, epoch: int) -> _Chosen:
        chance = _chance(self.seed, epoch, sample.uid)
        captions = self._captions(sample, chance)
        image = self.source.image(sample)
        if not self.config.reinforced:
            size = size_of(image)
            params = self.view.stored.draw(rng_for(self.seed, sample.uid, epoch), size)
            pixels = self.view.apply(image, params)
            texts = [text for text, _, _ in captions]
            return _Chosen(sample.uid, pixels, texts, None, [])
        views = sample.param_aug
        if not views:
            raise DataError("no stored augmentation")
        number = (chance[0] if self.config.augmentation == "random" else epoch) % len(views)
        pixels = self.view(image, views[number])
        texts = [text for text, _, _ in captions]
        if not self.config.embeddings:
            return _Chosen(sample.uid, pixels, texts, None, [])
        rows = [self._row(sample, f"{key}_emb", index) for _, key, index in captions]
        return _Chosen(sample.uid, pixels, texts, self._row(sample, "image_emb", number), rows)

    def _row(self, sample: Sample, key: str, index: int) -> Embeddings:
        rows = sample.embeddings.get(key)
        if rows is None or index >= len(rows):
            raise DataError(f"no embedding {index} under {key}")
        row: Embeddings = rows[index]
        if self.width and len(row) != self.width:
            raise DataError(f"{key} has {len(row)} dimensions, the teachers have {self.width}")
        if not np.isfinite(row).all():
            raise DataError(f"{key} has values that are not finite")
        return row

    def _captions(self, sample: Sample, chance: list[int]) -> list[tuple[str, str, int]]:
        """Return the captions to use: text, key, and position under that key."""
        config = self.config
        wanted = config.captions
        if wanted == "mix":
            wanted = "truth" if chance[2] < config.truth_ratio * 2.0**64 else "synthetic"
        out = []
        if wanted in ("both", "truth"):
            truth = sample.captions.get("text")
            if not truth:
                raise DataError("no ground-truth caption")
            out.append((truth[0], "text", 0))
        if wanted in ("both", "synthetic"):
            found = [
                (text, key, index)
                for key, texts in sample.captions.items()
                if key not in ("text", MORE) and self.pattern.search(key)
                for index, text in enumerate(texts)
            ]
            if not found:
                raise DataError(
                    f"no synthetic caption whose key matches {config.caption_pattern!r} (the keys "
                    f"are {', '.join(sorted(sample.captions.keys() - {'text'})) or 'none'}; with "
                    "data.captions=truth none is needed)"
                )
            out.append(found[chance[1] % len(found)])
        return out
