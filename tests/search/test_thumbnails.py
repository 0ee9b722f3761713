"""Thumbnails: what is kept, for whom, and what happens if it is damaged."""

from __future__ import annotations

import errno
import io
import os
import stat

import numpy as np
import pytest
from PIL import Image, ImageCms

from pocketclip.errors import ImageError
from pocketclip.progress import ProgressReporter
from pocketclip.search import thumbnail_store as store_module
from pocketclip.search import thumbnails as module
from pocketclip.search.indexing.reading import content_digest
from pocketclip.search.photo_file import ChangedPhotoError, UnknownPhotoError
from pocketclip.search.thumbnail_image import SIDE
from pocketclip.search.thumbnail_store import ThumbnailStore
from pocketclip.search.thumbnails import photo_thumbnail, thumbnail
from pocketclip.storage import locks
from pocketclip.storage.temporary import TemporaryFolder
from tests.search.conftest import draw_photo


def thumbnail_file(location, digest):
    return ThumbnailStore(location).file(digest)


def opened(data):
    return Image.open(io.BytesIO(data))


def hostile_photo(path, size=(900, 600)):
    """A photograph that lies on its side, with everything in it that nobody else should see."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x013B] = 6, "SECRET-MAKE", "SECRET-ARTIST"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0SECRET-USER"
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[29] = "N", (51.0, 30.0, 0.0), "SECRET-GPS"
    draw_photo(path, 1, size=size)
    image = Image.open(path)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a b="SECRET-XMP"/></x:xmpmeta>'
    iptc = b"\x1c\x02\x78\x00\x0bSECRET-IPTC"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + b"\0"
    segment = b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block
    image.save(path, exif=exif, comment=b"SECRET-COMMENT", xmp=xmp, extra=segment)
    data = path.read_bytes()
    path.write_bytes(data + b"SECRET-TRAILER")
    for what in ("MAKE", "ARTIST", "USER", "GPS", "COMMENT", "XMP", "IPTC", "TRAILER"):
        assert f"SECRET-{what}".encode() in path.read_bytes()
    os.utime(path, (1.6e9, 1.6e9))
    return path


def assert_stripped(data):
    assert b"SECRET" not in data
    assert not opened(data).getexif()
    assert set(opened(data).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.fixture
def photo(tmp_path):
    return hostile_photo(tmp_path / "photo.jpg")


def test_it_is_upright_small_private_and_without_metadata(library, photo):
    digest = content_digest(photo.read_bytes())
    data = thumbnail(library.location, photo, digest)
    assert opened(data).size == (213, 320)
    assert_stripped(data)
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


def test_indexing_makes_them(library, photos, encoder, monkeypatch):
    report = library.index([photos], encoder=encoder)
    assert report.thumbnails == report.encoded == 6
    store = ThumbnailStore(library.location)
    for file in photos.rglob("*.*"):
        digest = content_digest(file.read_bytes())
        kept = store.read(digest)
        monkeypatch.setattr(module, "_make", pytest.fail)
        assert thumbnail(library.location, file, digest) == kept
        monkeypatch.undo()
        assert module._make(file, digest) == kept  # of a small photograph, to the bit
    names = [path.name for path in store.folder.rglob("*") if not path.is_dir()]
    assert len(names) == 6
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in store.folder.rglob("*"))
    assert library.index([photos], encoder=encoder, rebuild=True).thumbnails == 0


def test_indexing_makes_those_of_large_photographs_and_strips_them(library, tmp_path, encoder):
    file = hostile_photo(tmp_path / "photos" / "a.jpg", size=(1200, 800))
    library.index([file.parent], encoder=encoder)
    data = ThumbnailStore(library.location).read(content_digest(file.read_bytes()))
    assert opened(data).size == (213, 320)
    assert_stripped(data)


def test_indexing_without_them(library, photos, encoder):
    assert library.index([photos], encoder=encoder, thumbnails=False).thumbnails == 0
    assert not ThumbnailStore(library.location).folder.exists()


class Remarks(ProgressReporter):
    def __init__(self):
        self.said = []

    def remark(self, text):
        self.said.append(text)


@pytest.mark.parametrize(("limit", "value"), [("FREE_BYTES", 1 << 62), ("FOLDER_BYTES", -1)])
def test_without_room_indexing_goes_on(library, photos, encoder, monkeypatch, limit, value):
    monkeypatch.setattr(store_module, limit, value)
    reporter = Remarks()
    report = library.index([photos], encoder=encoder, reporter=reporter)
    assert (report.encoded, report.thumbnails) == (6, 0)
    assert "no more thumbnails are kept" in reporter.said[-1]
    assert not list(library.location.derived.rglob("*.jpg"))


def test_a_full_or_read_only_disk_is_harmless_to_indexing(library, photos, encoder, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(ThumbnailStore, "_write", fail)
    report = library.index([photos], encoder=encoder)
    assert (report.encoded, report.thumbnails) == (6, 0)
    assert library.search("a circle").searched == 6


def test_what_a_killed_run_left_is_removed(library, photos, encoder):
    store = ThumbnailStore(library.location)
    store.folder.mkdir(parents=True)
    left = TemporaryFolder(store.folder, ".new")
    (left.path / "half.jpg").write_bytes(b"\xff\xd8")
    locks.release(left._lock)  # as if its process were gone
    library.index([photos], encoder=encoder)
    assert not left.path.exists()


def test_forgetting_removes_them(library, photos, encoder):
    library.index([photos], encoder=encoder)
    digest = content_digest((photos / "b.jpg").read_bytes())
    report = library.forget([photos / "b.jpg"])
    assert report.thumbnails == 1
    left = [path.name for path in library.location.derived.rglob("*.jpg")]
    assert len(left) == 5
    assert f"{digest.hex()}.jpg" not in left


def test_the_folder_is_estimated(library):
    store = ThumbnailStore(library.location)
    rng = np.random.default_rng(0)
    store.keep({rng.bytes(32): bytes(10) for _ in range(600)})
    assert store._bytes() == pytest.approx(6000, rel=0.6)


def content_of(library, file):
    with library.database.reading() as connection:
        sql = "SELECT id FROM contents WHERE digest = ?"
        return connection.execute(sql, (content_digest(file.read_bytes()),)).fetchone()[0]


def test_others_get_them_by_id_only_while_the_file_is_as_it_was(library, photos, encoder):
    library.index([photos], encoder=encoder, thumbnails=False)
    store, file = ThumbnailStore(library.location), photos / "b.jpg"
    content = content_of(library, file)
    data, digest = photo_thumbnail(library.database, store, content)
    assert digest == content_digest(file.read_bytes())
    assert store.read(digest) == data
    assert photo_thumbnail(library.database, store, content) == (data, digest)
    store.remove(digest)
    with pytest.raises(ImageError, match="pixels exceed"):
        photo_thumbnail(library.database, store, content, max_pixels=10)
    draw_photo(file, 9)
    with pytest.raises(ChangedPhotoError):
        photo_thumbnail(library.database, store, content)
    with pytest.raises(UnknownPhotoError):
        photo_thumbnail(library.database, store, content + 100)


def test_one_that_is_forgotten_while_it_is_made_is_not_kept(library, photos, encoder, monkeypatch):
    library.index([photos], encoder=encoder, thumbnails=False)
    store, make = ThumbnailStore(library.location), module._make_from

    def forget_and_make(*given):
        library.forget([photos / "b.jpg"])
        return make(*given)

    monkeypatch.setattr(module, "_make_from", forget_and_make)
    photo_thumbnail(library.database, store, content_of(library, photos / "b.jpg"))
    assert not list(library.location.derived.rglob("*.jpg"))
