"""Batches for training: an endless stream, of which any part can be computed at any time.

    with Loader(DataConfig(source="dr"), model=config, batch_size=256, seed=0, workers=4) as loader:
        for batch in loader.batches(start=1000):
            ...

Batch k is a pure function of (data, configuration, seed, world size, rank, k): its samples by
`order`, and for each the stored augmentation and the caption by (seed, epoch, uid), see
`samples`. The number of workers changes nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import warnings
from collections.abc import Generator, Iterator
from types import TracebackType

import torch
from torch.utils.data import DataLoader, Sampler

from pocketclip import zoo
from pocketclip.errors import ConfigError, DataError, PocketclipError, first_line
from pocketclip.pairs import PairOptions
from pocketclip.train.order import Order
from pocketclip.train.samples import Batch, Batches, DataConfig, normalise
from pocketclip.train.sources import open_source

__all__ = ["Batch", "DataConfig", "Loader", "normalise"]


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
        width: of a stored embedding, all teachers together; 0 where none is used.

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
            raise ConfigError(
                f"data.caption_pattern {config.caption_pattern!r}: {error}"
            ) from error
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
        self._batches = Batches(config, self._source, order, model, batch_size, seed)
        self.width = 0
        try:
            # What is wrong with all samples is said at once, and here.
            first = self._batches.sample(0, [])
            if first.teacher_image is not None:
                self._batches.width = self.width = len(first.teacher_image)
        except BaseException:
            self.close()
            raise

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

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield batch `start` and those after it, without end.

        Raises:
            DataError: many samples in a row cannot be used.
            StorageError: a store cannot be reached.
        """
        with warnings.catch_warnings():
            # That a process with threads is forked: the workers use none of the parent's.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            # More workers than cores: whoever asked for so many may know of slow storage.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=_From(start),
                num_workers=self.workers,
                prefetch_factor=self._prefetch if self.workers else None,
                worker_init_fn=_start_worker,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # else each start would draw from everybody's
            )
            found = iter(loader)
        try:
            yield from map(_unwrapped, found)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a worker of the data loader died ({first_line(error)}); where memory is "
                "short, lower data.workers or the batch size"
            ) from error
        finally:
            # The workers end now, not whenever the iterator is forgotten.
            with contextlib.suppress(AttributeError):
                found._shutdown_workers()  # type: ignore[attr-defined]


def _unwrapped(found: Batch | PocketclipError) -> Batch:
    if isinstance(found, PocketclipError):
        raise found
    return found


def _start_worker(_number: int) -> None:
    # Ctrl-C goes to all processes of a terminal; the main one decides what becomes of the run.
    # So does a scheduler's SIGTERM; a worker that died of it would take the last steps along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
