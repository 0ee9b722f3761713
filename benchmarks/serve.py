"""Time `pocketclip serve` on loopback, beside the library call and infinity-emb.

    python benchmarks/serve.py --photos ../shared/data/grocery
    python benchmarks/serve.py --photos ../shared/data/grocery --parts peer --peer PEER/bin/python

| part | measures |
|---|---|
| `throughput` | requests of one input per second from 32 clients, over `Encoder.encode_stream` (for texts `encode_text`) on the same inputs |
| `latency` | a request of a client that is alone, less `Encoder.encode_image` (`encode_text`) on the same input |
| `half` | latency at half of that throughput, with arrivals evenly spaced and at random (Poisson) |
| `peer` | requests per second beside infinity-emb with the same weights, see `serve_peer.py` |

What is compared takes turns within one run; ratios are medians of the rounds' ratios. Requests go
to `/v1/embeddings`, images as data URIs. The load generator, `serve_load.py`, is a process of its
own on the same cores. Of C cores and T seconds it takes g processor seconds; the server had
C T - g. `ratio` is that of the throughputs as they are; `ratio_of_its_share` is divided by
1 - g / (C T), the share of the processor that was left to the server.

The last line is JSON.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np

from pocketclip.infer.encoder import Encoder, load
from processor import describe_processor
from serve_peer_runs import beside_peer
from serve_process import (
    Load,
    Server,
    free_port,
    image_body,
    ours,
    percentile,
    running,
    text_body,
    texts,
)

PARTS = ["throughput", "latency", "half"]
KINDS = ["images", "texts"]
CLIENTS = 32
CORES = os.cpu_count() or 1


@dataclass(slots=True)
class Bench:
    """A server, the load generator, and the same model in this process."""

    server: Server
    load: Load
    encoder: Encoder
    photos: list[bytes]
    rounds: int
    seconds: float
    _seed: int = 0
    capacity: dict[str, float] = field(default_factory=dict)

    def inputs(self, kind: str, count: int) -> list[Any]:
        """Return inputs; texts that no cache has."""
        self._seed += 1
        if kind == "texts":
            return list(texts(count, self._seed))
        return random.Random(self._seed).choices(self.photos, k=count)

    def write(self, kind: str, inputs: Sequence[Any]) -> list[str]:
        """Write the requests for inputs into files; return their paths."""
        return self.load.write(
            [image_body(one) if kind == "images" else text_body(one) for one in inputs]
        )

    def encode(self, kind: str, inputs: Sequence[Any]) -> tuple[float, float]:
        """Encode inputs in this process; return seconds, and processor seconds."""
        begin, used = time.perf_counter(), time.process_time()
        if kind == "images":
            for _ in self.encoder.encode_stream(inputs):
                pass
        else:
            self.encoder.encode_text(inputs)
        return time.perf_counter() - begin, time.process_time() - used


def throughput(bench: Bench, kind: str) -> dict[str, Any]:
    """Compare a server with 32 clients and the library call."""
    # Once before what is measured: the buffers of both are cold.
    bench.load.run(requests=bench.write(kind, bench.inputs(kind, 64)), clients=CLIENTS, count=64)
    warm = bench.inputs(kind, CLIENTS)
    count = max(CLIENTS, int(bench.seconds * CLIENTS / bench.encode(kind, warm)[0]))
    rates: list[float] = []
    library: list[float] = []
    shares: list[float] = []
    used: dict[str, list[float]] = {"server": [], "library": []}
    answers: list[float] = []
    for turn in range(bench.rounds):
        inputs = bench.inputs(kind, count)
        requests = bench.write(kind, bench.inputs(kind, 3 * count + CLIENTS))

        def ask(requests: list[str] = requests) -> None:
            before = bench.server.processor_seconds()
            result = bench.load.run(requests=requests, clients=CLIENTS, seconds=bench.seconds)
            used["server"].append(
                (bench.server.processor_seconds() - before) / len(result["latencies"])
            )
            rates.append(result["per_second"])
            shares.append(result["processor_seconds"] / (CORES * result["seconds"]))
            answers.append(statistics.median(result["latencies"]))

        def call(inputs: list[Any] = inputs) -> None:
            seconds, processor = bench.encode(kind, inputs)
            library.append(len(inputs) / seconds)
            used["library"].append(processor / len(inputs))

        for one in (call, ask) if turn % 2 else (ask, call):
            one()
    bench.capacity[kind] = statistics.median(rates)
    ratios = [a / b for a, b in zip(rates, library, strict=True)]
    own = [ratio / (1 - share) for ratio, share in zip(ratios, shares, strict=True)]
    return {
        "per_second": round(statistics.median(rates), 2),
        "library_per_second": round(statistics.median(library), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_its_share": round(statistics.median(own), 3),
        "ratios": [round(ratio, 3) for ratio in own],
        "generator_share": round(statistics.median(shares), 4),
        "processor_ms": {
            who: round(1e3 * statistics.median(each), 2) for who, each in used.items()
        },
        "median_ms": round(statistics.median(answers), 1),
    }


def latency(bench: Bench, kind: str, repeat: int = 12) -> dict[str, Any]:
    """Compare a request of a client that is alone and the library call."""
    asked: list[float] = []
    called: list[float] = []
    for turn in range(bench.rounds * 2 + 1):
        inputs = bench.inputs(kind, repeat)
        requests = bench.write(kind, inputs)

        def ask(requests: list[str] = requests) -> None:
            result = bench.load.run(requests=requests, clients=1, count=repeat)
            asked.extend(result["latencies"][1:])  # the first one opens the connection

        def call(inputs: list[Any] = inputs) -> None:
            for one in inputs:
                begin = time.perf_counter()
                if kind == "images":
                    bench.encoder.encode_image([one])
                else:
                    bench.encoder.encode_text([one])
                called.append((time.perf_counter() - begin) * 1e3)

        # The text of a call is in the cache of this process, not in the server's.
        for one in (ask, call) if turn % 2 else (call, ask):
            one()
        if turn == 0:
            asked.clear()
            called.clear()
    medians = statistics.median(asked), statistics.median(called)
    return {
        "request_ms": round(medians[0], 2),
        "library_ms": round(medians[1], 2),
        "added_ms": round(medians[0] - medians[1], 2),
        "p99_ms": round(percentile(asked, 0.99), 2),
    }


def half(bench: Bench, kind: str) -> dict[str, Any]:
    """Measure latency at half of the throughput that was measured."""
    rate = bench.capacity[kind] / 2
    latencies: dict[str, list[float]] = {"even": [], "poisson": []}
    for turn in range(bench.rounds):
        for name in list(latencies)[:: -1 if turn % 2 else 1]:
            requests = bench.write(kind, bench.inputs(kind, int(rate * bench.seconds * 3) + 10))
            result = bench.load.run(
                requests=requests, clients=64, seconds=bench.seconds * 2, rate=rate,
                poisson=name == "poisson", seed=turn,
            )  # fmt: skip
            latencies[name] += result["latencies"][1:]
    return {
        "per_second": round(rate, 2),
        **{
            name: {
                "requests": len(each),
                "median_ms": round(statistics.median(each), 2),
                "p99_ms": round(percentile(each, 0.99), 2),
                "p99_over_median": round(percentile(each, 0.99) / statistics.median(each), 2),
                "largest_ms": round(max(each), 2),
            }
            for name, each in latencies.items()
        },
    }


def agree(bench: Bench) -> dict[str, float]:
    """Return the largest difference of answers and library calls; images must be equal."""
    photos, words = bench.inputs("images", 4), bench.inputs("texts", 4)
    differences = {}
    for kind, inputs, bodies in (
        ("images", photos, [image_body(one) for one in photos]),
        ("texts", words, [text_body(one) for one in words]),
    ):
        rows = []
        for body in bodies:
            body["encoding_format"] = "float"
            rows.append(bench.server.post("/v1/embeddings", body)["data"][0]["embedding"])
        encode = bench.encoder.encode_image if kind == "images" else bench.encoder.encode_text
        known = np.concatenate([encode([one]) for one in inputs])
        differences[kind] = float(np.abs(np.asarray(rows, np.float32) - known).max())
    return differences


def measure(model: Path, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the figures of one model."""
    port = free_port()
    photos = read_photos(options.photos, options.photographs)
    encoder = load(model, backend=options.backend)
    for tower in ("image", "text"):
        encoder.load(tower)
    more = [] if options.backend == "auto" else ["--backend", options.backend]
    figures: dict[str, Any] = {"backend": encoder.backend.name}
    with running(ours(model, port, *more), port, "/readyz", work / "log") as server:
        generator = Load(port, work)
        bench = Bench(server, generator, encoder, photos, options.rounds, options.seconds)
        figures["largest_difference"] = agree(bench)
        if figures["largest_difference"]["images"]:
            raise SystemExit("the server's image embeddings are not those of the library call")
        parts: dict[str, Callable[[Bench, str], dict[str, Any]]] = {
            "throughput": throughput, "latency": latency, "half": half,
        }  # fmt: skip
        for part in options.parts:
            for kind in options.kinds:
                figures.setdefault(part, {})[kind] = parts[part](bench, kind)
                print(part, kind, json.dumps(figures[part][kind]), file=sys.stderr)
        figures["megabytes"] = round(server.megabytes())
        generator.close()
    return figures


