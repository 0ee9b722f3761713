"""Weights between the start and the end of fine-tuning (WiSE-FT, arXiv 2109.01903, section 3).

    points = line(start, end, images, validate, retain)   # a = 0, 0.1, ..., 1
    best = choose(points, least_retention=0.95)
    model = mix(start, end, best.a, images)

Every weight is `(1 - a) * start + a * end`: of the unfused models, the logit scale as its
logarithm. The statistics of BatchNorm are no weights: those of a mixture are not the mixture of the
statistics. They are estimated anew at each point, from the training images, and corrected by what
the same estimate misses at the ends: with S a model's own statistics and E the estimated ones,

    mean(a) = E_mean(a) + (1 - a) * (S - E)_mean(0) + a * (S - E)_mean(1)
    variance(a) = E_var(a) * ((S / E)_var(0)) ** (1 - a) * ((S / E)_var(1)) ** a

Without the correction, even the start with the statistics of the user's images is another model: it
has lost a part of what it knew, which those images do not show (`docs/how-to/finetune.md` has the
figures). With it, a = 0 and a = 1 are the two models themselves, exactly, and the line between them
has no step. A layer whose statistics are equal at both ends was frozen in training (presets that
train a part of the model) and keeps them: an estimate would change what nothing has changed.

Shapes: B batch, T tokens, C channels, S side of the image.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketclip.embedding_space import embedding_fields
from pocketclip.errors import DivergedError, PocketclipError
from pocketclip.finetune.generic import training_captions
from pocketclip.nn.clip import CLIP
from pocketclip.tokenizer import Tokenizer

POINTS = tuple(step / 10 for step in range(11))
_TEXTS = 64  # per batch
_ROUNDING = 1e-9

Images = Callable[[], Iterator[Tensor]]
Missed = tuple[Tensor, Tensor]
"""Per channel (C,): a difference of means, and the logarithm of a ratio of variances."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model on the line, and its scores."""

    a: float
    """0 is the start, 1 the end."""
    validation: float
    retention: float
    """Relative to the start, which has 1."""

    def keeps(self, least: float) -> bool:
        """Return whether at least this share of what the start knew is kept."""
        return keeps(self.retention, least)


def keeps(retention: float, least: float) -> bool:
    """Return whether a retention score is at least `least`, rounding aside."""
    return retention >= least - _ROUNDING


class Way:
    """All models between a start and an end; neither is changed.

    What several points need of the two ends is computed once, when the first point asks for it.

    Args:
        start: the model before fine-tuning, unfused.
        end: the model after it, of the same configuration, unfused.
        images: returns batches (B, 3, S, S) of pixels as the evaluation transform gives them, the
            same at each call: some hundred training images. Not called where no BatchNorm of the
            image tower has moved.
        texts: captions for a text tower with BatchNorm; None: `generic.training_captions()`.

    Raises:
        PocketclipError: the models differ in more than weights, or are fused.
    """

    def __init__(
        self, start: CLIP, end: CLIP, images: Images, *, texts: Sequence[str] | None = None
    ) -> None:
        check_ends(start, end)
        self.start, self.end = start, end
        self._images = images
        self._texts = training_captions() if texts is None else texts
        self._moved = _moved_norms(start, end)

    def at(self, a: float) -> CLIP:
        """Return the model at `a`, a new one, in evaluation mode, unfused.

        Args:
            a: 0 gives an exact copy of the start, 1 of the end.

        Raises:
            PocketclipError: `a` is outside 0 to 1, or there is no image to estimate from.
        """
        if not 0 <= a <= 1:
            raise PocketclipError(f"a point between start and end is from 0 to 1, not {a}")
        if a in (0, 1):
            return copy.deepcopy(self.end if a else self.start).eval()
        model = copy.deepcopy(self.start).eval()
        model.space_identity = None
        first, last = self.start.plain_state(), self.end.plain_state()
        with torch.no_grad():
            for name, value in model.plain_state().items():
                # Mixed on the CPU: not every device has float64.
                own, other = first[name].cpu(), last[name].cpu()
                # Equal values stay exactly so. Among them are infinities, in causal masks.
                if value.is_floating_point() and not torch.equal(own, other):
                    value.copy_((1 - a) * own.double() + a * other.double())
                elif not value.is_floating_point():
                    value.copy_(other)
            self._estimate(model)
            for name, norm in self._chosen(model).items():
                _correct(norm, a, *self._missed[name])
        return model

    def _chosen(self, model: CLIP) -> dict[str, nn.BatchNorm2d]:
        return {name: norm for name, norm in _norms(model).items() if name in self._moved}

    def _estimate(self, model: CLIP) -> None:
        estimate_statistics(list(self._chosen(model).values()), model, self._images, self._texts)

    @functools.cached_property
    def _missed(self) -> dict[str, list[Missed]]:
        """What the estimate misses at start and end, by layer."""
        out: dict[str, list[Missed]] = {name: [] for name in self._moved}
        for model in (self.start, self.end):
            estimated = copy.deepcopy(model).eval()
            self._estimate(estimated)
            for name, norm in self._chosen(estimated).items():
                own = _statistics(_norms(model)[name])
                mean, variance = _statistics(norm)
                out[name].append((own[0] - mean, (own[1] / variance).log()))
        return out


