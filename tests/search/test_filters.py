"""Which photographs the filters leave."""

from __future__ import annotations

import datetime
import os
import time
import unicodedata

import numpy as np
import pytest

from pocketclip.errors import QueryError
from pocketclip.search.filters import (
    Filters,
    allowed_contents,
    clock_seconds,
    conditions,
    removed_by,
    span_of,
)
from tests.search.rows import add_content, add_file, add_root


def seconds(*parts):
    return clock_seconds(datetime.datetime(*parts))


def ids_of(database):
    with database.reading() as connection:
        return np.array([row[0] for row in connection.execute("SELECT id FROM contents")], np.int64)


def paths(database, **filters):
    """Return the paths of the contents that the filters leave."""
    ids = ids_of(database)
    left = ids[allowed_contents(database, Filters(**filters), ids)].tolist()
    with database.reading() as connection:
        rows = connection.execute("SELECT content, path FROM files").fetchall()
    return {path for content, path in rows if content in left}


@pytest.fixture
def filled(library, tmp_path):
    """A library with a root of four folders; nothing of it is on the disk."""
    database = library.database
    root = add_root(database, tmp_path / "Pictures")
    for path in (
        b"a.jpg", b"Italy/b.jpg", b"Italy/Rome/c.jpg", b"Italy2/d.jpg", b"caf\xe9/e.jpg",
        "Été/f.jpg".encode(), unicodedata.normalize("NFD", "Été/g.jpg").encode(),
    ):  # fmt: skip
        add_file(database, root, path, add_content(database))
    return database


def test_folders(filled, tmp_path, monkeypatch):
    italy = {b"Italy/b.jpg", b"Italy/Rome/c.jpg"}
    root = tmp_path / "Pictures"
    for folder in (
        root / "Italy",
        f"{root}/Italy/",
        f"{root}/x/../Italy",
        "Italy",
        "Italy/",
        b"Italy",
    ):
        assert paths(filled, folders=[folder]) == italy, folder
    assert paths(filled, folders=["Italy/Rome", "Italy2"]) == {b"Italy/Rome/c.jpg", b"Italy2/d.jpg"}
    assert len(paths(filled, folders=[tmp_path])) == 7, "a folder that holds a root"
    assert len(paths(filled, folders=["/"])) == 7
    assert len(paths(filled, folders=[root])) == 7
    monkeypatch.chdir(tmp_path)
    assert paths(filled, folders=["Pictures/Italy"]) == italy, "from the current folder"
    assert len(paths(filled, folders=["."])) == 7


def test_folders_whose_names_are_not_plain(filled, tmp_path):
    both = {"Été/f.jpg".encode(), unicodedata.normalize("NFD", "Été/g.jpg").encode()}
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Été")
        assert paths(filled, folders=[name]) == both
        assert paths(filled, folders=[tmp_path / "Pictures" / name]) == both
    assert paths(filled, folders=["caf\udce9"]) == {b"caf\xe9/e.jpg"}


def test_a_root_behind_a_link(library, tmp_path):
    (tmp_path / "disk" / "sea").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    root = add_root(library.database, tmp_path / "disk")
    add_file(library.database, root, b"sea/a.jpg", add_content(library.database))
    assert paths(library.database, folders=[tmp_path / "link" / "sea"]) == {b"sea/a.jpg"}


