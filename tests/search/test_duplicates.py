"""Exact and near duplicates and bursts: kept apart, the best first, nothing changed."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pocketclip.errors import ConfigError, ImageError, QueryError
from pocketclip.search.duplicates import close_hashes
from pocketclip.search.duplicates import near as near_duplicates
from pocketclip.search.duplicates.find import find_duplicates
from pocketclip.search.similar import DuplicateLimits
from tests.search.conftest import draw_photo
from tests.search.exif_bytes import MAKE, TAKEN, exif, text


def shot(path, seed, *, time=None, camera="Canon", fraction=None, **options):
    """Write a photograph with what a camera adds to it."""
    taken = {TAKEN: text(time)} if time else {}
    taken |= {0x9291: text(fraction)} if fraction else {}
    tags = b"Exif\0\0" + exif({MAKE: text(camera)}, taken)
    return draw_photo(path, seed, exif=tags, **options)


@pytest.fixture
def found(library, encoder, tmp_path):
    """A function that indexes the photographs and returns groups of names by kind."""

    def find(**options):
        library.index([tmp_path / "photos"], encoder=encoder)
        report = library.duplicates(**options)
        find.report = report
        return {
            kind: [[one.path.name for one in group.photographs] for group in report.of_kind(kind)]
            for kind in report.kinds
        }

    return find


def test_a_copy_that_became_a_link_out_of_its_root_is_left_out(found, library, tmp_path):
    folder, outside = tmp_path / "photos", tmp_path / "outside.jpg"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw_photo(folder / name, 2)
    assert found()["exact"] == [["a.jpg", "b.jpg", "c.jpg"]]
    (folder / "c.jpg").rename(outside)  # the same size and time
    (folder / "c.jpg").symlink_to(outside)
    (group,) = library.duplicates().of_kind("exact")
    assert [one.path.name for one in group.photographs] == ["a.jpg", "b.jpg"]


def test_each_kind_apart(found, tmp_path):
    folder = tmp_path / "photos"
    shot(folder / "big.jpg", 1, size=(192, 144), time="2024:05:01 10:00:00")
    shot(folder / "small.jpg", 1, time="2024:05:01 10:00:00", quality=60)
    draw_photo(folder / "sent.png", 1)  # without its time
    shot(folder / "next.jpg", 1, size=(192, 144), time="2024:05:01 10:00:02", quality=70)
    shot(folder / "later.jpg", 1, size=(192, 144), time="2024:05:01 10:01:00")
    draw_photo(folder / "other.jpg", 2)
    (folder / "copy.jpg").write_bytes((folder / "other.jpg").read_bytes())
    os.utime(folder / "copy.jpg", ns=(10**18, 10**18))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert found() == {
        "exact": [["copy.jpg", "other.jpg"]],
        "near": [["big.jpg", "sent.png", "small.jpg"]],
        "burst": [["big.jpg", "next.jpg"]],
    }
    near = found.report.of_kind("near")[0]
    assert near.photographs[0].similarity is near.photographs[0].distance is None
    assert all(one.distance <= 8 and 0.9 < one.similarity <= 1.001 for one in near.photographs[1:])
    assert near.room == sum(len(before[folder / name]) for name in ("small.jpg", "sent.png"))
    assert (found.report.searched, found.report.outdated, found.report.blank) == (6, 0, 0)
    assert found.report.untimed == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_other_shots_of_one_scene_are_not_near_duplicates(found, tmp_path):
    """The camera's time tells, to the fraction of a second, however alike they look."""
    for number, fraction in enumerate(["10", "40", "70"]):
        path = tmp_path / "photos" / f"{number}.jpg"
        shot(path, 3, time="2024:05:01 10:00:00", fraction=fraction, quality=90 - number)
    groups = found()
    assert groups["near"] == groups["exact"] == []
    assert groups["burst"] == [["0.jpg", "1.jpg", "2.jpg"]]


