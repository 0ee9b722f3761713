"""Copies have nearly the same hash, other photographs another, blank images none."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance

from pocketclip.search.indexing import perceptual_hash as module
from pocketclip.search.indexing.perceptual_hash import hamming, hamming_distances, perceptual_hash


def scene(seed, size=(600, 400)):
    """Return smooth random colours, like a photograph out of focus."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def saved(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_copies_and_others():
    first = scene(1)
    expected = perceptual_hash(first)
    assert expected == 1501568752954575057  # on every machine
    for copy in (
        saved(first, 30),
        first.resize((150, 100)),
        first.resize((1500, 1000)),
        first.crop((6, 4, 594, 396)),
        ImageEnhance.Brightness(first).enhance(0.85),
        ImageEnhance.Contrast(first).enhance(1.2),
    ):
        assert hamming(perceptual_hash(copy), expected) <= 6
    for seed in range(2, 12):
        assert hamming(perceptual_hash(scene(seed)), expected) > 12


def test_a_blank_image_has_none():
    noise = np.random.default_rng(0).normal(128, 6, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    for blank in (Image.new("RGB", (1, 1)), Image.new("RGB", (64, 48), "white"), saved(
        Image.fromarray(noise), 60)):  # fmt: skip
        assert perceptual_hash(blank) is None


def test_distances_without_numpy_2(monkeypatch):
    hashes = np.array([0, 1, (1 << 63) - 1, 5 << 40], np.uint64)
    expected = [[hamming(int(a), int(b)) for b in hashes] for a in hashes]
    assert hamming_distances(hashes[:, None], hashes[None]).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert module.hamming_distances(hashes[:, None], hashes[None]).tolist() == expected
