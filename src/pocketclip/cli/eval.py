"""`pocketclip eval`: how good a model is, in the tasks and metrics of the published tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli.loading import (
    BACKEND_HELP,
    DEVICE_HELP,
    MODEL_HELP,
    MODEL_NAME_HELP,
    REVISION_HELP,
    THREADS_HELP,
)
from pocketclip.cli.output import Column, note, print_json, print_table, say
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.cli._inputs import Advance
    from pocketclip.evaluate import DataOptions, Outcome, Plan, Result, RunOptions, Task, TaskData
    from pocketclip.types import Encoder


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="The folder or object store with the tasks' sets; or one set of your own: a "
            "folder, or a table (csv, tsv, jsonl).",
        ),
    ],
    tasks: Annotated[
        str, typer.Option(help="Tasks, separated by commas: imagenet1k,cifar10, or your own sets.")
    ] = "",
    suite: Annotated[
        str | None, typer.Option(help="datacomp38, or all (these and the 12 further tasks).")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="A results file (jsonl); what stands in it is not done again."
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out unreadable images, and count them.")
    ] = False,
    confusion: Annotated[
        Path | None, typer.Option(help="Write a confusion plot of one task to this .html file.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Of a table: the images' paths.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Of a table: the labels, numbers or names.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Of a table: the captions, for retrieval.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Of a table: only rows with COLUMN=VALUE, say split=test; repeat."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a set in folders: which split.")] = "test",
    classes_file: Annotated[str | None, typer.Option(help="Class names, one per line.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='A prompt such as "a photo of a {}."; several are averaged.'),
    ] = None,
    templates_file: Annotated[str | None, typer.Option(help="Prompts, one per line.")] = None,
    probe: Annotated[
        str, typer.Option(help="Also learn on frozen embeddings of a training split: knn,linear.")
    ] = "",
    train_split: Annotated[
        str, typer.Option(help="The split that probes learn from, in folders or a split column.")
    ] = "train",
    train_data: Annotated[
        str | None, typer.Option(help="Where it lies, if elsewhere than --data.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help=MODEL_NAME_HELP)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at a time.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; default: one per core.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep the embeddings of class names.")
    ] = True,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help=REVISION_HELP)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model on evaluation sets: zero-shot classification, retrieval and more.

    Sets lie in DataComp's layout (ROOT/wds_TASK_test/), in folders by class, or in a table of
    images with labels or captions. A task whose set is missing or bad is named and the others go
    on; the exit code is then 1, and 2 if nothing was evaluated. The 38-task average is shown
    only when all 38 are there.

    \b
    pocketclip eval mobileclip2-s0 --tasks imagenet1k,cifar10 --data sets --out results.jsonl
    pocketclip eval mobileclip2-s0 --suite datacomp38 --data s3://bucket/sets --out results.jsonl
    pocketclip eval runs/small --data shelf/ --template "a photo of {} on a shelf."
    pocketclip eval runs/small --data pairs.csv --label-column product --where split=test
    """
    from pocketclip.cli.loading import load_encoder
    from pocketclip.evaluate import DataOptions, RunOptions, check_probes, plan

    names = _names(tasks, suite, data)
    methods = [name.strip() for name in probe.split(",") if probe]
    _check_confusion(confusion, names)
    if probe:
        check_probes(methods)
    options = DataOptions(
        image_column=image_column, label_column=label_column, caption_column=caption_column,
        where=conditions(where or []), split=split, classes_file=classes_file,
        templates=tuple(template or ()), templates_file=templates_file,
    )  # fmt: skip
    found = plan(names, data, options)
    if not found.ready:
        raise PocketclipError(_nothing(found.missing))
    if confusion and found.ready[0][1].kind != "classification":
        raise PocketclipError(f"--confusion: {found.ready[0][0].key} is no classification task")
    training: dict[str, TaskData] = {}
    untrained: dict[str, str] = {}
    if methods:
        training, untrained = _training(found, train_data or data, train_split, options)
    encoder = load_encoder(
        model, model_name, backend=backend, device=device, threads=threads, batch_size=batch_size,
        revision=revision, offline=offline,
    )  # fmt: skip
    settings = RunOptions(
        batch_size=batch_size, workers=workers, skip_bad=skip_bad, confusion=confusion is not None
    )
    if not cache:
        settings.cache = None
    about = {"model": encoder.config.name, "source": model}
    shown = _Shown(confusion)
    results, failed = shown.run(encoder, found, out, about, settings)
    failed |= untrained
    probes = shown.probe(encoder, found, training, methods, settings, failed) if methods else {}
    facts = _facts(about, results, probes, failed)
    if json:
        print_json(facts)
    else:
        _print(facts, results)
    shown.report(failed)
    if failed or shown.skipped or any(result.about["skipped"] for result in results):
        raise typer.Exit(1)


def _names(tasks: str, suite: str | None, data: str) -> tuple[str | Task, ...]:
    """Return the tasks that are asked for; without any, the one set that `data` is."""
    from pocketclip.evaluate import own_task
    from pocketclip.evaluate import tasks as table

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if suite:
        names = table.suite(suite) + names
    return names or (own_task(data),)


