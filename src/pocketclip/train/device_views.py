"""Views that are finished on the device: cropped by the workers, augmented as a whole batch.

    view = View(pixels=crop, box=(0, 0, 300, 400), params=params, rows_first=False)
    views = Views.pack([view, ...], size=224, interpolation="bicubic", slots=2)  # in a worker
    images = views.to("cuda").images()  # uint8 (B, 3, S, S)

Crops have different sizes; they are stored one after the other, without padding between them.

Shapes: B batch, S side of the image, H W a crop's height and width, N pixels of all crops, K
operations of each image, one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from pocketclip.augment import Params
from pocketclip.augment.pixel_ops import OP_NAMES
from pocketclip.errors import ConfigError
from pocketclip.train import batched_ops
from pocketclip.train.batched_ops import GROUPED_OPS, Interpolation

_STEP = 32  # sides are rounded up to multiples, so that few shapes occur
_CHUNK = 1 << 16  # pixels; the same for N
_GROUP = [GROUPED_OPS.index(name) for name in OP_NAMES]
_NO_PARAMS = Params()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A crop of an image, and what is left to be done with it."""

    pixels: NDArray[np.uint8]
    """(H, W, 3), each at most `batched_ops.MAX_SHRINKAGE` times S."""
    box: tuple[float, float, float, float]
    """Top, left, bottom and right of what is to be resized, in pixels of the crop."""
    params: Params = _NO_PARAMS
    """For the flip, the operations and the erasing, in pixels of the result."""
    matrices: tuple[tuple[int, ...], ...] = ()
    """`batched_ops.matrix` of each operation."""
    rows_first: bool = False
    """Whether the height is resized before the width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """The views of a batch, before they are resized and augmented."""

    pixels: Tensor
    """uint8 (N, 3)."""
    numbers: Tensor
    """int64 (B, 9): first pixel, height, width, whether to flip, whether rows are resized first,
    and the erased rectangle: top, left, bottom, right."""
    boxes: Tensor
    """float64 (B, 2, 2): top and bottom, left and right."""
    magnitudes: Tensor
    """float64 (K, B)."""
    matrices: Tensor
    """int32 (K, B, 6)."""
    rows: Tensor
    """int64 (K, B): the images, sorted by operation."""
    counts: tuple[tuple[int, ...], ...]
    """K times: how many images get each of `GROUPED_OPS`."""
    side: int
    """The largest height or width, rounded up."""
    size: int
    """S."""
    interpolation: Interpolation

    @classmethod
    def pack(
        cls, views: Sequence[View], *, size: int, interpolation: Interpolation, slots: int = 0
    ) -> Views:
        """Return the views of a batch.

        Args:
            views: B of them.
            size: S.
            interpolation: the filter to resize with.
            slots: K, unless a view has more operations.
        """
        slots = max(slots, *(len(view.matrices) for view in views))
        heights, widths = zip(*(view.pixels.shape[:2] for view in views), strict=True)
        lengths = [h * w for h, w in zip(heights, widths, strict=True)]
        *starts, total = itertools.accumulate(lengths, initial=0)
        pixels = _new_pixels(total)
        flat = pixels.numpy()
        for view, start, length in zip(views, starts, lengths, strict=True):
            flat[start : start + length].reshape(view.pixels.shape)[:] = view.pixels
        ops = np.zeros((slots, len(views)), np.int64)
        magnitudes = np.zeros((slots, len(views)))
        matrices = np.zeros((slots, len(views), 6), np.int32)
        for row, view in enumerate(views):
            for slot, (op, magnitude) in enumerate(view.params.all_ops):
                ops[slot, row], magnitudes[slot, row] = _GROUP[op], magnitude
                matrices[slot, row] = view.matrices[slot]
        boxes = np.array([view.box for view in views], np.float64)
        counts = [np.bincount(slot, minlength=len(GROUPED_OPS)).tolist() for slot in ops]
        return cls(
            pixels=pixels,
            numbers=torch.tensor(list(map(_numbers, views, starts))),
            boxes=torch.from_numpy(boxes.reshape(-1, 2, 2).swapaxes(1, 2).copy()),
            magnitudes=torch.from_numpy(magnitudes),
            matrices=torch.from_numpy(matrices),
            rows=torch.from_numpy(ops.argsort(axis=1, kind="stable")),
            counts=tuple(map(tuple, counts)),
            side=-(-max(*heights, *widths) // _STEP) * _STEP,
            size=size,
            interpolation=interpolation,
        )

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Views:
        """Return the views with `change` applied to each of their tensors."""
        return replace(
            self,
            pixels=change(self.pixels),
            numbers=change(self.numbers),
            boxes=change(self.boxes),
            magnitudes=change(self.magnitudes),
            matrices=change(self.matrices),
            rows=change(self.rows),
        )

    def images(self) -> Tensor:
        """Return the images, uint8 (B, 3, S, S) in channels-last memory, on the same device.

        Raises:
            ConfigError: the device has no float64, which the filter's weights need.
        """
        device = self.pixels.device
        if device.type == "mps":
            raise ConfigError(
                "data.replay: `device` needs a CUDA GPU or a CPU, not mps; set data.replay=exact"
            )
        start, height, width, flip, rows_first, *erased = self.numbers.unbind(1)
        # Autocast would compute the matrix products in 16 bits.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            sizes = torch.stack((height, width), 1)
            crops = batched_ops.Crops(start, sizes, self.boxes, flip.bool(), rows_first.bool())
            images = batched_ops.resize(
                self.pixels, crops,
                side=self.side, size=self.size, interpolation=self.interpolation,
            )  # fmt: skip
            for rows, counts, magnitudes, matrices in zip(
                self.rows, self.counts, self.magnitudes, self.matrices, strict=True
            ):
                batched_ops.apply_ops(images, rows, counts, magnitudes, matrices)
            batched_ops.erase(images, torch.stack(erased, 1))
        return images.permute(0, 3, 1, 2)


def _new_pixels(count: int) -> Tensor:
    """Return uint8 (N, 3) for at least `count` pixels, in a worker in shared memory.

    The data loader would copy other memory to shared memory to hand it over.
    """
    size = 3 * max(_CHUNK, -(-count // _CHUNK) * _CHUNK)
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8).view(-1, 3)
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(-1, 3)


def _numbers(view: View, start: int) -> list[int]:
    height, width = view.pixels.shape[:2]
    erased = [0, 0, 0, 0]
    if view.params.erase is not None:
        top, left, down, across = view.params.erase
        erased = [top, left, top + down, left + across]
    return [start, height, width, view.params.flip, view.rows_first, *erased]
