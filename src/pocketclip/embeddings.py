"""Checks embeddings and scales them to unit length, and turns logits into ranked labels.

Errors name the input of a bad embedding.

Shapes: B batch, D embedding, L labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import EmbeddingError
from pocketclip.types import Embeddings

MIN_LENGTH = 1e-12
"""Minimum length of an embedding: the epsilon of torch's `normalize`."""
_MAX_SHOWN = 60
_DEFAULT_FAULT = "the model's weights or its precision are at fault"


def row_lengths(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the lengths (B, 1) of rows (B, D), computed in float64."""
    return np.asarray(np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True))


def check_finite(
    rows: Embeddings, name_of: Callable[[int], str], fault: str = _DEFAULT_FAULT
) -> Embeddings:
    """Return embeddings (B, D) as float32.

    Args:
        rows: the embeddings.
        name_of: returns the name of the input of a row, for messages.
        fault: the probable cause, for messages.

    Raises:
        EmbeddingError: a value is NaN or infinite; the message names the first such input.
    """
    rows = np.asarray(rows, np.float32)
    finite = np.isfinite(rows).all(axis=-1)
    if not finite.all():
        row = int(np.argmin(finite))
        reason = f"its embedding is not finite (NaN or infinite); {fault}"
        raise EmbeddingError(name_of(row), reason, row)
    return rows


def check_lengths(
    rows: Embeddings, name_of: Callable[[int], str], fault: str = _DEFAULT_FAULT
) -> Embeddings:
    """Return the lengths (B, 1) of embeddings (B, D); arguments as for `check_finite`.

    Raises:
        EmbeddingError: an embedding is not finite, or is zero; the message names its input.
    """
    rows = check_finite(rows, name_of, fault)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(lengths).all():  # the squares overflow
        lengths = row_lengths(rows)
    short = lengths[..., 0] < MIN_LENGTH
    if short.any():
        row = int(np.argmax(short))
        raise EmbeddingError(name_of(row), f"its embedding is zero; {fault}", row)
    return lengths


def unit_length(
    rows: Embeddings, name_of: Callable[[int], str], fault: str = _DEFAULT_FAULT
) -> Embeddings:
    """Return embeddings (B, D) at unit length, float32; arguments as for `check_finite`.

    Raises:
        EmbeddingError: as `check_lengths`.
    """
    unit: Embeddings = np.asarray(rows, np.float32) / check_lengths(rows, name_of, fault)
    return unit.astype(np.float32, copy=False)


def check_scale(scale: float) -> float:
    """Return `scale`, the multiplier of cosine similarities, after checking it.

    Raises:
        EmbeddingError: it is not finite or not positive.
    """
    if not 0 < scale < math.inf:  # False for NaN
        raise EmbeddingError("logit scale", f"it is {scale}; the model's weights are damaged")
    return scale


def image_name(image: Any, position: int) -> str:
    """Return the name of an image in messages: its path, or its position counted from 0."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    return f"image {position} (counted from 0)"


def text_name(text: str) -> str:
    """Return the name of a text in messages: its beginning in quotes."""
    return f"text {text!r}" if len(text) <= _MAX_SHOWN else f"text {text[:_MAX_SHOWN]!r}..."


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the probabilities of logits (..., L)."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def rank_probabilities(
    probabilities: NDArray[Any], labels: Sequence[str], top: int | None = None
) -> list[dict[str, float]]:
    """Return, per row of (B, L), the probabilities of the `top` labels or all, highest first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        {labels[i]: float(row[i]) for i in ranked}
        for row, ranked in zip(probabilities, order, strict=True)
    ]
