"""Images against captions: retrieval, caption choice, and WinoGAViL's associations.

Shapes: B batch, D embedding, I images, M texts, N images of a set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import Example, Puzzle, TaskData
from pocketclip.evaluate.metrics import (
    association_metrics,
    choice_hits,
    choice_metrics,
    jaccard,
    retrieval_metrics,
)
from pocketclip.evaluate.stream import (
    Outcome,
    RunOptions,
    Skipped,
    check_any,
    embed_images,
    embed_texts,
    embedded,
)
from pocketclip.evaluate.tasks import Task
from pocketclip.types import Embeddings, Encoder

_CUES = 256  # per batch


class _Captions:
    """Embeddings of captions, one row per distinct text.

    A model rounds a text differently depending on its batch, and equal texts must score equal.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._row: dict[str, int] = {}
        self._batches: list[Embeddings] = []

    def add(self, batch: Sequence[Example]) -> list[list[int]]:
        """Embed the new captions of a batch; return the rows of each example's captions.

        Raises:
            DataError: an example without captions, or an embedding that is not finite.
        """
        new: dict[str, str] = {}
        for example in batch:
            if not example.captions:
                raise DataError(f"{example.name}: the list of captions is empty")
            for number, text in enumerate(example.captions, 1):
                if text not in self._row:
                    self._row[text] = len(self._row)
                    new[text] = f"{example.name}, caption {number} ({text!r})"
        self._batches.append(embed_texts(self._encoder, list(new), list(new.values())))
        return [[self._row[text] for text in example.captions] for example in batch]

    def rows(self) -> Embeddings:
        """Return all embeddings."""
        self._batches = [np.concatenate(self._batches)]
        return self._batches[0]


def run_retrieval(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return recall at 1, 5 and 10 in both directions, over images with one or more captions.

    Captions longer than the model's context are truncated, as in the published figures of the
    long-caption sets. Memory holds all embeddings of the set, but not its images.

    Raises:
        DataError: invalid captions, images or embeddings.
    """
    del task
    skipped: list[Skipped] = []
    captions = _Captions(encoder)
    images: list[Embeddings] = []
    rows: list[int] = []
    image_of: list[int] = []
    count = 0
    with embedded(encoder, data, options, skipped) as batches:
        for batch, embeddings in batches:
            images.append(embeddings)
            for own in captions.add(batch):
                rows += own
                image_of += [count] * len(own)
                count += 1
    check_any(count, data, skipped)
    texts = captions.rows()[rows]  # (M, D)
    metrics = retrieval_metrics(np.concatenate(images), texts, np.array(image_of))
    return Outcome(metrics=metrics, count=count, skipped=skipped)


def run_caption_choice(
    encoder: Encoder, task: Task, data: TaskData, options: RunOptions
) -> Outcome:
    """Return the share of images whose first caption scores best (SugarCrepe, arXiv 2306.14610).

    Raises:
        DataError: an image with a single caption, or invalid images or embeddings.
    """
    del task
    skipped: list[Skipped] = []
    hits = []
    with embedded(encoder, data, options, skipped) as batches:
        for batch, embeddings in batches:
            captions = _Captions(encoder)
            rows_of = captions.add(batch)
            texts = captions.rows()
            for example, image, rows in zip(batch, embeddings, rows_of, strict=True):
                if len(rows) < 2:
                    raise DataError(f"{example.name} has one caption; this task needs two or more")
                hits.append(choice_hits(_cosines(texts[rows], image)[None]))  # (1, T)
    check_any(len(hits), data, skipped)
    return Outcome(metrics=choice_metrics(hits), count=len(hits), skipped=skipped)


def _cosines(rows: Embeddings, one: Embeddings) -> NDArray[np.float64]:
    """Return the cosines (N,) of rows (N, D) and an embedding (D,), equal for equal rows."""
    cosines: NDArray[np.float64] = (rows * one.astype(np.float64)).sum(axis=1)
    return cosines


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    path: str


def run_association(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return WinoGAViL's Jaccard indices (arXiv 2207.12576), by number of candidates.

    The cue's prompt is `A cue` or `An cue`. Each image is embedded once, even if many puzzles
    share it. A puzzle with a skipped image is skipped too.

    Raises:
        DataError: invalid images or embeddings.
    """
    del task
    skipped: list[Skipped] = []
    embedding_of: dict[str, Embeddings] = {}
    images = embed_images(
        encoder, _distinct_images(data), lambda image: image.path, options, skipped
    )
    with closing(images):
        for batch, embeddings in images:
            embedding_of |= {image.path: row for image, row in zip(batch, embeddings, strict=True)}
    complete = (p for p in _puzzles(data) if all(path in embedding_of for path in p.images))
    scores, sizes = [], []
    while puzzles := list(islice(complete, _CUES)):
        texts = [cue_prompt(puzzle.cue) for puzzle in puzzles]
        names = [f"{puzzle.name}, cue {puzzle.cue!r}" for puzzle in puzzles]
        for puzzle, cue in zip(puzzles, embed_texts(encoder, texts, names), strict=True):
            rows = np.stack([embedding_of[path] for path in puzzle.images])  # (I, D)
            scores.append(jaccard(_cosines(rows, cue), np.array(puzzle.associated)))
            sizes.append(len(rows))
    check_any(len(scores), data, skipped)
    return Outcome(metrics=association_metrics(scores, sizes), count=len(scores), skipped=skipped)


def _puzzles(data: TaskData) -> Iterator[Puzzle]:
    for sample in data:
        if not isinstance(sample, Puzzle):
            raise DataError(f"{data.path} holds images, not puzzles")
        yield sample


def _distinct_images(data: TaskData) -> Iterator[_Image]:
    seen = set()
    for puzzle in _puzzles(data):
        for path in puzzle.images:
            if path not in seen:
                seen.add(path)
                yield _Image(f"{puzzle.name}: {path}", path)


def cue_prompt(cue: str) -> str:
    """Return the prompt for a cue, as used for the published figures."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in ('a', 'e', 'i', 'o', 'u') else 'A'} {cue}"
