"""Measure what a dataset of 100,000 shards costs before and beside the work: time and memory.

    python benchmarks/scale.py                    # 100,000 shards of 13,000 samples: 1.3 billion
    python benchmarks/scale.py --quick            # 1,000 shards of 200 samples

The dataset is simulated: each shard is a hard link of one of a few real ones, its index lists them
all, and so do the reports of a reinforcement. What is slow or large depends on the number of
files and samples, not on their contents. Each figure is that of a fresh process. `mb` is the memory
that the work added to the process at its peak. Stores are simulated too: a file system that counts
requests, so that figures of a store are numbers of requests. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SEED_SHARDS = 4
"""Real shards that the others are links of: some file systems allow 65,000 links of a file."""
VIEWS, CAPTIONS, DIMS = 2, 2, (16, 16)
AIMS = {"source_s": 30.0, "source_mb": 1000.0, "resume_s": 60.0}


def main() -> None:
    """Build the simulated dataset, measure each part in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=13_000, help="per shard")
    parser.add_argument("--world", type=int, default=256, help="ranks that share an epoch")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the simulated dataset here")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts only")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.shards, args.samples, args.world = 1_000, 200, 4
    if args.part:
        print(json.dumps(PARTS[args.part](str(args.folder), args)))
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        folder = args.folder or Path(temporary) / "dr"
        if not (folder / "index.json").exists():
            simulate(folder, args.shards, args.samples)
        result: dict[str, Any] = {
            "benchmark": "scale", "shards": args.shards, "samples_per_shard": args.samples,
            "world": args.world,
        }  # fmt: skip
        for part in args.only or PARTS:
            result |= _in_process(part, folder, args)
    for key, value in result.items():
        print(f"{key:28} {value}")
    result["aims"] = AIMS
    result["held"] = {k: result[k] <= aim for k, aim in AIMS.items() if k in result}
    print(json.dumps(result))


def _in_process(part: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    for name in ("shards", "samples", "world"):
        command += [f"--{name}", str(getattr(args, name))]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(lines.splitlines()[-1]))


def simulate(folder: Path, shards: int, samples: int) -> None:
    """Make a reinforced folder of `shards` shards, with index and reports, of a few real ones."""
    from pocketclip.augment import Augmentation
    from pocketclip.reinforce.recipe import digest
    from pocketclip.reinforce.resume import RECIPE, Report, write_json
    from pocketclip.shards import Index, ShardWriter, write_index

    folder.mkdir(parents=True)
    config = {"random_resized_crop": {"size": 32}, "rand_augment": {"p": 1.0}}
    augmentation = Augmentation.from_config(config)
    real = []
    for k in range(min(SEED_SHARDS, shards)):
        path = folder / f"{k:08d}.tar"
        with ShardWriter(str(path), dtype="float16", teacher_dims=DIMS) as writer:
            for sample in _samples(augmentation, k, samples):
                writer.write(sample)
        real.append(writer.stats)
    teachers = [{"name": n, "embed_dim": d, "logit_scale": 100.0, "space_id": n}
                for n, d in zip("ab", DIMS, strict=True)]  # fmt: skip
    facts = {"teachers": teachers, "captioners": [], "augmentation": augmentation.config,
             "format": "tar"}  # fmt: skip
    write_json(str(folder / RECIPE), facts)
    index = Index(teachers=teachers, augmentation=augmentation.config, config_hash=digest(facts))
    for number in range(shards):
        stats = dataclasses.replace(real[number % len(real)], name=f"{number:08d}.tar")
        if number >= len(real):
            os.link(folder / real[number % len(real)].name, folder / stats.name)
        report = Report(
            name=f"{number:08d}", fingerprint="f" * 64, config_hash=index.config_hash or "",
            samples=samples, bad=0, captions_cut=0, stats=dataclasses.asdict(stats),
        )  # fmt: skip
        # As `write_report` does, without flushing each file to the disk.
        text = json.dumps(dataclasses.asdict(report), indent=1)
        (folder / f"{number:08d}.report.json").write_text(text + "\n", "utf-8")
        index.add([stats])
    write_index(str(folder), index)


def _samples(augmentation: Any, shard: int, count: int) -> Iterator[Any]:
    from pocketclip.augment import rng_for
    from pocketclip.types import Sample

    noise = np.random.default_rng(shard)
    buffer = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).resize((40, 32)).save(
        buffer, "JPEG"
    )

    def unit(rows: int) -> Any:
        parts = [noise.standard_normal((rows, d)).astype(np.float32) for d in DIMS]
        return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], 1)

    for number in range(count):
        uid = f"{shard:08d}{number:08d}"
        drawn = [augmentation.draw(rng_for(0, uid, i), (40, 32)) for i in range(VIEWS)]
        rows = {"image_emb": VIEWS, "text_emb": 1, "syn_text_emb": CAPTIONS}
        yield Sample(
            uid=uid,
            image=buffer.getvalue(),
            captions={"text": [uid], "syn_text": [f"a photo {i}" for i in range(CAPTIONS)]},
            param_aug=[augmentation.pack(params) for params in drawn],
            embeddings={key: unit(count) for key, count in rows.items()},
        )


