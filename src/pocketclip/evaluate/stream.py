"""Images to embeddings, batch by batch: prefetched, checked, and in bounded memory.

Shapes: B batch, D embedding, N samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.embeddings import row_lengths
from pocketclip.errors import (
    ConfigError,
    DataError,
    EmbeddingError,
    ImageError,
    MissingDependencyError,
)
from pocketclip.evaluate.datasets.examples import Example, TaskData
from pocketclip.evaluate.prefetch import prefetch
from pocketclip.evaluate.tasks import Metrics
from pocketclip.images import open_image
from pocketclip.label_set import LabelSet
from pocketclip.storage.stores import NotThereError
from pocketclip.storage.user_cache import user_cache
from pocketclip.types import Embeddings, Encoder

_NAMED = 10
"""Bad images named in an error."""
_LOOK_AHEAD = 10_000
"""Images checked after the first bad one, to name others."""
_TEXT_BATCH = 256


class Named(Protocol):
    """An example with a name for messages."""

    @property
    def name(self) -> str:
        """File and row."""
        ...


E = TypeVar("E", bound=Named)


@runtime_checkable
class PreparingEncoder(Protocol):
    """An encoder whose preprocessing can run ahead in other threads."""

    def prepare(self, image: Any) -> NDArray[Any]:
        """Return one image preprocessed for `encode_prepared`."""
        ...

    def encode_prepared(self, prepared: Sequence[NDArray[Any]]) -> Embeddings:
        """Return embeddings (B, D) of prepared images."""
        ...


_MAXIMUM = {"batch_size": 65_536, "workers": 1024}


@dataclass(frozen=True, slots=True)
class Skipped:
    """An unreadable image and the reason."""

    name: str
    reason: str


def default_cache() -> Path | None:
    """Return the user's cache folder for class embeddings; None without a home directory."""
    return user_cache("classifiers")


@dataclass(slots=True, kw_only=True)
class RunOptions:
    """How to run a task; only `skip_bad` and `label_set` can change its result.

    Raises:
        ConfigError: a batch size or number of workers below 1.
    """

    batch_size: int = 64
    workers: int | None = None
    """Decode threads; None for one per core."""
    skip_bad: bool = False
    """Skip and count unreadable images instead of failing."""
    confusion: bool = False
    """Whether classification also returns a confusion matrix."""
    cache: str | os.PathLike[str] | None = field(default_factory=default_cache)
    """Folder for class embeddings; None caches none."""
    label_set: LabelSet | None = None
    """A classifier in place of class names and prompts; for classification only."""
    advance: Callable[[int], None] = lambda _count: None
    """Called after each batch with its number of images."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
            if value is not None and value > _MAXIMUM[name]:
                raise ConfigError(f"{name} is {value}; the maximum is {_MAXIMUM[name]:,}")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of evaluating a task."""

    metrics: Metrics
    count: int
    """Number of scored images or puzzles."""
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
) -> Generator[tuple[list[E], Embeddings], None, None]:
    """Yield batches of examples in their order, with unit embeddings (B, D) of their images.

    While a batch is encoded, threads read and decode the next ones. If the encoder has `prepare`
    and `encode_prepared`, they preprocess too; other encoders get decoded images. Close the
    iterator (`contextlib.closing`) to stop early.

    Args:
        encoder: any encoder.
        examples: read from another thread.
        image_of: returns an example's image: the file's bytes, or its path.
        options: batch size, workers, whether to skip unreadable images.
        skipped: receives the skipped images.

    Raises:
        DataError: unreadable images (up to ten are named), or an embedding that is not finite or
            of the wrong shape (the first is named).
        MissingDependencyError: an image format that needs an extra.
        StorageError: an unreachable object store.
    """
    preparing = encoder if isinstance(encoder, PreparingEncoder) else None
    prepare: Callable[[Any], Any] = open_image if preparing is None else preparing.prepare

    def load(example: E) -> Any:
        return _load(example.name, image_of(example), prepare)

    batches = prefetch(examples, load, size=options.batch_size, workers=options.workers)
    with closing(batches):
        for batch in batches:
            bad = [loaded for _, loaded in batch if isinstance(loaded, Skipped)]
            if bad and not options.skip_bad:
                _refuse(bad, batches)
            skipped += bad
            good = [pair for pair in batch if not isinstance(pair[1], Skipped)]
            if good:
                inputs = [loaded for _, loaded in good]
                names = [example.name for example, _ in good]
                with _named(names):
                    if preparing is None:
                        rows = encoder.encode_image(inputs)
                    else:
                        rows = preparing.encode_prepared(inputs)
                embeddings = _unit(rows, encoder.embed_dim, names)
                yield [example for example, _ in good], embeddings
            options.advance(len(batch))


def _load(name: str, source: bytes | str, prepare: Callable[[Any], Any]) -> Any:
    """Return the prepared image, or why it must be skipped."""
    path = source if isinstance(source, str) else "image bytes"
    try:
        if isinstance(source, str) and storage.is_remote(source):
            source, path = storage.read_bytes(source), "image bytes"
        return prepare(source)
    except (ImageError, NotThereError) as error:
        # For a table the name is the row and the path is the file; for a folder they are equal.
        reason = str(error).removeprefix("image bytes: ")
        return Skipped(name, reason.removeprefix(f"{path}: ") if path == name else reason)
    except MissingDependencyError as error:  # the image may be good, so it is not skipped
        raise MissingDependencyError(f"{name}: {error}") from error


