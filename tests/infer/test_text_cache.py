from __future__ import annotations

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
from pocketclip.infer.text_cache import CachedText, TextCache


def entries(*texts: str, width: int = 64) -> dict[str, CachedText]:
    rows = np.arange(len(texts) * width, dtype=np.float32).reshape(len(texts), width)
    return {text: CachedText(row, 3) for text, row in zip(texts, rows, strict=True)}


def test_the_least_recently_used_texts_go_first():
    cache = TextCache()
    cache.store(entries("a"))
    one = cache.bytes
    cache = TextCache(20 * one)
    names = [f"{i:02}" for i in range(19)]
    cache.store(entries(*names))
    cache.lookup(["00"])
    cache.store(entries("19", "20"))
    assert "00" in cache.lookup(["00"])
    assert list(cache.lookup([*names, "19", "20"])) == ["00", *names[3:], "19", "20"]
    assert cache.bytes <= cache.max_bytes
    assert len(cache) == 19


def test_bytes_are_those_of_texts_and_arrays():
    cache = TextCache(1 << 20)
    cache.store(entries("short"))
    small = cache.bytes
    assert small > 64 * 4
    cache.store(entries("long" * 1000))
    assert cache.bytes > 2 * small + 3900
    cache.store(entries("short", "long" * 1000))  # again
    assert len(cache) == 2
    assert cache.bytes < 2 * small + 4100
    cache.store(entries("ü" * 4000 + "\N{GRINNING FACE}"))  # four bytes per character
    assert cache.bytes > 3 * small + 16000 + 3900


def test_a_huge_text_clears_nothing():
    cache = TextCache(1 << 16)
    cache.store(entries("a", "b"))
    cache.store(entries("c" * (1 << 15)))
    assert list(cache.lookup(["a", "b", "c" * (1 << 15)])) == ["a", "b"]


def test_hits_and_misses_are_counted():
    cache = TextCache()
    cache.store(entries("a"))
    cache.lookup(["a", "b", "a"])
    assert (cache.hits, cache.misses) == (2, 1)
    cache.lookup(["a", "b"], count=False)
    assert (cache.hits, cache.misses) == (2, 1)


def test_entries_are_copies_that_know_their_tokens(exported):
    encoder = Encoder(exported(), threads=1)
    with pytest.warns(UserWarning, match="truncated"):
        encoder.encode_text(["a", "two words", "word " * 100])
    found = encoder.text_cache.lookup(["a", "two words", "word " * 100])
    assert [entry.tokens for entry in found.values()] == [3, 4, encoder.config.text.context_length]
    # A cached row must not keep its whole batch in memory.
    assert all(entry.embedding.base is None for entry in found.values())


def test_a_full_cache_forgets(exported, monkeypatch):
    encoder = Encoder(exported(), threads=1)
    texts = [f"text {i}" for i in range(10)]
    encoder.encode_text(texts[0])
    monkeypatch.setattr(encoder.text_cache, "max_bytes", 20 * encoder.text_cache.bytes)
    first = encoder.encode_text([f"other {i}" for i in range(30)])
    assert first.shape == (30, encoder.embed_dim)
    assert len(encoder.text_cache) == pytest.approx(20, abs=1)
    assert not encoder.text_cache.lookup(texts[:1])
