"""Batched operations give the bytes of `pixel_ops`, by as many calls for any number of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pocketclip.augment import Params, pixel_ops
from pocketclip.augment.magnitudes import op_magnitude, trivial_magnitude
from pocketclip.train import batched_ops
from pocketclip.train.device_views import View, Views
from tests.augment.test_fast_ops import picture


def batch_of(views, size, interpolation="bicubic"):
    images = Views.pack(views, size=size, interpolation=interpolation).images()
    assert images.is_contiguous(memory_format=torch.channels_last)
    return images.permute(0, 2, 3, 1).numpy()


def finished(pixels, *ops, **params):
    size = len(pixels)
    matrices = [batched_ops.matrix(op, magnitude, size) for op, magnitude in ops]
    return View(
        pixels=pixels, box=(0, 0, size, size), params=Params(ops=ops, **params), matrices=matrices
    )


def magnitudes(op, size):
    signs = (1, -1) if op in pixel_ops.SIGNED_OPS else (1,)
    for level in range(0, 31, 3):
        for sign in signs:
            yield sign * op_magnitude(op, level, 31, (size, size))
            yield sign * trivial_magnitude(op, level, 31)
    name = pixel_ops.OP_NAMES[op]
    if name == "Rotate":
        yield from (90.0, -90.0, 180.0, 270.0, 360.0, 725.5)
    elif name == "Solarize":
        yield from (-3.0, 0.5, 254.5, 255.5, 300.0)
    elif name.startswith("Translate"):
        yield from (400.0, -400.0, 0.99, -0.99)
    elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
        yield from (-1.0, 3.0, -2.5, 1000.0)


@pytest.mark.parametrize("size", [1, 2, 3, 37, 64])
@pytest.mark.parametrize("op", range(15), ids=pixel_ops.OP_NAMES)
def test_operations_are_those_of_pixel_ops(op, size):
    grey = Image.new("RGB", (size, size), (7, 7, 200))  # one value: nothing to stretch
    low = Image.fromarray(np.array(picture(size, size)) // 3 + 40)
    chosen = [(one, m) for m in magnitudes(op, size) for one in (picture(size, size), low, grey)]
    views = [finished(np.array(image), (op, magnitude)) for image, magnitude in chosen]
    right = [np.array(pixel_ops.apply_op(image, op, magnitude)) for image, magnitude in chosen]
    assert np.array_equal(batch_of(views, size), np.stack(right))


def test_operations_follow_one_another_and_stay_with_their_image():
    rng = np.random.default_rng(0)
    views, right = [], []
    for number in range(40):
        image = picture(24 + number % 2, 24).crop((number % 2, 0, 24 + number % 2, 24))
        ops = [
            (op, op_magnitude(op, int(rng.integers(1, 31)), 31, (24, 24)))
            for op in rng.integers(0, 15, number % 4).tolist()
        ]
        views.append(finished(np.array(image), *ops, flip=number % 3 == 0))
        if number % 3 == 0:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for op, magnitude in ops:
            image = pixel_ops.apply_op(image, op, magnitude)
        right.append(np.array(image))
    assert np.array_equal(batch_of(views, 24), np.stack(right))


def test_erasing_may_extend_beyond_the_edge():
    pixels = np.full((8, 8, 3), 9, np.uint8)
    boxes = [(2, 3, 4, 1), (6, 5, 10, 10), (0, 0, 8, 8), (3, 3, 0, 5), None]
    out = batch_of([finished(pixels, erase=box) for box in boxes], 8)
    for image, box in zip(out, boxes, strict=True):
        right = pixels.copy()
        if box is not None:
            right[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = 0
        assert np.array_equal(image, right)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_is_that_of_pixel_ops(interpolation):
    # Enlarged, shrunk up to twice, one side kept, and both orders of the two passes.
    size, way = 48, Image.Resampling[interpolation.upper()]
    shapes = [(96, 96), (96, 50), (50, 96), (48, 48), (48, 71), (71, 48), (1, 1), (3, 96), (96, 2),
              (20, 33), (95, 49), (61, 52)]  # fmt: skip
    views, right, orders = [], [], set()
    for width, height in shapes:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        rows_first = pixel_ops.resizes_rows_first((width, height), (size, size))
        orders.add(rows_first)
        for flip in (False, True):
            views.append(
                View(
                    pixels=noise, box=(0, 0, height, width), params=Params(flip=flip),
                    rows_first=rows_first,
                )
            )  # fmt: skip
            resized = np.array(pixel_ops.resize(image, (size, size), way))
            right.append(resized[:, ::-1] if flip else resized)
    assert orders == {False, True}
    assert np.array_equal(batch_of(views, size, interpolation), np.stack(right))


def test_a_box_with_fractions_is_that_of_pillow():
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    box = (3.25, 1.5, 57.0, 66.75)  # top left bottom right
    out = batch_of([View(pixels=noise, box=box)], 32)[0].astype(int)
    image = Image.fromarray(noise)
    right = image.resize((32, 32), Image.Resampling.BICUBIC, (box[1], box[0], box[3], box[2]))
    assert np.abs(out - np.asarray(right)).max() <= 1  # the order of the passes is Pillow's


@pytest.mark.parametrize("op", [1, 2])
def test_shears_beyond_the_fixed_point_are_left_to_the_worker(op):
    assert batched_ops.matrix(op, 0.3, 224) is not None
    assert batched_ops.matrix(op, 1e6, 224) is None
