"""`pocketclip serve` and infinity-emb with the same weights, taking turns."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serve_process import (
    HERE,
    Load,
    Server,
    free_port,
    image_body,
    ours,
    percentile,
    running,
    text_body,
    texts,
)  # fmt: skip

CLIENTS = 32
PER_TURN = {"images": 65, "texts": 257}
"""Requests; infinity takes the first at once, and then batches of 32."""
DTYPES = {"fp32": "float32", "int8": "int8"}
"""The dtype that infinity calls what we call a precision."""
Body = Callable[[Any], dict[str, Any]]


def make_models(folder: Path, peer: str, photos: Path, precisions: list[str]) -> None:
    """Write the peer's model, and our bundles of its weights; those that are there are kept."""
    export = [sys.executable, "-m", "pocketclip", "export"]
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "open_clip.safetensors"
    if not weights.exists():
        tokens = folder / "tiny"  # for its tokenizer, which all our models share
        words: list[str | Path] = [*export, "random:tiny", "--out", tokens]
        subprocess.run(words, check=True)
        words = [peer, HERE / "serve_peer.py", "make", folder, tokens / "tokenizer.json"]
        subprocess.run(words, check=True)
    for precision in precisions:
        if not (folder / precision).exists():
            words = [
                *export, f"vit-b16={weights}", "--precision", precision, "--out", folder / precision
            ]  # fmt: skip
            if precision == "int8":
                words += ["--calibration", photos]
            subprocess.run(words, check=True)


def beside_peer(
    options: argparse.Namespace, work: Path, read_photos: Callable[[Path, int], list[bytes]]
) -> dict[str, Any]:
    """Return throughput and latency of both servers."""
    assert options.peer, "the part `peer` needs --peer"
    folder: Path = options.peer_folder or work / "peer"
    make_models(folder, options.peer, options.photos, options.precisions)
    photos = read_photos(options.photos, options.photographs)
    servers: dict[str, tuple[Server, Load]] = {}
    with contextlib.ExitStack() as stack:
        for precision in options.precisions:
            port = free_port()
            more = [] if options.backend == "auto" else ["--backend", options.backend]
            commands: dict[str, tuple[list[Any], str]] = {
                "pocketclip": (ours(folder / precision, port, *more), "/readyz"),
                "infinity": (
                    [options.peer, HERE / "serve_peer.py", "serve", folder, "", DTYPES[precision]],
                    "/v1/models",
                ),
            }
            for name, (command, ready) in commands.items():
                if name == "infinity":
                    port = free_port()
                    command[4] = str(port)
                log = work / f"{name}-{precision}"
                server = stack.enter_context(running(command, port, ready, log, 300))
                generator = Load(port, work)
                stack.callback(generator.close)
                servers[f"{name} {precision}"] = server, generator
        result: dict[str, Any] = {"cosine": _cosines(servers, photos)}
        print(json.dumps(result), file=sys.stderr)
        for kind in options.kinds:
            result[kind] = _turns(servers, photos, kind, options)
            print(kind, json.dumps(result[kind]), file=sys.stderr)
        result["megabytes"] = {name: round(one.megabytes()) for name, (one, _) in servers.items()}
    return result


def _cosines(servers: dict[str, tuple[Server, Load]], photos: list[bytes]) -> dict[str, Any]:
    """Return the smallest cosine of each server's embeddings to those of infinity in fp32.

    `different` is the largest cosine of two different inputs, which has to be smaller.
    """
    rows: dict[tuple[str, str], Any] = {}
    for name, (server, _) in servers.items():
        for kind, bodies in (
            ("images", [image_body(data) for data in photos[:16]]),
            ("texts", [text_body(text) for text in texts(16, 0)]),
        ):
            found = []
            for body in bodies:
                body["encoding_format"] = "float"
                found.append(server.post("/v1/embeddings", body)["data"][0]["embedding"])
            matrix = np.asarray(found, np.float32)
            rows[name, kind] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    out: dict[str, Any] = {}
    for kind in ("images", "texts"):
        known = rows["infinity fp32" if "infinity fp32" in servers else next(iter(servers)), kind]
        out[kind] = {
            name: round(float((rows[name, kind] * known).sum(1).min()), 6) for name in servers
        }
        others = known @ known.T - 2 * np.eye(len(known), dtype=np.float32)
        out[kind]["different"] = round(float(others.max()), 6)
        for name, least in out[kind].items():
            if name.endswith("fp32") and least < 0.999:
                raise SystemExit(f"{name} has other embeddings of {kind} than infinity: {least}")
    return out


def _turns(
    servers: dict[str, tuple[Server, Load]], photos: list[bytes], kind: str,
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    body: Body = image_body if kind == "images" else text_body
    rates: dict[str, list[float]] = {name: [] for name in servers}
    alone: dict[str, list[float]] = {name: [] for name in servers}
    loaded: dict[str, list[float]] = {name: [] for name in servers}
    for turn in range(options.rounds + 1):
        for name in list(servers)[:: -1 if turn % 2 else 1]:
            load = servers[name][1]
            seed = 100 * turn + 7
            inputs = (
                texts(PER_TURN[kind], seed)
                if kind == "texts"
                else random.Random(seed).choices(photos, k=PER_TURN[kind])
            )
            requests = load.write([body(one) for one in inputs])
            if turn == 0:  # buffers are cold
                load.run(requests=requests, clients=2, count=4)
                continue
            result = load.run(requests=requests, clients=CLIENTS, count=len(requests))
            rates[name].append(result["per_second"])
            loaded[name] += result["latencies"]
            inputs = texts(9, seed + 1) if kind == "texts" else photos[-9:]
            requests = load.write([body(one) for one in inputs])
            result = load.run(requests=requests, clients=1, count=9)
            alone[name] += result["latencies"][1:]
    return {
        "per_second": {name: round(statistics.median(each), 2) for name, each in rates.items()},
        "ratio": {
            f"{one} / {other}": round(
                statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 3
            )
            for one in servers
            for other in servers
            if one.startswith("pocketclip") and other.startswith("infinity")
        },
        "one_client_ms": {name: round(statistics.median(each), 1) for name, each in alone.items()},
        "p99_ms": {name: round(percentile(each, 0.99)) for name, each in loaded.items()},
    }
