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
from pocketclip.train.loss_inputs import Scale, Student, TeacherTargets, compute_dtype


@dataclass(frozen=True, slots=True)
class Side:
    """The images, or the texts of one caption: rows of this process, columns of all."""

    rows: Tensor  # (b, D)
    columns: Tensor  # (B, D)
    teacher_rows: Tensor | None  # (b, sum of dims)
    teacher_columns: Tensor | None  # (B, sum of dims)


@dataclass(frozen=True, slots=True)
class Identities:
    """Which texts of one caption are the same: those with equal keys."""

    rows: Tensor  # int64 (b, 2)
    columns: Tensor  # int64 (B, 2)

    def positives(self, selected: slice) -> Tensor:
        """Return whether row and column have the same text, bool (n, B).

        The rows may be images or texts: image i has text i.
        """
        first, second = (
            one[selected, None] == other
            for one, other in zip(self.rows.unbind(1), self.columns.unbind(1), strict=True)
        )
        return first & second


def check_text_ids(
    student: Student, text_ids: Sequence[Tensor] | None, gathered: bool
) -> list[Identities | None]:
    """Return each caption's identities; None for each where `text_ids` is None.

    Args:
        student: the embeddings that they are for.
        text_ids: integers (b,) or (b, T) per caption; equal rows are the same text.
        gathered: compare with the texts of all processes.

    Raises:
        ConfigError: counts, shapes or dtypes do not fit.
    """
    size, captions = student.size, len(student.rows) - 1
    if text_ids is None:
        return [None] * captions
    if len(text_ids) != captions:
        raise ConfigError(f"{captions} captions have {len(text_ids)} text_ids; pass one of each")
    for ids in text_ids:
        if ids.ndim not in (1, 2) or ids.shape[0] != size or not ids.numel():
            raise ConfigError(
                f"text_ids have shape {tuple(ids.shape)}; {size} texts need ({size},) or "
                f"({size}, tokens)"
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ConfigError(f"text_ids must be integers, not {ids.dtype}")
    device = student.rows[0].device
    own = [_text_keys(ids.detach().reshape(size, -1).to(device)) for ids in text_ids]
    everyone = _gather(own) if gathered else own
    return [Identities(*pair) for pair in zip(own, everyone, strict=True)]


def _text_keys(ids: Tensor) -> Tensor:
    """Return two 64-bit numbers (b, 2) per row of integers (b, T), the same for equal rows.

    Each is a sum of the integers times odd constants, modulo 2^64. Different rows of token ids,
    which have 16 bits, have one number in common with a probability of at most 2^-48 (their
    difference times constants that are as good as random), and both with 2^-96. To sort the rows
    would be exact, but the host would wait for a GPU.
    """
    places = torch.arange(2 * ids.shape[1], device=ids.device).view(2, -1)
    return torch.stack([(ids.long() * one).sum(1) for one in _odd_constants(places)], 1)


def _odd_constants(places: Tensor) -> Tensor:
    """Return an odd int64 for each place, spread over all 64 bits (MurmurHash3's finaliser)."""
    mixed = (places + 1) * _signed(0x9E3779B97F4A7C15)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        # `>>` copies the sign; the mask makes it a logical shift.
        mixed = (mixed ^ (mixed >> 33 & 0x7FFFFFFF)) * _signed(factor)
    return (mixed ^ (mixed >> 33 & 0x7FFFFFFF)) | 1


def _signed(word: int) -> int:
    """Return an unsigned word of 64 bits as the int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word


def clip_terms(
    student: Student,
    targets: TeacherTargets | None,
    used: Sequence[tuple[bool, bool]],
    gathered: bool,
    chunk: int | None,
    text_ids: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the contrastive and the distillation term, each summed over its captions.

    `student.rows` holds the images' rows and then each caption's, `targets.rows` too. `used` says
    for each caption whether it is in the contrastive and in the distillation term.
    """
    identities = check_text_ids(student, text_ids, gathered)
    image, *texts = _sides(student, targets, gathered)
    first = distributed.rank() * student.size if gathered else 0
    total = image.rows.new_zeros(2)

    def direction(
        terms: tuple[bool, bool],
        same: Identities | None,
        one: Side,
        other: Side,
        selected: slice,
        both_ways: bool = False,
    ) -> Tensor:
        logits = _logits(one.rows[selected], other.columns, student.scale)
        teacher_logits = _teacher_logits(one, other, selected, targets) if terms[1] else []
        if same is None:
            labels = _matching_columns(selected, first, logits.device)
        else:
            labels = same.positives(selected)
        shares = None if targets is None else targets.weights
        sums = _cross_entropies(logits, teacher_logits, labels, terms, shares)
        if both_ways:  # of all rows and columns, hence the positives are symmetric
            transposed = [x.T for x in teacher_logits]
            sums = sums + _cross_entropies(logits.T, transposed, labels, terms, shares)
        return sums

    with torch.autocast(image.rows.device.type, enabled=False):
        for text, terms, same in zip(texts, used, identities, strict=True):
            if not any(terms):
                continue
            of_caption = partial(direction, terms, same)
            if chunk is None and not _is_gathered(image):
                # One matrix serves both directions.
                total = total + of_caption(image, text, slice(0, student.size), both_ways=True)
                continue
            for one, other in ((image, text), (text, image)):
                total = total + sum_over_chunks(
                    partial(of_caption, one, other), student.size, chunk
                )
    contrastive, distillation = (total / (2 * student.size)).unbind()
    return contrastive, distillation


def siglip_term(
    student: Student,
    bias: Scale,
    targets: TeacherTargets | None,
    gathered: bool,
    chunk: int | None,
    text_ids: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return SigLIP's loss of images and one caption; with teachers, they give the labels."""
    (same,) = check_text_ids(student, text_ids, gathered)
    image, text = _sides(student, targets, gathered)
    first = distributed.rank() * student.size if gathered else 0

    def direction(selected: slice) -> Tensor:
        logits = _logits(image.rows[selected], text.columns, student.scale) + bias
        if targets is None:
            if same is None:
                labels = torch.full_like(logits, -1.0)
                here = torch.arange(len(labels), device=labels.device)
                labels[here, _matching_columns(selected, first, labels.device)] = 1.0
            else:
                labels = 2 * same.positives(selected).to(logits.dtype) - 1
        else:
            scores = zip(
                _teacher_logits(image, text, selected, targets),
                targets.biases,
                strict=True,
            )
            known = ((x + shift).sigmoid() for x, shift in scores)
            labels = 2 * _mixture(known, targets.weights) - 1
        return -F.logsigmoid(labels * logits).sum()

    with torch.autocast(image.rows.device.type, enabled=False):
        return sum_over_chunks(direction, student.size, chunk) / student.size


def captioning_sum(logits: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    """Return the cross entropy of labels (b, T) under logits (b, T, V), summed, without padding."""
    with torch.autocast(logits.device.type, enabled=False):
        flat, words = logits.flatten(0, 1).to(compute_dtype(logits)), labels.flatten().long()
        return F.cross_entropy(flat, words, ignore_index=pad_id, reduction="sum")


def _sides(student: Student, targets: TeacherTargets | None, gathered: bool) -> list[Side]:
    rows = student.rows
    columns = _gather(rows) if gathered else rows
    if targets is None:
        return [Side(*pair, None, None) for pair in zip(rows, columns, strict=True)]
    # Converted once here, not for each chunk.
    dtype = rows[0].dtype
    teacher_rows = [x if x is None else x.to(dtype) for x in targets.rows]
    teacher_columns = teacher_rows
    if gathered:
        known = iter(_gather([x for x in targets.rows if x is not None]))
        teacher_columns = [x if x is None else next(known).to(dtype) for x in targets.rows]
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
    logits: Tensor,
    teacher_logits: list[Tensor],
    labels: Tensor,
    used: tuple[bool, bool],
    shares: list[float] | None,
) -> Tensor:
    """Return both terms (2,), each summed over rows; a term that is not used is 0.

    `labels` are the column (n,) of each row, or the positives, bool (n, B). `shares` are the
    teachers' weights; None: equal.
    """
    log_student = F.log_softmax(logits, 1)
    contrastive = distillation = logits.new_zeros(())
    if used[0] and labels.dtype == torch.bool:
        # Uniform targets over a row's positives (arXiv 2204.03610, equations 2 and 3).
        means = (log_student * labels).sum(1) / labels.sum(1)
        contrastive = -means.sum()
    elif used[0]:
        contrastive = F.nll_loss(log_student, labels, reduction="sum")
    if used[1]:
        affinities = _mixture((x.softmax(1) for x in teacher_logits), shares)
        distillation = -(affinities * log_student).sum()
    return torch.stack([contrastive, distillation])


def _mixture(parts: Iterable[Tensor], shares: Sequence[float] | None) -> Tensor:
    """Return the mean of matrices that need no gradient, or their sum weighted by `shares`.

    The matrices are overwritten.
    """
    total: Tensor | None = None
    count = 0
    for selected in parts:
        part = selected if shares is None else selected.mul_(shares[count])
        total = part if total is None else total.add_(part)
        count += 1
    assert total is not None
    return total.div_(count) if count > 1 and shares is None else total
