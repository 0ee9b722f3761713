"""Many mixed requests to `pocketclip serve`, and what may go wrong meanwhile.

    python benchmarks/serve_soak.py --photos ../shared/data/grocery
    python benchmarks/serve_soak.py --photos ../shared/data/grocery --parts sigterm --load 5

| part | does |
|---|---|
| `mixed` | requests of all protocols; of every 100 one is malformed, one too large, and one is given up by its client. Every answer is compared with the library call, images to the bit. |
| `languages` | immich's requests, each with another `language` |
| `connections` | 200 connections at a time |
| `slow` | clients that send headers and bodies byte by byte, or read nothing, beside one that does not |
| `gone` | a queue of requests, most of whose clients leave: theirs must not be encoded |
| `full` | a full queue of images: 429 there, but `/livez` and texts are answered |
| `sighup`, `sigterm` | the signals while 32 clients send: nothing that was accepted is lost |

All traffic is on loopback and bounded. The last line is JSON.
"""  # noqa: E501

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import serve_soak_cases as cases
import serve_soak_faults as faults
import serve_soak_scenarios as scenarios
from pocketclip.infer.encoder import load
from pocketclip.label_set import read_label_set
from pocketclip.search import Library
from serve_http import Client
from serve_process import Server, free_port, ours, running

CLIENTS = 16
FAULTS = 0.01  # of the requests, each: malformed, oversized, aborted


@dataclass(slots=True)
class Tally:
    """What came of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What was not as it should be."""
    checked: int = 0
    """Answers that were compared with the library call."""
    aborted: int = 0
    megabytes: list[float] = field(default_factory=list)
    """Of the server, without its cache of texts, which is bounded by 64 MB."""

    def note(self, what: str) -> None:
        """Note a wrong answer."""
        self.wrong.append(what)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a server was started with."""

    bundle: Path
    library: Path
    label_set: Path


def prepare(bundle: Path, photos: list[Path], work: Path) -> Setting:
    """Make a library and a label set of photographs."""
    pocketclip = [sys.executable, "-m", "pocketclip"]
    library, label_set = work / "soak.sqlite", work / "soak.json"
    for number, path in enumerate(photos):
        target = work / "shelf" / ("left" if number % 2 else "right") / f"{number:04}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    large = io.BytesIO()
    with Image.open(photos[0]) as image:
        image.convert("RGB").resize((2400, 1800)).save(large, "JPEG")
    (work / "shelf" / "left" / "large.jpg").write_bytes(large.getvalue())
    commands: list[list[str | Path]] = [
        ["index", work / "shelf", "--library", library, "--model", bundle],
        ["fit", work / "shelf", "--model", bundle, "--out", label_set],
    ]
    for words in commands:
        subprocess.run([*pocketclip, *words], check=True, stdout=subprocess.DEVNULL)
    return Setting(bundle, library, label_set)


def start(stack: ExitStack, setting: Setting, work: Path, name: str) -> tuple[Server, int]:
    """Start a server; return it and immich's port."""
    port, immich = free_port(), free_port()
    command = ours(
        setting.bundle, port, "--library", setting.library, "--label-set", setting.label_set,
        "--immich", str(immich), "--backend", "onnxruntime",
    )  # fmt: skip
    return stack.enter_context(running(command, port, "/readyz", work / f"{name}.log")), immich


def open_world(setting: Setting) -> cases.World:
    """Open here what the server has."""
    library = Library.open(setting.library)
    shelf = sorted((setting.library.parent / "shelf").rglob("*.jpg"))
    return cases.World(
        load(setting.bundle, backend="onnxruntime"), library, read_label_set(setting.label_set),
        [path.read_bytes() for path in shelf],
    )  # fmt: skip


async def mixed(
    server: Server, immich: int, world: cases.World, requests: int, seed: int = 0
) -> dict[str, Any]:
    """Send mixed requests; return what came of them."""
    tally = Tally()
    numbers = iter(range(requests))
    makers = [maker for maker, _ in cases.GOOD.values()]
    weights = [weight for _, weight in cases.GOOD.values()]
    bad = random.Random(seed).sample(range(requests), k=3 * max(1, int(FAULTS * requests)))
    fates = dict(zip(bad, ["malformed", "oversized", "aborted"] * len(bad), strict=False))

    async def client() -> None:
        ours, theirs = Client(server.port), Client(immich)
        for number in numbers:
            chance = random.Random(f"{seed} {number}")
            fate = fates.get(number)
            if fate == "malformed":
                case = faults.malformed(world, chance, number)
            elif fate == "oversized":
                case = faults.oversized(world, chance, number)
            else:
                [maker] = chance.choices(makers, weights)
                case = maker(world, chance, number)
            connection = theirs if case.immich else ours
            if fate == "aborted":
                await abort(immich if case.immich else server.port, case, chance)
                tally.aborted += 1
            else:
                await ask(connection, case, tally)
            if number % max(1, requests // 100) == 0:
                cached = await asyncio.to_thread(
                    scenarios.metric, server, "pocketclip_text_cache_bytes"
                )
                tally.megabytes.append(server.megabytes() - cached / 1e6)
        ours.close()
        theirs.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    seconds = time.perf_counter() - begin
    answered = sum(tally.statuses.values())
    if answered + tally.aborted != requests:
        tally.note(f"{requests - answered - tally.aborted} requests were lost")
    if (waiting := await scenarios.settled(server)) != 0:
        tally.note(f"{waiting} inputs still wait at the end")
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(tally.statuses.items())),
        "aborted": tally.aborted,
        "compared_with_the_library": tally.checked,
        "wrong": tally.wrong[:20],
        **memory(tally.megabytes),
    }


