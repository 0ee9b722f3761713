"""What the check of a job's teachers asks and finds; it is stored in `teacher_check.json`.

A check belongs to a job and its folder: the same command, given again, does not repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.pairs import PairShard
from pocketclip.reinforce.resume import write_json
from pocketclip.reinforce.teacher_check import PAIRS
from pocketclip.teacher_score import TeacherScore, is_clearly_better

FILE = "teacher_check.json"
VERSION = 1

OnCheck = Callable[["TeacherCheck"], None]
"""Called with the result, before the first shard is made."""


def ignore_check(_: TeacherCheck) -> None:
    """Do nothing: the default callback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What is checked; it can be sent to other processes."""

    pairs: int = PAIRS
    """N, the number of pairs of the sample."""
    student_start: str | None = None
    """The model that the student will start from, as a teacher is named; it is scored too."""
    label_column: str | None = None
    """A column of labels, for the zero-shot accuracy; None: captions."""
    shards: Sequence[PairShard] | None = None
    """The pairs to take the sample from, with the label column in their metadata; None: the
    job's."""

    def __post_init__(self) -> None:
        if self.pairs < 2:
            raise ConfigError(f"a check of teachers needs 2 or more pairs, not {self.pairs}")

    def asked(self) -> dict[str, Any]:
        """Return what distinguishes this check from others of the same job."""
        return {
            "pairs": self.pairs,
            "student_start": self.student_start,
            "label_column": self.label_column,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCheck:
    """What the teachers of a job score on a sample of its pairs."""

    teachers: list[TeacherScore] = field(default_factory=list)
    ensemble: TeacherScore | None = None
    """All of them together, if there are several."""
    student_start: TeacherScore | None = None
    problem: str = ""
    """Why nothing could be checked, or empty."""

    def lines(self) -> list[str]:
        """Return each score as a line of text."""
        if self.problem:
            return []
        scores = [(f"teacher {score.name}", score) for score in self.teachers]
        scores += [("the teachers together", self.ensemble)] if self.ensemble else []
        if self.student_start is not None:
            scores.append((f"student start {self.student_start.name}", self.student_start))
        return [score.line(name) for name, score in scores]

    def warnings(self) -> list[str]:
        """Return what the user should know before the work is paid for, one line each."""
        if self.problem:
            return [f"the teachers were not checked: {self.problem}"]
        if self.teachers[0].is_small:
            return []
        out = []
        blind = [score.name for score in self.teachers if score.knows_nothing]
        if blind:
            out.append(
                f"no better than chance: {', '.join(blind)}; such embeddings teach nothing about "
                "these pairs: use another teacher, or check that the captions belong to the images "
                "and are in a language that it knows"
            )
        start = self.student_start
        if start is not None:
            scores = [*self.teachers, *filter(None, [self.ensemble])]
            weak = [
                f"{score.name} ({100 * score.value:.1f} %)"
                for score in scores
                if not is_clearly_better(score, start)
            ]
            if weak:
                out.append(
                    f"not clearly better than the student's start {start.name} "
                    f"({100 * start.value:.1f} %): {', '.join(weak)}; distilling may teach it "
                    "nothing, or do harm: use a better teacher, train on the captions alone (--set "
                    "loss.weights=[1,0]), or check more pairs (--check-pairs)"
                )
        return out

    def facts(self) -> dict[str, Any]:
        """Return the check as JSON types."""
        return {
            "problem": self.problem or None,
            "teachers": [score.facts() for score in self.teachers],
            "ensemble": self.ensemble.facts() if self.ensemble else None,
            "student_start": self.student_start.facts() if self.student_start else None,
            "warnings": self.warnings(),
        }


def read_check(
    out: str, config_hash: str, options: CheckOptions | None = None
) -> dict[str, Any] | None:
    """Return the facts of the stored check of a job, or None.

    Args:
        out: the job's folder or object store.
        config_hash: the job's; the check of another recipe does not count.
        options: what was asked; a check that asked something else does not count. None: any.

    Raises:
        DataError: the file is damaged.
        StorageError: it cannot be read.
    """
    path = storage.join(out, FILE)
    if not storage.exists(path):
        return None
    try:
        stored = load_json(storage.read_bytes(path), what=path)
    except ParseError as error:
        raise DataError(f"{error}: remove it and run again") from error
    if not isinstance(stored, dict) or stored.get("config_hash") != config_hash:
        return None
    asked = options is None or stored.get("asked") == options.asked()
    return stored if asked and stored.get("version") == VERSION else None


def write_check(
    out: str, config_hash: str, options: CheckOptions, check: TeacherCheck
) -> dict[str, Any]:
    """Store the check of a job in its folder; return the stored facts.

    Raises:
        StorageError: the folder cannot be written to.
    """
    facts = {
        "version": VERSION, "config_hash": config_hash, "asked": options.asked(), **check.facts()
    }  # fmt: skip
    write_json(storage.join(out, FILE), facts)
    return facts
