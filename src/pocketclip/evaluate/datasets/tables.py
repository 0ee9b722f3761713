"""Sets in a table: a csv, tsv or jsonl file of images with labels or captions.

Rows are read one at a time. A table with labels is first read once for the distinct labels.
WinoGAViL's table and SugarCrepe's json files are read as published.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.evaluate.classes import class_list, match_classes, whole_number
from pocketclip.evaluate.datasets.examples import (
    CLASSES,
    TEMPLATES,
    DataOptions,
    Example,
    Puzzle,
    TaskData,
    identity,
    load_templates,
)
from pocketclip.evaluate.datasets.rows import (
    CAPTIONS,
    IMAGES,
    LABELS,
    Table,
    find_column,
    open_rows,
)
from pocketclip.evaluate.tasks import Kind, Task
from pocketclip.formats.json_text import load_json
from pocketclip.pairs.duplicates import SeenUids
from pocketclip.storage.photos import IMAGE_SUFFIXES

_WRONG = "negative_caption"  # SugarCrepe's name
_PUZZLE = ("cue", "candidates", "associations")


def open_table(path: str, task: Task, options: DataOptions) -> TaskData:
    """Return the set in a table.

    Raises:
        DataError: missing columns, an invalid row, or a list of class names that does not match;
            the message names file and row.
        StorageError: the table cannot be read.
    """
    table = open_rows(path, options)
    kind = task.kind or _kind_of(table)
    if kind == "association":
        return _puzzles(table)
    image = table.column(options.image_column, IMAGES, "images")
    if image is None:
        raise DataError(f"{path} has no column of images; name it with --image-column (it has: "
                        f"{', '.join(table.columns)})")  # fmt: skip
    if kind == "faces":
        raise DataError(f"{path}: faces can only be read from a webdataset")
    if kind != "classification":
        return _captioned(table, image, kind)
    fields = task.groupings[0].fields if task.groupings else ()
    columns = {field: find_column(table.columns, field) for field in fields}
    missing = [field for field, column in columns.items() if column is None]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: {task.key} needs the "
                        f"metadata {', '.join(fields)}, whole numbers")  # fmt: skip
    return _labelled(table, image, [column for column in columns.values() if column is not None])


def _kind_of(table: Table) -> Kind:
    if all(find_column(table.columns, name) for name in _PUZZLE):
        return "association"
    if table.options.label_column:
        return "classification"
    if table.options.caption_column:
        return "retrieval"
    if table.path.lower().endswith(".json") or find_column(table.columns, _WRONG):
        return "caption_choice"
    if table.column(None, LABELS, "labels"):
        return "classification"
    if table.column(None, CAPTIONS, "captions"):
        return "retrieval"
    raise DataError(
        f"{table.path} has no column of labels or captions; name it with --label-column or "
        f"--caption-column (it has: {', '.join(table.columns)})"
    )


def _labelled(table: Table, image: str, fields: Sequence[str]) -> TaskData:
    path, options = table.path, table.options
    column = table.column(options.label_column, LABELS, "labels")
    if column is None:
        raise DataError(f"{path} has no column of labels; name it with --label-column (it has: "
                        f"{', '.join(table.columns)})")  # fmt: skip
    labels: dict[str, str] = {}
    digest = hashlib.sha256()
    total = 0
    for where, row in table.rows():
        text = _label(row, column, where)
        labels.setdefault(text, where)
        values = [row.get(image), text, *(row.get(field) for field in fields)]
        digest.update(json.dumps(values, default=str).encode())
        total += 1
    lists = table.beside(CLASSES)
    listed = class_list(options, *lists)
    if listed is None and all(whole_number(text) is not None for text in labels):
        raise DataError(f"{path}: the labels in column {column!r} are numbers: put their "
                        f"names into --classes-file or {lists[0]}")  # fmt: skip
    classes, number = match_classes(labels, listed, path, indices=True)
    templates = load_templates(options, *table.beside(TEMPLATES))
    locate = table.locator(table.first[1].get(image))

    def samples() -> Iterator[Example]:
        for where, row in table.rows():
            yield Example(
                name=where,
                image=locate(row.get(image), where),
                label=number[_label(row, column, where)],
                metadata=_metadata(row, fields, where) if fields else None,
            )

    return TaskData(
        path=path,
        kind="classification",
        classes=classes,
        templates=templates,
        total=total,
        identity=identity("table", path, digest.hexdigest(), classes, templates),
        samples=samples,
    )


def _label(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, (list, dict)) or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{where}: the label is {str(value)[:40]}, not a name or a number")
    text = "" if value is None else str(value).strip()
    if not text:
        raise DataError(f"{where}: the label is empty")
    return text


def _metadata(row: dict[str, Any], fields: Sequence[str], where: str) -> NDArray[np.int64]:
    texts = [str(row.get(field)).strip() for field in fields]
    numbers = []
    for field, text in zip(fields, texts, strict=True):
        number = whole_number(text)
        if number is None:
            raise DataError(f"{where}: {field} is {text[:40]!r}, which is not a whole number")
        numbers.append(number)
    return np.array(numbers, np.int64)


def _captioned(table: Table, image: str, kind: Kind) -> TaskData:
    path = table.path
    column = table.column(table.options.caption_column, CAPTIONS, "captions")
    if column is None:
        raise DataError(f"{path} has no column of captions; name it with --caption-column (it "
                        f"has: {', '.join(table.columns)})")  # fmt: skip
    wrong = find_column(table.columns, _WRONG)
    locate = table.locator(table.first[1].get(image))
    # In SugarCrepe, adjacent rows with the same image are separate questions.
    grouped = kind == "retrieval"

    def samples() -> Iterator[Example]:
        before: Example | None = None
        for where, row in table.rows():
            image_path, captions = locate(row.get(image), where), _captions(row.get(column), where)
            if wrong is not None:
                captions += _captions(row.get(wrong), where)
            if grouped and before is not None and before.image == image_path:
                captions = before.captions + captions
                before = Example(name=before.name, image=image_path, captions=captions)
                continue
            if before is not None:
                yield before
            before = Example(name=where, image=image_path, captions=captions)
        if before is not None:
            yield before

    digest = hashlib.sha256()
    total = 0
    seen = SeenUids()
    for example in samples():
        digest.update(repr((example.image, example.captions)).encode())
        seen.add(str(example.image))
        total += 1
    if grouped:
        _check_adjacent(seen, samples, path)
    return TaskData(
        path=path,
        kind=kind,
        total=total,
        identity=identity("table", path, kind, digest.hexdigest()),
        samples=samples,
    )


def _check_adjacent(seen: SeenUids, samples: Callable[[], Iterator[Example]], path: str) -> None:
    """Refuse non-adjacent rows of one image: their captions would count as mutual misses."""
    twins = seen.twins(1)
    if twins:
        index, ((_, first),) = min(twins.items())
        names = [e.name for i, e in enumerate(samples()) if i in (first, index)]
        raise DataError(
            f"{names[1]} has the same image as {names[0]}, with others between them: sort "
            f"{path} by image"
        )


def _captions(value: Any, where: str) -> tuple[str, ...]:
    """Return the captions of a cell: a list, a JSON list, or one text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = load_json(value, what=where, constants=True)
        except ValueError:
            value = [value]  # a caption that begins with a bracket
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: the captions are not text")
    captions = tuple(text.strip() for text in texts if text.strip())
    if not captions:
        raise DataError(f"{where}: the list of captions is empty")
    return captions


