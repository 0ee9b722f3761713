"""Indexing: what is encoded, and what follows its bytes instead."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pocketclip
from pocketclip.errors import EmbeddingError, LibraryError, PocketclipError, QueryError
from pocketclip.infer.encoder import Encoder, load
from pocketclip.progress import ProgressReporter
from pocketclip.search.filters import Filters
from pocketclip.search.indexing import reading
from pocketclip.search.indexing import run as indexing
from pocketclip.search.indexing.roots import known_roots
from pocketclip.search.library import Library
from pocketclip.search.query import make_parts
from pocketclip.search.records import IndexReport
from pocketclip.search.searching import search
from tests.bundles import manifest
from tests.cli.inside import run
from tests.search.conftest import draw_photo


def counts(report: IndexReport) -> dict[str, int]:
    """Return what a report counts, without zeros."""
    names = (
        "encoded", "copied", "moved", "changed", "touched", "unchanged", "absent", "returned",
        "known_unreadable", "gone",
    )  # fmt: skip
    found = {name: getattr(report, name) for name in names}
    found["unreadable"] = len(report.unreadable)
    return {name: count for name, count in found.items() if count}


def vectors(library: Library) -> dict[str, bytes]:
    """Return the vector of each file that is there, by path."""
    rows = library.database.connection.execute(
        "SELECT f.path, c.vector FROM files f JOIN contents c ON c.id = f.content "
        "WHERE f.absent = 0 AND c.vector IS NOT NULL"
    )
    return {os.fsdecode(path): vector for path, vector in rows}


@pytest.fixture
def indexed(library, photos, encoder):
    report = library.index([photos], encoder=encoder)
    assert counts(report) == {"encoded": 6}
    return library


def test_the_vectors_are_those_of_the_files(indexed, photos, encoder):
    found = vectors(indexed)
    assert len(found) == 6
    for path, vector in found.items():
        expected = encoder.encode_image(photos / path)[0].astype("<f2")
        np.testing.assert_array_equal(np.frombuffer(vector, "<f2"), expected)


def test_what_follows_its_bytes_is_not_encoded(indexed, photos, monkeypatch):
    before = vectors(indexed)
    monkeypatch.setattr(indexed, "encoder", pytest.fail)  # nothing to encode: not even loaded
    assert counts(indexed.index()) == {"unchanged": 6}
    monkeypatch.undo()
    (photos / "trip").rename(photos / "journey")
    (photos / "a.jpg").rename(photos / "ä.jpg")
    shutil.copy2(photos / "b.jpg", photos / "copy.jpg")
    os.utime(photos / "c.png", (1.5e9, 1.5e9))
    draw_photo(photos / "d.webp", 9)
    report = indexed.index()
    assert counts(report) == {
        "encoded": 1, "copied": 1, "moved": 3, "changed": 1, "touched": 1, "unchanged": 1,
    }  # fmt: skip
    after = vectors(indexed)
    assert after["ä.jpg"] == before["a.jpg"]
    assert after["journey/e.jpg"] == before["trip/e.jpg"]
    assert after["copy.jpg"] == before["b.jpg"]
    assert after["d.webp"] != before["d.webp"]
    assert counts(indexed.index()) == {"unchanged": 7}


def test_absent_files_are_kept_and_return(indexed, photos, tmp_path):
    shutil.move(photos / "trip", tmp_path / "elsewhere")
    assert counts(indexed.index()) == {"unchanged": 4, "absent": 2}
    shutil.move(tmp_path / "elsewhere", photos / "trip")
    assert counts(indexed.index()) == {"unchanged": 4, "returned": 2}


def test_another_model_is_refused(indexed, photos, bundle, other_bundle):
    draw_photo(photos / "new.jpg", 8)
    state = indexed.database.connection.execute("SELECT * FROM facts").fetchall()
    with pytest.raises(LibraryError) as refusal:
        indexed.index(model=other_bundle)
    for folder in (bundle, other_bundle):
        assert manifest(folder)["space_id"] in str(refusal.value)
    assert indexed.database.connection.execute("SELECT * FROM facts").fetchall() == state
    assert counts(indexed.index(model=bundle)) == {"encoded": 1, "unchanged": 6}


def test_a_model_that_is_gone_adds_no_root(library, photos, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "model")
    library.index([photos], model=tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    draw_photo(tmp_path / "others" / "g.jpg", 8)
    with Library.open(library.location.file) as again:
        with pytest.raises(LibraryError, match="cannot be loaded"):
            again.index([tmp_path / "others"])
        assert [root.path for root in known_roots(again.database)] == [photos]


def test_an_interrupt_within_an_encoding_keeps_its_vector(library, photos, encoder, monkeypatch):
    own, encoded = encoder.encode_prepared, []

    def interrupted(inputs):
        embeddings = own(inputs)
        encoded.extend(embeddings)
        for _ in range(2):  # most people press it twice
            os.kill(os.getpid(), signal.SIGINT)
        return embeddings

    monkeypatch.setattr(encoder, "encode_prepared", interrupted)
    report = library.index([photos], encoder=encoder)
    assert report.interrupted
    assert report.encoded == len(vectors(library)) == len(encoded) > 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_folder_no_model_is_loaded(library):
    def load():
        raise AssertionError

    with pytest.raises(LibraryError, match="no folders yet: give one"):
        library.index(encoder=load)
    assert not library.location.file.exists()
    assert library.database.fact("space_id") is None  # exists now
    with pytest.raises(LibraryError, match="no folders yet: give one"):
        library.index(encoder=load)


def test_a_model_that_fails_leaves_no_library(tmp_path, photos):
    with Library.open(tmp_path / "new" / "photos.sqlite", create=True) as library:
        with pytest.raises(PocketclipError):
            library.index([photos], model=tmp_path / "no-model")
        with pytest.raises(LibraryError, match="no such folder"):
            library.index([tmp_path / "nowhere"])  # before a model is fetched
    assert not (tmp_path / "new").exists()


def test_unreadable_files_are_not_tried_again(library, photos, encoder):
    (photos / "text.jpg").write_text("no image")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "pointer.jpg").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    )
    shutil.copy(photos / "text.jpg", photos / "same.jpg")
    for path in photos.glob("*.jpg"):
        os.utime(path, (1.6e9, 1.6e9))
    report = library.index([photos], encoder=encoder)
    reasons = {path.name: reason for path, reason in report.unreadable}
    assert counts(report) == {"encoded": 6, "copied": 1, "unreadable": 4}
    assert "0 bytes" in reasons["empty.jpg"]
    assert "git-LFS" in reasons["pointer.jpg"]
    assert reasons["text.jpg"] == reasons["same.jpg"]
    assert counts(library.index()) == {"unchanged": 6, "known_unreadable": 4}
    assert counts(library.index(retry=True)) == {
        "unchanged": 6, "unreadable": 3, "known_unreadable": 1,  # the copy is not read again
    }  # fmt: skip
    draw_photo(photos / "text.jpg", 20)
    report = library.index()
    assert counts(report) == {
        "encoded": 1, "changed": 1, "unchanged": 6, "known_unreadable": 3
    }  # fmt: skip


def test_a_single_path_is_not_taken_apart(library, photos, encoder):
    """Its first character is the root of the file system."""
    report = library.index(str(photos), encoder=encoder, exclude="*.png")
    assert counts(report) == {"encoded": 5}
    assert [root.path for root in library.status(photos).roots] == [photos]
    found = library.search("a", like=str(photos / "a.jpg"), filters=Filters(folders="trip"))
    assert len(found.hits) == 2
    assert library.duplicates(kinds=["exact"], folders=str(photos / "trip")).searched == 2
    assert len(library.forget(str(photos / "trip"), dry_run=True).files) == 2
    with pytest.raises(QueryError, match="a query is a text"):
        library.search(["a circle"])


def test_times_that_sqlite_has_no_number_for(library, photos, encoder):
    late = (10_000_000_000, 10_000_000_000)  # in the year 2286
    os.utime(photos / "a.jpg", late)
    if (photos / "a.jpg").stat().st_mtime != late[0]:
        pytest.skip("the file system has no such times")
    assert counts(library.index([photos], encoder=encoder)) == {"encoded": 6}
    assert counts(library.index()) == {"unchanged": 6}
    hits = library.search("a circle").hits
    assert all(hit.current for hit in hits)
    assert {hit.path for hit in hits} == {photos / name for name in vectors(library)}
    shutil.copy2(photos / "a.jpg", photos / "copy.jpg")
    library.index()
    assert len(library.duplicates(kinds=["exact"]).groups) == 1
    assert [hit.path for hit in library.search("a", filters=Filters(since="2200")).hits] == [
        photos / "a.jpg"
    ]
    assert len(library.search("a", filters=Filters(until="9999")).hits) == 6
    assert not library.search("a", filters=Filters(since="9999")).hits


def test_a_file_that_cannot_be_opened_is_tried_in_the_next_run(
    library, photos, encoder, monkeypatch
):
    real = os.open

    def refuse(path, *rest, **options):
        if str(path).endswith("a.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    report = library.index([photos], encoder=encoder)
    assert report.unreadable == [(photos / "a.jpg", "Permission denied")]
    assert counts(report) == {"encoded": 5, "unreadable": 1}
    monkeypatch.undo()
    assert counts(library.index()) == {"encoded": 1, "unchanged": 5}


class At(ProgressReporter):
    """Calls a function when the reading begins, or after a number of files."""

    def __init__(self, call, after=0):
        self.call, self.after = call, after

    def stage(self, text):
        if text.startswith("reading") and not self.after:
            self.call()

    def progress(self, done, total, note=""):  # noqa: ARG002
        if total and done == self.after:
            self.call()


def test_files_that_change_under_the_reader(library, photos, encoder, monkeypatch):
    def disturb():
        (photos / "a.jpg").unlink()
        (photos / "b.jpg").unlink()
        (photos / "b.jpg").mkdir()
        (photos / "c.png").unlink()
        os.mkfifo(photos / "c.png")  # opening it would wait for a writer

    def fstat(descriptor, real=os.fstat):
        state = real(descriptor)
        if state.st_size == (photos / "d.webp").stat().st_size:
            os.truncate(photos / "d.webp", state.st_size + 1)  # somebody is writing it
        return state

    monkeypatch.setattr(reading.os, "fstat", fstat)
    report = library.index([photos], encoder=encoder, reporter=At(disturb))
    assert counts(report) == {"encoded": 2, "gone": 3, "unreadable": 1}
    assert report.unreadable == [(photos / "d.webp", reading.CHANGED)]
    rows = library.database.connection.execute("SELECT COUNT(*) FROM files").fetchone()
    assert rows == (2,)


def test_an_interrupted_run_loses_nothing_and_goes_on(library, photos, encoder):
    def interrupt():
        raise KeyboardInterrupt

    report = library.index([photos], encoder=encoder, reporter=At(interrupt, after=2))
    assert report.interrupted
    assert 2 <= report.encoded == len(vectors(library)) <= 6
    again = library.index()
    assert again.encoded == 6 - report.encoded
    assert len(vectors(library)) == 6


KILLED = """
import os, signal, sys
from pocketclip.search.indexing import recording
from pocketclip.search.library import Library
recording.PHOTOGRAPHS, real, left = 2, recording.Recorder._write, [2]
def write(self, *rest):
    later = real(self, *rest)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)  # before its commit
    return later
