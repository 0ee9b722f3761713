"""`pocketclip eval`: scores a model with the tasks and metrics of the published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip import zoo
from pocketclip.cli._options import (
    Backend,
    Device,
    Json,
    LabelledWhere,
    ModelArgument,
    ModelName,
    Offline,
    Revision,
    Template,
    Threads,
    check_output_file,
    label_conditions,
)
from pocketclip.cli.output import Column, note, print_json, print_table, say
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.evaluate import Outcome, Plan, Result, RunOptions, Task, TaskData
    from pocketclip.label_set import LabelSet
    from pocketclip.types import Encoder


def evaluate(
    model: ModelArgument,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="The folder or object store with the sets of the tasks; or one set of your own: a "
            "folder by class, or a table (csv, tsv, jsonl).",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="The tasks, separated by commas: names such as imagenet1k,cifar10, or your own "
            "sets in --data."
        ),
    ] = "",
    suite: Annotated[
        str | None,
        typer.Option(help="A suite of tasks: datacomp38, or all (those 38 and 12 more)."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="The results file (jsonl) to add to; tasks with a result in it are not evaluated "
            "again.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out images that cannot be read, and count them."),
    ] = False,
    confusion: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write the confusion matrix of one task to this .html file."
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="The column of a table with image paths.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="The column of a table with labels, as numbers or names."),
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="The column of a table with captions, for retrieval.")
    ] = None,
    where: LabelledWhere = None,
    split: Annotated[
        str, typer.Option(help="The split to evaluate, of a set in folders.")
    ] = "test",
    classes_file: Annotated[
        str | None, typer.Option(help="A text file with one class name per line.")
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            help="A label set that `pocketclip fit` wrote: score its classifier in place of names "
            "and prompts. Labels are matched by name."
        ),
    ] = None,
    template: Template = None,
    templates_file: Annotated[
        str | None, typer.Option(help="A text file with one prompt per line.")
    ] = None,
    probe: Annotated[
        str,
        typer.Option(
            help="Also train probes on the embeddings of a training split: knn, linear, or both, "
            "separated by a comma."
        ),
    ] = "",
    train_split: Annotated[
        str,
        typer.Option(help="The split to train probes on: a folder, or a value of a column split."),
    ] = "train",
    train_data: Annotated[
        str | None, typer.Option(help="The data to train probes on.  [default: --data]")
    ] = None,
    model_name: ModelName = None,
    batch_size: Annotated[int, typer.Option(min=1, help="The number of images per batch.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="The number of threads that decode images.  [default: one per core]"
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", help="Whether to cache the embeddings of class names on disk."
        ),
    ] = True,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Score a model on evaluation sets: zero-shot classification, retrieval and more.

    A set is in DataComp's layout (ROOT/wds_TASK_test/), in folders by class, or in a table of
    images with labels or captions. A task whose set is missing or damaged is named, and the other
    tasks are evaluated; the exit code is then 1, or 2 if none was evaluated. The 38-task average
    is shown only if there are results for all 38 tasks.

    \b
    pocketclip eval mobileclip2-s0 --tasks imagenet1k,cifar10 --data sets --out results.jsonl
    pocketclip eval mobileclip2-s0 --suite datacomp38 --data s3://bucket/sets --out results.jsonl
    pocketclip eval runs/small --data shelf/ --template "a photo of {} on a shelf."
    pocketclip eval runs/small --data pairs.csv --label-column product --where split=test
    pocketclip eval runs/small --data shelf/ --labels-file labels.json
    """
    from pocketclip.checkpoint.operations import measure
    from pocketclip.cli._inputs import load_encoder
    from pocketclip.evaluate import DataOptions, RunOptions, check_probes, plan
    from pocketclip.evaluate.probe_suite import find_training_sets

    names = _task_names(tasks, suite, data)
    methods = [name.strip() for name in probe.split(",") if probe]
    if confusion is not None and len(names) != 1:
        raise PocketclipError(f"--confusion {confusion}: a page holds one task; name it in --tasks")
    check_output_file("--confusion", confusion, (".html", ".htm"))
    if probe:
        check_probes(methods)
    label_set = _label_set(labels_file, template or templates_file)
    options = DataOptions(
        image_column=image_column, label_column=label_column, caption_column=caption_column,
        where=label_conditions(where or []), split=split, classes_file=classes_file,
        templates=tuple(template or ()), templates_file=templates_file,
    )  # fmt: skip
    planned = plan(names, data, options)
    if not planned.ready:
        raise PocketclipError(_nothing_evaluated(planned.missing))
    if confusion and planned.ready[0][1].kind != "classification":
        raise PocketclipError(
            f"--confusion: {planned.ready[0][0].key} is not a classification task"
        )
    training = None
    if methods:
        training = find_training_sets(planned.ready, train_data or data, train_split, options)
        if not training.found:
            raise PocketclipError(_nothing_evaluated(_of_probes(training.missing)))
    encoder = load_encoder(
        model, model_name, backend=backend, device=device, threads=threads, batch_size=batch_size,
        revision=revision, offline=offline,
    )  # fmt: skip
    if label_set is not None:
        label_set.check_space(encoder.space_id, str(labels_file), embed_dim=encoder.embed_dim)
    settings = RunOptions(
        batch_size=batch_size, workers=workers, skip_bad=skip_bad, label_set=label_set,
        confusion=confusion is not None,
    )  # fmt: skip
    if not cache:
        settings.cache = None
    size = measure(encoder.config)
    about = {
        "model": zoo.describe(encoder.config), "source": model,
        "params_million": round(size.params_million, 4),
        "active_params_million": round(size.active_params_million, 4),
        "gflop": round(size.gflop, 4),
    }  # fmt: skip
    run = _Run(encoder, planned, settings, about, confusion)
    run.score(out)
    if training is not None:
        run.failed |= _of_probes(training.missing)
        run.score_probes(training.found, methods)
    facts = _facts(about, run.results, run.probes, run.failed)
    if json:
        print_json(facts)
    else:
        _print(facts, run.results)
    for text in run.skipped:
        note(f"skipped: {text}")
    for key, reason in run.failed.items():
        note(f"not evaluated: {key}: {reason}")
    if run.failed or run.skipped or any(result.about["skipped"] for result in run.results):
        raise typer.Exit(1)


