"""`pocketclip eval` as a user runs it."""

from __future__ import annotations

import json

import pytest

from pocketclip import checkpoint
from pocketclip.errors import StorageError
from pocketclip.evaluate import results
from pocketclip.nn.build import random_model
from tests.cli.inside import run
from tests.evaluate.dummy import COLOURS
from tests.evaluate.sets import colour_photo, labelled, photo, write_folder, write_table, write_wds
from tests.golden_weights import randomise


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny = random_model("tiny", seed=0)
    randomise(tiny)
    checkpoint.save(tiny, folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    names = [f"thing {i}" for i in range(6)]
    write_wds(folder, "cifar10", [labelled(photo(i), i % 6) for i in range(12)], names, ["{c}"])
    rows = [{"file": f"{i}.jpg", "what": f"kind {i % 3}", "split": "test" if i % 2 else "train"}
            for i in range(12)]  # fmt: skip
    write_table(folder / "shelf.csv", rows, {f"{i}.jpg": photo(i) for i in range(12)})
    return folder


def test_help_has_examples():
    done = run("eval", "--help")
    assert done.returncode == 0
    assert "pocketclip eval mobileclip2-s0 --suite datacomp38" in done.stdout


def test_a_task_into_a_file_and_again(model, root, tmp_path):
    out = tmp_path / "results.jsonl"
    args = ("eval", model, "--tasks", "cifar10", "--data", root, "--out", out, "--no-cache")
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert "acc1" in done.stdout
    assert "average" not in done.stdout
    line = json.loads(out.read_text())
    assert (line["key"], line["dataset"]) == ("cifar10", "CIFAR-10")
    assert line["pocketclip"]["model"] == "tiny"
    assert line["pocketclip"]["samples"] == 12
    before = out.read_bytes()
    again = run(*args, "--json")
    assert json.loads(again.stdout)["results"] == [line]
    assert out.read_bytes() == before


def test_a_partial_suite_names_what_is_missing_and_has_no_average(model, root):
    done = run("eval", model, "--suite", "datacomp38", "--data", root, "--json", "--no-cache")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert len(facts["failed"]) == 37
    assert "average_38" not in facts
    assert (
        f"not evaluated: mnist: no data for mnist: looked for {root}/wds_mnist_test" in done.stderr
    )


def test_a_table_with_names_for_labels(model, root, tmp_path):
    page = tmp_path / "confusion.html"
    done = run(
        "eval", model, "--data", root / "shelf.csv", "--label-column", "what",
        "--where", "split=test", "--template", "a photo of {}", "--json", "--no-cache",
        "--confusion", page, "--probe", "knn",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["results"][0]["pocketclip"]["samples"] == 6
    assert facts["probes"]["shelf"]["train_samples"] == 6
    assert "kind 2" in page.read_text()


def test_bad_photographs(model, tmp_path):
    write_folder(tmp_path, "fruit", {"apple": [photo(0), b"broken"], "pear": [photo(1)]})
    done = run("eval", model, "--data", tmp_path / "fruit", "--no-cache")
    assert done.returncode == 2
    assert "1 unreadable image: " in done.stderr
    assert done.stderr.count("apple/1.jpg") == 1
    assert "Traceback" not in done.stderr
    done = run("eval", model, "--data", tmp_path / "fruit", "--no-cache", "--skip-bad", "--json")
    assert done.returncode == 1
    about = json.loads(done.stdout)["results"][0]["pocketclip"]
    assert (about["samples"], about["skipped"]) == (2, 1)
    assert "skipped: " in done.stderr


def shades(count):
    return {name: [colour_photo(rgb)] * count for name, rgb in COLOURS.items()}


def test_a_probe_that_fails_leaves_the_other_results(model, tmp_path):
    shelf = write_folder(tmp_path, "shelf", shades(2))
    write_folder(tmp_path, "shelf", shades(2), split="train")
    (shelf / "train" / "red" / "1.png").write_bytes(b"broken")
    args = ("eval", model, "--data", shelf, "--no-cache", "--probe", "knn")
    done = run(*args)
    assert done.returncode == 1
    assert "shelf  acc1" in done.stdout
    assert "not evaluated: shelf, probes: 1 unreadable image: " in done.stderr
    done = run(*args, "--skip-bad", "--json")
    assert done.returncode == 1  # a training image was left out
    facts = json.loads(done.stdout)
    assert facts["failed"] == {}
    assert facts["probes"]["shelf"]["train_skipped"] == 1
    assert "skipped: " in done.stderr
    # One of two tasks has nothing to learn from.
    write_folder(tmp_path, "other", shades(1))
    args = ("eval", model, "--data", tmp_path, "--no-cache", "--probe", "knn", "--skip-bad")
    done = run(*args, "--tasks", "other,shelf", "--json")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert [line["key"] for line in facts["results"]] == ["other", "shelf"]
    assert list(facts["probes"]) == ["shelf"]
    assert list(facts["failed"]) == ["other, probes"]
    done = run(*args, "--tasks", "other")
    assert done.returncode == 2  # said before any work


def test_results_are_shown_though_the_file_cannot_be_written_any_more(model, tmp_path, monkeypatch):
    for name in ("one", "two", "more"):
        write_folder(tmp_path, name, shades(1))
    write, calls = results.storage.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) > 1:
            raise StorageError(f"{path}: no space left on the device")
        write(path, data)

    monkeypatch.setattr(results.storage, "write_bytes", full)
    done = run("eval", model, "--data", tmp_path, "--tasks", "one,two,more", "--no-cache",
                      "--out", tmp_path / "r.jsonl")  # fmt: skip
    assert done.returncode == 1
    assert "one   acc1" in done.stdout
    assert "two   acc1" in done.stdout  # which is not in the file
    assert "not evaluated: the tasks from here on: " in done.stderr
    assert "no space left" in done.stderr


def test_own_sets_have_their_own_names(model, tmp_path, monkeypatch):
    out = tmp_path / "r.jsonl"
    for name in ("shelf.v1", "shelf.v2", "flowers", "cifar10"):
        write_folder(tmp_path, name, shades(1))
        assert run("eval", model, "--data", tmp_path / name, "--out", out,
                          "--no-cache").returncode == 0  # fmt: skip
    monkeypatch.chdir(tmp_path / "shelf.v1")
    assert run("eval", model, "--data", ".", "--out", out, "--no-cache").returncode == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["shelf.v1", "shelf.v2", "flowers", "own/cifar10"]
    assert [row["dataset"] for row in rows] == ["shelf.v1", "shelf.v2", "flowers", "cifar10"]
    done = run("compare", out, "mobileclip2-s0", "--json")
    tasks = {task["key"]: task["values"] for task in json.loads(done.stdout)["tasks"]}
    for key in ("flowers", "own/cifar10"):
        assert tasks[key]["mobileclip2-s0"] is None
    assert tasks["vtab/flowers"]["tiny"] is None
    # A published task is what --tasks says is one.
    done = run("eval", model, "--data", tmp_path / "flowers", "--tasks", "flowers", "--json",
                      "--no-cache")  # fmt: skip
    assert json.loads(done.stdout)["results"][0]["key"] == "vtab/flowers"


def test_names_that_are_not_utf_8(model, tmp_path):
    root = tmp_path / "caf\udce9"
    write_folder(root, "", {"red": [colour_photo(COLOURS["red"])], "\udcff": [photo(1), b"bad"]})
    done = run("eval", model, "--data", root, "--out", root / "results.jsonl", "--skip-bad",
                      "--confusion", root / "page.html", "--no-cache")  # fmt: skip
    assert done.returncode == 1, done.stderr
    line = json.loads((root / "results.jsonl").read_bytes())
    assert line["pocketclip"]["skipped"] == 1
    assert "red" in (root / "page.html").read_text("utf-8")
    assert run("compare", root, "--html", root / "b.html").returncode == 0


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--tasks", "cifar10", "--data", "nowhere"), "nowhere/wds_cifar10_test"),
        (
            ("--suite", "datacomp39", "--data", "."),
            "no suite 'datacomp39'; choose from",
        ),
        (("--data", "shelf.csv", "--where", "split"), "--where 'split' is not COLUMN=VALUE"),
        (("--data", "shelf.csv", "--label-column", "wat"), "no column 'wat'"),
        (("--data", "shelf.csv", "--label-column", "what", "--template", "x"), "no {c} or {}"),
        (("--data", ".", "--tasks", "cifar10,mnist", "--confusion", "a.html"), "holds one task"),
        (("--data", ".", "--tasks", "cifar10", "--confusion", "no/a.html"), "there is no folder"),
        (("--data", ".", "--tasks", "cifar10", "--batch-size", "0"), "--batch-size"),
        (("--data", ".", "--tasks", "cifar10", "--probe", "knn,svm"), "no probe 'svm'"),
    ],
    ids=["data", "suite", "where", "column", "template", "pages", "folder", "batch", "probe"],
)
def test_what_cannot_be_done_is_said_before_any_work(model, root, args, why):
    done = run("eval", model, *args, cwd=root)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr
