"""Which file of a library is opened for somebody else, and which one never is."""

from __future__ import annotations

import os
import shutil

import pytest

from pocketclip.search.photo_file import (
    ChangedPhotoError,
    UnknownPhotoError,
    open_beneath,
    open_photo,
)
from tests.search.conftest import draw_photo
from tests.search.rows import add_content, add_file, add_root

SECRET = b"the secret of somebody else"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "photos"


@pytest.fixture
def add(library, root):
    """Record files of the root as they are now, as one content; return its id."""
    number = add_root(library.database, root)

    def run(*files, **about):
        content = add_content(library.database, **about)
        for file in files:
            state, path = file.stat(), os.fsencode(file.relative_to(root))
            add_file(
                library.database, number, path, content, size=state.st_size,
                mtime_ns=state.st_mtime_ns,
            )  # fmt: skip
        return content

    return run


def data_of(library, content):
    with open_photo(library.database, content) as photo:
        return photo.read(0, photo.size + 10)


def test_the_indexed_file_is_opened(library, root, add):
    name = os.fsdecode(b"trip/<img src=x onerror=1>\n\xff.jpg")
    file = draw_photo(root / name, 1)
    content = add(file, format="JPEG")
    with open_photo(library.database, content) as photo:
        assert photo.read(0, photo.size) == file.read_bytes()
        assert photo.read(photo.size, 10) == b""
        assert (photo.name, photo.format) == (os.fsencode(file.name), "JPEG")
        assert os.get_blocking(photo.descriptor)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(photo.descriptor)


def test_no_other_id_is_one(library, root, add):
    content = add(draw_photo(root / "a.jpg", 1))
    broken = add(draw_photo(root / "b.jpg", 2), error="no image")
    for other in (content + 10, broken, 0, -1, 1 << 63, -(1 << 70)):
        with pytest.raises(UnknownPhotoError) as caught:
            open_photo(library.database, other)
        assert str(root) not in str(caught.value)


def test_what_changed_is_refused(library, root, add):
    file = draw_photo(root / "a.jpg", 1)
    content = add(file)
    state = file.stat()
    os.utime(file, (1, 1))
    with pytest.raises(ChangedPhotoError) as caught:
        open_photo(library.database, content)
    assert str(root) not in str(caught.value)
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(file, ns=(state.st_mtime_ns, state.st_mtime_ns))
    with pytest.raises(ChangedPhotoError):
        open_photo(library.database, content)
    file.unlink()
    with pytest.raises(UnknownPhotoError):
        open_photo(library.database, content)


def test_the_bytes_decide_where_the_time_tells_nothing(library, root, encoder):
    file = draw_photo(root / "a.jpg", 1)
    os.utime(file)  # now: another write might leave the same time
    library.index([root], encoder=encoder)
    with library.database.reading() as connection:
        [(content, time)] = connection.execute("SELECT content, mtime_ns FROM files").fetchall()
    assert time == -1
    assert data_of(library, content) == file.read_bytes()
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ChangedPhotoError):
        open_photo(library.database, content)


def test_another_copy_is_taken(library, root, add):
    first, second = draw_photo(root / "a.jpg", 1), root / "sub" / "b.jpg"
    second.parent.mkdir()
    shutil.copy2(first, second)
    content = add(first, second)
    expected = first.read_bytes()
    first.write_bytes(b"changed")
    assert data_of(library, content) == expected
    first.unlink()
    assert data_of(library, content) == expected


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "private" / "a.jpg"
    file.parent.mkdir()
    file.write_bytes(SECRET)
    os.utime(file, (5, 5))
    return file


def test_a_link_is_not_followed(library, root, add, secret):
    """Neither in place of the file nor of its folder, though what it leads to looks the same."""
    file = root / "trip" / "a.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(SECRET)
    os.utime(file, (5, 5))
    content = add(file)
    assert data_of(library, content) == SECRET
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(ChangedPhotoError):
        open_photo(library.database, content)
    file.unlink()
    file.parent.rmdir()
    file.parent.symlink_to(secret.parent)
    assert file.stat().st_mtime == 5
    with pytest.raises(UnknownPhotoError):
        open_photo(library.database, content)


def test_a_pipe_or_folder_in_its_place_is_refused_at_once(library, root, add):
    file = draw_photo(root / "a.jpg", 1)
    content = add(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ChangedPhotoError):
        open_photo(library.database, content)
    file.unlink()
    file.mkdir()
    with pytest.raises(ChangedPhotoError):
        open_photo(library.database, content)


def test_an_absent_drive(library, root, add):
    content = add(draw_photo(root / "a.jpg", 1))
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(UnknownPhotoError):
        open_photo(library.database, content)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    "path", [b"", b"/etc/passwd", b"../private/a.jpg", b"x/../../private/a.jpg", b"./a", b"a\0b"]
)
def test_a_path_out_of_the_root_is_none(root, path):
    (root / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match="below a folder"):
        open_beneath(os.fsencode(root), path)
