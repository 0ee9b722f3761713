"""Scores a model on the validation images, and on what it is to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketclip import zoo
from pocketclip.errors import ImageError
from pocketclip.finetune.retention import Retention, keep_retention, own_retention
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.preprocess import Preprocess
from pocketclip.train.evaluation import make_scorer
from pocketclip.train.sections import EvaluationSection

_BATCH = 64


class Validation:
    """The validation set in a folder, as `tables` writes it.

    Raises:
        ConfigError: the set cannot be read.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.metric = metric
        self._score = make_scorer(EvaluationSection(data=str(folder)))

    def score(self, model: CLIP) -> float:
        """Return a model's score, 0 to 1.

        Raises:
            PocketclipError: the model cannot be scored.
        """
        training = model.training
        value = float(self._score(model, 0)["main_metric"])
        model.train(training)
        return value

    def retention(self, start: CLIP, keep: str | None) -> Retention:
        """Return what measures how much of the start's knowledge a model has."""
        encoder = Encoder(start)
        return own_retention(encoder) if keep is None else keep_retention(keep, encoder)


def training_pixels(
    images: Sequence[bytes | str], preprocess: zoo.PreprocessConfig
) -> Callable[[], Iterator[Tensor]]:
    """Return a function that yields images as pixel batches (B, 3, S, S).

    Unreadable images are left out.
    """
    transform = Preprocess(preprocess)

    def batches() -> Iterator[Tensor]:
        batch: list[Tensor] = []
        for image in images:
            try:
                batch.append(torch.from_numpy(np.asarray(transform(image))))
            except ImageError:
                continue
            if len(batch) == _BATCH:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)

    return batches
