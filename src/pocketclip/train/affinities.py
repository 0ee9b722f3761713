"""What the losses share: checked inputs, rows against columns, a chunk of rows at a time.

Shapes: b rows of this process, B rows of all processes (b where nothing is gathered), n rows of
a chunk, D embedding, K teachers. See `pocketclip.train.loss` for what is computed and why.
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
    """The student's embeddings, image first, in the dtype that is computed in."""

    rows: list[Tensor]  # (b, D) each
    scale: Scale  # () or a number

    @property
    def size(self) -> int:
        """Return the number of rows, b."""
        return self.rows[0].shape[0]


@dataclass(frozen=True, slots=True)
class Teachers:
    """The teachers' embeddings, in the order of the student's, side by side."""

    rows: list[Tensor]  # (b, sum of dims) each
    dims: list[int]  # of each of the K teachers
    scales: list[float]
    biases: list[float]


@dataclass(frozen=True, slots=True)
class Side:
    """The images, or one caption's texts: this process's rows and those of all."""

    rows: Tensor  # (b, D)
    columns: Tensor  # (B, D)
    taught_rows: Tensor | None  # (b, sum of dims)
    taught_columns: Tensor | None  # (B, sum of dims)


def wide(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32, or float64 where a tensor has it."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def student(embeddings: Sequence[Tensor], scale: Scale, chunk: int | None) -> Student:
    """Return the student's embeddings, checked.

    Raises:
        ConfigError: they are not matrices of numbers of one shape, the scale is not one number,
            or the chunk is less than one row.
    """
    shapes = [tuple(x.shape) for x in embeddings]
    if any(shape != shapes[0] or len(shape) != 2 or 0 in shape for shape in shapes):
        listed = ", ".join(map(str, shapes))
        raise ConfigError(
            f"image and text embeddings have shapes {listed}; each must be (rows, dimension), "
            "all the same, of one row or more"
        )
    if not all(x.is_floating_point() for x in embeddings):
        raise ConfigError(f"embeddings must be floating point, not {embeddings[0].dtype}")
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ConfigError(f"chunk must be a whole number of rows of 1 or more, not {chunk}")
    dtype = wide(*embeddings)
    return Student([x.to(dtype) for x in embeddings], number(scale, "logit_scale", dtype))


def number(value: Scale, name: str, dtype: torch.dtype) -> Scale:
    """Return one number in `dtype`, as a tensor () where it was a tensor.

    Raises:
        ConfigError: it is a tensor of several.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise ConfigError(f"{name} must be one number, not of shape {tuple(value.shape)}")
    return value.to(dtype).reshape(())


def teachers(
    pupil: Student,
    embeddings: Sequence[Tensor],
    dims: Sequence[int],
    scales: Sequence[float],
    biases: Sequence[float] | None = None,
) -> Teachers:
    """Return the teachers' embeddings, checked against each other and the student's.

    Raises:
        ConfigError: there is no teacher, or numbers and shapes do not fit.
    """
    dims, scales = list(dims), [float(scale) for scale in scales]
    biases = [0.0] * len(dims) if biases is None else [float(bias) for bias in biases]
    if not dims or min(dims) < 1:
        raise ConfigError(f"teacher_dims must name one dimension per teacher, not {dims}")
    if len(scales) != len(dims) or len(biases) != len(dims):
        raise ConfigError(
            f"{len(dims)} teachers of dimensions {dims} have {len(scales)} scales and "
            f"{len(biases)} biases; give one of each per teacher"
        )
    expected = (pupil.size, sum(dims))
    for x in embeddings:
        if tuple(x.shape) != expected or not x.is_floating_point():
            raise ConfigError(
                f"teacher embeddings have shape {tuple(x.shape)} and dtype {x.dtype}; {pupil.size} "
                f"rows of teachers of dimensions {dims} are {expected}, floating point"
            )
    return Teachers([x.detach() for x in embeddings], dims, scales, biases)


def clip_terms(
    pupil: Student,
    taught: Teachers | None,
    weights: tuple[float, float],
    gathered: bool,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """Return contrastive and distillation term, weighted, summed over captions.

    `pupil.rows` are the images' and then each caption's; `taught.rows` likewise.
    """
    image, *texts = _sides(pupil, taught, gathered)
    first = distributed.rank() * pupil.size if gathered else 0
    total = image.rows.new_zeros(2)

    def direction(one: Side, other: Side, part: slice, both: bool = False) -> Tensor:
        logits = _logits(one.rows[part], other.columns, pupil.scale)
        affinities = _taught_logits(one, other, part, taught)
        labels = _matches(part, first, logits.device)
        terms = _cross_entropies(logits, affinities, labels, weights)
        if both:
            affinities = [x.T for x in affinities]
            terms = terms + _cross_entropies(logits.T, affinities, labels, weights)
        return terms

    with torch.autocast(image.rows.device.type, enabled=False):
        for text in texts:
            if chunk is None and not _is_parted(image):
                # One matrix serves both directions.
                total = total + direction(image, text, slice(0, pupil.size), both=True)
                continue
            for one, other in ((image, text), (text, image)):
                total = total + by_rows(partial(direction, one, other), pupil.size, chunk)
    contrastive, distillation = (total / (2 * pupil.size)).unbind()
    return contrastive * weights[0], distillation * weights[1]


def siglip_term(
    pupil: Student, bias: Scale, taught: Teachers | None, gathered: bool, chunk: int | None
) -> Tensor:
    """Return SigLIP's loss of images and one caption; with teachers their opinion is the label."""
    image, text = _sides(pupil, taught, gathered)
    first = distributed.rank() * pupil.size if gathered else 0

    def direction(part: slice) -> Tensor:
        logits = _logits(image.rows[part], text.columns, pupil.scale) + bias
        if taught is None:
            labels = torch.full_like(logits, -1.0)
            here = torch.arange(len(labels), device=labels.device)
            labels[here, _matches(part, first, labels.device)] = 1.0
        else:
            scores = zip(_taught_logits(image, text, part, taught), taught.biases, strict=True)
            labels = 2 * _mean((x + shift).sigmoid() for x, shift in scores) - 1
        return -F.logsigmoid(labels * logits).sum()

    with torch.autocast(image.rows.device.type, enabled=False):
        return by_rows(direction, pupil.size, chunk) / pupil.size


def _sides(pupil: Student, taught: Teachers | None, gathered: bool) -> list[Side]:
    rows = pupil.rows
    columns = _gather(rows) if gathered else rows
    if taught is None:
        return [Side(*both, None, None) for both in zip(rows, columns, strict=True)]
    # Widened here, and not for each chunk.
    dtype = rows[0].dtype
    taught_rows = [x.to(dtype) for x in taught.rows]
    taught_columns = taught_rows
    if gathered:
        taught_columns = [x.to(dtype) for x in _gather(taught.rows)]
    together = zip(rows, columns, taught_rows, taught_columns, strict=True)
    return [Side(*parts) for parts in together]


def _gather(rows: list[Tensor]) -> list[Tensor]:
    """Return the rows of all ranks for each of several matrices (b, D), in one exchange."""
    if distributed.world_size() == 1:
        return rows
    dtype = rows[0].dtype if len({x.dtype for x in rows}) == 1 else wide(*rows)
    # Side by side, so that a step waits for its neighbours once.
    joined = distributed.gather_rows(torch.cat([x.to(dtype) for x in rows], 1))
    return list(torch.split(joined, [x.shape[1] for x in rows], 1))


def _is_parted(side: Side) -> bool:
    return side.columns is not side.rows


def by_rows(block: Callable[[slice], Tensor], rows: int, chunk: int | None) -> Tensor:
    """Return the sum of `block` over slices of at most `chunk` rows.

    A slice leaves nothing behind for the backward pass: it is computed again there.
    """
    if chunk is None:
        return block(slice(0, rows))
    sums = [
        checkpoint(
            block,
            slice(first, min(first + chunk, rows)),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing here is random
        )
        for first in range(0, rows, chunk)
    ]
    return torch.stack(sums).sum(0)


def _matches(part: slice, first: int, device: torch.device) -> Tensor:
    """Return the column (n,) in which each row of a chunk finds what belongs to it."""
    return torch.arange(first + part.start, first + part.stop, device=device)


def _logits(rows: Tensor, columns: Tensor, scale: Scale) -> Tensor:
    return (rows * scale) @ columns.T  # (n, D), (B, D) -> (n, B)


def _taught_logits(one: Side, other: Side, part: slice, taught: Teachers | None) -> list[Tensor]:
    """Return each teacher's scaled similarities (n, B)."""
    if taught is None or one.taught_rows is None or other.taught_columns is None:
        return []
    rows = torch.split(one.taught_rows[part], taught.dims, 1)
    columns = torch.split(other.taught_columns, taught.dims, 1)
    return [_logits(*three) for three in zip(rows, columns, taught.scales, strict=True)]


def _cross_entropies(
    logits: Tensor, taught: list[Tensor], labels: Tensor, weights: tuple[float, float]
) -> Tensor:
    """Return the sums over rows of both terms (2,); a term of weight 0 is 0."""
    log_student = F.log_softmax(logits, 1)
    zero = logits.new_zeros(())
    contrastive = F.nll_loss(log_student, labels, reduction="sum") if weights[0] else zero
    distillation = zero
    if weights[1]:
        targets = _mean(x.softmax(1) for x in taught)
        distillation = -(targets * log_student).sum()
    return torch.stack([contrastive, distillation])


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """Return the mean of matrices without gradient, which must be new: the first is overwritten."""
    total: Tensor | None = None
    count = 0
    for part in parts:
        total = part if total is None else total.add_(part)
        count += 1
    assert total is not None
    return total.div_(count) if count > 1 else total
