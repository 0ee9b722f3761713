"""`pocketclip fit`, and its label set in `classify`, `eval` and Python."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from pocketclip import load
from pocketclip.errors import ConfigError, DataError
from pocketclip.label_set import read_label_set
from tests.cli import inside
from tests.fit.test_fit import photograph, shelf


@pytest.fixture(scope="module")
def work(tmp_path_factory, exported):
    """A shelf, a bundle, and the label set that was fitted where torch is missing."""
    folder = tmp_path_factory.mktemp("fit")
    shelf(folder / "shelf", each=10)
    shelf(folder / "test", each=3)
    (folder / "shelf" / "kiwi" / "bad.png").write_bytes(b"no picture")
    bundle = exported()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pocketclip.cli.main import main\n"
        f"sys.argv = ['pocketclip', 'fit', 'shelf', '--model', {str(bundle)!r}, '--none-error', "
        "'0.1', '--labels', 'fig', '--out', 'labels.json', '--json']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr  # a photograph was left out
    assert "skipped: kiwi/bad.png" in done.stderr
    return folder, bundle, json.loads(done.stdout)


def test_what_it_says(work):
    folder, bundle, facts = work
    assert facts["labels"] == ["kiwi", "plum", "tomato", "fig"]
    assert facts["photographs"] == [10, 10, 10, 0]
    assert facts["held_out"] == 30
    assert facts["accuracy"]["head"] > facts["accuracy"]["zero_shot"]
    assert facts["skipped"][0]["photo"] == "kiwi/bad.png"
    assert facts["space_id"] == read_label_set(folder / "labels.json").space_id
    done = inside.run("fit", "test", "--model", bundle, "--out", "small.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    for text in ("9 photographs of 3 labels, 3 each", "small.json", "ridge"):
        assert text in done.stdout


def test_classify_gives_the_heads_own_probabilities(work):
    folder, bundle, _ = work
    done = inside.run("classify", "test", "--model", bundle, "--labels-file", "labels.json",
                      "--top", 4, "--json", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    raw = json.loads((folder / "labels.json").read_text())
    label_set = read_label_set(folder / "labels.json")
    encoder = load(bundle)
    rows = encoder.encode_image([str(folder / row["photo"]) for row in results]).astype(float)
    heads = rows @ label_set.weights.T.astype(float) + raw["biases"]
    logits = heads / raw["temperature"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, probabilities, row_logits in zip(results, expected, heads, strict=True):
        given = [row["labels"][label] for label in raw["labels"]]
        np.testing.assert_allclose(given, probabilities, atol=1e-6)
        assert row["none"] == (row_logits.max() < raw["none"]["below"])


def test_encoders_take_a_label_set_in_place_of_names(work):
    folder, bundle, _ = work
    encoder, label_set = load(bundle), read_label_set(folder / "labels.json")
    photo = str(folder / "test" / "plum" / "0.png")
    [ranked] = encoder.classify(photo, label_set)
    assert ranked == encoder.rank(encoder.encode_image(photo), label_set)[0]
    assert ranked == label_set.rank(encoder.encode_image(photo))[0]
    for wrong in (
        lambda: encoder.classify(photo, label_set, "a photo of {}"),
        lambda: encoder.rank(encoder.encode_image(photo), label_set, ["fig"]),
        lambda: encoder.rank(encoder.encode_image(photo), np.ones((1, 64), np.float32)),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_none_of_these_in_the_table(work):
    folder, bundle, _ = work
    raw = json.loads((folder / "labels.json").read_text())
    raw["none"]["below"] = 1e6
    (folder / "strict.json").write_text(json.dumps(raw))
    done = inside.run("classify", "test/plum/0.png", "--model", bundle, "--labels-file",
                      "strict.json", cwd=folder)  # fmt: skip
    assert "none of these (plum)" in done.stdout


def test_eval_scores_the_head(work):
    folder, bundle, _ = work
    plain = ("eval", bundle, "--data", "test", "--no-cache", "--json")
    with_head = (*plain, "--labels-file", "labels.json", "--out", "results.jsonl")
    done = inside.run(*with_head, cwd=folder)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout)["results"]
    encoder, label_set = load(bundle), read_label_set(folder / "labels.json")
    photos = sorted((folder / "test").glob("*/*.png"))
    answers = encoder.classify([str(path) for path in photos], label_set)
    right = [next(iter(row)) == path.parent.name for row, path in zip(answers, photos, strict=True)]
    assert result["metrics"]["acc1"] == pytest.approx(np.mean(right))
    assert result["pocketclip"]["label_set"] == label_set.digest
    # It is neither taken for the result with prompts nor replaced by it.
    done = inside.run(*plain, "--out", "results.jsonl", cwd=folder)
    assert done.returncode == 2
    assert "another label set: write to another file" in done.stderr
    assert inside.run(*with_head, cwd=folder).returncode == 0


def test_labels_that_the_label_set_lacks(work):
    folder, bundle, _ = work
    photograph(folder / "other" / "cherry" / "0.png", "red", 0)
    photograph(folder / "other" / "kiwi" / "0.png", "green", 0)
    done = inside.run("eval", bundle, "--data", "other", "--labels-file", "labels.json", cwd=folder)
    assert done.returncode == 2
    assert "1 class of 2 not in the label set: 'cherry'" in done.stderr


@pytest.mark.parametrize("option", ["--labels", "--template"])
def test_a_label_set_needs_neither_labels_nor_prompts(work, option):
    folder, bundle, _ = work
    done = inside.run("classify", "test", "--model", bundle, "--labels-file", "labels.json",
                      option, "a {}", cwd=folder)  # fmt: skip
    assert done.returncode == 2
    assert f"leave out {option}" in done.stderr


def test_a_label_set_of_another_model(work):
    folder, bundle, facts = work
    raw = json.loads((folder / "labels.json").read_text())
    raw["space_id"] = "space-0123456789abcdef"
    (folder / "other.json").write_text(json.dumps(raw))
    for verb in (("classify", "test", "--model"), ("eval", "--data", "test")):
        done = inside.run(*verb, bundle, "--labels-file", "other.json", cwd=folder)
        assert done.returncode == 2
        assert "other.json was fitted to" in done.stderr
        assert facts["space_id"] in done.stderr
        assert raw["space_id"] in done.stderr
    with pytest.raises(DataError, match=facts["space_id"]):
        load(bundle).classify("missing.png", read_label_set(folder / "other.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shelf", "--out", "labels.txt"), "ends in .json"),
        (("shelf", "--out", "none/labels.json"), "no folder"),
        (("nothing", "--out", "new.json"), "nothing"),
        (("empty", "--out", "new.json"), "empty"),
        (("shelf", "--out", "new.json", "--where", "split"), "COLUMN=VALUE"),
        (("shelf", "--out", "new.json", "--method", "forest"), "choose auto"),
        (("shelf", "--out", "new.json", "--labels", "Plum"), "'plum'"),
    ],
)
def test_what_cannot_be_fitted(work, arguments, message):
    folder, bundle, _ = work
    (folder / "empty").mkdir(exist_ok=True)
    done = inside.run("fit", *arguments, "--model", bundle, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not (folder / "new.json").exists()
