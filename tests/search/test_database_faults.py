"""A library's file under everything that goes wrong around it; each gives one clear error."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.store import database as databases
from pocketclip.search.store import schema
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import libraries, locate
from pocketclip.search.upkeep.check import check
from pocketclip.search.upkeep.repair import repair


@pytest.fixture
def place(tmp_path):
    return locate(tmp_path / "photos.sqlite")


@pytest.fixture
def database(place):
    with contextlib.closing(Database.create(place)) as opened:
        yield opened


def write(database, value="x", name="note"):
    with database.writing(), database.transaction():
        database.set_fact(name, value)


def in_child(function):
    """Run a function in a forked process; return its exit code, 0 if it returned True."""
    child = os.fork()
    if not child:
        code = 9
        with contextlib.suppress(BaseException):
            code = 0 if function() else 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Who can read it.


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_user_can_read_it_with_any_umask(place, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):  # the log is made again the second time
            database = Database.create(place)
            write(database, name="space_id")
            with database.snapshot() as connection:
                connection.execute("SELECT * FROM facts").fetchall()
                schema.back_up(connection, place.backup)
                modes = {
                    path.name: stat.S_IMODE(path.stat().st_mode)
                    for path in place.file.parent.rglob("*")
                }
            database.close()
            assert modes == {
                "photos.sqlite": 0o600, "photos.sqlite-wal": 0o600, "photos.sqlite-shm": 0o600,
                "photos.lock": 0o600, "photos.backup.sqlite": 0o600, "photos.derived": 0o700,
                "origin.json": 0o600,
            }  # fmt: skip
            assert not place.log.exists()
    finally:
        os.umask(before)


# One writer.


def test_the_lock_of_a_killed_writer_is_free_at_once(place, database):
    code = (
        "import sys, time\n"
        "from pocketclip.search.store.database import Database\n"
        "from pocketclip.search.store.location import locate\n"
        "database = Database.open(locate(sys.argv[1]))\n"
        "with database.writing(), database.transaction():\n"
        "    database.set_fact('note', 'never committed')\n"
        "    print('holds', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, place.file], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"holds\n"
        with pytest.raises(LibraryError, match=rf"library photos \(process {writer.pid}, .* on "):
            write(database)
        assert database.fact("note") is None  # readers do not wait
        writer.kill()
    write(database, "mine")
    assert database.fact("note") == "mine"


def test_a_forked_process_is_another_one(database):
    write(database, "before")
    with database.writing():

        def child():
            with pytest.raises(LibraryError, match="another process writes"):
                write(database, "child")
            return database.fact("note") == "before"

        assert in_child(child) == 0
        assert in_child(lambda: database.close() is None) == 0
        with database.transaction():  # the lock and the connection are still there
            database.set_fact("note", "after")
        with Database.open(database.location).reading(), pytest.raises(LibraryError):
            write(Database.open(database.location))
    assert in_child(lambda: write(database, "child") is None) == 0
    assert database.fact("note") == "child"


def test_a_link_leads_to_the_same_library_and_lock(tmp_path, place, database):
    (tmp_path / "else").mkdir()
    link = tmp_path / "else/mine.sqlite"
    link.symlink_to(place.file)
    assert locate(link) == place
    with database.writing(), pytest.raises(LibraryError, match="another process writes"):
        write(Database.open(locate(link)))


def test_a_second_name_of_the_file_is_not_written_to(tmp_path, place, database):
    os.link(place.file, tmp_path / "second.sqlite")
    with pytest.raises(LibraryError, match="second name"):
        write(Database.open(locate(tmp_path / "second.sqlite")))
    with pytest.raises(LibraryError, match="second name"):
        write(database)


def test_processes_that_create_it_at_the_same_time(place):
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            code = 9
            with contextlib.suppress(BaseException):
                code = int(Database.create(place).generation())
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 8
    assert [path.name for path in place.file.parent.iterdir() if ".tmp" in path.name] == []


# Threads and readers.


def test_a_thread_that_ends_closes_its_connection(database):
    def reads():
        database.generation()

    for _ in range(50):
        thread = threading.Thread(target=reads)
        thread.start()
        thread.join()
    assert len(database._connections._all) <= 1


def test_closing_ends_what_other_threads_do(database):
    write(database)
    errors, started = [], threading.Event()

    def reads():
        try:
            while True:
                database.fact("note")
                started.set()
        except LibraryError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=reads) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    database.close()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 3
    assert all("was closed" in text for text in errors)
    with pytest.raises(LibraryError, match="was closed"):
        database.generation()


def test_readers_see_one_commit_and_do_not_hold_up_the_writer(place, database, monkeypatch):
    monkeypatch.setattr(databases, "_LOG_BYTES", 100_000)
    insert = "INSERT INTO contents (digest, size, error) VALUES (randomblob(32), 1, ?)"

    def grow():
        with database.transaction() as connection:
            connection.executemany(insert, [("x" * 3000,)] * 50)

    def count(connection):
        return connection.execute("SELECT count(*) FROM contents").fetchone()[0]

    with contextlib.closing(Database.open(place)) as reader, database.writing():
        grow()
        with reader.snapshot() as connection:
            assert count(connection) == 50
            for _ in range(5):
                grow()  # emptying the log fails, and does not wait
            assert count(connection) == 50
            assert place.log.stat().st_size > 800_000
        assert count(reader.connection) == 300
        grow()
        assert place.log.stat().st_size == 0


# What is no library.


def test_paths_with_any_name(tmp_path):
    for name in ("a?b", "a#b", "a%41", "a b", "ü", os.fsdecode(b"not-utf8\xff"), "new\nline", "x."):
        place = locate(tmp_path / name / f"{name}.sqlite")
        with contextlib.closing(Database.create(place)) as database:
            write(database, name="note", value="here")
        with contextlib.closing(Database.open(place)) as database:
            assert database.fact("note") == "here"
        assert {file.name for file in place.file.parent.iterdir()} == {
            f"{name}.lock", f"{name}.sqlite"
        }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/", "photos.backup", "photos.", "photos ", "a\0b", "x" * 101, "é",
     "photos.backup.sqlite", "a\0b.sqlite", "x" * 200 + ".sqlite", "~nobody-of-this-name/x.sqlite",
     "x.db/", "circle.sqlite", "dangling.sqlite"],
)  # fmt: skip
def test_names_that_cannot_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("circle.sqlite").symlink_to("circle.sqlite")
    Path("dangling.sqlite").symlink_to("away/photos.sqlite")
    with pytest.raises(LibraryError):
        Database.create(locate(name))
    assert {path.name for path in tmp_path.iterdir()} == {"circle.sqlite", "dangling.sqlite"}


def test_a_deep_path_is_refused_before_sqlite_fails(tmp_path):
    with pytest.raises(LibraryError, match="too long for SQLite"):
        locate(tmp_path / ("d" * 200) / ("e" * 200) / f"{'f' * 60}.sqlite")
    longest = tmp_path / ("d" * 190)
    name = "f" * ((470 - len(os.fsencode(longest)) - 1) // 2 - len(".sqlite"))
    place = locate(longest / f"{name[:190]}.sqlite")
    with contextlib.closing(Database.create(place)) as database:
        write(database)


def make_folder(file):
    file.mkdir()


def make_pipe(file):
    os.mkfifo(file)


def make_foreign(file):
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE contents (a)")


def make_foreign_with_our_marks(file):
    make_foreign(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")


def make_newer(file):
    schema.create(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")


def make_without_trigger(file):
    schema.create(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TRIGGER vector_added")


def make_with_damaged_schema(file):
    schema.create(file)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"TABLE contents (", b"TABLE cont\x90nts ("))


def make_text(file):
    file.write_text("not a database at all\n" * 999)


def make_stump(file):
    file.write_bytes(b"SQLite format 3\0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_folder, "is a folder"),
        (make_pipe, "is a device or pipe"),
        (make_foreign, "a database of another program"),
        (make_foreign_with_our_marks, "lacks tables .*no such .*--repair"),
        (make_newer, "newer pocketclip .*pip install -U"),
        (make_without_trigger, "no such trigger: vector_added.*--repair"),
        (make_with_damaged_schema, "malformed database schema.*--repair"),
        (make_text, "not a library, or its beginning is damaged.*--repair"),
        (make_stump, "not a library, or its beginning is damaged.*--repair"),
    ],
)
def test_what_is_no_library_is_refused_and_left_alone(place, make, message):
    make(place.file)
    before = place.file.read_bytes() if place.file.is_file() else None
    for use in (Database.open, Database.create):
        with pytest.raises(LibraryError, match=message):
            use(place)
    assert before is None or place.file.read_bytes() == before


def test_an_empty_file_is_a_new_library_only_if_nothing_says_otherwise(place):
    place.file.touch()
    with pytest.raises(LibraryError, match="is empty"):
        Database.open(place)
    Database.create(place).close()
    place.file.write_bytes(b"")
    for use in (Database.open, Database.create):
        with pytest.raises(LibraryError, match=r"is empty \(0 bytes\).*--repair"):
            use(place)


def test_a_log_without_its_file_is_not_lost(place, database):
    write(database)
    aside = place.file.with_name("aside")
    place.log.write_bytes(b"x") if not place.log.stat().st_size else None
    place.file.rename(aside)
    for use in (Database.open, Database.create):
        with pytest.raises(LibraryError, match="is missing, but its log"):
            use(place)


# Disks.


def test_a_full_disk_keeps_what_was_committed_and_the_process_goes_on(place):
    """A limit on the size of files stands in for the disk."""

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        database = Database.create(place)
        write(database, "committed")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        with pytest.raises(LibraryError, match=r"full.* what was committed is kept"):
            write(database, "x" * 2_000_000)
        assert database.fact("note") == "committed"
        write(database, "small")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        write(database, "x" * 2_000_000)
        return check(database).is_sound

    assert in_child(child) == 0
    with contextlib.closing(Database.open(place)) as database:
        assert len(database.fact("note")) == 2_000_000


def test_a_library_on_a_read_only_disk_can_be_searched(place, database, monkeypatch):
    write(database, "here")
    reader = Database.open(place)
    with reader.snapshot() as connection:
        connection.execute("SELECT * FROM facts").fetchall()
        write(database, "in the log")
        monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
        with contextlib.closing(Database.open(place)) as third:
            assert third.read_only
            assert third.fact("note") == "in the log"
    reader.close()
    database.close()
    before = {path: path.stat().st_mtime_ns for path in place.file.parent.iterdir()}
    with contextlib.closing(Database.open(place)) as reader:
        assert reader.fact("note") == "in the log"
        with pytest.raises(LibraryError, match="read-only"):
            write(reader)
        assert check(reader).is_sound
    assert {path: path.stat().st_mtime_ns for path in place.file.parent.iterdir()} == before


def test_a_library_on_a_full_disk_can_be_searched(place, database, monkeypatch):
    write(database, "here")
    database.close()
    place.shared.symlink_to("nowhere")  # stands in for a disk without room for the shared memory
    with pytest.raises(LibraryError, match="unable to open"):
        Database.open(place)
    monkeypatch.setattr(databases.shutil, "disk_usage", lambda _: mock.Mock(free=0))
    with contextlib.closing(Database.open(place)) as reader:
        assert reader.fact("note") == "here"
        with pytest.raises(LibraryError, match="its disk is full"):
            write(reader)
        with pytest.raises(LibraryError, match="unable to open"):  # no second one, nor a writer
            Database.open(place)
    place.shared.unlink()
    with contextlib.closing(Database.open(place)) as opened:
        write(opened, "room again")


# Migrations.


@pytest.fixture
def migrating(monkeypatch):
    """Make this program one version newer, with these steps."""

    def set_steps(*steps):
        monkeypatch.setattr(schema, "VERSION", 2)
        monkeypatch.setattr(schema, "MIGRATIONS", {1: steps})

    return set_steps


def add_column(connection):
    connection.execute("ALTER TABLE files ADD COLUMN inode INTEGER")


def fail(_):
    raise sqlite3.OperationalError("no such function: made_up")


def version(file):
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_an_older_library_is_changed_after_a_copy_was_made(place, database, migrating):
    write(database, "old")
    database.close()
    migrating(add_column)
    with contextlib.closing(Database.open(place)) as opened:
        assert opened.fact("note") == "old"
        opened.connection.execute("SELECT inode FROM files")
    assert version(place.file) == 2
    assert (version(place.backup), stat.S_IMODE(place.backup.stat().st_mode)) == (1, 0o600)
    with contextlib.closing(sqlite3.connect(place.backup)) as connection:
        assert connection.execute("SELECT value FROM facts WHERE name = 'note'").fetchone() == (
            "old",
        )
    assert libraries() == []
    assert not list(place.file.parent.glob("*.backup.sqlite-*"))


def test_a_migration_that_fails_changes_nothing(place, database, migrating, monkeypatch):
    write(database, "old")
    database.close()
    migrating(add_column, fail)
    with pytest.raises(LibraryError, match="made_up"):
        Database.open(place)
    assert version(place.file) == 1
    migrating(add_column, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert in_child(lambda: Database.open(place)) == -signal.SIGKILL
    assert version(place.file) == 1
    # Without the copy, no step is taken.
    place.backup.unlink()
    place.backup.mkdir()
    migrating(fail)
    with pytest.raises(LibraryError, match="without this copy"):
        Database.open(place)
    place.backup.rmdir()
    monkeypatch.undo()
    with contextlib.closing(Database.open(place)) as opened:
        assert opened.fact("note") == "old"


def test_damage_before_or_after_a_migration_is_repaired_from_the_copy(place, database, migrating):
    write(database, "old")
    database.close()
    migrating(add_column)
    Database.open(place).close()
    place.file.write_bytes(b"junk" * 9999)
    report = repair(place)
    assert report.source == "backup"
    with contextlib.closing(Database.open(place)) as opened:
        assert opened.fact("note") == "old"
    assert version(place.file) == 2  # and changed again


# Kills.


def test_a_killed_writer_loses_no_commit(place, database):
    code = (
        "import sys\n"
        "from pocketclip.search.store.database import Database\n"
        "from pocketclip.search.store.location import locate\n"
        "database = Database.open(locate(sys.argv[1]))\n"
        "with database.writing():\n"
        "    for batch in range(10_000):\n"
        "        with database.transaction() as connection:\n"
        "            connection.executemany('INSERT INTO contents (digest, size, vector) '\n"
        "                'VALUES (randomblob(32), ?, randomblob(1024))', [(batch,)] * 32)\n"
        "        print(flush=True)\n"
    )
    committed = 0
    for attempt in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", code, place.file], stdout=subprocess.PIPE
        ) as writer:
            writer.stdout.readline()
            time.sleep(0.03 * attempt)
            writer.kill()
            committed += 1 + len(writer.stdout.read().splitlines())
        with database.reading() as connection:
            (found,) = connection.execute("SELECT count(*) FROM contents").fetchone()
        assert found % 32 == 0
        # One more may have been committed, and not yet printed.
        assert committed <= found // 32 <= committed + 1
        committed = found // 32
        assert database.fact("vectors") == found
    write(database, "space", "space_id")
    assert {problem.kind for problem in check(database).problems} == {"vectors"}  # random ones
