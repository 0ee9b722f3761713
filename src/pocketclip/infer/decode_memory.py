"""The memory that several threads decode into, bounded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from PIL import Image

_PER_PIXEL = 6  # bytes: of a photograph that is decoded, with what the decoder and resizing take


class DecodeMemory:
    """Bytes that several threads decode into; an image that needs more than all of them is alone.

    Args:
        limit: number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lent(self) -> Iterator[Lent]:
        """Take back at the end what the block needed."""
        lent = Lent(self)
        try:
            yield lent
        finally:
            with self._changed:
                self._used -= lent.bytes
                self._changed.notify_all()

    def take(self, count: int) -> None:
        """Wait until `count` bytes are free, or all."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + count <= self._limit)
            self._used += count


class Lent:
    """What one thread has of the memory."""

    def __init__(self, memory: DecodeMemory) -> None:
        self._memory = memory
        self.bytes = 0

    def need(self, image: Image.Image) -> None:
        """Wait for what an image takes, whose header is read; for one image."""
        count = image.width * image.height * _PER_PIXEL
        self._memory.take(count)
        self.bytes = count
