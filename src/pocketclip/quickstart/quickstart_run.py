"""The steps of a quickstart; all of them resume.

Finished work is not repeated: the reinforced shards, each training run and each results file
record their own state.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pocketclip import checkpoint
from pocketclip.errors import DataError
from pocketclip.evaluate import Failure, RunOptions, plan
from pocketclip.evaluate import run as run_tasks
from pocketclip.evaluate.datasets.examples import CLASSES
from pocketclip.evaluate.datasets.find import TaskData
from pocketclip.evaluate.tasks import Task
from pocketclip.infer.encoder import Encoder
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pipeline_folder import MODEL, REPORT, RESULT, RUNS, SETTINGS, PipelineFolder
from pocketclip.quickstart.collection import PAIRS, TESTS, read_rows
from pocketclip.reinforce.recipe import load_recipe as load_reinforcement
from pocketclip.storage.local import write_whole
from pocketclip.train.recipe import Recipe

__all__ = ["DATA", "MODEL", "REPORT", "RESULT", "RUNS", "SETTINGS", "SHARDS", "QuickstartRun"]
DATA, SHARDS = "data", "reinforced"


@dataclass(slots=True, kw_only=True)
class QuickstartRun(PipelineFolder):
    """One quickstart: its output folder and its results so far."""

    WORK: ClassVar[str] = "a quickstart"

    def reinforce(
        self, options: PairOptions, fields: Mapping[str, Any], first: int | None = None
    ) -> dict[str, Any]:
        """Reinforce `data/pairs.csv` into `reinforced`; `fields` override the reinforce recipe.

        Args:
            options: how to read the table.
            fields: of the reinforce recipe.
            first: take only this number of pairs from the table's beginning; None: all.

        Raises:
            PocketclipError: as `pocketclip.reinforce.job.run`.
        """
        shards = open_pairs(str(self._table(first)), options)
        recipe = load_reinforcement(None, precision="float32", batch_size=64, **fields)
        summary = self.reinforce_shards(shards, recipe, SHARDS)
        samples = sum(report.samples for report in summary.reports)
        return {
            "samples": samples,
            "left_out": sum(report.bad for report in summary.reports),
            "bytes_per_sample": round(
                sum(report.stats["bytes"] for report in summary.reports) / samples
            ),
            "augmentations": recipe.augmentations,
            "teachers": [Path(name).name for name in recipe.teachers],
            "captions": recipe.captions if recipe.captioners else 0,
        }

    def _table(self, first: int | None) -> Path:
        table = self.out / DATA / PAIRS
        if first is None:
            return table
        with table.open(encoding="utf-8", newline="") as stream:
            rows = list(islice(csv.reader(stream), first + 1))
        part = table.with_name(f"reinforced-{PAIRS}")
        with write_whole(part) as new, new.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows(rows)
        return part

    def train(self, name: str, recipe: Recipe) -> None:
        """Train into `runs/NAME`; `recipe.evaluation` scores the checkpoints.

        Raises:
            KeyboardInterrupt: the training was interrupted and wrote a checkpoint.
            PocketclipError: as `pocketclip.train.loop.train`.
        """
        self.train_run(name, recipe, None)

    def evaluate(self, name: str, model: Path, task_names: Sequence[str]) -> dict[str, Any]:
        """Return a model's metrics by task; `NAME.results.jsonl` holds them too.

        Raises:
            DataError: a task could not be evaluated.
        """
        encoder = Encoder(checkpoint.load(model, fuse=True))
        tasks = self.tasks(task_names)
        metrics: dict[str, Any] = {}
        path = str(self.out / f"{name}.results.jsonl")
        about = {"model": name}
        for result in run_tasks(encoder, tasks, out=path, about=about, options=_EVALUATION):
            if isinstance(result, Failure):
                raise DataError(f"{result.key}: {result.reason}")
            metrics[result.key] = {k: v for k, v in result.metrics.items() if k in _SHOWN}
        return metrics

    def tasks(self, names: Sequence[str]) -> list[tuple[Task, TaskData]]:
        """Return the evaluation sets of these names.

        Raises:
            DataError: a set is missing or damaged.
        """
        planned = plan(list(names), str(self.out / DATA / TESTS))
        for reason in planned.missing.values():
            raise DataError(reason)
        return planned.ready

    def chance(self, task: str) -> float:
        """Return the accuracy of guessing in an evaluation set."""
        folder = self.out / DATA / TESTS / task
        listed = folder / CLASSES
        if listed.is_file():
            answers = set(listed.read_text("utf-8").splitlines())
        else:
            answers = {row.get("label", row["image"]) for row in read_rows(folder / "test.csv")}
        return 1 / max(len(answers), 1)

    def publish(self, model: Path) -> None:
        """Copy the finished model to the folder `model`."""
        checkpoint.save(checkpoint.load(model), self.out / MODEL)


_EVALUATION = RunOptions(batch_size=128, skip_bad=True, cache=None)
_SHOWN = (
    *("acc1", "acc5", "mean_recall@1", "main_metric"),
    *("image_retrieval_recall@1", "text_retrieval_recall@1"),
    *("image_retrieval_recall@5", "text_retrieval_recall@5"),
)
