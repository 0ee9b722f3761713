"""One run of indexing: what changed in the roots is read, and what is new is encoded.

    report = run(database, ["~/Pictures"], Model(encoder, name="mobileclip2-s0"))

Files are matched by their bytes, so moved, renamed and copied ones need no decoding. Every batch is
committed: a run that is killed loses at most one, a run that is interrupted none.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pocketclip.devices import is_installed
from pocketclip.errors import LibraryError, count_of
from pocketclip.progress import ProgressReporter
from pocketclip.search.indexing.activity import recorded
from pocketclip.search.indexing.interrupts import HeldInterrupts
from pocketclip.search.indexing.reading import CHANGED, Candidate, ReadAhead, Reading, encode
from pocketclip.search.indexing.recording import NEEDS_EXTRA, Recorder, needs_extra
from pocketclip.search.indexing.roots import known_roots, register_root, resolve_root
from pocketclip.search.indexing.scan import Changes, FoundFile, Listing, apply_changes, scan_root
from pocketclip.search.model import check_space, set_model
from pocketclip.search.records import IndexReport
from pocketclip.search.store.database import Database
from pocketclip.search.thumbnail_store import ThumbnailStore

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

_OF_MODEL = "its embedding is *"
"""SQL's GLOB pattern of the errors of photographs that one model gives no embedding for."""
_AT_ONCE = 5000  # rows


@dataclass
class Model:
    """The model of a run."""

    encoder: Encoder | Callable[[], Encoder]
    """A function is called when there is something to encode: it loads the library's own model."""
    name: str | None = None
    """Its lasting name, to be recorded; None keeps the recorded one."""

    def load(self, database: Database) -> Encoder:
        """Return the encoder.

        Raises:
            LibraryError: its embedding space is not that of the library.
        """
        if callable(self.encoder):
            self.encoder = self.encoder()
        check_space(database, self.encoder)
        return self.encoder


@dataclass
class _Part:
    """A root, or a part of it, that the run goes through."""

    root: int
    below: bytes
    folder: Path
    listing: Listing | None = None
    changes: Changes = field(default_factory=lambda: Changes(0))

    @property
    def scope(self) -> tuple[str, list[int | bytes]]:
        """The condition for rows of `files f` in it, with its values."""
        if not self.below:
            return "f.root = ?", [self.root]
        between = [self.below + b"/", self.below + b"0"]  # "0" follows "/"
        return "f.root = ? AND f.path > ? AND f.path < ?", [self.root, *between]


def run(
    database: Database,
    roots: Sequence[str | os.PathLike[str]],
    model: Model,
    *,
    exclude: Sequence[str] = (),
    retry: bool = False,
    rebuild: bool = False,
    exact: bool = False,
    thumbnails: bool = True,
    reporter: ProgressReporter,
) -> IndexReport:
    """Index roots; see `Library.index`.

    Raises:
        LibraryError: see there.
    """
    report = IndexReport()
    with (
        database.writing() as connection,
        recorded(database.location, reporter, report) as reporter,
    ):
        is_new = any(resolve_root(database, root).root_id is None for root in roots)
        _check_model(database, model, load=rebuild or is_new, rebuild=rebuild)
        parts = _register(database, roots, exclude)
        _set_up(database, model, rebuild=rebuild)
        reporter.stage("listing the files")
        for part in parts:
            part.listing, part.changes = scan_root(
                database, part.root, part.below, progress=lambda n: reporter.progress(n, 0, "files")
            )
            _report_listing(report, part)
        parts = [part for part in parts if part.changes.missing is None]
        _forgive(database, connection, parts, retry=retry)
        candidates = [candidate for part in parts for candidate in _candidates(part, retry=retry)]
        waiting = _count_unencoded(connection, parts, absent=True)
        # Before anything is recorded: it may have changed.
        encoder = model.load(database) if candidates or waiting else None
        for part in parts:
            apply_changes(database, part.changes)
        failed = 0
        if encoder is not None:
            by_one = encoder.one_threaded()
            store = ThumbnailStore(database.location) if thumbnails else None
            recorder = Recorder(database, by_one or encoder, report, store)
            files = itertools.chain(candidates, _again(recorder, parts, candidates))
            total = len(candidates) + _count_unencoded(connection, parts)
            with ReadAhead(encoder, recorder, by_one, exact=exact, thumbnails=store) as ahead:
                _encode_all(encoder, ahead, files, total, recorder, report, reporter)
            if store is not None and store.is_full:
                reporter.remark(
                    "no more thumbnails are kept: their folder is at its limit, or the disk is "
                    "nearly full; they are made when they are shown"
                )
            failed = recorder.failed
        _count(connection, parts, report, failed)
    return report


