"""A dense model made sparse, against dense and sparse models of equal budgets.

    python examples/experiments/upcycling.py --data ../shared/data --out runs/upcycling

A vision transformer (the model of the recipe `grocery-vit`) learns the groceries from N samples and
is continued on M more: as it is, or with every other MLP of both towers turned into 8 experts of
which each token uses 2 (sparse upcycling, arXiv 2212.05055; CLIP-UP, arXiv 2502.00965). Models that
learn from all N + M samples in one go stand beside them. All arms of a seed see the same samples,
views and captions in the same order. Every phase warms up for a tenth of its steps, falls to 0 as
half a cosine, and begins with a new optimiser.

Each run is scored several times; scores are appended to `OUT/results.jsonl` and ranks to
`OUT/ranks/`. Runs that are there are not repeated, so the command can be stopped and started again,
and can run twice at the same time with different `--seeds` or `--arms`. `--time` measures one step
of each model, in turn in one process, into `OUT/step-times.json`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn

import pocketclip.nn.text
import pocketclip.nn.vit
from experiment_runs import (
    Arrays,
    measure,
    read_ranks,
    scores_of,
    write_ranks,
    write_texts,
)
from learning_efficiency import prepare
from learning_student import Set, Training, batches, recipe_for, results, train_student
from pocketclip import checkpoint
from pocketclip.errors import PocketclipError
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import moe_layers
from pocketclip.nn.transformer import TransformerBlock, run_blocks, run_blocks_pooled
from pocketclip.nn.upcycle import upcycle
from pocketclip.train.initial_model import initial_model
from pocketclip.train.recipe import Recipe, load_recipe
from upcycling_report import figure, report, summary

FIRST, MORE = 20_480, 10_240  # N and M
VERSION = 1
"""To be raised when equal settings give another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training that is compared."""

    title: str
    model: str = "dense"
    """`dense`, `deeper` (dense, with about the operations per token of the sparse one) or
    `sparse`."""
    continues: bool = False
    """Whether it continues the first phase on M samples; otherwise it begins with random weights
    and sees N + M."""
    rate: float = 1.0
    """Times the learning rate of `grocery-vit`."""
    all_tokens: bool = False
    """Whether the router of a tower's last block sees all tokens in training; otherwise the pooled
    one only, as in the package."""


ARMS = {
    "dense": Arm(title="dense, first phase"),
    "dense-more": Arm(title="dense, continued", continues=True, rate=0.1),
    "upcycled": Arm(title="upcycled", model="sparse", continues=True, rate=0.1),
    "dense-all": Arm(title="dense, in one go"),
    "deeper": Arm(title="deeper dense, in one go", model="deeper"),
    "sparse": Arm(title="sparse from scratch, in one go", model="sparse"),
    "dense-more-fast": Arm(title="dense, continued, rate 1/2", continues=True, rate=0.5),
    "upcycled-fast": Arm(title="upcycled, rate 1/2", model="sparse", continues=True, rate=0.5),
    "upcycled-all-tokens": Arm(
        title="upcycled, last router sees all tokens",
        model="sparse",
        continues=True,
        rate=0.5,
        all_tokens=True,
    ),
}

_MIXTURES = {"blocks": [1, 3], "experts": 8, "top_k": 2}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "deeper": {"image.layers": 5, "text.layers": 5},
    "sparse": {f"{tower}.moe": _MIXTURES for tower in ("image", "text")},
}
"""Changes to the model of `grocery-vit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arm from one seed."""

    name: str
    """A key of `ARMS`."""
    seed: int
    first: int
    """N, samples of the first phase."""
    more: int
    """M, samples after it."""

    @property
    def arm(self) -> Arm:
        """The settings."""
        return ARMS[self.name]

    @property
    def base(self) -> Run:
        """The first phase that this run continues."""
        return Run(name="dense", seed=self.seed, first=self.first, more=self.more)

    @property
    def samples(self) -> int:
        """How many samples the run trains on."""
        if self.arm.continues:
            return self.more
        return self.first if self.name == "dense" else self.first + self.more

    @property
    def seen_before(self) -> int:
        """How many samples the model has seen when the run begins."""
        return self.first if self.arm.continues else 0

    def recipe(self) -> Recipe:
        """Return the run's recipe."""
        return recipe_for(self.samples, self.seed, changes(self.arm))

    def identity(self) -> str:
        """Return a name that changes with all settings, and not with the arm's titles."""
        settings = {
            "version": VERSION, "seed": self.seed, "samples": self.samples,
            # Without defaults, so that a new key of recipes changes no run.
            "dense": load_recipe("grocery-vit").model_dump(mode="json", exclude_defaults=True),
            "model": MODELS[self.arm.model], "rate": self.arm.rate,
            "all_tokens": self.arm.all_tokens,
            "continues": self.base.identity() if self.arm.continues else None,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def points(self) -> list[int]:
        """Return the steps after which the run is scored.

        They are the thirds of the run. A continuation leaves out the first of them, since its line
        begins with the score of the model that it continues.
        """
        steps = self.recipe().steps
        thirds = range(2 if self.arm.continues else 1, 4)
        return [round(steps * third / 3) for third in thirds]


def changes(arm: Arm) -> dict[str, Any]:
    """Return the changes to the benchmarks' recipe that make it an arm's."""
    dense = load_recipe("grocery-vit")
    return {
        "model.name": dense.model.name,
        "model.overrides": {**dense.model.overrides, **MODELS[arm.model]},
        "data.captions": dense.data.captions,
        "loss": dense.loss.model_dump(),
        "optimizer": {**dense.optimizer.model_dump(), "lr": dense.optimizer.lr * arm.rate},
        "batch_size": dense.batch_size,
    }


def start_model(run: Run, out: Path) -> CLIP | None:
    """Return the model that a run begins with; None for random weights of its recipe."""
    if not run.arm.continues:
        return None
    dense = checkpoint.load(model_folder(out, run.base))
    if run.arm.model == "sparse":
        return upcycle(dense, seed=run.seed).train()  # its defaults are those of `MODELS`
    return dense.train()


@contextlib.contextmanager
def routing_all_tokens() -> Iterator[None]:
    """Within this context, a last block with experts sees all tokens in training.

    The embeddings do not change by that, except where experts have too little room; losses of the
    router do.
    """

    def pooled(blocks: Sequence[nn.Module], x: Tensor, *rest: Any, **named: Any) -> Tensor:
        last = blocks[-1]
        if not (last.training and isinstance(last, TransformerBlock) and moe_layers(last)):
            return run_blocks_pooled(blocks, x, *rest, **named)
        pool, *mask = rest
        out: Tensor = pool(run_blocks(blocks, x, *mask, **named))
        return out

    with (
        mock.patch.object(pocketclip.nn.vit, "run_blocks_pooled", pooled),
        mock.patch.object(pocketclip.nn.text, "run_blocks_pooled", pooled),
    ):
        yield


def do(run: Run, photos: Set, out: Path) -> None:
    """Train once; keep ranks and scores after each point, and the model of a first phase."""
    begun, scoring = time.process_time(), 0.0

    def keep(step: int, model: CLIP) -> None:
        nonlocal scoring
        if step not in run.points():
            return
        before = time.process_time()
        model.eval()
        ranks = measure(photos, Encoder(model))
        model.train()
        samples = run.seen_before + step * run.recipe().batch_size
        write_ranks(ranks_file(out, run, step), ranks)
        scoring += time.process_time() - before
        record = {
            "run": run.identity(), "arm": run.name, "seed": run.seed, "step": step,
            "samples": samples, **scores_of(ranks),
            "cpu_seconds": round(time.process_time() - begun - scoring, 1),
        }  # fmt: skip
        with (out / "results.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        found = f"top-1 {record['classification']:.1f} %, recall {record['retrieval']:.1f} %"
        print(f"  {samples:,} samples: {found}", flush=True)

    recipe = run.recipe()
    skip = run.seen_before // recipe.batch_size
    with routing_all_tokens() if run.arm.all_tokens else contextlib.nullcontext():
        start = start_model(run, out)
        model, _ = train_student(photos, recipe, model=start, skip=skip, on_step=keep)
    if run.name == "dense":
        checkpoint.save(model.eval(), model_folder(out, run))


def model_folder(out: Path, run: Run) -> Path:
    """Return where the model of a first phase is kept."""
    return out / "models" / run.identity()


def ranks_file(out: Path, run: Run, step: int) -> Path:
    """Return where the ranks after a step are kept."""
    return out / "ranks" / f"{run.identity()}-{step}.npz"


def finished(run: Run, out: Path) -> dict[int, Arrays]:
    """Return the ranks of a run by samples seen, if all its points are there; nothing otherwise."""
    recorded = {(r["run"], r["step"]) for r in results(out / "results.jsonl")}
    if any((run.identity(), step) not in recorded for step in run.points()):
        return {}
    if run.name == "dense" and not (model_folder(out, run) / checkpoint.CONFIG).exists():
        return {}
    batch = run.recipe().batch_size
    return {
        run.seen_before + step * batch: read_ranks(ranks_file(out, run, step))
        for step in run.points()
    }


def step_times(photos: Set, seed: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time per sample of each model, round by round.

    Each round trains every model on the same batch, one after the other.
    """
    recipes = {name: recipe_for(10**6, seed, changes(Arm(title="", model=name))) for name in MODELS}
    training = {n: Training(photos, recipe, initial_model(recipe)) for n, recipe in recipes.items()}
    times: dict[str, list[float]] = {name: [] for name in MODELS}
    for number, batch in enumerate(batches(photos, recipes["dense"])):
        for name, one in training.items():
            begun = time.process_time()
            one.step(number, batch)
            if number:  # the first step of each also allocates
                times[name].append((time.process_time() - begun) / len(batch.images))
        if number == rounds:
            return times
    raise AssertionError("there are always more batches")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write report and figure, and print a line of JSON."""
    args = _parse(arguments)
    runs = [
        Run(name=name, seed=seed, first=args.first, more=args.more)
        for seed in args.seeds
        for name in ARMS
        if name in args.arms
    ]
    (args.out / "ranks").mkdir(parents=True, exist_ok=True)
    times_file = args.out / "step-times.json"
    try:
        if args.time:
            photos = load_photos(runs[0], args)
            times_file.write_text(json.dumps(step_times(photos, runs[0].seed, args.time)))
        else:
            _run_all(runs, args)
    except PocketclipError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    done = {run: finished(run, args.out) for run in runs}
    times = {}
    if times_file.exists():
        times = {n: statistics.median(t) for n, t in json.loads(times_file.read_text()).items()}
    if any(done.values()):
        write_texts(
            {
                args.report or args.out / "upcycling.md": report(done, times),
                args.figure or args.out / "upcycling.svg": figure(done, times),
            }
        )
    print(json.dumps(summary(done, times)))


def load_photos(run: Run, args: argparse.Namespace) -> Set:
    """Return the groceries at the model's size."""
    return prepare(args.data, args.out, run.recipe().model.config().image_size)


def _run_all(runs: Sequence[Run], args: argparse.Namespace) -> None:
    photos: Set | None = None
    for number, run in enumerate(runs, start=1):
        if finished(run, args.out):
            continue
        if run.arm.continues and not finished(run.base, args.out):
            sys.exit(
                f"error: {run.name} continues the arm `dense` of seed {run.seed}; run it first"
            )
        photos = photos or load_photos(run, args)
        print(f"{number} of {len(runs)}: {run.arm.title}, seed {run.seed} ...", flush=True)
        do(run, photos, args.out)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(), help="holds grocery/ and grocery-dr/")
    parser.add_argument("--out", type=Path, default=Path("runs/upcycling"), metavar="RUNS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--first", type=int, default=FIRST, metavar="N", help="of the first phase")
    parser.add_argument("--more", type=int, default=MORE, metavar="M", help="samples after it")
    parser.add_argument("--time", type=int, metavar="ROUNDS", help="measure steps, train no run")
    parser.add_argument("--report", type=Path, help="default: RUNS/upcycling.md")
    parser.add_argument("--figure", type=Path, help="default: RUNS/upcycling.svg")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
