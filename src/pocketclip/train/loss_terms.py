"""The terms of the losses, computed from checked inputs, whole or in chunks of rows.

Shapes: b rows of this process, B rows of all processes (b where nothing is gathered), n rows of
a chunk, D embedding, K teachers. See `pocketclip.train.losses` for what is computed and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pocketclip.errors import ConfigError
from pocketclip.train import distributed

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

    rows: list[Tensor]  # (b, sum of dims) each
    dims: list[int]  # of each of the K teachers
    scales: list[float]
    biases: list[float]


@dataclass(frozen=True, slots=True)
class Side:
    """The images, or the texts of one caption: rows of this process, columns of all."""

    rows: Tensor  # (b, D)
    columns: Tensor  # (B, D)
    teacher_rows: Tensor | None  # (b, sum of dims)
    teacher_columns: Tensor | None  # (B, sum of dims)


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
    embeddings: Sequence[Tensor],
    dims: Sequence[int],
    scales: Sequence[float],
    biases: Sequence[float] | None = None,
) -> TeacherTargets:
    """Return the teachers' embeddings, checked against each other and the student's.

    Raises:
        ConfigError: there is no teacher, or counts and shapes do not fit.
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
        if tuple(x.shape) != expected or not x.is_floating_point():
            raise ConfigError(
                f"teacher embeddings have shape {tuple(x.shape)} and dtype {x.dtype}; for "
                f"{student.size} rows and teachers of dimensions {dims}, {expected} and floating "
                "point are needed"
            )
    return TeacherTargets([x.detach() for x in embeddings], dims, scales, biases)


