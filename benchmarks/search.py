"""Time `pocketclip index` and `search`, beside rclip where there is one.

    python benchmarks/search.py --photos ../shared/data/grocery
    python benchmarks/search.py --parts shell status --rclip rclip-env/bin/python

| part | measures |
|---|---|
| `index` | photographs per second: `Library.index` with and without thumbnails, `encode_stream` |
| | over the same files, rclip; and the size of the thumbnails |
| `vectors` | a search warm in a process, over 10,000, 100,000 and a million generated vectors |
| `shell` | `pocketclip search` as a command, its time and memory, over as many vectors |
| `status` | `index --status` of 200,000 files |
| `unchanged` | `index` of 100,000 files when none has changed |

Repetitions of what is compared take turns, and medians are reported. rclip runs in an environment
of its own, see `search_peer.py`, with our towers. The files of `status` and `unchanged` hold eight
bytes each, and are on the file system of `--work`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import search_data
import search_vectors
from pocketclip.infer.encoder import Encoder
from pocketclip.search import Library
from pocketclip.search.store.file_systems import file_system_of

PARTS = ["index", "vectors", "shell", "status", "unchanged"]
STATUS_FILES, UNCHANGED_FILES = 200_000, 100_000
QUERY = "a red car in the snow"
LAUNCHER = """
import json, os, sys, time
begin = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as stream:
    json.dump([time.perf_counter() - begin, usage.ru_maxrss / 1024], stream)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process starts with the peak memory of the one that starts it; this one is small."""
PEER = Path(__file__).with_name("search_peer.py")


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended: its time, and the most memory it had."""

    seconds: float
    megabytes: float