def line(
    start: CLIP,
    end: CLIP,
    images: Images,
    validate: Callable[[CLIP], float],
    retain: Callable[[CLIP], float],
    *,
    points: Sequence[float] = POINTS,
    texts: Sequence[str] | None = None,
    advance: Callable[[Point], None] = lambda _point: None,
) -> list[Point]:
    """Score the models between `start` and `end`; neither is changed.

    Args:
        start: see `Way`.
        end: see `Way`.
        images: see `Way`.
        validate: see `score`.
        retain: see `score`.
        points: values from 0 to 1; sorted, each once.
        texts: see `Way`.
        advance: called with each point once it is scored.

    Raises:
        PocketclipError: as in `Way`, or a score is not finite.
    """
    way = Way(start, end, images, texts=texts)
    out = []
    for a in sorted(set(points)):
        out.append(score(way, a, validate, retain))
        advance(out[-1])
    return out


def score(
    way: Way, a: float, validate: Callable[[CLIP], float], retain: Callable[[CLIP], float]
) -> Point:
    """Score one point of the way.

    Args:
        way: start and end.
        a: from 0 to 1.
        validate: returns a model's score on held-out images of the user's; higher is better.
        retain: returns how much a model keeps of what the start knew, 1 for all.

    Raises:
        PocketclipError: as in `Way.at`, or a score is not finite.
    """
    model = way.at(a)
    point = Point(a, float(validate(model)), float(retain(model)))
    _check_scores(point)
    return point


def choose(points: Iterable[Point], least_retention: float = 0.95) -> Point:
    """Return the best validated point among those that keep enough of what the start knew.

    Of equal ones it is the one nearest to the start. If only the start keeps enough, it is the
    start.

    Args:
        points: scored points; the start (a = 0) always keeps enough.
        least_retention: how much must be kept, from 0 to 1.

    Raises:
        PocketclipError: no point keeps enough, or a score is not finite.
    """
    points = list(points)
    for point in points:
        _check_scores(point)
    # The start keeps all by definition, whatever its score was rounded to.
    kept = [p for p in points if p.a == 0 or p.keeps(least_retention)]
    if not kept:
        raise PocketclipError(
            f"no point of the line keeps {least_retention:.0%} of the start's score: include the "
            "start, a = 0"
        )
    return max(kept, key=lambda point: (point.validation, -point.a))


def mix(
    start: CLIP, end: CLIP, a: float, images: Images, *, texts: Sequence[str] | None = None
) -> CLIP:
    """Return the model at `a` between `start` and `end`: `Way(start, end, images).at(a)`.

    Args:
        start: see `Way`.
        end: see `Way`.
        a: see `Way.at`.
        images: see `Way`.
        texts: see `Way`.

    Raises:
        PocketclipError: as in `Way` and `Way.at`.
    """
    return Way(start, end, images, texts=texts).at(a)


