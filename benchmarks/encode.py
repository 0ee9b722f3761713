"""Time a model's towers in torch: the peer, and each variant of ours, in turn in one process.

    python benchmarks/encode.py mobileclip2-s0
    python benchmarks/encode.py mobileclip-s1 mobileclip2-b --batch 1 --rounds 5

The peer is the same model in open_clip (image tower from timm), fused, where both packages can be
imported. Weights are random, which does not change the times. The limit is the time that the
machine would need at best: operations of the fused model over the float32 rate of a square matrix
product, measured in the same rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from peers import import_open_clip, open_clip_name
from pocketclip import zoo
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.cpu_optimize import compile_for_cpu
from pocketclip.nn.reparam import fuse

SIDE = 1536  # of the matrices whose product measures the rate
Run = Callable[[torch.Tensor], Any]


def open_clip_peer(name: str) -> CLIP | None:
    """Return open_clip's model of this name, fused, or None with the reason on stderr."""
    open_clip = import_open_clip()
    if open_clip is None:
        return None
    from timm.utils import reparameterize_model

    known = open_clip_name(name)
    if known is None:
        print(f"no peer: open_clip has no model {name}", file=sys.stderr)
        return None
    return reparameterize_model(open_clip.create_model(known).eval())


def operations(tower: nn.Module, x: torch.Tensor) -> float:
    """Return the floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(x)
    return float(counter.get_total_flops())


def matrix_rate() -> float:
    """Return the machine's float32 rate in operations per second, once."""
    a, b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    start = time.perf_counter()
    a @ b
    return 2 * SIDE**3 / (time.perf_counter() - start)


def seconds(run: Run, x: torch.Tensor, calls: int) -> float:
    """Return the seconds per call over a few calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    return (time.perf_counter() - start) / calls


def variant_runs(name: str, tower: str, peer: CLIP | None) -> dict[str, Run]:
    """Return a function that runs one tower, for each variant."""
    model = fuse(random_model(name, seed=0))
    compiled = compile_for_cpu(model)
    runs: dict[str, Run] = {}
    if peer is not None:
        runs["peer eager"] = getattr(peer, f"encode_{tower}")
    runs["eager"] = getattr(model, f"encode_{tower}")
    if tower == "image":
        last = fuse(random_model(name, seed=0)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runs["channels_last"] = lambda x: last.encode_image(
            x.contiguous(memory_format=torch.channels_last)
        )
    runs["compiled"] = getattr(compiled, f"encode_{tower}")
    return runs


def measure(
    name: str, tower: str, batch: int, rounds: int, peer: CLIP | None
) -> dict[str, float | str | int | dict[str, float]]:
    """Return medians in milliseconds per call, and the limit, for one tower and batch."""
    config = zoo.entry(name).config
    size = config.image_size
    x = torch.rand(batch, 3, size, size) if tower == "image" else torch.ones(batch, 77).long()
    runs = variant_runs(name, tower, peer)
    flops = operations(getattr(fuse(random_model(name, seed=0)), tower), x[:1]) * batch
    calls = max(1, 8 // batch)
    times: dict[str, list[float]] = {variant: [] for variant in runs}
    rates = []
    with torch.inference_mode():
        for run in runs.values():  # warm-up; the first calls of `compiled` compile
            run(x)
            run(x)
        matrix_rate()
        for _ in range(rounds):
            rates += [matrix_rate() for _ in range(3)]
            for variant, run in runs.items():
                times[variant].append(seconds(run, x, calls))
    rate = statistics.median(rates)
    limit = flops / rate
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    return {
        "model": name,
        "tower": tower,
        "batch": batch,
        "gflop": round(flops / 1e9, 3),
        "gflop_per_s": round(rate / 1e9, 1),
        "limit_ms": round(limit * 1e3, 2),
        "ms": {variant: round(value * 1e3, 2) for variant, value in medians.items()},
        "over_limit": {variant: round(value / limit, 2) for variant, value in medians.items()},
    }


def main() -> None:
    """Measure the requested models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["mobileclip2-s0"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--tower", choices=("image", "text"), nargs="+", default=["image", "text"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models:
        peer = open_clip_peer(zoo.resolve(name))
        for tower in options.tower:
            for batch in options.batch:
                row = measure(zoo.resolve(name), tower, batch, options.rounds, peer)
                rows.append(row)
                assert isinstance(row["ms"], dict)
                assert isinstance(row["over_limit"], dict)
                print(
                    f"{name} {tower} batch {batch}: {row['gflop']} GFLOP at "
                    f"{row['gflop_per_s']} GFLOP/s, limit {row['limit_ms']} ms"
                )
                peer_ms = row["ms"].get("peer eager")
                for variant, value in row["ms"].items():
                    ratio = f"  {peer_ms / value:5.2f} x the peer's speed" if peer_ms else ""
                    over = row["over_limit"][variant]
                    print(f"  {variant:14} {value:9.2f} ms  {over:5.2f} x the limit{ratio}")
    print(json.dumps({"threads": options.threads, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