def clip_terms(
    student: Student,
    targets: TeacherTargets | None,
    weights: tuple[float, float],
    gathered: bool,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the contrastive and the distillation term, weighted, summed over captions.

    `student.rows` holds the images' rows and then each caption's, `targets.rows` too.
    """
    image, *texts = _sides(student, targets, gathered)
    first = distributed.rank() * student.size if gathered else 0
    total = image.rows.new_zeros(2)

    def direction(one: Side, other: Side, selected: slice, both_ways: bool = False) -> Tensor:
        logits = _logits(one.rows[selected], other.columns, student.scale)
        teacher_logits = _teacher_logits(one, other, selected, targets)
        labels = _matching_columns(selected, first, logits.device)
        terms = _cross_entropies(logits, teacher_logits, labels, weights)
        if both_ways:
            transposed = [x.T for x in teacher_logits]
            terms = terms + _cross_entropies(logits.T, transposed, labels, weights)
        return terms

    with torch.autocast(image.rows.device.type, enabled=False):
        for text in texts:
            if chunk is None and not _is_gathered(image):
                # One matrix serves both directions.
                total = total + direction(image, text, slice(0, student.size), both_ways=True)
                continue
            for one, other in ((image, text), (text, image)):
                total = total + sum_over_chunks(partial(direction, one, other), student.size, chunk)
    contrastive, distillation = (total / (2 * student.size)).unbind()
    return contrastive * weights[0], distillation * weights[1]


def siglip_term(
    student: Student,
    bias: Scale,
    targets: TeacherTargets | None,
    gathered: bool,
    chunk: int | None,
) -> Tensor:
    """Return SigLIP's loss of images and one caption; with teachers, they give the labels."""
    image, text = _sides(student, targets, gathered)
    first = distributed.rank() * student.size if gathered else 0

    def direction(selected: slice) -> Tensor:
        logits = _logits(image.rows[selected], text.columns, student.scale) + bias
        if targets is None:
            labels = torch.full_like(logits, -1.0)
            here = torch.arange(len(labels), device=labels.device)
            labels[here, _matching_columns(selected, first, labels.device)] = 1.0
        else:
            scores = zip(
                _teacher_logits(image, text, selected, targets),
                targets.biases,
                strict=True,
            )
            labels = 2 * _mean((x + shift).sigmoid() for x, shift in scores) - 1
        return -F.logsigmoid(labels * logits).sum()

    with torch.autocast(image.rows.device.type, enabled=False):
        return sum_over_chunks(direction, student.size, chunk) / student.size


def _sides(student: Student, targets: TeacherTargets | None, gathered: bool) -> list[Side]:
    rows = student.rows
    columns = _gather(rows) if gathered else rows
    if targets is None:
        return [Side(*pair, None, None) for pair in zip(rows, columns, strict=True)]
    # Converted once here, not for each chunk.
    dtype = rows[0].dtype
    teacher_rows = [x.to(dtype) for x in targets.rows]
    teacher_columns = teacher_rows
    if gathered:
        teacher_columns = [x.to(dtype) for x in _gather(targets.rows)]
    return [Side(*side) for side in zip(rows, columns, teacher_rows, teacher_columns, strict=True)]


def _gather(rows: list[Tensor]) -> list[Tensor]:
    """Return the rows of all ranks for each of several matrices (b, D), in one exchange."""
    if distributed.world_size() == 1:
        return rows
    dtype = rows[0].dtype if len({x.dtype for x in rows}) == 1 else compute_dtype(*rows)
    # Side by side, so that a step waits for the other processes only once.
    joined = distributed.gather_rows(torch.cat([x.to(dtype) for x in rows], 1))
    return list(torch.split(joined, [x.shape[1] for x in rows], 1))


def _is_gathered(side: Side) -> bool:
    return side.columns is not side.rows


def sum_over_chunks(function: Callable[[slice], Tensor], rows: int, chunk: int | None) -> Tensor:
    """Return the sum of `function` over slices of at most `chunk` rows; None: one slice of all.

    With chunks, no activations are kept for the backward pass, which computes each slice again.
    """
    if chunk is None:
        return function(slice(0, rows))
    sums = [
        checkpoint(
            function,
            slice(first, min(first + chunk, rows)),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing here is random
        )
        for first in range(0, rows, chunk)
    ]
    return torch.stack(sums).sum(0)


def _matching_columns(selected: slice, first: int, device: torch.device) -> Tensor:
    """Return the column (n,) that belongs to each row of a chunk."""
    return torch.arange(first + selected.start, first + selected.stop, device=device)


def _logits(rows: Tensor, columns: Tensor, scale: Scale) -> Tensor:
    return (rows * scale) @ columns.T  # (n, D), (B, D) -> (n, B)


def _teacher_logits(
    one: Side, other: Side, selected: slice, targets: TeacherTargets | None
) -> list[Tensor]:
    """Return each teacher's scaled similarities (n, B)."""
    if targets is None or one.teacher_rows is None or other.teacher_columns is None:
        return []
    rows = torch.split(one.teacher_rows[selected], targets.dims, 1)
    columns = torch.split(other.teacher_columns, targets.dims, 1)
    return [_logits(*three) for three in zip(rows, columns, targets.scales, strict=True)]


def _cross_entropies(
    logits: Tensor, teacher_logits: list[Tensor], labels: Tensor, weights: tuple[float, float]
) -> Tensor:
    """Return both terms (2,), each summed over rows; a term of weight 0 is 0."""
    log_student = F.log_softmax(logits, 1)
    zero = logits.new_zeros(())
    contrastive = F.nll_loss(log_student, labels, reduction="sum") if weights[0] else zero
    distillation = zero
    if weights[1]:
        affinities = _mean(x.softmax(1) for x in teacher_logits)
        distillation = -(affinities * log_student).sum()
    return torch.stack([contrastive, distillation])


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """Return the mean of matrices that need no gradient; the first one is overwritten."""
    total: Tensor | None = None
    count = 0
    for selected in parts:
        total = selected if total is None else total.add_(selected)
        count += 1
    assert total is not None
    return total.div_(count) if count > 1 else total
