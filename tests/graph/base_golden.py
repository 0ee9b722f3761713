"""Compare weight files with golden values in an install without torch.

    python -m tests.graph.base_golden FOLDER

FOLDER was written by `golden_files`. Each file is read, written as a graph by
`pocketclip.graph`, and run by ONNX Runtime: the unfused and the fused graph from the first file of
each naming, the fused one from the others.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import StoredModel, read_stored
from pocketclip.graph.build import write_tower
from pocketclip.infer.backends import onnx_session
from tests.golden_values import COCA, TAGS, Values, fill, relative_error, values

LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""Largest deviation of an embedding, as a share of the largest value."""
PRECISION = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative deviation of a weight, by rounding."""
BIAS = "visual.trunk.head.fc.bias"
KINDS: tuple[Literal["image", "text"], ...] = ("image", "text")


def main(folder: Path) -> None:
    for package in ("torch", "onnx"):
        assert importlib.util.find_spec(package) is None, f"{package} came with the base install"
    facts = json.loads((folder / "files.json").read_text("utf-8"))
    tag = facts["tag"]
    case = values(tag)
    seen: dict[str, StoredModel] = {}
    for entry in facts["files"]:
        start = time.perf_counter()
        name, convention, dtype = entry["file"], entry["naming"], entry["dtype"]
        model = None if tag == COCA else TAGS[tag]
        stored = read_stored(resolve_model(folder / name), model)
        assert not stored.is_fused
        if convention in seen:
            check_weights(stored, seen[convention], PRECISION[dtype])
        errors = [
            f"{kind} {'fused' if fuse else 'unfused'} {error:.1e}"
            for fuse in ([True] if convention in seen else [True, False])
            for kind, error in check_towers(stored, case, tag, convention, fuse=fuse).items()
            if below(error, LIMITS[dtype], f"{name}: {kind}, {fuse=}")
        ]
        seen.setdefault(convention, stored)
        print(
            f"{tag} {name}: {', '.join(errors)} ({time.perf_counter() - start:.1f} s)", flush=True
        )


def below(error: float, limit: float, what: str) -> bool:
    assert error < limit, f"{what} deviates by {error:.2e}, the limit is {limit:.0e}"
    return True


def check_weights(stored: StoredModel, first: StoredModel, precision: float) -> None:
    """Compare with the same weights from another file: equal, or rounded."""
    assert stored.weights.keys() == first.weights.keys()
    for name in stored.weights:
        one, other = stored.weights[name], first.weights[name]
        assert one.dtype == other.dtype, name
        np.testing.assert_allclose(one, other, rtol=precision, atol=1e-7 * bool(precision))


def check_towers(
    stored: StoredModel, case: Values, tag: str, convention: str, *, fuse: bool
) -> dict[str, float]:
    """Return the deviation of each tower's embeddings from the golden ones."""
    inputs: dict[str, np.ndarray[Any, Any]] = {"image": case.pixels, "text": case.ids}
    expected = {"image": case.image, "text": case.text}
    if tag.startswith("openclip.") and convention == "apple" and BIAS in case.shapes:
        # The file in Apple's names lacks the bias that the embeddings are the sum with.
        expected["image"] = case.image - fill(BIAS, case.shapes[BIAS])
    errors = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{kind}.onnx"
            write_tower(stored.weights, stored.config, kind, path, fuse=fuse, normalize=tag == COCA)
            session = onnx_session(str(path), 2)
            name = session.get_inputs()[0].name
            out = session.run(None, {name: inputs[kind]})[0]
        errors[kind] = relative_error(out, expected[kind])
    return errors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
