"""Augmentations as data: drawn once, stored as parameters, applied again to the same pixels.

    augmentation = Augmentation.from_config(config)
    params = augmentation.draw(rng_for(seed, uid, 0), image.size)
    pixels = augmentation.apply(image, params)

| module | holds |
|---|---|
| `augmentation` | `Augmentation`: draws, packs, unpacks and applies |
| `packing` | the packed format |
| `config` | the configuration in the published format, read |
| `transforms`, `setting_checks` | the transforms with their settings; the checks of these |
| `draws` | the parameters of each transform, drawn |
| `magnitudes`, `policies` | the strengths of operations; AutoAugment's learned pairs |
| `padding` | the border around an image, and a window of both |
| `params` | `Params`: the numbers of one augmentation, and how their stored entries are read |
| `pixel_ops` | the operations on pixels, which define the result |
| `fast_ops` | the same operations, faster, for replaying stored augmentations in training |

Source: MobileCLIP (arXiv 2311.17049), section 4.
"""

from __future__ import annotations

from pocketclip.augment.augmentation import Augmentation, rng_for
from pocketclip.augment.params import Params
from pocketclip.augment.transforms import DATACOMPDR

__all__ = ["DATACOMPDR", "Augmentation", "Params", "rng_for"]
