from __future__ import annotations

import json

import pytest

from tests.cli.inside import run
from tests.shards.making import folder, photo, sample, write
from tests.shards.test_join import bare, table


def test_join_and_audit(tmp_path):
    write(tmp_path / "dr.tar", [bare(n) for n in range(6)])
    pairs = table(tmp_path / "p", range(6))
    out = tmp_path / "out"
    done = run("join", tmp_path / "dr.tar", pairs, "--out", out, "--where", "split=a")
    assert done.returncode == 1, done.stderr
    assert "3 samples in 1 shard\n" in done.stdout
    assert "3 times a reinforcement without pair" in done.stdout
    assert "bytes per sample" in done.stdout
    done = run("audit", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nclean\n")
    [path] = out.glob("*.tar")
    path.write_bytes(path.read_bytes()[:2000])
    done = run("audit", out, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["clean"]
    assert "truncated" in report["problems"]["tar"][0]["reason"]


def test_nothing_joined_is_nothing_done(tmp_path):
    write(tmp_path / "dr.tar", [bare(n) for n in (7, 8)])
    done = run("join", tmp_path / "dr.tar", table(tmp_path / "p", [0]), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "0 samples in 0 shards" in done.stdout


def test_join_by_url(tmp_path, web):
    web.files["/0.jpg"] = photo()
    write(tmp_path / "dr.tar", [bare(0, url=f"{web.url}/0.jpg")])
    command = ["join", tmp_path / "dr.tar", "--fetch", "--out", tmp_path / "out", "--json"]
    done = run(*command)
    assert json.loads(done.stdout)["samples"] == 0
    assert "--allow-private" in (tmp_path / "out" / "unmatched.jsonl").read_text("utf-8")
    assert not web.asked
    assert "other sets or settings" in run(*command, "--allow-private").stderr
    command[4] = tmp_path / "other"
    done = run(*command, "--allow-private")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["join", "nowhere.tar", "--out", "x"], "give either PAIRS, or --fetch"),
        (["join", "nowhere.tar", "--fetch", "--out", "x"], "nowhere.tar"),
        (["join", "a.tar", "b.csv", "--out", "x", "--where", "split"], "COLUMN=VALUE"),
        (["audit", "nowhere"], "no such folder"),
        (["audit", __file__], "test_cli.py is a file: give its folder"),
        (["audit", ".", "--recompute", "3"], "needs teachers (--teacher SPEC)"),
    ],
)
def test_one_line_and_exit_code_2(arguments, reason):
    done = run(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_repair(tmp_path):
    one = sample(1)
    one.image = b"no image"
    dataset = folder(tmp_path / "set", [[sample(0), one]])
    done = run("audit", dataset, "--repair", tmp_path / "clean")
    assert done.returncode == 1
    assert "1 sample kept, 1 dropped" in done.stdout
    assert run("audit", tmp_path / "clean").returncode == 0
