"""What the distillation loss needs to know of each teacher: dimension, logit scale, bias.

What the recipe sets comes first, then the live teachers, then the dataset's index, then (for CLIP's
loss) the scales that are published of a teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pocketclip import zoo
from pocketclip.errors import ConfigError, count_of
from pocketclip.train.loader import Loader
from pocketclip.train.recipe import Recipe
from pocketclip.types import Encoder

log = logging.getLogger(__name__)


def teacher_settings(
    recipe: Recipe, loader: Loader, teachers: Sequence[Encoder], *, quiet: bool = False
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Return each teacher's embedding dimension, logit scale and bias; log scales and weights.

    All are empty without distillation.

    Args:
        recipe: its loss comes first.
        loader: knows what the dataset's index says.
        teachers: the live teachers.
        quiet: log nothing.

    Raises:
        ConfigError: a number is missing, or the dimensions do not fit the stored embeddings.
    """
    loss = recipe.loss
    if loss.weights[1] == 0:
        return (), (), ()
    dims = loss.teacher_dims or tuple(t.embed_dim for t in teachers) or loader.teacher_dims
    if not dims:
        raise ConfigError(
            "the dataset does not state the teachers' embedding dimensions; set "
            "loss.teacher_dims=[768,768] for instance"
        )
    scales, origins = _scales(recipe, loader, teachers)
    if len(scales) != len(dims) or any(scale is None for scale in scales):
        raise ConfigError(
            f"{count_of(len(dims), 'teacher needs', 'teachers need')} "
            f"{count_of(len(dims), 'logit scale')}; the recipe or the dataset "
            f"states {list(scales)}; set loss.teacher_scales"
        )
    if loader.width and not teachers and loader.width != sum(dims):
        raise ConfigError(
            f"the stored embeddings have {loader.width} values, but the teachers' dimensions "
            f"{list(dims)} add up to {sum(dims)}; set loss.teacher_dims"
        )
    biases = loss.teacher_biases or tuple(getattr(t, "logit_bias", 0.0) for t in teachers)
    if loss.kind == "siglip" and len(biases) != len(dims):
        needed = count_of(len(dims), "teacher needs one bias", "teachers need one bias each")
        raise ConfigError(f"{needed}; set loss.teacher_biases")
    weights = loss.teacher_weights
    if weights is not None and len(weights) != len(dims):
        raise ConfigError(
            f"loss.teacher_weights has {count_of(len(weights), 'weight')} for "
            f"{count_of(len(dims), 'teacher')}; give one per teacher"
        )
    known = tuple(float(scale) for scale in scales if scale is not None)
    if not quiet:
        _log(known, origins, weights)
    return tuple(dims), known, tuple(biases)


def _scales(
    recipe: Recipe, loader: Loader, teachers: Sequence[Encoder]
) -> tuple[tuple[float | None, ...], list[str]]:
    """Return each teacher's logit scale, None if it is not known, and where it is from."""
    given = recipe.loss.teacher_scales
    if given:
        return given, ["loss.teacher_scales"] * len(given)
    if teachers:
        return tuple(t.logit_scale for t in teachers), ["the teacher itself"] * len(teachers)
    scales, origins = [], []
    # The published scales are the best ones of a softmax, not of SigLIP's sigmoid.
    softmax = recipe.loss.kind != "siglip"
    for name, scale in zip(loader.teacher_names, loader.teacher_scales, strict=True):
        published = zoo.teacher_logit_scale(name) if scale is None and softmax else None
        scales.append(published if scale is None else scale)
        origins.append("the dataset" if published is None else f"published for {name}")
    return tuple(scales), origins


def _log(
    scales: tuple[float, ...], origins: Sequence[str], weights: tuple[float, ...] | None
) -> None:
    said = [f"{scale:g} ({origin})" for scale, origin in zip(scales, origins, strict=True)]
    if len(set(origins)) == 1:
        said = [f"{', '.join(f'{scale:g}' for scale in scales)} ({origins[0]})"]
    shares = ""
    if weights is not None:
        parts = ", ".join(f"{weight / sum(weights):.3g}" for weight in weights)
        shares = f"; weights of the teachers: {parts}"
    log.info("logit scales of the teachers: %s%s", ", ".join(said), shares)
