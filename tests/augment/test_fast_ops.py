"""The quick operations give the bytes of `pixel_ops`, which golden values of torchvision hold."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pocketclip.augment import pixel_ops
from pocketclip.augment.fast_ops import Canvas, apply_op, flip
from pocketclip.augment.magnitudes import op_magnitude

# Less than a 3 x 3 neighbourhood, odd sides, and more than is blended at once.
SIZES = ((1, 1), (2, 5), (3, 3), (37, 53), (200, 150))


def picture(width, height):
    """Return noise over a slope, with black and white in it."""
    rng = np.random.default_rng(width)
    slope = np.linspace(0, 255, width)[None, :, None]
    noisy = slope + rng.normal(0, 40, (height, width, 3)) * [1, 0.5, 0.2]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", range(15), ids=pixel_ops.OP_NAMES)
def test_operations_are_those_of_pixel_ops(op, size):
    image = picture(*size)
    before = np.array(image)
    signs = (1, -1) if op in pixel_ops.SIGNED_OPS else (1,)
    for level in range(31):
        for sign in signs:
            magnitude = sign * op_magnitude(op, level, 31, size)
            right = np.asarray(pixel_ops.apply_op(image, op, magnitude))
            for canvas in (Canvas(image=image), Canvas(array=before)):
                after = apply_op(canvas, op, magnitude)
                assert np.array_equal(after.array, right), (level, sign)
                assert np.array_equal(np.asarray(after.image), right), (level, sign)
    assert np.array_equal(np.asarray(image), before)


@pytest.mark.parametrize("magnitude", [-400.0, 400.0])
@pytest.mark.parametrize("op", [3, 4])
def test_moving_further_than_the_image(op, magnitude):
    image = picture(20, 10)
    right = np.asarray(pixel_ops.apply_op(image, op, magnitude))
    assert not right.any()
    assert np.array_equal(apply_op(Canvas(image=image), op, magnitude).array, right)


@pytest.mark.parametrize("magnitude", [-3.0, 0.0, 0.5, 254.5, 255.0, 255.5, 300.0])
def test_solarizing_at_the_ends(magnitude):
    image = picture(20, 10)
    right = np.asarray(pixel_ops.apply_op(image, 11, magnitude))
    assert np.array_equal(apply_op(Canvas(image=image), 11, magnitude).array, right)


def test_one_operation_after_another():
    image = picture(40, 30)
    canvas, right = Canvas(image=image), image
    for op, magnitude in ((7, 0.4), (1, 0.2), (9, -0.5), (3, 5.0), (12, 0.0), (6, 0.3), (8, -0.6)):
        canvas = apply_op(canvas, op, magnitude)
        right = pixel_ops.apply_op(right, op, magnitude)
    assert np.array_equal(canvas.array, np.asarray(right))


def test_mirrored():
    pixels = np.asarray(picture(7, 4))
    assert np.array_equal(flip(Canvas(array=pixels)).array, pixels[:, ::-1])
