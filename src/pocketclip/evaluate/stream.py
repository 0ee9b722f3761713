"""Images to embeddings, batch by batch: decoded ahead, checked, and in a bounded memory.

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
from pocketclip.storage.stores import NotThereError
from pocketclip.types import Embeddings, Encoder

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
class PreparingEncoder(Protocol):
    """An encoder whose preprocessing can run ahead, in threads of its own."""

    def prepare(self, image: Any) -> NDArray[Any]:
        """Return what `encode_prepared` takes, of one image."""
        ...

    def encode_prepared(self, prepared: Sequence[NDArray[Any]]) -> Embeddings:
        """Return embeddings (B, D) of prepared images."""
        ...


_MOST = {"batch_size": 65_536, "workers": 1024}


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be read, and why."""

    name: str
    reason: str


def default_cache() -> Path | None:
    """Return the folder of the user's cache for embeddings of class names; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "pocketclip" / "classifiers"
    except RuntimeError:  # a user that the system does not know, as in some containers
        return None


@dataclass(slots=True, kw_only=True)
class RunOptions:
    """How a task is run; nothing here changes its result, except `skip_bad`.

    Raises:
        ConfigError: a batch size or number of workers below 1.
    """

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
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
            if value is not None and value > _MOST[name]:
                raise ConfigError(f"{name} is {value}; {_MOST[name]:,} is the most")


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
) -> Generator[tuple[list[E], Embeddings], None, None]:
    """Yield examples in their order, in batches, with unit embeddings (B, D) of their images.

    While a batch is encoded, the next ones are read and decoded in threads. Of an encoder with
    `prepare` and `encode_prepared` the preprocessing runs in them as well; any other is given
    decoded images. Close the iterator (`contextlib.closing`) where it is left before its end.

    Args:
        encoder: any encoder.
        examples: what to embed; read from another thread.
        image_of: gives an example's image: the file's bytes, or where it lies.
        options: batch size, workers, whether unreadable images may be left out.
        skipped: gets those that were.

    Raises:
        DataError: unreadable images (up to ten are named), embeddings that are not finite or of
            another shape (the first is named).
        MissingDependencyError: images in a format that an extra reads.
        StorageError: a store that cannot be reached.
    """
    ahead = encoder if isinstance(encoder, PreparingEncoder) else None
    prepare: Callable[[Any], Any] = open_image if ahead is None else ahead.prepare

    def load(example: E) -> Any:
        return _loaded(example.name, image_of(example), prepare)

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
                    if ahead is None:
                        found = encoder.encode_image(inputs)
                    else:
                        found = ahead.encode_prepared(inputs)
                embeddings = _unit(found, encoder.embed_dim, names)
                yield [example for example, _ in good], embeddings
            options.advance(len(batch))


def _loaded(name: str, source: bytes | str, prepare: Callable[[Any], Any]) -> Any:
    """Return what `prepare` makes of an image, or that it must be skipped."""
    place = source if isinstance(source, str) else "image bytes"
    try:
        if isinstance(source, str) and storage.is_remote(source):
            source, place = storage.read_bytes(source), "image bytes"
        return prepare(source)
    except (ImageError, NotThereError) as error:
        # A table's row is named, and then which file; of a folder both are the same.
        reason = str(error).removeprefix("image bytes: ")
        return Skipped(name, reason.removeprefix(f"{place}: ") if place == name else reason)
    except MissingDependencyError as error:  # the image may be good: nothing to skip
        raise MissingDependencyError(f"{name}: {error}") from error


def _refuse(bad: list[Skipped], rest: Iterator[list[tuple[E, Any]]]) -> NoReturn:
    """Raise an error that names the bad images, after looking for more of them."""
    looked, whole, further = 0, False, ""
    try:
        while len(bad) <= _NAMED and looked < _LOOK:
            batch = next(rest, None)
            if batch is None:
                whole = True
                break
            looked += len(batch)
            bad = bad + [loaded for _, loaded in batch if isinstance(loaded, Skipped)]
    except DataError as error:  # of reading: it ends the looking, not what was found
        further = f" Further, {error}"
    count = f"{len(bad)}" if whole else f"{len(bad)} or more"
    listed = "; ".join(f"{image.name} ({image.reason})" for image in bad[:_NAMED])
    more = "; ..." if len(bad) > _NAMED else ""
    raise DataError(
        f"{count} unreadable image{'' if count == '1' else 's'}: {listed}{more}. Mend them, or "
        f"leave them out with --skip-bad.{further}"
    )


@contextmanager
def _named(names: Sequence[str]) -> Iterator[None]:
    """Let an encoder's complaint about the embedding of one of its inputs name that input."""
    try:
        yield
    except EmbeddingError as error:
        raise DataError(f"{names[error.index]}: {error.reason}") from error


def _unit(rows: Embeddings, width: int, names: Sequence[str]) -> Embeddings:
    """Return rows (B, D) at unit length.

    Raises:
        DataError: another shape, or a row that is not finite or zero; names it.
    """
    rows = np.asarray(rows)
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


def embed_texts(encoder: Encoder, texts: Sequence[str], names: Sequence[str]) -> Embeddings:
    """Return unit embeddings (N, D) of texts.

    Args:
        encoder: any encoder.
        texts: what to embed.
        names: what each is called in messages.

    Raises:
        DataError: an embedding that is not finite or of another shape; names the text.
    """
    out = np.empty((len(texts), encoder.embed_dim), np.float32)
    for begin in range(0, len(texts), _TEXTS):
        part = slice(begin, begin + _TEXTS)
        with _named(names[part]):
            found = encoder.encode_text(texts[part])
        out[part] = _unit(found, encoder.embed_dim, names[part])
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


def embedded(
    encoder: Encoder, data: TaskData, options: RunOptions, skipped: list[Skipped]
) -> closing[Generator[tuple[list[Example], Embeddings], None, None]]:
    """Return `embed_images` of a set of single images, to be used in a `with`."""
    return closing(embed_images(encoder, images_of(data), _image, options, skipped))


def _image(example: Example) -> bytes | str:
    return example.image


def check_any(count: int, data: TaskData, skipped: Sequence[Skipped]) -> None:
    """Refuse to score nothing.

    Raises:
        DataError: `count` is 0; names the set and the first image that was left out.
    """
    if not count:
        why = (
            f": {len(skipped)} were left out, the first is {skipped[0].name} ({skipped[0].reason})"
            if skipped
            else ""
        )
        raise DataError(f"{data.place}: no image to score{why}")


def features(
    encoder: Encoder, data: TaskData, options: RunOptions
) -> tuple[Embeddings, NDArray[np.int64], list[Skipped]]:
    """Return unit embeddings (N, D) and labels (N,) of a whole labelled set, for probes.

    Raises:
        DataError: as `embed_images`; or the set has no labels, or no sample.
    """
    skipped: list[Skipped] = []
    rows, labels = [], []
    with embedded(encoder, data, options, skipped) as batches:
        for batch, embeddings in batches:
            rows.append(embeddings)
            for example in batch:
                if example.label is None:
                    raise DataError(f"{example.name} has no label to learn")
                labels.append(example.label)
    check_any(len(labels), data, skipped)
    return np.concatenate(rows), np.array(labels, np.int64), skipped
