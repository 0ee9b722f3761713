"""`pocketclip compare` as a user runs it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pocketclip.cli.main import build
from pocketclip.errors import PocketclipError
from tests.cli.inside import run
from tests.evaluate.test_report import timing, write, write_latency

app = build()


@pytest.fixture
def own(tmp_path):
    return write(tmp_path / "mine" / "results.jsonl", {"cars": 0.5, "cifar10": 0.99, "shelf": 0.4},
                 model="[red]small")  # fmt: skip


def line(output, start):
    (found,) = [row for row in output.splitlines() if row.startswith(start)]
    return found.split()


def test_two_models(own):
    done = run("compare", own, "mobileclip-s0", "--tasks", "cars,cifar10,shelf")
    assert (done.returncode, done.stderr) == (0, "")
    assert line(done.stdout, "task") == ["task", "[red]small", "mobileclip-s0", "difference"]
    assert line(done.stdout, "Stanford Cars")[2:] == ["50.0", "79.3", "+29.3"]
    assert line(done.stdout, "CIFAR-10")[1:] == ["99.0", "93.2", "-5.8"]
    assert line(done.stdout, "SHELF")[1:] == ["40.0", "-", "-"]
    assert line(done.stdout, "average over the 2 tasks")[-3:] == ["74.5", "86.3", "+11.8"]
    assert "38-task" not in done.stdout


def test_whole_suites_have_their_average(own):
    done = run("compare", own, "mobileclip-s0", "mobileclip2-s4", "--suite", "datacomp38")
    assert line(done.stdout, "38-task average")[2:] == ["-", "58.1", "67.5"]
    assert "SHELF" not in done.stdout
    assert "FairFace" not in done.stdout


def test_models_of_others(tmp_path):
    plot = tmp_path / "sizes.svg"
    done = run("compare", "mobileclip2-s4", "siglip-so400m-14", "--tasks", "imagenet1k",
               "--plot", str(plot), "--against", "operations")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert line(done.stdout, "ImageNet 1k")[2:] == ["81.9", "82.0", "+0.2"]
    assert line(done.stdout, "parameters")[2:] == ["445.2", "877.4", "x", "1.97"]
    assert line(done.stdout, "operations")[2:] == ["68.8", "233.5", "x", "3.39"]
    assert line(done.stdout, "ms, image")[-3:] == ["26.2", "-", "-"]
    assert "ImageNet top-1 against operations" in plot.read_text("utf-8")
    done = run("compare", "mobileclip-s0", "openai-vit-b-16", "--tasks", "imagenet1k")
    assert line(done.stdout, "ms, image")[-4:] == ["3.1", "~14.9", "x", "4.80"]
    assert "derived: published as 4.8 times that of mobileclip-s0" in done.stdout


def test_models_of_others_are_listed():
    done = run("models", "--rivals")
    assert done.returncode == 0
    assert line(done.stdout, "ViT-SO400M-14-SigLIP/webli")[1:] == [
        "SigLIP", "877.4", "233.5", "82.0", "68.1",
    ]  # fmt: skip
    facts = json.loads(run("models", "--rivals", "--json").stdout)
    assert len(facts) == 121
    assert sum(row["derived_ms"] is not None for row in facts) == 3


def test_many_models_come_in_parts_that_fit():
    names = ["mobileclip-s0", "mobileclip-s1", "mobileclip-s2", "mobileclip-b", "mobileclip-b-lt",
             "mobileclip2-s0", "mobileclip2-s2", "mobileclip2-b"]  # fmt: skip
    done = run("compare", *names, "--tasks", "imagenet1k")
    rows = done.stdout.splitlines()
    assert max(map(len, rows)) <= 100
    values = [v for row in rows if row.startswith("ImageNet 1k") for v in row.split()[2:]]
    assert values == ["67.8", "72.6", "74.4", "76.8", "77.2", "71.5", "77.2", "79.4"]


def test_page_latency_and_json(own, tmp_path):
    rows = [timing("mobileclip-s0", tower, eager=4.0) for tower in ("image", "text")]
    log = write_latency(tmp_path / "encode.log", rows)
    page = tmp_path / "page.html"
    done = run("compare", own, "mobileclip-s0", "--html", page, "--latency", log, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["latency"] == {"form": "eager", "threads": 2,
                                "ms": {"[red]small": None, "mobileclip-s0": 8.0}}  # fmt: skip
    assert facts["average"]["tasks"] == 2
    assert facts["average_38"]["[red]small"] is None
    text = page.read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "Accuracy against latency measured here" in text
    done = run("compare", own, "mobileclip-s0", "--latency", log)
    assert line(done.stdout, "ms here")[-2:] == ["-", "8.0"]
    assert "(eager, 2 threads)" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mobileclip2-s9"], "did you mean mobileclip2-s"),
        (["xyz"], "lists all models (no such file or folder either)"),
        (["mobileclip-s0", "--tasks", "cifar1"], "no task 'cifar1'"),
        (["mobileclip-s0", "--suite", "some"], "no suite 'some'"),
        (["mobileclip-s0", "--html", "page.txt"], "ends in .html or .htm"),
        (["mobileclip-s0", "--html", "no/page.html"], "there is no folder"),
        (["mobileclip-s0", "--latency", "nowhere.log"], "nowhere.log"),
        (["runs/none"], "runs/none: no such file"),
    ],
    ids=["model", "neither", "task", "suite", "suffix", "folder", "latency", "path"],
)
def test_errors_are_one_line(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", *args])
    assert isinstance(done.exception, PocketclipError)  # which `main` prints as it is
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.output == ""
    assert list(tmp_path.iterdir()) == []


def test_an_error_ends_the_command():
    done = run("compare", "mobileclip2-s9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown model 'mobileclip2-s9'")
    assert len(done.stderr.splitlines()) == 1
