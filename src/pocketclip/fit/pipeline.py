"""From labelled photographs to a label set.

    fitted = fit_labels(pocketclip.load("laptop/"), "shelf/")
    fitted.label_set.write("labels.json")

Shapes: D embedding, L classes, M held-out photographs, N photographs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketclip._version import __version__
from pocketclip.embeddings import softmax
from pocketclip.errors import ConfigError, DataError, count_of
from pocketclip.evaluate.classifier import build_classifier
from pocketclip.evaluate.datasets.examples import DataOptions, Example
from pocketclip.evaluate.datasets.labelled_images import LabelledImages, read_labelled
from pocketclip.evaluate.stream import RunOptions, Skipped, embed_images
from pocketclip.fit.calibration import calibration_error, fit_temperature, log_loss, lowest_score
from pocketclip.fit.cross_validation import (
    FIXED,
    METHODS,
    STRENGTHS,
    HeldOut,
    choose_strength,
    fit_temperature_of_some,
    heads,
)
from pocketclip.fit.folds import same_photographs, spread
from pocketclip.fit.head import Doubles, Head, Integers, zero_shot_head
from pocketclip.fit.summary import confused, doubtful, per_class
from pocketclip.fit.unseen import unseen_offset
from pocketclip.formats.escaping import escape_surrogates
from pocketclip.label_set import MAX_LABELS, LabelSet, NoneOfThese
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.types import Embeddings, Encoder

log = logging.getLogger(__name__)
ZERO_SHOT = "zero-shot"
_FEW = 4
"""With fewer photographs per class (the median), the strength is fixed: without one of two, a
classifier is another one."""
_MUCH = 30_000_000
"""Photographs times labels times width, up to which logistic regression takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How to fit a label set.

    Raises:
        ConfigError: a value is out of range.
    """

    method: str = "auto"
    """`ridge`, `logistic`, or `auto`: ridge, or logistic if it is right more often on held-out
    photographs; that is tried where it takes seconds. See docs/how-to/fit.md."""
    more_labels: tuple[str, ...] = ()
    """Further labels, without photographs: they keep their prompt."""
    none_error: float = 0.05
    """The share of images with one of the labels that may be called none of these; 0: none is."""
    max_images: int = 200_000
    """Of more photographs, as many of each class as possible are used: 200,000 embeddings of width
    512 are 400 MB."""
    batch_size: int = 64
    workers: int | None = None
    """Decode threads; None for one per core."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.method not in ("auto", *METHODS):
            raise ConfigError(f"method {self.method!r}: choose auto, {' or '.join(METHODS)}")
        if not 0 <= self.none_error < 1:
            raise ConfigError(f"the error of none is {self.none_error:g}; it must be 0 or a share")
        if self.max_images < 1:
            raise ConfigError(f"max_images is {self.max_images}; it must be at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class _Examples:
    """Embedded photographs with their classes."""

    classes: list[str]
    classifier: Embeddings
    """(L, D), the zero-shot classifier."""
    scale: float
    embeddings: Embeddings
    """(N, D)."""
    labels: Integers
    """(N,)."""
    names: list[str]

    def arguments(self) -> tuple[Embeddings, float, Embeddings, Integers, list[str]]:
        """Return what is fitted to, in the order of `choose_strength`."""
        return self.classifier, self.scale, self.embeddings, self.labels, self.names

    def counts(self) -> Integers:
        """Return the number of photographs per class (L,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A label set, and what cross-validation says about it."""

    label_set: LabelSet
    facts: dict[str, Any]
    """`label_set.made`, and `per_class`, `confused`, `doubtful`: see docs/how-to/fit.md."""
    skipped: list[Skipped]
    """Unreadable photographs."""


def fit_labels(
    encoder: Encoder,
    source: str,
    data: DataOptions | None = None,
    options: FitOptions | None = None,
    *,
    model: str = "",
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> Fitted:
    """Fit a linear head on the embeddings of labelled photographs.

    If cross-validation finds the head worse than the zero-shot classifier, the label set is the
    zero-shot classifier. Where nothing can be held out (one photograph per class), the strength
    is fixed, and neither temperature nor "none" is calibrated on photographs not seen.

    Args:
        encoder: any encoder; a bundle needs no torch.
        source: a folder with one sub-folder per label, or a table.
        data: columns, conditions and prompts.
        options: how to fit.
        model: the model's name, for the file; by default that of the encoder's configuration.
        reporter: is told of progress.

    Raises:
        DataError: the labels are not usable, or no photograph can be read.
        EmbeddingError, StorageError: as the encoder and the reader.
    """
    options, reporter = options or FitOptions(), as_reporter(reporter)
    data = data or DataOptions(split="train")
    read = read_labelled(source, data)
    skipped: list[Skipped] = []
    examples = _embed(encoder, read, options, skipped, reporter)
    _warn_of_several_labels(examples, source)
    counts = examples.counts()
    method, found = _choose(examples, options.method, reporter)
    strength = FIXED[method] if found is None else found[0]
    offset = unseen_offset(method, *examples.arguments(), strength)
    facts: dict[str, Any] = {
        "photographs": counts.tolist(),
        "templates": list(read.templates),
        "method": method,
        "strength": strength,
        "offset": offset,
        "held_out": 0,
        "version": __version__,
    }
    temperature, none, more = 1.0, None, dict[str, Any](per_class=[], confused=[], doubtful=[])
    if found is None and method == "ridge":  # the prompts' own: the head has seen all photographs
        prompts = zero_shot_head(examples.classifier, examples.scale)
        temperature = fit_temperature_of_some(prompts, examples.embeddings, examples.labels)
    if found is not None:
        held = found[1]
        held.logits[:, counts > 0] -= offset
        truth = examples.labels[held.rows]
        facts |= {"held_out": len(truth), **_measure(held, truth)}
        logits = held.logits
        if _is_worse(facts):
            facts |= {"method": ZERO_SHOT, "strength": None, "offset": 0.0}
            logits = held.zero_shot
        temperature = fit_temperature(logits, truth)
        none = _none_of_these(logits, options.none_error)
        more = _summary(examples, held, logits)
    label_set = _label_set(
        encoder, examples, facts, model=model, temperature=temperature, none=none
    )
    return Fitted(label_set, {**facts, **more}, skipped)


def _choose(
    examples: _Examples, method: str, reporter: ProgressReporter
) -> tuple[str, tuple[float, HeldOut] | None]:
    """Return the method, and its strength with the held-out predictions; None without any."""
    counts = examples.counts()
    few = np.median(counts[counts > 0]) < _FEW
    work = examples.embeddings.size * np.count_nonzero(counts)
    methods = [method] if method != "auto" else ["ridge"] if few or work > _MUCH else [*METHODS]
    found: dict[str, tuple[float, HeldOut] | None] = {}
    for name in methods:
        reporter.stage(f"fitting by {name} regression")
        strengths = [FIXED[name]] if few else STRENGTHS[name]
        found[name] = choose_strength(
            name, *examples.arguments(), strengths,
            lambda done, of: reporter.progress(done, of, "folds"),
        )  # fmt: skip

    def right(name: str) -> int:
        held = None if (result := found[name]) is None else result[1]
        if held is None:
            return 0
        return int((held.logits.argmax(axis=1) == examples.labels[held.rows]).sum())

    best = max(methods, key=right)  # of equal ones the first
    return best, found[best]


def _embed(
    encoder: Encoder,
    read: LabelledImages,
    options: FitOptions,
    skipped: list[Skipped],
    reporter: ProgressReporter,
) -> _Examples:
    """Return the embeddings of the photographs and of the labels' prompts."""
    classes = _with_more(read.classes, options.more_labels)
    if len(classes) > MAX_LABELS:
        raise DataError(f"{len(classes):,} labels; at most {MAX_LABELS:,} can be fitted")
    chosen = spread(read.names, read.labels, options.max_images)
    if len(chosen) < len(read):
        log.warning(
            "%s: %s of %s photographs are used, as many of each label as possible; a linear head "
            "gains little by more (--max-images)",
            read.source, f"{len(chosen):,}", f"{len(read):,}",
        )  # fmt: skip
    reporter.stage(f"embedding {count_of(len(chosen), 'photograph')}")
    rows: list[int] = []
    embeddings = np.empty((len(chosen), encoder.embed_dim), np.float32)
    images = [Example(name=read.names[row], image=read.images[row], label=row) for row in chosen]
    settings = RunOptions(batch_size=options.batch_size, workers=options.workers, skip_bad=True)
    with closing(embed_images(encoder, images, _image_of, settings, skipped)) as batches:
        for batch, encoded in batches:
            embeddings[len(rows) : len(rows) + len(batch)] = encoded
            rows += [example.label for example in batch if example.label is not None]
            reporter.progress(len(rows) + len(skipped), len(chosen), "photographs")
    labels = read.labels[rows]
    if len(np.unique(labels)) < 2:
        why = f": {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise DataError(
            f"{read.source}: fewer than two labels have a photograph that can be read; "
            f"{count_of(len(skipped), 'photograph')} cannot{why}"
        )
    reporter.stage(f"embedding the prompts of {count_of(len(classes), 'label')}")
    return _Examples(
        classes=classes,
        classifier=build_classifier(encoder, classes, read.templates),
        scale=encoder.logit_scale,
        embeddings=embeddings[: len(rows)],
        labels=labels,
        names=[read.names[row] for row in rows],
    )


def _warn_of_several_labels(examples: _Examples, source: str) -> None:
    """Log copies of one photograph under different labels."""
    first = same_photographs(examples.embeddings)
    rows = np.flatnonzero(examples.labels != examples.labels[first])
    if len(rows):
        a, b = (
            f"{examples.names[row]} ({examples.classes[examples.labels[row]]})"
            for row in (int(first[rows[0]]), int(rows[0]))
        )
        log.warning(
            "%s: %s with another label than a copy has: %s and %s%s; keep one of them",
            source, count_of(len(rows), "photograph"), a, b, ", ..." * (len(rows) > 1),
        )  # fmt: skip


def _image_of(example: Example) -> bytes | str:
    return example.image


def _with_more(classes: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return the classes with further ones.

    Raises:
        DataError: one of them is there already, perhaps in another spelling.
    """
    folded = {name.casefold(): name for name in classes}
    for name in more:
        same = folded.setdefault(name.casefold(), name)
        if same != name or name in classes:
            raise DataError(f"the further label {name!r} is there already, as {same!r}: remove it")
    if len(set(more)) < len(more):
        raise DataError("a further label is given twice")
    return [*classes, *more]


def _measure(held: HeldOut, truth: Integers) -> dict[str, Any]:
    """Return accuracies, log losses and calibration errors of held-out photographs.

    Each photograph's temperature is chosen by the other folds, so that none calibrates itself.
    """
    head = _calibrated(held.logits, truth, held.part)
    zero_shot = _calibrated(held.zero_shot, truth, held.part)

    def accuracy(logits: Doubles) -> float:
        return float((logits.argmax(axis=1) == truth).mean())

    return {
        "accuracy": {"zero_shot": accuracy(held.zero_shot), "head": accuracy(held.logits)},
        "log_loss": {"zero_shot": log_loss(zero_shot, truth), "head": log_loss(head, truth)},
        "calibration_error": {
            "zero_shot": calibration_error(softmax(held.zero_shot), truth),
            "zero_shot_calibrated": calibration_error(zero_shot, truth),
            "head": calibration_error(softmax(held.logits), truth),
            "head_calibrated": calibration_error(head, truth),
        },
    }


def _is_worse(facts: Mapping[str, Any]) -> bool:
    """Return whether the head is worse on held-out photographs than the zero-shot classifier."""
    head, zero_shot = (
        (facts["accuracy"][name], -facts["log_loss"][name]) for name in ("head", "zero_shot")
    )
    return head <= zero_shot


def _calibrated(logits: Doubles, truth: Integers, part: Integers) -> Doubles:
    """Return probabilities (M, L), each fold's at the temperature of the others."""
    probabilities = np.empty_like(logits)
    for fold in np.unique(part):
        out = part == fold
        others = ~out if not out.all() else out
        temperature = fit_temperature(logits[others], truth[others])
        probabilities[out] = softmax(logits[out] / temperature)
    return probabilities


def _none_of_these(logits: Doubles, error: float) -> NoneOfThese | None:
    """Return the rule for "none", or None if there are too few photographs for the error."""
    # On photographs of other products the logit is the better score: docs/how-to/fit.md.
    below = lowest_score(logits.max(axis=1), error)
    return None if below is None else NoneOfThese(score="logit", below=below, error=error)


def _summary(examples: _Examples, held: HeldOut, logits: Doubles) -> dict[str, Any]:
    truth, predicted = examples.labels[held.rows], logits.argmax(axis=1)
    names = [escape_surrogates(examples.names[row]) for row in held.rows]
    probabilities = _calibrated(logits, truth, held.part)
    return {
        "per_class": per_class(truth, predicted, held.zero_shot.argmax(axis=1), examples.classes),
        "confused": confused(truth, predicted, examples.classes),
        "doubtful": doubtful(probabilities, truth, names, examples.classes),
    }


def _label_set(
    encoder: Encoder,
    examples: _Examples,
    facts: dict[str, Any],
    *,
    model: str,
    temperature: float,
    none: NoneOfThese | None,
) -> LabelSet:
    """Return the label set with the head of all photographs."""
    head: Head = zero_shot_head(examples.classifier, examples.scale)
    if facts["method"] != ZERO_SHOT:
        *_, head = heads(
            facts["method"], examples.classifier, examples.scale, examples.embeddings,
            examples.labels, [facts["strength"]],
        )  # fmt: skip
        head.biases[examples.counts() > 0] -= facts["offset"]
    return LabelSet(
        labels=tuple(examples.classes),
        weights=head.weights.astype(np.float32),
        biases=head.biases.astype(np.float32),
        space_id=encoder.space_id,
        model=model or str(getattr(getattr(encoder, "config", None), "name", "a model")),
        temperature=temperature,
        none=none,
        made=facts,
    )
