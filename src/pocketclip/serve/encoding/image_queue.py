"""The queue of the image tower: images are decoded in threads while others are encoded.

Shapes: B inputs, D embedding.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import image_name
from pocketclip.errors import EmbeddingError, ImageError
from pocketclip.images import MAX_MEMORY, open_image
from pocketclip.infer.decode_memory import DecodeMemory
from pocketclip.serve.encoding.tower_queue import TowerQueue, settle
from pocketclip.serve.errors import RequestError
from pocketclip.serve.settings import Limits
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

_AHEAD = 2
"""Calls of one job that may be decoded ahead. A job that comes while others are decoded ahead is
decoded at once, so that it need not wait for theirs."""
_BYTES_AHEAD = 64 << 20
"""Of decoded images; more are decoded only if nothing is."""


@dataclass(slots=True, eq=False)
class _Call:
    """Images of one job that the tower gets together."""

    job: _Job
    start: int
    """The position of the first."""
    inputs: list[NDArray[Any] | None]
    undecoded: int

    @property
    def nbytes(self) -> int:
        return sum(decoded.nbytes for decoded in self.decoded)

    @property
    def decoded(self) -> list[NDArray[Any]]:
        return [decoded for decoded in self.inputs if decoded is not None]


@dataclass(slots=True, eq=False)
class _Job:
    encoder: Encoder
    images: list[bytes]
    """Each is forgotten when it is decoded."""
    spans: deque[tuple[int, int]]
    """Of the calls whose decoding has not begun."""
    rows: Embeddings
    waiting: int
    future: asyncio.Future[Embeddings]
    opened: list[_Call] = field(default_factory=list)
    """Calls whose decoding has begun and whose encoding has not."""
    unencoded: int = field(init=False)
    decoding: set[int] = field(default_factory=set)
    """Positions."""
    bad: dict[int, ImageError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unencoded = len(self.images)

    @property
    def is_good(self) -> bool:
        return not self.bad and not self.future.done()

    @property
    def may_open(self) -> bool:
        return self.is_good and len(self.opened) < _AHEAD


class ImageQueue(TowerQueue):
    """Jobs that wait for the image tower.

    Every call of the tower gets the same images together as in `Encoder.encode_image`, since the
    last bits of an embedding depend on them.

    Args:
        limits: sizes and counts.
        threads: that decode.
    """

    plural = "images"

    def __init__(self, limits: Limits, threads: int) -> None:
        super().__init__(limits.waiting_images)
        self._limits = limits
        self._threads = threads
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode-images")
        self._memory = DecodeMemory(MAX_MEMORY)
        self._decoding = 0
        self._opened: deque[tuple[_Call, int]] = deque()  # images that are decoded next
        self._to_open: deque[_Job] = deque()  # jobs with more calls, in turn
        self._held = 0  # bytes of decoded images

    async def embed(self, encoder: Encoder, images: Sequence[bytes], *, wait: bool) -> Embeddings:
        """Return unit embeddings (B, D) of image files; see `Engine.embed_images`."""
        limit = self._limits.image_bytes
        for position, data in enumerate(images):
            if len(data) > limit:
                raise RequestError(
                    413, f"{image_name(None, position)} has {len(data):,} bytes; the limit is "
                    f"{limit:,}: reduce its size", code="image_too_large",
                )  # fmt: skip
        rows = np.empty((len(images), encoder.embed_dim), np.float32)
        if not images:
            return rows
        future = asyncio.get_running_loop().create_future()
        job = _Job(encoder, list(images), _spans(encoder, len(images)), rows, len(images), future)
        embeddings: Embeddings = await self._finish(job, wait=wait)
        return embeddings

    def _add(self, job: _Job) -> None:
        super()._add(job)
        self._to_open.append(job)

    def _drop(self, job: _Job) -> None:
        super()._drop(job)
        if job in self._to_open:
            self._to_open.remove(job)
        for call in job.opened:
            self._release(call)

    def _start(self) -> None:
        if not self.running and (call := self._next_call()) is not None:
            call.job.opened.remove(call)
            self._leave(call.job, len(call.inputs))
            self._call(
                call.job, len(call.inputs),
                functools.partial(call.job.encoder.encode_prepared, call.decoded),
                functools.partial(self._answer, call),
            )  # fmt: skip
        # One more than there are threads: none should wait for the event loop.
        while self._decoding <= self._threads and (upcoming := self._next_image()) is not None:
            self._decoding += 1
            self._spawn(self._decode(*upcoming))

    def _next_call(self) -> _Call | None:
        """Return the call whose turn it is: one of each job after the other."""
        for job in self._jobs:
            if not job.future.done():
                for call in job.opened:
                    if not call.undecoded:
                        return call
        return None

    def _next_image(self) -> tuple[_Call, int] | None:
        """Return the image to decode next: its call, and its place in it."""
        while True:
            while self._opened:
                call, place = self._opened.popleft()
                if call.job.is_good:
                    return call, place
            if self._held >= _BYTES_AHEAD:
                return None
            job = next((job for job in self._to_open if job.may_open), None)
            if job is None:
                return None
            self._open(job)

    def _open(self, job: _Job) -> None:
        """Let the images of a job's next call be decoded."""
        self._to_open.remove(job)
        start, count = job.spans.popleft()
        if job.spans:
            self._to_open.append(job)
        call = _Call(job, start, [None] * count, count)
        job.opened.append(call)
        self._opened.extend((call, place) for place in range(count))

    async def _decode(self, call: _Call, place: int) -> None:
        job, position = call.job, call.start + place
        data, job.images[position] = job.images[position], b""
        job.decoding.add(position)
        try:
            decoded = await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._prepare, job.encoder, data
            )
        except ImageError as error:
            reason = str(error).removeprefix("image bytes: ")
            job.bad[position] = type(error)(f"{image_name(None, position)}: {reason}")
            job.bad[position].index = position
        except Exception as error:
            settle(job, error=error)
        else:
            call.inputs[place] = decoded
            self._held += decoded.nbytes
            call.undecoded -= 1
            if len(call.inputs) > 1 and call.nbytes > MAX_MEMORY:  # whole photographs
                settle(job, error=RequestError(
                    413, "these images have too many pixels together: send fewer at a time",
                    code="image_too_large",
                ))  # fmt: skip
        finally:
            self._decoding -= 1
            job.decoding.discard(position)
            self._settle(call)
            self._start()

    def _settle(self, call: _Call) -> None:
        job = call.job
        if job.bad and (first := min(job.bad)) <= min(job.decoding, default=first):
            settle(job, error=job.bad[first])  # the first bad image, as the encoder does
        if job.future.done():
            self._release(call)

    def _prepare(self, encoder: Encoder, data: bytes) -> NDArray[Any]:
        with self._memory.lent() as lent:
            image = open_image(data, max_pixels=self._limits.image_pixels, on_header=lent.need)
            return encoder.prepare(image)

    def _answer(self, call: _Call, rows: Embeddings | Exception) -> None:
        job = call.job
        if isinstance(rows, EmbeddingError):
            position = call.start + rows.index
            settle(job, error=EmbeddingError(image_name(None, position), rows.reason, position))
        elif isinstance(rows, Exception):
            settle(job, error=rows)
        else:
            job.rows[call.start : call.start + len(rows)] = rows
            job.unencoded -= len(rows)
            if not job.unencoded:
                settle(job, job.rows)
        self._release(call)
        self._start()  # others may be decoded now

    def _release(self, call: _Call) -> None:
        self._held -= call.nbytes
        call.inputs = [None] * len(call.inputs)

    def close(self) -> None:
        """End, see `TowerQueue.close`."""
        super().close()
        self._decoders.shutdown(wait=False, cancel_futures=True)


def _spans(encoder: Encoder, count: int) -> deque[tuple[int, int]]:
    """Return starts and lengths of the calls that `Encoder.encode_stream` would make."""
    return deque(
        (start, min(encoder.images_per_call, batch + encoder.batch_size - start, count - start))
        for batch in range(0, count, encoder.batch_size)
        for start in range(batch, min(batch + encoder.batch_size, count), encoder.images_per_call)
    )
