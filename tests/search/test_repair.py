"""Damage of every kind: a clear error first, then a repair that keeps what can be read."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3

import numpy as np
import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.library import Library
from pocketclip.search.store import schema
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate
from pocketclip.search.upkeep.check import check
from pocketclip.search.upkeep.repair import repair
from pocketclip.search.upkeep.salvage import Salvage, rows_of
from pocketclip.search.vectors.matrix import open_matrix

PAGE = 4096
DIM = 96


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The file of a library of 400 files, closed, and the copy of its roots and facts."""
    location = locate(tmp_path_factory.mktemp("original") / "photos.sqlite")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with contextlib.closing(Database.create(location)) as database, database.writing():
        with database.transaction() as connection:
            for name, value in {"space_id": "space", "embed_dim": DIM, "model": "m"}.items():
                database.set_fact(name, value)
            database.set_fact("neutral", rng.bytes(9000))  # on pages of its own
            connection.execute("INSERT INTO roots (path) VALUES (?)", (b"/root",))
            connection.execute("INSERT INTO encoders (description) VALUES ('onnx int8')")
            for number, vector in enumerate(vectors.astype("<f2"), 1):
                error = "x" * 9000 if number % 50 == 0 else None
                connection.execute(
                    "INSERT INTO contents (digest, size, vector, encoder, error, taken, camera, "
                    "perceptual_hash) VALUES (?, 1, ?, 1, ?, ?, 'Kamera é', -5)",
                    (rng.bytes(32), None if error else vector.tobytes(), error, number / 2),
                )
                connection.execute(
                    "INSERT INTO files (root, path, size, mtime_ns, content) "
                    "VALUES (1, ?, 1, ?, ?)",
                    (f"{rng.bytes(20).hex()}/{number}.jpg".encode(), number << 40, number),
                )
        with database.transaction() as connection:
            connection.execute("DELETE FROM files WHERE id % 9 = 0")
    return location.file.read_bytes(), (location.derived / "origin.json").read_bytes()


@pytest.fixture
def place(tmp_path, original):
    location = locate(tmp_path / "photos.sqlite")
    location.file.write_bytes(original[0])
    location.file.chmod(0o600)
    location.derived.mkdir(mode=0o700)
    (location.derived / "origin.json").write_bytes(original[1])
    return location


def rows(location, table):
    columns = ", ".join(c for c in schema.COLUMNS[table] if c not in ("changed", "encoder"))
    with contextlib.closing(Database.open(location)) as database, database.reading() as connection:
        return set(connection.execute(f"SELECT {columns} FROM {table}").fetchall())


def checked(location):
    with contextlib.closing(Database.open(location)) as database:
        return check(database)


def test_pages_hold_the_same_rows_as_sqlite_gives(place):
    with contextlib.closing(Database.open(place)) as database:
        reader = Database.open(place)
        with reader.snapshot() as connection:  # so that the change stays in the log
            connection.execute("SELECT * FROM facts").fetchall()
            with database.writing(), database.transaction() as connection:
                connection.execute("UPDATE contents SET camera = 'new' WHERE id % 3 = 0")
            assert place.log.stat().st_size > PAGE
            found = {}
            for table, row in rows_of(place.file, place.log, salvage := Salvage()):
                found.setdefault(table, set()).add(row)
        assert salvage.damaged == 0
        for table in ("roots", "encoders", "contents", "files"):
            columns = ", ".join(schema.COLUMNS[table])
            with database.reading() as connection:
                expected = set(connection.execute(f"SELECT {columns} FROM {table}").fetchall())
            assert found[table] == expected
        reader.close()


def test_a_sound_library_is_left_alone(place):
    before = place.file.read_bytes()
    report = repair(place)
    assert (report.source, report.problems, report.kept) == ("sound", [], None)
    assert (report.files, report.vectors) == (356, 392)
    assert place.file.read_bytes() == before
    assert sorted(path.name for path in place.file.parent.iterdir()) == [
        "photos.derived", "photos.lock", "photos.sqlite"
    ]  # fmt: skip


def damage_header(data, rng):
    data[:100] = rng.randbytes(100)


def damage_first_pages(data, rng):
    data[: 6 * PAGE] = rng.randbytes(6 * PAGE)  # with the facts and the roots


