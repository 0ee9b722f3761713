"""Measure training, feeding and inference on a GPU, in one command and a fixed time.

    python benchmarks/gpu.py --minutes 6
    python benchmarks/gpu.py --minutes 6 --continue          # the rows that it did not reach
    python benchmarks/gpu.py --rows 'train/*' 'inference/b/*'
    python benchmarks/gpu.py --quick --device cpu            # every path, in small, in a minute

It makes its own data: random weights, and shards of the package's four photographs. Rows are
measured by value, training first. The JSON (`--out`) is written after each row, and is printed as
the last line. A row that fails has its error in one line, and the others go on. Rows that the time
did not suffice for are listed as unreached. A row says, for each variant: samples per second, the
median, lowest and highest time of a call, the share of the device's measured peak (operations by
`pocketclip.checkpoint.operations`; of training three times the forward pass's), peak memory, and
the lowest cosine of its outputs to those of the same weights in float32.

open_clip is S0's and B's peer in training, timm that of the image towers, if they can be imported:
with the same dtype, memory format, compile mode and batch. open_clip has no MobileCLIP-S0, so `s0`
is MobileCLIP2-S0, whose image tower is the same. Both sides compile with `torch.compile` in its
default mode; where the compiler cannot run (no triton, no C compiler), those rows say so.

A machine that reaches no package index needs torch, numpy and Pillow, this repository, and wheels:

    python scripts/gather_wheels.py wheels --python 3.12
    python benchmarks/gpu.py --minutes 6 --wheels wheels

`WHEELS` names them. They are unpacked into a temporary folder behind everything that the machine
has, so packages of its own come first.
"""

from __future__ import annotations

import argparse
import atexit
import fnmatch
import gc
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # nothing that the wheels bring is imported before they are unpacked
    from gpu_bench import Bench
    from gpu_rows import Row

BEGUN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
ENDING = 5.0  # seconds kept for the end
AIMS = {"training": 1.3, "inference": 1.5, "waiting": 0.05}


def add_wheels(folder: Path) -> None:
    """Make the packages of a folder of wheels importable, behind those of the machine."""
    wheels = sorted(folder.glob("*.whl"))
    target = folder
    if wheels:
        target = Path(tempfile.mkdtemp(prefix="pocketclip-wheels-"))
        atexit.register(shutil.rmtree, target, ignore_errors=True)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
    sys.path.append(str(target))


class Report:
    """The JSON, written whole after each row."""

    def __init__(self, out: Path, facts: dict[str, Any], names: list[str]) -> None:
        self.out = out
        self.content: dict[str, Any] = {
            "benchmark": "gpu", **facts, "rows": {}, "unreached": dict.fromkeys(names, ""),
        }  # fmt: skip

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Add a row that was measured, skipped or failed."""
        self.content["rows"][name] = row
        self.content["unreached"].pop(name, None)
        self.write()

    def write(self) -> None:
        """Write the file."""
        temporary = self.out.with_name(self.out.name + ".part")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        temporary.replace(self.out)

    def end_process(self) -> None:
        """Print what there is and end the process: a row hangs in what cannot be interrupted."""
        self.content["stopped"] = "the last row could not be interrupted at the end of the time"
        self.write()
        print(json.dumps(self.content), flush=True)
        os._exit(3)


def run_rows(rows: Sequence[Row], bench: Bench, report: Report) -> None:
    """Measure the rows that fit into the time, the first ones first."""
    waiting = list(rows)
    put_off: set[str] = set()
    while waiting:
        row = waiting.pop(0)
        rest = sum(later.seconds for later in waiting if not later.may_wait)
        if row.may_wait and row.name not in put_off and bench.clock.left < row.seconds + rest:
            put_off.add(row.name)
            waiting.append(row)
            continue
        if bench.clock.left < row.seconds:
            report.content["unreached"][row.name] = (
                f"takes about {row.seconds:.0f} s, {bench.clock.left:.0f} s were left"
            )
            continue
        begun = time.monotonic()
        result = run_row(row, bench)
        result["seconds"] = round(time.monotonic() - begun, 1)
        report.add(row.name, result)
        print(f"{row.name}: {summary(result)}", flush=True)
    report.write()


def run_row(row: Row, bench: Bench) -> dict[str, Any]:
    """Return what a row measured, or in one line why it did not."""
    import torch

    from gpu_bench import OutOfTimeError
    from pocketclip.errors import first_line

    try:
        with bench.clock.limit(bench.clock.left), bench.compiler():
            return row.measure(bench)
    except OutOfTimeError:
        return {"failed": "stopped at the end of the time"}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        gc.collect()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        if bench.on_cuda:
            torch.cuda.empty_cache()


def summary(result: dict[str, Any]) -> str:
    """Return the main figures of a row in one line."""
    for key in ("failed", "skipped"):
        if key in result:
            return f"{key}: {result[key]}"
    parts = []
    for each in result.get("batches", [result]):
        for name, figures in each.get("variants", {}).items():
            label = f"{name} x{each['batch']}" if "batches" in result else name
            parts.append(f"{label} {figures['samples_per_s']:,.0f}/s")
        parts += [f"{name} {ratio:.2f}" for name, ratio in each.get("ratios", {}).items()]
        parts += [f"no {name}: {why}" for name, why in each.get("left_out", {}).items()]
    simple = (str, int, float, bool)
    return ", ".join(parts) or ", ".join(f"{k} {v}" for k, v in result.items() if type(v) in simple)


def judge(rows: dict[str, Any]) -> dict[str, str]:
    """Return of each aim whether it was reached, with the figures."""
    # The step that computes as many tokens as open_clip's.
    equal = "plain, all tokens over open_clip"
    training = {
        name: row["ratios"][equal]
        for name, row in rows.items()
        if name.startswith("train/") and equal in row.get("ratios", {})
    }
    compiled = {name: ratio for name, ratio in training.items() if name.endswith("/compiled")}
    waiting = {
        name: row["share_of_waiting"] for name, row in rows.items() if "share_of_waiting" in row
    }
    inference = over_timm(rows)
    return {
        "training at least 1.3 times open_clip's compiled step": verdict(
            compiled, lambda ratio: ratio >= AIMS["training"]
        ),
        "inference at least 1.5 times timm's eager fused tower": verdict(
            inference, lambda ratio: ratio >= AIMS["inference"]
        ),
        "less than 5 % of the time waiting for data": verdict(
            waiting, lambda share: share < AIMS["waiting"], every=False
        ),
    }


def over_timm(rows: dict[str, Any]) -> dict[str, float]:
    """Return the speed of our fastest image tower over timm's eager one, by model and batch."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for name, row in rows.items():
        _, _, rest = name.partition("inference/")
        short, _, mode = rest.partition("/")
        for each in row.get("batches", []) if rest else []:
            key = f"{short} at {each['batch']}"
            for variant, figures in each["variants"].items():
                if variant == "image":
                    ours[key] = max(ours.get(key, 0.0), figures["samples_per_s"])
                elif variant == "timm" and mode == "eager":
                    theirs[key] = figures["samples_per_s"]
    return {key: round(ours[key] / rate, 2) for key, rate in theirs.items() if key in ours}


