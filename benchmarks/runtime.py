"""Compare bundles with eager torch, plain ONNX Runtime and the machine's limit, on two threads.

    python benchmarks/runtime.py
    python benchmarks/runtime.py --models mobileclip2-s0 runs/small --photos pictures/ --out made/
    python benchmarks/runtime.py --all --parts towers --variants openvino_fp32 --out made/

Four parts, in one run:

- `towers`: milliseconds at batch 1; in each round all variants run in turn, and ratios are medians
  over rounds. `peer` is the published path: open_clip's model (image tower from timm), fused, in
  eager torch, where it can be imported. `eager` is our fused model in eager torch. `ort` is that
  model exported to ONNX with torch's exporter and run by ONNX Runtime with its default session. The
  others are bundles of `pocketclip export`. The cosine is the smallest, to our model in torch, over
  the package's photographs (for text towers its captions, at full context).
- the limit of each tower: operations of the fused tower over the float32 rate of a 1024 x 1024
  matrix product, the better of numpy's and torch's, measured in the same rounds; for bf16 variants
  the rate in bfloat16.
- `throughput`: `Encoder.encode_stream` of a bundle over photograph files, against a plain loop of
  decoding (Pillow), preprocessing and ONNX Runtime over the same files, at batch 1 and at the
  encoder's batch; the ratio is to the faster of these two.
- `cold`: `pocketclip classify` from the shell on a bundle, loading included, with the files in the
  page cache; the median of five.

Torch's exporter needs `pip install onnxscript`.

A model name gets random weights. int8 is calibrated with --calibration, by default with crops of
the package's photographs, on which its cosine is measured too. Bundles in --out from an earlier run
are reused: remove them after a change of the exporter. The last line is JSON.
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

import runtime_variants as variants
from pocketclip import zoo
from pocketclip.cli._inputs import photographs
from pocketclip.infer.bundle import Bundle
from pocketclip.nn.reparam import fuse
from processor import describe_processor
from runtime_parts import THREADS, cold_start, measure_throughput, measure_tower

MODELS = ("mobileclip2-s0", "mobileclip2-s2")
ALL = tuple(name for name in zoo.ZOO if name.startswith("mobileclip"))


def measure_model(name: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return the requested figures of one model."""
    model = variants.make_model(name)
    title = f"{Path(name).name}-{model.space_id[-8:]}"
    # A bundle of another calibration must not be reused.
    digest = zlib.crc32(repr(options.calibration).encode()) if options.calibration else 0
    calibration = (
        photographs(options.calibration)
        if options.calibration
        else variants.crops(variants.CALIBRATION)
    )
    results = {
        variant: variants.make_bundle(
            model,
            variant,
            out / title / (f"{variant}-{digest:08x}" if digest else variant),
            calibration,
        )
        for variant in options.variants
    }
    bundles = {variant: made for variant, made in results.items() if isinstance(made, Bundle)}
    row: dict[str, Any] = {
        "model": name,
        "bundles": {variant: round(bundle.bytes / 1e6, 1) for variant, bundle in bundles.items()},
        "kept_in_higher_precision": {
            variant: {tower: entry["kept"] for tower, entry in bundle.towers.items()}
            for variant, bundle in bundles.items()
            if variant.endswith("int8")
        },
        "not_measured": {variant: why for variant, why in results.items() if isinstance(why, str)},
    }
    plain = out / title / "plain"
    if "towers" in options.parts:
        row["towers"] = [
            measure_tower(name, model, tower, bundles, plain, options.rounds)
            for tower in options.towers
        ]
    if "throughput" in options.parts:
        photos = photographs(options.photos)
        paths = (photos * (options.images // len(photos) + 1))[: options.images]
        pixels = variants.check_inputs(model.config)["image"]
        run = variants.plain_run(fuse(model).image, pixels, plain / "image.onnx", THREADS)
        row["throughput"] = {
            variant: measure_throughput(bundle, run, paths, max(3, options.rounds // 3))
            for variant, bundle in bundles.items()
        }
    if "cold" in options.parts:
        row["cold_start_s"] = {
            variant: cold_start(bundle, SHELL) for variant, bundle in bundles.items()
        }
    return row


def show(row: dict[str, Any]) -> None:
    """Print a model's figures for people."""
    for tower in row.get("towers", ()):
        print(
            f"{row['model']} {tower['tower']}: {tower['gflop']} GFLOP at {tower['gflop_per_s']} "
            f"GFLOP/s, limit {tower['limit_ms']['ort']:.1f} ms; published path: "
            f"{tower['published_path']}"
        )
        for variant, ms in tower["ms"].items():
            print(
                f"  {variant:14} {ms:8.1f} ms  "
                f"{tower['times_faster_than_ort'][variant]:5.2f} x ort  "
                f"{tower['times_faster_than_published'][variant]:5.2f} x published  "
                f"{tower['over_limit'][variant]:5.2f} x the limit  "
                f"cosine {tower['cosine'].get(variant, '-')}"
            )
    for variant, figures in row.get("throughput", {}).items():
        rates = ", ".join(f"{name} {value}/s" for name, value in figures["images_per_s"].items())
        ratio = figures["over_plain_loop"]
        print(f"{row['model']} {variant} over files: {rates}: {ratio} x the plain loop")
    for variant, value in row.get("cold_start_s", {}).items():
        print(f"{row['model']} {variant}: classify from the shell in {value} s")
    for variant, why in row["not_measured"].items():
        print(f"{row['model']} {variant}: not measured: {why}")


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Return the main figures of a model, by short names."""
    figures: dict[str, Any] = {}
    for tower in row.get("towers", ()):
        if tower["tower"] == "image":
            for variant in row["bundles"]:
                figures[f"{variant}_over_ort"] = tower["times_faster_than_ort"][variant]
                figures[f"{variant}_over_published"] = tower["times_faster_than_published"][variant]
                figures[f"{variant}_over_limit"] = tower["over_limit"][variant]
    names = list(row["bundles"])
    default = "openvino_bf16" if "openvino_bf16" in names else next(iter(names), None)
    if default and "throughput" in row:
        figures["throughput_over_plain_loop"] = row["throughput"][default]["over_plain_loop"]
    if default and "cold_start_s" in row:
        figures["cold_start_s"] = row["cold_start_s"][default]
    return {"model": row["model"], "default_form": default, **figures}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names or checkpoints")
    parser.add_argument(
        "--all", action="store_true", help=f"all {len(ALL)} published models, both towers"
    )
    parser.add_argument(
        "--variants",
        "--forms",
        nargs="+",
        choices=variants.VARIANTS,
        default=list(variants.VARIANTS),
        help="what to measure besides eager torch",
    )
    parser.add_argument("--towers", nargs="+", choices=("image", "text"), default=["image"])
    parts = ("towers", "throughput", "cold")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--photos", nargs="+", default=[str(variants.PHOTOS)])
    parser.add_argument(
        "--images", type=int, default=64, help="number of files per pass; the photographs repeat"
    )
    parser.add_argument("--calibration", nargs="+", help="photographs to calibrate int8 with")
    parser.add_argument("--out", type=Path, help="folder to keep bundles in for the next run")
    options = parser.parse_args(arguments)
    if options.all:
        options.models, options.towers = list(ALL), ["image", "text"]
    return options


def main() -> None:
    """Measure the requested models."""
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
                "processor": describe_processor(),
                "bf16": variants.has_bf16(),
                "calibration": "given" if options.calibration else "crops of the photographs",
                "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
                **summary(rows[0]),
                "models": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
