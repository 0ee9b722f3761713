"""The files of the contents that are shown as duplicates, if they are there and unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketclip.search.duplicates.records import Duplicate, DuplicateGroup
from pocketclip.search.duplicates.table import THERE, Table, in_folders
from pocketclip.search.indexing.walk import is_current, look_up
from pocketclip.search.records import PhotoFacts
from pocketclip.search.store.database import Database, chunks_of_ids


@dataclass(frozen=True, slots=True)
class _File:
    """A file that has the size and time of the index."""

    path: Path
    modified: float
    identity: tuple[int, int]
    """Device and inode."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What is shown of a content, and its files, the oldest first."""

    digest: bytes
    size: int
    facts: PhotoFacts
    files: tuple[_File, ...]


class Files:
    """Looks up files when they are needed; each is looked for on the disk once."""

    def __init__(
        self, database: Database, table: Table, folders: Sequence[str | os.PathLike[str]]
    ) -> None:
        self.outdated = 0
        """Files that are not there now, or have another size or time than in the index."""
        self._database, self._table, self._folders = database, table, folders
        self._known: dict[int, _Content | None] = {}

    def load(self, contents: Iterable[int]) -> list[int]:
        """Look for the files of contents; return those contents of which none is there."""
        asked = sorted(set(contents))
        wanted = [content for content in asked if content not in self._known]
        for marks, chunk in chunks_of_ids(wanted):
            self._load(marks, chunk)
        return [content for content in asked if self._known[content] is None]

    def _load(self, marks: str, contents: Sequence[int]) -> None:
        where, values = in_folders(self._database, self._folders)
        files: dict[int, list[_File]] = {content: [] for content in contents}
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT f.content, r.path, f.path, f.size, f.mtime_ns FROM files f "
                f"JOIN roots r ON r.id = f.root WHERE {THERE} AND f.content IN ({marks}){where}",
                (*contents, *values),
            ).fetchall()
            about = connection.execute(
                "SELECT id, digest, size, width, height, format, orientation, taken, taken_offset, "
                f"camera, latitude, longitude FROM contents WHERE id IN ({marks})",
                contents,
            ).fetchall()
        for content, root, path, size, mtime_ns in rows:
            file = _look(root, path, size, mtime_ns)
            if file is None:
                self.outdated += 1
            else:
                files[content].append(file)
        self._known.update(dict.fromkeys(contents))
        for content, digest, size, *facts in about:
            found = sorted(files[content], key=lambda file: (file.modified, os.fsencode(file.path)))
            if found:
                self._known[content] = _Content(digest, size, PhotoFacts(*facts), tuple(found))

    def duplicate(
        self,
        content: int,
        distance: int | None = None,
        similarity: float | None = None,
        pixels: float | None = None,
    ) -> Duplicate:
        """Return a content that was loaded, with its oldest file."""
        known = self._known[content]
        assert known is not None, "only contents with a file"
        first, *others = known.files
        return Duplicate(
            path=first.path, content=content, digest=known.digest, size=known.size,
            facts=known.facts, modified=first.modified, distance=distance, similarity=similarity,
            pixels=pixels, copies=tuple(file.path for file in others),
        )  # fmt: skip

    def path(self, content: int) -> Path:
        """Return the oldest file of a content that was loaded."""
        return self.duplicate(content).path

    def exact_groups(self) -> Iterator[DuplicateGroup]:
        """Yield the contents that have several files."""
        several = self._table.ids[self._table.files > 1].tolist()
        self.load(several)
        for content in several:
            known = self._known[content]
            if known is None or len(known.files) < 2:
                continue
            seen: set[tuple[int, int]] = set()
            members = []
            for file in known.files:
                members.append(
                    Duplicate(
                        path=file.path, content=content, digest=known.digest, size=known.size,
                        facts=known.facts, modified=file.modified, linked=file.identity in seen,
                    )
                )  # fmt: skip
                seen.add(file.identity)
            yield DuplicateGroup("exact", tuple(members))


def _look(root: bytes, relative: bytes, size: int, mtime_ns: int) -> _File | None:
    """Return a file if it is there with the size and time of its row."""
    path = Path(os.fsdecode(root)) / os.fsdecode(relative)
    found = look_up(root, os.fsencode(path))
    if found is None or not is_current(found, size, mtime_ns):
        return None
    identity = (found.st_dev, found.st_ino)
    return _File(path, found.st_mtime, identity if found.st_ino else (id(path), 0))
