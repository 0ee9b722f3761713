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
    results: list[Result] = []
    rows: dict[str, int] = {}
    spaces: dict[str, int] = {}
    for number, row in _rows(place):
        result = _parsed(row, f"{place} line {number}")
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


def _rows(place: str) -> Iterator[tuple[int, Any]]:
    try:
        # Others write NaN for what does not exist.
        yield from read_json_lines(
            storage.read_bytes(place, max_bytes=MAX_BYTES, regular=True), what=place, constants=True
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
    # What UTF-8 cannot hold (of file names in files of others) is escaped, as JSON does.
    storage.write_bytes(path, ("\n".join(rows) + "\n").encode("utf-8", "backslashreplace"))


def average_38(values: dict[str, float | None]) -> float | None:
    """Return the mean main metric over DataComp's 38 tasks; None unless all are there."""
    found = [values.get(key) for key in DATACOMP38]
    whole = [value for value in found if value is not None]
    return math.fsum(whole) / len(whole) if len(whole) == len(DATACOMP38) else None
