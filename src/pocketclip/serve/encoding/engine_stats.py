"""What an engine has done and what waits, as numbers for metrics."""

from __future__ import annotations

from typing import NamedTuple


class TowerStats(NamedTuple):
    """One tower: two gauges, and counters since the start."""

    waiting: int = 0
    """Images or texts whose encoding has not begun."""
    running: int = 0
    """Images or texts that are being encoded."""
    encoded: int = 0
    dropped: int = 0
    """Images or texts that were not encoded, since their request was cancelled."""
    refused: int = 0
    """Images or texts that were refused (429), since too many waited."""
    seconds: float = 0.0
    """Within calls of the tower."""


class CacheStats(NamedTuple):
    """The cache of text embeddings."""

    hits: int = 0
    """Texts that were found, since the start."""
    misses: int = 0
    """Texts that were not."""
    bytes: int = 0
    """Of the cache now."""
    entries: int = 0
    """In the cache now."""


class EngineStats(NamedTuple):
    """A snapshot, see `pocketclip.serve.encoding.engine.Engine.stats`."""

    texts: TowerStats = TowerStats()
    images: TowerStats = TowerStats()
    cache: CacheStats = CacheStats()