def _task_names(tasks: str, suite: str | None, data: str) -> tuple[str | Task, ...]:
    """Return the requested tasks; without any, the set that `data` is."""
    from pocketclip.evaluate import own_task
    from pocketclip.evaluate import tasks as table

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if suite:
        names = table.suite(suite) + names
    return names or (own_task(data),)


def _label_set(file: Path | None, prompts: object) -> LabelSet | None:
    from pocketclip.label_set import is_label_set, read_label_set

    if file is not None and prompts:
        raise PocketclipError(
            f"{file} is a label set, which needs no prompts: leave out --template and "
            "--templates-file"
        )
    if file is not None and not is_label_set(file):
        raise PocketclipError(
            f"{file} is not a label set, as `pocketclip fit` writes it; a text file with class "
            "names goes to --classes-file"
        )
    return None if file is None else read_label_set(file)


def _nothing_evaluated(missing: Mapping[str, str]) -> str:
    key, reason = next(iter(missing.items()))
    if len(missing) == 1:
        return reason
    return f"none of the {len(missing)} tasks could be evaluated; the first: {key}: {reason}"


def _of_probes(missing: Mapping[str, str]) -> dict[str, str]:
    return {f"{key}, probes": reason for key, reason in missing.items()}


class _Run:
    """The results of a run, with its progress on standard error and its confusion page."""

    def __init__(
        self,
        encoder: Encoder,
        planned: Plan,
        settings: RunOptions,
        about: Mapping[str, Any],
        page: Path | None,
    ) -> None:
        self.encoder, self.planned, self.settings = encoder, planned, settings
        self.about, self.page = about, page
        self.results: list[Result] = []
        self.probes: dict[str, dict[str, Any]] = {}
        self.failed = dict(planned.missing)
        """The reason, by what failed."""
        self.page_failures: dict[str, str] = {}
        self.skipped: list[str] = []

    def score(self, out: str | None) -> None:
        """Evaluate all tasks.

        Raises:
            PocketclipError: there is no result.
        """
        from pocketclip.cli._progress import progress
        from pocketclip.evaluate import Failure, run

        outcomes = run(
            self.encoder, self.planned.ready, out=out, about=self.about, options=self.settings,
            watch=lambda task, data: progress(data.total, "images", task.key),
            on_outcome=self._handle_outcome,
        )  # fmt: skip
        try:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    self.failed[outcome.key] = outcome.reason
                else:
                    self.results.append(outcome)
        except (PocketclipError, OSError) as error:
            # Earlier results are shown nevertheless.
            if not self.results:
                raise
            self.failed["the tasks from here on"] = str(error)
        self.failed |= self.page_failures
        if not self.results:
            raise PocketclipError(_nothing_evaluated(self.failed))

    def score_probes(self, training: Mapping[str, TaskData], methods: Sequence[str]) -> None:
        """Train and score probes on the tasks that did not fail."""
        from pocketclip.cli._progress import progress
        from pocketclip.evaluate import Failure
        from pocketclip.evaluate.probe_suite import run_probes

        ready = [(task, data) for task, data in self.planned.ready if task.key not in self.failed]
        for key, result in run_probes(
            self.encoder, ready, training, methods, self.settings,
            watch=lambda task, total: progress(total, "images", f"{task.key}, for the probes"),
        ):  # fmt: skip
            if isinstance(result, Failure):
                self.failed |= _of_probes({key: result.reason})
            else:
                self.probes[key] = result.facts
                self.skipped += [f"{bad.name}: {bad.reason}" for bad in result.skipped]

    def _handle_outcome(self, outcome: Outcome) -> None:
        """Write the confusion page, and collect the images that were left out."""
        from pocketclip.evaluate.report.page import confusion_page, write_page

        self.skipped += [f"{bad.name}: {bad.reason}" for bad in outcome.skipped]
        if self.page is None or outcome.confusion is None or outcome.classes is None:
            return
        title = f"{self.about['source']} on {self.planned.ready[0][0].dataset}"
        try:
            write_page(self.page, confusion_page(outcome.confusion, outcome.classes, title))
        except (PocketclipError, OSError) as error:  # the result itself is good
            self.page_failures[f"--confusion {self.page}"] = str(error)


