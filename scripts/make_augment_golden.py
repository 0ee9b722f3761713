"""Write torchvision's results for RandomCrop, AutoAugment and TrivialAugmentWide.

    python scripts/make_augment_golden.py   # needs torchvision

It writes `tests/golden/augment/auto_trivial_crop.json`: policies, magnitudes, and hashes of pixels.
`tests/augment/test_more_transforms.py` compares ours with them. Pixels are those of Pillow images,
as in the published generator (8-bit RGB, nearest neighbour, black outside).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import autoaugment
from torchvision.transforms import functional as F

from augment_pictures import noisy_ramp

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "augment"
NAMES = [
    *T.RandAugment()._augmentation_space(31, (1, 1)),  # the published generator's order
    "Invert",
]
POLICIES = {policy.value: policy for policy in T.AutoAugmentPolicy}
BORDERS: list[dict[str, Any]] = [
    {"padding": 9},
    {"padding": [3, 8], "fill": [200, 100, 7]},
    {"padding": [1, 2, 30, 40], "fill": 90.7},
    {"padding": 0, "pad_if_needed": True},
    {"padding": [5, 0], "pad_if_needed": True, "fill": 255},
]


def digest(image: Image.Image, length: int = 12) -> str:
    """Return the beginning of the SHA-256 of the pixels."""
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:length]


def spaces(bins: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the magnitudes (operation, level) and signs of both transforms' operations.

    A magnitude of an operation without levels is one number.
    """
    auto = T.AutoAugment()._augmentation_space(bins, size[::-1])
    trivial = T.TrivialAugmentWide()._augmentation_space(bins)
    return {
        name: {
            op: [magnitudes.double().tolist() if magnitudes.ndim else 0.0, signed]
            for op, (magnitudes, signed) in space.items()
        }
        for name, space in (("auto", auto), ("trivial", trivial))
    }


def operations() -> Iterator[list[Any]]:
    """Yield [size, operation, magnitude, hash] for every magnitude of both, with both signs."""
    for size in ((48, 48), (37, 61)):
        image, seen = noisy_ramp(*size, 3), set()
        for space, bins in (("auto", 10), ("trivial", 31)):
            for op, (magnitudes, signed) in spaces(bins, size)[space].items():
                if size != (48, 48) and not op.startswith(("Shear", "Translate", "Rotate")):
                    continue
                levels = magnitudes if isinstance(magnitudes, list) else [magnitudes]
                for magnitude in [*levels, *(-m for m in levels if signed)]:
                    seen.add((NAMES.index(op), magnitude))
        for number, magnitude in sorted(seen):
            out = autoaugment._apply_op(
                image, NAMES[number], magnitude, T.InterpolationMode.NEAREST, None
            )
            yield [size, number, magnitude, digest(out)]


def crop_at(image: Image.Image, config: dict[str, Any], corner: list[int] | None) -> Any:
    """Return RandomCrop's window at `corner`, or at random; its corner; the size with border."""
    crop = T.RandomCrop(**config)
    seen: dict[str, Any] = {}

    def place(padded: Any, size: Any) -> tuple[int, int, int, int]:
        top, left, height, width = T.RandomCrop.get_params(padded, size)
        seen.update(corner=corner or [top, left], padded=padded.size)
        return *seen["corner"], height, width

    crop.get_params = place
    return crop(image), seen["corner"], seen["padded"]


def crops() -> Iterator[dict[str, Any]]:
    """Yield windows at the corners of the border and at random, for every padding mode."""
    modes = ("constant", "edge", "reflect", "symmetric")
    sizes = ((41, 30), (1, 5), (20, 70))
    for (number, border), mode, size in itertools.product(enumerate(BORDERS), modes, sizes):
        wanted = 20 if border.get("pad_if_needed") or size == (41, 30) else [12, 9]
        if "pad_if_needed" not in border and size == (1, 5) and number < 2:
            wanted = [6, 6]
        config = {"size": wanted, "padding_mode": mode, **border}
        image = noisy_ramp(size[0], size[1], number)
        _, _, (width, height) = crop_at(image, config, None)
        h, w = (wanted, wanted) if isinstance(wanted, int) else wanted
        ends = [[0, 0], [0, width - w], [height - h, 0], [height - h, width - w]]
        made = [crop_at(image, config, corner) for corner in [*ends, None, None]]
        windows = [[corner, digest(window)] for window, corner, _ in made]
        yield {"size": size, "picture": number, "config": config, "windows": windows}


def recorded(transform: Any, image: Image.Image) -> tuple[Image.Image, list[Any]]:
    """Return what one of torchvision's transforms makes, and the operations that it applied."""
    ops: list[Any] = []
    original = autoaugment._apply_op

    def record(img: Any, name: str, magnitude: float, *rest: Any, **more: Any) -> Any:
        ops.append([NAMES.index(name), magnitude])
        return original(img, name, magnitude, *rest, **more)

    autoaugment._apply_op = record
    try:
        return transform(image), ops
    finally:
        autoaugment._apply_op = original


def whole(seed: int) -> dict[str, Any]:
    """Return a photograph, a configuration, and the parameters and result of torchvision."""
    torch.manual_seed(seed)
    photo = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg")[seed % 4]
    with Image.open(GOLDEN / photo) as opened:
        image = opened.convert("RGB")
    config: dict[str, Any] = {}
    packed: list[Any] = []
    if seed % 3:
        config["resize"] = {"size": 180 + seed}
        image = T.Resize(180 + seed)(image)
        packed.append(180 + seed)
    config["random_crop"] = {"size": [150, 160], **BORDERS[seed % len(BORDERS)]}
    config["random_crop"]["padding_mode"] = ("constant", "edge", "reflect", "symmetric")[seed % 4]
    image, corner, _ = crop_at(image, config["random_crop"], None)
    packed.append(corner)
    if seed % 2:
        config["random_resized_crop"] = {"size": 96, "interpolation": "bicubic"}
        box = list(T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]))
        image = F.resized_crop(image, *box, [96, 96], T.InterpolationMode.BICUBIC)
        packed.append(box)
    config["random_horizontal_flip"] = {}
    flip = bool(torch.rand(1) < 0.5)
    image = F.hflip(image) if flip else image
    packed.append(flip)
    policy = list(POLICIES)[seed % 3]
    chosen: dict[str, tuple[dict[str, Any], Any]] = {
        "rand_augment": ({"num_ops": 1}, T.RandAugment(num_ops=1)),
        "auto_augment": ({"policy": policy}, T.AutoAugment(POLICIES[policy])),
        "trivial_augment_wide": ({}, T.TrivialAugmentWide()),
    }
    for place, (name, (settings, transform)) in enumerate(chosen.items()):
        if place != seed % 4:
            config[name] = settings
            image, ops = recorded(transform, image)
            packed.append(ops)
    return {"photo": photo, "config": config, "packed": packed, "hash": digest(image, 64)}


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    content = {
        "policies": {name: T.AutoAugment(policy).policies for name, policy in POLICIES.items()},
        "magnitudes": {str(bins): spaces(bins, (224, 160)) for bins in (2, 7, 10, 31)},
        "ops": list(operations()),
        "crops": list(crops()),
        "whole": [whole(seed) for seed in range(24)],
    }
    lines = [
        f"{json.dumps(name)}: "
        + (
            "[\n" + ",\n".join(json.dumps(row) for row in part) + "\n]"
            if isinstance(part, list)
            else json.dumps(part)
        )
        for name, part in content.items()
    ]
    path = GOLDEN / "auto_trivial_crop.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