def verdict(figures: dict[str, float], good: Any, *, every: bool = True) -> str:
    """Return whether an aim was reached by all figures, or by any."""
    if not figures:
        return "not measured"
    reached = (all if every else any)(good(value) for value in figures.values())
    said = ", ".join(f"{name}: {value}" for name, value in figures.items())
    return f"{'reached' if reached else 'missed'} ({said})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="until it ends, whatever is left"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="every path, with tiny models")
    parser.add_argument("--rows", nargs="+", default=["*"], help="patterns of names; default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument(
        "--continue", dest="goes_on", action="store_true",
        help="keep the rows that --out holds, and measure the others",
    )  # fmt: skip
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, or of unpacked ones")
    parser.add_argument("--batch", type=int, help="samples of a training step")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes: a number above 0, not {options.minutes:g}")
    if options.batch is not None and options.batch < 1:
        parser.error(f"--batch: a number of samples, not {options.batch}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the aims and the JSON."""
    options = parse(arguments)
    sys.path.insert(0, str(ROOT / "src"))
    if options.wheels is not None:
        add_wheels(options.wheels)
    import torch

    import gpu_rows
    from gpu_bench import Bench, Clock, folder_of_run
    from pocketclip import devices

    device = devices.resolve_device(options.device)
    dtype = torch.bfloat16 if options.quick else devices.resolve_dtype("auto", device)
    # Set, so that the peers have the same: exact float32, and kernels chosen by trying them.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = device.type == "cuda"
    # Batches have one shape per variant: a second variant must not make graphs of any shape.
    torch._dynamo.config.automatic_dynamic_shapes = False
    with folder_of_run() as folder:
        bench = Bench(
            device=device, dtype=dtype, quick=options.quick, folder=folder,
            clock=Clock(60 * options.minutes - ENDING, BEGUN),
            batch=options.batch or default_batch(device, options.quick),
            workers=1 if options.quick else devices.cores(),
        )  # fmt: skip
        rows = [
            row
            for row in gpu_rows.rows(bench)
            if any(fnmatch.fnmatch(row.name, pattern) for pattern in options.rows)
        ]
        if not rows:  # before the file of another run is written over
            names = ", ".join(row.name for row in gpu_rows.rows(bench))
            sys.exit(f"error: --rows {' '.join(options.rows)} matches no row; there are {names}")
        with bench.compiler():
            facts = bench.facts()
        report = Report(options.out, facts, [row.name for row in rows])
        if options.goes_on and options.out.exists():
            report.content["rows"] = measured(options.out)
            rows = [row for row in rows if row.name not in report.content["rows"]]
            report.content["unreached"] = dict.fromkeys((row.name for row in rows), "")
        report.write()
        last = threading.Timer(max(bench.clock.left + ENDING, 0), report.end_process)
        last.daemon = True
        last.start()
        run_rows(rows, bench, report)
        last.cancel()
    report.content["minutes"] = round((time.monotonic() - BEGUN) / 60, 2)
    if device.type == "cuda":
        report.content["aims"] = judge(report.content["rows"])
        for aim, said in report.content["aims"].items():
            print(f"{aim}: {said}")
    report.write()
    print(json.dumps(report.content))


def measured(out: Path) -> dict[str, Any]:
    """Return the rows of an earlier run that need not be measured again."""
    rows = json.loads(out.read_text("utf-8"))["rows"]
    return {name: row for name, row in rows.items() if "failed" not in row}


def default_batch(device: Any, quick: bool) -> int:
    """Return the samples of a training step that surely fit into the device's memory."""
    import torch

    if quick:
        return 4
    if device.type != "cuda":
        return 16
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
    return 256 if gigabytes > 60 else 128 if gigabytes > 30 else 64


if __name__ == "__main__":
    main()
