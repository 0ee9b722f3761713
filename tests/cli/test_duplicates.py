"""`pocketclip duplicates`: a list, JSON and a page; names from elsewhere do no harm."""

from __future__ import annotations

import json
import os
import re

import pytest

from pocketclip.search import Library
from tests.cli.inside import run
from tests.search.conftest import *  # noqa: F403 - fixtures
from tests.search.conftest import draw_photo
from tests.search.exif_bytes import MAKE, TAKEN, exif, text


@pytest.fixture
def indexed(photos, encoder, bundle):
    """The default library: six photographs, and duplicates of each kind."""
    odd = os.fsdecode(b"caf\xe9 \x1b[2J<b>.jpg")
    (photos / odd).write_bytes((photos / "a.jpg").read_bytes())
    draw_photo(photos / "small.jpg", 1, size=(64, 48), quality=60)
    for second in range(3):
        tags = exif({MAKE: text("<i>Canon</i>")}, {TAKEN: text(f"2024:05:01 10:00:0{second}")})
        draw_photo(photos / f"shot{second}.jpg", 20, exif=b"Exif\0\0" + tags, quality=90 - second)
    with Library.open(create=True) as library:
        library.index([photos], encoder=encoder, model=bundle)
    return photos


def test_a_list(indexed):
    done = run("duplicates")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    parts = done.stdout.split("\n\n")
    assert parts[0].startswith("Exact duplicates: 1 group with 2 files, ")
    assert re.search(r"96 x 72  .* kB +/.*caf\\udce9 \\x1b\[2J<b>\.jpg", parts[0])
    assert parts[1].startswith("Near duplicates: 1 group with 2 photographs, ")
    assert "at most 8 of 63 bits (--near-distance)" in parts[1]
    assert re.search(r"1  96 x 72 .* best .*/b\.jpg\s+64 x 48 .*small\.jpg", parts[1], re.DOTALL)
    assert parts[2].startswith("Bursts: 1 group with 3 photographs, ")
    assert "+2 s, similarity" in parts[2]
    assert parts[3] == "10 photographs compared, nothing was changed\n"
    assert "7 photographs without camera or time of capture: in no burst" in done.stderr
    (indexed / "small.jpg").unlink()
    done = run("duplicates", "--kind", "near, exact", "--top", 0, "--near-distance", 2)
    assert done.returncode == 1
    assert "at most 2 of 63 bits" in done.stdout
    assert "Near duplicates: none" in done.stdout
    assert "Bursts" not in done.stdout
    assert "1 file left out: not there now, or changed" in done.stderr


def test_json(indexed):
    done = run("duplicates", "--json", "--in", indexed, "--burst-seconds", 0.5)
    found = json.loads(done.stdout)
    assert found["limits"] == {
        "near_distance": 8, "near_similarity": 0.9, "near_pixels": 0.97, "burst_seconds": 0.5,
        "burst_similarity": 0.85,
    }  # fmt: skip
    assert (found["searched"], found["burst"]) == (10, [])
    best, other = found["near"][0]["photographs"]
    assert (best["best"], best["width"], best["distance"], best["similarity"]) == (
        True, 96, None, None,
    )  # fmt: skip
    assert not other["best"]
    assert other["distance"] <= 8
    assert 0.9 < other["similarity"] <= 1.001
    assert 0.97 <= other["pixels"] <= 1
    assert found["near"][0]["bytes_besides_best"] == other["bytes"]
    paths = [os.fsencode(one["path"]) for one in found["exact"][0]["photographs"]]
    assert sorted(paths) == sorted(
        os.fsencode(indexed / name) for name in ("a.jpg", os.fsdecode(b"caf\xe9 \x1b[2J<b>.jpg"))
    )


def test_a_page(indexed, tmp_path):
    page = tmp_path / "page.html"
    done = run("duplicates", "--html", page)
    assert done.returncode == 0
    assert f"{page}: 3 groups" in done.stderr
    written = page.read_text("utf-8")
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg|file:///)', written), "self-contained"
    assert written.count('src="data:image/jpeg') == 7
    assert "&lt;b&gt;" in written
    assert "<b>.jpg" not in written
    assert "&lt;i&gt;Canon" in written
    assert str(indexed) in written


@pytest.mark.usefixtures("indexed")
def test_errors():
    for args, message in (
        (["--kind", "same"], "'same' is no kind of duplicates: choose from exact, near, burst"),
        (["--kind", ","], "no kind is given"),
        (["--in", "nowhere"], "no photographs of the folder 'nowhere' are in the library"),
        (["--near-distance", 13], "--near-distance"),
        (["--near-similarity", "nan"], "similarity"),  # named by typer, or by the library
        (["--html", "page.png"], "--html"),
        (["--library", "none"], "there is no library none"),
    ):
        done = run("duplicates", *args)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""


def test_no_photographs(library):
    library.database  # noqa: B018 - creates it
    done = run("duplicates", "--library", library.location.file)
    assert done.returncode == 0
    assert "the library has no photographs: add some with `pocketclip index FOLDER`" in done.stderr