def conditions(where: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return `COLUMN=VALUE` texts as pairs."""
    pairs = [text.partition("=") for text in where]
    wrong = [text for text, (column, equals, _) in zip(where, pairs, strict=True)
             if not column or not equals]  # fmt: skip
    if wrong:
        raise PocketclipError(f"--where {wrong[0]!r} is not COLUMN=VALUE")
    return tuple((column.strip(), value.strip()) for column, _, value in pairs)


def _check_confusion(page: Path | None, names: Sequence[str | Task]) -> None:
    if page is None:
        return
    if len(names) != 1:
        raise PocketclipError(f"--confusion {page}: one page holds one task; name one in --tasks")
    if page.suffix not in (".html", ".htm") or not page.absolute().parent.is_dir():
        raise PocketclipError(f"--confusion {page}: give an .html file in a folder that exists")


def _nothing(missing: Mapping[str, str]) -> str:
    if len(missing) == 1:
        return next(iter(missing.values()))
    listed = "; ".join(f"{key}: {reason}" for key, reason in missing.items())
    return f"no task could be evaluated: {listed}"


def _training(
    found: Plan, root: str, split: str, options: DataOptions
) -> tuple[dict[str, TaskData], dict[str, str]]:
    """Return the training sets by task key, and why there is none for others.

    Raises:
        PocketclipError: there is none for any task.
    """
    from pocketclip.evaluate import find

    columns = tuple((name, split if name == "split" else value) for name, value in options.where)
    options = replace(options, split=split, where=columns)
    training, missing = {}, {}
    for task, _ in found.ready:
        try:
            training[task.key] = find(task, root, options)
        except PocketclipError as error:
            missing[_probe_of(task.key)] = str(error)
    if not training:
        raise PocketclipError(_nothing(missing))
    return training, missing


def _probe_of(key: str) -> str:
    return f"{key}, probes"


class _Shown:
    """A run with its progress, skipped images and confusion page."""

    def __init__(self, page: Path | None) -> None:
        self.page = page
        self.unwritten: dict[str, str] = {}
        self.title = ""
        self.skipped: list[str] = []

    def run(
        self,
        encoder: Encoder,
        found: Plan,
        out: str | None,
        about: Mapping[str, Any],
        settings: RunOptions,
    ) -> tuple[list[Result], dict[str, str]]:
        """Return the results, and why each task failed that did."""
        from pocketclip.evaluate import Failure, run

        self.title = f"{about['source']} on {found.ready[0][0].dataset}"
        results: list[Result] = []
        failed = dict(found.missing)
        done = run(
            encoder, found.ready, out=out, about=about, options=settings,
            watch=self.watch, on_outcome=self.keep,
        )  # fmt: skip
        try:
            for item in done:
                if isinstance(item, Failure):
                    failed[item.key] = item.reason
                else:
                    results.append(item)
        except (PocketclipError, OSError) as error:
            # What was evaluated before is shown all the same.
            if not results:
                raise
            failed["the tasks from here on"] = str(error)
        failed |= self.unwritten
        if not results:
            raise PocketclipError(_nothing(failed))
        return results, failed

    def probe(
        self,
        encoder: Encoder,
        found: Plan,
        training: Mapping[str, TaskData],
        methods: Sequence[str],
        settings: RunOptions,
        failed: dict[str, str],
    ) -> dict[str, dict[str, Any]]:
        """Return what probes reach, by task key; `failed` gets why those failed that did."""
        from pocketclip.cli._inputs import progress
        from pocketclip.evaluate import run_probe
        from pocketclip.evaluate.stream import Skipped

        results = {}
        for task, test in found.ready:
            train = training.get(task.key)
            if train is None or task.key in failed:
                continue
            total = None if train.total is None or test.total is None else train.total + test.total
            left_out: list[Skipped] = []
            try:
                with progress(total, "images", f"{task.key}, for the probes") as advance:
                    options = replace(settings, advance=advance)
                    metrics, samples = run_probe(encoder, test, train, methods, options, left_out)
            except PocketclipError as error:
                failed[_probe_of(task.key)] = str(error)
                continue
            self.skipped += [f"{bad.name}: {bad.reason}" for bad in left_out]
            about: dict[str, Any] = {"train": train.path, "train_samples": samples}
            if left_out:
                about["train_skipped"] = len(left_out)
            results[task.key] = about | metrics
        return results

    @contextmanager
    def watch(self, task: Task, data: TaskData) -> Iterator[Advance]:
        """Show the progress of one task."""
        from pocketclip.cli._inputs import progress

        with progress(data.total, "images", task.key) as advance:
            yield advance

    def keep(self, outcome: Outcome) -> None:
        """Write the confusion page, and remember which images were left out."""
        from pocketclip.evaluate.report.page import confusion_page, write_page

        self.skipped += [f"{bad.name}: {bad.reason}" for bad in outcome.skipped]
        if self.page is None or outcome.confusion is None or outcome.classes is None:
            return
        try:
            write_page(self.page, confusion_page(outcome.confusion, outcome.classes, self.title))
        except (PocketclipError, OSError) as error:  # the result itself is good
            self.unwritten[f"--confusion {self.page}"] = str(error)

    def report(self, failed: Mapping[str, str]) -> None:
        """Name on standard error what was left out or failed."""
        lines = [f"skipped: {text}" for text in self.skipped]
        lines += [f"not evaluated: {key}: {reason}" for key, reason in failed.items()]
        for line in lines:
            note(line)


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
        rows = [(metric, result.main_metric)] if metric else _named(result)
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


def _named(result: Result) -> list[tuple[str, float | None]]:
    """Return the values that stand for a task without a main metric."""
    return [(name, value) for name, value in result.metrics.items() if name.endswith("_avg")]
