"""`pocketclip embed` and `classify`: nothing lost, whatever the inputs are called."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pocketclip import checkpoint
from pocketclip.errors import PocketclipError
from pocketclip.infer.vectors import read_vectors
from pocketclip.nn.build import random_model
from pocketclip.storage import local as files
from tests.cli import inside
from tests.golden_weights import randomise

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.jpg"
OTHER = PHOTO.with_name("chelsea.jpg")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
NAMES = (b"caf\xe9.jpg", b"a\x1b[31m\x07.jpg", b"b\n:dog:.jpg", b"[red]x[red].jpg")
needs_byte_names = pytest.mark.skipif(
    sys.platform != "linux", reason="names of files are not bytes everywhere"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    tiny = random_model("tiny", seed=0)
    randomise(tiny)
    checkpoint.save(tiny, folder)
    return folder


@pytest.fixture
def odd(tmp_path):
    """A folder of good photographs with names of bytes."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(PHOTO, os.fsencode(folder) + b"/" + name)
    return folder


def embed(model, *args):
    return inside.run("embed", *args, "-m", model)


def classify(model, *args, labels="a,b"):
    return inside.run("classify", *args, "--labels", labels, "-m", model)


@needs_byte_names
def test_names_of_bytes_come_back_from_the_sidecar(model, odd, tmp_path):
    done = embed(model, odd, "-o", tmp_path / "x.npy")
    assert (done.returncode, done.stderr) == (0, "")
    embeddings, about = read_vectors(tmp_path / "x.npy")
    assert embeddings.shape == (4, 64)
    assert {os.path.basename(os.fsencode(name)) for name in about["inputs"]} == set(NAMES)  # noqa: PTH119
    (tmp_path / "x.npy.json").read_text("utf-8").encode()


