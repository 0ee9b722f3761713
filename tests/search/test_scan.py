"""Listing a root and comparing it with what a library knows of it."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path

import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.indexing import scan, walk
from pocketclip.search.indexing.roots import known_roots, register_root, resolve_root
from pocketclip.search.indexing.rules import Rules
from pocketclip.search.indexing.scan import apply_changes, list_root, scan_root, stored_state
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate


@pytest.fixture
def database(tmp_path):
    database = Database.create(locate(tmp_path / "library" / "photos.sqlite"))
    yield database
    database.close()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def write(root, *names):
    """Write a small file of each name; its bytes are its name."""
    for name in names:
        path = os.fsencode(root) + b"/" + (name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(path)).write_bytes(path)


def listed(root, *exclude, below=b""):
    return list_root(root, Rules(exclude), below)


def index(database, path, *exclude):
    """Do what indexing does, but for reading files: the digest of a file is its bytes."""
    with database.writing():
        target = resolve_root(database, path)
        root_id = register_root(database, target, exclude)
        _, changes = scan_root(database, root_id, target.below)
        apply_changes(database, changes)
        with database.transaction() as connection:
            for file in (*changes.new, *changes.changed):
                data = Path(os.fsdecode(os.fsencode(target.path) + b"/" + file.path)).read_bytes()
                connection.execute(
                    "INSERT OR IGNORE INTO contents (digest, size, vector) VALUES (?, ?, x'00')",
                    (data, len(data)),
                )
                connection.execute(
                    "INSERT OR REPLACE INTO files (id, root, path, size, mtime_ns, content) VALUES "
                    "(?, ?, ?, ?, ?, (SELECT id FROM contents WHERE digest = ?))",
                    (file.row, root_id, file.path, file.size, file.mtime_ns, data),
                )
    return changes


def states(database):
    """Return the state of every file by its name."""
    rows = database.connection.execute("SELECT path, absent FROM files")
    return {path.rpartition(b"/")[2].decode(): absent for path, absent in rows}


def paths(found):
    return [file.path for file in found]


def test_names_are_bytes(root):
    composed = unicodedata.normalize("NFC", "é.jpg").encode()
    decomposed = unicodedata.normalize("NFD", "é.jpg").encode()
    names = [b"caf\xe9/\xff.jpg", b"new\nline.PNG", composed, decomposed, b"a.JPeG"]
    write(root, *names)
    assert listed(root).files.keys() == set(names)


def test_what_is_passed_over_is_counted(root, tmp_path):
    write(root, "a.jpg", "._a.jpg", ".thumbnails/a.jpg", "@eaDir/a.jpg", "notes.txt", "clip.MOV")
    write(root, "raw.CR2", "new.jxl", "no/.nomedia", "no/deep/a.jpg")
    write(root, "mine.sqlite", "mine.derived/t.jpg")
    write(tmp_path, "elsewhere/b.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "b.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    listing = listed(root)
    assert listing.files.keys() == {b"a.jpg"}
    assert listing.passed_over == {
        "hidden entry": 3, "file that is not a photograph": 2, "video": 1, "RAW photograph": 1,
        "JPEG XL photograph": 1, walk.NO_MEDIA_FOLDER: 1, walk.LIBRARY: 1,
        "pipe, socket or device": 1, walk.OUTSIDE: 2,
    }  # fmt: skip


def test_links_within_the_root_give_no_file_twice(root):
    write(root, "a.jpg", ".objects/one", ".objects/two.jpg")
    (root / "again.jpg").symlink_to("a.jpg")
    (root / "one.jpg").symlink_to(".objects/one")  # as git-annex keeps files
    (root / "one too.jpg").symlink_to(".objects/one")
    (root / "deep").mkdir()
    (root / "deep" / "up").symlink_to("..")
    (root / "deep" / "circle.jpg").symlink_to("circle.jpg")
    (root / "gone.jpg").symlink_to("nothing.jpg")
    listing = listed(root)
    assert listing.files.keys() == {b"a.jpg", b"one too.jpg"}
    assert listing.files[b"one too.jpg"][0] == (root / ".objects" / "one").stat().st_size
    assert listing.passed_over == {
        "hidden entry": 1, walk.LINKED_TWICE: 2, walk.FOLDER_LINK: 1, walk.BROKEN: 2,
    }  # fmt: skip


def test_new_changed_unchanged_absent_and_back(database, root):
    write(root, "a.jpg", "b.jpg", "sub/c.jpg")
    assert paths(index(database, root).new) == [b"a.jpg", b"b.jpg", b"sub/c.jpg"]
    assert index(database, root).unchanged == 3
    os.utime(root / "a.jpg", ns=(1, 1))
    (root / "b.jpg").rename(root / "kept")
    changes = index(database, root)
    assert (paths(changes.changed), changes.unchanged) == ([b"a.jpg"], 1)
    assert states(database) == {"a.jpg": 0, "b.jpg": scan.ABSENT, "c.jpg": 0}
    assert index(database, root).absent == 1
    (root / "kept").rename(root / "b.jpg")
    changes = index(database, root)
    assert (len(changes.returned), changes.new, changes.changed) == (1, [], [])
    assert set(states(database).values()) == {0}


def test_a_part_of_a_root(database, root):
    write(root, "sub/a.jpg", "sub/b.jpg", "sub.jpg", "sub0/a.jpg", "other/c.jpg")
    index(database, root)
    for name in ("sub/a.jpg", "sub.jpg", "sub0/a.jpg", "other/c.jpg"):
        (root / name).unlink()
    changes = index(database, root / "sub")
    assert len(changes.vanished) == 1
    assert changes.unchanged == 1
    assert len(known_roots(database)) == 1


def test_a_missing_or_empty_root_changes_no_row(database, root, tmp_path):
    write(root, "a.jpg", "b/c.jpg")
    index(database, root)
    root.rename(tmp_path / "away")
    assert index(database, root).missing == "it is not there"
    root.mkdir()
    assert "not mounted" in index(database, root).missing
    root.rmdir()
    write(tmp_path, "pictures")
    with pytest.raises(LibraryError, match="is a file"):
        resolve_root(database, root)
    assert set(states(database).values()) == {0}
    root.unlink()
    (tmp_path / "away").rename(root)
    assert index(database, root).unchanged == 2


def test_an_emptied_folder_of_a_root_is_no_missing_drive(database, root):
    write(root, "a.jpg", "b/c.jpg")
    index(database, root)
    (root / "b" / "c.jpg").unlink()
    changes = index(database, root / "b")
    assert (len(changes.vanished), changes.missing) == (1, None)
    assert states(database) == {"a.jpg": 0, "c.jpg": scan.ABSENT}


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), OSError(5, "I/O")])
def test_a_folder_that_cannot_be_read_keeps_its_rows(database, root, monkeypatch, problem):
    write(root, "a.jpg", "bad/b.jpg", "bad/deep/c.jpg", "good/d.jpg")
    index(database, root)
    (root / "good" / "d.jpg").unlink()
    real = os.scandir

    def scandir(path):
        if path.endswith(b"/bad"):
            raise problem
        return real(path)

    monkeypatch.setattr(walk.os, "scandir", scandir)
    listing, _ = scan_root(database, 1)
    assert listing.failed == {b"bad": problem.strerror}
    changes = index(database, root)
    assert (changes.unknown, changes.unchanged) == (2, 1)
    assert states(database) == {"a.jpg": 0, "b.jpg": 0, "c.jpg": 0, "d.jpg": scan.ABSENT}


def test_a_file_whose_state_cannot_be_read_keeps_its_row(database, root):
    write(root, "sub/a.jpg", "sub/b.jpg")
    index(database, root)

    class Entry:
        name = b"a.jpg"

        def is_dir(self, **_):
            return False

        is_file = is_dir

        def is_symlink(self):
            raise PermissionError(13, "Permission denied")

    listing = listed(root)
    walker = walk._Walk(listing, Rules())
    listing.files.clear()
    walker._sort_out(b"sub", [Entry()], {b"a.jpg"}, ())
    assert scan.compare(database, 1, listing).unknown == 2


def test_excluded_files_are_not_absent(database, root):
    write(root, "a.jpg", "b.png", "shots/c.jpg", "media/d.jpg")
    index(database, root)
    write(root, "media/.nomedia")
    changes = index(database, root, "*.png", "shots/")
    assert len(changes.excluded) == 3
    out = scan.EXCLUDED
    assert states(database) == {"a.jpg": 0, "b.png": out, "c.jpg": out, "d.jpg": out}
    assert index(database, root).left_out == 3  # the patterns are stored
    (root / "media" / ".nomedia").unlink()
    assert len(index(database, root, "").returned) == 3
    assert set(states(database).values()) == {0}


def test_an_ignore_file_that_cannot_be_read_lets_nothing_in(root):
    write(root, "a.jpg", "sub/b.jpg")
    (root / "sub" / ".pocketclipignore").symlink_to("nothing")
    listing = listed(root)
    assert listing.files.keys() == {b"a.jpg"}
    assert "cannot be read" in listing.failed[b"sub"]


def test_roots_within_roots(database, root, tmp_path):
    write(root, "a.jpg", b"caf\xe9/b.jpg", b"caf\xe9/no/c.png", ".hidden/d.jpg", "deep/er/e.jpg")
    inner = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    index(database, inner, "no/")
    index(database, root / ".hidden")
    index(database, root / "deep" / "er")
    before = set(database.connection.execute("SELECT id, content FROM files"))
    (tmp_path / "link").symlink_to(root)
    changes = index(database, tmp_path / "link")
    assert paths(changes.new) == [b"a.jpg"]
    assert changes.unchanged == 2
    assert before <= set(database.connection.execute("SELECT id, content FROM files"))
    # What the outer root would leave out stays a root of its own.
    assert [known.path for known in known_roots(database)] == [root, root / ".hidden"]
    assert index(database, inner / "no").missing.endswith("is excluded")
    assert index(database, root / ".hidden").unchanged == 1
    assert list_root(root, Rules(), b"deep").files.keys() == {b"deep/er/e.jpg"}


def test_a_root_whose_drive_is_away_is_not_absorbed(database, root):
    write(root, "a.jpg", "drive/b.jpg")
    index(database, root / "drive")
    (root / "drive" / "b.jpg").rename(root / "drive.away")
    index(database, root)
    assert states(database) == {"a.jpg": 0, "b.jpg": 0}
    (root / "drive.away").rename(root / "drive" / "b.jpg")
    assert index(database, root).unchanged == 2
    assert [known.path for known in known_roots(database)] == [root]


def test_a_folder_by_another_spelling_is_the_same(database, root, tmp_path, monkeypatch):
    # As on a file system that does not tell capital letters: here a second name of the folder.
    write(root, "Sub/a.jpg")
    index(database, root)
    (tmp_path / "PICTURES").symlink_to(root)
    (root / "sub").symlink_to("Sub")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    assert resolve_root(database, tmp_path / "PICTURES").root_id == 1
    with pytest.raises(LibraryError, match="no such folder"):
        resolve_root(database, tmp_path / "Pictures")


def test_a_renamed_folder_leaves_the_rest_alone(database, root):
    write(root, *[f"{n // 100}/{n}.jpg" for n in range(300)])
    index(database, root)
    (root / "1").rename(root / "moved")
    _, changes = scan_root(database, 1)
    assert (len(changes.new), len(changes.vanished), changes.unchanged) == (100, 100, 200)


def test_a_file_written_while_it_is_read_is_read_again(root):
    write(root, "a.jpg")
    path = root / "a.jpg"
    now = time.time_ns()
    old = path.stat()
    assert stored_state(old, old, now)[1] == scan.READ_AGAIN  # written within the clock's tick
    os.utime(path, ns=(now - 10**10,) * 2)
    settled = path.stat()
    assert stored_state(settled, settled, now) == (settled.st_size, settled.st_mtime_ns)
    assert stored_state(settled, old, now)[1] == scan.READ_AGAIN


def test_paths_that_are_no_root(database, root, monkeypatch):
    write(root, "a.jpg")
    for path, problem in (("", "an empty path"), (root / "a.jpg", "is a file"), ("a\0b", "no path"),
                          ("~nobody-has-this-name/x", "no such folder")):  # fmt: skip
        with pytest.raises(LibraryError, match=problem):
            resolve_root(database, path)
    index(database, root)

    def stat(_path, **_):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(os, "stat", stat)  # a drive that went away is still known
    assert resolve_root(database, root).root_id == 1
    with pytest.raises(LibraryError, match="endpoint is not connected"):
        resolve_root(database, root.parent / "unknown")


def test_paths_from_the_root_of_the_file_system(tmp_path):
    write(tmp_path, "a.jpg")
    below = os.fsencode(tmp_path)[1:]
    listing = list_root(Path("/"), Rules(), below)
    assert listing.files.keys() == {below + b"/a.jpg"}
