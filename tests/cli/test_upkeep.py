"""`pocketclip index --check`, `--repair` and `--move-root`: what they print, and how they end."""

from __future__ import annotations

import json

import pytest

from pocketclip.search import Library
from pocketclip.search.store.location import locate
from tests.cli.inside import run
from tests.search.conftest import *  # noqa: F403 - fixtures


@pytest.fixture
def indexed(photos, encoder, bundle):
    """The default library, with six photographs."""
    with Library.open(create=True) as library:
        library.index([photos], encoder=encoder, model=bundle)
    return photos


@pytest.mark.usefixtures("indexed")
def test_a_damaged_library_is_found_and_mended():
    file = locate().file
    done = run("index", "--check")
    assert done.returncode == 0
    assert done.stdout == f"{file}: 1 root, 6 files, 6 different photographs, 6 embeddings: sound\n"
    assert run("index", "--repair").stdout == "the library is sound\n"
    whole = file.read_bytes()
    file.write_bytes(bytes(100) + whole[100:])
    for command in (["search", "x"], ["index"], ["index", "--check"], ["index", "--status"],
                    ["forget", "--absent"], ["duplicates"]):  # fmt: skip
        done = run(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert done.stderr.startswith("error: ")
        assert "--repair" in done.stderr, command
    done = run("index", "--repair")
    assert done.returncode == 0, done.stderr
    assert (
        "saved 6 files, 6 different photographs and 6 embeddings (0 lost, 0 unusable)"
        in done.stdout
    )
    assert f"the damaged file is kept: {file}.damaged\n" in done.stdout
    assert done.stdout.endswith("now run `pocketclip index` to read what is missing\n")
    assert json.loads(run("index", "--check", "--json").stdout)["sound"]
    assert run("index").returncode == 0
    file.write_bytes(b"")
    done = run("index", "--repair")
    assert done.returncode == 2
    assert "there is no backup: move it away" in done.stderr
    assert file.read_bytes() == b""


@pytest.mark.usefixtures("indexed")
def test_what_others_can_read_is_a_problem():
    locate().file.chmod(0o640)
    done = run("index", "--check")
    assert done.returncode == 1
    assert f"permissions: {locate().file} can be read by other users" in done.stdout
    assert "index --repair" in done.stderr
    assert run("index", "--repair").stdout == f"{locate().file}: closed to other users\n"


def test_a_root_is_moved(indexed, tmp_path):
    new = indexed.rename(tmp_path / "new")
    done = run("index", "--move-root", indexed, new)
    assert done.stdout == f"{indexed} is {new} now, with 6 files\n"
    assert json.loads(run("index", "--json").stdout)["encoded"] == 0
    done = run("index", "--move-root", indexed, new)
    assert done.returncode == 2
    assert f"{indexed} is no root of the library photos; its roots are: {new}" in done.stderr
