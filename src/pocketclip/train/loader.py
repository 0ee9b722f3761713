"""The data loader: an endless stream of batches that can start at any batch.

    with Loader(DataConfig(source="dr"), model=config, batch_size=256, seed=0, workers=4) as loader:
        for batch in loader.batches(start=1000):
            ...

Batch k is a pure function of (dataset, configuration, seed, world size, rank, k): `order` gives
its samples, and (seed, epoch, uid) the augmentation and captions of each, see `batches`. The
number of workers changes nothing.
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
from pocketclip.train.balance import BalancedOrder, open_balanced_order
from pocketclip.train.batches import Batch, Batches, DataConfig, normalise
from pocketclip.train.order import Order
from pocketclip.train.raw_pairs import PairSource
from pocketclip.train.sources import ShardSource, open_source

__all__ = ["Batch", "DataConfig", "Loader", "normalise"]


class _CountFrom(Sampler[int]):
    """The integers from `start`, without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class Loader:
    """The stream of batches of one process; a context manager.

    Args:
        config: which samples are used, and which of their parts.
        model: gives the image size and the context length.
        batch_size: B, samples per batch of this process.
        seed: for the order of samples and for random choices.
        rank: this process's number, from 0.
        world_size: the number of processes that share the dataset.
        workers: processes that read, decode and tokenise; 0: this process does.
        prefetch: batches that each worker prepares ahead.
        pin_memory: leave batches in pinned memory, which a GPU copies from without the host.

    Attributes:
        samples: number of samples in the whole dataset.
        window: number of samples that this process shuffles together.
        index_hash: changes when the dataset does.
        teacher_dims: each teacher's embedding dimension; empty if not known.
        teacher_names: each teacher's name, as the index has it; empty text if not known.
        teacher_scales: each teacher's logit scale; None if not known.
        captioner_names: the names of the captioners whose captions the dataset has.
        width: dimension of a stored embedding, all teachers together; 0 if none is used.

    Raises:
        ConfigError: a bad pattern or column.
        DataError: there are no samples, or none that can be used.
        StorageError: the dataset cannot be reached.
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
        pin_memory: bool = False,
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
        order = _make_order(self._source, config, seed, rank, world_size)
        self.samples, self.window = order.total, len(order.window(0))
        self.index_hash = self._source.identity
        teachers = self._source.index.teachers if self._source.index is not None else []
        self.teacher_dims = self._source.index.teacher_dims if self._source.index else ()
        self.teacher_names = tuple(str(teacher.get("name") or "") for teacher in teachers)
        captioners = self._source.index.captioners if self._source.index is not None else []
        self.captioner_names = tuple(str(one["name"]) for one in captioners if one.get("name"))
        self.teacher_scales = tuple(teacher.get("logit_scale") for teacher in teachers)
        self.workers, self._prefetch, self._pin_memory = workers, prefetch, pin_memory
        self._batches = Batches(config, self._source, order, model, batch_size, seed)
        self.width = 0
        try:
            # Problems that all samples share are reported here, before any worker starts.
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
        """Close the files."""
        self._source.close()

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield batch `start` and all after it, without end.

        Raises:
            DataError: many samples in a row cannot be used, or a worker died.
            StorageError: a store cannot be reached.
        """
        with warnings.catch_warnings():
            # Forking a process with threads is safe here: workers use none of the parent's.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            # More workers than cores can make sense with slow storage.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=_CountFrom(start),
                num_workers=self.workers,
                prefetch_factor=self._prefetch if self.workers else None,
                worker_init_fn=_start_worker,
                pin_memory=self._pin_memory,
                generator=torch.Generator(),  # otherwise each start draws from the global one
            )
            iterator = iter(loader)
        try:
            yield from map(_raise_errors, iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a worker of the data loader died ({first_line(error)}); if memory is "
                "short, lower data.workers or the batch size"
            ) from error
        finally:
            # End the workers now, not when the iterator is garbage-collected.
            with contextlib.suppress(AttributeError):
                iterator._shutdown_workers()  # type: ignore[attr-defined]


def _make_order(
    source: ShardSource | PairSource, config: DataConfig, seed: int, rank: int, world_size: int
) -> Order | BalancedOrder:
    try:
        if config.balance:
            return open_balanced_order(
                source, config.source, config.balance,
                seed=seed, rank=rank, world_size=world_size,
            )  # fmt: skip
        return Order(
            source.sizes,
            seed=seed,
            rank=rank,
            world_size=world_size,
            window=config.shuffle_window,
        )
    except BaseException:
        source.close()
        raise


def _raise_errors(item: Batch | PocketclipError) -> Batch:
    if isinstance(item, PocketclipError):
        raise item
    return item


def _start_worker(_number: int) -> None:
    # A terminal's Ctrl-C and a scheduler's SIGTERM reach all processes. The main one decides how
    # the run ends; a worker that died of the signal would lose the last steps.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
