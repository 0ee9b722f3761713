"""Batches: for each sample the augmentation to replay, the captions and the teachers' embeddings.

Choices are pure functions of (seed, epoch, uid). A sample that cannot be used is replaced by
another one, chosen by the position alone, and named in the batch.

Shapes: B batch, S side of the image, T tokens, D the sum of the teachers' dimensions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pocketclip import zoo
from pocketclip.augment import Augmentation, Params, rng_for
from pocketclip.errors import (
    AugmentationError,
    ConfigError,
    DataError,
    ImageError,
    PocketclipError,
    TokenizerError,
)
from pocketclip.images import read_size
from pocketclip.shards.layout import MORE
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.balance import BalancedOrder
from pocketclip.train.batch_types import Batch, DataConfig, longest_text, normalise
from pocketclip.train.device_views import View, Views
from pocketclip.train.order import Location, Order
from pocketclip.train.raw_pairs import PairSource
from pocketclip.train.rendered_views import check_views, read_view
from pocketclip.train.replay import AugmentationReplay, size_of
from pocketclip.train.sections import caption_kinds, uses_captions
from pocketclip.train.sources import ShardError, ShardSource, augmentation_of
from pocketclip.types import Embeddings, Sample

__all__ = ["Batch", "Batches", "DataConfig", "normalise"]
_ATTEMPTS = 16
_DRAWS = 64  # where images may be too small
_SMALL_ATTEMPTS = 10_000  # reading a header takes some 50 microseconds
_GOLDEN = 0x9E3779B97F4A7C15
"""The golden ratio's fraction, times 2^64."""
_OPEN_CLIP_AUGMENTATION: dict[str, Any] = {
    "random_resized_crop": {"size": 224, "scale": [0.9, 1.0], "interpolation": "bicubic"}
}
"""open_clip's augmentation, for data without stored ones."""


class _TooSmallError(DataError):
    """The image is smaller than `data.min_image_side`."""

    def __init__(self, side: int) -> None:
        super().__init__(f"its shorter side has {side} pixels")
        self.side = side


_UNUSABLE_SAMPLE = (DataError, ImageError, AugmentationError, TokenizerError)


@dataclass(slots=True)
class _Row:
    """One row of a batch: the pixels, captions and embeddings chosen of a sample."""

    uid: str
    pixels: NDArray[np.uint8] | View
    texts: list[str]
    teacher_image: Embeddings | None
    teacher_captions: list[Embeddings | None]
    too_small: int = 0
    """Number of samples whose place it takes because of their size."""


@dataclass(frozen=True, slots=True)
class _Captions:
    """The captions chosen for a row, and the sample that they are stored with."""

    owner: Sample
    chosen: list[tuple[str, str, int]]
    """Text, key, and index under that key."""


def _random_words(seed: int, epoch: int, uid: str) -> list[int]:
    """Return three random words of 64 bits, a pure function of the arguments."""
    identity = json.dumps(["sample", seed, epoch, uid]).encode("ascii")
    digest = hashlib.sha256(identity).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16)]


