"""A cache of text embeddings that several threads may share.

Shapes: D embedding.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pocketclip.types import Embeddings

MAX_BYTES = 64 << 20
"""Limit on a cache: about 28,000 short texts at D 512, since each entry takes 2.4 kB."""

# What an entry takes besides its text and its array: the tuple, and its place in the table.
# Measured with tracemalloc for 3,000 to 60,000 entries: 145 to 155.
_ENTRY = 160
# An entry above this share of the limit would push out too much.
_LARGEST = 1 / 16


class CachedText(NamedTuple):
    """What is known of a text."""

    embedding: Embeddings
    """(D,), as the tower returned it."""
    tokens: int
    """That the tower read: with the start and end token, at most its context."""


class TextCache:
    """Embeddings by text; the least recently used are dropped beyond `max_bytes`.

    Attributes:
        hits: number of texts that were looked up and found.
        misses: number of texts that were looked up and not found.
        bytes: memory of the entries.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = self.bytes = 0
        self._entries: OrderedDict[str, CachedText] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._entries)

    def lookup(self, texts: Iterable[str], *, count: bool = True) -> dict[str, CachedText]:
        """Return what is known of those of `texts` that are cached; it counts as their use.

        Args:
            texts: a text that occurs twice is counted twice.
            count: count hits and misses.
        """
        found: dict[str, CachedText] = {}
        hits = misses = 0
        with self._lock:
            for text in texts:
                entry = self._entries.get(text)
                if entry is not None:
                    self._entries.move_to_end(text)
                    found[text] = entry
                    hits += 1
                else:
                    misses += 1
            if count:
                self.hits += hits
                self.misses += misses
        return found

    def store(self, entries: Mapping[str, CachedText]) -> None:
        """Add copies of entries; one that is very large is left out."""
        with self._lock:
            for text, (embedding, tokens) in entries.items():
                old = self._entries.pop(text, None)
                if old is not None:
                    self.bytes -= _size(text, old)
                # A view of a row would keep its whole batch in memory.
                entry = CachedText(embedding.copy(), tokens)
                size = _size(text, entry)
                if size > self.max_bytes * _LARGEST:
                    continue
                self._entries[text] = entry
                self.bytes += size
                while self.bytes > self.max_bytes:
                    self.bytes -= _size(*self._entries.popitem(last=False))


def _size(text: str, entry: CachedText) -> int:
    return _ENTRY + sys.getsizeof(text) + sys.getsizeof(entry.embedding)