def _puzzles(table: Table) -> TaskData:
    columns = [find_column(table.columns, name) for name in _PUZZLE]
    if None in columns:
        missing = _PUZZLE[columns.index(None)]
        raise DataError(f"{table.path} has no column {missing!r}, as WinoGAViL's table has")

    def puzzles() -> Iterator[Puzzle]:
        for where, row in table.rows():
            values = [row.get(str(column)) for column in columns]
            cue = str(values[0] or "").strip()
            candidates, chosen = (
                _names(value, f"{where}: {name}")
                for name, value in zip(_PUZZLE[1:], values[1:], strict=True)
            )
            unknown = [name for name in chosen if name not in candidates]
            if not cue or unknown:
                problem = f"{unknown[0]!r} is not a candidate" if unknown else "the cue is empty"
                raise DataError(f"{where}: {problem}")
            yield Puzzle(
                name=where,
                cue=cue,
                images=tuple(locate(_file(name), where) for name in candidates),
                associated=tuple(name in chosen for name in candidates),
            )

    where, row = table.first
    names = _names(row.get(str(columns[1])), f"{where}: candidates")
    locate = table.locator(_file(names[0]))
    digest = hashlib.sha256()
    for puzzle in puzzles():
        digest.update(repr((puzzle.cue, puzzle.images, puzzle.associated)).encode())
    return TaskData(
        path=table.path,
        kind="association",
        identity=identity("table", digest.hexdigest()),
        samples=puzzles,
    )


def _names(value: Any, where: str) -> list[str]:
    """Return a list of names written as JSON or as a Python list."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)  # literals only, runs no code
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{where} is not a list") from error
    if not isinstance(value, list) or not value or not all(isinstance(n, str) for n in value):
        raise DataError(f"{where} is not a list of names")
    return value


def _file(name: str) -> str:
    return name if name.lower().endswith(IMAGE_SUFFIXES) else f"{name}.jpg"
