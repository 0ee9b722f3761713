"""Compare two ways from a model to ONNX: torch's exporter, and `pocketclip.graph`.

    python benchmarks/graph.py
    python benchmarks/graph.py --all --rounds 15
    python benchmarks/graph.py --models mobileclip2-s0 --threads 1 --processor-time

For each tower of each model, with random weights, both ways write fp32: the exporter from the fused
module that bundles for phones are made from too, `graph` from the unfused weights. Recorded are the
seconds to write, the bytes, the nodes in the file and after ONNX Runtime's own fusing, the seconds
to open a session with the settings of a bundle, the time of one run, and the largest difference of
a unit embedding from torch's. `openvino_graph` is the second file in OpenVINO, `openvino_torch`
what OpenVINO reads from torch's exported program without ONNX, depthwise convolutions widened. In
each round all variants run in turn, and ratios are medians over rounds. Text towers also run with a
batch of 8 and, where they ignore padding, with one text without it.

`--processor-time` counts the process's time on the processor instead of the clock's, for a machine
that others use too; it needs `--threads 1`. The exporter needs `pip install onnxscript`. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "2"  # for numpy
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch
from numpy.typing import NDArray

import runtime_variants as variants
from pocketclip import zoo
from pocketclip.devices import is_installed
from pocketclip.export.towers import Towers, prepare
from pocketclip.export.tracing import quiet, trace
from pocketclip.graph import proto
from pocketclip.graph.build import write_tower
from pocketclip.infer.backends import onnx_session, openvino_runner
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.cpu_optimize import repeat_depthwise_inputs
from pocketclip.nn.reparam import fuse
from runtime_parts import THREADS, interleaved, ratio

MODELS = ("mobileclip2-s0", "mobileclip-s0")
FEW_TOKENS = 12
Texts = dict[str, NDArray[Any]]


def make_model(name: str) -> CLIP:
    """Return a named model with random weights and statistics and small layer scales.

    With large ones, activations grow through the deepest towers until attention magnifies the last
    bit a thousandfold.
    """
    model = random_model(name, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for title, value in model.state_dict(keep_vars=True).items():
            leaf = title.rpartition(".")[2]
            if leaf == "running_var":
                value.uniform_(0.5, 1.5, generator=generator)
            elif leaf == "running_mean" or (leaf == "bias" and value.ndim == 1):
                value.normal_(0, 0.05, generator=generator)
            elif leaf.startswith("layer_scale"):
                value.uniform_(0.02, 0.05, generator=generator)
            elif leaf == "weight" and value.ndim == 1:
                value.uniform_(0.8, 1.2, generator=generator)
    return model.eval()


def program_of(towers: Towers, kind: str) -> Any:
    """Return a tower as torch's exported program, with the free axes of a bundle."""
    tower, example = tower_of(towers, kind)
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    if kind == "text" and towers.config.text.ignores_padding:
        shapes[1] = torch.export.Dim("tokens", min=3, max=towers.config.text.context_length)
    return trace(tower, example, (shapes,))


def with_exporter(towers: Towers, kind: str, path: Path) -> None:
    """Write a tower with torch's exporter, in operator set 18."""
    program = program_of(towers, kind)
    with quiet():
        made = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False)
    assert made is not None
    made.save(path, external_data=True)


