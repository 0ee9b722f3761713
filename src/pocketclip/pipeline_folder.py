"""The output folder of a workflow of several steps, which resumes after an interruption.

Finished work is not repeated: reinforced shards and training runs record their own state, and
`result.json`, written last, marks the whole as finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pocketclip._version import __version__
from pocketclip.errors import ConfigError, DataError
from pocketclip.formats.json_text import read_json
from pocketclip.pairs import PairShard
from pocketclip.progress import ProgressReporter
from pocketclip.reinforce import job
from pocketclip.reinforce.recipe import Recipe as ReinforceRecipe
from pocketclip.storage.local import remove_abandoned, write_whole
from pocketclip.storage.locks import LOCK, claim
from pocketclip.train.loop import OnCheckpoint, train
from pocketclip.train.recipe import Recipe
from pocketclip.train.run import Summary

MODEL, RUNS = "model", "runs"
SETTINGS, RESULT, REPORT = "settings.json", "result.json", "report.html"


@dataclass(slots=True, kw_only=True)
class PipelineFolder:
    """One call of a workflow: its output folder and its results so far."""

    WORK: ClassVar[str] = "a pipeline"
    """What is done in the folder, with its article, for messages."""
    out: Path
    settings: dict[str, Any]
    """Everything that decides the results, as JSON types; a resumed call must have the same."""
    reporter: ProgressReporter = field(default_factory=ProgressReporter)
    workers: int | None = None
    """Decode processes; None chooses a number for the machine."""
    result: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def claim_folder(self) -> Iterator[None]:
        """Hold the output folder for the block: new, or with an unfinished call of this workflow.

        Raises:
            ConfigError: the folder holds something else, or finished work.
            PocketclipError: another process is at work there.
        """
        self._refuse_other_files()
        with claim(self.out, self.WORK):
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
            self.write(SETTINGS, self.settings)
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
                    f"{self.out} holds {self.WORK} with other settings ({', '.join(changed)} "
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
        """Write the report, then the result, which marks the work as finished."""
        with write_whole(self.out / REPORT) as temporary:
            temporary.write_text(page, "utf-8")
        seconds = self.result["seconds"]
        seconds["all"] = round(sum(v for k, v in seconds.items() if k != "all"), 1)
        self.write(RESULT, self.result)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder."""
        with write_whole(self.out / name) as temporary:
            temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")

    def reinforce_shards(
        self, shards: Sequence[PairShard], recipe: ReinforceRecipe, folder: str
    ) -> job.Summary:
        """Reinforce shards of pairs into a folder within `out`, and report the progress.

        Raises:
            DataError: no pair could be used.
            PocketclipError: as `pocketclip.reinforce.job.run`.
        """
        total = sum(shard.size or 0 for shard in shards)
        done = 0

        def on_start(_shards: int, _finished: int, pairs: int) -> None:
            nonlocal done
            done = pairs

        def on_pairs(pairs: int, _bad: int) -> None:
            nonlocal done
            done += pairs
            self.reporter.progress(done, total, "pairs")

        summary = job.run(
            shards,
            recipe,
            str(self.out / folder),
            workers=self.workers,
            on_start=on_start,
            on_pairs=on_pairs,
        )
        if not any(report.samples for report in summary.reports):
            raise DataError(
                f"none of the {total} pairs could be used; the .bad.jsonl files in "
                f"{self.out / folder} say why"
            )
        return summary

    def train_run(self, name: str, recipe: Recipe, on_checkpoint: OnCheckpoint | None) -> Summary:
        """Train into `runs/NAME` and report the progress.

        Raises:
            KeyboardInterrupt: the training was interrupted and wrote a checkpoint.
            PocketclipError: as `pocketclip.train.loop.train`.
        """

        def on_log(record: Mapping[str, Any]) -> None:
            note = f"steps, loss {record['loss']:.2f}, {record['samples_per_second']:.0f} samples/s"
            self.reporter.progress(int(record["step"]), int(record["steps"]), note)

        folder = self.out / RUNS / name
        summary = train(recipe, folder, on_log=on_log, on_checkpoint=on_checkpoint)
        if summary.interrupted or summary.model is None:
            raise KeyboardInterrupt
        return summary
