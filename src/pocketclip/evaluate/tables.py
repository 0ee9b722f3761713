"""Sets in a table: a csv, tsv or jsonl file of images with labels or captions.

Rows are read one at a time. A table with labels is read once before, for the distinct labels.
WinoGAViL's table and SugarCrepe's json files are read as they are published.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.evaluate.examples import (
    CLASSES,
    TEMPLATES,
    DataOptions,
    Example,
    Puzzle,
    TaskData,
    classes_in,
    identity,
    label_from,
    templates_in,
)
from pocketclip.evaluate.folders import named
from pocketclip.evaluate.tasks import Kind, Task

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_IMAGES = ("image", "filepath", "path", "filename", "file")
_LABELS = ("label", "class_id", "cls", "class", "class_name")
_CAPTIONS = ("captions", "caption", "text", "raw")
_PUZZLE = ("cue", "candidates", "associations")
_IMAGE_FOLDERS = ("images", "winogavil_images", "val2017", "coco/val2017", "")
_Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Table:
    path: str
    options: DataOptions
    rows: Callable[[], Iterator[_Row]]
    """Where each row stands, and the row; only those the options ask for."""
    columns: list[str]

    @property
    def folder(self) -> str:
        return self.path.replace("\\", "/").rpartition("/")[0] or (
            "/" if self.path.startswith("/") else "."
        )

    def beside(self, name: str) -> tuple[str, str]:
        """Return where a list for this table may stand: with its name, or in its folder."""
        stem = self.path.rpartition(".")[0]
        return f"{stem}.{name}", storage.join(self.folder, name)

    def column(self, given: str | None, usual: tuple[str, ...], what: str) -> str | None:
        """Return the column that the user named, or the first of the usual names there is."""
        if given is None:
            return next((name for name in usual if name in self.columns), None)
        if given not in self.columns:
            raise DataError(
                f"{self.path} has no column {given!r} for the {what}; it has: "
                f"{', '.join(self.columns)}"
            )
        return given

    def image(self, text: Any, where: str) -> str:
        """Return where an image lies; paths are relative to the table."""
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: the image's path is empty")
        text = text.strip()
        absolute = storage.is_remote(text) or text.startswith("/")
        return text if absolute else storage.join(self.folder, text)


def open_table(path: str, task: Task, options: DataOptions) -> TaskData:
    """Return the set that this table is.

    Raises:
        DataError: columns are missing, a row is not what it should be, or the list of class
            names does not fit; the message names file and row.
        StorageError: it cannot be read.
    """
    table = _open(path, options)
    kind = task.kind or _kind_of(table)
    if kind == "association":
        return _puzzles(table)
    image = table.column(options.image_column, _IMAGES, "images")
    if image is None:
        raise DataError(f"{path} has no column of images; name it with --image-column (it has: "
                        f"{', '.join(table.columns)})")  # fmt: skip
    if kind == "classification":
        return _labelled(table, image)
    if kind == "faces":
        raise DataError(f"{path}: this task needs metadata, which only a webdataset holds")
    return _captioned(table, image, kind)


def _open(path: str, options: DataOptions) -> _Table:
    rows = _rows_of(path, options)
    first = next(rows(), None)
    if first is None:
        which = " ".join(f"{name}={value}" for name, value in options.where)
        raise DataError(f"{path} has no rows{f' with {which}' if which else ''}")
    columns = [name for name in first[1] if isinstance(name, str)]
    return _Table(path, options, rows, columns)


def _rows_of(path: str, options: DataOptions) -> Callable[[], Iterator[_Row]]:
    low = path.lower()
    read = _json if low.endswith(".json") else _jsonl if low.endswith(".jsonl") else _csv

    def rows() -> Iterator[_Row]:
        for where, row in read(path):
            for name, value in options.where:
                if name not in row:
                    raise DataError(f"{path} has no column {name!r} to choose rows by")
                if str(row[name]) != value:
                    break
            else:
                yield where, row

    return rows


def _csv(path: str) -> Iterator[_Row]:
    with storage.open_read(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        tabs = path.lower().endswith(".tsv")
        reader = csv.DictReader(text, delimiter="\t" if tabs else ",", strict=True)
        number = 1
        try:
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise DataError(f"{path} row {number} has another number of columns than the "
                                    f"{len(reader.fieldnames or ())} of the first")  # fmt: skip
                yield f"{path} row {number}", row
        except csv.Error as error:
            raise DataError(f"{path} row {number + 1} is no csv: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} after row {number} is not UTF-8 text") from error


def _jsonl(path: str) -> Iterator[_Row]:
    with storage.open_read(path) as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path} row {number}"
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} is not a JSON object")
            if row:
                yield where, row


def _json(path: str) -> Iterator[_Row]:
    """Yield the rows of a SugarCrepe file: an object of objects."""
    try:
        whole = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(whole, dict) or not all(isinstance(row, dict) for row in whole.values()):
        raise DataError(f"{path} is no object of objects, as SugarCrepe's files are")
    for key, row in whole.items():
        where = f"{path} row {key}"
        both = [row.get("caption"), row.get("negative_caption")]
        if not all(isinstance(text, str) for text in both):
            raise DataError(f"{where} lacks caption or negative_caption")
        yield where, {"image": row.get("filename"), "captions": both}


def _kind_of(table: _Table) -> Kind:
    if all(name in table.columns for name in _PUZZLE):
        return "association"
    if table.options.label_column:
        return "classification"
    if table.options.caption_column:
        return "retrieval"
    if table.path.lower().endswith(".json"):
        return "caption_choice"
    if any(name in table.columns for name in _LABELS):
        return "classification"
    if any(name in table.columns for name in _CAPTIONS):
        return "retrieval"
    raise DataError(
        f"{table.path} has no column of labels or captions; name it with --label-column or "
        f"--caption-column (it has: {', '.join(table.columns)})"
    )


def _labelled(table: _Table, image: str) -> TaskData:
    path, options = table.path, table.options
    column = table.column(options.label_column, _LABELS, "labels")
    if column is None:
        raise DataError(f"{path} has no column of labels; name it with --label-column (it has: "
                        f"{', '.join(table.columns)})")  # fmt: skip
    labels: dict[str, str] = {}
    digest = hashlib.sha256()
    total = 0
    for where, row in table.rows():
        text = str(row.get(column, "")).strip()
        if not text:
            raise DataError(f"{where}: the label is empty")
        labels.setdefault(text, where)
        digest.update(f"{row.get(image)}\0{text}\n".encode())
        total += 1
    lists = table.beside(CLASSES)
    lines = classes_in(options, *lists)
    source = options.classes_file or lists[0]
    numbers = all(text.lstrip("-").isdecimal() for text in labels)
    if numbers:
        if lines is None:
            raise DataError(f"{path}: the labels in column {column!r} are numbers: give their "
                            f"names in --classes-file or {lists[0]}")  # fmt: skip
        classes = [line.split("\t", 1)[-1] for line in lines]
        number = {t: label_from(t, classes, f"{w} ({source})") for t, w in labels.items()}
    else:
        classes = named(sorted(labels), lines, path, source)
        number = {text: position for position, text in enumerate(sorted(labels))}
    templates = templates_in(options, *table.beside(TEMPLATES))

    def samples() -> Iterator[Example]:
        for where, row in table.rows():
            label = number[str(row[column]).strip()]
            yield Example(name=where, image=table.image(row.get(image), where), label=label)

    return TaskData(
        place=path,
        kind="classification",
        classes=classes,
        templates=templates,
        total=total,
        identity=identity("table", path, digest.hexdigest(), classes, templates),
        samples=samples,
    )


def _captioned(table: _Table, image: str, kind: Kind) -> TaskData:
    path = table.path
    column = table.column(table.options.caption_column, _CAPTIONS, "captions")
    if column is None:
        raise DataError(f"{path} has no column of captions; name it with --caption-column (it "
                        f"has: {', '.join(table.columns)})")  # fmt: skip

    def samples() -> Iterator[Example]:
        before: Example | None = None
        for where, row in table.rows():
            place, captions = table.image(row.get(image), where), _captions(row[column], where)
            if before is not None and before.image == place:  # one caption per row
                captions = before.captions + captions
                before = Example(name=before.name, image=place, captions=captions)
                continue
            if before is not None:
                yield before
            before = Example(name=where, image=place, captions=captions)
        if before is not None:
            yield before

    digest = hashlib.sha256()
    total = 0
    for example in samples():
        digest.update(repr((example.image, example.captions)).encode())
        total += 1
    return TaskData(
        place=path,
        kind=kind,
        total=total,
        identity=identity("table", path, kind, digest.hexdigest()),
        samples=samples,
    )


def _captions(value: Any, where: str) -> tuple[str, ...]:
    """Return the captions of a cell: a list, a JSON list, or one text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]  # a caption that begins with a bracket
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in found):
        raise DataError(f"{where}: the captions are not texts")
    captions = tuple(text.strip() for text in found if text.strip())
    if not captions:
        raise DataError(f"{where}: the list of captions is empty")
    return captions


