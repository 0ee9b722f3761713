"""Bundles beside eager torch, plain ONNX Runtime, and what the machine could do; two threads.

    python benchmarks/runtime.py
    python benchmarks/runtime.py --models mobileclip2-s0 runs/small --photos pictures/ --out made/
    python benchmarks/runtime.py --all --parts towers --forms openvino_fp32 --out made/

Four parts, in one run:

- `towers`: milliseconds at batch 1, all forms in turn in each round; ratios are medians over
  rounds. `peer` is the published path, open_clip's model (image tower of timm), fused and eager,
  where it can be imported; `eager` is our fused model in eager torch; `ort` is that model exported
  to ONNX with torch's exporter and run by ONNX Runtime with its default session; the others are
  bundles of `pocketclip export`. The cosine is the smallest, to our model in torch, over the
  package's photographs (captions, for text towers, which run at their full context).
- beside them the limit: operations of the fused tower over the float32 rate of a 1024 x 1024
  matrix product, the better of numpy's and torch's, measured in the same rounds; for bf16 forms
  the rate in bfloat16.
- `throughput`: `Encoder.encode_stream` of a bundle over files of photographs, beside a plain loop
  of decode (Pillow), preprocess and ONNX Runtime over the same files, at batch 1 and at the
  encoder's batch; the ratio is to the better of these two.
- `cold`: `pocketclip classify` from the shell on a bundle, load included, the files having been
  read before; the median of five.

Weights of a name are random. int8 is calibrated with --calibration, or else with crops of the
package's photographs, which are also what its cosine is of. Bundles that are in --out from an
earlier run are used again: remove them after a change of the exporter. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHELL = dict(os.environ)
if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "2"  # for numpy
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch

import runtime_forms as forms
from pocketclip import zoo
from pocketclip.cli._inputs import photographs
from pocketclip.infer.bundle import Bundle
from pocketclip.nn.reparam import fuse
from runtime_parts import THREADS, cold_start, measure_throughput, measure_tower

MODELS = ("mobileclip2-s0", "mobileclip2-s2")
ALL = tuple(name for name in zoo.ZOO if name.startswith("mobileclip"))


def measure_model(name: str, options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Return what was asked for of one model."""
    model = forms.make_model(name)
    title = f"{Path(name).name}-{model.space_id[-8:]}"
    # Bundles that another calibration made are not taken for this one's.
    given = zlib.crc32(repr(options.calibration).encode()) if options.calibration else 0
    calibration = (
        photographs(options.calibration) if options.calibration else forms.crops(forms.CALIBRATION)
    )
    made = {
        form: forms.make_bundle(
            model, form, place / title / (f"{form}-{given:08x}" if given else form), calibration
        )
        for form in options.forms
    }
    bundles = {form: found for form, found in made.items() if isinstance(found, Bundle)}
    row: dict[str, Any] = {
        "model": name,
        "bundles": {form: round(found.bytes / 1e6, 1) for form, found in bundles.items()},
        "kept_in_higher_precision": {
            form: {tower: about["kept"] for tower, about in found.towers.items()}
            for form, found in bundles.items()
            if form.endswith("int8")
        },
        "not_measured": {form: why for form, why in made.items() if isinstance(why, str)},
    }
    plain = place / title / "plain"
    if "towers" in options.parts:
        row["towers"] = [
            measure_tower(name, model, tower, bundles, plain, options.rounds)
            for tower in options.towers
        ]
    if "throughput" in options.parts:
        photos = photographs(options.photos)
        paths = (photos * (options.images // len(photos) + 1))[: options.images]
        pixels = forms.check_inputs(model.config)["image"]
        run = forms.plain_run(fuse(model).image, pixels, plain / "image.onnx", THREADS)
        row["throughput"] = {
            form: measure_throughput(found, run, paths, max(3, options.rounds // 3))
            for form, found in bundles.items()
        }
    if "cold" in options.parts:
        row["cold_start_s"] = {form: cold_start(found, SHELL) for form, found in bundles.items()}
    return row


def show(row: dict[str, Any]) -> None:
    """Print a model's figures for people."""
    for tower in row.get("towers", ()):
        print(
            f"{row['model']} {tower['tower']}: {tower['gflop']} GFLOP at {tower['gflop_per_s']} "
            f"GFLOP/s, limit {tower['limit_ms']['ort']:.1f} ms; published path: "
            f"{tower['published_path']}"
        )
        for form, ms in tower["ms"].items():
            print(
                f"  {form:14} {ms:8.1f} ms  {tower['times_faster_than_ort'][form]:5.2f} x ort  "
                f"{tower['times_faster_than_published'][form]:5.2f} x published  "
                f"{tower['over_limit'][form]:5.2f} x the limit  "
                f"cosine {tower['cosine'].get(form, '-')}"
            )
    for form, found in row.get("throughput", {}).items():
        rates = ", ".join(f"{name} {value}/s" for name, value in found["images_per_s"].items())
        print(f"{row['model']} {form} over files: {rates}: {found['over_plain_loop']} x plain")
    for form, value in row.get("cold_start_s", {}).items():
        print(f"{row['model']} {form}: classify from the shell in {value} s")
    for form, why in row["not_measured"].items():
        print(f"{row['model']} {form}: not measured: {why}")


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the first model that the aims speak of, by short names."""
    found: dict[str, Any] = {}
    for tower in row.get("towers", ()):
        if tower["tower"] == "image":
            for form in row["bundles"]:
                found[f"{form}_over_ort"] = tower["times_faster_than_ort"][form]
                found[f"{form}_over_published"] = tower["times_faster_than_published"][form]
                found[f"{form}_over_limit"] = tower["over_limit"][form]
    made = list(row["bundles"])
    default = "openvino_bf16" if "openvino_bf16" in made else next(iter(made), None)
    if default and "throughput" in row:
        found["throughput_over_plain_loop"] = row["throughput"][default]["over_plain_loop"]
    if default and "cold_start_s" in row:
        found["cold_start_s"] = row["cold_start_s"][default]
    return {"model": row["model"], "default_form": default, **found}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names or checkpoints")
    parser.add_argument("--all", action="store_true", help=f"all {len(ALL)}, both towers")
    parser.add_argument("--forms", nargs="+", choices=forms.FORMS, default=list(forms.FORMS))
    parser.add_argument("--towers", nargs="+", choices=("image", "text"), default=["image"])
    parts = ("towers", "throughput", "cold")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--photos", nargs="+", default=[str(forms.PHOTOS)])
    parser.add_argument("--images", type=int, default=64, help="files of a pass, over and over")
    parser.add_argument("--calibration", nargs="+", help="photographs for int8")
    parser.add_argument("--out", type=Path, help="where bundles are kept for the next run")
    options = parser.parse_args(arguments)
    if options.all:
        options.models, options.towers = list(ALL), ["image", "text"]
    return options


def main() -> None:
    """Measure what the command line asks for."""
    options = parse()
    torch.set_num_threads(THREADS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            rows.append(measure_model(name, options, options.out or Path(folder)))
            show(rows[-1])
            gc.collect()
    import onnxruntime

    print(
        json.dumps(
            {
                "benchmark": "runtime",
                "threads": THREADS,
                "bf16": forms.has_bf16(),
                "calibration": "given" if options.calibration else "crops of the photographs",
                "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
                **summary(rows[0]),
                "models": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
