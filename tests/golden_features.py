"""Feature maps and tokens of the reference implementations, see golden/features/README.md."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden_values import FOLDER


@functools.cache
def _golden() -> dict[str, list[tuple[dict[str, Any], np.ndarray[Any, Any]]]]:
    folder = FOLDER.parent / "features"
    maps = json.loads((folder / "maps.json").read_text("utf-8"))
    values = iter(np.load(folder / "maps.npz")["values"])
    return {tag: [(about, next(values)) for about in found] for tag, found in maps.items()}


def image(height: int, width: int, batch: int = 1) -> torch.Tensor:
    random = np.random.RandomState(1000 * height + width)
    return torch.from_numpy(random.random_sample((batch, 3, height, width)).astype(np.float32))


def check_maps(tag: str, tower: Any) -> None:
    """Fail unless an image tower gives a golden tag's maps; nothing is checked without any."""
    found: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for about, values in _golden().get(tag, []):
        height, width = about["size"]
        if height == width == 256:
            continue  # the embeddings of that size have golden values of their own
        if (height, width) not in found:
            pixels = image(height, width)
            maps = zip(tower.feature_maps(), tower.features(pixels), strict=True)
            found[height, width] = {m.name: x for m, x in maps}
            found[height, width]["tokens"] = tower.tokens(pixels)
        out = found[height, width][about["name"]].numpy()
        assert list(out.shape) == about["shape"]
        at = np.random.RandomState(0).randint(0, out.size, len(values))
        assert np.abs(out.reshape(-1)[at] - values).max() / about["max"] < 1e-4
        assert np.abs(out).max() == pytest.approx(about["max"], rel=1e-4)
