"""Indexing: what is encoded, and what follows its bytes instead."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.library import Library
from pocketclip.search.records import IndexReport
from tests.bundles import manifest
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
