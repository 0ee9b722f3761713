"""What an actor of the cluster is: it loads something once, then does one task at a time."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Protocol

from pocketclip.errors import DataError, PocketclipError

OnProgress = Callable[[int, int], None]
"""Called with the number of samples done since the last call, and how many of them were bad."""


class ActorUnusableError(PocketclipError):
    """A task failed because its actor is broken: the task is tried again with another one."""


class Task(Protocol):
    """A piece of work; it is pickled."""

    @property
    def name(self) -> str:
        """Unique among the tasks of a run."""
        ...


class Result(Protocol):
    """What a finished task returns; it is pickled."""

    @property
    def name(self) -> str:
        """The task's."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples in the task's file."""
        ...

    @property
    def bad(self) -> int:
        """Number of samples that were left out."""
        ...


class Worker(abc.ABC):
    """An actor: what it loaded, and the progress of its current task.

    Its methods run in threads of one process. Expected errors are returned, not raised, so that
    they reach the driver unchanged.
    """

    def __init__(self) -> None:
        self._task = ""
        self._done = self._bad = 0
        self._stopping = False

    @abc.abstractmethod
    def load(self) -> dict[str, Any]:
        """Load what the tasks need, and return the facts that all actors must agree on.

        Raises:
            PocketclipError, OSError: it cannot be loaded; the run ends.
        """

    @abc.abstractmethod
    def work(self, task: Any, count: OnProgress) -> Result:
        """Do a task.

        Args:
            task: the task.
            count: called with its progress; it raises a DataError after `stop`.

        Raises:
            ActorUnusableError: the task is tried again with another actor.
            PocketclipError, OSError: the run ends.
        """

    def facts(self) -> dict[str, Any] | Exception:
        """Load, and return the facts."""
        # Not in __init__: an actor that loads answers `progress`, one without room does not.
        return returned(self.load)

    def progress(self) -> tuple[str, int, int]:
        """Return the name of the current task, and the samples done and bad."""
        return self._task, self._done, self._bad

    def stop(self) -> None:
        """Stop the task at its next step."""
        self._stopping = True

    def run(self, task: Task) -> Result | Exception:
        """Do a task."""
        self._task, self._done, self._bad = task.name, 0, 0

        def count(done: int, bad: int) -> None:
            self._done += done
            self._bad += bad
            if self._stopping:
                raise DataError("stopped")

        return returned(lambda: self.work(task, count))


def returned(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the expected error that it raises."""
    try:
        return call()
    except (PocketclipError, OSError) as error:
        return error
