"""The library's file: who may read it, who writes, what is refused."""

from __future__ import annotations

import stat

import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.store import file_systems
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_user_can_read_it(tmp_path):
    place = locate(tmp_path / "new" / "deep" / "photos.sqlite")
    database = Database.create(place)
    with database.writing(), database.transaction():
        database.set_fact("space_id", "space-1")
        for file in place.file.parent.iterdir():
            assert mode(file) == 0o600
    assert mode(place.file.parent) == 0o700
    assert Database.open(place).fact("space_id") == "space-1"


def test_one_writer_and_readers_that_do_not_wait(tmp_path):
    place = locate(tmp_path / "photos.sqlite")
    first, second = Database.create(place), Database.open(place)
    with first.writing(), first.transaction():
        first.set_fact("model", "a")
        assert second.fact("model") is None
        with pytest.raises(LibraryError, match="another process writes"), second.writing():
            pass
    assert second.fact("model") == "a"


def test_a_change_of_a_vector_begins_a_generation(tmp_path):
    database = Database.create(locate(tmp_path / "photos.sqlite"))

    def facts():
        return [database.fact(name) for name in ("generation", "vectors", "removed")]

    with database.writing(), database.transaction() as connection:
        insert = "INSERT INTO contents (id, digest, size, vector) VALUES (?, ?, 1, ?)"
        connection.executemany(insert, [(1, b"1", b"v1"), (2, b"2", b"v2"), (3, b"3", None)])
        connection.execute("UPDATE contents SET camera = 'x', vector = vector")
        assert facts() == [2, 2, 0]
        connection.execute("UPDATE contents SET vector = ? WHERE id IN (1, 3)", (b"new",))
        assert facts() == [4, 3, 0]
        changed = dict(connection.execute("SELECT id, changed FROM contents").fetchall())
        assert changed == {1: 3, 2: 2, 3: 4}
        connection.execute("UPDATE contents SET vector = NULL WHERE id = 2")
        assert facts() == [5, 2, 5]
        connection.execute("DELETE FROM contents")
        assert facts() == [7, 0, 7]


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file_systems, "_mounts", lambda: [file_systems.Mount(tmp_path, "nfs4")])
    with pytest.raises(LibraryError, match=r"network file system \(nfs4\)"):
        Database.create(locate(tmp_path / "photos.sqlite"))
    assert not list(tmp_path.iterdir())