def _peak() -> float:
    """Return the most memory that this process has had so far, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # `ru_maxrss` begins with that of the process that started this one.
    lines = status.read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Timer:
    """Collects seconds and megabytes of named steps."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; keep its seconds and the memory that it added at its peak."""
        before, begun, cpu = _peak(), time.perf_counter(), time.process_time()
        value = work()
        self.facts[f"{name}_s"] = round(time.perf_counter() - begun, 3)
        self.facts[f"{name}_cpu_s"] = round(time.process_time() - cpu, 3)
        self.facts[f"{name}_mb"] = round(_peak() - before, 1)
        return value


def listing(folder: str, _: argparse.Namespace) -> dict[str, Any]:
    """Measure listing a local folder: names alone, and with sizes."""
    from pocketclip import storage

    timer = Timer()
    timer.run("list_files", lambda: storage.list_files(folder, (".tar",)))
    timer.run("list_sizes", lambda: storage.list_sizes(folder, (".tar",)))
    timer.run("expand", lambda: storage.expand(f"{folder}/*.tar"))
    return timer.facts


def index(folder: str, _: argparse.Namespace) -> dict[str, Any]:
    """Measure reading and writing an index."""
    from pocketclip import shards

    timer = Timer()
    size = Path(folder, "index.json").stat().st_size
    read = timer.run("index_read", lambda: shards.read_index(folder))
    with tempfile.TemporaryDirectory() as other:
        timer.run("index_write", lambda: shards.write_index(other, read))
        written = Path(other, "index.json").stat().st_size
    return {"index_bytes": size, "index_written_bytes": written, **timer.facts}


def pairs(folder: str, _: argparse.Namespace) -> dict[str, Any]:
    """Measure opening the shards as pairs, as a reinforcement does with raw tars."""
    from pocketclip.pairs import open_pairs

    timer = Timer()
    timer.run("pairs", lambda: open_pairs(folder))
    return timer.facts


def source(folder: str, _: argparse.Namespace) -> dict[str, Any]:
    """Measure opening the shards for training, and what a started worker process is sent."""
    from pocketclip.pairs import PairOptions
    from pocketclip.train.sources import open_source

    timer = Timer()
    opened = timer.run(
        "source",
        lambda: open_source(folder, reinforced=True, options=PairOptions(), cache_dir=None),
    )
    timer.facts["source_sent_mb"] = round(len(pickle.dumps(opened)) / 1e6, 1)
    opened.close()
    return timer.facts


def order(_: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the order of samples, per position of a batch too."""
    from pocketclip.train.order import Order

    sizes = [args.samples] * args.shards
    timer = Timer()
    made = timer.run("order", lambda: Order(sizes, seed=0, rank=1, world_size=args.world))
    timer.run("order_first", lambda: made.at(0))
    count = min(made.per_rank, 200_000)
    timer.run("order_walk", lambda: [made.at(k) for k in range(count)])
    timer.facts["order_us_per_position"] = round(timer.facts["order_walk_s"] / count * 1e6, 2)
    timer.facts["order_sent_mb"] = round(len(pickle.dumps(made)) / 1e6, 1)
    shards = len({made.at(k).shard for k in made.window(0)})
    return {**timer.facts, "order_window_shards": shards}


def loader(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the start of training up to its first batch, with two worker processes."""
    from pocketclip import zoo
    from pocketclip.train.loader import DataConfig, Loader

    timer = Timer()
    model = zoo.override(zoo.entry("tiny").config, image_size=32)

    def start() -> tuple[Any, Any]:
        made = Loader(DataConfig(source=folder), model=model, batch_size=32, seed=0, rank=1,
                      world_size=args.world, workers=2)  # fmt: skip
        batches = made.batches()
        next(batches)
        return made, batches

    made, batches = timer.run("loader", start)
    for _ in range(20):
        next(batches)
    timer.facts["loader_workers_mb"] = [round(mb, 1) for mb in _private_of_children()]
    scans = list(made._source._scans.glob("*.npy"))
    sizes = sum(file.stat().st_size for file in scans)
    timer.facts["scan_bytes_per_sample"] = round(sizes / (len(scans) * args.samples), 2)
    batches.close()
    made.close()
    return timer.facts


def _private_of_children() -> Iterator[float]:
    """Yield the memory of each child process that it does not share, in MB."""
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        yield sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def resume(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the start of a reinforcement whose shards are all finished, and its index."""
    from pocketclip.pairs import PairOptions
    from pocketclip.pairs.tars import TarShard
    from pocketclip.reinforce.resume import RECIPE, Limit, resume, write_set_index

    facts = json.loads(Path(folder, RECIPE).read_text("utf-8"))
    options = PairOptions()
    inputs = [
        TarShard(name=f"{k:08d}", fingerprint="f" * 64, size=None, path=f"{k}.tar", options=options)
        for k in range(args.shards)
    ]
    timer = Timer()
    finished, pending = timer.run(
        "resume", lambda: resume(inputs, facts, folder, Limit(), lambda *_: None)
    )
    assert not pending
    timer.run("set_index", lambda: write_set_index(folder, facts, finished))
    return timer.facts


PARTS: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    function.__name__: function
    for function in (listing, index, pairs, source, order, loader, resume)
}

if __name__ == "__main__":
    main()