def _check_model(database: Database, model: Model, *, load: bool, rebuild: bool) -> None:
    """Refuse a model of another embedding space before anything is written."""
    if load and callable(model.encoder):
        # A model that is gone must not leave a library without vectors, or with a root in vain.
        model.load(database)
    if not rebuild and not callable(model.encoder):
        check_space(database, model.encoder)


def _register(
    database: Database, roots: Sequence[str | os.PathLike[str]], exclude: Sequence[str]
) -> list[_Part]:
    """Return the parts to go through; new roots are recorded."""
    for root in roots:
        register_root(database, resolve_root(database, root), exclude)
    known = known_roots(database)
    if not roots:
        return [_Part(root.id, b"", root.path) for root in known]
    folders = {root.id: root.path for root in known}
    # Again, since a later root may have taken over an earlier one.
    targets = {
        (target.root_id or 0, target.below)
        for target in (resolve_root(database, root) for root in roots)
    }
    return [
        _Part(root, below, folders[root])
        for root, below in sorted(targets)
        if not any(
            other == root and folder != below and (not folder or below.startswith(folder + b"/"))
            for other, folder in targets
        )
    ]


def _set_up(database: Database, model: Model, *, rebuild: bool) -> None:
    """Record the model; for a rebuild, give up all vectors first."""
    if callable(model.encoder):
        return  # the library's own
    with database.transaction() as connection:
        if rebuild:
            connection.execute(
                "UPDATE contents SET vector = NULL, encoder = NULL WHERE vector IS NOT NULL"
            )
            connection.execute("UPDATE contents SET error = NULL WHERE error GLOB ?", (_OF_MODEL,))
        set_model(connection, database, model.encoder, model.name)


def _report_listing(report: IndexReport, part: _Part) -> None:
    listing, changes = part.listing, part.changes
    assert listing is not None
    if changes.missing is not None:
        report.missing_roots.append((part.folder / os.fsdecode(part.below), changes.missing))
        return
    for folder, reason in sorted(listing.failed.items()):
        report.unlisted.append((part.folder / os.fsdecode(folder), reason))
    examples = {kind: part.folder / os.fsdecode(path) for kind, path in listing.examples.items()}
    report.add(
        IndexReport(
            unchanged=changes.unchanged,
            vanished=len(changes.vanished),
            returned=len(changes.returned),
            excluded=len(changes.excluded),
            passed_over=dict(listing.passed_over),
            examples=examples,
        )
    )


def _forgive(
    database: Database, connection: sqlite3.Connection, parts: Sequence[_Part], *, retry: bool
) -> None:
    """Let unreadable contents be decoded again: with `retry`, or if their extra is there now."""
    conditions: list[tuple[str, Sequence[object]]] = []
    if is_installed("pillow_heif"):
        conditions.append(("error LIKE ?", [NEEDS_EXTRA]))
    if retry:
        for part in parts:
            scope, values = part.scope
            conditions.append(
                (
                    "error IS NOT NULL AND id IN "
                    f"(SELECT f.content FROM files f WHERE f.absent = 0 AND {scope})",
                    values,
                )
            )
    for condition, arguments in conditions:
        where = f"FROM contents WHERE error IS NOT NULL AND {condition} LIMIT 1"
        if connection.execute(f"SELECT 1 {where}", arguments).fetchone() is None:
            continue
        with database.transaction():
            connection.execute(
                f"UPDATE contents SET error = NULL WHERE error IS NOT NULL AND {condition}",
                arguments,
            )


def _candidates(part: _Part, *, retry: bool) -> Iterator[Candidate]:
    """Yield the files to read because of what the listing shows."""
    changes = part.changes
    lists: list[list[FoundFile]] = [changes.new, changes.changed]
    if retry:
        lists.append(changes.unreadable)
    for found in lists:
        for file in found:
            yield Candidate(part.root, part.folder, file.path, file.size)


def _unencoded(parts: Sequence[_Part], *, absent: bool = False) -> tuple[str, list[int | bytes]]:
    """Return the SQL for readable files of contents with neither vector nor error."""
    scopes = [part.scope for part in parts]
    scope = " OR ".join(f"({condition})" for condition, _ in scopes) or "0"
    # A cross join is done in this order: few contents, if any, wait, and an index has them.
    where = (
        "FROM contents c CROSS JOIN files f ON f.content = c.id "
        "WHERE c.vector IS NULL AND c.error IS NULL AND f.error IS NULL AND "
        f"f.absent {'<= 1' if absent else '= 0'} AND ({scope})"
    )
    return where, [value for _, values in scopes for value in values]


