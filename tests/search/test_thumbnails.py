"""Thumbnails: what is kept, for whom, and what happens if it is damaged."""

from __future__ import annotations

import io
import stat

import pytest
from PIL import Image, ImageCms

from pocketclip.search import thumbnails as module
from pocketclip.search.indexing.reading import content_digest
from pocketclip.search.thumbnails import SIDE, thumbnail, thumbnail_file
from tests.search.conftest import draw_photo


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.fixture
def photo(tmp_path):
    """A photograph that lies on its side, with a place and a comment."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    path = draw_photo(tmp_path / "photo.jpg", 1, size=(900, 600), exif=exif)
    image = Image.open(path)
    image.save(path, exif=exif, comment=b"private")
    return path


def test_it_is_upright_small_private_and_without_metadata(library, photo):
    digest = content_digest(photo.read_bytes())
    data = thumbnail(library.location, photo, digest)
    assert opened(data).size == (213, 320)
    assert not opened(data).getexif()
    assert b"private" not in data
    file = thumbnail_file(library.location, digest)
    assert file.read_bytes() == data
    assert file.parent.parent == library.location.derived / "thumbnails"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for folder in (file.parent, file.parent.parent, library.location.derived):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_what_is_kept_is_used(library, photo, monkeypatch):
    digest = content_digest(photo.read_bytes())
    first = thumbnail(library.location, photo, digest)
    monkeypatch.setattr(module, "_make", pytest.fail)
    assert thumbnail(library.location, photo, digest) == first


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff", b"x" * 300_000, "large"])
def test_a_damaged_one_is_made_again(library, photo, damage):
    digest = content_digest(photo.read_bytes())
    file = thumbnail_file(library.location, digest)
    good = thumbnail(library.location, photo, digest)
    file.write_bytes(photo.read_bytes() if damage == "large" else damage)
    assert thumbnail(library.location, photo, digest) == good
    assert file.read_bytes() == good


def test_only_the_bytes_that_were_indexed_are_shown(library, photo):
    digest = content_digest(photo.read_bytes())
    good = thumbnail(library.location, photo, digest)
    assert thumbnail(library.location, photo, digest, current=False) == good  # only touched
    draw_photo(photo, 2)
    assert thumbnail(library.location, photo, digest, current=False) is None
    other = content_digest(b"other")
    assert thumbnail(library.location, photo, other) is None
    assert not thumbnail_file(library.location, other).exists()


def test_what_cannot_be_read_or_written_is_harmless(library, photo, tmp_path):
    digest = content_digest(photo.read_bytes())
    library.location.derived.mkdir(parents=True)
    (library.location.derived / "thumbnails").write_bytes(b"in the way")
    assert opened(thumbnail(library.location, photo, digest)).size == (213, 320)
    assert thumbnail(library.location, tmp_path / "nothing.jpg", digest) is None
    assert thumbnail(library.location, tmp_path, digest) is None
    text = tmp_path / "text.jpg"
    text.write_bytes(b"no image")
    assert thumbnail(library.location, text, content_digest(b"no image")) is None


def test_any_shape_and_mode(library, tmp_path):
    for number, (mode, size) in enumerate(
        [("LA", (3, 2)), ("I;16", (2000, 4)), ("RGBA", (4, 2000))]
    ):
        path = tmp_path / f"{number}.png"
        Image.new(mode, size).save(path)
        data = thumbnail(library.location, path, content_digest(path.read_bytes()))
        width, height = opened(data).size
        assert (width <= SIDE, height <= SIDE, opened(data).mode) == (True, True, "RGB")


def test_the_colours_of_a_phone_are_kept(library, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cases = (("RGB", b"RGB ", True), ("RGB", b"CMYK", False), ("L", b"RGB ", False))
    for mode, space, expected in cases:
        path = tmp_path / "photo.jpg"
        own = profile[:16] + space + profile[20:]
        Image.new(mode, (50, 40)).save(path, icc_profile=own)
        data = thumbnail(library.location, path, content_digest(path.read_bytes()))
        assert (opened(data).info.get("icc_profile") == own) is expected
    large = own[:16] + b"RGB " + own[20:] + bytes(1 << 14)
    Image.new("RGB", (50, 40)).save(path, icc_profile=large)
    data = thumbnail(library.location, path, content_digest(path.read_bytes()))
    assert "icc_profile" not in opened(data).info
