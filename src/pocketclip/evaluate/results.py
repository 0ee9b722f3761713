"""The file that results stand in: read, checked, written whole.

A results file has DataComp's form: per line `key`, `dataset` and `metrics` with `main_metric`;
`pocketclip` beside them says which embedding space it was and which data. Values that do not
exist (the top 5 of two classes) are null; readers take NaN for them too, as others write it.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.evaluate.tasks import DATACOMP38, Metrics
from pocketclip.stores import explained

_OURS = "pocketclip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of a results file."""

    key: str
    dataset: str
    metrics: Metrics
    about: dict[str, Any] = field(default_factory=dict)
    """What made it: `model`, `space_id`, `samples`, `skipped`, `data`, `identity`, ...; empty in
    files that others wrote."""

    @property
    def main_metric(self) -> float | None:
        """The value that counts."""
        return self.metrics.get("main_metric")

    def as_json(self) -> dict[str, Any]:
        """Return the line as plain JSON types."""
        line = {"key": self.key, "dataset": self.dataset, "metrics": self.metrics}
        return line | ({_OURS: self.about} if self.about else {})


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """Return the lines of a results file, ours or one of DataComp's form.

    Raises:
        DataError: a line that is not a result, a task that comes twice, two embedding spaces;
            the message names the line.
        StorageError: it cannot be read.
    """
    place = os.fspath(path)
    try:
        lines = storage.read_bytes(place).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not a results file: byte {error.start} is no text") from error
    results: list[Result] = []
    rows: dict[str, int] = {}
    spaces: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        result = _parsed(line, f"{place} line {number}")
        if result.key in rows:
            raise DataError(f"{place} line {number}: {result.key} stands in line "
                            f"{rows[result.key]} already: remove one")  # fmt: skip
        rows[result.key] = number
        space = result.about.get("space_id")
        if space and spaces and space not in spaces:
            other, first = next(iter(spaces.items()))
            raise DataError(f"{place} line {number} ({result.key}) is of embedding space {space}, "
                            f"and line {first} of {other}: one file holds one model")  # fmt: skip
        if space:
            spaces.setdefault(space, number)
        results.append(result)
    if not results:
        raise DataError(f"{place} holds no results")
    return results


def _parsed(line: str, where: str) -> Result:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}): is this a results file?") from error
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise DataError(f'{where} has no "key": is this a results file?')
    metrics = row.get("metrics")
    if not isinstance(metrics, dict):
        raise DataError(f'{where} ({row["key"]}) has no "metrics"')
    values: Metrics = {}
    for name, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise DataError(f"{where} ({row['key']}): {name} is {value!r}, not a number")
        if value is not None and math.isinf(value):
            raise DataError(f"{where} ({row['key']}): {name} is infinite")
        values[name] = None if value is None or math.isnan(value) else float(value)
    about = row.get(_OURS, {})
    dataset = row.get("dataset") or row["key"]
    if not isinstance(about, dict) or not isinstance(dataset, str):
        raise DataError(f'{where} ({row["key"]}): "dataset" or "{_OURS}" is not what it should be')
    return Result(key=row["key"], dataset=dataset, metrics=values, about=about)


def writable(path: str) -> None:
    """Check, before the work, that a local results file can be written; its folder is made.

    Raises:
        StorageError: it cannot.
    """
    if storage.is_remote(path):
        return  # an empty object would be a file of no results
    whole = Path(storage.absolute(path))
    with explained(path, "write"):
        whole.parent.mkdir(parents=True, exist_ok=True)
        if whole.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(whole.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_results(path: str, results: Iterable[Result]) -> None:
    """Write a results file, whole or not at all.

    Raises:
        StorageError: the disk is full, or the place cannot be written to.
    """
    rows = [json.dumps(line.as_json(), ensure_ascii=False, allow_nan=False) for line in results]
    storage.write_bytes(path, ("\n".join(rows) + "\n").encode())


def average_38(values: dict[str, float | None]) -> float | None:
    """Return the mean main metric over DataComp's 38 tasks; None unless all are there."""
    found = [values.get(key) for key in DATACOMP38]
    whole = [value for value in found if value is not None]
    return math.fsum(whole) / len(whole) if len(whole) == len(DATACOMP38) else None