def _count_unencoded(
    connection: sqlite3.Connection, parts: Sequence[_Part], *, absent: bool = False
) -> int:
    where, values = _unencoded(parts, absent=absent)
    return int(connection.execute(f"SELECT COUNT(DISTINCT c.id) {where}", values).fetchone()[0])


def _again(
    recorder: Recorder, parts: Sequence[_Part], others: Sequence[Candidate]
) -> Iterator[Candidate]:
    """Yield a file of each content that has neither vector nor error: after `--rebuild`, of all.

    Where that file turns out to have other bytes, or cannot be read, the others follow; but not
    those of `others`, which are read anyway.
    """
    listed = {(other.root, other.path) for other in others}
    returned = {row for part in parts for row in part.changes.returned}
    where, values = _unencoded(parts)
    folders = {part.root: part.folder for part in parts}
    tried: set[int] = set()
    first_round = more = True
    while more:
        more, last, rows = False, 0, [(0, 0, 0, b"", 0)]
        while rows:
            rows = recorder.query(
                f"SELECT c.id, f.id, f.root, f.path, f.size {where} AND c.id > ? "
                "ORDER BY c.id, f.id LIMIT ?",
                (*values, last, _AT_ONCE),
            )
            for content, row, root, path, size in rows:
                if row in tried or (root, path) in listed or (first_round and content == last):
                    continue
                last, more = content, True
                tried.add(row)
                yield Candidate(root, folders[root], path, size, again=row not in returned)
            last = rows[-1][0] if rows else last
        first_round = False


def _encode_all(
    encoder: Encoder,
    ahead: ReadAhead,
    files: Iterator[Candidate],
    total: int,
    recorder: Recorder,
    report: IndexReport,
    reporter: ProgressReporter,
) -> None:
    """Write all files that are read, batch by batch, and encode those that are not encoded yet."""
    reporter.stage(f"reading {count_of(total, 'file')}")
    done = 0
    group: list[Reading] = []
    # A bundle computes one at a time: the same vector whichever others are new with it.
    at_once = 1 if encoder.bundle is not None else encoder.batch_size
    with HeldInterrupts() as interrupts:  # what is encoded gets into the batch
        try:
            for reading in ahead.read(files):
                if reading is None or reading.inputs is not None:
                    group += [] if reading is None else [reading]
                    if reading is None or len(group) >= at_once:
                        _encode(encoder, group, recorder)
                else:
                    recorder.add(reading)
                recorder.write_if_due()
                if reading is not None:
                    done += 1
                    reporter.progress(done, max(done, total), "files")
                if interrupts.pending:
                    raise KeyboardInterrupt
            _encode(encoder, group, recorder)
        except KeyboardInterrupt:
            report.interrupted = True
            for reading in ahead.stop():
                if reading.inputs is None:
                    recorder.add(reading)
        except LibraryError:
            raise  # nothing more can be written
        except Exception:
            recorder.write()
            raise
        recorder.write()
        report.interrupted |= interrupts.pending


def _encode(encoder: Encoder, group: list[Reading], recorder: Recorder) -> None:
    """Encode photographs and add them to the batch; empties the group."""
    if group:
        encode(encoder, group)
    while group:
        recorder.add(group.pop(0))


def _count(
    connection: sqlite3.Connection, parts: Sequence[_Part], report: IndexReport, failed: int
) -> None:
    """Count what is absent, and what earlier runs could not read.

    Args:
        connection: of the library.
        parts: what the run went through.
        report: to be completed.
        failed: number of files with unreadable contents that this run found.
    """
    unreadable = contents = 0
    for part in parts:
        scope, values = part.scope
        absent, troubled = connection.execute(
            "SELECT COUNT(CASE WHEN f.absent = 1 THEN 1 END), "
            "COUNT(CASE WHEN f.absent = 0 AND f.error IS NOT NULL THEN 1 END) "
            f"FROM files f WHERE {scope}",
            values,
        ).fetchone()
        report.absent += absent
        unreadable += troubled
        for error, count in connection.execute(
            # In this order: unreadable contents are few, and in an index.
            "SELECT c.error, COUNT(*) FROM contents c CROSS JOIN files f ON f.content = c.id "
            f"WHERE c.error IS NOT NULL AND f.absent = 0 AND f.error IS NULL AND {scope} "
            "GROUP BY c.error ORDER BY 2 DESC",
            values,
        ).fetchall():
            contents += count
            if needs_extra(error):
                report.add(IndexReport(unsupported={error: count}))
            else:
                unreadable += count
    remembered = sum(reason != CHANGED for _, reason in report.unreadable)
    report.known_unreadable = max(0, unreadable - remembered)
    report.unchanged -= contents - failed
