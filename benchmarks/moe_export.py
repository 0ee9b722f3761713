"""Compare ways to write a mixture of experts as a graph, and sparse towers with dense ones.

    python benchmarks/moe_export.py
    python benchmarks/moe_export.py --threads 2 --sizes b16 --tokens 1 197 --rounds 5
    python benchmarks/moe_export.py --parts towers --runtimes onnxruntime

`layers`: one mixture of eight experts, two per token, with random weights, against the dense MLP of
its experts' size. `sorted` is the form that `pocketclip.graph` writes: each expert multiplies the
tokens that chose it. `all` computes every expert for every token. `gathered` copies the weights of
each token's experts, up to four tokens. `towers`: ViT-B/16 upcycled, sorted, against the dense
model; needs 8 GB.

Every call has a new input, and with it another routing: OpenVINO prepares kernels for each number
of rows that it meets. In each round all forms run in turn, and ratios are medians over rounds. One
thread is measured by the process's time on the processor, so that other programs count less; two
threads by the clock. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch
from numpy.typing import NDArray

from pocketclip.graph import layers
from pocketclip.graph.build import write_tower
from pocketclip.graph.moe import mixture, route
from pocketclip.graph.ports import Kind
from pocketclip.graph.tower import Tower
from pocketclip.graph.writer import GraphWriter
from pocketclip.infer.backends import onnx_session, openvino_runner
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import moe_layers
from pocketclip.nn.upcycle import upcycle
from runtime_parts import interleaved, ratio

EXPERTS, TOP_K = 8, 2
SIZES = {"b16": (768, 3072), "text": (512, 2048), "small": (192, 768)}
TOKENS = (1, 4, 20, 77, 197, 788, 6304)
MOST_GATHERED = 4
TOWERS: dict[Kind, tuple[int, ...]] = {"image": (1, 8), "text": (1, 32)}
TEXT_TOKENS = 20
Rows = NDArray[Any]
Run = Callable[[Rows], Any]


def opened(path: Path, runtime: str, threads: int) -> Run:
    """Return a function that runs a graph."""
    if runtime == "openvino":
        return openvino_runner(str(path), threads)
    session = onnx_session(str(path), threads)
    name = session.get_inputs()[0].name
    return lambda rows: session.run(None, {name: rows})[0]


def compare(runs: dict[str, Run], batches: Sequence[Rows], threads: int) -> dict[str, Any]:
    """Return milliseconds of the dense form, and the others' times over it in the same round."""

    def calls(run: Run) -> Callable[[], Any]:
        mine: Iterator[Rows] = iter(batches)
        return lambda: run(next(mine))

    clock = time.process_time if threads == 1 else time.perf_counter
    times = interleaved(
        {name: calls(run) for name, run in runs.items()}, len(batches) - 1, repeat=1, clock=clock
    )
    found: dict[str, Any] = {"dense_ms": round(1e3 * float(np.median(times["dense"])), 2)}
    return found | {name: ratio(times, name, "dense") for name in runs if name != "dense"}


def write_layer(weights: dict[str, Rows], form: str, path: Path) -> None:
    """Write the graph of one layer, from tokens (N, C) to the same shape."""
    graph = GraphWriter(path, form)
    tower = Tower(graph=graph, weights=weights, fused=form != "all")
    width = weights["mlp.router.weight"].shape[1]
    x = graph.input("x", np.float32, ["tokens", width])
    if form == "dense":
        kernels = [[weights[f"mlp.{n}.{leaf}"][0] for leaf in ("weight", "bias")] for n in LINEARS]
        y = layers.linear(graph, x, "fc1", (kernels[0][0], kernels[0][1]))
        y = layers.activation(graph, y, "act", "gelu")
        y = layers.linear(graph, y, "fc2", (kernels[1][0], kernels[1][1]))
    elif form == "gathered":
        y = _gathered(tower, x)
    else:
        y = mixture(tower, x, "mlp", activation="gelu", top_k=TOP_K)
    graph.output("y", y, ["tokens", width])
    graph.save()


LINEARS = ("fc1", "fc2")


