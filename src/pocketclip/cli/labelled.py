"""The options of labelled photographs, for verbs that compare accuracies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.types import Encoder

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
    """Return `pocketclip.evaluate.top1` of the options as they are written.

    Raises:
        PocketclipError: there are no labelled photographs, or `where` is not COLUMN=VALUE.
    """
    from pocketclip.cli.eval import conditions
    from pocketclip.evaluate import top1 as measure

    return measure(data, label_column=label_column, where=conditions(where), templates=templates)