def read_photos(folder: Path, count: int) -> list[bytes]:
    """Return the contents of photographs found below a folder."""
    found = sorted(folder.rglob("*.jpg"))
    chosen = random.Random(0).sample(found, min(count, len(found)))
    return [path.read_bytes() for path in chosen]


def machine() -> dict[str, Any]:
    """Return the facts of this machine that the figures depend on."""
    return {
        "processor": describe_processor(),
        "cores": CORES,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "peer"], default=PARTS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--model", type=Path, help="a bundle; by default S0 with random weights")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--photos", type=Path, required=True, help="a folder with JPEGs")
    parser.add_argument("--photographs", type=int, default=400, help="how many of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of load per turn")
    parser.add_argument("--peer", help="Python of an environment with infinity-emb")
    parser.add_argument("--peer-folder", type=Path, help="keep the peer's model and bundles here")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "serve", "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        own = [part for part in options.parts if part != "peer"]
        if "peer" in options.parts:
            result["peer"] = beside_peer(options, work, read_photos)
        options.parts = own
        if own:
            model = options.model
            if model is None:
                model = work / "model"
                words = ["export", "random:mobileclip2-s0", "--format", "onnx", "--out", str(model)]
                subprocess.run([sys.executable, "-m", "pocketclip", *words], check=True)
            result |= {"model": json.loads((model / "bundle.json").read_text())["model"]["name"]}
            result |= measure(model, options, work)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