@dataclass(slots=True)
class Bench:
    """What all parts need."""

    work: Path
    bundle: Path
    photos: Path | None
    rclip: str | None
    repeat: int
    counts: Sequence[int]
    count: int
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data = self.work / "data"
        self.data.mkdir()

    def run(
        self,
        command: Sequence[str | Path],
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Ran:
        """Run a command to its end."""
        data = {"RCLIP_DATADIR": str(self.data), "POCKETCLIP_DATA": str(self.data)}
        usage = self.work / "usage"
        done = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCHER, str(usage), *(str(word) for word in command)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            cwd=cwd or self.work, env={**os.environ, **data, **(environ or {})},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}")
        return Ran(*json.loads(usage.read_text()))

    def ours(self, *words: str | Path) -> list[str | Path]:
        """Return a command of the command line."""
        return [sys.executable, "-m", "pocketclip", *words]

    def peer(self, *words: str | Path) -> list[str | Path]:
        """Return a command for rclip with our towers."""
        assert self.rclip is not None
        return [self.rclip, PEER, self.bundle, *words]

    def take_turns(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """Call the functions in turn, `repeat` times."""
        results: dict[str, list[Any]] = {name: [] for name in runs}
        for turn in range(self.repeat):
            # Backwards every other time: what changes during a turn does not favour one of them.
            for name in list(runs)[:: -1 if turn % 2 else 1]:
                results[name].append(runs[name]())
        return results


def index_rates(bench: Bench) -> dict[str, Any]:
    """Compare photographs per second on small photographs and on those of a camera."""
    assert bench.photos is not None, "the part `index` needs --photos"
    encoder = Encoder(str(bench.bundle))
    encoder.preload("image")
    sets = {
        "small": search_data.copy_photographs(bench.photos, bench.work / "small", bench.count),
        "12 megapixels": search_data.camera_photographs(
            bench.photos, bench.work / "camera", max(8, bench.count // 4)
        ),
    }
    return {name: _rates(bench, encoder, paths) for name, paths in sets.items()}


def _rates(bench: Bench, encoder: Encoder, paths: list[Path]) -> dict[str, Any]:
    folder, number, kept = paths[0].parent, 0, dict[str, float]()

    def stream() -> float:
        begin = time.perf_counter()
        for _ in encoder.encode_stream([str(path) for path in paths]):
            pass
        return time.perf_counter() - begin

    def index(*, thumbnails: bool = True) -> float:
        nonlocal number
        number += 1
        with Library.open(bench.work / f"{folder.name}{number}.sqlite", create=True) as library:
            begin = time.perf_counter()
            report = library.index([folder], encoder=encoder, thumbnails=thumbnails)
            seconds = time.perf_counter() - begin
            derived = library.location.derived
        if thumbnails:
            sizes = [path.stat().st_size for path in derived.rglob("*.jpg")]
            kept["thumbnail_megabytes_per_1000"] = round(sum(sizes) / len(sizes) / 1000, 2)
        assert report.encoded == len(paths), report
        return seconds

    def rclip() -> float:
        nonlocal number
        number += 1
        data, timing = bench.data, bench.work / "timing.json"
        bench.data = bench.work / f"rclip{folder.name}{number}"
        bench.run(bench.peer("--timing", timing, "--", QUERY), cwd=folder)
        bench.data = data
        return float(json.loads(timing.read_text())["index"])

    runs: dict[str, Callable[[], Any]] = {
        "encode_stream": stream,
        "index": index,
        "index_without_thumbnails": partial(index, thumbnails=False),
    }
    if bench.rclip:
        runs["rclip"] = rclip
    stream()  # the files are in memory now, and the runtime has its buffers
    seconds = {name: statistics.median(times) for name, times in bench.take_turns(runs).items()}
    rates = {name: round(len(paths) / value, 2) for name, value in seconds.items()}
    return {
        "photographs": len(paths),
        "per_second": rates,
        "index_over_encode_stream": round(seconds["encode_stream"] / seconds["index"], 3),
        "with_thumbnails_over_without": round(
            seconds["index_without_thumbnails"] / seconds["index"], 3
        ),
        **kept,
        **(
            {"index_over_rclip": round(seconds["rclip"] / seconds["index"], 3)}
            if bench.rclip
            else {}
        ),
    }


def shell(bench: Bench) -> dict[str, Any]:
    """Measure a search as a command: cold start, text tower and all."""
    encoder = Encoder(str(bench.bundle))
    results = {}
    for count in bench.counts:
        file, tree = bench.work / f"shell{count}.sqlite", bench.work / f"shell{count}"
        search_data.tree_of_links(tree, count)  # a search looks whether its hits are there
        search_data.write_library(file, count, encoder, root=tree)
        search = bench.ours("search", QUERY, "--library", file, "--json", "--min-score", "-1")
        first = bench.run(search)  # makes the matrix
        runs = {"pocketclip": partial(bench.run, search)}
        if find_spec("numkong") is not None:
            (bench.work / "numkong.py").write_text("raise ImportError")
            runs["pocketclip_without_numkong"] = partial(
                bench.run, search, {"PYTHONPATH": os.pathsep.join([str(bench.work), *sys.path])}
            )
        if bench.rclip:
            bench.run(bench.peer("--fill"), cwd=tree)
            runs["rclip"] = partial(bench.run, bench.peer("--", "-n", QUERY), cwd=tree)
        ran = bench.take_turns(runs)
        results[str(count)] = {
            "first_seconds": round(first.seconds, 2),
            **{
                name: {
                    "seconds": round(statistics.median(run.seconds for run in several), 3),
                    "megabytes": round(max(run.megabytes for run in several)),
                }
                for name, several in ran.items()
            },
        }
        print(count, results[str(count)], file=sys.stderr)
        file.unlink()
        shutil.rmtree(tree)
    return results


def status(bench: Bench) -> dict[str, Any]:
    """Measure `index --status` of many files, all known, and with some new ones."""
    return _tree(bench, "status", STATUS_FILES, ["--status"])


def unchanged(bench: Bench) -> dict[str, Any]:
    """Measure `index` when nothing has changed."""
    return _tree(bench, "unchanged", UNCHANGED_FILES, [])


def _tree(bench: Bench, name: str, count: int, options: list[str]) -> dict[str, Any]:
    tree, file = bench.work / name, bench.work / f"{name}.sqlite"
    search_data.tree_of_files(tree, count)
    search_data.write_library(file, count, Encoder(str(bench.bundle)), root=tree, as_on_disk=True)
    index = bench.ours("index", tree, "--library", file, *options)
    runs = {"pocketclip": lambda: bench.run(index)}
    if bench.rclip and not options:
        bench.run(bench.peer("--fill"), cwd=tree)
        # It searches as well: it has no command that only looks for changes.
        runs["rclip"] = lambda: bench.run(bench.peer("--", QUERY), cwd=tree)
    ran = bench.take_turns(runs)
    return {
        "files": count,
        "file_system": file_system_of(tree),
        **{
            f"{who}_seconds": round(statistics.median(run.seconds for run in several), 2)
            for who, several in ran.items()
        },
        "megabytes": round(max(run.megabytes for run in ran["pocketclip"])),
    }


def main() -> None:
    """Measure the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", type=Path, help="a bundle; by default S0 with random weights")
    parser.add_argument("--photos", type=Path, help="a folder with JPEGs, for the part `index`")
    parser.add_argument("--photographs", type=int, default=200, help="how many of them")
    parser.add_argument("--rclip", help="Python of an environment with rclip and pocketclip")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", type=Path, help="where temporary files are written")
    options = parser.parse_args()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        bundle = options.model
        if bundle is None:
            bundle = work / "model"
            words = ["export", "random:mobileclip2-s0", "--format", "onnx", "--out", str(bundle)]
            subprocess.run([sys.executable, "-m", "pocketclip", *words], check=True)
        bench = Bench(
            work, bundle.resolve(), options.photos, options.rclip, options.repeat, options.vectors,
            options.photographs,
        )  # fmt: skip
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "index": lambda: index_rates(bench),
            "vectors": lambda: search_vectors.measure(work, options.vectors, options.repeat),
            "shell": lambda: shell(bench),
            "status": lambda: status(bench),
            "unchanged": lambda: unchanged(bench),
        }
        result: dict[str, Any] = {"benchmark": "search", "cores": os.cpu_count()}
        for part in options.parts:
            result[part] = parts[part]()
            print(part, json.dumps(result[part], indent=1), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
