"""The matrix: current, or read again; exact, and in the same order from every engine."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from pocketclip.errors import EmbeddingError, LibraryError, MissingDependencyError
from pocketclip.search.store.database import Database
from pocketclip.search.vectors import file as vector_file
from pocketclip.search.vectors import kernels, matrix
from pocketclip.search.vectors.engines import search_matrix, similarities
from pocketclip.search.vectors.matrix import (
    check_matrix,
    open_matrix,
    prepare_matrix,
    remove_matrix,
)
from vector_libraries import add_vectors, generate_vectors

WIDTH = 24
ENGINES = ["numpy", "numkong"] if kernels._numkong() is not None else ["numpy"]


@pytest.fixture
def database(library):
    return library.database


def fill(database, count=40, **options):
    add_vectors(database, generate_vectors(count, WIDTH, **options))


def stored(database):
    """What SQLite has: ids (N,) and vectors (N, D)."""
    rows = database.connection.execute(
        "SELECT id, vector FROM contents WHERE vector IS NOT NULL ORDER BY id"
    ).fetchall()
    vectors = np.frombuffer(b"".join(row[1] for row in rows), np.float16).reshape(len(rows), -1)
    return np.array([row[0] for row in rows], np.int64), vectors.astype(np.float64)


def assert_current(database, found):
    ids, vectors = stored(database)
    assert np.array_equal(found.ids, ids)
    assert np.array_equal(found.vectors(np.arange(len(ids))), vectors)
    assert found.generation == database.generation()


def change(database, statement, *values):
    with database.writing(), database.transaction() as connection:
        connection.execute(statement, values)


def file_of(database, engine="numpy"):
    return (
        database.location.derived / {"numpy": "matrix.float32", "numkong": "matrix.float16"}[engine]
    )


@pytest.fixture
def writes(monkeypatch):
    """Count the files that are written."""
    written = []
    real = matrix.write_file

    def count(path, *arguments):
        written.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(matrix, "write_file", count)
    return written


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_stored_once_for_the_user_only(database, writes, engine):
    fill(database)
    for _ in range(2):
        assert_current(database, open_matrix(database, engine))
    assert len(writes) == 1
    assert stat.S_IMODE(file_of(database, engine).stat().st_mode) == 0o600
    assert stat.S_IMODE(database.location.derived.stat().st_mode) == 0o700
    assert check_matrix(database) is None


def test_what_changed_is_read_on_top(database, writes):
    fill(database)
    first = open_matrix(database)
    assert open_matrix(database, last=first) is first
    fill(database, 5, seed=1)
    later = open_matrix(database)
    assert_current(database, later)
    assert later.order is None
    new = generate_vectors(1, WIDTH, seed=2)[0].tobytes()
    change(database, "INSERT INTO contents (digest, size) VALUES (x'00', 1)")
    change(database, "UPDATE contents SET vector = ? WHERE id IN (3, 17, 42, 46)", new)
    assert_current(database, open_matrix(database))
    assert_current(database, open_matrix(database, last=first))
    assert len(writes) == 1
    assert len(first) == 40  # the old map is still what it was


def test_much_that_changed_and_removed_vectors_are_written_again(database, writes, monkeypatch):
    monkeypatch.setattr(matrix, "_FEW", 3)
    fill(database)
    first = open_matrix(database)
    fill(database, 4, seed=1)
    assert_current(database, open_matrix(database, last=first))
    assert len(writes) == 2
    change(database, "UPDATE contents SET vector = NULL WHERE id = 7")
    assert_current(database, open_matrix(database, last=first))
    change(database, "DELETE FROM files WHERE content = 9")
    change(database, "DELETE FROM contents WHERE id = 9")
    assert_current(database, open_matrix(database))
    assert len(writes) == 4
    assert np.array_equal(first.ids, np.arange(1, 41))


def flip(data, at):
    data[at] ^= 1
    return data


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:100],
        lambda _: b"",
        lambda data: flip(data, 3),
        lambda data: data.replace(b'"rows": 40', b'"rows": -1'),
        lambda data: data.replace(b'"width": 24', b'"width": 12'),
        lambda data: data.replace(b'"dtype": "<f4"', b'"dtype": "<O8"'),
        lambda data: data.replace(b'"generated"', b'"elsewhere"'),
        lambda data: flip(data, 4096),  # the first vector is one of those that are compared
    ],
)
def test_a_damaged_file_is_written_again(database, writes, damage):
    fill(database)
    open_matrix(database)
    file = file_of(database)
    file.write_bytes(damage(bytearray(file.read_bytes())))
    assert_current(database, open_matrix(database))
    assert len(writes) == 2


def test_checking_reads_all_of_it(database):
    fill(database, 100)
    open_matrix(database)
    file = file_of(database)
    file.write_bytes(flip(bytearray(file.read_bytes()), 4096 + 10 * 4 * WIDTH))
    assert "is damaged" in check_matrix(database)
    block = vector_file.map_file(file)
    vectors = block.vectors.astype(np.float16)
    vectors[50] = 0
    vector_file.write_file(file, block.header, [(block.ids, vectors)])
    assert "is not what SQLite has" in check_matrix(database)
    remove_matrix(database.location)
    assert not file.exists()
    assert check_matrix(database) is None


def test_a_library_that_went_back_in_time(database, tmp_path):
    """Restored from a copy and indexed again, it has the same generation with other vectors."""
    fill(database, 30)
    database.connection.execute("VACUUM INTO ?", (str(tmp_path / "copy.sqlite"),))
    fill(database, 10, seed=1)
    open_matrix(database)
    database.close()
    for suffix in ("-wal", "-shm"):
        database.location.file.with_name(database.location.file.name + suffix).unlink(
            missing_ok=True
        )
    (tmp_path / "copy.sqlite").replace(database.location.file)
    again = Database.open(database.location)
    fill(again, 10, seed=2)
    assert again.generation() == 40
    assert_current(again, open_matrix(again))


def test_a_file_that_cannot_be_written(database, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(database)
    monkeypatch.setattr(matrix, "write_file", full)
    found = open_matrix(database)
    assert_current(database, found)
    assert "No space left" in found.remark
    assert "No space left" in caplog.text
    fill(database, 3, seed=1)
    assert_current(database, open_matrix(database, last=found))
    monkeypatch.undo()
    database.location.derived.rename(database.location.derived.with_name("old"))
    database.location.derived.write_bytes(b"a file where the folder should be")
    assert_current(database, open_matrix(database))


def test_a_photograph_that_is_forgotten_while_the_file_is_written(database, monkeypatch):
    """Its vector does not come back to the disk."""
    fill(database)
    other, real, written = Database.open(database.location), matrix.write_file, []

    def slow(path, header, batches):
        block = real(path, header, batches)
        if not written:
            change(other, "UPDATE contents SET vector = NULL WHERE id = 7")
        written.append(path)
        return block

    monkeypatch.setattr(matrix, "write_file", slow)
    assert_current(database, open_matrix(database))
    assert len(written) == 2
    assert 7 not in vector_file.map_file(file_of(database)).ids


def test_the_file_of_an_engine_that_is_not_used_any_more(database):
    fill(database)
    open_matrix(database, "numpy")
    open_matrix(database, ENGINES[-1])
    assert file_of(database).exists()  # both may be used in turn
    change(database, "UPDATE contents SET vector = NULL WHERE id = 7")
    open_matrix(database, ENGINES[-1])
    assert [path.name for path in database.location.derived.glob("matrix.float*")] == [
        file_of(database, ENGINES[-1]).name
    ]


def test_preparing_it_writes_what_a_search_would_write(database, writes, monkeypatch):
    fill(database)
    prepare_matrix(database)
    fill(database, 2, seed=1)
    prepare_matrix(database)
    assert_current(database, open_matrix(database))
    assert len(writes) == 1
    monkeypatch.setattr(matrix, "_FEW", 1)
    monkeypatch.setattr(database, "read_only", True)
    prepare_matrix(database)
    assert_current(database, open_matrix(database))
    assert len(writes) == 1


def test_within_a_transaction_nothing_is_stored(database):
    fill(database)
    with database.writing(), database.transaction() as connection:
        connection.execute("DELETE FROM files")
        connection.execute("DELETE FROM contents WHERE id > 5")
        assert len(open_matrix(database)) == 5
    assert not file_of(database).exists()


def test_damaged_vectors_in_sqlite_are_named(database):
    fill(database)
    change(database, "UPDATE contents SET vector = x'0000' WHERE id = 7")
    with pytest.raises(LibraryError, match="vector of content 7 is damaged"):
        open_matrix(database)
    bad = np.full(WIDTH, np.nan, np.float16).tobytes()
    change(database, "UPDATE contents SET vector = ? WHERE id = 7", bad)
    with pytest.raises(LibraryError, match="vector of content 7 is damaged"):
        open_matrix(database)
    change(database, "UPDATE facts SET value = 50 WHERE name = 'vectors'")
    change(
        database,
        "UPDATE contents SET vector = ? WHERE id = 7",
        generate_vectors(1, WIDTH)[0].tobytes(),
    )
    with pytest.raises(LibraryError, match="has 40 vectors and says 50"):
        open_matrix(database)


def test_readers_while_it_is_filled(database):
    """Threads that search see a commit, whole, at each moment."""
    fill(database, 20)
    done, failures = threading.Event(), []

    def read():
        own, last = Database.open(database.location), None
        while not done.is_set():
            try:
                last = open_matrix(own, last=last)
                assert len(last) % 10 == 0
                assert len(last) == len(last.ids)
                search_matrix(last, last.vectors(np.array([0])), 3)
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(20):
        fill(database, 10, seed=seed)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert_current(database, open_matrix(database))


def test_two_processes_write_it(database):
    """They start at the same time; each gets it, and one of them waits."""
    fill(database, 3000)
    code = (
        "import sys; from pocketclip.search.store.database import Database\n"
        "from pocketclip.search.store.location import locate\n"
        "from pocketclip.search.vectors.matrix import open_matrix\n"
        "found = open_matrix(Database.open(locate(sys.argv[1])))\n"
        "print(len(found), found.remark)"
    )
    command = [sys.executable, "-c", code, str(database.location.file)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == ["3000 None\n"] * 2
    assert check_matrix(database) is None


def test_another_process_that_does_not_end(database, monkeypatch):
    fill(database)
    monkeypatch.setattr(matrix, "_LONGEST_WAIT", 0.1)
    with matrix._turn(database):
        found = open_matrix(database)
    assert_current(database, found)
    assert "another process" in found.remark


# Searching.


def brute_force(database, queries, k, allowed=None):
    ids, vectors = stored(database)
    for query in np.atleast_2d(queries):
        products = vectors * query.astype(np.float64)
        scores = products.sum(axis=1)
        places = np.arange(len(ids)) if allowed is None else np.flatnonzero(allowed)
        order = sorted(places, key=lambda i: (-scores[i], ids[i]))[:k]
        yield order, scores[order]


def duplicates(count):
    return generate_vectors(9, WIDTH)[np.random.default_rng(0).integers(0, 9, count)]


KINDS = {
    "random": lambda count: generate_vectors(count, WIDTH),
    "clustered": lambda count: generate_vectors(count, WIDTH, clusters=5),
    "duplicates": duplicates,
    "equal": lambda count: np.repeat(generate_vectors(1, WIDTH), count, axis=0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_as_brute_force(database, kind, engine, monkeypatch):
    monkeypatch.setattr("pocketclip.search.vectors.engines._STEP", 64)
    monkeypatch.setattr("pocketclip.search.vectors.engines._EXACT", 32)
    monkeypatch.setattr("pocketclip.search.vectors.engines._MOST", 500)
    add_vectors(database, KINDS[kind](300))
    open_matrix(database, engine)
    for vector in (bytes(2 * WIDTH), KINDS[kind](1)[0].tobytes()):
        change(database, "UPDATE contents SET vector = ? WHERE id = 20", vector)
    add_vectors(database, KINDS[kind](20))
    found = open_matrix(database, engine)
    assert found.order is not None
    queries = np.concatenate(
        [generate_vectors(3, WIDTH, seed=5).astype(np.float32) * 3, found.vectors(np.array([0, 7]))]
    )
    rng = np.random.default_rng(1)
    for allowed in (None, rng.random(320) < 0.6, rng.random(320) < 0.05, np.zeros(320, bool)):
        for k in (1, 10, 320, 1000):
            rows, scores = search_matrix(found, queries, k, allowed)
            count = min(k, 320 if allowed is None else allowed.sum())
            assert rows.shape == scores.shape == (5, count)
            for i, (expected, exact) in enumerate(brute_force(database, queries, k, allowed)):
                assert rows[i].tolist() == list(expected)
                assert scores[i].tolist() == exact.tolist()
    all_scores = similarities(found, queries)
    assert np.allclose(all_scores, queries @ found.vectors(np.arange(320)).T, 0, 5e-3)
    some = np.array([3, 19, 310])
    assert np.allclose(similarities(found, queries[0], some), all_scores[0, some], 0, 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one(database, writes, engine, count):
    fill(database, count)
    open_matrix(database, engine)
    found = open_matrix(database, engine)
    query = np.ones(WIDTH, np.float32)
    rows, scores = search_matrix(found, query, 5)
    assert rows.tolist() == [[0] * count]
    assert scores.shape == (1, count)
    assert similarities(found, query).shape == (count,)
    assert len(writes) == 1
    fill(database, 2)
    assert_current(database, open_matrix(database, engine))


def test_queries_that_are_refused(database):
    fill(database)
    found = open_matrix(database)
    for bad in (np.nan, np.inf):
        with pytest.raises(EmbeddingError, match="query 0"):
            search_matrix(found, np.full(WIDTH, bad, np.float32), 3)
    with pytest.raises(LibraryError, match="width 8"):
        search_matrix(found, np.ones(8, np.float32), 3)
    rows, scores = search_matrix(found, np.zeros(WIDTH, np.float32), 3)
    assert rows.tolist() == [[0, 1, 2]]
    assert not scores.any()


def test_engines(monkeypatch):
    assert kernels.choose_engine(None, 200_000) == "numpy"
    assert kernels.choose_engine(None, 200_001) == ENGINES[-1]
    with pytest.raises(LibraryError, match="no engine 'faiss'"):
        kernels.choose_engine("faiss", 1)
    monkeypatch.setattr(kernels, "_numkong", lambda: None)
    assert kernels.choose_engine(None, 200_001) == "numpy"
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[search\]"):
        kernels.choose_engine("numkong", 1)


def test_wrong_kernels_are_not_used(caplog):
    class Wrong:
        __version__ = "99"

        @staticmethod
        def cdist(rows, queries, metric, *, out):
            assert metric == "dot"
            out[:] = 1 - rows.astype(np.float32) @ queries.astype(np.float32).T

    assert not kernels._is_right(Wrong)
    assert "numkong 99 computes wrong values" in caplog.text


@pytest.mark.parametrize("engine", ENGINES)
def test_the_error_bound_holds(engine):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((4, 512)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    vectors = generate_vectors(3000).astype(kernels.DTYPES[engine])
    vectors[:4] = queries
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    errors = np.abs(kernels.dot_products(vectors, queries, engine) - exact).max(axis=1)
    assert (errors <= kernels.error_bound(queries, engine, 1.001)).all()
    assert (kernels.error_bound(queries, engine, 1.001) < 1e-3).all()


def test_pages_are_given_back(database, monkeypatch):
    monkeypatch.setattr(vector_file, "_LARGE", 0)
    fill(database, 2000)
    found = open_matrix(database)
    rows = np.random.default_rng(0).permutation(2000)
    assert np.array_equal(found.vectors(rows), stored(database)[1][rows])
    query = found.vectors(np.array([77]))
    assert search_matrix(found, query, 1)[0].tolist() == [[77]]
