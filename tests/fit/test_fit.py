"""From photographs to a label set: what is fitted, kept, refused and said."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pocketclip.errors import ConfigError, DataError
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.fit import FitOptions, fit_labels
from pocketclip.fit.cross_validation import STRENGTHS, choose_strength
from pocketclip.fit.folds import folds, same_photographs
from tests.evaluate.dummy import COLOURS, ColourEncoder

FRUIT = {"kiwi": "green", "tomato": "red", "plum": "violet"}
"""Labels of which the encoder's texts know nothing."""


def photograph(path, colour, seed, noise=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    mean = np.array(COLOURS[colour]) * 0.6 + rng.normal(size=3) * noise + 50
    Image.new("RGB", (8, 8), tuple(np.clip(mean, 0, 255).astype(int).tolist())).save(path)


def shelf(folder, each=6, labels=FRUIT):
    for number, (label, colour) in enumerate(labels.items()):
        for row in range(each):
            photograph(folder / label / f"{row}.png", colour, 100 * number + row)
    return str(folder)


def test_a_head_learns_what_the_prompts_do_not_know(tmp_path):
    encoder = ColourEncoder()
    fitted = fit_labels(encoder, shelf(tmp_path / "shelf"), model="colours")
    made, facts = fitted.label_set, fitted.facts
    assert facts["method"] == "ridge"
    assert facts["held_out"] == 18
    assert facts["photographs"] == [6, 6, 6]
    assert facts["accuracy"]["head"] > 0.9 > 0.5 > facts["accuracy"]["zero_shot"]
    assert facts["calibration_error"]["head_calibrated"] < 0.2
    assert (made.space_id, made.model) == ("space-colours", "colours")
    photograph(tmp_path / "new.png", "red", 7)
    embedding = encoder.encode_image([str(tmp_path / "new.png")]) / 3
    assert made.classify(embedding) == ["tomato"]
    assert made.none is None  # 18 photographs are too few for 5 %


def test_the_same_photographs_give_the_same_label_set_wherever_they_lie(tmp_path):
    first = fit_labels(ColourEncoder(), shelf(tmp_path / "a")).label_set
    second = fit_labels(ColourEncoder(), shelf(tmp_path / "b" / "c")).label_set
    assert first.digest == second.digest


def test_the_prompts_are_kept_where_the_head_is_worse(tmp_path):
    labels = {"red": "red", "green": "green", "blue": "blue"}
    folder = shelf(tmp_path / "shelf", each=8, labels=labels)
    # Mislabelled photographs teach nothing, and the prompts are right about the others.
    rng = np.random.default_rng(0)
    for label in labels:
        for row in range(4):
            photograph(tmp_path / "shelf" / label / f"{row}.png",
                       rng.choice([c for c in labels if c != label]), row, noise=1)  # fmt: skip
    fitted = fit_labels(ColourEncoder(), folder, options=FitOptions(none_error=0.2))
    assert fitted.facts["accuracy"]["head"] < fitted.facts["accuracy"]["zero_shot"]
    assert fitted.facts["method"] == "zero-shot"
    assert fitted.facts["strength"] is None
    classifier = ColourEncoder().encode_text([f"a photo of {label}." for label in labels]) / 3
    order = [fitted.label_set.labels.index(label) for label in labels]
    np.testing.assert_allclose(fitted.label_set.weights[order], 10 * classifier, rtol=1e-5)
    assert fitted.label_set.none is not None
    assert fitted.label_set.temperature != 1


def test_the_method_is_the_one_that_is_right_more_often(tmp_path):
    folder = shelf(tmp_path / "shelf", each=8)
    methods = ("ridge", "logistic", "auto")
    facts = [fit_labels(ColourEncoder(), folder, options=FitOptions(method=m)).facts
             for m in methods]  # fmt: skip
    ridge, logistic, auto = (each["accuracy"]["head"] for each in facts)
    assert [each["method"] for each in facts[:2]] == ["ridge", "logistic"]
    assert auto == max(ridge, logistic)


def test_one_photograph_per_label(tmp_path):
    encoder = ColourEncoder()
    fitted = fit_labels(encoder, shelf(tmp_path / "shelf", each=1))
    assert fitted.facts["method"] == "ridge"
    assert fitted.facts["held_out"] == 0
    assert "accuracy" not in fitted.facts
    assert fitted.label_set.none is None
    photograph(tmp_path / "new.png", "violet", 7)
    embedding = encoder.encode_image([str(tmp_path / "new.png")]) / 3
    assert fitted.label_set.classify(embedding) == ["plum"]


def test_further_labels_keep_their_prompt(tmp_path):
    folder = shelf(tmp_path / "shelf", labels={"kiwi": "green", "tomato": "red"})
    fitted = fit_labels(ColourEncoder(), folder, options=FitOptions(more_labels=("blue",)))
    assert fitted.label_set.labels[-1] == "blue"
    assert fitted.facts["photographs"][-1] == 0
    blue = ColourEncoder().encode_image([Image.new("RGB", (8, 8), (0, 0, 255))]) / 3
    assert fitted.label_set.classify(blue) == ["blue"]
    for name in ("Kiwi", "kiwi"):
        with pytest.raises(DataError, match="'kiwi'"):
            fit_labels(ColourEncoder(), folder, options=FitOptions(more_labels=(name,)))


def test_wrong_labels_are_found(tmp_path):
    folder = shelf(tmp_path / "shelf", each=12)
    photograph(tmp_path / "shelf" / "plum" / "wrong.png", "green", 5, noise=5)
    facts = fit_labels(ColourEncoder(), folder).facts
    first = facts["doubtful"][0]
    assert (first["photo"], first["label"], first["rather"]) == ("plum/wrong.png", "plum", "kiwi")
    assert facts["per_class"][0]["label"] == "plum"
    assert facts["per_class"][0]["taken_for"] == "kiwi"


def test_unreadable_photographs_are_left_out(tmp_path):
    folder = shelf(tmp_path / "shelf")
    (tmp_path / "shelf" / "kiwi" / "bad.png").write_bytes(b"no picture")
    fitted = fit_labels(ColourEncoder(), folder)
    assert [bad.name for bad in fitted.skipped] == ["kiwi/bad.png"]
    assert fitted.facts["photographs"] == [6, 6, 6]
    for label in ("kiwi", "plum"):
        for path in (tmp_path / "shelf" / label).iterdir():
            path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"fewer than two labels.*13 photographs cannot: kiwi/"):
        fit_labels(ColourEncoder(), folder)


