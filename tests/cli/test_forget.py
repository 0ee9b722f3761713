"""`pocketclip forget`: what it prints, and how it ends."""

from __future__ import annotations

import json

import pytest

from pocketclip.search import Library
from tests.cli.inside import run
from tests.search.conftest import *  # noqa: F403 - fixtures


@pytest.fixture
def indexed(photos, encoder, bundle):
    """The default library, with six photographs."""
    with Library.open(create=True) as library:
        library.index([photos], encoder=encoder, model=bundle)
    return photos


def test_what_is_forgotten_is_printed(indexed):
    done = run("forget", "a.jpg", "trip", "--dry-run", cwd=indexed)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "would forget 3 files, 3 different photographs, 3 embeddings"
    )  # fmt: skip
    assert done.stderr == ""
    done = run("forget", "a.jpg", "trip", cwd=indexed)
    assert done.stdout.splitlines() == [
        f"{indexed}/a.jpg", f"{indexed}/trip/e.jpg", f"{indexed}/trip/f.jpg",
        "forgot 3 files, 3 different photographs, 3 embeddings",
    ]  # fmt: skip
    assert "3 of these are still in a root: the next `pocketclip index`" in done.stderr
    (indexed / "b.jpg").unlink()
    done = run("forget", "--absent")
    assert done.stdout == "forgot 0 files, 0 different photographs, 0 embeddings\n"
    done = run("forget", "--root", indexed, "--json")
    found = json.loads(done.stdout)
    assert found["roots"] == [str(indexed)]
    assert len(found["files"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to forget was given"),
        (["new.jpg"], "does not know new.jpg; its roots are: /"),
        (["a.jpg", "--library", "other"], "there is no library other"),
    ],
)
def test_what_cannot_be_forgotten_is_an_error(indexed, arguments, message):
    done = run("forget", *arguments, cwd=indexed)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_what_is_left_on_the_disk_is_said(indexed):
    with Library.open() as library:
        kept = library.location.file.with_name("photos.sqlite.damaged")
    kept.write_bytes(b"")
    done = run("forget", "a.jpg", cwd=indexed)
    assert done.returncode == 1
    assert f"warning: {kept} is a damaged file that a repair kept" in done.stderr
