"""A cache of text embeddings that several threads may share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from pocketclip.types import Embeddings

MAX_TEXTS = 1 << 16


class TextCache:
    """Embeddings (D,) by text; the oldest entries are dropped beyond `max_texts`."""

    def __init__(self, max_texts: int = MAX_TEXTS) -> None:
        self.max_texts = max_texts
        self._embeddings: OrderedDict[str, Embeddings] = OrderedDict()
        self._lock = threading.Lock()

    def lookup(self, texts: Iterable[str]) -> dict[str, Embeddings]:
        """Return the cached embeddings among those of `texts`."""
        with self._lock:
            return {text: self._embeddings[text] for text in texts if text in self._embeddings}

    def store(self, embeddings: Mapping[str, Embeddings]) -> None:
        """Add copies of embeddings."""
        with self._lock:
            # A view of a row would keep its whole batch in memory.
            self._embeddings.update((text, row.copy()) for text, row in embeddings.items())
            while len(self._embeddings) > self.max_texts:
                self._embeddings.popitem(last=False)
