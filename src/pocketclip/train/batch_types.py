"""What the data loader is asked for, and what a batch of it holds.

Shapes: B batch, S side of the image, T tokens, D the sum of the teachers' dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pocketclip import zoo
from pocketclip.train.device_views import Views
from pocketclip.train.order import WINDOW
from pocketclip.train.sections import CaptionChoice, CaptionKind, ReplayMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which samples are used, and which of their parts; see the recipe's `data` section."""

    source: str | tuple[str, ...]
    reinforced: bool = True
    embeddings: bool = True
    """With `reinforced`: whether to read the stored embeddings."""
    distill_captions: Literal["all", "truth", "synthetic"] = "all"
    """Which captions' stored embeddings to read."""
    captions: CaptionChoice = "both"
    truth_ratio: float = 0.5
    caption_pattern: str = ".*"
    augmentation: Literal["random", "sequential"] = "random"
    image_augmentation: dict[str, Any] | None = None
    min_image_side: int = 0
    balance: float = 0.0
    replay: ReplayMode = "exact"
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    where: dict[str, str] = field(default_factory=dict)
    cache_dir: str | None = None
    shuffle_window: int = WINDOW
    """Number of samples that a process shuffles together; in larger sets, whole shards are
    shuffled first."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """The samples of one process for one step or micro-batch."""

    images: Tensor
    """uint8 (B, 3, S, S) in channels-last memory, before `normalise`. With `views` it is a meta
    tensor, without values: `to` makes the images."""
    captions: list[Tensor]
    """Token ids, int64 (B, T), for one or two captions of each sample."""
    uids: list[str]
    texts: list[list[str]] = field(default_factory=list)
    """The captions' texts, parallel to `captions`."""
    kinds: list[CaptionKind] = field(default_factory=list)
    """What the captions are, parallel to `captions`; empty: not known."""
    text_length: int | None = None
    """Number of tokens of the longest caption, its end token included; None: not known. Whoever
    makes the batch counts them: later, a GPU would have to be waited for."""
    teacher_image: Tensor | None = None
    """float32 (B, D): the teachers' embeddings of `images`."""
    teacher_captions: list[Tensor | None] = field(default_factory=list)
    """float32 (B, D) each: the teachers' embeddings, parallel to `captions`; None for captions that
    are not distilled."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Samples that were replaced by others, and why."""
    too_small: int = 0
    """Number of samples that others replaced because of `data.min_image_side`."""
    views: Views | None = None
    """With `data.replay: device`: what the images are made of."""

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory; the data loader calls this."""
        return self.with_tensors(Tensor.pin_memory)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`; one that is there already is returned as it is.

        Its images are made of its `views` there, if it has any.

        Args:
            device: where its tensors shall be.
            non_blocking: copy pinned memory to a GPU without waiting for the copy.
        """
        moved = self.with_tensors(lambda rows: rows.to(device, non_blocking=non_blocking))
        if moved.views is not None:
            return replace(moved, images=moved.views.images(), views=None)
        return self if moved.images is self.images else moved

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `change` applied to each of its tensors."""
        return replace(
            self,
            images=self.images if self.views is not None else change(self.images),
            views=None if self.views is None else self.views.with_tensors(change),
            captions=[change(ids) for ids in self.captions],
            teacher_image=None if self.teacher_image is None else change(self.teacher_image),
            teacher_captions=[
                None if rows is None else change(rows) for rows in self.teacher_captions
            ],
        )


def longest_text(captions: Sequence[Tensor]) -> int:
    """Return the tokens of the longest text of ids (B, T) on the CPU, its end token included.

    The end token has the highest id.
    """
    return max(int(ids.numpy().argmax(1).max()) for ids in captions) + 1


def normalise(
    images: Tensor,
    preprocess: zoo.PreprocessConfig,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return the image tower's input, float32 (B, 3, S, S), for uint8 images (B, 3, S, S).

    Args:
        images: in any memory format.
        preprocess: the tower's mean and standard deviation.
        memory_format: of the result.
    """
    pixels = torch.empty(
        images.shape, dtype=torch.float32, device=images.device, memory_format=memory_format
    )
    mean, std = _constants(preprocess.mean, preprocess.std, images.device)
    plain = preprocess.mean == (0.0, 0.0, 0.0) and preprocess.std == (1.0, 1.0, 1.0)
    # On a CPU one image at a time, which fits its cache; on an accelerator all at once.
    pairs = zip(pixels, images, strict=True) if images.is_cpu else [(pixels, images)]
    for out, image in pairs:
        out.copy_(image).div_(255)
        if not plain:
            out.sub_(mean).div_(std)
    return pixels


@functools.lru_cache(maxsize=8)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return both as (3, 1, 1), made once: the host waits for a GPU to copy them there."""
    columns = torch.tensor([mean, std], dtype=torch.float32, device=device)[:, :, None, None]
    return columns[0], columns[1]
