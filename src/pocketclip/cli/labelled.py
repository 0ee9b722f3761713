"""Labelled photographs on the command line: what turns a model into a top-1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

LABELLED_HELP = (
    "Labelled photographs to compare the accuracy on: a folder with a folder per label, or a "
    "table as `pocketclip eval` takes it."
)


def check_alone(column: str | None, where: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse the options of `--labelled` where it is not given itself.

    Raises:
        PocketclipError: one of them is given.
    """
    if column or where or templates:
        raise PocketclipError("--label-column, --where and --template go with --labelled DATA")


def top1(
    data: str,
    *,
    label_column: str | None = None,
    where: Sequence[str] = (),
    templates: Sequence[str] = (),
) -> Callable[[Encoder], float]:
    """Return a function that gives an encoder's zero-shot top-1 on `data`, in percent.

    Raises:
        PocketclipError: there are no labelled photographs.
    """
    from pocketclip.cli.eval import conditions
    from pocketclip.evaluate import DataOptions, RunOptions, evaluate, plan

    options = DataOptions(
        label_column=label_column, where=conditions(where), templates=tuple(templates)
    )
    name = Path(data.rstrip("/")).stem
    found = plan((name,), data, options)
    if not found.ready:
        raise PocketclipError(next(iter(found.missing.values())))
    task, samples = found.ready[0]
    if samples.kind != "classification":
        raise PocketclipError(f"{data} has no labels, only captions: give --label-column COLUMN")

    def measure(encoder: Encoder) -> float:
        settings = RunOptions(batch_size=encoder.batch_size)
        settings.cache = None
        result, _ = evaluate(encoder, task, samples, settings)
        return 100 * float(result.metrics["acc1"] or 0)

    return measure
