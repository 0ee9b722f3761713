"""Images against captions: retrieval, choosing a caption, and WinoGAViL's associations.

Shapes: B batch, D embedding, I images, M texts, N images of a set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pocketclip.errors import DataError
from pocketclip.evaluate.examples import Puzzle, TaskData
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
    embed_images,
    embed_texts,
    images_of,
)
from pocketclip.evaluate.tasks import Task
from pocketclip.types import Embeddings, Encoder


def run_retrieval(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return recalls at 1, 5 and 10 both ways, over images with one or more captions each.

    Captions longer than the model reads are cut, as in the published figures of the long-caption
    sets. The embeddings of the set are kept until its end; its images are not.

    Raises:
        DataError: captions, images or embeddings that are not what they should be.
    """
    del task
    skipped: list[Skipped] = []
    images, texts, image_of = [], [], []
    count = 0
    for batch, embeddings in embed_images(
        encoder, images_of(data), lambda example: example.image, options, skipped
    ):
        captions = [text for example in batch for text in example.captions]
        image_of += [count + i for i, example in enumerate(batch) for _ in example.captions]
        images.append(embeddings)
        texts.append(embed_texts(encoder, captions, "the caption"))
        count += len(batch)
    if not count:
        raise DataError(f"{data.place}: no image could be read")
    metrics = retrieval_metrics(np.concatenate(images), np.concatenate(texts), np.array(image_of))
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
    for batch, embeddings in embed_images(
        encoder, images_of(data), lambda example: example.image, options, skipped
    ):
        texts = embed_texts(encoder, [t for e in batch for t in e.captions], "the caption")
        begin = 0
        for example, image in zip(batch, embeddings, strict=True):
            if len(example.captions) < 2:
                raise DataError(f"{example.name} has one caption: there is nothing to choose")
            own = texts[begin : begin + len(example.captions)]
            hits.append(choice_hits((own @ image)[None]))  # (1, T)
            begin += len(own)
    if not hits:
        raise DataError(f"{data.place}: no image could be read")
    return Outcome(metrics=choice_metrics(hits), count=len(hits), skipped=skipped)


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
    for batch, embeddings in embed_images(
        encoder, _distinct(data), lambda image: image.path, options, skipped
    ):
        found |= {image.path: row for image, row in zip(batch, embeddings, strict=True)}
    scores, sizes = [], []
    for puzzle in _puzzles(data):
        if not all(path in found for path in puzzle.images):
            continue
        (cue,) = embed_texts(encoder, [cue_prompt(puzzle.cue)], "the cue")
        images = np.stack([found[path] for path in puzzle.images])  # (I, D)
        scores.append(jaccard(images @ cue, np.array(puzzle.associated)))
        sizes.append(len(puzzle.images))
    if not scores:
        raise DataError(f"{data.place}: no puzzle has only images that can be read")
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
