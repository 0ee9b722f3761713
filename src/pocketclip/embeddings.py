"""Embeddings checked, and scaled to unit length: a useless one is an error that names its input.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pocketclip.errors import EmbeddingError
from pocketclip.types import Embeddings

_SHORTEST = 1e-12
"""The length up to which torch's `normalize` leaves a vector shorter than 1."""
_SHOWN = 60
_FAULT = "the model's weights or its precision are at fault"


def check_finite(
    rows: Embeddings, name_of: Callable[[int], str], fault: str = _FAULT
) -> Embeddings:
    """Return embeddings (B, D) as float32.

    Args:
        rows: the embeddings.
        name_of: names the input of a row, for messages.
        fault: what to say about the cause.

    Raises:
        EmbeddingError: a value is NaN or infinite; names the first such input.
    """
    rows = np.asarray(rows, np.float32)
    finite = np.isfinite(rows).all(axis=-1)
    if not finite.all():
        row = int(np.argmin(finite))
        reason = f"its embedding is not finite (NaN or infinite); {fault}"
        raise EmbeddingError(name_of(row), reason, row)
    return rows


def check_lengths(
    rows: Embeddings, name_of: Callable[[int], str], fault: str = _FAULT
) -> Embeddings:
    """Return the lengths (B, 1) of embeddings (B, D); arguments as of `check_finite`.

    Raises:
        EmbeddingError: one is not finite, or has no direction (all zeros); names its input.
    """
    rows = check_finite(rows, name_of, fault)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(lengths).all():  # the squares overflow
        lengths = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    short = lengths[..., 0] < _SHORTEST
    if short.any():
        row = int(np.argmax(short))
        raise EmbeddingError(name_of(row), f"its embedding is zero; {fault}", row)
    return lengths


def unit_length(rows: Embeddings, name_of: Callable[[int], str], fault: str = _FAULT) -> Embeddings:
    """Return embeddings (B, D) at unit length, float32; arguments as of `check_finite`.

    Raises:
        EmbeddingError: as `check_lengths`.
    """
    unit: Embeddings = np.asarray(rows, np.float32) / check_lengths(rows, name_of, fault)
    return unit.astype(np.float32, copy=False)


def check_scale(scale: float) -> float:
    """Return the multiplier of cosine similarities.

    Raises:
        EmbeddingError: it is not finite, or not above 0.
    """
    if not 0 < scale < math.inf:  # so written, NaN fails
        raise EmbeddingError("logit scale", f"it is {scale}; the model's weights are damaged")
    return scale


def image_name(image: Any, position: int) -> str:
    """Return what to call an image in messages: its path, or its position counted from 0."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    return f"image {position} (counted from 0)"


def text_name(text: str) -> str:
    """Return what to call a text in messages: its beginning, in quotes."""
    return f"text {text!r}" if len(text) <= _SHOWN else f"text {text[:_SHOWN]!r}..."
