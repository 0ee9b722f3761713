"""The verbs as a user runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pocketclip import checkpoint, zoo
from pocketclip.cli import models
from pocketclip.infer.bundle import read
from pocketclip.nn.build import random_model
from tests.cli.inside import run
from tests.golden_weights import randomise

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


def run_process(*args, cwd=None):
    """Run a verb as a shell does; most tests run it in their own process instead."""
    command = [sys.executable, "-m", "pocketclip.cli.main", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=cwd
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny = random_model("tiny", seed=0)
    randomise(tiny)
    checkpoint.save(tiny, folder)
    return folder


def test_help_needs_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['pocketclip', '--help']\n"
        "try: runpy.run_module('pocketclip.cli.main', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'torch', 'huggingface_hub', 'numpy', 'PIL', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pocketclip classify photo.jpg" in done.stdout


@pytest.mark.parametrize("verb", ["models", "classify", "embed"])
def test_each_verb_has_examples(verb):
    done = run(verb, "--help")
    assert done.returncode == 0
    assert f"\n  pocketclip {verb}" in done.stdout


def test_models(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETCLIP_CACHE", str(tmp_path))  # models of the user's are listed too
    done = run("models", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == {*zoo.ZOO, *zoo.CAPTIONERS}
    assert [n for n in zoo.ZOO if rows[n]["captioner"]] == [
        "coca-vit-b32", "coca-vit-l14", "coca-tiny"
    ]  # fmt: skip
    assert all(rows[name]["captioner"] for name in zoo.CAPTIONERS)
    assert rows["mobileclip2-s4"]["average38"] == 67.5
    assert rows["tiny"]["hub"] == []
    counted = [rows["vit-b16"][k] for k in ("params_million", "active_params_million", "gflop")]
    assert counted == [149.621, 149.621, 41.086]
    assert rows["vit-b16"]["sparse"] is False
    table = run("models").stdout
    assert re.search(r"vit-b16 +224 +86\.2 +63\.4 +41\.1 +hub", table)
    assert "mobileclip-b-lt" in table
    assert "coca-tiny *" in table
    assert re.search(r"coca-dfn2b-docci +-context 77, 128, 256\n", table)
    assert "* captioner" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80


def test_a_sparse_bundle_is_listed_with_its_own_size(exported, monkeypatch):
    bundle = read(exported("tiny", "onnx"))
    config = zoo.sparse_config(zoo.entry("vit-b16").config)
    source = {"repo": "me/sparse", "revision": "main", "file": "model.safetensors"}
    ready = {bundle.folder: dataclasses.replace(bundle, config=config, source=source)}
    monkeypatch.setattr(models, "_ready_bundles", lambda: dict(ready))
    (line,) = [line for line in run("models").stdout.splitlines() if "me/sparse" in line]
    assert line.endswith(
        "(vit-b16, sparse (2 of 8 experts), converted from model.safetensors; "
        "436.2 million parameters, 190.6 active, 54.2 GFLOP)"
    )
    row = json.loads(run("models", "--json").stdout)[-1]
    assert (row["sparse"], row["image_params_million"], row["imagenet1k"]) == (True, None, None)
    assert (row["params_million"], row["active_params_million"]) == (436.212, 190.615)


def test_classify_a_table_and_json(model):
    labels = "a cat, a cup of coffee,a rocket"
    done = run_process("classify", PHOTOS / "chelsea.jpg", "--labels", labels, "--model", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "chelsea.jpg" in done.stdout
    assert "%" in done.stdout
    done = run("classify", PHOTOS, "--labels", labels, "-m", model, "--json", "--top", 2)
    out = json.loads(done.stdout)
    assert out["model"] == "tiny"
    assert out["space_id"].startswith("space-")
    assert len(out["results"]) == 4
    assert all(len(row["labels"]) == 2 for row in out["results"])
    assert out["skipped"] == []


def test_classify_takes_patterns_files_and_templates(model, tmp_path):
    (tmp_path / "labels.txt").write_text("a cat\n\na rocket\n")
    where = (f"{PHOTOS}/c*.jpg", PHOTOS / "chelsea.jpg")
    labels = ("--labels-file", tmp_path / "labels.txt", "--template", "a photo of {}.")
    done = run("classify", *where, *labels, "-m", model, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["results"]
    assert [Path(row["photo"]).name for row in rows] == ["chelsea.jpg", "coffee.jpg"]
    assert set(rows[0]["labels"]) == {"a cat", "a rocket"}


def test_one_bad_photograph_is_skipped(model, tmp_path):
    shutil.copy(PHOTOS / "coffee.jpg", tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((PHOTOS / "coffee.jpg").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    done = run(
        "classify", tmp_path, tmp_path / "gone.jpg", "--labels", "a,b", "-m", model, "--json"
    )
    assert done.returncode == 1
    out = json.loads(done.stdout)
    assert [Path(row["photo"]).name for row in out["results"]] == ["good.jpg"]
    assert [Path(row["photo"]).name for row in out["skipped"]] == [
        "cut.jpg",
        "empty.png",
        "gone.jpg",
    ]
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("skipped: ") for line in lines)


def _errors(folder):
    (folder / "x.pt").write_bytes(b"")
    (folder / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    (folder / "photo.jpg.weights").write_bytes(b"zz")
    (folder / "nothing").mkdir()
    (folder / "u.txt").write_bytes(b"\xff\xfe bad")
    photo = PHOTOS / "coffee.jpg"
    classify = ("classify", photo, "--labels", "a,b")
    return {
        "unknown model": (*classify, "-m", "mobileclip2-s9"),
        "empty file": (*classify, "-m", folder / "x.pt"),
        "truncated file": (*classify, "-m", folder / "cut.pt"),
        "wrong suffix": (*classify, "-m", folder / "photo.jpg.weights"),
        "directory": (*classify, "-m", folder / "nothing"),
        "missing file": (*classify, "-m", folder / "gone.safetensors"),
        "offline": (*classify, "-m", "mobileclip-s0", "--offline"),
        "no labels": ("classify", photo, "-m", "random:tiny"),
        "empty folder": ("classify", folder / "nothing", "--labels", "a,b", "-m", "random:tiny"),
        "pattern": ("classify", folder / "*.jpg", "--labels", "a,b", "-m", "random:tiny"),
        "labels file": (
            "classify",
            photo,
            "--labels-file",
            folder / "gone.txt",
            "-m",
            "random:tiny",
        ),
        "not utf-8": ("embed", folder / "u.txt", "--out", folder / "x.npy", "-m", "random:tiny"),
        "labels not utf-8": (
            "classify",
            photo,
            "--labels-file",
            folder / "u.txt",
            "-m",
            "random:tiny",
        ),
        "no name": (*classify, "-m", ""),
        "out suffix": ("embed", photo, "--out", folder / "x.csv", "-m", "random:tiny"),
        "out folder": ("embed", photo, "--out", folder / "gone" / "x.npy", "-m", "random:tiny"),
        "random weights unasked": (*classify, "-m", "tiny"),
        "no such device": (*classify, "-m", "random:tiny", "--device", "cuda:9"),
        "no such run": (*classify, "-m", "./tiny/"),
        "no such option": ("classify", photo, "--label", "a,b"),
    }


def test_errors_are_one_line_and_exit_code_2(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "HF_HOME", str(tmp_path / "hf"))
    for what, args in _errors(tmp_path).items():
        # The folder of the hub's files is looked up once in a process.
        done = run_process(*args) if what == "offline" else run(*args)
        assert done.returncode == 2, (what, done)
        assert done.stdout == "", what
        assert "Traceback" not in done.stderr, what
        if what != "no such option":
            errors = done.stderr.splitlines()
            assert len(errors) == 1, (what, done.stderr)
            assert errors[0].startswith("error: "), what


def test_embed_photographs(model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    out = tmp_path / "photos.npy"
    done = run("embed", PHOTOS, tmp_path / "bad.jpg", "--out", out, "-m", model, "--batch-size", 3)
    assert done.returncode == 1
    assert "skipped" in done.stderr
    array = np.load(out, allow_pickle=False)
    assert array.shape == (4, 64)
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-5)
    sidecar = json.loads((tmp_path / "photos.npy.json").read_text())
    assert [Path(p).name for p in sidecar["inputs"]] == sorted(p.name for p in PHOTOS.glob("*.jpg"))
    assert sidecar["space_id"].startswith("space-")


def test_embed_texts_to_parquet(model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "texts.txt").write_text("a cat\na dog\nnaïve café\n", "utf-8")
    done = run("embed", tmp_path / "texts.txt", "-o", tmp_path / "t.parquet", "-m", model, "--json")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.column("input").to_pylist() == ["a cat", "a dog", "naïve café"]
    assert len(table.column("embedding")[0].as_py()) == 64
    summary = json.loads(done.stdout)
    assert table.schema.metadata[b"pocketclip.space_id"].decode() == summary["space_id"]
    assert summary["rows"] == 3


def test_interrupting_leaves_nothing_half_written(model, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3000):
        (photos / f"{i:04}.jpg").hardlink_to(_copy(tmp_path))
    command = [sys.executable, "-m", "pocketclip.cli.main", "embed", str(photos), "--out",
               str(tmp_path / "out.npy"), "-m", str(model)]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not _reads_in(process.pid, photos):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    # Python may end the process by the signal after all that the command does; a shell shows 130
    # for both.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert stderr == "interrupted; no partial files were left\n"
    assert "Traceback" not in stderr
    assert not list(tmp_path.glob("*out.npy*"))


def _reads_in(pid, folder):
    """Return whether a process has a file of `folder` open; by then torch has started."""
    if sys.platform != "linux":
        time.sleep(4)
        return True
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if descriptor.readlink().parent == folder:
                return True
    return False


def _copy(folder):
    target = folder / "photo.jpg"
    if not target.exists():
        shutil.copy(PHOTOS / "chelsea.jpg", target)
    return target


def test_no_arguments_show_the_help():
    done = run_process()
    assert "Usage:" in done.stdout + done.stderr
    assert run("--version").stdout.startswith("pocketclip 0.")
