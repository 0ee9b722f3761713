"""Reads photographs in threads: each file once, its bytes hashed, and decoded if they are new.

    with ReadAhead(encoder, contents) as ahead:
        for reading in ahead.read(candidates): ...

Bytes that the library knows are not decoded, so a moved or copied photograph costs its reading.
What is read ahead is bounded in bytes: files, decoded photographs, and the model's inputs.

With ONNX Runtime each thread also encodes what it decoded, on one core: as many photographs at a
time as there are cores are faster than all cores on one. Other runtimes take all cores for a call,
which the caller makes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.errors import EmbeddingError, ImageError, one_line
from pocketclip.images import MAX_MEMORY, file_limit, open_image
from pocketclip.infer.decode_memory import DecodeMemory
from pocketclip.search.indexing.perceptual_hash import perceptual_hash
from pocketclip.search.indexing.photo_facts import read_photo_facts
from pocketclip.search.indexing.scan import stored_state
from pocketclip.search.records import PhotoFacts
from pocketclip.search.thumbnail_image import colour_profile, encode_thumbnail

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.thumbnail_store import ThumbnailStore

BYTES_AHEAD = 1 << 28
"""Limit on the bytes that are read ahead; one larger photograph still passes, alone."""
FILES_AHEAD = 32
"""Limit on the number of files that are read ahead."""
_REDUCED = 4
"""A JPEG may be decoded at a fraction of its size, down to this many times the tower's input: a
photograph of 12 megapixels takes a third of the time, and the cosine to the exact embedding is
0.9999 or more."""
_READERS = 4  # threads beyond those that decode: on a network every file is waited for
_TICK = 1.0  # seconds
CHANGED = "it changed while it was being read; the next run reads it again"
"""The trouble of a file that somebody writes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may hold a photograph that the library does not know."""

    root: int
    folder: Path
    """Of the root."""
    path: bytes
    """Relative to the root."""
    size: int
    """Bytes, when it was listed."""
    again: bool = False
    """The file counts as unchanged, but its content has no vector."""

    @property
    def file(self) -> Path:
        """Its whole path."""
        return self.folder / os.fsdecode(self.path)


@dataclass(slots=True)
class Reading:
    """What reading a file gave: one of `gone`, `trouble`, `digest`."""

    candidate: Candidate
    size: int = 0
    mtime_ns: int = -1
    gone: bool = False
    """It is not there any more, or no file."""
    trouble: str | None = None
    """Why the file cannot be read."""
    stays: bool = True
    """Whether the trouble is to be remembered."""
    digest: bytes | None = None
    claimed: bool = False
    """The bytes are new: they were decoded, which gave `inputs`, `vector` or `error`."""
    inputs: NDArray[Any] | None = None
    """What the image tower takes, see `Encoder.prepare`; to be encoded by the caller."""
    vector: NDArray[np.float32] | None = None
    """(D,) of unit length."""
    error: str | None = None
    """Why nobody can decode these bytes, or the model gives no embedding for them."""
    facts: PhotoFacts = field(default_factory=PhotoFacts)
    perceptual_hash: int | None = None
    thumbnail: bytes | None = None
    """A JPEG, if it is to be kept."""
    held: int = 0
    """Bytes that count as read ahead."""


def content_digest(data: bytes) -> bytes:
    """Return what a library knows a whole file by: 32 bytes."""
    return hashlib.blake2b(data, digest_size=32).digest()


class Contents(Protocol):
    """What is known of contents; asked by several threads."""

    def claim(self, digest: bytes) -> bool:
        """Return whether to decode these bytes: nobody did, and nobody else was told to."""
        ...


class ReadAhead:
    """Reads and decodes in threads, while the caller runs the model.

    Args:
        encoder: prepares the image tower's inputs.
        contents: says which bytes are new.
        by_one: encodes in the threads, see `Encoder.one_threaded`; None: the caller encodes.
        exact: decode large JPEGs in full.
        thumbnails: where they are kept; those that are missing are made. None: none are made.
    """

    def __init__(
        self, encoder: Encoder, contents: Contents, by_one: Encoder | None, *,
        exact: bool = False, thumbnails: ThumbnailStore | None = None,
    ) -> None:  # fmt: skip
        self._encoder = encoder
        self._contents = contents
        self._by_one = by_one
        self._thumbnails = thumbnails
        takes_photo = encoder.bundle is not None and encoder.bundle.image_input == "photo"
        exact = exact or takes_photo  # the graph's own resizing was verified on whole photographs
        self._least_side = None if exact else _REDUCED * encoder.config.image_size
        busy = encoder.decoder_threads() if by_one is None else encoder.threads
        self._may_compute = threading.Semaphore(busy)
        self._pool = ThreadPoolExecutor(busy + _READERS, thread_name_prefix="photographs")
        self._waiting: deque[Future[Reading]] = deque()
        self._guard = threading.Lock()
        self._held = 0
        self._memory = DecodeMemory(MAX_MEMORY)
        self._warm = threading.Event()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def stop(self) -> list[Reading]:
        """Read no more files; return the readings that are finished."""
        self._pool.shutdown(cancel_futures=True)
        done = [future for future in self._waiting if not future.cancelled()]
        self._waiting.clear()
        return [future.result() for future in done if future.exception() is None]

    def read(self, candidates: Iterable[Candidate]) -> Generator[Reading | None]:
        """Yield the readings in the order of the candidates; None whenever a second passes."""
        waiting, more = self._waiting, iter(candidates)
        upcoming = next(more, None)
        while waiting or upcoming is not None:
            while upcoming is not None and self._has_room(len(waiting), upcoming.size):
                self._hold(upcoming.size)
                waiting.append(self._pool.submit(self._read, upcoming))
                upcoming = next(more, None)
            if not waiting[0].done() and not wait([waiting[0]], _TICK).done:
                yield None
                continue
            reading = waiting[0].result()
            waiting.popleft()
            yield reading
            self._hold(-reading.held)

    def _has_room(self, waiting: int, size: int) -> bool:
        with self._guard:
            return not waiting or (waiting < FILES_AHEAD and self._held + size <= BYTES_AHEAD)

    def _hold(self, change: int) -> None:
        with self._guard:
            self._held += change

    def _read(self, candidate: Candidate) -> Reading:
        """Return a reading; runs in a thread."""
        reading = Reading(candidate, held=candidate.size)
        data = _read_file(candidate.file, reading)
        if data is not None:
            reading.digest = content_digest(data)
            if self._contents.claim(reading.digest):
                reading.claimed = True
                with self._may_compute:
                    self._decode(data, reading)
                    if self._by_one is not None and reading.inputs is not None:
                        encode(self._by_one, [reading])
        held = 0 if reading.inputs is None else reading.inputs.nbytes
        self._hold(held - reading.held)
        reading.held = held
        return reading

    def _decode(self, data: bytes, reading: Reading) -> None:
        if not self._warm.is_set():  # the first new photograph of the run: load the tower meanwhile
            self._warm.set()
            (self._by_one or self._encoder).preload("image")
        profile: bytes | None = None
        with self._memory.lent() as lent:

            def note_facts(image: Image.Image) -> None:
                nonlocal profile
                lent.need(image)
                reading.facts = read_photo_facts(image)
                profile = colour_profile(image)

            try:
                image = open_image(data, least_side=self._least_side, on_header=note_facts)
                reading.perceptual_hash = perceptual_hash(image)
                reading.inputs = self._encoder.prepare(image)
            except ImageError as error:
                reading.error = str(error).removeprefix("image bytes: ")
                return
            if self._wants_thumbnail(reading.digest):
                reading.thumbnail = encode_thumbnail(image, profile)

    def _wants_thumbnail(self, digest: bytes | None) -> bool:
        store = self._thumbnails
        return store is not None and digest is not None and not store.is_full | store.has(digest)


def encode(encoder: Encoder, readings: Sequence[Reading]) -> None:
    """Encode the inputs of readings, which then have a vector, or an error of their own."""
    inputs = [reading.inputs for reading in readings if reading.inputs is not None]
    try:
        vectors = encoder.encode_prepared(inputs)
    except EmbeddingError as error:
        if len(readings) > 1:  # only one of the photographs is at fault
            for reading in readings:
                encode(encoder, [reading])
            return
        readings[0].error = error.reason
    else:
        for reading, vector in zip(readings, vectors, strict=True):
            reading.vector = vector
    for reading in readings:
        reading.inputs = None


def _read_file(file: Path, reading: Reading) -> bytes | None:
    """Return a file's bytes, and note its size and time; None if there are none to be had."""
    began = time.time_ns()
    try:
        # It may have been replaced by a pipe since it was listed: do not wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - it is open
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                reading.gone = True
                return None
            limit = file_limit(stream.peek(64)[:64])
            if before.st_size > limit:
                size = f"{before.st_size:,} bytes, more than the limit of {limit:,}"
                reading.trouble = f"the file has {size}"
                reading.size, reading.mtime_ns = stored_state(before, before, began)
                return None
            data = stream.read(before.st_size + 1)
            after = os.fstat(descriptor)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        reading.gone = True
        return None
    except OSError as error:
        # Its time does not change when the trouble is mended: try it again in the next run.
        reading.trouble = one_line(error.strerror or error)
        reading.size = reading.candidate.size
        return None
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not same or len(data) != before.st_size:
        reading.trouble, reading.stays = CHANGED, False
        return None
    reading.size, reading.mtime_ns = stored_state(before, after, began)
    return data
