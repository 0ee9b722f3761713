"""Which weights a finished run hands over, and the scores by which they were chosen.

RUN/selection.json  {"choose": "best", "chosen": 400, "scores": [{"step": 0, "main_metric": 0.31}]}

Where checkpoints are scored, `RUN/model` is the best of what was scored: the weights that the run
started from (step 0, if `model.init` is set) and every checkpoint, each with the averaged weights
if an average is kept. Equal scores: the later one. The choice is made on the evaluation data, so
the chosen score is one of a validation, not of a test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pocketclip.errors import count_of
from pocketclip.formats.json_text import read_json
from pocketclip.storage.local import write_whole
from pocketclip.train.curve import still_rising
from pocketclip.train.logs import LOG, read
from pocketclip.train.sections import EvaluationSection

FILE = "selection.json"
VERSION = 1
_RULES = {"choose", "patience"}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of a checkpoint."""

    step: int
    """Steps done; 0: the weights that the run started from."""
    main_metric: float | None = None
    """None: the evaluation failed, or returned no `main_metric`."""
    error: str | None = None
    """Why the evaluation failed."""


@dataclass(slots=True, kw_only=True)
class Selection:
    """The scores of a run so far and, once it is finished, which weights `model/` holds."""

    choose: Literal["best", "last"] = "best"
    """What is handed over: the best of what was scored, or the last weights."""
    evaluation: dict[str, Any] | None = None
    """The recipe's evaluation; None: a caller's function, or no evaluation."""
    weights: Literal["model", "average"] = "model"
    """What was scored at each checkpoint: the model itself, or the average of its weights."""
    scores: list[Score] = field(default_factory=list)
    """By step, failed evaluations included."""
    chosen: int | None = None
    """The step of the weights in `model/`; None: the run is not finished."""
    stopped_early: bool = False
    """Whether the run ended before its last step, by `evaluation.patience`."""

    def ranked(self) -> list[Score]:
        """Return the scores from best to worst; of equal ones, the later first."""
        known = [score for score in self.scores if score.main_metric is not None]
        return sorted(known, key=lambda score: (score.main_metric, score.step), reverse=True)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and main metric of the best weights; None if nothing has a score."""
        for score in self.ranked():
            assert score.main_metric is not None
            return score.step, score.main_metric
        return None

    def of(self, step: int) -> Score | None:
        """Return the score after `step` steps, or None."""
        return next((score for score in self.scores if score.step == step), None)

    def add(self, score: Score) -> None:
        """Add a score, instead of an earlier one of the same step."""
        others = [other for other in self.scores if other.step != score.step]
        self.scores = sorted([*others, score], key=lambda score: score.step)

    def is_rising(self) -> bool:
        """Return whether the score still rises at the end, see `curve.still_rising`."""
        return still_rising([s.main_metric for s in self.scores if s.main_metric is not None])

    def out_of_patience(self, patience: int | None) -> bool:
        """Return whether the last `patience` scores are all not above the best before them.

        Failed evaluations do not count.
        """
        if patience is None:
            return False
        values = [s.main_metric for s in self.scores if s.main_metric is not None]
        before, last = values[:-patience], values[-patience:]
        return bool(before) and max(last) <= max(before)

    @property
    def start_won(self) -> bool:
        """Whether `model/` holds the weights that the run started from."""
        return self.chosen == 0

    @property
    def equals_start(self) -> bool:
        """Whether trained weights were chosen whose score is just that of the start."""
        start, own = self.of(0), self.of(self.chosen) if self.chosen else None
        if start is None or own is None or start.main_metric is None:
            return False
        return own.main_metric == start.main_metric

    def describe(self) -> str:
        """Return in one sentence which weights `model/` holds, and why."""
        if self.chosen is None:
            return "the run is not finished, so nothing is chosen yet"
        ranked = self.ranked()
        if not ranked:
            return (
                "no checkpoint has a score, so model/ holds the last weights "
                f"({_after(self.chosen)}): whether they are better than the start is not known"
            )
        best, own, last = ranked[0], self.of(self.chosen), self.scores[-1]
        if self.start_won and own == best:
            trained = next((score for score in ranked if score.step), None)
            other = f"; the best after it has {_shown(trained)}" if trained is not None else ""
            return (
                f"training did not help: the start has {_number(best)}{other}. model/ holds the "
                "start's weights"
            )
        if self.choose == "last":
            other = "the best of all scores" if own == best else f"the best is {_shown(best)}"
            return (
                f"model/ holds the last weights, {_shown(own, self.chosen)}, as "
                f"evaluation.choose says; {other}"
            )
        if own == best and self.equals_start:
            return (
                f"training did not raise the score: the start has {_number(best)}, and so has "
                f"{_after(self.chosen)}, whose weights model/ holds"
            )
        if own == best:
            compared = {"the start": self.of(0), "the last": last if last != own else None}
            others = "; ".join(f"{name}: {_number(s)}" for name, s in compared.items() if s)
            others = f" ({others})" if others else ""
            return (
                f"model/ holds the weights of {_after(self.chosen)}, {_number(best)}, the best of "
                f"{count_of(len(ranked), 'score')} on the evaluation data{others}. This score "
                "chose them, so it is slightly optimistic: test on other images"
            )
        return (
            f"model/ holds the weights of {_shown(own, self.chosen)}; the checkpoint of the best, "
            f"{_shown(best)}, is gone"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the content of `selection.json`."""
        facts = {"version": VERSION, **dataclasses.asdict(self)}
        facts["scores"] = [
            {k: v for k, v in score.items() if v is not None} for score in facts["scores"]
        ]
        return facts

    def write(self, run: Path) -> None:
        """Write `selection.json` into a run's folder.

        Raises:
            OSError: it cannot be written.
        """
        with write_whole(run / FILE) as temporary:
            temporary.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")


def load(run: Path, evaluation: dict[str, Any] | None = None) -> Selection | None:
    """Return a run's selection; None if nothing was scored.

    Without a readable `selection.json` (older versions wrote none) the log tells the scores, and
    `evaluation` is taken as what they come from.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts = dict(read_json(run / FILE))
        if facts.pop("version") == VERSION:
            facts["scores"] = [Score(**score) for score in facts["scores"]]
            return Selection(**facts)
    logged = [_logged(record) for record in read(run / LOG)]
    found = Selection(evaluation=evaluation)
    for score in logged:
        if score is not None:
            found.add(score)
    return found if found.scores else None


def facts_of(evaluation: EvaluationSection | None) -> dict[str, Any] | None:
    """Return what of a recipe's evaluation determines the scores."""
    return None if evaluation is None else evaluation.model_dump(mode="json", exclude=_RULES)


def _logged(record: dict[str, Any]) -> Score | None:
    step, value = record.get("step"), record.get("eval/main_metric")
    if not isinstance(step, int) or not any(key.startswith("eval/") for key in record):
        return None
    error = record.get("eval/error")
    return Score(
        step=step,
        main_metric=float(value) if isinstance(value, (int, float)) else None,
        error=error if isinstance(error, str) else None,
    )


def _after(step: int) -> str:
    return f"step {step}" if step else "the start"


def _number(score: Score | None) -> str:
    if score is None or score.main_metric is None:
        return "no score"
    return f"{score.main_metric:.4f}"


def _shown(score: Score | None, step: int | None = None) -> str:
    at = score.step if score is not None else step or 0
    return f"{_after(at)} with {_number(score)}"


def earlier(scores: Sequence[Score], step: int) -> list[Score]:
    """Return the scores up to `step`: later ones will be done again."""
    return [score for score in scores if score.step <= step]
