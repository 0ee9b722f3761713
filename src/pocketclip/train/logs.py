"""What a run says of itself: JSON lines always, TensorBoard and Weights & Biases where wanted.

RUN/log.jsonl      {"step": 50, "samples": 6400, "loss": 4.1, "distill_loss": 4.1, ...}
"""

from __future__ import annotations

import importlib.util
import json
import logging
import secrets
from pathlib import Path
from typing import Any

from pocketclip.errors import MissingDependencyError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.formats.lines import split_lines
from pocketclip.storage.local import write_whole
from pocketclip.train.recipe import Recipe

LOG = "log.jsonl"
_NO_WANDB = (
    "the recipe wants Weights & Biases (wandb:), which is not installed: pip install wandb, or set "
    "wandb=null"
)
log = logging.getLogger(__name__)


def check_trackers(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed, before any work.

    Raises:
        MissingDependencyError: the recipe wants one.
    """
    if recipe.wandb and importlib.util.find_spec("wandb") is None:
        raise MissingDependencyError(_NO_WANDB)


class Log:
    """Appends to a run's logs; a context manager.

    Args:
        run: the run's folder.
        recipe: for the settings of the trackers.
        step: where the run goes on; lines of later steps, which are done again, are removed.

    Raises:
        MissingDependencyError: the recipe wants a tracker that is not installed.
    """

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        path = run / LOG
        kept = [line for line in read(path) if line.get("step", 0) <= step]
        with write_whole(path) as temporary:
            text = "".join(json.dumps(line) + "\n" for line in kept)
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
        """Append a record with its `step`; it is on the way to the disk when this returns."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        step = int(record["step"])
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `log.jsonl`; a last line that was cut is left out."""
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
    except ModuleNotFoundError:  # it is an extra, and JSON lines hold the same
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
        id=_identity(run / "wandb.id"),
        resume="allow",
        config=recipe.model_dump(mode="json"),
    )


def _identity(path: Path) -> str:
    """Return the run's own identity, which is kept in its folder: names of folders repeat."""
    if not path.is_file():
        with write_whole(path) as temporary:
            temporary.write_text(secrets.token_hex(8), "utf-8")
    return path.read_text("utf-8").strip()
