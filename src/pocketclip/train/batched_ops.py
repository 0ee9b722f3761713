"""Augments a whole batch with tensor operations: the bytes of `pocketclip.augment.pixel_ops`.

A batch takes as many operations as a single image, so a GPU has the same number of kernels to
start, and nothing is read back from it. Values are whole numbers throughout: `resize` splits
Pillow's weights of 22 bits into two matrices of which every product and sum is exact in float32,
and in TF32 too; the other operations compute as `pixel_ops` does. So equal inputs give equal bytes.

Shapes: B images, R of them that get one operation, S side of a square, N pixels of all crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pocketclip.augment.pixel_ops import OP_NAMES

Interpolation = Literal["bilinear", "bicubic"]
_SUPPORT: dict[str, int] = {"bilinear": 1, "bicubic": 2}  # pixels on either side
_WEIGHT_BITS = 22  # of Pillow's weights for 8-bit images
_LOW_BITS = 12  # the others are in a second matrix
MAX_SHRINKAGE = 2
"""By how much `resize` can shrink a side."""
_FIXED_LIMIT = 32767  # coordinates that fit 16 bits, with room for rounding
_PARTS = 4
"""Parts of a batch that are resized one after the other, to save memory."""

GEOMETRY = OP_NAMES[1:6]
"""The operations that `transform` does."""
TABLES = ("Brightness", "Posterize", "Solarize", "Invert", "Contrast", "AutoContrast", "Equalize")
"""The operations that map each value by a table."""
GROUPED_OPS = ("Identity", *GEOMETRY, "Color", "Sharpness", *TABLES)
"""All operations; those that are computed together are neighbours."""


# --- resizing


class Crops(NamedTuple):
    """What is to be resized of each image."""

    starts: Tensor
    """int64 (B,), the position of the first pixel of each crop, which is stored row by row."""
    sizes: Tensor
    """int64 (B, 2), each crop's height and width."""
    boxes: Tensor
    """float64 (B, 2, 2): top and bottom, then left and right, in pixels of the crop. A box is at
    most `MAX_SHRINKAGE` times as long as the result."""
    flips: Tensor
    """bool (B,), whether the result is mirrored horizontally."""
    rows_first: Tensor
    """bool (B,), whether the height is resized before the width; values are rounded to 8 bits in
    between."""


