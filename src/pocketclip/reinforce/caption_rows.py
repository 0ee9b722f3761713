"""The files of a table of captions: rows as jsonl, csv, tsv or parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketclip import storage
from pocketclip.errors import (
    ConfigError,
    DataError,
    ParseError,
)
from pocketclip.formats.arrow import import_pyarrow
from pocketclip.formats.json_text import load_json

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
FACTS = ("uid", "path", "url")
"""The columns that say which image a row is of."""
MOST_BYTES = 1 << 30


def write_rows(file: Path, path: str, rows: Sequence[Row], column: str) -> None:
    """Write rows to `file`, in the format that the suffix of `path` says.

    Raises:
        ConfigError: a cell of a csv would have to hold several texts.
    """
    lowered = path.lower()
    if lowered.endswith((".csv", ".tsv")):
        delimiter = "\t" if lowered.endswith(".tsv") else ","
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
            names = _names(rows, column)
            writer.writerow(names)
            writer.writerows([cell_of(row, name, path) for name in names] for row in rows)
    elif lowered.endswith(".parquet"):
        pa, parquet = import_pyarrow()
        names = _names(rows, column)
        kinds = {name: pa.string() if name in FACTS else pa.list_(pa.string()) for name in names}
        cells = {name: [row.get(name) for row in rows] for name in names}
        table = pa.table({name: pa.array(cells[name], kinds[name]) for name in names})
        with file.open("wb") as handle:
            parquet.write_table(table, handle)
    else:
        with file.open("w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _names(rows: Sequence[Row], column: str) -> list[str]:
    """Return the columns of all rows: uid and place, own captions, new ones."""
    names = dict.fromkeys(name for row in rows for name in row)
    first = [name for name in FACTS if name in names]
    return list(dict.fromkeys([*(first or ["uid"]), *(n for n in names if n != column), column]))


def cell_of(row: Row, name: str, path: str) -> str:
    """Return a cell of a csv.

    Raises:
        ConfigError: it would have to hold several texts.
    """
    value = row.get(name)
    if not isinstance(value, list):
        return value or ""
    if len(value) > 1:
        raise ConfigError(
            f"{path}: a cell holds one text, but {row['uid']} has {len(value)} under {name}: "
            "write .jsonl or .parquet"
        )
    return value[0] if value else ""


def read_rows(path: str, column: str) -> list[Row]:
    """Return the rows that `write_rows` wrote.

    Raises:
        DataError: the table is damaged, or was changed.
    """
    data = storage.read_bytes(path, max_bytes=MOST_BYTES)
    try:
        if path.lower().endswith((".csv", ".tsv")):
            rows = list(
                _from_csv(data.decode("utf-8"), "\t" if path[-3:].lower() == "tsv" else ",")
            )
        elif path.lower().endswith(".parquet"):
            _, parquet = import_pyarrow()
            read = parquet.read_table(io.BytesIO(data)).to_pylist()
            rows = [{k: v for k, v in row.items() if v is not None} for row in read]
        else:
            rows = [load_json(line, what=path) for line in data.splitlines() if line.strip()]
    except (ParseError, UnicodeDecodeError, csv.Error, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run again") from error
    for row in rows:
        texts = row.get(column) if isinstance(row, dict) else None
        if not isinstance(texts, list) or not isinstance(row.get("uid"), str):
            raise DataError(
                f"{path} was changed: a row has no uid or no list under {column}; choose another "
                "--out, or remove it and run again"
            )
    return rows


def _from_csv(text: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 26))
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
        facts = {name: row[name] for name in FACTS if row.get(name)}
        texts = {n: [v] if v else [] for n, v in row.items() if n not in FACTS}
        yield {**facts, **texts}
