"""The results file: read, validated, written whole.

It has DataComp's format: each line has `key`, `dataset` and `metrics` with `main_metric`;
`pocketclip` beside them records the embedding space and the evaluation set. Undefined values (the
top 5 of two classes) are null; NaN, which other tools write, is read as null too.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError, ParseError
from pocketclip.evaluate.tasks import DATACOMP38, Metrics
from pocketclip.formats.fields import field, typed
from pocketclip.formats.json_text import MAX_BYTES, read_json_lines
from pocketclip.storage.stores import explained

_OURS = "pocketclip"
_ABOUT: dict[str, type] = {
    **dict.fromkeys(("model", "space_id", "identity", "kind", "metric"), str),
    **dict.fromkeys(("samples", "skipped"), int),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of a results file."""

    key: str
    dataset: str
    metrics: Metrics
    about: dict[str, Any] = attribute(default_factory=dict)
    """How it was made: `model`, `space_id`, `samples`, `skipped`, `data`, `identity`, ...; empty in
    files of other tools."""

    @property
    def main_metric(self) -> float | None:
        """The task's main value."""
        return self.metrics.get("main_metric")

    def as_json(self) -> dict[str, Any]:
        """Return the line as plain JSON types."""
        line = {"key": self.key, "dataset": self.dataset, "metrics": self.metrics}
        return line | ({_OURS: self.about} if self.about else {})


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """Return the lines of a results file, ours or DataComp's.

    Raises:
        DataError: an invalid line, a task that occurs twice, or two embedding spaces; the message
            names the line.
        StorageError: the file cannot be read.
    """
    file = os.fspath(path)
    results: list[Result] = []
    rows: dict[str, int] = {}
    spaces: dict[str, int] = {}
    for number, row in _rows(file):
        result = _parsed(row, f"{file} line {number}")
        if result.key in rows:
            raise DataError(f"{file} line {number}: {result.key} is already in line "
                            f"{rows[result.key]}: remove one of them")  # fmt: skip
        rows[result.key] = number
        space = result.about.get("space_id")
        if space and spaces and space not in spaces:
            other, first = next(iter(spaces.items()))
            raise DataError(f"{file} line {number} ({result.key}) is of embedding space {space}, "
                            f"and line {first} of {other}: a file holds one model")  # fmt: skip
        if space:
            spaces.setdefault(space, number)
        results.append(result)
    if not results:
        raise DataError(f"{file} holds no results")
    return results


def _rows(path: str) -> Iterator[tuple[int, Any]]:
    try:
        # Other tools write NaN for undefined values.
        yield from read_json_lines(
            storage.read_bytes(path, max_bytes=MAX_BYTES, regular=True), what=path, constants=True
        )
    except ParseError as error:
        raise DataError(f"{error}: is this a results file?") from error


def _parsed(row: Any, where: str) -> Result:
    try:
        key = field(row, "key", str, what=where)
        where = f"{where} ({key})"
        about = field(row, _OURS, dict, what=where, default={})
        for name, kind in _ABOUT.items():
            field(about, name, kind, what=where, default=None)
        return Result(
            key=key,
            dataset=field(row, "dataset", str, what=where, default=None) or key,
            metrics={
                name: _value(value, f"{where}: {name}")
                for name, value in field(row, "metrics", dict, what=where).items()
            },
            about=about,
        )
    except ParseError as error:
        raise DataError(f"{error}: is this a results file?") from error


def _value(value: object, what: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return typed(value, float, what=what)


def check_writable(path: str) -> None:
    """Check before the work that a local results file can be written; create its folder.

    Raises:
        StorageError: it cannot be written.
    """
    if storage.is_remote(path):
        return  # writing an empty object as a test would leave a file without results
    file = Path(storage.absolute(path))
    with explained(path, "write"):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_results(path: str, results: Iterable[Result]) -> None:
    """Write a results file, whole or not at all.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    rows = [json.dumps(line.as_json(), ensure_ascii=False, allow_nan=False) for line in results]
    # File names from other tools' results may hold what UTF-8 cannot; it is escaped.
    storage.write_bytes(path, ("\n".join(rows) + "\n").encode("utf-8", "backslashreplace"))


def average_38(values: dict[str, float | None]) -> float | None:
    """Return the mean main metric over DataComp's 38 tasks; None unless all have a value."""
    values_38 = [value for key in DATACOMP38 if (value := values.get(key)) is not None]
    complete = len(values_38) == len(DATACOMP38)
    return math.fsum(values_38) / len(values_38) if complete else None
