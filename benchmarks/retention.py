"""Compare what a retention score says is kept with what is kept, along lines of fine-tuned models.

    python benchmarks/retention.py --start START --end END --images TRAIN --kept TEST

START is a model before fine-tuning, each END (there may be several) one after it, of the same
configuration, unfused. TEST is a labelled set that the start knows and the fine-tuning did not see,
TRAIN the labelled images that it saw. For points between start and end it prints the top-1 on TEST
relative to the start's, and what scores say that need no images of the user's: the package's own
(`pocketclip.finetune.retention`), the same on other pictures, and other measures of agreement.
Besides, the accuracy with the statistics of BatchNorm as `pocketclip.finetune.interpolate` sets
them, estimated only, and interpolated. The last line is JSON.

Shapes: N pictures, M captions, D embedding.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketclip import checkpoint
from pocketclip.evaluate import DataOptions, top1
from pocketclip.evaluate.datasets.labelled_images import read_labelled
from pocketclip.finetune.generic import held_out_captions, training_captions
from pocketclip.finetune.interpolate import Way, estimate_statistics
from pocketclip.finetune.retention import agreement, pictures
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.build import build
from pocketclip.nn.clip import CLIP
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import draw_scene

Affinities = NDArray[np.float64]
POINTS, STATISTICS_POINTS, MOST = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0), (0.3, 0.6), 512


def scenes() -> list[NDArray[np.uint8]]:
    """Return drawn scenes, as many as the package has textures."""
    return [
        render(draw_scene("test", seed=0, index=i), side=96, rng=ReplayRNG(0, 99, i))
        for i in range(len(pictures()))
    ]


def by_rank(start: Affinities, other: Affinities) -> float:
    """Return Spearman's correlation of each picture's affinities, the mean."""
    ranks = [np.argsort(np.argsort(rows, axis=1), axis=1) for rows in (start, other)]
    first, second = (rows - rows.mean(1, keepdims=True) for rows in ranks)
    return float(((first * second).sum(1) / (first**2).sum(1)).mean())


def by_best(start: Affinities, other: Affinities) -> float:
    """Return for how many pictures both have the same best caption."""
    return float((start.argmax(1) == other.argmax(1)).mean())


MEASURES: dict[str, Callable[[Affinities, Affinities], float]] = {
    "doubly centred correlation": agreement,
    "rank correlation": by_rank,
    "same best caption": by_best,
}


def affinities(model: CLIP, images: list[NDArray[np.uint8]]) -> Affinities:
    """Return the affinities (N, M) of pictures with the held-out captions."""
    encoder = Encoder(model.eval())
    embedded = encoder.encode_image(images).astype(np.float64)
    return embedded @ encoder.encode_text(list(held_out_captions())).T


def total_variation(start: Affinities, other: Affinities, scales: tuple[float, float]) -> float:
    """Return 1 - the mean total variation distance of the captions' probabilities."""
    rows = []
    for values, scale in zip((start, other), scales, strict=True):
        powers = np.exp(scale * (values - values.max(1, keepdims=True)))
        rows.append(powers / powers.sum(1, keepdims=True))
    return 1 - float(np.abs(rows[0] - rows[1]).sum(1).mean()) / 2


def scores(start: CLIP, model: CLIP) -> dict[str, float]:
    """Return every measure on every kind of picture."""
    out = {}
    scale = (float(start.logit_scale.exp().item()), float(model.logit_scale.exp().item()))
    for kind, images in (("textures", list(pictures())), ("scenes", scenes())):
        first, second = affinities(start, images), affinities(model, images)
        for name, measure in MEASURES.items():
            out[f"{kind}, {name}"] = measure(first, second)
        out[f"{kind}, total variation"] = total_variation(first, second, scale)
    return out


def without_correction(way: Way, a: float, images: Any, *, estimated: bool) -> CLIP:
    """Return the model at `a` with statistics that are estimated only, or interpolated."""
    model = copy.deepcopy(way.start).eval()
    first, last = way.start.state_dict(), way.end.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not torch.equal(first[name], last[name]):
                value.copy_((1 - a) * first[name] + a * last[name])
    if estimated:
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        estimate_statistics(norms, model, images, training_captions())
    return model


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", required=True)
    parser.add_argument("--end", action="append", required=True)
    parser.add_argument("--images", required=True, help="what END was trained on, labelled")
    parser.add_argument("--new", help="a labelled test set of the same labels")
    parser.add_argument("--kept", required=True, help="a labelled set that the start knows")
    parser.add_argument("--label-column")
    args = parser.parse_args()
    start = checkpoint.load(args.start, fuse=False).eval()
    old = top1(args.kept, label_column=args.label_column)
    new = top1(args.new or args.images, label_column=args.label_column)
    sources = read_labelled(args.images, DataOptions(label_column=args.label_column, split="train"))
    chosen = sources.images[:: max(1, len(sources) // MOST)][:MOST]
    transform = Encoder(start).preprocess
    pixels = torch.from_numpy(np.stack([transform(image) for image in chosen]))

    def images() -> Iterator[torch.Tensor]:
        yield from (pixels[i : i + 64] for i in range(0, len(pixels), 64))

    before = old(Encoder(start))
    random = scores(start, build(start.config).eval())
    rows, statistics = [], []
    for path in args.end:
        way = Way(start, checkpoint.load(path, fuse=False).eval(), images)
        for a in POINTS:
            model = way.at(a)
            kept = old(Encoder(model)) / before
            rows.append({"end": path, "a": a, "kept": kept, "scores": scores(start, model)})
            print(path, a, f"kept {kept:.3f}", flush=True)
        for a in STATISTICS_POINTS:
            for name, model in (
                ("corrected", way.at(a)),
                ("estimated", without_correction(way, a, images, estimated=True)),
                ("interpolated", without_correction(way, a, images, estimated=False)),
            ):
                both = old(Encoder(model)) / before, new(Encoder(model))
                statistics.append({"end": path, "a": a, "statistics": name, "kept": both[0],
                                   "new": both[1]})  # fmt: skip
                print(path, a, name, f"kept {both[0]:.3f}, new {both[1]:.1f} %", flush=True)
    truth = np.array([row["kept"] for row in rows])
    summary = {}
    for name in random:
        said = np.array([row["scores"][name] for row in rows])
        summary[name] = {
            "mean_error": float(np.abs(said - truth).mean()),
            "correlation": float(np.corrcoef(said, truth)[0, 1]),
            "random_weights": random[name],
        }
        print(name, *(f"{key} {value:.3f}" for key, value in summary[name].items()))
    print(json.dumps({"start": before, "scores": summary, "points": rows,
                      "statistics": statistics}))  # fmt: skip


if __name__ == "__main__":
    main()