recording.Recorder._write = write
Library.open(sys.argv[1], create=True).index([sys.argv[2]], model=sys.argv[3])
"""


def test_a_killed_run_loses_one_batch(tmp_path, photos, bundle, encoder):
    file = tmp_path / "killed.sqlite"
    killed = subprocess.run([sys.executable, "-c", KILLED, file, photos, bundle], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Library.open(file) as library:
        assert len(vectors(library)) == 2
        assert counts(library.index()) == {"encoded": 4, "unchanged": 2}
        found = vectors(library)
    with Library.open(tmp_path / "undisturbed.sqlite", create=True) as library:
        library.index([photos], encoder=encoder)
        assert vectors(library) == found


def test_what_waits_for_a_vector_is_found_by_an_index(indexed):
    """Without going through all files, which a rebuild of a million would do 200 times."""
    database = indexed.database
    [root] = known_roots(database)
    where, values = indexing._unencoded([indexing._Part(root.id, b"", root.path)])
    with database.reading() as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT c.id, f.id {where} AND c.id > ? ORDER BY c.id, f.id",
            (*values, 0),
        ).fetchall()
    steps = [step for *_, step in plan]
    assert "contents_pending" in steps[0]
    assert "files_content" in steps[1]
    assert len(steps) == 2, "sorted already"


def test_rebuild_keeps_files_and_goes_on_after_an_interruption(
    indexed, photos, tmp_path, other_bundle
):
    (photos / "a.jpg").rename(tmp_path / "away.jpg")
    shutil.copy2(photos / "b.jpg", photos / "copy.jpg")
    indexed.index()
    before = vectors(indexed)

    def interrupt():
        raise KeyboardInterrupt

    other = load(other_bundle, backend="onnxruntime")
    report = indexed.index(encoder=other, rebuild=True, reporter=At(interrupt, after=2))
    assert report.interrupted
    assert indexed.database.fact("space_id") == other.space_id
    assert indexed.database.fact("model_source") == str(other_bundle)
    assert indexed.index().encoded == 5 - report.encoded
    after = vectors(indexed)
    assert after.keys() == before.keys()
    assert after["copy.jpg"] == after["b.jpg"] != before["b.jpg"]
    expected = other.encode_image(photos / "trip" / "e.jpg")[0].astype("<f2")
    np.testing.assert_array_equal(np.frombuffer(after["trip/e.jpg"], "<f2"), expected)
    (tmp_path / "away.jpg").rename(photos / "a.jpg")
    assert counts(indexed.index()) == {"encoded": 1, "returned": 1, "unchanged": 6}


def test_a_search_during_a_rebuild_says_what_is_missing(indexed, encoder):
    def give_up(count):
        with indexed.database.writing(), indexed.database.transaction() as connection:
            connection.execute("UPDATE contents SET vector = NULL WHERE id <= ?", (count,))

    assert indexed.search("a circle", encoder=encoder).unencoded == 0
    give_up(2)
    result = indexed.search("a circle", encoder=encoder)
    assert (len(result.hits), result.unencoded) == (4, 2)
    give_up(6)
    with pytest.raises(LibraryError, match="is encoded yet: run `pocketclip index`"):
        indexed.search("a circle", encoder=encoder)


def test_a_model_that_another_process_changes_during_a_search(indexed, encoder):
    def matrix():
        with indexed.database.writing(), indexed.database.transaction():
            indexed.database.set_fact("space_id", "space-of-another-model")
        return indexed.matrix()

    with pytest.raises(LibraryError, match="space-of-another-model"):
        search(
            indexed.database, make_parts("a circle"), Filters(), encoder=encoder, matrix=matrix,
            top=5,
        )  # fmt: skip


def test_a_rebuild_takes_another_file_where_the_first_changed(indexed, photos):
    shutil.copy2(photos / "a.jpg", photos / "z.jpg")
    indexed.index()
    state = (photos / "a.jpg").stat()
    data = bytearray((photos / "a.jpg").read_bytes())
    data[-40] ^= 1  # other bytes at the same size and time
    (photos / "a.jpg").write_bytes(data)
    os.utime(photos / "a.jpg", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert counts(indexed.index(rebuild=True)) == {"encoded": 7, "changed": 1}
    assert len(vectors(indexed)) == 7


def test_a_photograph_without_an_embedding_does_not_end_the_run(
    library, photos, encoder, monkeypatch
):
    Image.new("RGB", (80, 80)).save(photos / "black.png")
    os.utime(photos / "black.png", (1.6e9, 1.6e9))
    real = Encoder.encode_prepared

    def encode_prepared(self, inputs, **options):
        if not inputs[0].any():
            raise EmbeddingError("image 0", "its embedding is zero; the model is at fault")
        return real(self, inputs, **options)

    monkeypatch.setattr(Encoder, "encode_prepared", encode_prepared)
    report = library.index([photos], encoder=encoder)
    assert counts(report) == {"encoded": 6, "unreadable": 1}
    assert "its embedding is zero" in report.unreadable[0][1]
    monkeypatch.undo()
    assert counts(library.index()) == {"unchanged": 6, "known_unreadable": 1}
    assert library.index(rebuild=True).encoded == 7  # another model may have one


def test_heic_is_read_once_its_extra_is_there(library, photos, encoder, monkeypatch):
    (photos / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    os.utime(photos / "x.heic", (1.6e9, 1.6e9))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for _ in range(2):
        report = library.index([photos], encoder=encoder)
        ((message, count),) = report.unsupported.items()
        assert (count, report.unreadable) == (1, [])
        assert "pocketclip[heic]" in message
        assert report.is_incomplete
    monkeypatch.undo()
    if importlib.util.find_spec("pillow_heif") is not None:
        report = library.index([photos], encoder=encoder)
        assert [path.name for path, _ in report.unreadable] == ["x.heic"]
        assert not report.unsupported


def test_large_jpegs(tmp_path, library, encoder):
    photo = draw_photo(tmp_path / "large" / "a.jpg", 3, size=(1200, 900))
    expected = encoder.encode_image(photo)[0]
    library.index([photo.parent], encoder=encoder)
    reduced = np.frombuffer(vectors(library)["a.jpg"], "<f2").astype(np.float32)
    assert reduced @ expected > 0.999
    library.index(encoder=encoder, rebuild=True, exact=True)
    assert vectors(library)["a.jpg"] == expected.astype("<f2").tobytes()


def test_what_is_read_ahead_is_bounded_and_any_file_passes(library, photos, encoder, monkeypatch):
    monkeypatch.setattr(reading, "BYTES_AHEAD", 100)
    monkeypatch.setattr(reading, "MAX_MEMORY", 100)
    assert library.index([photos], encoder=encoder).encoded == 6


def test_a_model_in_torch_is_run_in_batches(library, photos):
    model = load(Path(pocketclip.__file__).parent / "data" / "quickstart" / "teacher-b")
    report = library.index([photos], encoder=model)
    assert counts(report) == {"encoded": 6}
    expected = model.encode_image(photos / "a.jpg")[0]
    found = np.frombuffer(vectors(library)["a.jpg"], "<f2")
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_command(tmp_path, photos, bundle):
    library = tmp_path / "photos.sqlite"
    (photos / "text.jpg").write_text("no image")
    done = run("index", photos, "--library", library, "--model", bundle, "--exclude", "trip/")
    assert done.returncode == 1, done.stderr
    assert "encoded 4 photographs" in done.stdout
    assert "text.jpg: not an image" in done.stdout
    (photos / "text.jpg").unlink()
    done = run("index", "--library", library, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["unchanged"], report["absent"]) == (0, 4, 1)
    done = run("index", "--library", library, "--status")
    assert "teacher-a" in done.stdout
    assert "4 unchanged" in done.stdout
    done = run("index", photos, "--check", "--library", library)
    assert (done.returncode, "leave out" in done.stderr) == (2, True)
