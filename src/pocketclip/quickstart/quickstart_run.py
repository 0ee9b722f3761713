"""The steps of a quickstart; all of them resume.

Finished work is not repeated: the reinforced shards, each training run and each results file
record their own state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pocketclip import checkpoint
from pocketclip.errors import DataError
from pocketclip.evaluate import Failure, RunOptions, evaluate, plan
from pocketclip.evaluate import run as run_tasks
from pocketclip.evaluate.datasets.find import TaskData
from pocketclip.evaluate.tasks import Task
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pipeline_folder import MODEL, REPORT, RESULT, RUNS, SETTINGS, PipelineFolder
from pocketclip.quickstart.collection import PAIRS
from pocketclip.reinforce.recipe import load_recipe as load_reinforcement
from pocketclip.train.logs import LOG, read
from pocketclip.train.recipe import Recipe

__all__ = ["ARMS", "DATA", "MODEL", "REPORT", "RESULT", "SETTINGS", "SHARDS", "QuickstartRun"]
DATA, SHARDS = "data", "reinforced"
ARMS = ("plain", "reinforced")


@dataclass(slots=True, kw_only=True)
class QuickstartRun(PipelineFolder):
    """One quickstart: its output folder and its results so far."""

    WORK: ClassVar[str] = "a quickstart"

    def reinforce(self, options: PairOptions, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Reinforce `data/pairs.csv` into `reinforced`; `fields` override the reinforce recipe.

        Raises:
            PocketclipError: as `pocketclip.reinforce.job.run`.
        """
        shards = open_pairs(str(self.out / DATA / PAIRS), options)
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

    def train(self, name: str, recipe: Recipe, task: tuple[Task, TaskData] | None) -> Path:
        """Train into `runs/NAME`, evaluating `task` at each checkpoint; return the model's folder.

        Raises:
            KeyboardInterrupt: the training was interrupted and wrote a checkpoint.
            PocketclipError: as `pocketclip.train.loop.train`.
        """

        def score(model: CLIP, _step: int) -> dict[str, float]:
            assert task is not None
            result, _ = evaluate(Encoder(model), *task, _EVALUATION)
            return {"main_metric": result.main_metric or 0.0}

        summary = self.train_run(name, recipe, None if task is None else score)
        assert summary.model is not None
        return summary.model

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
        planned = plan(list(names), str(self.out / DATA / "tests"))
        for reason in planned.missing.values():
            raise DataError(reason)
        return planned.ready

    def curve(self, name: str) -> list[dict[str, float]]:
        """Return samples seen and the task's score at each checkpoint of a training run."""
        lines = read(self.out / RUNS / name / LOG)
        samples = {line["step"]: line["samples"] for line in lines if "samples" in line}
        return [
            {"samples": samples[line["step"]], "score": line["eval/main_metric"]}
            for line in lines
            if "eval/main_metric" in line and line["step"] in samples
        ]

    def publish(self, model: Path) -> None:
        """Copy the finished model to the folder `model`."""
        checkpoint.save(checkpoint.load(model), self.out / MODEL)


_EVALUATION = RunOptions(batch_size=128, skip_bad=True, cache=None)
_SHOWN = (
    *("acc1", "acc5", "mean_recall@1", "main_metric"),
    *("image_retrieval_recall@1", "text_retrieval_recall@1"),
    *("image_retrieval_recall@5", "text_retrieval_recall@5"),
)