def cut_in_half(data, _):
    del data[len(data) // 2 // PAGE * PAGE + 100 :]


def damage_pages(data, rng):
    for number in rng.sample(range(3, len(data) // PAGE), 8):
        data[number * PAGE : (number + 1) * PAGE] = rng.randbytes(PAGE)


def damage_bytes(data, rng):
    for _ in range(300):
        data[rng.randrange(100, len(data))] = rng.randrange(256)


@pytest.mark.parametrize(
    "damage", [damage_header, damage_first_pages, cut_in_half, damage_pages, damage_bytes]
)
def test_what_can_be_read_of_a_damaged_file_is_kept(place, damage):
    contents, files = rows(place, "contents"), rows(place, "files")
    data = bytearray(place.file.read_bytes())
    damage(data, random.Random(3))
    place.file.write_bytes(data)
    try:
        assert not checked(place).is_sound
    except LibraryError as error:
        message = str(error)
    else:
        message = "--repair"
    assert "--repair" in message
    report = repair(place)
    assert (report.source, report.left) == ("saved", [])
    assert "pocketclip index" in report.next_step
    assert report.kept.read_bytes()[:PAGE] == data[:PAGE]
    now = rows(place, "contents")
    # Damage within a text or number goes unnoticed; a vector is known by its length.
    intact = len(now & contents)
    assert intact >= {cut_in_half: 100, damage_bytes: 200}.get(damage, 300)
    if damage in (damage_header, damage_first_pages):
        assert (now, rows(place, "files")) == (contents, files)
        assert (report.vectors, report.dropped_vectors) == (392, 0)
    # A file whose content is lost is read again.
    with contextlib.closing(Database.open(place)) as database, database.reading() as connection:
        query = "SELECT count(*), sum(mtime_ns = -1) FROM files WHERE content IS NULL"
        lost, again = connection.execute(query).fetchone()
        assert lost == (again or 0)
        assert len(open_matrix(database)) == report.vectors
    assert checked(place).is_sound
    assert repair(place).source == "sound"


def test_vectors_that_cannot_be_used_are_encoded_again(place):
    data = place.file.read_bytes()
    with contextlib.closing(sqlite3.connect(place.file)) as connection, connection:
        for bad, row in ((b"", 1), (b"\0" * 2 * DIM, 2), (b"\xff" * 2 * DIM, 3), (b"12", 4)):
            connection.execute("UPDATE contents SET vector = ? WHERE id = ?", (bad, row))
    assert "4 vectors" in checked(place).problems[0].text
    report = repair(place)
    assert (report.dropped_vectors, report.lost_vectors, report.vectors) == (4, 0, 388)
    assert checked(place).is_sound
    # Without the facts, nobody knows of which space the vectors are.
    place.file.write_bytes(data)
    with contextlib.closing(sqlite3.connect(place.file)) as connection, connection:
        connection.execute("DELETE FROM facts WHERE name = 'space_id'")
    (place.derived / "origin.json").unlink()
    report = repair(place)
    assert (report.dropped_vectors, report.contents) == (392, 400)
    assert report.kept.name == "photos.sqlite.damaged-2"


def test_rows_that_are_none_go(place):
    with contextlib.closing(sqlite3.connect(place.file)) as connection, connection:
        for row, path in enumerate((b"a\0b.jpg", b"", b"/etc/passwd", "text", 5), 1):
            connection.execute("UPDATE files SET path = ? WHERE id = ?", (path, row))
        connection.execute("UPDATE files SET content = 9999, root = 1 WHERE id = 6")
        connection.execute("UPDATE files SET root = 8 WHERE id = 7")
        connection.execute("UPDATE contents SET vector = 7, encoder = 3 WHERE id = 8")
    with contextlib.closing(Database.open(place)) as database:
        with pytest.raises(LibraryError, match="--repair"):
            open_matrix(database)
        texts = [problem.text for problem in check(database).problems]
    assert "5 files with something else than a path" in texts
    assert "1 row of files without one of contents" in texts
    report = repair(place)
    assert (report.files, report.left) == (350, [])


def test_the_backup_is_the_last_resort(place):
    with contextlib.closing(Database.open(place)) as database, database.reading() as connection:
        schema.back_up(connection, place.backup)
    for text in (b"", b"junk" * 5000):
        place.file.write_bytes(text)
        with pytest.raises(LibraryError, match="--repair"):
            Database.open(place)
        report = repair(place)
        assert (report.source, report.vectors, report.left) == ("backup", 392, [])
    place.backup.unlink()
    place.file.write_bytes(text)
    with pytest.raises(LibraryError, match="nothing of a library can be read, and there is no b"):
        repair(place)
    assert place.file.read_bytes() == text


def test_roots_and_model_alone_make_a_library_that_indexing_fills(place):
    with contextlib.closing(Database.open(place)) as database, database.writing():
        with database.transaction() as connection:
            connection.execute("DELETE FROM files")
            connection.execute("DELETE FROM contents")
        with database.reading() as connection:
            connection.execute("VACUUM")
    os.truncate(place.file, place.file.stat().st_size - PAGE)
    report = repair(place)
    assert (report.source, report.roots, report.files, report.left) == ("saved", 1, 0, [])
    with contextlib.closing(Database.open(place)) as database:
        assert database.fact("space_id") == "space"


def test_a_repair_that_was_killed_goes_on_with_what_it_moved(place):
    place.file.rename(f"{place.file}.damaged")
    with pytest.raises(LibraryError, match="there is no library"):
        Database.open(place)
    assert repair(place).vectors == 392
    with pytest.raises(LibraryError, match="there is no library"):
        repair(locate(place.file.with_name("other.sqlite")))


def test_a_library_in_use_is_not_repaired(place):
    with contextlib.closing(Database.open(place)), pytest.raises(LibraryError, match="is open"):
        repair(place)
    holder = os.fork()
    if not holder:  # another process, which reads
        connection = sqlite3.connect(place.file)
        connection.execute("SELECT * FROM facts").fetchall()
        os.kill(os.getpid(), 19)  # SIGSTOP
        os._exit(0)
    os.waitpid(holder, os.WUNTRACED)
    try:
        with pytest.raises(LibraryError, match="is open in another process"):
            repair(place)
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)
    assert repair(place).source == "sound"


def test_others_and_newer_ones_are_not_touched(tmp_path, place):
    with contextlib.closing(sqlite3.connect(place.file)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = place.file.read_bytes()
    with pytest.raises(LibraryError, match="newer pocketclip"):
        repair(place)
    assert place.file.read_bytes() == before
    foreign = locate(tmp_path / "foreign.sqlite")
    with contextlib.closing(sqlite3.connect(foreign.file)) as connection, connection:
        connection.execute("CREATE TABLE roots (a, b, c)")
        connection.execute("INSERT INTO roots VALUES (NULL, x'00', 'text')")
    for use in (Database.open, Database.create):
        with pytest.raises(LibraryError, match="another program"):
            use(foreign)
    with pytest.raises(LibraryError, match="nothing of a library"):
        repair(foreign)
    assert sqlite3.connect(foreign.file).execute("SELECT count(*) FROM roots").fetchone() == (1,)


def test_a_damaged_matrix_is_made_anew(place):
    with contextlib.closing(Database.open(place)) as database:
        open_matrix(database)
    (matrix,) = place.derived.glob("matrix.float*")
    whole = matrix.read_bytes()
    matrix.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert checked(place).kinds() == {"matrix"}
    report = repair(place)
    assert (report.source, report.derived_removed, report.next_step) == ("sound", True, None)
    assert matrix.read_bytes() == whole


def test_files_that_others_can_read_are_closed_to_them(place):
    place.file.chmod(0o644)
    place.derived.chmod(0o755)
    assert {problem.kind for problem in checked(place).problems} == {"permissions"}
    assert repair(place).made_private == [place.file, place.derived]
    assert (place.file.stat().st_mode & 0o777, place.derived.stat().st_mode & 0o777) == (
        0o600, 0o700
    )  # fmt: skip


def test_a_lost_log_does_not_bring_the_vectors_of_another_generation_back(tmp_path):
    location = locate(tmp_path / "photos.sqlite")

    def add(number):
        vector = np.zeros(DIM, "<f2")
        vector[number] = 1
        with contextlib.closing(Database.open(location)) as database, database.writing():
            with database.transaction() as connection:
                connection.execute(
                    "INSERT INTO contents (digest, size, vector) VALUES (?, 1, ?)",
                    (bytes([number]) * 32, vector.tobytes()),
                )
            matrix = open_matrix(database)
            return database.generation(), matrix.vectors(np.arange(len(matrix))).argmax(1).tolist()

    database = Database.create(location)
    with contextlib.closing(database), database.writing(), database.transaction():
        database.set_fact("space_id", "space")
        database.set_fact("embed_dim", DIM)
    add(1)
    before = location.file.read_bytes()
    generation, numbers = add(2)
    assert numbers == [1, 2]
    location.file.write_bytes(before)  # as if the log with the last commit was lost
    assert add(3) == (generation, [1, 3])
    assert checked(location).is_sound


def test_the_next_indexing_reads_what_is_missing(library, photos, encoder):
    library.index([photos], encoder=encoder)
    query = "SELECT path, vector FROM files JOIN contents ON contents.id = content"
    with library.database.reading() as connection:
        before = dict(connection.execute(query).fetchall())
    location = library.location
    library.close()
    data = bytearray(location.file.read_bytes())
    with contextlib.closing(sqlite3.connect(location.file)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'contents'"
        ).fetchone()
    data[(page - 1) * PAGE : page * PAGE] = bytes(range(256)) * (PAGE // 256)
    location.file.write_bytes(data)
    with pytest.raises(LibraryError, match=r"--repair|--check"), Library.open(location.file) as bad:
        bad.search("a red circle", encoder=encoder)
    report = Library.repair(location.file)
    assert report.files == 6
    with Library.open(location.file) as mended:
        again = mended.index(encoder=encoder)
        assert (again.encoded, again.unchanged) == (6 - report.contents, report.contents)
        assert mended.check().is_sound
        with mended.database.reading() as connection:
            assert dict(connection.execute(query).fetchall()) == before
