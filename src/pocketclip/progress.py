"""How long jobs report their progress.

class Printer(ProgressReporter):
    def stage(self, text):
        print(text)
"""

from __future__ import annotations

from collections.abc import Callable


class ProgressReporter:
    """Receives the progress of a job; this one ignores it. Override what you need."""

    def stage(self, text: str) -> None:
        """A stage begins; `text` describes it."""

    def remark(self, text: str) -> None:
        """A line that the user should read."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Of the stage, `done` of `total` units are finished; `note` names the unit.

        A `total` of 0 is not known yet.
        """


class _StagesOnly(ProgressReporter):
    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self._on_stage = on_stage

    def stage(self, text: str) -> None:
        self._on_stage(text)


def as_reporter(reporter: ProgressReporter | Callable[[str], None] | None) -> ProgressReporter:
    """Return a reporter; a function becomes one that receives the text of each stage."""
    if reporter is None:
        return ProgressReporter()
    return reporter if isinstance(reporter, ProgressReporter) else _StagesOnly(reporter)
