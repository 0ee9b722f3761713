"""Rows of csv, tsv, jsonl and SugarCrepe's json files, one at a time, with their position."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError, ParseError
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.formats.json_text import MAX_BYTES, load_json
from pocketclip.pairs.base import matches
from pocketclip.pairs.tables import SEPARATOR_LINE, choose_delimiter, folder_of

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
IMAGES = ("image", "filepath", "path", "filename", "file")
LABELS = ("label", "class_id", "cls", "class", "class_name")
CAPTIONS = ("captions", "caption", "text", "raw")
"""Usual column names, in order of preference."""
_IMAGE_FOLDERS = ("images", "winogavil_images", "val2017", "coco/val2017")
_Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose columns are known; its rows can be read repeatedly."""

    path: str
    options: DataOptions
    rows: Callable[[], Iterator[_Row]]
    """Yields position and content of each row that the options select."""
    columns: list[str]

    first: _Row

    def beside(self, name: str) -> tuple[str, str]:
        """Return the paths where a list for this table may be: `STEM.name`, or in its folder."""
        stem = self.path.rpartition(".")[0]
        return f"{stem}.{name}", storage.join(folder_of(self.path), name)

    def column(self, requested: str | None, usual: tuple[str, ...], what: str) -> str | None:
        """Return the requested column, or the first existing one of the usual names."""
        if requested is None:
            columns = (find_column(self.columns, name) for name in usual)
            return next((name for name in columns if name is not None), None)
        column = find_column(self.columns, requested)
        if column is None:
            raise DataError(
                f"{self.path} has no column {requested!r} for the {what}; it has: "
                f"{', '.join(self.columns)}"
            )
        return column

    def locator(self, first: object) -> Callable[[Any, str], str]:
        """Return a function from an image's path in the table and the row's name to its full path.

        Paths are relative to the table's folder, or to the usual folder in it that holds the image
        `first`.
        """
        folder = folder_of(self.path)
        name = str(first or "").strip()
        usual = [folder, *(storage.join(folder, *inner.split("/")) for inner in _IMAGE_FOLDERS)]
        if not name or storage.is_remote(name):  # an address of its own, in no folder
            return partial(_image_path, folder)
        matching = (base for base in usual if storage.exists(_image_path(base, name, "")))
        return partial(_image_path, next(matching, folder))


def find_column(columns: Iterable[str], name: str) -> str | None:
    """Return the column of this name, or the only one that differs in case and spaces."""
    alike = [c for c in columns if c.strip().lower() == name.strip().lower()]
    return name if name in alike else alike[0] if len(alike) == 1 else None


def _image_path(folder: str, text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the image's path is empty")
    text = text.strip()
    if storage.is_remote(text):
        return text
    if text.startswith("/") or text[1:3] == ":\\" or text[:7].lower() == "file://":
        return storage.absolute(text)
    return f"{folder.rstrip('/')}/{text}"  # a Path per row would take ten times as long


def open_rows(path: str, options: DataOptions) -> Table:
    """Return the table at `path`.

    Raises:
        DataError: no row matches the options, or the first rows are damaged.
        StorageError: the table cannot be read.
    """
    rows = _rows_of(path, options)
    first = next(rows(), None)
    if first is None:
        which = " ".join(f"{name}={value}" for name, value in options.where)
        raise DataError(f"{path} has no rows{f' with {which}' if which else ''}")
    columns = [name for name in first[1] if isinstance(name, str)]
    return Table(path, options, rows, columns, first)


def _rows_of(path: str, options: DataOptions) -> Callable[[], Iterator[_Row]]:
    low = path.lower()
    if low.endswith((".json", ".jsonl")):
        read = _json if low.endswith(".json") else _jsonl
    else:
        read = partial(_csv, options=options)

    def rows() -> Iterator[_Row]:
        for where, row in read(path):
            for name, value in options.where:
                column = name if name in row else find_column(row, name)
                if column is None:
                    raise DataError(f"{where} has no column {name!r} to choose rows by")
                if not matches(row[column], value):
                    break
            else:
                yield where, row

    return rows


def _delimiter(path: str, options: DataOptions, first: str) -> str:
    """Return the delimiter of a table with this first line."""
    requested = [options.image_column, options.label_column, options.caption_column]
    known = [*(name for name in requested if name), *(name for name, _ in options.where)]
    known += [*IMAGES, *LABELS, *CAPTIONS]

    def count(columns: list[str]) -> int:
        return sum(find_column(columns, name) is not None for name in known)

    return choose_delimiter(path, lambda by: next(csv.reader([first], delimiter=by), []), count)


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[str]:
    for line in iter(partial(text.readline, MAX_BYTES), ""):
        if len(line) == MAX_BYTES:
            raise DataError(f"{path} has a line larger than {MAX_BYTES:,} bytes; is it a table?")
        yield line


def _csv(path: str, options: DataOptions) -> Iterator[_Row]:
    with storage.open_read(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        number = 0
        try:
            all_lines = _lines(path, text)
            first = next(all_lines, "")
            stated = SEPARATOR_LINE.fullmatch(first)
            lines = all_lines if stated else itertools.chain([first], all_lines)
            delimiter = stated[1] if stated else _delimiter(path, options, first)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(reader, [])
            for name in header:
                if header.count(name) > 1:
                    raise DataError(f"{path} has two columns {name!r}; rename one")
            for number, row in enumerate(reader, 3 if stated else 2):
                if len(row) == len(header):
                    yield f"{path} row {number}", dict(zip(header, row, strict=True))
                elif row:  # not an empty line
                    raise DataError(
                        f"{path} row {number} has {len(row)} columns, the header {len(header)}"
                    )
        except csv.Error as error:
            raise DataError(f"{path} row {max(number, 1) + 1} is not valid csv: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} after row {max(number, 1)} is not UTF-8 text") from error


def _row(line: bytes, where: str) -> Any:
    # NaN is refused where a value is used; a path may hold what UTF-8 cannot.
    return load_json(line, what=where, constants=True, surrogates=True)


def _jsonl(path: str) -> Iterator[_Row]:
    with storage.open_read(path) as stream:
        lines = iter(partial(stream.readline, MAX_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            where = f"{path} row {number}"
            try:
                row = _row(line, where) if line.strip() else {}
            except ParseError as error:
                raise DataError(str(error)) from error
            if not isinstance(row, dict):
                raise DataError(f"{where} is not a JSON object")
            if row:
                yield where, row


def _json(path: str) -> Iterator[_Row]:
    """Yield the rows of a SugarCrepe file: an object of objects."""
    try:
        whole = load_json(storage.read_bytes(path), what=path)
    except ParseError as error:
        raise DataError(str(error)) from error
    if not isinstance(whole, dict) or not all(isinstance(row, dict) for row in whole.values()):
        raise DataError(f"{path} is not an object of objects, the format of SugarCrepe's files")
    for key, row in whole.items():
        where = f"{path} row {key}"
        both = [row.get("caption"), row.get("negative_caption")]
        if not all(isinstance(text, str) for text in both):
            raise DataError(f"{where} lacks caption or negative_caption")
        yield where, {"image": row.get("filename"), "captions": both}
