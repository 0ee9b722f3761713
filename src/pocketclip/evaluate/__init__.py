"""Evaluate any `Encoder` the way the published tables were made.

    results = list(run(encoder, plan(["imagenet1k"], "data").ready, out="results.jsonl"))

| module | holds |
|---|---|
| `suite` | many tasks, resumed after an interruption; trained probes |
| `tasks` | the tasks of the published tables, and the published results |
| `results` | the results file |
| `zeroshot`, `classifier` | zero-shot classification; class names and prompts to embeddings |
| `retrieval` | retrieval, multiple choice, association |
| `probe` | nearest neighbours and linear probe on frozen embeddings |
| `labelled` | top-1 on labelled photographs as one function |
| `stream`, `prefetch` | images to embeddings, decoded ahead |
| `classes` | lists of class names, matched to labels |
| `metrics/`, `datasets/`, `report/` | metrics on arrays; evaluation sets; comparisons and pages |
"""

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