async def ask(connection: Client, case: cases.Case, tally: Tally) -> None:
    """Send a request, and check what comes back."""
    try:
        answer = await connection.ask(case.raw, 90)
    except TimeoutError:
        tally.statuses["none"] += 1
        tally.note(f"{case.name}: no answer")
        return
    tally.statuses[str(answer.status)] += 1
    if answer.status != case.status:
        tally.note(
            f"{case.name}: {answer.status}, not {case.status}: {answer.headers} "
            f"{answer.body[:200]!r}"
        )
    elif case.check is not None:
        try:
            case.check(answer)
            tally.checked += 1
        except (cases.WrongAnswerError, KeyError, TypeError, ValueError) as error:
            tally.note(f"{case.name}: {error!r}")


async def abort(port: int, case: cases.Case, chance: random.Random) -> None:
    """Send all or a part of a request, and leave at once or a moment later."""
    connection = Client(port)
    _, writer = await connection.connect()
    part = chance.choice([1.0, 1.0, 0.5])
    writer.write(case.raw[: int(part * len(case.raw))])
    await asyncio.sleep(chance.choice([0, 0.002, 0.02]))
    if chance.random() < 0.5:
        writer.transport.abort()  # a reset, where `close` is an orderly end
    connection.close()


def memory(megabytes: list[float]) -> dict[str, Any]:
    """Return how the server's memory grew: the last fifth of the samples over the second."""
    fifth = max(1, len(megabytes) // 5)
    early = statistics.median(megabytes[fifth : 2 * fifth] or megabytes)
    late = statistics.median(megabytes[-fifth:])
    return {
        "megabytes": [round(one, 1) for one in megabytes[:: max(1, len(megabytes) // 10)]],
        "growth": round(late / early - 1, 4),
    }


def measure(
    setting: Setting, work: Path, parts: list[str], *, requests: int, load: float
) -> dict[str, Any]:
    """Run parts, each with a server of its own; return what came of them.

    Args:
        setting: what the server has.
        work: for logs.
        parts: their names.
        requests: of the part `mixed`; `languages` sends as many.
        load: seconds of load before and after a signal.
    """
    world = open_world(setting)
    results: dict[str, Any] = {}
    for part in parts:
        with ExitStack() as stack:
            server, immich = start(stack, setting, work, part)
            work_of_part: Awaitable[dict[str, Any]]
            if part == "mixed":
                work_of_part = mixed(server, immich, world, requests)
            elif part == "languages":
                work_of_part = scenarios.languages(server, immich, requests)
            else:
                work_of_part = scenarios.PARTS[part](server, world, load)
            results[part] = asyncio.run(_result(work_of_part))
            if part == "languages":
                results[part] |= memory(results[part].pop("samples"))
        print(part, json.dumps(results[part], indent=1), file=sys.stderr)
    return results


async def _result(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    result = await work
    await asyncio.sleep(0.1)  # connections that were closed are gone then
    return result


PARTS = ["mixed", "languages", *scenarios.PARTS]


def main() -> None:
    """Run the requested parts; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", type=Path, help="a bundle; by default `tiny`, random weights")
    parser.add_argument("--photos", type=Path, required=True, help="a folder with JPEGs")
    parser.add_argument("--photographs", type=int, default=60, help="how many of them")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--load", type=float, default=5, help="seconds before and after a signal")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = options.model
        if bundle is None:
            bundle = work / "model"
            words = ["export", "random:tiny", "--format", "onnx", "--out", str(bundle)]
            subprocess.run([sys.executable, "-m", "pocketclip", *words], check=True)
        found = sorted(options.photos.rglob("*.jpg"))
        chosen = random.Random(0).sample(found, min(options.photographs, len(found)))
        setting = prepare(bundle, chosen, work)
        results = measure(
            setting, work, options.parts, requests=options.requests, load=options.load
        )
    print(json.dumps({"benchmark": "serve_soak", **results}))
    if any(result["wrong"] for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
