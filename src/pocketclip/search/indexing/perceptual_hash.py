"""A hash of what a photograph looks like, the same for copies of another size or quality.

    distance = hamming(perceptual_hash(a), perceptual_hash(b))  # 0: alike; about 32: unrelated

The lowest frequencies of the brightness, each above or below their median ("pHash", Zauner 2010,
section 3.2.1), without the mean. In whole numbers throughout: every machine gives the same value.
Copies of other sizes, qualities, brightness and contrast differ in at most 6 bits, cropped ones in
more; rotated and mirrored copies have other hashes. See `docs/how-to/search.md` for the figures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

BITS = 63
"""Bits of a hash: all frequencies but the mean."""
_SAMPLES = 512
"""Pixels per side that are looked at: averaging all of a large photograph takes 10 ms, these 1 ms,
and the hashes recognise copies equally well."""
_GRID = 32  # means of samples per side
_KEPT = 8  # frequencies per side
_LEAST_DEVIATION = 2.0
"""Of the means, in levels of 0 to 255. In a flatter image the hash would be one of the noise."""
_COSINES = np.array(
    [
        [
            round(math.cos(math.pi * frequency * (2 * place + 1) / (2 * _GRID)) * 4096)
            for place in range(_GRID)
        ]
        for frequency in range(_KEPT)
    ],
    np.int64,
)


def perceptual_hash(image: Image.Image) -> int | None:
    """Return the hash of an upright RGB image: 63 bits, from 0 to 2**63 - 1.

    Args:
        image: of any size and aspect, as `open_image` returns it.

    Returns:
        None for an image that is blank or nearly so, for which a hash would say nothing.
    """
    from PIL import Image  # a search compares hashes only, and starts sooner without

    # The nearest pixels of an even grid, then means of 16 x 16 of them.
    samples = image.resize((_SAMPLES, _SAMPLES), Image.Resampling.NEAREST)
    means = np.asarray(samples.reduce(_SAMPLES // _GRID).convert("L"), np.int64)
    count = means.size
    if count * int((means**2).sum()) - int(means.sum()) ** 2 < (count * _LEAST_DEVIATION) ** 2:
        return None
    frequencies = (_COSINES @ means @ _COSINES.T).ravel()[1:]
    median = np.sort(frequencies)[len(frequencies) // 2]
    bits = 0
    for above in (frequencies > median).tolist():
        bits = bits << 1 | above
    return bits


def hamming(first: int, second: int) -> int:
    """Return in how many bits two hashes differ."""
    return (first ^ second).bit_count()


def hamming_distances(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return in how many bits the hashes of two arrays differ, pair by pair."""
    different = first ^ second
    if hasattr(np, "bitwise_count"):  # since numpy 2.0
        return np.bitwise_count(different)
    return _BITS_OF[different[..., None].view(np.uint16)].sum(-1, dtype=np.uint8)


_BITS_OF = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
