"""How much of what the start knew a model has kept: 1 for the start itself, 0 for nothing.

    kept = own_retention(start)            # on pictures and captions of the package
    kept = keep_retention("shelf/", start)  # on images of the user's that must not get worse
    kept.score(Encoder(model))

With data to keep, it is the main metric of that set relative to the start's. Without, it is how far
a model agrees with the start about pictures that are not the user's. The start need not know what
they show: two models that know the same agree about anything, and one that has lost the old while
it learnt the new no longer does.

Shapes: N images, M captions, D embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from pocketclip.errors import DataError
from pocketclip.evaluate import DataOptions, RunOptions, evaluate, own_task, plan
from pocketclip.finetune.generic import held_out_captions
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.types import Encoder

_PICTURES, _SIDE, _STREAM = 192, 96, 20


class Retention(Protocol):
    """Compares models with the start."""

    @property
    def name(self) -> str:
        """What is measured, for reports."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Facts about the measure, as JSON values."""
        ...

    def score(self, encoder: Encoder) -> float:
        """Return what a model keeps, from 0 to 1; the start has 1."""
        ...


def own_retention(start: Encoder) -> Retention:
    """Return the agreement with the start on the package's own pictures and captions.

    Some 200 pictures and 200 captions are embedded: seconds for a small model.

    Args:
        start: the model before fine-tuning.

    Raises:
        EmbeddingError: it gives embeddings that are not finite.
    """
    return _Agreement(start)


def keep_retention(data: str, start: Encoder, options: DataOptions | None = None) -> Retention:
    """Return the main metric on a set, relative to the start's.

    A model that is better than the start there has 1 too.

    Args:
        data: a folder by class, a table with labels or captions, or a webdataset, as
            `pocketclip eval` takes it.
        start: the model before fine-tuning.
        options: columns, conditions and names.

    Raises:
        DataError: the set cannot be read, or the start scores 0 on it.
    """
    return _Kept(data, start, options or DataOptions())


class _Kept:
    def __init__(self, data: str, start: Encoder, options: DataOptions) -> None:
        planned = plan((own_task(data),), data, options)
        if not planned.ready:
            raise DataError(f"--keep: {next(iter(planned.missing.values()))}")
        self._task, self._data = planned.ready[0]
        result, _ = evaluate(start, self._task, self._data, RunOptions(cache=None))
        self._start = self._main(result.metrics)
        if not self._start > 0:
            raise DataError(
                f"--keep: the start scores 0 on {data}, so there is nothing to keep: choose images "
                "that it knows"
            )
        self.name = f"{result.about['metric']} on {data}"
        self.about = {"start": self._start, "samples": result.about["samples"]}

    def score(self, encoder: Encoder) -> float:
        result, _ = evaluate(encoder, self._task, self._data, RunOptions(cache=None))
        return min(1.0, self._main(result.metrics) / self._start)

    @staticmethod
    def _main(metrics: Mapping[str, float | None]) -> float:
        value = metrics["main_metric"]
        return 0.0 if value is None else float(value)


class _Agreement:
    name = "agreement with the start on pictures and captions of the package"

    def __init__(self, start: Encoder) -> None:
        self._start = self._affinities(start)
        self.about = {"pictures": len(pictures()), "captions": len(held_out_captions())}

    def score(self, encoder: Encoder) -> float:
        return float(np.clip(agreement(self._start, self._affinities(encoder)), 0.0, 1.0))

    @staticmethod
    def _affinities(encoder: Encoder) -> NDArray[np.float64]:
        images = encoder.encode_image(list(pictures())).astype(np.float64)
        return images @ encoder.encode_text(list(held_out_captions())).T


def agreement(start: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of two models' affinities, doubly centred.

    The mean of each picture's and each caption's affinities is subtracted first: what is compared
    is which caption suits which picture, not that a caption suits them all, as all models with the
    same bias would agree about.

    Args:
        start: (N, M) affinities of pictures and captions.
        other: (N, M), another model's.

    Returns:
        1 for the same affinities (to a factor), about 0 for unrelated ones.
    """
    first, second = _centred(start), _centred(other)
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / size if size > 0 else 0.0


def _centred(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    of_pictures, of_captions = rows.mean(1, keepdims=True), rows.mean(0, keepdims=True)
    centred: NDArray[np.float64] = rows - of_pictures - of_captions + rows.mean()
    return centred


@functools.cache
def pictures() -> tuple[NDArray[np.uint8], ...]:
    """Return textures of coloured noise, uint8 (S, S, 3), always the same.

    Each is a sum of smooth noise from coarse to fine, as natural images have more contrast in
    coarse than in fine detail.
    """
    return tuple(_texture(number) for number in range(_PICTURES))


def _texture(number: int) -> NDArray[np.uint8]:
    rng = ReplayRNG(_STREAM, number)
    out = np.zeros((_SIDE, _SIDE, 3), np.float32)
    for cells in (2, 4, 8, 16, 32):
        noise = rng.random(cells * cells * 3).reshape(cells, cells, 3) - np.float32(0.5)
        smooth = [
            np.asarray(Image.fromarray(noise[:, :, c]).resize((_SIDE, _SIDE), Resampling.BICUBIC))
            for c in range(3)
        ]
        out += np.stack(smooth, 2) * np.float32((4 / cells) ** rng.uniform(0.3, 0.9))
    contrast = rng.uniform(30, 70)
    colour = np.array([rng.uniform(60, 190) for _ in range(3)], np.float32)
    return np.clip((out - out.mean()) / out.std() * contrast + colour, 0, 255).astype(np.uint8)
