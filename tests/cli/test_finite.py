"""A model with NaN in its weights: every verb fails with one line, and writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pocketclip import checkpoint
from pocketclip.nn.build import random_model
from tests.cli.inside import run

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for part in ("image", "text"):
        model = random_model("tiny", seed=0)
        with torch.no_grad():
            getattr(model, part).head.weight[0] = float("nan")
        checkpoint.save(model, folder / part)
    return folder


def _verbs(models, part, folder):
    (folder / "captions.txt").write_text("a cat\n")
    for label in ("cat", "dog"):
        (folder / "set" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTO, folder / "set" / label / "a.jpg")
    model = models / part
    labels = ["--labels", "a cat,a dog", "--model", model]
    yield "classify", PHOTO, *labels
    yield "classify", PHOTO, "--json", *labels
    given = PHOTO if part == "image" else folder / "captions.txt"
    yield "embed", given, "--model", model, "--out", folder / "rows.npy"
    yield "eval", model, "--data", folder / "set", "--out", folder / "results.jsonl"


@pytest.mark.parametrize("part", ["image", "text"])
def test_every_verb_names_the_input_and_fails(models, tmp_path, part):
    for command in _verbs(models, part, tmp_path):
        done = run(*command)
        assert done.returncode == 2, command
        assert done.stdout == "", command
        lines = [line for line in done.stderr.splitlines() if "its embedding is not" in line]
        assert len(lines) == 1, command
        assert ("chelsea.jpg" in lines[0] or "a.jpg" in lines[0]) is (part == "image")
        assert "nan%" not in done.stderr
    assert not (tmp_path / "rows.npy").exists()
    assert not (tmp_path / "results.jsonl").exists()


def test_more_threads_than_any_machine_has_are_refused(tmp_path):
    (tmp_path / "a.jpg").touch()
    done = run(
        "classify", tmp_path, "--labels", "a,b", "--model", "random:tiny", "--threads", "99999"
    )
    assert done.returncode == 2
    assert "threads is 99,999; the maximum is 1,024" in done.stderr