@pytest.mark.parametrize("folder", ["Rome", "nothing", "../Italy2", "", "It", "a.jpg"])
def test_an_unknown_folder(filled, folder, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(QueryError, match="no photographs of the folder") as caught:
        paths(filled, folders=[folder])
    advice = {"Rome": "did you mean Italy/Rome?", "../Italy2": "did you mean Italy2?"}
    assert advice.get(folder, "index it with `pocketclip index") in str(caught.value)
    with pytest.raises(QueryError):
        paths(filled, folders=["."])


@pytest.mark.parametrize(
    ("text", "first", "end"),
    [
        ("2024", (2024, 1, 1), (2025, 1, 1)), ("2024-12", (2024, 12, 1), (2025, 1, 1)),
        ("2024-02-29", (2024, 2, 29), (2024, 3, 1)), (" 2024-5-1 ", (2024, 5, 1), (2024, 5, 2)),
        ("2024-05-01T10:30", (2024, 5, 1, 10, 30), (2024, 5, 1, 10, 31)),
        ("2024-05-01 10:30:59", (2024, 5, 1, 10, 30, 59), (2024, 5, 1, 10, 31)),
        (datetime.date(2024, 1, 31), (2024, 1, 31), (2024, 2, 1)),
    ],
)  # fmt: skip
def test_spans_of_time(text, first, end):
    assert span_of(text) == (datetime.datetime(*first), datetime.datetime(*end))


@pytest.mark.parametrize(
    "text", ["", "yesterday", "24", "2024-13", "2024-02-30", "2024-05-01T25:00", "2024-05-01Z",
             "2024-05-01T10:30+02:00", "0000", "2024/05"],
)  # fmt: skip
def test_what_is_no_date(text):
    with pytest.raises(QueryError, match="is no date: write 2024"):
        span_of(text)


def test_the_last_year_has_an_end():
    assert span_of("9999")[1] == datetime.datetime.max
    assert span_of("9999-12-31")[1] == datetime.datetime.max


@pytest.fixture
def dated(library, tmp_path, monkeypatch):
    """Photographs with and without a capture time, on a machine east of Greenwich."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    database = library.database
    root = add_root(database, tmp_path)
    moments = {b"first": (2024, 1, 1), b"last": (2024, 12, 31, 23, 59, 59), b"old": (2023, 12, 31)}
    for name, moment in moments.items():
        taken = seconds(*moment)
        content = add_content(database, taken=taken, taken_offset=-600, camera="Leica Q3")
        add_file(database, root, name, content, mtime_ns=1)
    # One o'clock on New Year's Day in Tokyo is still December in Greenwich.
    local = datetime.datetime(2024, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=9)))
    add_file(database, root, b"file", add_content(database), mtime_ns=int(local.timestamp() * 1e9))
    yield database
    monkeypatch.undo()
    time.tzset()


def test_times(dated):
    assert paths(dated, since="2024") == {b"first", b"last", b"file"}
    assert paths(dated, until="2024") == {b"first", b"last", b"old", b"file"}
    assert paths(dated, until="2023") == {b"old"}
    assert paths(dated, since="2024-12-31T23:59", until="2024-12-31") == {b"last"}
    assert paths(dated, since=datetime.date(2024, 1, 1), until="2024-01-01T00:30") == {b"first"}
    with pytest.raises(QueryError, match=r"2024 \(since\) is after 2023 \(until\)"):
        paths(dated, since="2024", until="2023")


def test_the_time_of_a_file_that_is_read_again(library, tmp_path):
    """-1 in place of its time says that it was written while it was indexed."""
    root = add_root(library.database, tmp_path)
    (tmp_path / "a").touch()
    os.utime(tmp_path / "a", (1_600_000_000, 1_600_000_000))
    for name in (b"a", b"gone"):
        add_file(library.database, root, name, add_content(library.database), mtime_ns=-1)
    assert paths(library.database, since="2020", until="2020") == {b"a"}
    assert paths(library.database, since="2021") == set()


def test_cameras(dated):
    for text in ("leica", "LEICA Q", " q3 "):
        assert len(paths(dated, camera=text)) == 3
    assert paths(dated, camera="canon") == set()
    with pytest.raises(QueryError, match="camera is empty"):
        paths(dated, camera=" ")


def test_a_photograph_is_where_its_present_files_are(library, tmp_path):
    database = library.database
    root = add_root(database, tmp_path)
    both, gone, orphan = (add_content(database) for _ in range(3))
    add_file(database, root, b"one/a", both)
    add_file(database, root, b"two/a", both, absent=1)
    add_file(database, root, b"two/b", gone, absent=2)
    ids = np.array([both, gone, orphan], np.int64)
    assert allowed_contents(database, Filters(), ids).tolist() == [True, False, False]
    assert allowed_contents(database, Filters(folders=["two"]), ids).tolist() == [False] * 3
    assert allowed_contents(database, Filters(), ids[:0]).tolist() == []
    assert allowed_contents(database, Filters(), ids[1:]).tolist() == [False, False]


def test_the_filters_are_counted(dated):
    filters = Filters(since="2024", camera="canon")
    counts = removed_by(dated, conditions(dated, filters), ids_of(dated))
    assert counts == {"absent": 0, "since": 1, "camera": 3}
    assert filters
    assert not Filters()
    assert Filters(camera="")


def test_folders_that_others_name(filled, tmp_path, monkeypatch):
    """They are looked for in the library only: below a root, or by the root's name."""
    italy = {b"Italy/b.jpg", b"Italy/Rome/c.jpg"}
    monkeypatch.setattr(os.path, "realpath", pytest.fail)
    monkeypatch.setattr(os.path, "expanduser", pytest.fail)
    for name in ("Italy", "Italy/", "./Italy", "Pictures/Italy", "Pictures//Italy/."):
        assert paths(filled, folder_names=name) == italy
    assert len(paths(filled, folder_names=["Pictures"])) == 7
    assert paths(filled, folder_names=["Italy/Rome", "Italy2"]) == {
        b"Italy/Rome/c.jpg", b"Italy2/d.jpg"
    }  # fmt: skip
    assert len(paths(filled, folder_names=["Été"])) == 2
    messages = set()
    for name in (
        str(tmp_path / "Pictures"), str(tmp_path), "/", "", ".", "..", "Italy/..", "~", "~root",
        "../Pictures", "Italy/../Italy", "nothing", "a\0b", "a.jpg/x", "Rome",
    ):  # fmt: skip
        with pytest.raises(QueryError) as caught:
            paths(filled, folder_names=[name])
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_reasons_do_not_repeat_what_was_asked(filled):
    for asked in ({"since": "1/2/secret"}, {"since": "2025", "until": "2024"}):
        with pytest.raises(QueryError) as caught:
            paths(filled, **asked)
        assert "secret" not in caught.value.reason
        assert "2025" not in caught.value.reason