def _refuse(bad: list[Skipped], batches: Iterator[list[tuple[E, Any]]]) -> NoReturn:
    """Raise an error that names the bad images, after looking for more."""
    checked, complete, further = 0, False, ""
    try:
        while len(bad) <= _NAMED and checked < _LOOK_AHEAD:
            batch = next(batches, None)
            if batch is None:
                complete = True
                break
            checked += len(batch)
            bad = bad + [loaded for _, loaded in batch if isinstance(loaded, Skipped)]
    except DataError as error:  # a read error ends the search but not the report
        further = f" Further, {error}"
    count = f"{len(bad)}" if complete else f"{len(bad)} or more"
    listed = "; ".join(f"{image.name} ({image.reason})" for image in bad[:_NAMED])
    more = "; ..." if len(bad) > _NAMED else ""
    raise DataError(
        f"{count} unreadable image{'' if count == '1' else 's'}: {listed}{more}. Fix or "
        f"remove them, or pass --skip-bad.{further}"
    )


@contextmanager
def _named(names: Sequence[str]) -> Iterator[None]:
    """Put the input's name into an encoder's error about its embedding."""
    try:
        yield
    except EmbeddingError as error:
        raise DataError(f"{names[error.index]}: {error.reason}") from error


def _unit(rows: Embeddings, width: int, names: Sequence[str]) -> Embeddings:
    """Return rows (B, D) scaled to unit length.

    Raises:
        DataError: the wrong shape, or a row that is zero or not finite; the message names it.
    """
    rows = np.asarray(rows)
    if rows.shape != (len(names), width):
        raise DataError(
            f"the model returned embeddings {rows.shape} for {len(names)} inputs from {names[0]} "
            f"on; expected ({len(names)}, {width})"
        )
    lengths = row_lengths(rows)
    wrong = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if wrong.any():
        first = int(np.argmax(wrong))
        problem = "zero" if lengths[first, 0] == 0 else "not finite (NaN or infinite)"
        raise DataError(
            f"{names[first]}: its embedding is {problem}; check the model's weights and precision"
        )
    unit: Embeddings = (rows / lengths).astype(np.float32)
    return unit


def embed_texts(encoder: Encoder, texts: Sequence[str], names: Sequence[str]) -> Embeddings:
    """Return unit embeddings (N, D) of texts.

    Args:
        encoder: any encoder.
        texts: the texts.
        names: a name per text, for messages.

    Raises:
        DataError: an embedding that is not finite or of the wrong shape; the message names the
            text.
    """
    out = np.empty((len(texts), encoder.embed_dim), np.float32)
    for begin in range(0, len(texts), _TEXT_BATCH):
        batch = slice(begin, begin + _TEXT_BATCH)
        with _named(names[batch]):
            rows = encoder.encode_text(texts[batch])
        out[batch] = _unit(rows, encoder.embed_dim, names[batch])
    return out


def images_of(data: TaskData) -> Iterator[Example]:
    """Yield the examples of a set.

    Raises:
        DataError: the set holds puzzles.
    """
    for sample in data:
        if not isinstance(sample, Example):
            raise DataError(f"{data.path} holds puzzles, not images")
        yield sample


def embedded(
    encoder: Encoder, data: TaskData, options: RunOptions, skipped: list[Skipped]
) -> closing[Generator[tuple[list[Example], Embeddings], None, None]]:
    """Return `embed_images` over a set of single images, for a `with` statement."""
    return closing(embed_images(encoder, images_of(data), _image, options, skipped))


def _image(example: Example) -> bytes | str:
    return example.image


def check_any(count: int, data: TaskData, skipped: Sequence[Skipped]) -> None:
    """Refuse to score an empty set.

    Raises:
        DataError: `count` is 0; the message names the set and the first skipped image.
    """
    if not count:
        why = (
            f": {len(skipped)} were skipped, the first is {skipped[0].name} ({skipped[0].reason})"
            if skipped
            else ""
        )
        raise DataError(f"{data.path}: no image to score{why}")


def features(
    encoder: Encoder, data: TaskData, options: RunOptions
) -> tuple[Embeddings, NDArray[np.int64], list[Skipped]]:
    """Return unit embeddings (N, D) and labels (N,) of a labelled set, and the skipped images.

    Raises:
        DataError: as `embed_images`; or the set has no labels or no images.
    """
    skipped: list[Skipped] = []
    rows, labels = [], []
    with embedded(encoder, data, options, skipped) as batches:
        for batch, embeddings in batches:
            rows.append(embeddings)
            for example in batch:
                if example.label is None:
                    raise DataError(f"{example.name} has no label")
                labels.append(example.label)
    check_any(len(labels), data, skipped)
    return np.concatenate(rows), np.array(labels, np.int64), skipped
