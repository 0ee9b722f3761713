"""Evaluate any `Encoder` the way the published tables were made."""

from pocketclip.evaluate.datasets.find import DataOptions, TaskData, find, own_task
from pocketclip.evaluate.labelled import top1
from pocketclip.evaluate.results import Result, average_38, read_results, write_results
from pocketclip.evaluate.stream import Outcome, RunOptions
from pocketclip.evaluate.suite import (
    Failure,
    Plan,
    check_probes,
    evaluate,
    plan,
    run,
    run_probe,
)
from pocketclip.evaluate.tasks import DATACOMP38, TASKS, Task, find_task, published_results

__all__ = [
    "DATACOMP38",
    "TASKS",
    "DataOptions",
    "Failure",
    "Outcome",
    "Plan",
    "Result",
    "RunOptions",
    "Task",
    "TaskData",
    "average_38",
    "check_probes",
    "evaluate",
    "find",
    "find_task",
    "own_task",
    "plan",
    "published_results",
    "read_results",
    "run",
    "run_probe",
    "top1",
    "write_results",
]
