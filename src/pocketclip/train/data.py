"""Batches for training: an endless stream, of which any part can be computed at any time.

    with Loader(DataConfig(source="dr"), model=config, batch_size=256, seed=0, workers=4) as loader:
        for batch in loader.batches(start=1000):
            ...

Batch k is a pure function of (data, configuration, seed, world size, rank, k): its samples by
`pocketclip.train.order`, and for each the stored augmentation and the caption by (seed, epoch, uid).
The number of workers changes nothing. A sample that cannot be used is replaced by another one,
which its position decides, and is named in the batch.

Shapes: B batch, S side of the image, T tokens, D the teachers' dimensions together.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pocketclip import zoo
from pocketclip.augment import Augmentation, rng_for
from pocketclip.errors import (
    AugmentationError,
    ConfigError,
    DataError,
    ImageError,
    TokenizerError,
)
from pocketclip.pairs import PairOptions
from pocketclip.shards.sample import MORE
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.order import WINDOW, Order, words
from pocketclip.train.sources import PairSource, ShardSource, augmentation_of, open_source
from pocketclip.train.views import View, decode
from pocketclip.types import Sample

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
    """uint8 (B, 3, S, S), before `normalise`."""
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
    """Return what the image tower takes, float32 (B, 3, S, S), of uint8 images, wherever they are."""
    pixels = images.to(torch.float32).div_(255)
    if preprocess.mean != (0.0, 0.0, 0.0) or preprocess.std != (1.0, 1.0, 1.0):
        mean = pixels.new_tensor(preprocess.mean).view(1, 3, 1, 1)
        std = pixels.new_tensor(preprocess.std).view(1, 3, 1, 1)
        pixels = pixels.sub_(mean).div_(std)
    return pixels


@dataclass(slots=True)
class _Chosen:
    """What is used of one sample."""

    uid: str
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    texts: list[str]
    teacher_image: np.ndarray[Any, np.dtype[np.float32]] | None
    teacher_captions: list[np.ndarray[Any, np.dtype[np.float32]]]


class _Batches(Dataset[Batch]):
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
        self.tokenizer = Tokenizer(warn=False)
        self.pattern = re.compile(config.caption_pattern)
        if config.reinforced:
            augmentation = augmentation_of(source, config.source)
        else:
            augmentation = Augmentation.from_config(config.image_augmentation or _PLAIN)
        self.view = View(augmentation, model.image_size, fast=config.fast)

    def __getitem__(self, number: int) -> Batch:
        skipped: list[tuple[str, str]] = []
        first = number * self.batch_size
        rows = [self._sample(first + i, skipped) for i in range(self.batch_size)]
        texts = [list(column) for column in zip(*(row.texts for row in rows), strict=True)]
        ids = [torch.from_numpy(self.tokenizer(column, self.context)) for column in texts]
        images = np.stack([row.pixels for row in rows])
        taught: Tensor | None = None
        if rows[0].teacher_image is not None:
            taught = torch.from_numpy(np.stack([row.teacher_image for row in rows]))  # type: ignore[arg-type]
        columns = zip(*(row.teacher_captions for row in rows), strict=True)
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            captions=ids,
            uids=[row.uid for row in rows],
            texts=texts,
            teacher_image=taught,
            teacher_captions=[torch.from_numpy(np.stack(column)) for column in columns],
            skipped=skipped,
        )

    def _sample(self, position: int, skipped: list[tuple[str, str]]) -> _Chosen:
        """Return the sample at a position, or the first usable one that can stand in for it."""
        reason = ""
        for attempt in range(_ATTEMPTS):
            place = self.order.at(position, attempt)
            uid = f"{place.index} of shard {place.shard}"
            try:
                sample = self.source.read(place.shard, place.index)
                uid = sample.uid
                return self._chosen(sample, place.epoch)
            except _BAD as error:
                reason = str(error)
                skipped.append((uid, reason))
        raise DataError(
            f"{self.config.source}: {_ATTEMPTS} samples in a row cannot be used; the last one, "
            f"{skipped[-1][0]}: {reason}"
        )

    def _chosen(self, sample: Sample, epoch: int) -> _Chosen:
        chance = [int(word) for word in words(3, "sample", self.seed, epoch, sample.uid)]
        captions = self._captions(sample, chance)
        image = self.source.image(sample)
        if not self.config.reinforced:
            whole = decode(image)
            params = self.view.stored.draw(rng_for(self.seed, sample.uid, epoch), whole.size)
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
        rows = [_row(sample, f"{key}_emb", index) for _, key, index in captions]
        return _Chosen(sample.uid, pixels, texts, _row(sample, "image_emb", number), rows)

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
                    f"are {', '.join(sorted(sample.captions.keys() - {'text'})) or 'none'})"
                )
            out.append(found[chance[1] % len(found)])
        return out


def _row(sample: Sample, key: str, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = sample.embeddings.get(key)
    if rows is None or index >= len(rows):
        raise DataError(f"no embedding {index} under {key}")
    row: np.ndarray[Any, np.dtype[np.float32]] = rows[index]
    return row


class _From(Sampler[int]):
    """The numbers from `start`, without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class Loader:
    """The stream of one process; a context manager.

    Args:
        config: what is used.
        model: for image size and context length.
        batch_size: B, of this process and step or micro-batch.
        seed: of order and choices.
        rank, world_size: which process of how many.
        workers: processes that read, decode and tokenise; 0 does it in this one.
        prefetch: batches that each worker may be ahead.

    Attributes:
        samples: in the whole set.
        index_hash: changes when the data do.
        teacher_dims: the width of each teacher's part of an embedding; empty if not known.
        teacher_scales: each teacher's logit scale, None where it is not known.

    Raises:
        ConfigError: a pattern or column that makes no sense.
        DataError: no data, or none that can be used.
        StorageError: they cannot be reached.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        model: zoo.ModelConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        try:
            re.compile(config.caption_pattern)
        except re.error as error:
            raise ConfigError(f"data.caption_pattern {config.caption_pattern!r}: {error}") from error
        options = PairOptions(
            image_column=config.image_column,
            caption_columns=config.caption_columns,
            where=config.where,
        )
        self._source = open_source(
            config.source,
            reinforced=config.reinforced,
            options=options,
            cache_dir=config.cache_dir,
        )
        order = Order(
            self._source.sizes,
            seed=seed,
            rank=rank,
            world_size=world_size,
            window=config.shuffle_window,
        )
        self.samples = order.total
        self.index_hash = self._source.identity
        teachers = self._source.index.teachers if self._source.index is not None else []
        self.teacher_dims = self._source.index.teacher_dims if self._source.index else ()
        self.teacher_scales = tuple(teacher.get("logit_scale") for teacher in teachers)
        self.workers, self._prefetch = workers, prefetch
        self._batches = _Batches(config, self._source, order, model, batch_size, seed)
        self._batches._sample(0, [])  # what is wrong with all of them is said at once, and here

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._source.close()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield batch `start` and those after it, without end.

        Raises:
            DataError: many samples in a row cannot be used.
            StorageError: a store cannot be reached.
        """
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=_From(start),
            num_workers=self.workers,
            prefetch_factor=self._prefetch if self.workers else None,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
        )
        found = iter(loader)
        try:
            yield from found
        finally:
            # The workers end now, not whenever the iterator is forgotten.
            with contextlib.suppress(AttributeError):
                found._shutdown_workers()


def _start_worker(_number: int) -> None:
    # Ctrl-C goes to all processes of a terminal; the main one decides what becomes of the run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
