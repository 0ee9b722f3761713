"""Whether two files show one shot or two: their pixels, one laid over the other.

    correlation = overlap(grey("a.jpg"), grey("b.jpg"))  # 0.98 and more: one shot

Two shots of one scene have close hashes and embeddings, but their edges are never at the same
places. Copies of one shot agree in all of the picture, or of the part that a crop left.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.images import open_image

_LONGEST = 256  # pixels of a picture's longer side
_POINTS = 64  # per side
_STEPS = (0.04, 0.02, 0.01, 0.005)  # of an edge of the part, in shares of the picture's side
_LEAST_PART = 0.7  # of a side
_ENOUGH = 0.995  # nothing better is looked for

Box = tuple[float, float, float, float]


def grey(source: str | os.PathLike[str]) -> Image.Image:
    """Return a photograph, upright, small and grey.

    Raises:
        ImageError: it cannot be read.
    """
    image = open_image(source, least_side=_LONGEST)
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX, reducing_gap=None)
    return image.convert("L")


def overlap(first: Image.Image, second: Image.Image) -> float:
    """Return the correlation of two grey pictures, or of one with a part of the other.

    Returns:
        Pearson's correlation of 64 x 64 means, for the part for which it is highest: 1 for equal
        pictures.
    """
    found = _correlation(_points(first), _points(second))
    for whole, part in ((first, second), (second, first)):
        if found < _ENOUGH:
            found = max(found, _best_part(whole, _points(part)))
    return found


def _best_part(picture: Image.Image, points: NDArray[np.float32]) -> float:
    """Return the highest correlation of a part of a picture, moving one edge after the other."""
    box: Box = (0.0, 0.0, 1.0, 1.0)
    best = _correlation(_points(picture, box), points)
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for edge in range(4):
                for by in (-step, step):
                    tried = _with_edge(box, edge, box[edge] + by)
                    if tried is None:
                        continue
                    value = _correlation(_points(picture, tried), points)
                    if value > best + 1e-4:
                        best, box, moved = value, tried, True
    return best


def _with_edge(box: Box, edge: int, place: float) -> Box | None:
    """Return a box with one edge moved; None if it is outside, or leaves too little."""
    sides = list(box)
    sides[edge] = min(1.0, max(0.0, place))
    left, top, right, bottom = sides
    if sides[edge] == box[edge] or right - left < _LEAST_PART or bottom - top < _LEAST_PART:
        return None
    return left, top, right, bottom


def _points(picture: Image.Image, box: Box = (0.0, 0.0, 1.0, 1.0)) -> NDArray[np.float32]:
    width, height = picture.size
    part = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    size = (_POINTS, _POINTS)
    points = np.asarray(picture.resize(size, Image.Resampling.BOX, box=part), np.float32)
    return points - points.mean()


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.vdot(first, second)) / length if length else 0.0
