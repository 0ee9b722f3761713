"""A root at another place: one row changes, or nothing does and the message says why."""

from __future__ import annotations

import os

import pytest

from pocketclip.errors import LibraryError


@pytest.fixture
def known(library, tmp_path):
    """A library with the roots `one`, of two files, and `two`, which is empty."""
    for folder in ("one/trip", "two/inside"):
        (tmp_path / folder).mkdir(parents=True)
    with library.database.writing(), library.database.transaction() as connection:
        for row, name in ((1, "one"), (2, "two")):
            connection.execute(
                "INSERT INTO roots (id, path) VALUES (?, ?)", (row, os.fsencode(tmp_path / name))
            )
        for path, state in ((b"a\xff.jpg", 0), (b"trip/b.jpg", 0), (b"gone.jpg", 1)):
            connection.execute(
                "INSERT INTO files (root, path, size, mtime_ns, absent) VALUES (1, ?, 1, 1, ?)",
                (path, state),
            )
            if not state:
                (tmp_path / "one" / os.fsdecode(path)).write_bytes(b"x")
    return library


def roots(library):
    with library.database.reading() as connection:
        return [os.fsdecode(path) for (path,) in connection.execute("SELECT path FROM roots")]


def test_a_renamed_folder_keeps_what_is_known_of_it(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").rename(tmp_path / "new")
    (tmp_path / "link").symlink_to("new")
    report = known.move_root("one/", "link")
    assert (report.old, report.new, report.files) == (tmp_path / "one", tmp_path / "new", 2)
    assert roots(known) == [str(tmp_path / "new"), str(tmp_path / "two")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("three", "new", "three is no root of the library photos; its roots are: .*one, .*two"),
        ("one/trip", "new", "is a folder in the root .*one, and only whole roots"),
        ("one", "nowhere", "nowhere is not there"),
        ("one", "new/a.txt", "a.txt is a file"),
        ("one", "new", "has none of 2 files of the root .*one that"),
        ("one", "two", "is the root .*two: run `pocketclip index .*two`.*forget --root .*one"),
        ("one", "two/inside", "is in the root .*two"),
        ("one", ".", "has in it the root .*two"),
    ],
)
def test_what_would_be_wrong_is_refused(known, tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.txt").write_text("text")
    before = roots(known)
    with pytest.raises(LibraryError, match=message):
        known.move_root(old, new)
    assert roots(known) == before
