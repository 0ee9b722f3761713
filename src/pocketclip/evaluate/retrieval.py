"""Images against captions: retrieval, choosing a caption, and WinoGAViL's associations.

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

_CUES = 256  # that are embedded together


class _Captions:
    """Embeddings of captions; those of one text are one row.

    A model rounds a text differently by the batch it is in, and what is equal must score equal.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._row: dict[str, int] = {}
        self._parts: list[Embeddings] = []

    def add(self, batch: Sequence[Example]) -> list[list[int]]:
        """Embed what is new in a batch; return, per example, the rows of its captions.

        Raises:
            DataError: an example without captions; an embedding that is not finite.
        """
        new: dict[str, str] = {}
        for example in batch:
            if not example.captions:
                raise DataError(f"{example.name}: the list of captions is empty")
            for number, text in enumerate(example.captions, 1):
                if text not in self._row:
                    self._row[text] = len(self._row)
                    new[text] = f"{example.name}, caption {number} ({text!r})"
        self._parts.append(embed_texts(self._encoder, list(new), list(new.values())))
        return [[self._row[text] for text in example.captions] for example in batch]

    def rows(self) -> Embeddings:
        """Return all embeddings."""
        self._parts = [np.concatenate(self._parts)]
        return self._parts[0]


def run_retrieval(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return recalls at 1, 5 and 10 both ways, over images with one or more captions each.

    Captions longer than the model reads are cut, as in the published figures of the long-caption
    sets. The embeddings of the set are kept until its end; its images are not.

    Raises:
        DataError: captions, images or embeddings that are not what they should be.
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
    """Return how often an image's first caption beats its others (SugarCrepe, arXiv 2306.14610).

    Raises:
        DataError: an image with a single caption; images or embeddings as above.
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
                    raise DataError(f"{example.name} has one caption: there is nothing to choose")
                hits.append(choice_hits(_cosines(texts[rows], image)[None]))  # (1, T)
    check_any(len(hits), data, skipped)
    return Outcome(metrics=choice_metrics(hits), count=len(hits), skipped=skipped)


def _cosines(rows: Embeddings, one: Embeddings) -> NDArray[np.float64]:
    """Return the scores (N,) of rows (N, D) with one embedding (D,); equal rows score equal."""
    cosines: NDArray[np.float64] = (rows * one.astype(np.float64)).sum(axis=1)
    return cosines


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    path: str


def run_association(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return WinoGAViL's Jaccard indices (arXiv 2207.12576), by number of candidates.

    The cue's prompt is `A cue` or `An cue`. Each image is embedded once, though many puzzles
    share it. A puzzle with an unreadable image is left out with that image.

    Raises:
        DataError: images or embeddings that are not what they should be.
    """
    del task
    skipped: list[Skipped] = []
    found: dict[str, Embeddings] = {}
    images = embed_images(encoder, _distinct(data), lambda image: image.path, options, skipped)
    with closing(images):
        for batch, embeddings in images:
            found |= {image.path: row for image, row in zip(batch, embeddings, strict=True)}
    whole = (puzzle for puzzle in _puzzles(data) if all(path in found for path in puzzle.images))
    scores, sizes = [], []
    while puzzles := list(islice(whole, _CUES)):
        texts = [cue_prompt(puzzle.cue) for puzzle in puzzles]
        names = [f"{puzzle.name}, cue {puzzle.cue!r}" for puzzle in puzzles]
        for puzzle, cue in zip(puzzles, embed_texts(encoder, texts, names), strict=True):
            rows = np.stack([found[path] for path in puzzle.images])  # (I, D)
            scores.append(jaccard(_cosines(rows, cue), np.array(puzzle.associated)))
            sizes.append(len(rows))
    check_any(len(scores), data, skipped)
    return Outcome(metrics=association_metrics(scores, sizes), count=len(scores), skipped=skipped)


def _puzzles(data: TaskData) -> Iterator[Puzzle]:
    for sample in data:
        if not isinstance(sample, Puzzle):
            raise DataError(f"{data.place} holds images, not puzzles")
        yield sample


def _distinct(data: TaskData) -> Iterator[_Image]:
    seen = set()
    for puzzle in _puzzles(data):
        for path in puzzle.images:
            if path not in seen:
                seen.add(path)
                yield _Image(f"{puzzle.name}: {path}", path)


def cue_prompt(cue: str) -> str:
    """Return the prompt for a cue, as the published figures have it."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in ('a', 'e', 'i', 'o', 'u') else 'A'} {cue}"