def resize(
    pixels: Tensor, crops: Crops, *, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """Return the boxes of all crops resized to squares, with Pillow's antialiasing and rounding.

    Args:
        pixels: uint8 (N, 3), those of all crops.
        crops: where each crop is, and what of it is resized.
        side: the largest height and width of a crop, or more.
        size: S.
        interpolation: Pillow's filter.

    Returns:
        uint8 (B, S, S, 3).
    """
    out = pixels.new_empty(len(crops.starts), size, size, 3)
    parts = zip(*(one.tensor_split(_PARTS) for one in crops), strict=True)
    for square, part in zip(out.tensor_split(_PARTS), parts, strict=True):
        square.copy_(_resize_part(pixels, Crops(*part), side, size, interpolation))
    return out


def _resize_part(
    pixels: Tensor, crops: Crops, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    # The axis that is resized first comes first; without `rows_first`, images are transposed.
    order = crops.rows_first[:, None]
    lengths = torch.where(order, crops.sizes, crops.sizes.flip(1))
    boxes = torch.where(order[..., None], crops.boxes, crops.boxes.flip(1))
    flipped = crops.flips[:, None] & torch.stack((~crops.rows_first, crops.rows_first), 1)
    along = torch.arange(side, dtype=torch.int64, device=pixels.device)
    down, across = along[:, None], along[None]
    width = crops.sizes[:, 1, None, None]
    position = torch.where(order[..., None], down * width + across, across * width + down)
    # Beyond a crop are pixels of others, whose weight is 0.
    position = (position + crops.starts[:, None, None]).clamp_(max=len(pixels) - 1)
    image = pixels.index_select(0, position.view(-1)).view(-1, side, side * 3)
    first, second = (
        _weights(boxes[:, axis], lengths[:, axis], flipped[:, axis], side, size, interpolation)
        for axis in (0, 1)
    )
    half = _product(first, image).view(-1, size, side, 3)
    half = half.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    whole = _product(second, half.view(-1, side, size * 3))
    whole = whole.view(-1, size, size, 3)
    return torch.where(order[..., None, None], whole.transpose(1, 2), whole)


def _product(weights: Tensor, image: Tensor) -> Tensor:
    """Return the weighted sums (B, S, n) of uint8 values (B, side, n), rounded to 8 bits."""
    sums = torch.bmm(weights, image.float())  # (B, 2S, n)
    high, low = sums.to(torch.int32).chunk(2, 1)
    total = (high << _LOW_BITS) + low + (1 << (_WEIGHT_BITS - 1))
    return (total >> _WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


def _weights(
    box: Tensor, length: Tensor, flipped: Tensor, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """Return the matrices (B, 2S, side) that resize one axis: high bits of the weights, then low.

    Args:
        box: float64 (B, 2), the first and the last coordinate to keep.
        length: int64 (B,), the number of pixels that there are.
        flipped: bool (B,), whether the result is reversed.
        side: the number of columns.
        size: S.
        interpolation: the filter.
    """
    target = torch.arange(size, dtype=torch.float64, device=box.device)
    target = torch.where(flipped[:, None], size - 1 - target, target)  # (B, S)
    scale = ((box[:, 1] - box[:, 0]) / size)[:, None]
    stretch = scale.clamp(min=1.0)
    reach = _SUPPORT[interpolation] * stretch
    centre = box[:, :1] + (target + 0.5) * scale
    first = (centre - reach + 0.5).clamp_(min=0.0).floor_()
    last = torch.minimum((centre + reach + 0.5).floor_(), length[:, None].double())
    taps = 2 * MAX_SHRINKAGE * _SUPPORT[interpolation] + 1
    tap = torch.arange(taps, dtype=torch.float64, device=box.device) + first[..., None]
    weight = _filter((tap - centre[..., None] + 0.5) / stretch[..., None], interpolation)
    weight = weight.where(tap < last[..., None], 0.0)
    weight = weight / weight.sum(2, keepdim=True) * (1 << _WEIGHT_BITS)
    weight = (weight + weight.sign() * 0.5).to(torch.int32)
    high = (weight + (1 << (_LOW_BITS - 1))) >> _LOW_BITS
    both = torch.stack((high, weight - (high << _LOW_BITS)), 1).float()  # (B, 2, S, taps)
    # Some more columns, so that no two taps of a row share one.
    matrix = both.new_zeros(len(box), 2, size, side + taps)
    matrix.scatter_(3, tap.long()[:, None].expand_as(both), both)
    return matrix.view(-1, 2 * size, side + taps)[..., :side]


def _filter(x: Tensor, interpolation: Interpolation) -> Tensor:
    x = x.abs()
    if interpolation == "bilinear":
        return (1.0 - x).clamp_(min=0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


# --- one operation for each image


def apply_ops(
    images: Tensor, rows: Tensor, counts: Sequence[int], magnitudes: Tensor, matrices: Tensor
) -> None:
    """Apply one operation to each image, in place.

    Args:
        images: uint8 (B, S, S, 3), contiguous.
        rows: int64 (B,), the images sorted by their operation in `GROUPED_OPS`.
        counts: how many images get each of `GROUPED_OPS`.
        magnitudes: float64 (B,), as `pixel_ops.apply_op` takes them, in the order of `images`.
        matrices: int32 (B, 6), as `transform` takes them, in the order of `images`.
    """
    ends = [sum(counts[: k + 1]) for k in range(len(counts))]
    groups = dict(zip(GROUPED_OPS, rows.tensor_split(ends[:-1]), strict=True))
    moved = torch.cat([groups[name] for name in GEOMETRY])
    images.index_copy_(0, moved, transform(images[moved], matrices[moved]))
    for name, blend in (("Color", _color), ("Sharpness", _sharpness)):
        chosen = groups[name]
        images.index_copy_(0, chosen, blend(images[chosen], _factors(magnitudes[chosen])))
    _apply_tables(images, groups, magnitudes)


def transform(images: Tensor, matrices: Tensor) -> Tensor:
    """Return affine transforms of images (R, S, S, 3): nearest neighbour, black outside.

    Args:
        images: uint8.
        matrices: int32 (R, 6), a b c d e f in units of 1/65536: the pixel at (x, y) of a result is
            that at (a x + b y + c, d x + e y + f) of the source, rounded down.
    """
    count, size = images.shape[:2]
    along = torch.arange(size, dtype=torch.int32, device=images.device)
    a, b, c, d, e, f = matrices[..., None, None].unbind(1)
    x = (a * along + b * along[:, None] + c) >> 16
    y = (d * along + e * along[:, None] + f) >> 16
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    image = torch.arange(count, dtype=torch.int32, device=images.device)[:, None, None]
    position = torch.where(inside, (image * size + y) * size + x, 0)
    moved = images.view(-1, 3).index_select(0, position.view(-1)).view_as(images)
    return moved.mul_(inside[..., None])


def _factors(magnitudes: Tensor) -> Tensor:
    return (1.0 + magnitudes).float()[:, None, None, None]


def _blended(base: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    """Return base + factors * (values - base) as uint8; values are float32 and overwritten."""
    # One operation each: a fused multiply-add would round differently.
    return values.sub_(base).mul_(factors).add_(base).clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Return Pillow's grey values, int32 (R, S, S)."""
    weights = (19595, 38470, 7471)
    red, green, blue = (images[..., k].to(torch.int32) * weight for k, weight in enumerate(weights))
    return (red + green + blue + 0x8000) >> 16


def _color(images: Tensor, factors: Tensor) -> Tensor:
    return _blended(_luma(images).float()[..., None], images.float(), factors)


def _sharpness(images: Tensor, factors: Tensor) -> Tensor:
    size = images.shape[1]
    if size < 3:
        return images
    wide = images.to(torch.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total += 4 * wide[:, 1:-1, 1:-1] + 6
    smooth = total.div_(13, rounding_mode="floor").float()
    out = images.clone()  # the rim stays
    out[:, 1:-1, 1:-1] = _blended(smooth, images[:, 1:-1, 1:-1].float(), factors)
    return out


# --- tables


def _apply_tables(images: Tensor, groups: dict[str, Tensor], magnitudes: Tensor) -> None:
    values = torch.arange(256, dtype=torch.int32, device=images.device)
    tables = []
    for name in TABLES:
        rows = groups[name]
        magnitude = magnitudes[rows, None]
        if name == "Brightness":
            table = _from_grey(torch.zeros_like(magnitude), magnitude, values)
        elif name == "Posterize":
            table = values & (256 - (1 << (8 - magnitude.to(torch.int32))))
        elif name == "Solarize":
            table = torch.where(values < magnitude, values, 255 - values)
        elif name == "Invert":
            table = (255 - values).expand(len(rows), 256)
        elif name == "Contrast":
            table = _from_grey(_mean_luma(images[rows])[:, None], magnitude, values)
        elif name == "AutoContrast":
            table = _autocontrast(images[rows], values)
        else:
            table = _equalize(images[rows], values)
        if table.dim() == 2:
            table = table[:, None].expand(-1, 3, -1)
        tables.append(table.to(torch.uint8))
    rows = torch.cat([groups[name] for name in TABLES])
    chosen = images[rows]
    mapped = torch.cat(tables).reshape(-1).index_select(0, _entries(chosen).view(-1))
    images.index_copy_(0, rows, mapped.view_as(chosen))


def _entries(images: Tensor) -> Tensor:
    """Return where each value is in tables (R, 3, 256) of the images' channels; int32."""
    first = 256 * torch.arange(3 * len(images), dtype=torch.int32, device=images.device)
    return first.view(-1, 1, 1, 3) + images


def _from_grey(grey: Tensor, magnitude: Tensor, values: Tensor) -> Tensor:
    """Return the tables (R, 256) that blend each `grey` (R, 1) with the image."""
    base = grey.float()
    blended = _blended(base, values.float().repeat(len(grey), 1), (1.0 + magnitude).float())
    return blended.to(torch.int32)


def _mean_luma(images: Tensor) -> Tensor:
    """Return the mean grey values (R,), rounded to whole numbers."""
    count = images.shape[1] * images.shape[2]
    total = _luma(images).sum((1, 2))
    return (2 * total + count).div(2 * count, rounding_mode="floor")


def _autocontrast(images: Tensor, values: Tensor) -> Tensor:
    low, high = (
        extreme(images, (1, 2)).double()[..., None] for extreme in (torch.amin, torch.amax)
    )
    # A number divided by a tensor would be multiplied by the reciprocal, which rounds differently.
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1.0)
    table = (values * scale + -low * scale).to(torch.int32).clamp_(0, 255)
    return torch.where(high > low, table, values)


def _equalize(images: Tensor, values: Tensor) -> Tensor:
    count = images.shape[1] * images.shape[2]
    entries = _entries(images).view(-1).long()
    counts = entries.new_zeros(len(images) * 3 * 256)
    counts.scatter_add_(0, entries, torch.ones_like(entries))
    counts = counts.view(-1, 3, 256)
    brightest = (values * (counts > 0)).amax(2, keepdim=True).long()
    step = (count - counts.gather(2, brightest)).div(255, rounding_mode="floor")
    before = counts.cumsum(2) - counts
    some = step.clamp(min=1)
    table = (before + some.div(2, rounding_mode="floor")).div(some, rounding_mode="floor")
    return torch.where(step > 0, table.clamp_(max=255), values)


# --- erasing


def erase(images: Tensor, boxes: Tensor) -> None:
    """Blacken a rectangle of each image (B, S, S, 3), in place.

    Args:
        images: uint8.
        boxes: int32 (B, 4), top left bottom right in pixels; may extend beyond the edge, or be
            empty.
    """
    along = torch.arange(images.shape[1], dtype=torch.int32, device=images.device)
    top, left, bottom, right = boxes[..., None].unbind(1)
    rows = (along >= top) & (along < bottom)
    columns = (along >= left) & (along < right)
    images.masked_fill_((rows[:, :, None] & columns[:, None])[..., None], 0)


# --- parameters, computed with the batch


def matrix(op: int, magnitude: float, size: int) -> tuple[int, ...] | None:
    """Return the entries that `transform` takes for an operation on S x S pixels.

    Args:
        op: a position in `OP_NAMES`. What is not in `GEOMETRY` leaves the pixels where they are.
        magnitude: as `pixel_ops.apply_op` takes it.
        size: S.

    Returns:
        a to f; None if they are too large for Pillow's arithmetic with 16 bits of fraction.
    """
    name = OP_NAMES[op]
    a = e = 1.0
    b = c = d = f = 0.0
    if name == "ShearX":
        b = math.tan(math.radians(math.degrees(math.atan(magnitude))))
    elif name == "ShearY":
        angle = math.radians(math.degrees(math.atan(magnitude)))
        d = math.sin(angle) / math.cos(angle)
    elif name == "TranslateX":
        c = -float(int(max(-size, min(size, magnitude))))
    elif name == "TranslateY":
        f = -float(int(max(-size, min(size, magnitude))))
    elif name == "Rotate":
        # As Pillow's `Image.rotate`, around the centre.
        angle = -math.radians(magnitude % 360.0)
        a = e = round(math.cos(angle), 15)
        b, d = round(math.sin(angle), 15), round(-math.sin(angle), 15)
        centre = size / 2.0
        c = a * -centre + b * -centre + 0.0 + centre
        f = d * -centre + e * -centre + 0.0 + centre
    corners = ((x, y) for x in (0, size) for y in (0, size))
    if any(max(abs(a * x + b * y + c), abs(d * x + e * y + f)) >= _FIXED_LIMIT for x, y in corners):
        return None
    entries = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return tuple(math.floor(entry * 65536.0 + 0.5) for entry in entries)