def tower_of(towers: Towers, kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a tower and an example of its input."""
    if kind == "image":
        return towers.image, towers.image_example
    return towers.text, towers.text_example


def with_graph(model: CLIP, kind: Any, path: Path) -> None:
    """Write a tower with `pocketclip.graph`, from unfused weights."""
    write_tower(model.arrays(), model.config, kind, path)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long some work takes, and its result."""
    begun = time.perf_counter()
    result = work()
    return round(time.perf_counter() - begun, 3), result


def onnx_run(path: Path, threads: int) -> variants.Run:
    """Return a function that runs a file in ONNX Runtime with the settings of a bundle."""
    session = onnx_session(os.fspath(path), threads)
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def fused_operators(path: Path) -> dict[str, int]:
    """Return the operators that are left after ONNX Runtime's own fusing, and their numbers."""
    import onnxruntime

    out = path.with_suffix(".fused.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = os.fspath(out)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{out.name}.data"
    )
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = proto.messages().ModelProto()
    model.ParseFromString(out.read_bytes())
    for file in out.parent.glob(f"{out.name}*"):
        file.unlink()
    return dict(collections.Counter(node.op_type for node in model.graph.node).most_common())


def describe(path: Path, written: float, threads: int) -> dict[str, Any]:
    """Return the facts of a file that do not need a run."""
    model = proto.messages().ModelProto()
    model.ParseFromString(path.read_bytes())
    operators = fused_operators(path)
    files = list(path.parent.glob(f"{path.name}*"))
    # The first one reads the file from the disk.
    starts = [seconds(partial(onnx_run, path, threads))[0] for _ in range(4)][1:]
    return {
        "write_s": written,
        "mb": round(sum(file.stat().st_size for file in files) / 1e6, 3),
        "nodes": len(model.graph.node),
        "nodes_fused": sum(operators.values()),
        "fused_operators": operators,
        "session_s": statistics.median(starts),
    }


def inputs(model: CLIP, kind: str) -> Texts:
    """Return the inputs that are timed, by name."""
    rows = variants.check_inputs(model.config)[kind]
    if kind == "image":
        return {"batch_1": rows[:1]}
    out = {"batch_1": rows[:1], "batch_8": np.resize(rows, (8, rows.shape[1]))}
    if model.config.text.ignores_padding:
        out["few_tokens"] = rows[:1, :FEW_TOKENS].copy()
        out["few_tokens"][0, -1] = rows.max()  # the end token
    return out


def unit(run: variants.Run, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return unit embeddings of rows that are run one by one."""
    out = np.concatenate([run(row[None]) for row in rows]).astype(np.float64)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def measure_tower(
    model: CLIP, kind: Any, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of one tower."""
    towers = prepare(model)
    paths = {way: folder / way / f"{kind}.onnx" for way in ("exporter", "graph")}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    written = {
        "exporter": seconds(partial(with_exporter, towers, kind, paths["exporter"]))[0],
        "graph": seconds(partial(with_graph, model, kind, paths["graph"]))[0],
    }
    facts = {way: describe(path, written[way], options.threads) for way, path in paths.items()}
    runs = {way: onnx_run(path, options.threads) for way, path in paths.items()}
    if "openvino" in options.runtimes and is_installed("openvino"):
        import openvino

        took, read = seconds(partial(openvino.convert_model, paths["graph"]))
        facts["graph"]["openvino_convert_s"] = took
        runs["openvino_graph"] = openvino_runner(read, options.threads)
        took, runs["openvino_torch"] = seconds(
            partial(openvino_from_torch, model, kind, options.threads)
        )
        facts["exporter"]["openvino_trace_and_compile_s"] = took
    rows = variants.check_inputs(model.config)[kind]
    expected = unit(variants.eager_run(getattr(model, kind)), rows)
    row: dict[str, Any] = {
        "model": model.config.name,
        "tower": kind,
        "files": facts,
        "largest_difference": {
            name: float(f"{np.abs(unit(run, rows) - expected).max():.2e}")
            for name, run in runs.items()
        },
        "ms": {},
        "graph_over_exporter": {},
    }
    clock = time.process_time if options.processor_time else time.perf_counter
    for name, array in inputs(model, kind).items():
        calls: dict[str, Callable[[], Any]] = {
            way: partial(run, array) for way, run in runs.items()
        }
        times = interleaved(calls, options.rounds, clock=clock)
        row["ms"][name] = {
            way: round(1e3 * statistics.median(values), 2) for way, values in times.items()
        }
        row["graph_over_exporter"][name] = {
            "onnxruntime": ratio(times, "graph", "exporter"),
            **(
                {"openvino": ratio(times, "openvino_graph", "openvino_torch")}
                if "openvino_torch" in times
                else {}
            ),
        }
    return row


def openvino_from_torch(model: CLIP, kind: Any, threads: int) -> variants.Run:
    """Return a function that runs what OpenVINO reads from torch's exported program."""
    import openvino

    towers = prepare(repeat_depthwise_inputs(fuse(model)))
    with quiet():
        read = openvino.convert_model(program_of(towers, kind))
    return openvino_runner(read, threads)


def show(row: dict[str, Any]) -> None:
    """Print the figures of a tower for people."""
    for way, facts in row["files"].items():
        print(
            f"{row['model']} {row['tower']} {way}: written in {facts['write_s']} s, "
            f"{facts['mb']} MB, {facts['nodes']} nodes ({facts['nodes_fused']} after fusing), "
            f"session in {facts['session_s']} s"
        )
    for name, times in row["ms"].items():
        print(f"  {name}: " + ", ".join(f"{way} {ms} ms" for way, ms in times.items()))
        print(f"  {name}, graph over exporter: {row['graph_over_exporter'][name]}")
    print(f"  largest difference from torch: {row['largest_difference']}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of the zoo")
    parser.add_argument(
        "--all", action="store_true", help="every different tower of the named models"
    )
    parser.add_argument("--towers", nargs="+", choices=("image", "text"), default=["image", "text"])
    runtimes = ("onnxruntime", "openvino")
    parser.add_argument("--runtimes", nargs="+", choices=runtimes, default=list(runtimes))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args(arguments)
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time needs --threads 1: threads add up")
    if options.all:
        options.models = list(zoo.ZOO)
    return options


def main() -> None:
    """Measure the requested models."""
    options = parse()
    torch.set_num_threads(THREADS)
    rows = []
    seen: dict[Any, str] = {}
    for name in options.models:
        model = make_model(zoo.resolve(name))
        for kind in options.towers:
            key = (kind, getattr(model.config, kind), model.config.image_size)
            if options.all and key in seen:
                print(f"{name} {kind}: like that of {seen[key]}", flush=True)
                continue
            seen[key] = name
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure_tower(model, kind, Path(folder), options))
            show(rows[-1])
        del model
        gc.collect()
    import onnxruntime

    print(
        json.dumps(
            {
                "benchmark": "graph",
                "threads": options.threads,
                "clock": "processor" if options.processor_time else "wall",
                "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
                "towers": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
