"""The losses: contrastive, distillation and both together (reinforced), SigLIP's, captioning.

All are pure functions of embeddings or logits.

    terms = reinforced_loss(image, [text, synthetic], teacher_image, [teacher_text, teacher_syn],
                            logit_scale, (768, 768), (100.0, 100.0), weights=(0.25, 0.75))
    sum(terms.values()).backward()

Sources: CLIP (arXiv 2103.00020), figure 3; MobileCLIP (arXiv 2311.17049), section 3.1,
equations 1 to 3; SigLIP (arXiv 2303.15343), algorithm 1; CoCa (arXiv 2205.01917), section 3.2;
UniCL (arXiv 2204.03610), equations 2 and 3, for texts that occur several times.

Shapes: b rows of this process, B rows of all processes (b if `gathered` is false),
n rows of a chunk, D embedding, K teachers, T tokens, V vocabulary.

Embeddings have unit length; the embeddings of several teachers are concatenated, each of unit
length. Losses are computed in float32 (float64 for float64 embeddings), also under autocast. No
gradient reaches the teachers. Three options are common, the last one to contrastive terms only:

- `gathered`: under `torch.distributed`, compare this process's rows with the columns of all
  processes, and average over its own rows. The mean of loss and gradients over ranks, as
  DistributedDataParallel computes it, equals that of one process with the joined batch.
- `chunk`: compute this many rows of the similarity matrix at a time, and again in the backward
  pass. Memory grows with `chunk * B` instead of `b * B`; values and gradients are the same.
- `text_ids`: which texts are the same, integers (b,), or (b, T) such as their token ids; equal rows
  are the same text. Every text that is the same as a row's own is then a positive of that row, not
  a negative: CLIP's loss takes the mean over a row's positives, SigLIP's labels all of them 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pocketclip.errors import ConfigError
from pocketclip.train import distributed
from pocketclip.train.loss_inputs import (
    Scale,
    check_student,
    check_teachers,
    compute_dtype,
    scalar,
)
from pocketclip.train.loss_terms import captioning_sum, clip_terms, siglip_term


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Scale,
    *,
    gathered: bool = False,
    chunk: int | None = None,
    text_ids: Tensor | None = None,
) -> Tensor:
    """Return CLIP's loss: which text belongs to an image, and which image to a text.

    The cross entropy of `logit_scale * image @ text.T` over rows and over columns; the mean over
    the batch and over both directions (arXiv 2103.00020, figure 3).

    Args:
        image: (b, D) unit embeddings.
        text: (b, D); row i belongs to image i.
        logit_scale: the multiplier itself, not its logarithm.
        gathered: compare with the rows of all processes; see the module.
        chunk: rows to compute at a time; see the module. None: all.
        text_ids: which texts are the same; see the module. None: all count as different.

    Raises:
        ConfigError: shapes do not fit.
    """
    student = check_student([image, text], logit_scale, chunk)
    ids = None if text_ids is None else [text_ids]
    return clip_terms(student, None, [(True, False)], gathered, chunk, ids)[0]


def distillation_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Scale,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_dims: Sequence[int],
    teacher_scales: Sequence[float],
    *,
    teacher_weights: Sequence[float] | None = None,
    gathered: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return the distillation loss: the student's affinities against the teachers'.

    A teacher's affinities of an image are the softmax over texts of its scaled similarities; the
    targets are the mean over teachers, weighted by `teacher_weights`. The same holds for a text
    over images. The loss is the cross entropy of the student's affinities with the targets, a mean
    over rows and over both directions (arXiv 2311.17049, equation 2, without the targets' entropy,
    which is constant; there the teachers have equal weights).

    Args:
        image: (b, D) unit embeddings.
        text: (b, D); row i belongs to image i.
        logit_scale: the student's multiplier.
        teacher_image: (b, sum of `teacher_dims`).
        teacher_text: (b, sum of `teacher_dims`).
        teacher_dims: each teacher's D.
        teacher_scales: each teacher's multiplier.
        teacher_weights: each teacher's weight in the targets; they are divided by their sum. None:
            all are equal.
        gathered: compare with the rows of all processes; see the module.
        chunk: rows to compute at a time; see the module. None: all.

    Raises:
        ConfigError: shapes do not fit.
    """
    student = check_student([image, text], logit_scale, chunk)
    targets = check_teachers(
        student,
        [teacher_image, teacher_text],
        teacher_dims,
        teacher_scales,
        weights=teacher_weights,
    )
    return clip_terms(student, targets, [(False, True)], gathered, chunk)[1]


