"""A copy of the few rows without which all others of a damaged library would be of no use.

Which embedding space the vectors are of, and where the roots are, is in two pages at the beginning
of the file. The copy is `origin.json` in the folder of derived files, for `repair`.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from pocketclip.formats.escaping import dump_json
from pocketclip.search.store.location import Location
from pocketclip.storage.local import write_whole
from pocketclip.storage.private import private_file, private_folder

_FACTS = ("space_id", "embed_dim", "model", "model_source")
_LARGEST = 16 << 20  # bytes


def write_origin(connection: sqlite3.Connection, location: Location) -> None:
    """Bring the copy up to date.

    Raises:
        OSError: it cannot be written.
        sqlite3.Error: the library cannot be read.
    """
    facts = {
        name: value
        for name, value in connection.execute("SELECT name, value FROM facts ORDER BY name")
        if name in _FACTS
    }
    roots = [
        [row, path.decode("utf-8", "surrogateescape"), exclude]
        for row, path, exclude in connection.execute("SELECT id, path, exclude FROM roots")
    ]
    if not facts and not roots:
        return
    text = dump_json({"version": 1, "facts": facts, "roots": roots}, ascii_only=True)
    if _read(location) == text:
        return
    private_folder(location.derived)
    with write_whole(location.derived / "origin.json") as temporary:
        private_file(temporary)
        temporary.write_text(text, "ascii")


def read_origin(location: Location) -> tuple[dict[str, Any], list[tuple[int, bytes, str]]]:
    """Return the facts and the roots (id, path, exclude) of the copy; empty without one."""
    try:
        value = json.loads(_read(location) or "{}")
        facts = {str(name): fact for name, fact in value.get("facts", {}).items() if name in _FACTS}
        roots = [
            (int(row), str(path).encode("utf-8", "surrogateescape"), str(exclude))
            for row, path, exclude in value.get("roots", [])
        ]
    except (ValueError, TypeError, AttributeError):  # damaged, too
        return {}, []
    return facts, roots


def _read(location: Location) -> str | None:
    try:
        with (location.derived / "origin.json").open("rb") as stream:
            return stream.read(_LARGEST).decode("ascii", "replace")
    except OSError:
        return None
