"""Execute this bundle's towers with Core ML and compare them with the model they were made from.

On a Mac, in the bundle's folder:

    pip install coremltools numpy pillow
    python check_on_mac.py

It needs nothing else: not pocketclip, not torch. The last line is JSON; exit code 1 means that a
tower computes something else. Photographs, ids and the model's embeddings are in
`check_on_mac.npz`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent


def rows(kind: str, check: Any) -> list[Any]:
    """Return what the tower `kind` takes, one photograph or caption at a time."""
    if kind == "text":
        return [row[None] for row in check["ids"]]
    from PIL import Image

    return [Image.fromarray(image) for image in check["images"]]


def compare(found: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """Return how far embeddings (N, D) are from those wanted, both scaled to unit length."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, wanted))
    return {
        "max_abs_error": float(np.abs(a - b).max()),
        "min_cosine": float((a.astype(np.float64) * b).sum(1).min()),
    }


def run(kind: str, facts: dict[str, Any], check: Any, coremltools: Any) -> dict[str, Any]:
    """Execute one tower on everything there is; return the figures."""
    model = coremltools.models.MLModel(str(HERE / facts["file"]))
    given, out = facts["input"]["name"], facts["output"]["name"]
    found, times = [], []
    for row in rows(kind, check):
        begun = time.perf_counter()
        found.append(model.predict({given: row})[out])
        times.append(time.perf_counter() - begun)
    figures: dict[str, Any] = compare(np.concatenate(found), check[f"{kind}_embeddings"])
    figures["ms"] = round(1e3 * statistics.median(times), 3)
    # Written so that NaN fails.
    figures["passed"] = bool(
        figures["min_cosine"] >= float(check["min_cosine"])
        and figures["max_abs_error"] <= float(check["max_abs_error"])
    )
    return figures


def main() -> int:
    """Execute both towers; return 0 if both compute what the model does."""
    if sys.platform != "darwin":
        print("Core ML executes on a Mac only: copy this folder to one", file=sys.stderr)
        return 2
    try:
        import coremltools
    except ImportError:
        print("coremltools is missing: pip install coremltools", file=sys.stderr)
        return 2
    bundle = json.loads((HERE / "bundle.json").read_text("utf-8"))
    with np.load(HERE / "check_on_mac.npz", allow_pickle=False) as check:
        figures = {kind: run(kind, bundle[kind], check, coremltools) for kind in ("image", "text")}
    for kind, figure in figures.items():
        verdict = "as the model" if figure["passed"] else "SOMETHING ELSE than the model"
        print(f"{kind} tower computes {verdict}: {figure}")
    print(json.dumps({"executed": True, "target": "coreml", **figures}))
    return 0 if all(figure["passed"] for figure in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
