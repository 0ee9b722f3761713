"""Checks of a single sample: the writer refuses a sample that fails, the audit reports it.

Shapes: A augmentations, D width, K teachers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from pocketclip.types import Embeddings, Sample

MAX_UID = 200
"""Most bytes of a uid: a file's name with its suffix may have at most 255."""
MAX_TEACHERS = 16
_EMBEDDING = re.compile(r"(.+)_emb")


def faults(sample: Sample, teacher_dims: Sequence[int] = ()) -> Iterator[tuple[str, str]]:
    """Yield (kind, reason) of each problem; kinds are `uid`, `image`, `captions`, `shape`, `nan`.

    Args:
        sample: the sample.
        teacher_dims: the width of each teacher's embeddings, D in total; empty if unknown.
    """
    uid = sample.uid
    # Lone surrogates stand for bytes that are not UTF-8, and cannot be written.
    is_plain = uid.encode("utf-8", "replace").decode() == uid and uid.isprintable()
    if not uid or "." in uid or "/" in uid or not is_plain or len(uid.encode("utf-8")) > MAX_UID:
        yield (
            "uid",
            f"the uid {uid!r} is empty, longer than {MAX_UID} bytes, or has a dot, a slash or "
            "a character that cannot be printed",
        )
    if sample.image is not None and not sample.image:
        yield "image", "the image is empty (0 bytes)"
    for number, view in enumerate(sample.views or ()):
        if not view:
            yield "image", f"view {number} is empty (0 bytes)"
    views, params = sample.views, sample.param_aug
    if views is not None and params is not None and len(views) != len(params):
        yield "shape", f"there are {len(views)} views for {len(params)} augmentations"
    for key, texts in sample.captions.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            yield "captions", f"{key} is not a list of texts"
    width = sum(teacher_dims)
    for key, array in sample.embeddings.items():
        if array.ndim != 2 or 0 in array.shape[1:]:
            yield "shape", f"{key} has the shape {array.shape}, not (rows, width)"
            continue
        if not np.isfinite(array).all():
            yield "nan", f"{key} has values that are NaN or infinite"
        match = _EMBEDDING.fullmatch(key)
        if match is None:
            continue  # another job's key, which may have any width
        width = width or array.shape[1]
        if array.shape[1] != width:
            yield "shape", f"{key} has the width {array.shape[1]}, not {width}"
        if match[1] == "image":
            expected, of = sample.param_aug, "augmentations"
        else:
            expected, of = sample.captions.get(match[1]), f"captions under {match[1]}"
        if expected is not None and len(array) != len(expected):
            yield "shape", f"{key} has {len(array)} rows for {len(expected)} {of}"


def odd_norms(
    sample: Sample, teacher_dims: Sequence[int] = (), tolerance: float = 5e-3
) -> Iterator[tuple[str, str]]:
    """Yield (kind `norm`, reason) of embeddings that are not of unit length per teacher.

    If the teachers' widths are unknown, all rows must have one length sqrt(K), that of K
    concatenated unit vectors, for any K.
    """
    length = None
    for key, array in sample.embeddings.items():
        if _EMBEDDING.fullmatch(key) is None or array.ndim != 2 or not np.isfinite(array).all():
            continue
        norms = _norms(array, teacher_dims)
        if not norms.size:
            continue
        if teacher_dims:
            length = 1.0
        elif length is None:
            count = min(max(round(float(norms.flat[0]) ** 2), 1), MAX_TEACHERS)
            length = count**0.5
        deviation = np.abs(norms / length - 1).max()
        if deviation > tolerance:
            worst = norms.flat[np.abs(norms / length - 1).argmax()]
            yield "norm", f"{key} has a row of length {worst:.4g} where {length:.4g} was expected"


def _norms(array: Embeddings, teacher_dims: Sequence[int]) -> Embeddings:
    """Return the length of each teacher's embedding in each row (N, K)."""
    if not teacher_dims or sum(teacher_dims) != array.shape[1]:
        return np.asarray(np.linalg.norm(array, axis=1, keepdims=True), np.float32)
    starts = np.cumsum([0, *teacher_dims])
    by_teacher = [np.linalg.norm(array[:, a:b], axis=1) for a, b in itertools.pairwise(starts)]
    return np.asarray(np.stack(by_teacher, axis=1), np.float32)