@pytest.mark.parametrize(
    "values", [{"method": "forest"}, {"none_error": 1.0}, {"none_error": -0.1}, {"max_images": 0}]
)
def test_options_out_of_range(values):
    with pytest.raises(ConfigError):
        FitOptions(**values)


def test_of_many_photographs_some_of_each_label_are_used(tmp_path, caplog):
    folder = shelf(tmp_path / "shelf", each=5)
    fitted = fit_labels(ColourEncoder(), folder, options=FitOptions(max_images=9))
    assert fitted.facts["photographs"] == [3, 3, 3]
    assert "9 of 15 photographs are used" in caplog.text


def table(path, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["filepath", "label"], *rows])
    return str(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["kiwi"] * 6, "only one label"),
        (["kiwi", "Kiwi"] * 3, "'Kiwi'.*'kiwi'"),
        (["a long caption of a photograph " * 4, "kiwi"], "captions"),
    ],
)
def test_labels_nothing_can_be_learnt_from(tmp_path, labels, message):
    rows = [(f"{row}.png", label) for row, label in enumerate(labels)]
    for name, _ in rows:
        photograph(tmp_path / name, "red", 0)
    with pytest.raises(DataError, match=message):
        fit_labels(ColourEncoder(), table(tmp_path / "table.csv", rows),
                   DataOptions(label_column="label"))  # fmt: skip


def test_it_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pocketclip.fit, pocketclip.cli.fit, pocketclip.label_set\n"
        "assert 'scipy' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prompts_that_mislead_do_not_distort_the_scale():
    """Prompts that are worse than chance have an extreme temperature, different in each fold."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    centres = np.eye(4, 16)
    embeddings = centres[labels] + 0.3 * rng.normal(size=(48, 16))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1)[:, None]).astype(np.float32)
    names = [f"{row}.png" for row in range(48)]
    wrong = np.roll(centres, 1, axis=0).astype(np.float32)  # each prompt means another class
    found = choose_strength("ridge", wrong, 100.0, embeddings, labels, names, STRENGTHS["ridge"])
    assert found is not None
    logits, truth = found[1].logits, labels[found[1].rows]
    assert (logits.argmax(axis=1) == truth).mean() > 0.9
    # Logits of all folds have one scale, so that one temperature and one threshold suit them.
    highest = [logits[found[1].part == fold].max(axis=1).mean() for fold in range(5)]
    assert max(highest) < 1.5 * min(highest)


def test_copies_are_held_out_together_and_contradictions_named(tmp_path, caplog):
    folder = shelf(tmp_path / "shelf")
    for row in range(6):
        copy = tmp_path / "shelf" / "plum" / f"copy{row}.png"
        copy.write_bytes((tmp_path / "shelf" / "plum" / f"{row}.png").read_bytes())
    other = tmp_path / "shelf" / "kiwi" / "other.png"
    other.write_bytes((tmp_path / "shelf" / "plum" / "0.png").read_bytes())
    (tmp_path / "shelf" / "fig").mkdir()
    fitted = fit_labels(ColourEncoder(), folder)
    assert fitted.facts["photographs"] == [7, 12, 6]
    assert "with another label than a copy has: kiwi/other.png (kiwi) and plum/0.png" in caplog.text
    assert "left out since they hold no photograph: 1 folder, fig" in caplog.text
    photographs = np.array([[1, 0], [0, 1], [1, 1e-7], [0.6, 0.8]], np.float32)
    same = same_photographs(photographs)
    assert same.tolist() == [0, 1, 0, 3]
    part = folds(["a", "b", "c", "d"], np.zeros(4, np.int64), same)
    assert part[0] == part[2]
    assert sorted(part[[0, 1, 3]]) == [0, 1, 2]


def test_options_of_a_table_are_refused_for_a_folder(tmp_path):
    data = DataOptions(split="train", where=(("split", "train"),))
    with pytest.raises(DataError, match="leave them out"):
        fit_labels(ColourEncoder(), shelf(tmp_path / "shelf"), data)
