"""Forgetting: what goes, what stays, and that nothing of it is left on the disk."""

from __future__ import annotations

import os
import secrets

import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.library import Library


@pytest.fixture
def known(library, tmp_path):
    """A library of six files: one is a copy, one absent, one excluded; and of an old version."""
    root = tmp_path / "root"
    (root / "trip").mkdir(parents=True)
    rows = [
        (b"a.jpg", 1, 0), (b"copy-of-a.jpg", 1, 0), (b"trip/b.jpg", 2, 0), (b"trip0.jpg", 3, 0),
        (b"gone\xff.jpg", 4, 1), (b"left-out.jpg", 6, 2),
    ]  # fmt: skip
    vectors = {number: secrets.token_bytes(192) for number in range(1, 7)}
    with library.database.writing(), library.database.transaction() as connection:
        connection.execute("INSERT INTO roots (id, path) VALUES (7, ?)", (os.fsencode(root),))
        for number, vector in vectors.items():
            connection.execute(
                "INSERT INTO contents (id, digest, size, vector) VALUES (?, ?, 1, ?)",
                (number, bytes([number]) * 32, vector),
            )
        for path, content, state in rows:
            connection.execute(
                "INSERT INTO files (root, path, size, mtime_ns, content, absent) "
                "VALUES (7, ?, 1, 1, ?, ?)",
                (path, content, state),
            )
            if state != 1:
                (root / os.fsdecode(path)).write_bytes(b"x")
    library.vectors = vectors
    return library


def count(library, table):
    with library.database.reading() as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_a_content_stays_as_long_as_a_file_has_it(known, tmp_path):
    root = tmp_path / "root"
    report = known.forget([root / "a.jpg"], dry_run=True)
    assert (report.files, report.contents, count(known, "files")) == ([root / "a.jpg"], 1, 6)
    report = known.forget([root / "a.jpg"])
    assert report.still_there == [root / "a.jpg"]
    # Content 5 is the old version, which no file had.
    assert (report.contents, report.vectors, report.unused) == (1, 1, 1)
    assert known.forget([root / "copy-of-a.jpg"]).contents == 1
    assert count(known, "contents") == 4
    assert (root / "a.jpg").exists()


def test_a_folder_is_what_is_in_it(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    report = known.forget(["link/trip"])
    assert report.files == [tmp_path / "root/trip/b.jpg"]


def test_absent_files_are_those_that_are_not_there(known, tmp_path):
    root = tmp_path / "root"
    root.rename(tmp_path / "away")
    report = known.forget(absent=True)
    assert (report.files, report.kept) == ([], {root: 1})
    (tmp_path / "away").rename(root)
    gone = root / os.fsdecode(b"gone\xff.jpg")
    gone.write_bytes(b"back")
    assert known.forget(absent=True).files == []
    gone.unlink()
    report = known.forget(absent=True)
    assert (report.files, report.still_there) == ([gone], [])
    assert "\\udcff" in ascii(report.facts()["files"][0])


def test_a_root_goes_with_its_files_and_is_not_indexed_any_more(known, tmp_path):
    report = known.forget(roots=[str(tmp_path / "root") + "/"])
    assert (len(report.files), report.roots) == (6, [tmp_path / "root"])
    assert [count(known, table) for table in ("roots", "files", "contents")] == [0, 0, 0]
    assert report.still_there == []


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (["root/new.jpg"], {}, "does not know .*root/new.jpg; its roots are: /"),
        (["root/a.jpg", "elsewhere"], {}, "does not know .*elsewhere"),
        (["root"], {}, "is a root of the library: .*--root"),
        ([], {"roots": ["root/trip"]}, "is no root"),
        ([], {}, "nothing to forget"),
    ],
)
def test_what_is_unknown_is_refused_and_nothing_is_forgotten(
    known, tmp_path, monkeypatch, paths, options, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LibraryError, match=message):
        known.forget(paths, **options)
    assert count(known, "files") == 6


def test_nothing_of_it_is_left_on_the_disk(known, tmp_path):
    """Everything beside the library is searched for the bytes of the path, hash and vector."""
    folder = known.location.file.parent
    thumbnail = known.location.derived / "thumbnails/02" / f"{'02' * 32}.jpg"
    thumbnail.parent.mkdir(parents=True)
    for copy in (thumbnail, known.location.derived / "matrix.float16", known.location.backup):
        copy.write_bytes(known.vectors[2])
    (kept := thumbnail.with_name(f"{'03' * 32}.jpg")).write_bytes(b"another")

    def found(text):
        files = [path for path in folder.rglob("*") if path.is_file()]
        return any(text in path.read_bytes() for path in files)

    secret = [b"trip/b.jpg", known.vectors[2], b"\2" * 32]
    with Library.open(known.location.file) as reader:  # keeps the log from being removed
        reader.database.generation()
        assert all(map(found, secret))
        report = known.forget([tmp_path / "root/trip/b.jpg"])
        assert (report.thumbnails, report.left) == (1, [])
        assert known.location.log.exists()
        assert not any(map(found, secret))
    assert kept.exists()
    assert found(known.vectors[3])


def test_a_reader_that_keeps_the_log_is_reported(known, tmp_path, monkeypatch):
    monkeypatch.setattr("pocketclip.search.store.database._BUSY_S", 0.1)
    with Library.open(known.location.file) as reader, reader.database.snapshot() as connection:
        connection.execute("SELECT * FROM facts").fetchall()
        with Library.open(known.location.file) as writer:
            report = writer.forget([tmp_path / "root/a.jpg"])
    assert "another process reads" in report.left[0]
