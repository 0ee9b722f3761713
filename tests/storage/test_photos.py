"""Which files are photographs, and what is passed over and said."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pocketclip import storage
from pocketclip.errors import ImageError, PocketclipError
from pocketclip.images import open_image
from pocketclip.storage.photos import find_photographs, is_hidden, is_photograph, walk_files


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def found(root):
    return [path.relative_to(root).as_posix() for path in find_photographs([str(root)]).paths]


@pytest.fixture
def usb(tmp_path):
    """A memory stick as it comes back from several machines."""
    return write(
        tmp_path / "usb",
        *("IMG.jpg", "a.jfif", "B.JPG", "album.jpg/in.jpg", "deep/er/c.webp"),
        *("._IMG.jpg", ".thumbnails/t.jpg", "@eaDir/IMG.jpg/SYNOPHOTO_THUMB_M.jpg"),
        *("__MACOSX/x.jpg", "$RECYCLE.BIN/old.jpg", "Thumbs.db", "notes.txt"),
    )


def test_hidden_and_other_files_are_skipped_and_counted(usb):
    assert found(usb) == ["B.JPG", "IMG.jpg", "a.jfif", "album.jpg/in.jpg", "deep/er/c.webp"]
    (note,) = find_photographs([str(usb)]).passed_over
    assert note.startswith(f"{usb}: skipped 5 hidden entries (")
    assert "2 files that are not photographs (" in note


def test_a_pipe_a_socket_and_a_broken_link(usb):
    os.mkfifo(usb / "pipe.jpg")
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(usb)  # such an address has 100 bytes at most
    try:
        server.bind("s.jpg")
    finally:
        os.chdir(here)
        server.close()
    (usb / "gone.jpg").symlink_to(usb / "nowhere.jpg")
    (usb / "circle.jpg").symlink_to(usb / "circle.jpg")
    assert [name for name in found(usb) if "/" not in name] == [
        *("B.JPG", "IMG.jpg", "a.jfif", "circle.jpg", "gone.jpg"),
    ]  # whoever reads the links says that they lead nowhere
    (note,) = find_photographs([str(usb)]).passed_over
    assert "2 pipes, sockets or devices (" in note
    with pytest.raises(
        ImageError, match=r"pipe\.jpg: this is a pipe, socket or device, not a file"
    ):
        open_image(usb / "pipe.jpg")  # and does not wait for ever
    with pytest.raises(ImageError, match=r"gone\.jpg: No such file"):
        open_image(usb / "gone.jpg")
    with pytest.raises(ImageError, match="a pipe, socket or device"):
        open_image("/dev/zero")


def test_linked_folders_are_followed_and_each_folder_once(tmp_path):
    write(tmp_path / "elsewhere", "e.jpg", "in/f.jpg")
    usb = write(tmp_path / "usb", "IMG.jpg", "z/y.jpg")
    (usb / "linked").symlink_to(tmp_path / "elsewhere")
    (usb / "again").symlink_to(tmp_path / "elsewhere" / "in")
    (usb / "a-link-to-z").symlink_to(usb / "z")
    (usb / "up").symlink_to(tmp_path)
    (usb / "z" / "self").symlink_to(usb)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    names = found(usb)
    assert sorted(Path(name).name for name in names) == ["IMG.jpg", "e.jpg", "f.jpg", "y.jpg"]
    assert "z/y.jpg" in names  # not by its link
    (note,) = find_photographs([str(usb)]).passed_over
    assert "2 links to parent folders (" in note
    assert sorted(map(os.path.basename, storage.list_files(str(usb), recursive=True))) == sorted(
        Path(name).name for name in names
    )
    assert sorted(entry.name for entry in walk_files(str(usb), recursive=False)) == ["IMG.jpg"]


def test_patterns_and_files_named_twice(usb, monkeypatch):
    monkeypatch.chdir(usb)
    paths = lambda *inputs: [str(path) for path in find_photographs(inputs).paths]  # noqa: E731
    assert paths("*.jpg") == ["IMG.jpg", "album.jpg/in.jpg"]
    assert paths("**/*.jpg") == ["IMG.jpg", "album.jpg/in.jpg"]
    assert paths("deep/**") == paths("**/c.*") == paths("**/**/er/*") == ["deep/er/c.webp"]
    for name in ("one", "two"):  # of which each doubles the ways to every file
        (usb / "deep" / name).symlink_to(usb / "deep")
    assert paths("**/*.webp") == ["deep/er/c.webp"]
    assert paths("*") == ["B.JPG", "IMG.jpg", "Thumbs.db", "a.jfif", "album.jpg/in.jpg",
                          "deep/er/c.webp", "notes.txt"]  # fmt: skip
    assert paths("IMG.jpg", "IMG.jpg", "*.jpg") == ["IMG.jpg", "IMG.jpg", "album.jpg/in.jpg"]
    assert paths("album.jpg", "album.jpg/in.jpg") == ["album.jpg/in.jpg"]
    assert paths("._IMG.jpg", "missing.jpg") == ["._IMG.jpg", "missing.jpg"]
    assert paths("[ab].jfif") == ["a.jfif"]
    (usb / "[x].png").write_bytes(b"x")
    assert paths("[x].png") == ["[x].png"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an empty path"),
        ("  ", "an empty path"),
        ("*.gif", "no file matches this pattern"),
        (".thumbnails/none*", "no file matches"),
        ("empty", r"no photographs in this folder; empty: skipped 1 hidden entry \(\.a\.jpg\)"),
    ],
)
def test_nothing_there(usb, monkeypatch, text, why):
    write(usb, "empty/.a.jpg")
    monkeypatch.chdir(usb)
    with pytest.raises(PocketclipError, match=why):
        find_photographs([text])


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(name)).mkdir()
    Path(os.fsdecode(name + b"/\xff.JPG")).write_bytes(b"x")
    (path,) = find_photographs([os.fsdecode(name)]).paths
    assert os.fsencode(path) == name + b"/\xff.JPG"


def test_names():
    assert is_photograph("a.JFIF")
    assert not is_photograph("jpg")
    assert is_hidden(".x")
    assert is_hidden("@EADIR")
    assert not is_hidden("x.")
