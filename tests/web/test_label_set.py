"""The pages read a label set as Python does, and rank the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from pocketclip.label_set import LabelSet, NoneOfThese

_MODULE = Path(str(resources.files("pocketclip.web"))) / "app" / "labels" / "label_set.js"
_SCRIPT = """
import { readFileSync } from "node:fs";
const { isLabelSet, parseLabelSet, checkSpace, rankSet } = await import(process.argv[1]);
const { files, embeddings, model } = JSON.parse(readFileSync(0, "utf-8"));
const attempt = (make) => { try { return make(); } catch (error) { return error.message; } };
console.log(JSON.stringify(files.map((text) => attempt(() => {
  if (!isLabelSet(text)) return "no label set";
  const set = parseLabelSet(text, "fruit.json");
  checkSpace(set, model, "fruit.json");
  return embeddings.map((one) => rankSet(set, one));
}))));
"""
LABELS = ["apple", "caf\u00e9", "<img src=x>"]


@pytest.fixture(scope="module")
def rank():
    """Reads files and ranks embeddings in Node: results, or messages."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")

    def run(files: list[str], embeddings: np.ndarray | None = None) -> list:
        rows = [] if embeddings is None else embeddings.tolist()
        model = {"space_id": "space-1", "embed_dim": 8, "name": "tiny"}
        given = json.dumps({"files": files, "embeddings": rows, "model": model})
        done = subprocess.run(
            [node, "--input-type=module", "-e", _SCRIPT, _MODULE.as_uri()],
            input=given, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    return run


def make(tmp_path: Path, none: NoneOfThese | None, **changes) -> tuple[LabelSet, str]:
    rng = np.random.default_rng(3)
    values = {
        "labels": LABELS, "weights": rng.normal(size=(3, 8)).astype(np.float32),
        "biases": rng.normal(size=3).astype(np.float32), "space_id": "space-1", "model": "tiny",
        "temperature": 0.7, "none": none,
    }  # fmt: skip
    made = LabelSet(**{**values, **changes})
    made.write(tmp_path / "fruit.json")
    return made, (tmp_path / "fruit.json").read_text("ascii")


def test_ranks_and_rules_are_pythons(tmp_path, rank):
    rng = np.random.default_rng(4)
    embeddings = rng.normal(size=(20, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rules = [
        None,
        NoneOfThese(score="probability", below=0.6, error=0.05),
        NoneOfThese(score="logit", below=0.5, error=0.05),
    ]
    made = [make(tmp_path, rule) for rule in rules]
    answers = rank([text for _, text in made], embeddings)
    for (labels, _), answer in zip(made, answers, strict=True):
        assert [one["none"] for one in answer] == labels.is_none(embeddings).tolist()
        for ranked, expected in zip(answer, labels.rank(embeddings), strict=True):
            assert [one["label"] for one in ranked["ranked"]] == list(expected)
            shares = [one["probability"] for one in ranked["ranked"]]
            np.testing.assert_allclose(shares, list(expected.values()), rtol=1e-12)
    assert {one["none"] for one in answers[1]} == {True, False}


def test_other_models_and_damaged_files_are_refused(tmp_path, rank):
    _, good = make(tmp_path, None)
    raw = json.loads(good)
    wrong = {
        "version": 2, "labels": ["a", "a", "b"], "embed_dim": 0, "biases": [1, 2],
        "temperature": 0, "weights": raw["weights"][:-4], "model": None, "none": {"score": "x"},
    }  # fmt: skip
    files = [json.dumps({**raw, name: value}) for name, value in wrong.items()]
    files += [
        json.dumps({**raw, "weights": raw["weights"][:-8] + "    " + raw["weights"][-4:]}),
        json.dumps({**raw, "biases": [1, 2, 1e39]}),
        json.dumps({**raw, "space_id": "space-2"}),
        json.dumps({**raw, "labels": ["a", " ", "b"]}),
        good[:-20],
        "{}",
    ]
    answers = rank(files)
    expected = [
        "another version", "there twice", "embed_dim", "one bias for each", "must be above 0",
        "“weights” has not the length", "must be texts", "is not a rule", "not base64",
        "“biases” is not finite", "has another embedding space (space-1)", "is empty", "not JSON",
        "no label set",
    ]  # fmt: skip
    for answer, part in zip(answers, expected, strict=True):
        assert part in answer
