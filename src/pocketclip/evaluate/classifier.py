"""The zero-shot classifier: class names and prompts to one embedding per class.

    classifier = build_classifier(encoder, ["apple", "pear"], ["a photo of a {c}."], cache="cache")
    scores = embeddings @ classifier.T

Shapes: C classes, D embedding, T templates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from pocketclip.embeddings import row_lengths
from pocketclip.errors import DataError
from pocketclip.evaluate.stream import embed_texts
from pocketclip.prompts import fill_templates
from pocketclip.storage.local import write_whole
from pocketclip.types import Embeddings, Encoder

log = logging.getLogger(__name__)
_TOLERANCE = 1e-4
"""Largest difference between a cached and a new embedding: far below the effect of
quantisation, far above that of summation order."""
_CLASSES = 32  # per batch of prompts


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the C x T prompts, class by class; `{c}` or `{}` stands for the class.

    Raises:
        DataError: no class or template, or a template without `{c}` or `{}`.
    """
    return fill_templates(classes, templates)


def build_classifier(
    encoder: Encoder,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    cache: str | os.PathLike[str] | None = None,
) -> Embeddings:
    """Return one unit embedding (C, D) per class.

    The prompts' embeddings are normalised, averaged over the templates and normalised again.
    Classes with the same name have the same embedding. If `cache` is a folder, the result is stored
    there by the encoder's `space_id`. Quantised variants of a model share its `space_id`, so a
    cached result is used only if its first class agrees with the encoder's.

    Raises:
        DataError: invalid names or prompts, or embeddings that are not finite.
    """
    distinct = {name: position for position, name in enumerate(dict.fromkeys(classes))}
    texts = prompts(list(distinct), templates)
    count = len(templates)
    path = None if cache is None else _cache_file(Path(cache), encoder, classes, templates)
    first = _mean(encoder, texts[:count], count)
    if path is not None:
        cached = _read(path, (len(classes), encoder.embed_dim))
        if cached is not None and np.abs(cached[:1] - first).max() <= _TOLERANCE:
            return cached
    step = _CLASSES * count
    others = [_mean(encoder, texts[b : b + step], count) for b in range(count, len(texts), step)]
    classifier = np.concatenate([first, *others])[[distinct[name] for name in classes]]
    if path is not None:
        _write(path, classifier)
    return classifier


def _mean(encoder: Encoder, texts: Sequence[str], templates: int) -> Embeddings:
    rows = embed_texts(encoder, texts, [f"the prompt {text!r}" for text in texts])  # (C * T, D)
    mean = rows.reshape(-1, templates, rows.shape[1]).mean(axis=1, dtype=np.float64)  # (C, D)
    lengths = row_lengths(mean)
    if not lengths.all():
        at = int(np.argmin(lengths)) * templates
        raise DataError(f"the prompts from {texts[at]!r} on cancel each other: their mean is zero")
    unit: Embeddings = (mean / lengths).astype(np.float32)
    return unit


def _cache_file(
    cache: Path, encoder: Encoder, classes: Sequence[str], templates: Sequence[str]
) -> Path:
    def short(value: object) -> str:
        text = json.dumps(value, ensure_ascii=False)
        # A class named after a file may hold what UTF-8 cannot.
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    space = encoder.space_id
    folder = space if space.isalnum() else short(space)
    return cache / folder / f"{short([list(classes), list(templates)])}.npy"


def _read(path: Path, shape: tuple[int, int]) -> Embeddings | None:
    """Return the cached classifier, or None if there is none or it is unusable."""
    try:
        with path.open("rb") as stream:
            rows = npy.read_array(stream, allow_pickle=False)
        if rows.shape != shape or rows.dtype != np.float32:
            raise ValueError(f"{rows.dtype} {rows.shape}, not float32 {shape}")
        lengths = np.linalg.norm(rows, axis=1)
        if not (np.abs(lengths - 1) < _TOLERANCE).all():  # also catches NaN
            raise ValueError("not of unit length")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, MemoryError) as error:
        log.warning("%s is replaced: it is not a classifier for these classes (%s)", path, error)
        return None
    classifier: Embeddings = rows
    return classifier


def _write(path: Path, classifier: Embeddings) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, classifier, allow_pickle=False)
    except OSError as error:
        log.warning("the class embeddings cannot be cached: %s", error)