class Batches(Dataset["Batch | PocketclipError"]):
    """A torch dataset whose item k is batch k; each worker process has a copy."""

    def __init__(
        self,
        config: DataConfig,
        source: ShardSource | PairSource,
        order: Order | BalancedOrder,
        model: zoo.ModelConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        self.config, self.source, self.order = config, source, order
        self.batch_size, self.seed = batch_size, seed
        self.context = model.text.context_length
        self.kinds = caption_kinds(config.captions)
        self.width = sum(source.index.teacher_dims) if source.index else 0
        self.tokenizer = Tokenizer(warn=False)
        self.pattern = re.compile(config.caption_pattern)
        made = source.materialised if isinstance(source, ShardSource) else None
        if made is not None:
            check_views(made, model.image_size, config)
        if config.reinforced:
            augmentation = augmentation_of(source, config.source)
        else:
            augmentation = Augmentation.from_config(
                config.image_augmentation or _OPEN_CLIP_AUGMENTATION
            )
        fast = config.replay == "fast"
        self.replay = AugmentationReplay(augmentation, model.image_size, fast=fast)

    def __getitem__(self, number: int) -> Batch | PocketclipError:
        # Torch would wrap a worker's error in a message of many lines, so errors are returned.
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
        images, views = self._images([row.pixels for row in rows])
        teacher_rows = [row.teacher_image for row in rows if row.teacher_image is not None]
        columns = zip(*(row.teacher_captions for row in rows), strict=True)
        return Batch(
            images=images.permute(0, 3, 1, 2),
            views=views,
            captions=ids,
            uids=[row.uid for row in rows],
            texts=texts,
            kinds=list(self.kinds),
            text_length=longest_text(ids),
            teacher_image=torch.from_numpy(np.stack(teacher_rows)) if teacher_rows else None,
            teacher_captions=[
                None if column[0] is None else torch.from_numpy(np.stack(column))
                for column in columns
            ],
            skipped=skipped,
            too_small=sum(row.too_small for row in rows),
        )

    def _images(self, pixels: list[Any]) -> tuple[Tensor, Views | None]:
        """Return the images (B, S, S, 3), or what the device makes them of."""
        if self.config.replay != "device":
            return torch.from_numpy(np.stack(pixels)), None
        shape, replay = (len(pixels), self.replay.size, self.replay.size, 3), self.replay
        views = Views.pack(
            pixels, size=replay.size, interpolation=replay.interpolation or "bilinear",
            slots=replay.slots,
        )  # fmt: skip
        return torch.empty(shape, dtype=torch.uint8, device="meta"), views

    def sample(self, position: int, skipped: list[tuple[str, str]]) -> _Row:
        """Return the sample at a position, or the first usable replacement for it.

        Args:
            position: in the order of this process.
            skipped: uid and reason of each sample that cannot be used are appended.

        Raises:
            ConfigError: there is no other sample to take a caption from.
            DataError: many samples in a row cannot be used or are too small, or a shard is
                damaged.
            StorageError: a store cannot be reached.
        """
        sides: dict[Location, int] = {}
        too_small = 0
        reason, failures = "", 0
        for attempt, location in enumerate(self._candidates(position)):
            uid = f"{location.index} of shard {location.shard}"
            try:
                captions = None
                if self.config.captions == "random":
                    other = self._find_other(position, attempt, location)
                    uid = f"{other.index} of shard {other.shard}"
                    lender = self.source.read_captions(other.shard, other.index)
                    uid = lender.uid
                    captions = self._choose_captions(lender, self._words(lender, other))
                    uid = f"{location.index} of shard {location.shard}"
                sample = self.source.read(location.shard, location.index)
                uid = sample.uid
                row = self._make_row(sample, location, captions)
                row.too_small = too_small
                return row
            except ShardError:
                raise
            except _TooSmallError as error:
                sides[location] = error.side
                too_small += 1
            except _UNUSABLE_SAMPLE as error:
                reason, failures = str(error), failures + 1
                skipped.append((uid, reason))
                if failures == _ATTEMPTS:
                    break
        if failures < _ATTEMPTS:
            raise DataError(
                f"{self.config.source}: none of {len(sides):,} images has a shorter side of "
                f"data.min_image_side={self.config.min_image_side} pixels or more (the largest: "
                f"{max(sides.values(), default=0)}); set a lower one"
            )
        raise DataError(
            f"{self.config.source}: {_ATTEMPTS} samples in a row cannot be used; the last one, "
            f"{skipped[-1][0]}: {reason}"
        )

    def _candidates(self, position: int) -> Iterator[Location]:
        """Yield where the sample at a position is stored, then its replacements.

        These are random ones. Where most images are too small, all of the window follow, from a
        random one on: the same replacement for neighbours would be its own negative.
        """
        small = self.config.min_image_side > 0
        for attempt in range(_DRAWS if small else _ATTEMPTS):
            yield self.order.at(position, attempt)
        if small:
            window = self.order.window(position)
            start = _random_words(self.seed, window.start, str(position))[0] % len(window)
            for other in itertools.islice(
                itertools.chain(window[start:], window[:start]), _SMALL_ATTEMPTS
            ):
                yield self.order.at(other)

    def _find_other(self, position: int, attempt: int, location: Location) -> Location:
        """Return where the sample is stored whose caption the one at `location` gets.

        It is half a window further on. Captions that are only exchanged within a batch would not
        change the distillation loss, which does not depend on the order of the texts.
        """
        window = self.order.window(position)
        first, size = window.start, len(window)
        for step in range(attempt, attempt + size):
            other = self.order.at(first + (position - first + size // 2 + step) % size)
            if (other.shard, other.index) != (location.shard, location.index):
                return other
        raise ConfigError(
            f"{self.config.source}: data.captions=random takes the caption of another sample, but "
            "a process has only one to choose from; give more data, or choose other captions"
        )

    def _words(self, sample: Sample, location: Location) -> list[int]:
        """Return the random words that choose a sample's view, its caption and that one's kind."""
        repeat = location.repeat
        words = _random_words(self.seed, location.epoch, sample.uid)
        if repeat:
            # The next stored view and caption; for the kind of caption, the golden ratio's
            # sequence, which keeps any ratio.
            words = [words[0] + repeat, words[1] + repeat, (words[2] + repeat * _GOLDEN) % 2**64]
        return words

    def _make_row(
        self, sample: Sample, location: Location, captions: _Captions | None = None
    ) -> _Row:
        """Return the row of a sample, with its own captions or those of another one."""
        epoch, repeat = location.epoch, location.repeat
        words = self._words(sample, location)
        if captions is None:
            captions = self._choose_captions(sample, words)
        texts = [text for text, _, _ in captions.chosen]
        image = self.source.image(sample) if sample.views is None else b""
        side = min(read_size(image)) if self.config.min_image_side else 0
        if side < self.config.min_image_side:
            raise _TooSmallError(side)
        if not self.config.reinforced:
            size = size_of(image)
            draw = rng_for(self.seed, sample.uid, epoch + (repeat << 32))
            pixels = self._replayed(image, self.replay.stored.draw(draw, size))
            return _Row(sample.uid, pixels, texts, None, [])
        views = sample.views or sample.param_aug
        if not views:
            raise DataError("it has no stored augmentation")
        random = self.config.augmentation == "random"
        number = (words[0] if random else epoch + repeat) % len(views)
        if sample.views is None:
            pixels = self._replayed(image, self.replay.stored.unpack(views[number]))
        else:
            pixels = read_view(views[number], self.replay.size)
        if not self.config.embeddings:
            return _Row(sample.uid, pixels, texts, None, [])
        rows = [
            self._embedding(captions.owner, f"{key}_emb", index) if used else None
            for (_, key, index), used in zip(
                captions.chosen,
                uses_captions(self.config.distill_captions, self.kinds),
                strict=True,
            )
        ]
        return _Row(sample.uid, pixels, texts, self._embedding(sample, "image_emb", number), rows)

    def _replayed(self, image: bytes, params: Params) -> NDArray[np.uint8] | View:
        if self.config.replay == "device":
            return self.replay.view(image, params)
        return self.replay.apply(image, params)

    def _embedding(self, sample: Sample, key: str, index: int) -> Embeddings:
        rows = sample.embeddings.get(key)
        if rows is None or index >= len(rows):
            raise DataError(f"it has no embedding {index} under {key}")
        row: Embeddings = rows[index]
        if self.width and len(row) != self.width:
            raise DataError(
                f"{key} has {len(row)} dimensions, the teachers together have {self.width}"
            )
        if not np.isfinite(row).all():
            raise DataError(f"{key} has non-finite values")
        return row

    def _choose_captions(self, sample: Sample, words: list[int]) -> _Captions:
        """Return the captions of a sample that are used, by `data.captions`."""
        config = self.config
        kinds = config.captions
        if kinds == "mix":
            kinds = "truth" if words[2] < config.truth_ratio * 2.0**64 else "synthetic"
        out = []
        if kinds in ("both", "truth"):
            truth = sample.captions.get("text")
            if not truth:
                raise DataError("it has no ground-truth caption")
            out.append((truth[0], "text", 0))
        if kinds in ("both", "synthetic", "random"):
            synthetic = [
                (text, key, index)
                for key, texts in sample.captions.items()
                if key not in ("text", MORE) and self.pattern.search(key)
                for index, text in enumerate(texts)
            ]
            if not synthetic:
                raise DataError(
                    f"no synthetic caption's key matches {config.caption_pattern!r} (the keys: "
                    f"{', '.join(sorted(sample.captions.keys() - {'text'})) or 'none'}; set "
                    "data.captions=truth to train without them)"
                )
            out.append(synthetic[words[1] % len(synthetic)])
        return _Captions(sample, out)
