"""A run's log: JSON lines always, TensorBoard and Weights & Biases as the recipe says.

RUN/log.jsonl      {"step": 50, "samples": 6400, "loss": 4.1, "distill_loss": 4.1, ...}
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketclip.devices import is_installed
from pocketclip.errors import MissingDependencyError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.formats.lines import split_lines
from pocketclip.storage.local import write_whole
from pocketclip.train.recipe import Recipe

LOG = "log.jsonl"
_NO_WANDB = (
    "the recipe reports to Weights & Biases (wandb:), which is not installed: pip install wandb, "
    "or set wandb=null"
)
log = logging.getLogger(__name__)


def check_trackers(recipe: Recipe) -> None:
    """Check, before any work, that the tracker that the recipe names is installed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if recipe.wandb and not is_installed("wandb"):
        raise MissingDependencyError(_NO_WANDB)


class Log:
    """Appends to a run's logs; a context manager.

    Args:
        run: the run's folder.
        recipe: says which trackers to use.
        step: the step that the run resumes after; records of later steps, which are done again,
            are removed.

    Raises:
        MissingDependencyError: the recipe names a tracker that is not installed.
    """

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        path = run / LOG
        records = [record for record in read(path) if record.get("step", 0) <= step]
        with write_whole(path) as temporary:
            text = "".join(json.dumps(record) + "\n" for record in records)
            temporary.write_text(text, "utf-8")
        self._board = _tensorboard(run, step) if recipe.tensorboard else None
        self._wandb = _wandb(run, recipe) if recipe.wandb else None
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record with its `step`, and flush it to the operating system."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        step = int(record["step"])
        numbers = dict(_numbers({k: v for k, v in record.items() if k != "step"}))
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)


def _numbers(node: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield the numbers of a record by name; those of objects and lists as `experts/LAYER/dead`."""
    for name, value in node.items():
        if isinstance(value, list):
            value = {str(i): one for i, one in enumerate(value)}
        if isinstance(value, dict):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{before}{name}", value


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `log.jsonl`; lines that are not whole are left out."""
    out: list[dict[str, Any]] = []
    if not path.is_file():
        return out
    for line in split_lines(path.read_text("utf-8", "replace")):
        try:
            record = load_json(line, constants=True)
        except ParseError:
            continue
        if isinstance(record, dict):
            out.append(record)
    return out


def _tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:  # an optional package; the JSON lines hold the same values
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)


def _wandb(run: Path, recipe: Recipe) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_NO_WANDB) from error
    return wandb.init(
        project=recipe.wandb,
        dir=str(run),
        id=_run_id(run / "wandb.id"),
        resume="allow",
        config=recipe.model_dump(mode="json"),
    )


def _run_id(path: Path) -> str:
    """Return the run's id. It is stored in the folder, as folder names may repeat."""
    if not path.is_file():
        with write_whole(path) as temporary:
            temporary.write_text(secrets.token_hex(8), "utf-8")
    return path.read_text("utf-8").strip()
