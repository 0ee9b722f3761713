"""Images to embeddings, batch by batch: decoded ahead, checked, and in a bounded memory.

Shapes: B batch, D embedding, N samples.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import DataError, ImageError, StorageError
from pocketclip.evaluate.examples import Example, TaskData
from pocketclip.evaluate.tasks import Metrics
from pocketclip.images import open_image
from pocketclip.types import Embeddings, Encoder

_AHEAD = 2
"""Batches that are decoded while one is encoded."""
_NAMED = 10
"""Bad images that an error names."""
_LOOK = 10_000
"""Further images that are looked at, once one is bad, to name others."""
_TEXTS = 256
"""Texts that are embedded at a time."""


class Named(Protocol):
    """Has a name for messages."""

    @property
    def name(self) -> str:
        """File and row."""
        ...


E = TypeVar("E", bound=Named)


@runtime_checkable
class PixelEncoder(Protocol):
    """An encoder whose preprocessing can run ahead, in threads of its own."""

    @property
    def preprocess(self) -> Callable[[Any], NDArray[np.float32]]:
        """Return pixels (3, S, S) of an image."""
        ...

    def encode_pixels(self, pixels: NDArray[np.float32]) -> Embeddings:
        """Return embeddings (B, D) of pixels (B, 3, S, S)."""
        ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be read, and why."""

    name: str
    reason: str


