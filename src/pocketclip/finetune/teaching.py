"""Teachers and captioners of fine-tuning: what is distilled besides the start.

A larger teacher is checked on the user's own images before it is paid for, against the start. Where
images have no texts, a captioner writes them, or a teacher says what they show.

Shapes: N images, M texts, D embedding.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.embeddings import softmax
from pocketclip.errors import DataError, ImageError, count_of
from pocketclip.finetune.generic import training_captions
from pocketclip.finetune.own_images import OwnImages
from pocketclip.formats.json_text import digest_json, read_json
from pocketclip.images import open_image
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.reinforce.captioners import Captioner, load_captioner, seed_of
from pocketclip.reinforce.own_models import OwnCaptioner
from pocketclip.reinforce.teacher_check import CheckSample, check_teachers, is_clearly_better
from pocketclip.reinforce.teachers import load_teacher
from pocketclip.storage.local import write_whole

_CHECKED = 200
"""Images that a teacher is checked on."""
_BATCH = 16
_ERROR = "error: "
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCheck:
    """What the teachers scored on the user's images, and whether they are used."""

    used: bool
    lines: list[str]
    """One per model, the start first, then what follows from it."""
    facts: list[dict[str, Any]]


def check(
    start: CLIP, specs: Sequence[str], own: OwnImages, *, seed: int, offline: bool
) -> TeacherCheck:
    """Return what teachers score on the user's images: clearly more than the start, or not.

    Args:
        start: the model to be trained.
        specs: one teacher, or an ensemble.
        own: the images, with texts.
        seed: of the choice among more than 200 images.
        offline: take models from the local cache only.

    Raises:
        PocketclipError: a teacher cannot be loaded, or too few images can be read.
    """
    chosen = np.random.default_rng(seed).permutation(len(own))[:_CHECKED]
    good = [i for i in chosen if not why_unreadable(own.images[i])]
    labelled = own.kind == "labels" and own.labels is not None
    sample = CheckSample(
        names=[own.names[i] for i in good],
        images=[own.images[i] for i in good],
        texts=[own.classes[own.labels[i]] if labelled else own.captions[i][0] for i in good],  # type: ignore[index]
        is_labelled=labelled,
    )
    encoders: list[Any] = [Encoder(start), *(load_teacher(s, offline=offline) for s in specs)]
    templates = {"templates": own.templates} if labelled else {}
    scores, _ = check_teachers(encoders, sample, names=["start", *specs], **templates)
    together = scores[1]
    if len(specs) > 1:
        together = check_teachers(encoders[1:], sample, names=list(specs), **templates)[1]
    used = is_clearly_better(together, scores[0])
    verdict = (
        "clearly better than the start: its embeddings are distilled"
        if used
        else "not clearly better than the start on these images: left out"
    )
    lines = [*(score.line() for score in scores), f"{', '.join(specs)}: {verdict}"]
    return TeacherCheck(used=used, lines=lines, facts=[score.facts() for score in scores])


def why_unreadable(image: bytes | str) -> str:
    """Return why an image cannot be read; empty if it can."""
    try:
        open_image(image)
    except ImageError as error:
        return str(error)
    return ""


def labelled_by_teacher(
    own: OwnImages, chosen: Sequence[int], specs: Sequence[str], *, offline: bool
) -> list[int]:
    """Return which generic caption each of some images shows most, as the teachers say: its number.

    The teachers' affinities are averaged, as in distillation. An image that cannot be read has -1.

    Args:
        own: the images.
        chosen: the numbers of the images.
        specs: the teachers.
        offline: take models from the local cache only.
    """
    total: Any = 0.0
    for spec in specs:
        teacher = load_teacher(spec, offline=offline)
        texts = teacher.encode_text(training_captions())
        rows = []
        for i in chosen:
            try:
                logits = teacher.logit_scale * (teacher.encode_image([own.images[i]]) @ texts.T)[0]
                rows.append(softmax(logits))
            except ImageError:
                rows.append(np.full(len(texts), np.nan, np.float32))
        total = total + np.stack(rows)
    return [-1 if np.isnan(row).any() else int(row.argmax()) for row in total]


def caption(
    own: OwnImages,
    spec: str,
    file: Path,
    *,
    seed: int,
    offline: bool,
    advance: Callable[[int, int], None],
) -> OwnImages:
    """Return images with a caption each that a captioner wrote; `file` holds them from then on.

    Args:
        own: images without texts.
        spec: the captioner, as `pocketclip reinforce --captioner` takes it.
        file: JSON; rewritten after every batch, so that an interrupted call continues.
        seed: of the sampling.
        offline: take models from the local cache only.
        advance: called with the numbers of captioned images and of images in all.

    Raises:
        DataError: fewer than two images could be read.
        PocketclipError: the captioner cannot be loaded.
    """
    written = _captions_of(file, spec, seed)
    waiting = [i for i, name in enumerate(own.names) if name not in written]
    if waiting:
        captioner = load_captioner(spec, offline=offline)
        for begin in range(0, len(waiting), _BATCH):
            batch = waiting[begin : begin + _BATCH]
            readable: dict[str, bytes | str] = {}
            for i in batch:
                reason = why_unreadable(own.images[i])
                if reason:
                    written[own.names[i]] = [f"{_ERROR}{reason}"]
                else:
                    readable[own.names[i]] = own.images[i]
            if readable:
                written |= dict(zip(readable, _write(captioner, readable, seed), strict=True))
            _write_captions(file, spec, seed, written)
            advance(len(own) - len(waiting) + begin + len(batch), len(own))
    bad = [n for n in own.names if not written[n] or written[n][0].startswith(_ERROR)]
    good = [i for i, name in enumerate(own.names) if name not in set(bad)]
    if len(good) < 2:
        raise DataError(f"{own.source}: {count_of(len(good), 'image')} could be captioned")
    return dataclasses.replace(
        own,
        kind="captions",
        names=[own.names[i] for i in good],
        images=[own.images[i] for i in good],
        captions=[written[own.names[i]] for i in good],
        left_out=[f"{name}: {''.join(written[name]) or 'no caption'}" for name in bad],
    )


def _write(
    captioner: Captioner | OwnCaptioner, images: dict[str, bytes | str], seed: int
) -> list[list[str]]:
    """Return one caption, or none, for each image by name."""
    if isinstance(captioner, OwnCaptioner):
        seeds = [seed_of(seed, name, 0) for name in images]
        return captioner.caption_images(list(images.values()), seeds, 1)
    squares = np.stack([captioner.transform.square(image) for image in images.values()])
    return captioner.caption_squares(squares, list(images), 1, seed)


def _captions_of(file: Path, spec: str, seed: int) -> dict[str, list[str]]:
    if not file.is_file():
        return {}
    try:
        held = read_json(file)
        if held["of"] == digest_json([spec, seed]):
            return {str(k): [str(text) for text in v] for k, v in held["captions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s is damaged; the images are captioned again", file)
    return {}


def _write_captions(file: Path, spec: str, seed: int, captions: dict[str, list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(file) as temporary:
        value = {"of": digest_json([spec, seed]), "captions": captions}
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
