"""What the experiments share: their settings, their runs, and the command line.

A run is one student trained on one set with one share of distillation, lambda, from one seed. Its
scores are appended to `OUT/results.jsonl`, and the rank of every test image to `OUT/ranks/`, from
which the intervals are computed. Runs that are there are not repeated, also those of another
experiment with equal settings, so each command can be stopped and started again. Two commands can
run at the same time with different `--seeds` or `--sets`.

Shapes: M test images, G images for retrieval, T texts, E embedding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch

import numpy as np

import experiment_sets
from experiment_figure import figure
from experiment_report import report, summary
from learning_student import COMMON, Set, embedded, recipe_for, results, train_student
from pocketclip.errors import PocketclipError
from pocketclip.evaluate.classifier import build_classifier
from pocketclip.infer.encoder import Encoder
from pocketclip.storage.local import write_whole

LAMBDAS = (0.5, 0.75, 1.0)
SAMPLES = {"groceries": 40_960, "scenes": 20_480}
MOST_SAMPLES = 40_960
VERSION = 1
"""To be raised when equal settings give another run, as by other sets or another order."""
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the things that an experiment compares."""

    name: str
    reinforcement: str = "given"
    """Of the set: `given`, `weak` or `strong`."""
    captions: str = "both"
    """`data.captions` of the train recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A question, what the papers found, and the runs that answer it here."""

    name: str
    title: str
    question: str
    papers: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training."""

    world: str
    arm: Arm
    share: float
    """Lambda, the weight of distillation; CLIP's loss has the rest."""
    seed: int
    samples: int

    def changes(self) -> dict[str, Any]:
        """Return the changes to the student's recipe."""
        return {
            "loss.weights": (round(1 - self.share, 6), self.share),
            "data.captions": self.arm.captions,
        }

    def identity(self) -> str:
        """Return a name that changes with all settings, and not with the arm's name."""
        settings = {
            "version": VERSION,
            "recipe": {**COMMON, **self.changes()}, "reinforcement": self.arm.reinforcement,
            "world": self.world, "seed": self.seed, "samples": self.samples,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def measure(photos: Set, encoder: Encoder) -> Arrays:
    """Return the ranks of a student, 1 the best; a tie counts against it.

    Returns:
        `class`: of each test image's class, (M,). `text`: of each image's own description among
        the different ones, (G,). `image`: of the first image with this description, (T,).
        `precision`: the average precision of each description's images, (T,).
    """
    assert photos.described is not None
    classifier = build_classifier(encoder, photos.classes, photos.templates)  # (C, E)
    texts = encoder.encode_text(list(photos.descriptions))  # (T, E)
    rows = np.concatenate(list(embedded(photos.held_out, encoder)))  # (M, E)
    gallery = rows
    if photos.gallery is not None:
        gallery = np.concatenate(list(embedded(photos.gallery, encoder)))  # (G, E)
    similar = gallery @ texts.T  # (G, T)
    right = photos.described[:, None] == np.arange(len(texts))  # (G, T)
    first, precision = zip(
        *(_found(column, own) for column, own in zip(similar.T, right.T, strict=True)), strict=True
    )
    return {
        "class": _rank(rows @ classifier.T, photos.labels),
        "text": _rank(similar, photos.described),
        "image": np.array(first),
        "precision": np.array(precision),
    }


def _rank(scores: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the rank of one column per row, 1 the best."""
    ranks: np.ndarray[Any, Any] = (scores >= scores[np.arange(len(scores)), columns][:, None]).sum(
        1
    )
    return ranks


def _found(
    scores: np.ndarray[Any, Any], right: np.ndarray[Any, np.dtype[np.bool_]]
) -> tuple[int, float]:
    """Return the rank of the first right image, and the average precision; wrong ones first."""
    order = np.lexsort((right, -scores))  # of equal scores the wrong ones come first
    places = np.flatnonzero(right[order]) + 1
    return int(places[0]), float((np.arange(1, len(places) + 1) / places).mean())


def scores_of(ranks: Arrays) -> dict[str, float]:
    """Return the scores in percent; `retrieval` is the mean of both directions' recall at 1."""
    first = {name: 100 * float((ranks[name] == 1).mean()) for name in ("class", "text", "image")}
    return {
        "classification": first["class"],
        "retrieval": (first["text"] + first["image"]) / 2,
        "image to text": first["text"],
        "text to image": first["image"],
        "precision": 100 * float(ranks["precision"].mean()),
    }


def do(run: Run, photos: Set, out: Path) -> dict[str, Any]:
    """Train once, keep the ranks, and append the scores to the results; return the record."""
    begun = time.process_time()
    recipe = recipe_for(run.samples, run.seed, run.changes())
    model, loss = train_student(photos, recipe)
    ranks = measure(photos, Encoder(model))
    write_ranks(ranks_file(out, run), ranks)
    record = {
        "run": run.identity(), "world": run.world, "reinforcement": run.arm.reinforcement,
        "captions": run.arm.captions, "lambda": run.share, "seed": run.seed,
        "samples": run.samples, **scores_of(ranks), "loss": loss,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip
    with (out / "results.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    return record


def write_ranks(file: Path, ranks: Arrays) -> None:
    """Write the ranks of a student, whole or not at all."""
    with write_whole(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **ranks)  # type: ignore[arg-type]  # no name is allow_pickle


def read_ranks(file: Path) -> Arrays:
    """Return what `write_ranks` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def ranks_file(out: Path, run: Run) -> Path:
    """Return where the ranks of a run are kept."""
    return out / "ranks" / f"{run.identity()}.npz"


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of an experiment, write its report, and print a line of JSON."""
    args = _parse(experiment, arguments)
    runs = [
        Run(world=world, arm=arm, share=share, seed=seed, samples=args.samples or SAMPLES[world])
        for seed in args.seeds
        for world in args.sets
        for share in args.lambdas
        for arm in experiment.arms
    ]
    (args.out / "ranks").mkdir(parents=True, exist_ok=True)
    try:
        _run_all(runs, args)
    except PocketclipError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    done = _finished(runs, args.out)
    write_texts(
        {
            args.report or args.out / f"{experiment.name}.md": report(experiment, done),
            args.figure or args.out / f"{experiment.name}.svg": figure(experiment, done),
        }
    )
    print(json.dumps(summary(experiment, done)))


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write each text to its path and say so."""
    for path, text in texts.items():
        with write_whole(path) as temporary:
            temporary.write_text(text, "utf-8")
        print(f"wrote {path}", flush=True)


def _run_all(runs: Sequence[Run], args: argparse.Namespace) -> None:
    sets: dict[tuple[str, str], Set] = {}
    for number, run in enumerate(runs, start=1):
        if _finished([run], args.out):
            continue
        key = run.world, run.arm.reinforcement
        if key not in sets:
            sets[key] = experiment_sets.load_set(*key, args.data, args.out)
        if args.prepare:
            continue
        what = f"{run.world}, {run.arm.name}, lambda {run.share:g}, seed {run.seed}"
        print(f"{number} of {len(runs)}: {what} ...", flush=True)
        record = do(run, sets[key], args.out)
        found = f"top-1 {record['classification']:.1f} %, recall {record['retrieval']:.1f} %"
        print(f"  {found}, {record['cpu_seconds']:.0f} s of processor time", flush=True)


def _finished(runs: Sequence[Run], out: Path) -> dict[Run, Arrays]:
    """Return the ranks of the runs that are done."""
    recorded = {record["run"] for record in results(out / "results.jsonl")}
    done = {}
    for run in runs:
        file = ranks_file(out, run)
        if run.identity() in recorded and file.exists():
            done[run] = read_ranks(file)
    return done


def _parse(experiment: Experiment, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"{experiment.title}: {experiment.question}")
    parser.add_argument("--data", type=Path, default=Path(), help="holds grocery/ and grocery-dr/")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), metavar="RUNS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--samples", type=int, metavar="N",
        help=f"seen by each student, at most {MOST_SAMPLES:,} (default: "
        f"{', '.join(f'{count:,} of {world}' for world, count in SAMPLES.items())})",
    )  # fmt: skip
    parser.add_argument(
        "--lambdas", type=float, nargs="+", default=list(LAMBDAS),
        help="shares of distillation in the loss; CLIP's loss has the rest",
    )  # fmt: skip
    parser.add_argument(
        "--sets", nargs="+", choices=experiment_sets.WORLDS, default=list(experiment_sets.WORLDS)
    )
    parser.add_argument("--prepare", action="store_true", help="only make the sets")
    parser.add_argument("--report", type=Path, help="default: RUNS/NAME.md")
    parser.add_argument("--figure", type=Path, help="default: RUNS/NAME.svg")
    args = parser.parse_args(arguments)
    if args.samples is not None and not 1 <= args.samples <= MOST_SAMPLES:
        parser.error(f"--samples is {args.samples}; it must be from 1 to {MOST_SAMPLES}")
    if any(not 0 < share <= 1 for share in args.lambdas):
        parser.error("--lambdas: each must be above 0 and at most 1")
    for name in ("grocery/pairs.csv", "grocery-dr") if "groceries" in args.sets else ():
        if not (args.data / name).exists():
            parser.error(f"--data: {args.data / name} does not exist; --sets scenes needs no data")
    return args
