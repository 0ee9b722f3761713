"""Measure exact search over generated vectors: time and memory, by engine.

    python benchmarks/search_vectors.py --counts 10000 100000 1000000
    python benchmarks/search_vectors.py --counts 1000000 --engines numkong --folder /tmp/vectors

Per count, a library of 512-d vectors around 1,000 directions is filled, or taken from `--folder` if
an earlier run left it there. Per engine, in a process of its own: the seconds to write the matrix;
the time to open it; the first search of a process; the searches after it, of other queries; those
with filters that leave a tenth and a hundredth; and the largest memory of the process, mapped pages
counted, beside that of Python with numpy alone. The best 50 must be those of a plain product in
float64. `usearch` is usearch's own exact search over the same float16 vectors, where it is
installed. The last line is JSON; times are in ms.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.devices import is_installed
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate
from pocketclip.search.vectors.engines import search_matrix
from pocketclip.search.vectors.kernels import DTYPES, NUMKONG
from pocketclip.search.vectors.matrix import Matrix, open_matrix, remove_matrix
from vector_libraries import generate_vectors, make_library

CLUSTERS = 1000
TOP = 50


def measure(
    folder: Path, counts: Sequence[int], repeat: int, engines: Sequence[str] = tuple(DTYPES)
) -> dict[str, Any]:
    """Return the measurements by count and engine, as JSON values.

    Args:
        folder: where the libraries are, and stay.
        counts: numbers of vectors.
        repeat: the number of searches that are timed.
        engines: those of `kernels.DTYPES`, and `usearch`.
    """
    results: dict[str, Any] = {}
    for count in counts:
        file = folder / f"vectors-{count}.sqlite"
        if not file.exists():
            make_library(file, count, clusters=CLUSTERS).close()
        results[str(count)] = {
            engine: _in_own_process(file, engine, repeat)
            for engine in engines
            if is_installed(engine)
        }
        for engine, found in results[str(count)].items():
            print(f"{count:>9,} {engine:8} {found}", flush=True)
    return results


def _in_own_process(file: Path, engine: str, repeat: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in ("write", "search"):
        command = [sys.executable, __file__, "--one", step, str(file), engine, str(repeat)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def _write(file: Path, engine: str) -> dict[str, Any]:
    """Write the matrix of an engine in this process."""
    database = Database.open(locate(file))
    remove_matrix(database.location)
    begun = time.perf_counter()
    open_matrix(database, NUMKONG if engine == "usearch" else engine)
    return {"write_s": round(time.perf_counter() - begun, 2), "write_peak_mb": _peak_mb()}


def _search(file: Path, engine: str, repeat: int) -> dict[str, Any]:
    """Search with an engine in this process."""
    alone = _peak_mb()
    database = Database.open(locate(file))
    queries = generate_vectors(repeat, seed=1, clusters=CLUSTERS).astype(np.float32)
    if engine == "usearch":
        matrix = open_matrix(database, NUMKONG)
        return {**_usearch(matrix, queries), "peak_mb": _peak_mb(), "alone_mb": alone}
    found: dict[str, Any] = {}
    open_times, first = [], 0.0
    for number in range(repeat):
        begun = time.perf_counter()
        matrix = open_matrix(database, engine)
        open_times.append(time.perf_counter() - begun)
        if number == 0:
            search_matrix(matrix, queries[0], TOP)
            first = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    chances = {"search": None, "tenth": 0.1, "hundredth": 0.01}
    times: dict[str, list[float]] = {name: [] for name in chances}
    for query in queries:  # in turn: what else runs here disturbs all alike
        for name, chance in chances.items():
            allowed = None if chance is None else rng.random(len(matrix)) < chance
            begun = time.perf_counter()
            search_matrix(open_matrix(database, engine, matrix), query, TOP, allowed)
            times[name].append(time.perf_counter() - begun)
    found |= {"open_ms": _ms(open_times), "first_ms": _ms([first])}
    found |= {f"{name}_ms": _ms(some) for name, some in times.items()}
    found |= {"least_ms": round(1e3 * min(times["search"]), 2)}
    found |= {"peak_mb": _peak_mb(), "alone_mb": alone}
    found["right"] = _is_right(matrix, queries[:3])
    return found


def _usearch(matrix: Matrix, queries: NDArray[np.float32]) -> dict[str, Any]:
    from usearch.index import MetricKind, search  # type: ignore[import-not-found,attr-defined,unused-ignore]

    vectors = matrix.blocks[0].vectors
    run: Callable[[NDArray[np.float32]], Any] = lambda query: search(  # noqa: E731
        vectors, query.astype(np.float16)[None], TOP, MetricKind.IP, exact=True
    )
    run(queries[0])
    times = []
    for query in queries:
        begun = time.perf_counter()
        run(query)
        times.append(time.perf_counter() - begun)
    return {"search_ms": _ms(times), "least_ms": round(1e3 * min(times), 2)}


def _is_right(matrix: Matrix, queries: NDArray[np.float32]) -> bool:
    rows, _ = search_matrix(matrix, queries, TOP)
    exact = np.empty((len(queries), len(matrix)))
    for start in range(0, len(matrix), 10_000):
        part = matrix.vectors(np.arange(start, min(start + 10_000, len(matrix))))
        exact[:, start : start + len(part)] = queries.astype(np.float64) @ part.T.astype(np.float64)
    best = np.argsort(-exact, axis=1, kind="stable")[:, :TOP]
    return bool(np.array_equal(rows, best))


def _ms(seconds: Sequence[float]) -> float:
    return round(1e3 * statistics.median(seconds), 2)


def _peak_mb() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says may be of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 // 10**6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 10**6  # bytes on macOS


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--engines", nargs="+", default=[*DTYPES, "usearch"])
    parser.add_argument("--folder", type=Path, help="where the libraries are kept")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        step, file, engine, repeat = options.one
        if step == "write":
            print(json.dumps(_write(Path(file), engine)))
        else:
            print(json.dumps(_search(Path(file), engine, int(repeat))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = measure(folder, options.counts, options.repeat, options.engines)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
