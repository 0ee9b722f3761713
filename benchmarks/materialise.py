"""What encoding the views of a dataset costs: bytes, error, time, and loss of a trained student.

    python benchmarks/materialise.py dr runs/student --samples 256

Batches of a reinforced dataset are read with the exact replay, at the image size of the model. Each
view is encoded and read back as `pocketclip materialise` and the loader do. A row has the bytes per
view, the PSNR against the exact view (mean and lowest), the processor time of encoding and of
reading one, and the distillation loss of the model (in evaluation mode, the same weights) on the
encoded batches as a ratio to that on the exact ones. `other views` is the same ratio for batches of
the same samples with other stored views, which is what chance alone does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketclip import checkpoint
from pocketclip.nn.clip import CLIP
from pocketclip.train.loader import Batch, DataConfig, Loader, normalise
from pocketclip.train.losses import distillation_loss
from pocketclip.train.rendered_views import encode_view, psnr, read_view

BATCH = 64
ENCODINGS: tuple[tuple[str, int | None], ...] = (
    ("jpeg", 75), ("jpeg", 80), ("jpeg", 85), ("jpeg", 90), ("jpeg", 95), ("webp", None),
)  # fmt: skip


def loss_of(model: CLIP, batches: list[Batch], loader: Loader) -> float:
    """Return the mean distillation loss of the batches."""
    losses = []
    scales = [scale or 100.0 for scale in loader.teacher_scales]
    with torch.no_grad():
        for batch in batches:
            image, text, scale = model(
                normalise(batch.images, model.config.preprocess), batch.captions[0]
            )
            assert batch.teacher_image is not None
            assert batch.teacher_captions[0] is not None
            losses.append(
                distillation_loss(
                    image, text, scale, batch.teacher_image, batch.teacher_captions[0],
                    loader.teacher_dims, scales,
                )
            )  # fmt: skip
    return float(torch.stack(losses).mean())


def recoded(
    batches: list[Batch], encoding: str, quality: int | None
) -> tuple[list[Batch], dict[str, Any]]:
    """Return the batches with their images encoded and read back, and what that costs."""
    out, sizes, ratios = [], list[int](), list[float]()
    encoding_s = reading_s = 0.0
    for batch in batches:
        exact: NDArray[np.uint8] = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())
        start = time.process_time()
        files = [encode_view(view, encoding, quality) for view in exact]
        encoded = time.process_time()
        stored = np.stack([read_view(data, exact.shape[1]) for data in files])
        encoding_s, reading_s = (
            encoding_s + encoded - start,
            reading_s + time.process_time() - encoded,
        )
        difference = np.subtract(exact, stored, dtype=np.float32)
        ratios += [psnr(float(mean)) for mean in (difference**2).mean(axis=(1, 2, 3))]
        sizes += map(len, files)
        out.append(dataclasses.replace(batch, images=torch.from_numpy(stored).permute(0, 3, 1, 2)))
    return out, {
        "bytes": round(float(np.mean(sizes))),
        "psnr_mean": round(float(np.mean(ratios)), 1),
        "psnr_lowest": round(min(ratios), 1),
        "encoding_ms": round(encoding_s / len(sizes) * 1e3, 2),
        "reading_ms": round(reading_s / len(sizes) * 1e3, 2),
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a reinforced dataset with images")
    parser.add_argument("model", help="a run or checkpoint of a student")
    parser.add_argument("--samples", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: CLIP = checkpoint.load(options.model).eval()
    count = max(1, options.samples // BATCH)

    def read(augmentation: str, first: int) -> tuple[list[Batch], Loader]:
        config = DataConfig(source=options.data, captions="truth", augmentation=augmentation)  # type: ignore[arg-type]
        with Loader(config, model=model.config, batch_size=BATCH, seed=0) as loader:
            stream = loader.batches(first)
            return [next(stream) for _ in range(count)], loader

    batches, loader = read("random", 0)
    base = loss_of(model, batches, loader)
    others, _ = read("sequential", 0)
    rows = []
    for encoding, quality in ENCODINGS:
        changed, row = recoded(batches, encoding, quality)
        ratio = loss_of(model, changed, loader) / base
        row = {"encoding": encoding, "quality": quality, **row, "loss_ratio": round(ratio, 5)}
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")
    chance = loss_of(model, others, loader) / base
    print(f"exact loss {base:.5f}; other views of the same samples: {chance:.5f} of it")
    print(json.dumps({
        "size": model.config.image_size, "samples": count * BATCH, "exact_loss": round(base, 5),
        "other_views_loss_ratio": round(chance, 5), "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