@needs_byte_names
def test_names_of_bytes_in_parquet_are_valid_text(model, odd, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/o\xff.parquet"))
    done = embed(model, odd, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(out)
    with out.open("rb") as handle:
        names = parquet.read_table(handle).column("input").to_pylist()
    assert {os.path.basename(name) for name in names} == {  # noqa: PTH119
        "caf\\udce9.jpg", "a\x1b[31m\x07.jpg", "b\n:dog:.jpg", "[red]x[red].jpg"
    }  # fmt: skip


@needs_byte_names
def test_classify_shows_names_and_labels_as_they_are(model, odd):
    done = classify(model, odd, labels=":dog:,[red]x[/red],caf\u0065\u0301\x1b[1m")
    assert (done.returncode, done.stderr) == (0, "")
    _, *rows = done.stdout.splitlines()
    assert [row.split(" ")[0].rpartition("/")[2] for row in rows] == [
        "[red]x[red].jpg", "a\\x1b[31m\\x07.jpg", "b\\n:dog:.jpg", "caf\\udce9.jpg"
    ]  # fmt: skip
    assert all(":dog:" in row and "[red]x[/red]" in row and "\\x1b[1m" in row for row in rows)
    done = classify(model, odd, "--json")
    rows = json.loads(done.stdout)["results"]
    assert {os.path.basename(os.fsencode(row["photo"])) for row in rows} == set(NAMES)  # noqa: PTH119


def test_long_names_are_neither_folded_nor_cut(model, tmp_path):
    photo = tmp_path / ("x" * 150 + ".jpg")
    shutil.copy(PHOTO, photo)
    done = classify(model, photo, labels=f"{'y' * 120},b")
    _, row = done.stdout.splitlines()
    assert str(photo) in row
    assert "y" * 120 in row


def test_embeddings_are_kept_when_every_input_fails(model, tmp_path):
    out = tmp_path / "x.npy"
    assert embed(model, PHOTO, "-o", out).returncode == 0
    before = {path: path.read_bytes() for path in (out, tmp_path / "x.npy.json")}
    (tmp_path / "bad.jpg").write_bytes(b"zz")
    for inputs in ([tmp_path / "bad.jpg"], [tmp_path / "bad.jpg", tmp_path / "gone.jpg"]):
        done = embed(model, *inputs, "-o", out)
        assert done.returncode == 2
        assert done.stdout == ""
        assert all(path.name in done.stderr for path in inputs)
        assert done.stderr.splitlines()[-1].startswith("error: nothing was done")
        assert {path: path.read_bytes() for path in before} == before
    done = classify(model, tmp_path / "bad.jpg", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "taken.npy.json").mkdir()
    (tmp_path / "file").touch()
    places = ("folder.npy", "taken.npy", "file/x.npy", "gone/x.npy", f"{'n' * 300}.npy")
    for name in places:
        # No such model either: the place is looked at first.
        done = embed("random:none", PHOTO, "-o", tmp_path / name)
        assert done.returncode == 2
        assert str(tmp_path / name) in done.stderr
        assert ".tmp" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file", "folder.npy", "taken.npy.json"
    ]  # fmt: skip


def test_an_image_that_needs_a_package_is_skipped(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    shutil.copy(PHOTO, tmp_path / "good.jpg")
    (tmp_path / "phone.heic").write_bytes(HEIC)
    done = embed(model, tmp_path, "-o", tmp_path / "x.npy")
    assert done.returncode == 1
    assert "phone.heic: HEIC images need pillow-heif: pip install" in done.stderr
    assert len(np.load(tmp_path / "x.npy")) == 1
    done = classify(model, tmp_path, "--json")
    assert done.returncode == 1
    assert "pillow-heif" in json.loads(done.stdout)["skipped"][0]["reason"]


def test_what_is_listed_is_kept_in_order(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in ("a.jpg", "d/b.jpg", "d/c.jpg"):
        shutil.copy(PHOTO, name)

    def names(*inputs):
        done = embed(model, *inputs, "-o", "x.npy")
        assert done.returncode == 0, done.stderr
        embeddings, about = read_vectors("x.npy")
        assert len(embeddings) == len(about["inputs"])
        return about["inputs"]

    assert names("a.jpg", "a.jpg") == ["a.jpg", "a.jpg"]
    assert names("d/c.jpg", "a.jpg", "./d/c.jpg") == ["d/c.jpg", "a.jpg", "d/c.jpg"]
    assert names("d", "d/b.jpg") == ["d/b.jpg", "d/c.jpg"]  # found, and written once
    assert names("d", "d/b.jpg", "d/b.jpg") == ["d/b.jpg", "d/c.jpg", "d/b.jpg"]
    assert names("d/c.jpg", "d", "d/*.jpg") == ["d/c.jpg", "d/b.jpg"]


def test_an_empty_path_is_an_error(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, "a.jpg")
    for path in ("", "  "):
        for done in (classify(model, path), embed(model, "a.jpg", path, "-o", "x.npy")):
            assert done.returncode == 2
            assert "empty path" in done.stderr
    assert not Path("x.npy").exists()


def test_lines_end_at_line_feeds_only(model, tmp_path):
    lines = ["a dog", "one\u2028still one", "a\x0cb", "nel\x85next", "fs\x1cx", "", "last"]
    (tmp_path / "caps.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    done = embed(model, tmp_path / "caps.txt", "-o", tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr
    embeddings, about = read_vectors(tmp_path / "x.npy")
    assert about["inputs"] == lines
    assert embeddings.shape == (7, 64)


def test_labels(model, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("a cat\r\n\r\n a\u2028dog \r\n".encode("utf-8-sig"))
    done = inside.run("classify", PHOTO, "--labels-file", file, "-m", model, "--json", "--top", 9)
    assert set(json.loads(done.stdout)["results"][0]["labels"]) == {"a cat", "a\u2028dog"}
    for labels, why in (
        ("", "no labels"), (" , ,", "no labels"), ("a,b,a", "label 'a' is given twice"),
        (os.fsdecode(b"caf\xe9,b"), "not UTF-8"),
    ):  # fmt: skip
        done = classify("random:none", PHOTO, labels=labels)
        assert done.returncode == 2
        assert why in done.stderr
    done = classify(model, PHOTO, labels="alone")
    assert done.returncode == 0
    assert "the only label" in done.stderr


def test_vectors_and_names_belong_together(model, tmp_path, monkeypatch):
    out = tmp_path / "x.npy"
    embed(model, PHOTO, "-o", out)
    names = (tmp_path / "x.npy.json").read_bytes()
    embed(model, OTHER, "-o", out)
    assert read_vectors(out)[1]["inputs"] == [str(OTHER)]
    (tmp_path / "x.npy.json").write_bytes(names)  # as a kill between the two leaves them
    with pytest.raises(PocketclipError, match="do not belong together"):
        read_vectors(out)
    removed = []
    monkeypatch.setattr("pocketclip.infer.vectors.remove_abandoned", removed.append)
    assert embed(model, PHOTO, "-o", out).returncode == 0
    assert removed == [tmp_path]
    assert len(read_vectors(out)[0]) == 1


@pytest.mark.parametrize(
    "sidecar", [b"", b"[]", b"null", b'{"inputs": []}', b"\xff", b"[" * 5000, b'{"sha256": 1}']
)
def test_a_damaged_sidecar_is_one_error(tmp_path, sidecar):
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
    (tmp_path / "x.npy.json").write_bytes(sidecar)
    with pytest.raises(PocketclipError):
        read_vectors(tmp_path / "x.npy")


def test_vectors_with_another_number_of_names(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
    about = {"inputs": ["a", "b"], "sha256": files.digest_file(tmp_path / "x.npy")}
    (tmp_path / "x.npy.json").write_text(json.dumps(about))
    with pytest.raises(PocketclipError, match="names 2 inputs for embeddings of shape"):
        read_vectors(tmp_path / "x.npy")


def test_a_text_file_that_is_too_large_is_one_line(tmp_path):
    texts = tmp_path / "texts.txt"
    with texts.open("wb") as stream:
        stream.truncate(6 << 30)  # takes no room on the disk
    for args in (
        ["embed", texts, "--out", tmp_path / "e.npy"],
        ["classify", PHOTO, "--labels-file", texts],
    ):
        done = inside.run(*args, "--model", "random:tiny")
        assert done.returncode == 2
        assert "texts.txt is larger than 268,435,456 bytes; split it into parts" in done.stderr