def _puzzles(table: _Table) -> TaskData:
    missing = [name for name in _PUZZLE if name not in table.columns]
    if missing:
        raise DataError(f"{table.path} has no column {missing[0]!r}, as WinoGAViL's table has")

    def puzzle(where: str, row: dict[str, Any], folder: str) -> Puzzle:
        cue, candidates, chosen = str(row["cue"]).strip(), *(_names(row[n], f"{where}: {n}")
                                                             for n in _PUZZLE[1:])  # fmt: skip
        foreign = [name for name in chosen if name not in candidates]
        if not cue or foreign or not chosen:
            what = f"{foreign[0]!r} is no candidate" if foreign else "cue or associations are empty"
            raise DataError(f"{where}: {what}")
        files = tuple(storage.join(folder, _file(name)) for name in candidates)
        truth = tuple(name in chosen for name in candidates)
        return Puzzle(name=where, cue=cue, images=files, associated=truth)

    where, row = next(table.rows())
    first = _file(_names(row["candidates"], f"{where}: candidates")[0])
    folders = [storage.join(table.folder, name) for name in _IMAGE_FOLDERS if name]
    folders.append(table.folder)
    folder = next((f for f in folders if storage.exists(storage.join(f, first))), None)
    if folder is None:
        raise DataError(f"{where}: {first} is in none of {', '.join(folders)}")
    digest = hashlib.sha256()
    for where, row in table.rows():
        digest.update(repr(puzzle(where, row, folder)).encode())
    return TaskData(
        place=table.path,
        kind="association",
        identity=identity("table", table.path, digest.hexdigest()),
        samples=lambda: (puzzle(where, row, folder) for where, row in table.rows()),
    )


def _names(value: Any, where: str) -> list[str]:
    """Return a list of names, written as JSON, or as Python writes lists."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)  # literals only: runs nothing
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{where} is no list") from error
    if not isinstance(value, list) or not value or not all(isinstance(n, str) for n in value):
        raise DataError(f"{where} is no list of names")
    return value


def _file(name: str) -> str:
    return name if "." in name else f"{name}.jpg"
