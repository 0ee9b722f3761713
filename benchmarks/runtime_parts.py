"""The parts of `runtime.py`: towers in turn, photographs from files, `classify` from the shell."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import runtime_variants as variants
from encode import operations
from pocketclip import zoo
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.nn.reparam import fuse

THREADS = 2
SIDE = 1024  # of the matrices whose product measures the rate
CALLS = 3  # per variant and round
PAUSE = 0.01  # seconds; threads of the previous variant may still spin
Times = dict[str, list[float]]


def interleaved(
    calls: dict[str, Callable[[], Any]],
    rounds: int,
    repeat: int = CALLS,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Return seconds per variant and round; the order rotates from round to round."""
    names = list(calls)
    times: Times = {name: [] for name in names}
    for name in names:
        calls[name]()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            if repeat > 1:
                calls[name]()  # brings its weights back into the cache
            begun = clock()
            for _ in range(repeat):
                calls[name]()
            times[name].append((clock() - begun) / repeat)
    return times


def ratio(times: Times, one: str, other: str) -> float:
    """Return the median of the rounds' ratios: a slow round slows both variants."""
    pairs = zip(times[one], times[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def products(bf16: bool) -> dict[str, Callable[[], Any]]:
    """Return matrix products, whose time measures the machine's rate."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    c, d = torch.from_numpy(a), torch.from_numpy(b)
    calls: dict[str, Callable[[], Any]] = {"numpy": lambda: a @ b, "torch": lambda: c @ d}
    if bf16:
        e, f = c.bfloat16(), d.bfloat16()
        calls["bf16"] = lambda: e @ f
    return calls


def rate(times: Times, *names: str) -> float:
    """Return operations per second: the median over rounds of the best of some products."""
    rounds = zip(*(times[name] for name in names), strict=True)
    return 2 * SIDE**3 / statistics.median(min(each) for each in rounds)


def measure_tower(
    name: str, model: CLIP, tower: str, bundles: dict[str, Bundle], plain: Path, rounds: int
) -> dict[str, Any]:
    """Return times, ratios, cosines and the limit of one tower at batch 1."""
    fused = fuse(model)
    module = getattr(fused, tower)
    rows = variants.check_inputs(model.config)[tower]
    runs: dict[str, variants.Run] = {"eager": variants.eager_run(module)}
    peer = variants.peer_run(name, tower)
    if peer is not None:
        runs["peer"] = peer
    runs["ort"] = variants.plain_run(module, rows, plain / f"{tower}.onnx", THREADS)
    runs |= {
        variant: variants.bundle_run(bundle, tower, THREADS) for variant, bundle in bundles.items()
    }
    one = rows[:1]
    expected = runs["eager"](rows)
    cosines = {
        variant: round(
            variants.cosine(np.concatenate([run(row[None]) for row in rows]), expected), 6
        )
        for variant, run in runs.items()
        if variant not in ("eager", "peer")
    }
    matrices = products(variants.has_bf16())
    times = interleaved(
        {**matrices, **{variant: partial(run, one) for variant, run in runs.items()}}, rounds
    )
    flops = operations(module, torch.from_numpy(one))
    limit = flops / rate(times, "numpy", "torch")
    limits = dict.fromkeys(runs, limit)
    if "openvino_bf16" in runs:
        limits["openvino_bf16"] = flops / rate(times, "bf16")
    medians = {variant: statistics.median(times[variant]) for variant in runs}
    published = "peer" if peer is not None else "eager"
    return {
        "model": name,
        "tower": tower,
        "gflop": round(flops / 1e9, 3),
        "gflop_per_s": round(rate(times, "numpy", "torch") / 1e9, 1),
        "limit_ms": {variant: round(1e3 * value, 3) for variant, value in limits.items()},
        "published_path": published,
        "ms": {variant: round(1e3 * value, 3) for variant, value in medians.items()},
        "times_faster_than_ort": {variant: ratio(times, "ort", variant) for variant in runs},
        "times_faster_than_published": {
            variant: ratio(times, published, variant) for variant in runs
        },
        "over_limit": {variant: round(medians[variant] / limits[variant], 3) for variant in runs},
        "cosine": cosines,
    }


def plain_loop(
    run: variants.Run, config: zoo.PreprocessConfig, paths: list[Path], batch: int
) -> Any:
    """Return embeddings (N, D): decode, preprocess and run, one batch after the other."""
    mean, std = (np.array(x, np.float32) for x in (config.mean, config.std))
    way = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    embeddings, pixels = [], []
    for number, path in enumerate(paths, 1):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        short = min(image.size)
        width, height = (length * config.size // short for length in image.size)
        image = image.resize((width, height), way[config.interpolation])
        left, top = round((width - config.size) / 2), round((height - config.size) / 2)
        image = image.crop((left, top, left + config.size, top + config.size))
        scaled = (np.asarray(image, np.float32) / 255 - mean) / std
        pixels.append(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        if len(pixels) == batch or number == len(paths):
            embeddings.append(run(np.stack(pixels)))
            pixels = []
    return np.concatenate(embeddings)


def measure_throughput(
    bundle: Bundle, plain: variants.Run, paths: list[Path], rounds: int
) -> dict[str, Any]:
    """Return photographs per second, decode included."""
    encoder = Encoder(bundle, threads=THREADS)
    config = bundle.config.preprocess

    def ours() -> NDArray[Any]:
        return np.concatenate([rows for _, rows, _ in encoder.encode_stream(paths)])

    batches = {f"plain_batch_{size}": size for size in (1, encoder.batch_size)}
    same = variants.cosine(ours(), plain_loop(plain, config, paths, 1))
    calls: dict[str, Callable[[], Any]] = {"ours": ours}
    for variant, size in batches.items():
        calls[variant] = partial(plain_loop, plain, config, paths, size)
    times = interleaved(calls, rounds, repeat=1)
    return {
        "images": len(paths),
        "backend": encoder.backend.name,
        "images_per_s": {
            variant: round(len(paths) / statistics.median(values), 2)
            for variant, values in times.items()
        },
        "over_plain_loop": min(ratio(times, variant, "ours") for variant in batches),
        "cosine_to_plain_loop": round(same, 6),
    }


def cold_start(bundle: Bundle, environment: Mapping[str, str]) -> float:
    """Return the seconds of `pocketclip classify` from a shell, the median of five."""
    script = Path(sys.executable).with_name("pocketclip")
    begin = [str(script)] if script.exists() else [sys.executable, "-m", "pocketclip"]
    command = [*begin, "classify", str(variants.PHOTOS / "coffee.jpg"), "--labels",
               "a cat,a cup of coffee", "--model", str(bundle.folder)]  # fmt: skip
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        times.append(time.perf_counter() - begun)
    return round(statistics.median(times[1:]), 3)
