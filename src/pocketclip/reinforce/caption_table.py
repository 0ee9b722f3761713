"""A table of captions: one row per image, resumable, and readable as pairs.

A row has `uid`, `path` or `url` (where the image is), the captions that the pair has of its own,
and the new ones. `FILE.json` beside the table says how they were made: the captioner, its sampling,
the seed. Both are written whole, now and then and at the end, also of an interrupted run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, ParseError
from pocketclip.formats.arrow import import_pyarrow
from pocketclip.formats.escaping import escape_surrogates
from pocketclip.formats.json_text import load_json
from pocketclip.reinforce.caption_inputs import ImageFile
from pocketclip.reinforce.caption_rows import (
    MOST_BYTES,
    SUFFIXES,
    Row,
    cell_of,
    read_rows,
    write_rows,
)
from pocketclip.storage.hub_store import refuse_writing

VERSION = 1
SECONDS = 30.0
"""Between two writes; a slow write, of a large table, makes it longer."""


def about_path(path: str) -> str:
    """Return the path of the file that says how a table's captions were made."""
    return f"{path}.json"


class CaptionTable:
    """A table that grows, and is written now and then.

    Args:
        path: local or in an object store; its suffix is one of `SUFFIXES`.
        settings: what decides the captions, as JSON types; a table of other settings is refused.

    Attributes:
        earlier: the rows of an earlier run by uid.

    Raises:
        ConfigError: another suffix, or the table at `path` was made with other settings.
        DataError: the table is damaged.
        MissingDependencyError: pyarrow is not installed, for parquet.
        StorageError: it cannot be read, or nothing can be written there.
    """

    def __init__(self, path: str, settings: Mapping[str, Any]) -> None:
        if not path.lower().endswith(SUFFIXES):
            raise ConfigError(f"{path}: a table of captions ends in {', '.join(SUFFIXES)}")
        refuse_writing(path)
        if path.lower().endswith(".parquet"):
            import_pyarrow()
        elif path.lower().endswith((".csv", ".tsv")) and settings["captions"] > 1:
            raise ConfigError(
                f"{path} holds one caption per image, not {settings['captions']}: write .jsonl or "
                ".parquet"
            )
        self.path, self.settings = path, dict(settings)
        self.column: str = settings["column"]
        self.earlier: dict[str, Row] = {}
        self._images: dict[str, dict[str, Any]] = {}
        self._replaced: set[str] = set()  # captioned anew, and not written yet
        self._there: set[str] = set()  # images with another file than before, which can be opened
        self._rows: dict[str, Row] = {}
        self._order: dict[str, None] = {}
        self._written = time.monotonic()
        self._pause, self._changed = SECONDS, False
        if storage.exists(path):
            self._resume()

    def _resume(self) -> None:
        about = read_about(self.path)
        if about is None:
            raise ConfigError(
                f"{self.path} exists, and no {about_path(self.path)} beside it says how its "
                "captions were made: choose another --out, or move it away"
            )
        self._check(about["settings"])
        self._images = about["images"]
        self.earlier = {str(row["uid"]): row for row in read_rows(self.path, self.column)}

    def _check(self, stored: Mapping[str, Any]) -> None:
        changed = sorted(_differences(stored, self.settings))
        if changed:
            raise ConfigError(
                f"{self.path} holds captions of other settings ({', '.join(changed)} changed): "
                "choose another --out, or remove it"
            )

    def finished(self, facts: Row, image: ImageFile) -> Row | None:
        """Return the row of an image that an earlier run captioned, and keep it; else None.

        It is called for each image, in the order of the rows. An image whose version is another
        one is read: if its bytes are the same, its row is kept.

        Args:
            facts: the row without the new captions.
            image: the image's bytes, or where they are.
        """
        uid = facts["uid"]
        self._order[uid] = None
        row = self.earlier.get(uid)
        if row is None or {k: v for k, v in row.items() if k != self.column and v} != facts:
            return None
        known = self._images.get(uid, {})
        if not image.on_the_web and not (image.version and known.get("version") == image.version):
            digest = image.digest()
            if digest is None:
                return None
            if digest != known.get("sha256"):
                self._there.add(uid)
                return None
            self._images[uid] = image.facts(digest)
            self._changed = True
        self._rows[uid] = row
        return row

    def drop(self, uid: str) -> bool:
        """Drop the row of an earlier run if the image is there, and is no image any more.

        An image that cannot be reached, such as one on a disk that is not mounted, keeps its row.

        Returns:
            Whether there is such a row, which is kept.
        """
        if uid in self._there:
            self._changed |= self.earlier.pop(uid, None) is not None
        return uid in self.earlier

    def add(self, row: Row, facts: Mapping[str, Any]) -> None:
        """Add a row, made from an image of these `ImageFile.facts`; write if it is time.

        Raises:
            ConfigError: see `write`.
        """
        if self.path.lower().endswith((".csv", ".tsv")):
            for name in row:
                cell_of(row, name, self.path)  # before anything is written
        self._rows[row["uid"]] = row
        self._images[row["uid"]] = dict(facts)
        if row["uid"] in self.earlier:
            self._replaced.add(row["uid"])
        self._changed = True
        if time.monotonic() - self._written > self._pause:
            self.write()

    @property
    def left_over(self) -> int:
        """The number of rows of an earlier run whose images were not met in this one."""
        return len(self.earlier.keys() - self._order.keys())

    def _ordered(self) -> dict[str, Row]:
        known = {**self.earlier, **self._rows}
        return {uid: known[uid] for uid in [*self._order, *self.earlier] if uid in known}

    def write(self) -> None:
        """Write the table and the file beside it; rows that were not met stay, at the end.

        Raises:
            ConfigError: another run with other settings has written it in the meantime, or a cell
                of a csv would have to hold several texts.
            StorageError: it cannot be written.
        """
        begun = time.monotonic()
        if storage.exists(self.path):
            about = read_about(self.path)
            if about is not None:
                self._check(about["settings"])
        rows = list(self._ordered().values())
        # First what says how it was made: a table without it is refused. Replaced images are not
        # in it until the table is written, else a killed run would leave their old captions.
        new = {uid: facts for uid, facts in self._images.items() if uid not in self._replaced}
        self._write_about(new)
        with storage.write_whole(self.path) as temporary:
            write_rows(temporary, self.path, rows, self.column)
        if self._replaced:
            self._write_about(self._images)
            self._replaced.clear()
        self._changed, self._written = False, time.monotonic()
        self._pause = max(SECONDS, 20 * (self._written - begun))

    def _write_about(self, images: Mapping[str, Any]) -> None:
        about = {"version": VERSION, "settings": self.settings, "images": images}
        text = json.dumps(about, ensure_ascii=False, indent=1)
        storage.write_bytes(about_path(self.path), text.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Write what is not written yet, or the order of the rows if it has changed.

        A run that met no image which it could open changes nothing.
        """
        if self._rows and (self._changed or list(self._ordered()) != list(self.earlier)):
            self.write()


def read_about(path: str) -> dict[str, Any] | None:
    """Return what the file beside a table says, `settings` and `images`; None if there is none.

    Raises:
        DataError: it is damaged.
    """
    beside = about_path(path)
    if not storage.exists(beside):
        return None
    try:
        data = storage.read_bytes(beside)
        about = load_json(data, what=beside, max_bytes=MOST_BYTES, max_memory=MOST_BYTES)
    except ParseError as error:
        raise DataError(f"{error}: remove it and {path}, or restore it") from error
    if not isinstance(about, dict) or not isinstance(about.get("settings"), dict):
        raise DataError(f"{beside} does not say how captions were made: move it away")
    images = about.get("images")
    known = images.items() if isinstance(images, dict) else ()
    return {**about, "images": {uid: facts for uid, facts in known if isinstance(facts, dict)}}


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Yield the names of values that differ, such as `captioner.sampling.top_p`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif one != other:
        yield name


def place_of(source: str, url: str | None, table: str | None) -> Row:
    """Return where an image is, as a row says it: `path` or `url`, or nothing.

    A local path is relative to the folder of the table if the image is in it, else absolute.

    Args:
        source: a path or URL; empty for an image within a table or tar.
        url: the pair's.
        table: the path of the table; None: the path is given as it is.
    """
    if source[:8].lower().startswith(("http://", "https://")) or (not source and url):
        return {"url": source or url}
    if not source:
        return {}
    if table is None:
        return {"path": source}
    if not storage.is_remote(source):
        source = os.path.abspath(source)  # noqa: PTH100 - links stay links
        folder = "" if storage.is_remote(table) else os.path.dirname(os.path.abspath(table))  # noqa: PTH100, PTH120
        if folder and source.startswith(folder.rstrip(os.sep) + os.sep):
            source = os.path.relpath(source, folder)
    return {"path": escape_surrogates(source)} | ({"url": url} if url else {})


def texts_of(row: Iterable[str]) -> list[str]:
    """Return texts that JSON and parquet can hold."""
    return [escape_surrogates(text) for text in row]