def default_cache() -> Path:
    """Return the folder of the user's cache for embeddings of class names."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pocketclip" / "classifiers"


@dataclass(slots=True, kw_only=True)
class RunOptions:
    """How a task is run; nothing here changes its result, except `skip_bad`."""

    batch_size: int = 64
    workers: int | None = None
    """Threads that decode; None for one per core."""
    skip_bad: bool = False
    """Leave out unreadable images, and count them, instead of failing."""
    confusion: bool = False
    """Whether classification also counts which class was taken for which."""
    cache: str | os.PathLike[str] | None = field(default_factory=default_cache)
    """The folder for embeddings of class names; None to keep none."""
    advance: Callable[[int], None] = lambda _count: None
    """Called with the number of images that were done."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.workers is not None and self.workers < 1):
            raise ValueError("batch_size and workers must be at least 1")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What evaluating a task gave."""

    metrics: Metrics
    count: int
    """Samples that count: images, or puzzles."""
    skipped: list[Skipped] = field(default_factory=list)
    confusion: NDArray[np.int64] | None = None
    """(C, C) by true class, then predicted class."""
    classes: list[str] | None = None


def embed_images(
    encoder: Encoder,
    examples: Iterable[E],
    image_of: Callable[[E], bytes | str],
    options: RunOptions,
    skipped: list[Skipped],
) -> Iterator[tuple[list[E], Embeddings]]:
    """Yield examples in their order, in batches, with unit embeddings (B, D) of their images.

    Two batches are decoded ahead while one is encoded. Of an encoder with `preprocess` and
    `encode_pixels` the preprocessing runs in the decoding threads as well.

    Args:
        encoder: any encoder.
        examples: what to embed.
        image_of: gives an example's image: the file's bytes, or where it lies.
        options: batch size, workers, whether unreadable images may be left out.
        skipped: gets those that were.

    Raises:
        DataError: unreadable images (up to ten are named), embeddings that are not finite or of
            another shape.
    """
    ahead = encoder if isinstance(encoder, PixelEncoder) else None
    prepare: Callable[[Any], Any] = open_image if ahead is None else ahead.preprocess

    def load(example: E) -> Any:
        source = image_of(example)
        if isinstance(source, str) and storage.is_remote(source):
            source = storage.read_bytes(source)
        return prepare(source)

    source = iter(examples)
    waiting: deque[tuple[E, Future[Any]]] = deque()
    # Decoding releases the interpreter lock, so it overlaps with the model.
    pool = ThreadPoolExecutor(options.workers or os.cpu_count())
    try:
        while True:
            wanted = options.batch_size * (_AHEAD + 1) - len(waiting)
            waiting += [(example, pool.submit(load, example)) for example in islice(source, wanted)]
            if not waiting:
                return
            taken = [waiting.popleft() for _ in range(min(options.batch_size, len(waiting)))]
            good, loaded, bad = _loaded(taken)
            if bad and not options.skip_bad:
                rest = ((example, pool.submit(load, example)) for example in source)
                _refuse(bad, chain(waiting, rest), options.batch_size)
            skipped += bad
            if good:
                if ahead is None:
                    found = encoder.encode_image(loaded)
                else:
                    found = ahead.encode_pixels(np.stack(loaded))
                yield good, _unit(found, encoder.embed_dim, [example.name for example in good])
            options.advance(len(taken))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _loaded(
    taken: Sequence[tuple[E, Future[Any]]],
) -> tuple[list[E], list[Any], list[Skipped]]:
    good, loaded, bad = [], [], []
    for example, future in taken:
        try:
            loaded.append(future.result())
            good.append(example)
        except (ImageError, StorageError) as error:
            bad.append(Skipped(example.name, str(error)))
    return good, loaded, bad


def _refuse(bad: list[Skipped], rest: Iterator[tuple[E, Future[Any]]], batch_size: int) -> NoReturn:
    """Raise an error that names the bad images, after looking for more of them."""
    looked = 0
    while len(bad) < _NAMED and looked < _LOOK:
        taken = list(islice(rest, batch_size))
        if not taken:
            break
        looked += len(taken)
        bad = bad + _loaded(taken)[2]
    whole = len(bad) < _NAMED and looked < _LOOK
    count = f"{len(bad)}" if whole else f"{len(bad)} or more"
    listed = "; ".join(f"{image.name} ({image.reason})" for image in bad[:_NAMED])
    raise DataError(
        f"{count} unreadable image{'s' if len(bad) > 1 or not whole else ''}: {listed}. Mend "
        "them, or leave them out with --skip-bad"
    )


def _unit(rows: Embeddings, width: int, names: Sequence[str]) -> Embeddings:
    """Return rows (B, D) at unit length.

    Raises:
        DataError: another shape, or a row that is not finite or zero; names it.
    """
    rows = np.asarray(rows, np.float32)
    if rows.shape != (len(names), width):
        raise DataError(
            f"the model gave embeddings {rows.shape} for {len(names)} inputs from {names[0]} on, "
            f"not ({len(names)}, {width})"
        )
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    wrong = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if wrong.any():
        first = int(np.argmax(wrong))
        what = "zero" if lengths[first, 0] == 0 else "not finite (NaN or infinite)"
        raise DataError(
            f"{names[first]}: its embedding is {what}; the model's weights or its precision are "
            "at fault"
        )
    unit: Embeddings = (rows / lengths).astype(np.float32)
    return unit


def embed_texts(encoder: Encoder, texts: Sequence[str], what: str = "text") -> Embeddings:
    """Return unit embeddings (N, D) of texts.

    Args:
        encoder: any encoder.
        texts: what to embed.
        what: the texts are, for messages.

    Raises:
        DataError: an embedding that is not finite or of another shape; names the text.
    """
    out = np.empty((len(texts), encoder.embed_dim), np.float32)
    for begin in range(0, len(texts), _TEXTS):
        part = list(texts[begin : begin + _TEXTS])
        names = [f"{what} {text!r}" for text in part]
        out[begin : begin + len(part)] = _unit(encoder.encode_text(part), encoder.embed_dim, names)
    return out


def images_of(data: TaskData) -> Iterator[Example]:
    """Yield a set's samples.

    Raises:
        DataError: they are not single images.
    """
    for sample in data:
        if not isinstance(sample, Example):
            raise DataError(f"{data.place} holds puzzles, not images")
        yield sample


def features(
    encoder: Encoder, data: TaskData, options: RunOptions
) -> tuple[Embeddings, NDArray[np.int64], list[Skipped]]:
    """Return unit embeddings (N, D) and labels (N,) of a whole labelled set, for probes.

    Raises:
        DataError: as `embed_images`; or the set has no labels, or no sample.
    """
    skipped: list[Skipped] = []
    rows, labels = [], []
    for batch, embeddings in embed_images(
        encoder, images_of(data), lambda example: example.image, options, skipped
    ):
        rows.append(embeddings)
        for example in batch:
            if example.label is None:
                raise DataError(f"{example.name} has no label to learn")
            labels.append(example.label)
    if not rows:
        raise DataError(f"{data.place}: no image could be read")
    return np.concatenate(rows), np.array(labels, np.int64), skipped