def reinforced_loss(
    image: Tensor,
    captions: Sequence[Tensor],
    teacher_image: Tensor | None,
    teacher_captions: Sequence[Tensor | None],
    logit_scale: Scale,
    teacher_dims: Sequence[int],
    teacher_scales: Sequence[float],
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    teacher_weights: Sequence[float] | None = None,
    contrasted: Sequence[bool] | None = None,
    gathered: bool = False,
    chunk: int | None = None,
    text_ids: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the weighted terms of reinforced training; training minimises their sum.

    `(1 - lambda) * contrastive + lambda * distillation` (arXiv 2311.17049, equation 1), with two
    independent weights; the terms of several captions are summed. Each term can be restricted to
    some of the captions.

    Args:
        image: (b, D) unit embeddings.
        captions: one (b, D) per caption, for instance ground truth and synthetic.
        teacher_image: (b, sum of `teacher_dims`); may be None if its weight is 0.
        teacher_captions: one (b, sum of `teacher_dims`) per caption; None for a caption that is
            not to be distilled.
        logit_scale: the student's multiplier.
        teacher_dims: each teacher's D.
        teacher_scales: each teacher's multiplier.
        weights: of the contrastive and of the distillation term. A term of weight 0 is 0 and is
            not computed.
        teacher_weights: each teacher's weight in the targets; they are divided by their sum. None:
            all are equal.
        contrasted: whether each caption is in the contrastive term. None: all are.
        gathered: compare with the rows of all processes; see the module.
        chunk: rows to compute at a time; see the module. None: all.
        text_ids: per caption, which texts are the same; see the module. None: all count as
            different.

    Returns:
        `contrastive_loss` and `distill_loss`, with the weights applied.

    Raises:
        ConfigError: shapes, numbers of captions or weights do not fit.
    """
    if len(weights) != 2 or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ConfigError(f"weights must be two finite numbers of 0 or more, not {weights}")
    if not captions:
        raise ConfigError("there are no captions: pass at least one")
    contrasted = [True] * len(captions) if contrasted is None else list(contrasted)
    if len(contrasted) != len(captions) or (weights[0] and not any(contrasted)):
        raise ConfigError(
            f"contrasted is {contrasted}; give one value for each of the {len(captions)} captions, "
            "at least one of them true, or a contrastive weight of 0"
        )
    student = check_student([image, *captions], logit_scale, chunk)
    targets = None
    distilled = [False] * len(captions)
    if weights[1]:
        if teacher_image is None or len(teacher_captions) != len(captions):
            raise ConfigError(
                f"{len(captions)} captions have {len(teacher_captions)} teacher embeddings"
                f"{' and no image embedding' if teacher_image is None else ''}; pass one per "
                "caption and the image's, or a distillation weight of 0"
            )
        distilled = [rows is not None for rows in teacher_captions]
        if not any(distilled):
            raise ConfigError(
                "no caption has a teacher embedding; pass one of at least one caption, or a "
                "distillation weight of 0"
            )
        embeddings = [teacher_image, *teacher_captions]
        targets = check_teachers(
            student, embeddings, teacher_dims, teacher_scales, weights=teacher_weights
        )
    used = [(bool(weights[0]) and one, two) for one, two in zip(contrasted, distilled, strict=True)]
    contrastive, distillation = clip_terms(student, targets, used, gathered, chunk, text_ids)
    return {
        "contrastive_loss": contrastive * weights[0],
        "distill_loss": distillation * weights[1],
    }


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Scale,
    logit_bias: Scale,
    *,
    gathered: bool = False,
    chunk: int | None = None,
    text_ids: Tensor | None = None,
) -> Tensor:
    """Return SigLIP's loss: for each image and text, whether they belong together.

    `-logsigmoid(label * (logit_scale * image @ text.T + logit_bias))`, with label 1 for pairs that
    belong together and -1 for others; summed over texts, averaged over images (arXiv 2303.15343,
    algorithm 1).

    Args:
        image: (b, D) unit embeddings.
        text: (b, D); row i belongs to image i.
        logit_scale: the multiplier itself.
        logit_bias: added to each logit.
        gathered: compare with the rows of all processes; see the module.
        chunk: rows to compute at a time; see the module. None: all.
        text_ids: which texts are the same; see the module. None: all count as different.

    Raises:
        ConfigError: shapes do not fit.
    """
    student = check_student([image, text], logit_scale, chunk)
    bias = scalar(logit_bias, "logit_bias", compute_dtype(*student.rows))
    ids = None if text_ids is None else [text_ids]
    return siglip_term(student, bias, None, gathered, chunk, ids)


def siglip_distillation_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Scale,
    logit_bias: Scale,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_dims: Sequence[int],
    teacher_scales: Sequence[float],
    teacher_biases: Sequence[float],
    *,
    teacher_weights: Sequence[float] | None = None,
    gathered: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return SigLIP's loss with soft labels from the teachers.

    The label of an image and a text is `2 p - 1`, where p is the weighted mean over teachers of
    `sigmoid(scale * image @ text.T + bias)`. All else is as in `siglip_loss`.

    Args:
        image: (b, D) unit embeddings.
        text: (b, D); row i belongs to image i.
        logit_scale: the student's multiplier.
        logit_bias: the student's bias.
        teacher_image: (b, sum of `teacher_dims`).
        teacher_text: (b, sum of `teacher_dims`).
        teacher_dims: each teacher's D.
        teacher_scales: each teacher's multiplier.
        teacher_biases: each teacher's bias.
        teacher_weights: each teacher's weight in the labels; they are divided by their sum. None:
            all are equal.
        gathered: compare with the rows of all processes; see the module.
        chunk: rows to compute at a time; see the module. None: all.

    Raises:
        ConfigError: shapes do not fit.
    """
    student = check_student([image, text], logit_scale, chunk)
    bias = scalar(logit_bias, "logit_bias", compute_dtype(*student.rows))
    embeddings = [teacher_image, teacher_text]
    targets = check_teachers(
        student, embeddings, teacher_dims, teacher_scales, teacher_biases, teacher_weights
    )
    return siglip_term(student, bias, targets, gathered, chunk)


def captioning_loss(
    logits: Tensor, labels: Tensor, *, pad_id: int = 0, gathered: bool = False
) -> Tensor:
    """Return CoCa's captioning loss: the cross entropy of each next token.

    A mean over the labels that are not padding (arXiv 2205.01917, section 3.2).

    Args:
        logits: (b, T, V), the decoder's output.
        labels: (b, T) integers, the token that follows each position.
        pad_id: the label to ignore.
        gathered: divide by the mean number of labels of all processes, so that the mean of loss
            and gradients over processes equals that of the joined batch.

    Raises:
        ConfigError: shapes do not fit, a label is outside the vocabulary, or all are padding.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ConfigError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (B, T, V) "
            "and (B, T)"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ConfigError(f"labels must be integers, not {labels.dtype}")
    counted = labels != pad_id
    outside = counted & ((labels < 0) | (labels >= logits.shape[2]))
    count, wrong = torch.stack([counted.sum(), outside.sum()]).tolist()
    if wrong:
        raise ConfigError(f"{wrong} labels are outside the vocabulary of {logits.shape[2]} tokens")
    if gathered:
        count = distributed.average({"labels": count})["labels"]
    if not count:
        raise ConfigError(f"all labels are padding (id {pad_id}), so there is no loss")
    return captioning_sum(logits, labels, pad_id) / count
