"""The steps of a quickstart; all of them resume.

Finished work is not repeated: the reinforced shards, each training run and each results file
record their own state.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip import checkpoint
from pocketclip._version import __version__
from pocketclip.errors import ConfigError, DataError
from pocketclip.evaluate import Failure, RunOptions, evaluate, plan
from pocketclip.evaluate import run as run_tasks
from pocketclip.evaluate.datasets.find import TaskData
from pocketclip.evaluate.tasks import Task
from pocketclip.formats.json_text import read_json
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.progress import ProgressReporter
from pocketclip.quickstart.collection import PAIRS
from pocketclip.reinforce import job
from pocketclip.reinforce.recipe import load_recipe as load_reinforcement
from pocketclip.storage.local import remove_abandoned, write_whole
from pocketclip.storage.locks import LOCK, claim
from pocketclip.train.logs import LOG, read
from pocketclip.train.loop import train
from pocketclip.train.recipe import Recipe

DATA, SHARDS, MODEL = "data", "reinforced", "model"
SETTINGS, RESULT, REPORT = "settings.json", "result.json", "report.html"
ARMS = ("plain", "reinforced")
log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class QuickstartRun:
    """One quickstart: its output folder and its results so far."""

    out: Path
    settings: dict[str, Any]
    reporter: ProgressReporter = field(default_factory=ProgressReporter)
    workers: int | None = None
    """Decode processes; None chooses a number for the machine."""
    result: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def claim_folder(self) -> Iterator[None]:
        """Hold the output folder for the block: new, or with an unfinished run of this quickstart.

        Raises:
            ConfigError: the folder holds something else, or a finished quickstart.
            PocketclipError: another process is at work there.
        """
        self._refuse_other_files()
        with claim(self.out, "a quickstart"):
            self._start_or_resume()
            yield

    def _refuse_other_files(self) -> None:
        remove_abandoned(self.out)
        if (self.out / SETTINGS).is_file() or not self.out.exists():
            return
        if not self.out.is_dir() or any(path.name != LOCK for path in self.out.iterdir()):
            raise ConfigError(f"{self.out} holds other files; choose another --out")

    def _start_or_resume(self) -> None:
        path = self.out / SETTINGS
        if not path.is_file():
            self._write(SETTINGS, self.settings)
        else:
            try:
                before = read_json(path)
            except ValueError as error:
                raise ConfigError(f"{path} is damaged ({error}); choose another --out") from error
            if not isinstance(before, dict):
                raise ConfigError(f"{path} is damaged; choose another --out")
            if before != self.settings:
                changed = [k for k in self.settings if before.get(k) != self.settings[k]]
                raise ConfigError(
                    f"{self.out} holds a quickstart with other settings ({', '.join(changed)} "
                    "changed); choose another --out"
                )
            if (self.out / RESULT).is_file():
                raise ConfigError(
                    f"{self.out} is finished: open {self.out / REPORT}, or choose another --out"
                )
        self.result = {"version": __version__, "settings": self.settings, "seconds": {}}

    @contextmanager
    def timed(self, name: str, text: str) -> Iterator[None]:
        """Report a stage and record its duration."""
        self.reporter.stage(text)
        start = time.monotonic()
        yield
        self.result["seconds"][name] = round(time.monotonic() - start, 1)

    def finish(self, page: str) -> None:
        """Write the report, then the result, which marks the quickstart as finished."""
        with write_whole(self.out / REPORT) as temporary:
            temporary.write_text(page, "utf-8")
        seconds = self.result["seconds"]
        seconds["all"] = round(sum(v for k, v in seconds.items() if k != "all"), 1)
        self._write(RESULT, self.result)

    def _write(self, name: str, value: Any) -> None:
        with write_whole(self.out / name) as temporary:
            temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")

    # --- the steps

    def reinforce(self, options: PairOptions, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Reinforce `data/pairs.csv` into `reinforced`; `fields` override the reinforce recipe.

        Raises:
            PocketclipError: as `pocketclip.reinforce.job.run`.
        """
        shards = open_pairs(str(self.out / DATA / PAIRS), options)
        total = sum(shard.size or 0 for shard in shards)
        done = 0

        def on_start(_shards: int, _finished: int, pairs: int) -> None:
            nonlocal done
            done = pairs

        def on_pairs(pairs: int, _bad: int) -> None:
            nonlocal done
            done += pairs
            self.reporter.progress(done, total, "pairs")

        recipe = load_reinforcement(None, precision="float32", batch_size=64, **fields)
        summary = job.run(
            shards,
            recipe,
            str(self.out / SHARDS),
            workers=self.workers,
            on_start=on_start,
            on_pairs=on_pairs,
        )
        samples = sum(report.samples for report in summary.reports)
        if not samples:
            raise DataError(
                f"none of the {total} pairs could be used; the .bad.jsonl files in "
                f"{self.out / SHARDS} say why"
            )
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

        def on_log(record: Mapping[str, Any]) -> None:
            note = f"steps, loss {record['loss']:.2f}, {record['samples_per_second']:.0f} samples/s"
            self.reporter.progress(int(record["step"]), int(record["steps"]), note)

        folder = self.out / "runs" / name
        on_checkpoint = None if task is None else score
        summary = train(recipe, folder, on_log=on_log, on_checkpoint=on_checkpoint)
        if summary.interrupted or summary.model is None:
            raise KeyboardInterrupt
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
        lines = read(self.out / "runs" / name / LOG)
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