def test_pixels_tell_shots_without_a_time_apart(found, library, tmp_path):
    """The same light and the same place, but the small things are elsewhere."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    light = np.asarray(Image.open(draw_photo(tmp_path / "light.png", 1, size=(256, 192))), float)
    for name in ("a.png", "b.png"):
        things = rng.normal(0, 30, (48, 64, 1)).repeat(4, 0).repeat(4, 1)
        shown = Image.fromarray((light + things).clip(0, 255).astype(np.uint8))
        shown.save(tmp_path / "photos" / name)
    shown.resize((128, 96)).save(tmp_path / "photos" / "b-small.jpg")
    limits = {"near_similarity": -1, "near_distance": 12}
    assert found(kinds=["near"], limits=DuplicateLimits(**limits))["near"] == [
        ["b.png", "b-small.jpg"]
    ]
    assert 0.97 < found.report.groups[0].photographs[1].pixels <= 1
    report = library.duplicates(kinds=["near"], limits=DuplicateLimits(near_pixels=-1, **limits))
    assert len(report.groups[0].photographs) == 3
    assert report.groups[0].photographs[1].pixels is None


def test_what_cannot_be_read_now_is_said(found, library, tmp_path, monkeypatch):
    for size in (64, 96):
        draw_photo(tmp_path / "photos" / f"{size}.png", 1, size=(size, size))
    assert len(found(kinds=["near"])["near"]) == 1

    def refuse(path):
        raise ImageError(f"{path}: gone mad")

    monkeypatch.setattr(near_duplicates, "grey", refuse)
    report = library.duplicates(kinds=["near"])
    assert report.groups == ()
    assert "64.png: gone mad" in "".join(report.remarks)


def test_bursts_need_camera_time_and_likeness(found, tmp_path):
    folder = tmp_path / "photos"
    shot(folder / "a.jpg", 1, time="2024:05:01 10:00:00")
    shot(folder / "b.jpg", 1, time="2024:05:01 10:00:01", camera="Nikon", quality=70)
    shot(folder / "c.jpg", 4, time="2024:05:01 10:00:01")
    draw_photo(folder / "d.jpg", 1, quality=60)
    draw_photo(folder / "e.jpg", 1, quality=65)
    assert found(kinds=["burst"]) == {"burst": []}
    assert found(kinds=["burst"], limits=DuplicateLimits(burst_similarity=-1)) == {
        "burst": [["a.jpg", "c.jpg"]]
    }


def test_a_long_run_is_grouped_around_its_best(found, tmp_path):
    folder = tmp_path / "photos"
    for second in range(9):
        size = (128, 96) if second == 4 else (96, 72)
        seed = 1 if second < 7 else 5
        shot(folder / f"{second}.jpg", seed, time=f"2024:05:01 10:00:0{second}", size=size)
    first = ["4.jpg", "0.jpg", "1.jpg", "2.jpg", "3.jpg", "5.jpg", "6.jpg"]
    assert found(kinds=["burst"]) == {"burst": [first, ["7.jpg", "8.jpg"]]}
    assert found(kinds=["burst"], limits=DuplicateLimits(burst_seconds=0.5)) == {"burst": []}


def test_what_is_gone_or_changed_is_left_out(found, library, tmp_path):
    folder = tmp_path / "photos"
    for name, size in {
        "best.png": (128, 96),
        "middle.png": (112, 84),
        "least.png": (96, 72),
    }.items():
        draw_photo(folder / name, 1, size=size)
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        draw_photo(folder / name, 2)
    assert found()["near"] == [["best.png", "middle.png", "least.png"]]
    (folder / "best.png").unlink()
    draw_photo(folder / "y.jpg", 9)
    report = find_duplicates(library.database)
    assert [one.path.name for one in report.of_kind("near")[0].photographs] == [
        "middle.png", "least.png",
    ]  # fmt: skip
    assert len(report.of_kind("exact")[0].photographs) == 2
    assert report.outdated == 2
    assert found()["exact"] == [["x.jpg", "z.jpg"]]  # and indexed again


def test_a_folder_that_is_gone(found, library, tmp_path):
    """Its photographs are the best of groups of every kind, and have copies elsewhere."""
    folder = tmp_path / "photos"
    for seed in range(2):
        draw_photo(folder / "gone" / f"{seed}.png", seed, size=(128, 96))
        draw_photo(folder / f"{seed}.png", seed)
        draw_photo(folder / f"{seed}-small.png", seed, size=(64, 48))
    (folder / "gone" / "copy.png").write_bytes((folder / "gone" / "0.png").read_bytes())
    assert len(found()["near"]) == 2
    (folder / "gone").rename(tmp_path / "elsewhere")
    report = library.duplicates()
    assert report.of_kind("exact") == []
    assert sorted(
        [one.path.name for one in group.photographs] for group in report.of_kind("near")
    ) == [["0.png", "0-small.png"], ["1.png", "1-small.png"]]
    assert report.outdated == 3


def test_unreadable_files_are_compared_by_bytes_only(found, tmp_path):
    """They are neither blank nor waiting to be encoded."""
    draw_photo(tmp_path / "photos" / "a.jpg", 1)
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"no photograph")
    assert found() == {"exact": [["b.jpg", "c.jpg"]], "near": [], "burst": []}
    assert (found.report.searched, found.report.blank, found.report.untimed) == (2, 0, 1)
    assert found.report.remarks == ()


def test_other_names_of_one_file_take_no_room(found, tmp_path):
    draw_photo(tmp_path / "photos" / "a.jpg", 1)
    os.link(tmp_path / "photos" / "a.jpg", tmp_path / "photos" / "b.jpg")
    assert found()["exact"] == [["a.jpg", "b.jpg"]]
    group = found.report.groups[0]
    assert ([one.linked for one in group.photographs], group.room) == ([False, True], 0)


def test_blank_photographs_are_no_near_duplicates(found, tmp_path):
    (tmp_path / "photos").mkdir()
    for name, colour in {"a.png": "white", "b.png": "black", "c.png": "#eee"}.items():
        Image.new("RGB", (64, 48), colour).save(tmp_path / "photos" / name)
    assert found() == {"exact": [], "near": [], "burst": []}
    assert found.report.blank == 3


def test_a_chain_is_not_one_group(found, tmp_path):
    """Each step is close to the next one, the first and the last are not."""
    original = Image.open(draw_photo(tmp_path / "photos" / "0.png", 8, size=(240, 180)))
    for number in range(1, 9):
        cut = original.crop((4 * number, 3 * number, 240, 180))
        cut.filter(ImageFilter.GaussianBlur(0.3)).save(tmp_path / "photos" / f"{number}.png")
    groups = found(kinds=["near"])["near"]
    assert groups[0][0] == "0.png"
    assert len(groups) > 1
    members = [name for group in groups for name in group]
    assert len(members) == len(set(members))
    for group in found.report.groups:
        assert all(one.distance <= 8 for one in group.photographs[1:])


def test_folders_kinds_and_their_errors(found, library, photos):
    (photos / "trip" / "again.jpg").write_bytes((photos / "a.jpg").read_bytes())
    assert found(kinds=["exact"]) == {"exact": [["a.jpg", "again.jpg"]]}
    assert found(kinds=["exact"], folders=[photos / "trip"]) == {"exact": []}
    with pytest.raises(QueryError, match="no photographs of the folder"):
        find_duplicates(library.database, folders=["/nowhere"])
    with pytest.raises(ConfigError, match="'same' is no kind of duplicates: choose from exact"):
        find_duplicates(library.database, kinds=["same"])
    with pytest.raises(ConfigError, match="no kind is given"):
        find_duplicates(library.database, kinds=[])


def test_too_many_alike_are_compared_more_strictly(found, tmp_path, monkeypatch):
    for quality in range(30, 90, 10):
        draw_photo(tmp_path / "photos" / f"{quality}.jpg", 1, quality=quality, size=(96, quality))
    monkeypatch.setattr(close_hashes, "MAX_PAIRS", 0)
    found(kinds=["near"])
    assert found.report.limits.near_distance == 1
    assert "may differ in 1 bits here, not 8" in found.report.remarks[0]


def test_an_empty_library(library):
    report = find_duplicates(library.database)
    assert (report.groups, report.searched, report.remarks) == ((), 0, ())
