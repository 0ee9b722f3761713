from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest

from pocketclip.cli._progress import PairProgress
from pocketclip.cli.main import _optional_values
from pocketclip.pairs import PairOptions, open_pairs
from tests.cli.inside import run

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
FLAGS = ["--teacher", "random:tiny", "--augmentations", "2", "--workers", "0"]


def run_process(*args):
    command = [sys.executable, "-m", "pocketclip", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = [f"{photo},a photograph of {photo.stem}" for photo in sorted(PHOTOS.glob("*.jpg"))]
    path.write_text("\n".join(["image,caption", *rows]) + "\n")
    return path


def test_the_whole_way(table, tmp_path):
    out = tmp_path / "dr"
    first = run_process("reinforce", table, "--out", out, *FLAGS, "--json")
    assert first.returncode == 0, first.stderr
    facts = json.loads(first.stdout)
    assert (facts["samples"], facts["bad"], facts["shards"]) == (4, 0, 1)
    assert facts["bytes_per_sample"]["embeddings"] > 0
    again = run("reinforce", table, "--out", out, *FLAGS)
    assert again.returncode == 0
    assert "1 of 1 shards are finished already" in again.stderr
    clean = run("audit", out)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    drift = run("audit", out, "--recompute", 3, "--teacher", "random:tiny")
    assert drift.returncode == 0, drift.stdout + drift.stderr
    other = run("audit", out, "--recompute", 3, "--teacher", "random:tiny:1")
    assert other.returncode != 0


def test_bad_pairs_make_exit_code_1(table, tmp_path):
    table.write_text(table.read_text() + "gone.jpg,a photograph that is gone\n")
    done = run("reinforce", table, "--out", tmp_path / "dr", *FLAGS)
    assert done.returncode == 1
    assert "4 samples" in done.stdout
    assert "1 pair was left out" in done.stderr
    stopped = run("reinforce", table, "--out", tmp_path / "e", *FLAGS, "--max-bad", "0")
    assert stopped.returncode == 2
    assert "--max-bad" in stopped.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--teacher", "vit-b61"], "vit-b16"),
        ([], "no teacher"),
        (["--teacher", "random:tiny", "--caption-column", "alt"], "alt"),
        (["--teacher", "random:tiny", "--augmentations", "-3"], "augmentations"),
        (["--teacher", "random:tiny", "--config", "none.yaml"], "none.yaml"),
        (["--teacher", "random:tiny", "--where", "split"], "COLUMN=VALUE"),
        (["--teacher", "random:tiny", "--dtype", "int3"], "int3"),
        (["--teacher", "random:tiny", "--max-bad", "few"], "--max-bad"),
    ],
)
def test_bad_options_are_one_line(table, tmp_path, flags, says):
    done = run("reinforce", table, "--out", tmp_path / "dr", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not list(tmp_path.glob("dr/*.tar"))


def test_help_has_examples():
    shown = run("reinforce", "--help")
    assert shown.returncode == 0
    assert "pocketclip reinforce pairs.csv --out dr --teacher" in shown.stdout


def test_ray_alone_means_this_machine():
    assert _optional_values(["reinforce", "--ray", "--out", "x"])[1] == "--ray=local"
    assert _optional_values(["reinforce", "--ray"])[1] == "--ray=local"
    given = ["reinforce", "--ray", "auto", "p.csv"]
    assert _optional_values(given) == given


def test_tars_are_counted_from_those_that_are_finished(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pocketclip.cli.reinforce.time.monotonic", lambda: now[0])
    shard = types.SimpleNamespace(size=None)
    with PairProgress([shard] * 3) as progress:
        progress.start(3, 0, 0)
        now[0] = 100
        progress.add(10, 0)
        progress.finish(10)
        now[0] = 200
        progress.add(10, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "10 (shard 1 of 3) pairs, 0.1 pairs/s, 0 bad",
        "20 of about 30 pairs, 0.1 pairs/s, 0 bad, about 1 min 40 s left",
    ]


def test_a_line_a_minute_where_there_is_no_terminal(table, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pocketclip.cli.reinforce.time.monotonic", lambda: now[0])
    with PairProgress(open_pairs(str(table), PairOptions())) as progress:
        progress.start(2, 1, 1)
        for seconds in (30, 61, 62):
            now[0] = seconds
            progress.add(1, int(seconds == 61))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 2 shards are finished already"
    assert lines[1:] == ["3 of 4 pairs, 0.0 pairs/s, 1 bad, about 0 min 30 s left"]


def write_tar(path, *, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))


def test_a_run_that_makes_nothing_is_no_success(tmp_path):
    write_tar(tmp_path / "empty.tar", files={})
    for attempt in range(2):  # its shard is finished the second time
        done = run("reinforce", tmp_path / "empty.tar", "--out", tmp_path / "dr", *FLAGS)
        assert (attempt, done.returncode) == (attempt, 2)
        assert "1 pair was left out" in done.stderr
    photo = (PHOTOS / "pairs.csv").parent.glob("*.jpg")
    files = {"0.jpg": next(photo).read_bytes(), "0.txt": b"a dog", "0.json": b'{"split": "a"}'}
    write_tar(tmp_path / "some.tar", files=files)
    for column in ("splt=a", "split=b"):
        flags = [*FLAGS, "--where", column]
        done = run("reinforce", tmp_path / "some.tar", "--out", tmp_path / column, *flags)
        assert done.returncode == 2
        assert "no pair was used: no row has the values of --where" in done.stderr
