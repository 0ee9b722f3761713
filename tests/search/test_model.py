"""The model of a library: its lasting name, and what happens when it is elsewhere."""

from __future__ import annotations

import shutil

import pytest

from pocketclip.cli._options import DEFAULT_MODEL
from pocketclip.errors import LibraryError
from pocketclip.infer.encoder import load
from pocketclip.search import model
from pocketclip.search.library import Library
from pocketclip.search.model import lasting_name, resolve_lasting
from tests.infer.slim import weight_file


def test_names_mean_the_same_from_any_folder(tmp_path, bundle, monkeypatch):
    shutil.copytree(bundle, tmp_path / "phone")
    file = weight_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert lasting_name("phone") == lasting_name("./phone/") == str(tmp_path / "phone")
    assert lasting_name(file.name) == str(file)
    assert lasting_name(file.name, "tiny") == f"tiny={file}"
    assert lasting_name(f"tiny={file.name}") == f"tiny={file}"
    assert lasting_name("random:tiny:3") == "random:tiny:3"
    assert lasting_name("mobileclip2-s0") == "mobileclip2-s0"
    assert lasting_name("hf-hub:owner/name@main") == "hf-hub:owner/name@main"
    assert lasting_name("owner/name", revision="v1") == "hf-hub:owner/name@v1"
    (tmp_path / "mobileclip2-s0").mkdir()  # a folder of that name is not meant later
    assert resolve_lasting("mobileclip2-s0").kind == "hub"
    for name in ("random:tiny:3", f"tiny={file}", "hf-hub:owner/name@v1"):
        assert resolve_lasting(name).text == name


def test_the_command_line_and_python_have_one_default():
    assert model.DEFAULT_MODEL == DEFAULT_MODEL


def test_a_model_that_moved_is_given_anew(tmp_path, photos, bundle, other_bundle):
    here = tmp_path / "phone"
    shutil.copytree(bundle, here)
    file = tmp_path / "photos.sqlite"
    with Library.open(file, create=True) as library:
        library.index([photos], model=here)
    moved = tmp_path / "elsewhere"
    here.rename(moved)
    with Library.open(file) as library:
        with pytest.raises(LibraryError, match=r"cannot be loaded.*--model"):
            library.encoder()
        library.index(model=moved)
        assert library.encoder().space_id == load(bundle).space_id
    shutil.rmtree(moved)
    shutil.copytree(other_bundle, moved)
    with Library.open(file) as library, pytest.raises(LibraryError, match="holds vectors of"):
        library.encoder()