def _facts(
    about: Mapping[str, Any],
    results: Sequence[Result],
    probes: Mapping[str, Any],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    from pocketclip.evaluate import average_38

    facts = {
        **about,
        "space_id": results[0].about["space_id"],
        "results": [result.as_json() for result in results],
        "failed": dict(failed),
    }
    average = average_38({result.key: result.main_metric for result in results})
    if probes:
        facts["probes"] = dict(probes)
    if average is not None:
        facts["average_38"] = average
    return facts


def _print(facts: Mapping[str, Any], results: Sequence[Result]) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    columns = (
        Column("task", folds=True), Column("metric", folds=True),
        *(Column(name, right=True) for name in ("value", "images", "skipped")),
    )  # fmt: skip
    lines = []
    for result in results:
        metric = result.about["metric"]
        rows = [(metric, result.main_metric)] if metric else _averages(result)
        more = facts.get("probes", {}).get(result.key, {})
        rows += [(name, more[name]) for name in ("knn_acc1", "lp_acc1") if name in more]
        for position, (name, value) in enumerate(rows):
            counts = [str(result.about["samples"]), str(result.about["skipped"] or "")]
            first = position == 0
            lines.append((
                result.key if first else "", str(name), percent(value),
                *(counts if first else ("", "")),
            ))  # fmt: skip
    print_table(columns, lines)
    if "average_38" in facts:
        say(f"38-task average: {facts['average_38']:.1%}")


def _averages(result: Result) -> list[tuple[str, float | None]]:
    """Return the averages of a task without a main metric."""
    return [(name, value) for name, value in result.metrics.items() if name.endswith("_avg")]
