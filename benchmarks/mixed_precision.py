"""Measure whether int8 and fp32 bundles of one model may share a library.

    python benchmarks/mixed_precision.py FP32 INT8 --data ../shared/data

The 2,485 test photographs of the grocery set are embedded by both bundles. A library of fp32
vectors, searched with fp32 texts, is the reference. It is compared with libraries of int8 vectors,
and of which every second vector is int8, for fp32 and int8 texts: how many of the first ten
photographs are the same, how the order of all photographs agrees (Spearman), and that of the
reference's first 100 (Kendall), means over the 81 products' names. `precision` is the share of
right photographs among the first ten. `int8_among_10` is 0.5 if neither kind is preferred. The last
line is JSON.

Shapes: N photographs, Q queries, D embedding.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.infer.encoder import load

FIRST, ORDERED = 10, 100


def ranks(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place (Q, N) of each photograph, 0 for the best."""
    order = np.argsort(-scores, axis=1, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(scores.shape[1])[None].repeat(len(scores), 0), 1)
    return out


def kendall(places: NDArray[np.int64]) -> float:
    """Return Kendall's tau of places that should ascend."""
    pairs = np.sign(places[None, :] - places[:, None])[np.triu_indices(len(places), 1)]
    return float(pairs.mean())


def agreement(
    scores: NDArray[Any], reference: NDArray[Any], right: NDArray[np.bool_],
    is_int8: NDArray[np.bool_],
) -> dict[str, float]:  # fmt: skip
    """Return the figures of scores (Q, N) against the reference's."""
    first, other = (np.argsort(-x, axis=1, kind="stable") for x in (scores, reference))
    places, expected = ranks(scores), ranks(reference)
    centre = (scores.shape[1] - 1) / 2
    spearman = ((places - centre) * (expected - centre)).sum(1) / ((expected - centre) ** 2).sum(1)
    rows = range(len(scores))
    same = [len(np.intersect1d(first[q, :FIRST], other[q, :FIRST])) for q in rows]
    taus = [kendall(places[q][other[q, :ORDERED]]) for q in rows]
    hits = np.take_along_axis(right, first[:, :FIRST], axis=1)
    return {
        "same_of_10": round(float(np.mean(same)), 2),
        "same_of_10_worst": int(np.min(same)),
        "same_first": round(float((first[:, 0] == other[:, 0]).mean()), 3),
        "spearman": round(float(spearman.mean()), 4),
        "spearman_worst": round(float(spearman.min()), 4),
        "kendall_100": round(float(np.mean(taus)), 3),
        "precision": round(float(hits.mean()), 3),
        "int8_among_10": round(float(is_int8[first[:, :FIRST]].mean()), 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args(arguments)
    folder = options.data / "grocery"
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    names = sorted({row["caption"] for row in rows})
    right = np.array([[row["caption"] == name for row in rows] for name in names])
    encoders = [load(path) for path in (options.fp32, options.int8)]
    if encoders[0].space_id != encoders[1].space_id:
        parser.error(f"the bundles differ: {encoders[0].space_id}, {encoders[1].space_id}")
    images = [e.encode_image([folder / row["filepath"] for row in rows]) for e in encoders]
    # fp16, as a library keeps them
    images = [x.astype(np.float16).astype(np.float32) for x in images]
    texts = [e.encode_text([f"a photo of {name}." for name in names]) for e in encoders]
    every = np.arange(len(rows)) % 2 == 1
    libraries = {
        "fp32": (images[0], np.zeros(len(rows), bool)),
        "int8": (images[1], np.ones(len(rows), bool)),
        "half and half": (np.where(every[:, None], images[1], images[0]), every),
    }
    reference = texts[0] @ images[0].T
    result: dict[str, Any] = {
        "photographs": len(rows), "queries": len(names),
        "image_cosine": [
            round(float(f((images[0] * images[1]).sum(1))), 4) for f in (np.mean, np.min)
        ],
    }  # fmt: skip
    print(f"similarity of a photograph's two vectors, mean and lowest: {result['image_cosine']}")
    for library, (vectors, kind) in libraries.items():
        for precision, query in zip(("fp32", "int8"), texts, strict=True):
            figures = agreement(query @ vectors.T, reference, right, kind)
            result[f"{library} library, {precision} texts"] = figures
            print(f"{library} library, {precision} texts: {figures}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