def _gathered(tower: Tower, x: str) -> str:
    """Add a mixture that copies the weights of each token's experts."""
    graph = tower.graph
    gates, chosen = route(tower, x, "mlp", TOP_K)
    y = graph.node("Unsqueeze", [x, graph.constant([1, 2])], "rows")  # (N, 1, 1, C)
    for name in LINEARS:
        stack = graph.weight(f"{name}.weight", tower.array(f"mlp.{name}.weight").mT)
        biases = graph.weight(f"{name}.bias", tower.array(f"mlp.{name}.bias")[:, None])
        own = graph.node("Gather", [stack, chosen], f"{name}/weights")  # (N, K, C, H)
        y = graph.node("MatMul", [y, own], name)
        own = graph.node("Gather", [biases, chosen], f"{name}/biases")
        y = graph.node("Add", [y, own], f"{name}/sum")
        if name == "fc1":
            y = layers.activation(graph, y, "act", "gelu")
    scales = graph.node("Unsqueeze", [gates, graph.constant([2, 3])], "scales")
    y = graph.node("Mul", [y, scales], "scaled")
    return graph.node("ReduceSum", [y, graph.constant([1, 2])], "mix", keepdims=0)


def layer_part(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure single layers."""
    rows = []
    for size in args.sizes:
        width, hidden = SIZES[size]
        rng = np.random.default_rng(0)

        def draw(*shape: int, rng: Any = rng) -> Rows:
            return np.asarray(rng.standard_normal(shape, np.float32) / shape[-1] ** 0.5)

        weights = {
            "mlp.router.weight": draw(EXPERTS, width),
            "mlp.fc1.weight": draw(EXPERTS, hidden, width), "mlp.fc1.bias": draw(EXPERTS, hidden),
            "mlp.fc2.weight": draw(EXPERTS, width, hidden), "mlp.fc2.bias": draw(EXPERTS, width),
        }  # fmt: skip
        forms = ("dense", "sorted", "all", "gathered")
        paths = {form: folder / f"{size}-{form}.onnx" for form in forms}
        for form, path in paths.items():
            write_layer(weights, form, path)
        for runtime in args.runtimes:
            runs = {form: opened(path, runtime, args.threads) for form, path in paths.items()}
            for tokens in args.tokens:
                some = dict(runs)
                if tokens > MOST_GATHERED:
                    del some["gathered"]
                batches = [
                    np.random.default_rng(number).standard_normal((tokens, width), np.float32)
                    for number in range(args.rounds + 1)
                ]
                found = compare(some, batches, args.threads)
                rows.append({"size": size, "runtime": runtime, "tokens": tokens, **found})
                print(rows[-1], flush=True)
    return rows


def spread_model(dense: CLIP) -> CLIP:
    """Return a sparse model whose tokens go to many experts."""
    model = upcycle(dense, experts=EXPERTS, top_k=TOP_K, noise=0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in moe_layers(model).values():
            layer.router.weight.normal_(generator=generator)
    return model


def tower_part(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure whole towers."""
    dense, rows = random_model("vit-b16", seed=0), []
    models = {"dense": dense, "sorted": spread_model(dense)}
    size = dense.config.image_size

    def pixels(number: int, count: int) -> Rows:
        rng = np.random.default_rng(number)
        return rng.standard_normal((count, 3, size, size), np.float32)

    def ids(number: int, count: int) -> Rows:
        rng = np.random.default_rng(number)
        texts = rng.integers(1, 49000, (count, TEXT_TOKENS))
        texts[:, 0], texts[:, -1] = 49406, 49407
        return texts

    makers: dict[Kind, Callable[[int, int], Rows]] = {"image": pixels, "text": ids}
    for kind, sizes in TOWERS.items():
        paths = {form: folder / f"{kind}-{form}.onnx" for form in models}
        for form, path in paths.items():
            write_tower(models[form].arrays(), models[form].config, kind, path)
        for runtime in args.runtimes:
            runs = {form: opened(path, runtime, args.threads) for form, path in paths.items()}
            for batch in sizes:
                batches = [makers[kind](number, batch) for number in range(args.rounds + 1)]
                found = compare(runs, batches, args.threads)
                rows.append({"tower": kind, "runtime": runtime, "batch": batch, **found})
                print(rows[-1], flush=True)
            del runs
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument(
        "--runtimes", nargs="+", choices=["onnxruntime", "openvino"],
        default=["onnxruntime", "openvino"],
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = {part: PARTS[part](args, Path(folder)) for part in args.parts}
    print(json.dumps({"threads": args.threads, "rounds": args.rounds, **results}))


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "layers": layer_part,
    "towers": tower_part,
}

if __name__ == "__main__":
    main()
