"""The pictures behind the golden values of augmentations, for the script and for the tests."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noisy_ramp(width: int, height: int, seed: int) -> Image.Image:
    """Return noise on a ramp: pixels that no decoder has a say in."""
    noise = np.random.RandomState(seed).randint(0, 120, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    ramps = (
        x * 90 // width + 20,
        y * 100 // height,
        (x + y) * 80 // (width + height) + 30,
    )
    return Image.fromarray((noise + np.stack(ramps, 2)).astype(np.uint8))
