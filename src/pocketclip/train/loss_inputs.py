"""The inputs of the losses, checked: the student's embeddings and the teachers'.

Shapes: b rows of this process, D embedding, K teachers; B samples of a step and process, n captions
of each, T tokens. See `pocketclip.train.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketclip.errors import ConfigError, count_of

Scale = Tensor | float


@dataclass(frozen=True, slots=True)
class Student:
    """The student's embeddings, image first, in the dtype to compute in."""

    rows: list[Tensor]  # (b, D) each
    scale: Scale  # () or a number

    @property
    def size(self) -> int:
        """Return the number of rows, b."""
        return self.rows[0].shape[0]


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The teachers' embeddings, side by side, in the order of the student's."""

    rows: list[Tensor | None]  # (b, sum of dims) each; None for a caption that is not distilled
    dims: list[int]  # of each of the K teachers
    scales: list[float]
    biases: list[float]
    weights: list[float] | None = None
    """Of each teacher in the mixture; they sum to 1. None: all are equal."""


@dataclass(slots=True, kw_only=True)
class Features:
    """The student's outputs for a batch, which the loss is computed from."""

    image: Tensor
    """(B, D) unit embeddings."""
    captions: list[Tensor]
    """n tensors (B, D)."""
    scale: Tensor
    """The student's logit scale, which multiplies similarities."""
    captioning: Tensor | None = None
    """A captioner's next-token loss of this micro-batch, a mean over its tokens."""
    routing: Tensor | None = None
    """A sparse model's sums over tokens, see `Routing.take`."""


@dataclass(slots=True, kw_only=True)
class Captions:
    """How the loss uses the captions of a batch."""

    contrasted: list[bool]
    """Whether each of the n captions is in the contrastive term."""
    text_ids: list[Tensor] | None
    """n tensors (B, T) of token ids if equal texts are positives of each other."""


@dataclass(slots=True, kw_only=True)
class TeacherEmbeddings:
    """The teachers' embeddings of a batch, side by side: D is the sum of their dimensions."""

    image: Tensor | None
    """(B, D); None if the loss has no distillation term."""
    captions: list[Tensor | None]
    """n tensors (B, D); None for a caption that is not distilled."""


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32, or float64 where a tensor has it."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_student(embeddings: Sequence[Tensor], scale: Scale, chunk: int | None) -> Student:
    """Return the student's embeddings, checked.

    Raises:
        ConfigError: they are not floating-point matrices of one shape, the scale is not a scalar,
            or the chunk is less than one row.
    """
    shapes = [tuple(x.shape) for x in embeddings]
    if any(shape != shapes[0] or len(shape) != 2 or 0 in shape for shape in shapes):
        listed = ", ".join(map(str, shapes))
        raise ConfigError(
            f"image and text embeddings have shapes {listed}; all must have the same shape, (rows, "
            "dimension), with at least one row"
        )
    if not all(x.is_floating_point() for x in embeddings):
        raise ConfigError(f"embeddings must be floating point, not {embeddings[0].dtype}")
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ConfigError(f"chunk must be a whole number of rows of 1 or more, not {chunk}")
    dtype = compute_dtype(*embeddings)
    return Student([x.to(dtype) for x in embeddings], scalar(scale, "logit_scale", dtype))


def scalar(value: Scale, name: str, dtype: torch.dtype) -> Scale:
    """Return a number as float, or a tensor of one element as a tensor () of `dtype`.

    Raises:
        ConfigError: it is a tensor of several elements.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise ConfigError(f"{name} must be one number, not of shape {tuple(value.shape)}")
    return value.to(dtype).reshape(())


def check_teachers(
    student: Student,
    embeddings: Sequence[Tensor | None],
    dims: Sequence[int],
    scales: Sequence[float],
    biases: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> TeacherTargets:
    """Return the teachers' embeddings, checked against each other and the student's.

    Raises:
        ConfigError: there is no teacher, counts and shapes do not fit, or the weights are not
            finite numbers of 0 or more with a positive sum.
    """
    dims, scales = list(dims), [float(scale) for scale in scales]
    biases = [0.0] * len(dims) if biases is None else [float(bias) for bias in biases]
    if not dims or min(dims) < 1:
        raise ConfigError(f"teacher_dims must name a dimension per teacher, not {dims}")
    if len(scales) != len(dims) or len(biases) != len(dims):
        raise ConfigError(
            f"{len(dims)} teachers of dimensions {dims} have {len(scales)} scales and "
            f"{len(biases)} biases; give one of each per teacher"
        )
    expected = (student.size, sum(dims))
    for x in embeddings:
        if x is None:
            continue
        if tuple(x.shape) != expected or not x.is_floating_point():
            raise ConfigError(
                f"teacher embeddings have shape {tuple(x.shape)} and dtype {x.dtype}; for "
                f"{student.size} rows and teachers of dimensions {dims}, {expected} and floating "
                "point are needed"
            )
    rows = [x if x is None else x.detach() for x in embeddings]
    return TeacherTargets(rows, dims, scales, biases, _shares(weights, len(dims)))


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float] | None:
    """Return the teachers' weights with the sum 1; None if all are equal."""
    if weights is None:
        return None
    numbers = [float(weight) for weight in weights]
    if len(numbers) != teachers:
        raise ConfigError(
            f"{count_of(teachers, 'teacher has', 'teachers have')} teacher_weights {numbers}; "
            "give one weight per teacher"
        )
    total = sum(numbers)
    if not all(number >= 0 for number in numbers) or not 0 < total < math.inf:
        raise ConfigError(
            f"teacher_weights are {numbers}; they must be 0 or more, and one of them above 0"
        )
    # Equal ones take the way of the plain mean, which gives the same bits as no weights.
    equal = all(number == numbers[0] for number in numbers)
    return None if equal else [number / total for number in numbers]