def check_ends(start: CLIP, end: CLIP) -> None:
    """Refuse two models that have no line between them.

    Raises:
        PocketclipError: one is fused or rearranged, or they are of different configurations.
    """
    for which, model in (("start", start), ("end", end)):
        if model.is_fused or model.inference_only:
            raise PocketclipError(
                f"the {which} of the line is fused, and weights can only be interpolated "
                "unfused: load it with fuse=False, from the checkpoint that it was made from"
            )
    fields = embedding_fields(start.config), embedding_fields(end.config)
    if fields[0] != fields[1]:
        names = sorted(k for k in fields[0] | fields[1] if fields[0].get(k) != fields[1].get(k))
        raise PocketclipError(
            "weights can only be interpolated between models of one configuration; start and end "
            f"differ in {', '.join(names)}"
        )
    shapes = [{n: v.shape for n, v in model.plain_state().items()} for model in (start, end)]
    if shapes[0] != shapes[1]:
        odd = sorted(n for n in shapes[0] | shapes[1] if shapes[0].get(n) != shapes[1].get(n))
        raise PocketclipError(
            f"start and end have different weights, such as {odd[0]}: merge added layers (LoRA) "
            "into the model first"
        )


def _check_scores(point: Point) -> None:
    for name in ("validation", "retention"):
        if not math.isfinite(getattr(point, name)):
            raise DivergedError(
                f"the {name} score at a = {point.a:g} is {getattr(point, name)}: the training "
                "diverged; lower the learning rate"
            )


def _norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {
        name.replace("_orig_mod.", ""): module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }


def _moved_norms(start: CLIP, end: CLIP) -> set[str]:
    """Return the names of the BatchNorm layers whose statistics differ between two models."""
    others = _norms(end)
    return {
        name
        for name, norm in _norms(start).items()
        for key in ("running_mean", "running_var")
        if not torch.equal(getattr(norm, key), getattr(others[name], key).to(norm.weight.device))
    }


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return means and variances (C,), float64; the variances as BatchNorm divides by them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.cpu().double(), norm.running_var.cpu().double() + norm.eps


def _correct(norm: nn.BatchNorm2d, a: float, start: Missed, end: Missed) -> None:
    """Add what the estimate misses at the ends to the statistics estimated at `a`."""
    mean, variance = _statistics(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean + (1 - a) * start[0] + a * end[0])
    factor = ((1 - a) * start[1] + a * end[1]).exp()
    norm.running_var.copy_((variance * factor - norm.eps).clamp(min=0))


def estimate_statistics(
    norms: Sequence[nn.BatchNorm2d], model: CLIP, images: Images, texts: Sequence[str]
) -> None:
    """Replace the statistics of some of a model's BatchNorm layers by those of given inputs.

    The batches go through the model as in training, normalised by their own statistics, whose
    average over all inputs is kept; batches count by their size. Everything else is as in
    evaluation: nothing is dropped, nothing learns, and other BatchNorm layers use theirs.

    Args:
        norms: layers of `model`.
        model: in evaluation mode.
        images: see `Way`; called if one of the layers is in the image tower.
        texts: see `Way`; used if one is in the text tower.

    Raises:
        PocketclipError: `images` or `texts` is empty and needed.
    """
    chosen = {id(norm) for norm in norms}
    device = model.logit_scale.device
    for tower, batches, what in (
        (model.image, images, "images"),
        (model.text, lambda: _token_batches(model, texts), "texts"),
    ):
        own = [module for module in tower.modules() if id(module) in chosen]
        if own:
            _average(own, tower, (batch.to(device) for batch in batches()), what)


def _average(
    norms: Sequence[nn.Module], tower: nn.Module, batches: Iterable[Tensor], what: str
) -> None:
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        for norm in norms:
            norm.train()
        with torch.no_grad():
            for batch in batches:
                if seen and len(batch) == 1:  # the last one: on small images too few values
                    continue
                seen += len(batch)
                for norm in norms:
                    norm.momentum = len(batch) / seen  # type: ignore[assignment]
                tower(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    if not seen:
        raise PocketclipError(f"no {what} to estimate the statistics of BatchNorm from: give some")


def _token_batches(model: CLIP, texts: Sequence[str]) -> Iterator[Tensor]:
    tokenize = Tokenizer()
    for begin in range(0, len(texts), _TEXTS):
        ids = tokenize(list(texts[begin : begin + _TEXTS]), model.config.text.context_length)
        yield torch.from_numpy(ids)
