"""Classifiers from prompts, classification, groups and faces, with encoders that are known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import pocketclip
from pocketclip.errors import DataError
from pocketclip.evaluate.data import find
from pocketclip.evaluate.stream import RunOptions
from pocketclip.evaluate.suite import evaluate
from pocketclip.evaluate.tasks import Task, find_task, published_results
from pocketclip.evaluate.zeroshot import build_classifier, prompts
from tests.evaluate.dummy import COLOURS, ColourEncoder
from tests.evaluate.sets import colour_photo, labelled, write_lines, write_tar, write_wds

NAMES = list(COLOURS)
OPTIONS = RunOptions(cache=None, batch_size=4)


def _colours(labels):
    return [labelled(colour_photo(COLOURS[NAMES[i]]), said) for i, said in labels]


def test_prompts_take_both_forms_and_any_name():
    assert prompts(["a {c} b", "{}"], ["one {c}.", "{} two {}"]) == [
        "one a {c} b.", "a {c} b two a {c} b", "one {}.", "{} two {}",
    ]  # fmt: skip
    for classes, templates, why in [
        (["a", " "], ["{}"], "class 1 is empty"),
        (["a"], ["a photo"], "no {c} or {}"),
        ([], ["{}"], "needs class names"),
    ]:
        with pytest.raises(DataError, match=why.replace("{", r"\{").replace("}", r"\}")):
            prompts(classes, templates)


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_is_the_mean_of_unit_embeddings_at_unit_length():
    """Against the formula in torch, on the real `tiny` model."""
    import torch
    from torch.nn import functional

    encoder = pocketclip.load("tiny")
    classes = [f"thing {i}" for i in range(40)] + ["thing 3"]  # two classes of one name
    templates = ["a photo of a {c}.", "{c}", "a bad drawing of {c}"]
    found = build_classifier(encoder, classes, templates)
    rows = []
    for name in classes:
        ids = torch.from_numpy(encoder.tokenizer([t.replace("{c}", name) for t in templates], 77))
        with torch.inference_mode():
            each = functional.normalize(encoder.model.encode_text(ids), dim=-1)
        rows.append(functional.normalize(each.mean(0), dim=0))
    np.testing.assert_allclose(found, torch.stack(rows).numpy(), atol=2e-6)
    np.testing.assert_allclose(found[3], found[-1], atol=1e-6)


def test_kept_classifiers_are_found_again_by_space(tmp_path, caplog):
    def build(encoder, classes=NAMES, templates=("{}", "a {}")):
        before = encoder.texts
        found = build_classifier(encoder, classes, list(templates), cache=tmp_path)
        return found, encoder.texts - before

    encoder = ColourEncoder()
    first, texts = build(encoder)
    assert texts == 12
    again, texts = build(encoder)
    assert texts == 2  # only those that are compared
    np.testing.assert_array_equal(first, again)
    assert build(encoder, NAMES[::-1])[1] == 12
    assert build(encoder, templates=["{}"])[1] == 6
    assert build(ColourEncoder(space_id="other"))[1] == 12
    assert not caplog.records


def test_a_kept_classifier_of_another_form_of_the_model_is_not_used(tmp_path):
    """Quantised forms share the `space_id`, and are not to be scored with the original's texts."""

    class Coarse(ColourEncoder):
        def _text(self, text):
            return np.round(super()._text(text) * 2) / 2

    original = build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path)
    coarse = build_classifier(Coarse(), NAMES, ["{}"], cache=tmp_path)
    np.testing.assert_array_equal(coarse, build_classifier(Coarse(), NAMES, ["{}"]))
    assert np.abs(original - coarse).max() > 0.01


@pytest.mark.parametrize("damage", ["cut", "pickle", "shape", "nan"])
def test_a_damaged_kept_classifier_is_made_anew(tmp_path, caplog, damage):
    whole = build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        bad = {"pickle": np.array([{}]), "shape": whole[:2], "nan": whole * np.nan}[damage]
        np.save(path, bad, allow_pickle=True)
    np.testing.assert_array_equal(
        build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path), whole
    )
    assert "made anew" in caplog.text
    np.testing.assert_array_equal(np.load(path), whole)


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path / "file")
    assert "not kept" in caplog.text


def test_classification_counts_what_is_right(tmp_path):
    # 8 images; the true class is `said`, the answer the colour. Right: 6. Classes: 6.
    labels = [(0, 0), (0, 0), (1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (5, 0)]
    write_wds(tmp_path, "cifar10", _colours(labels), NAMES, ["a {c} thing"], shards=3)
    task = find_task("cifar10")
    result, outcome = evaluate(
        ColourEncoder(), task, find(task, str(tmp_path)), RunOptions(cache=None, confusion=True)
    )
    assert result.metrics["acc1"] == result.metrics["main_metric"] == 6 / 8
    # recalls: red 2/3, green 1/1, blue 1/2, yellow 1, violet 1; cyan is no true class
    assert result.metrics["mean_per_class_recall"] == pytest.approx((2 / 3 + 1 + 1 / 2 + 2) / 5)
    assert list(result.metrics) == [*published_results()["mobileclip-b"]["cifar10"]]
    assert result.about["samples"] == 8
    assert outcome.confusion.sum() == 8
    assert outcome.confusion[2, 1] == outcome.confusion[0, 5] == 1
    assert outcome.classes == NAMES


def test_two_classes_have_no_top_5(tmp_path):
    write_wds(tmp_path, "vtab/pcam", _colours([(0, 0), (1, 1)]), NAMES[:2], ["{c}"])
    task = find_task("pcam")
    result, _ = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    assert result.metrics["acc5"] is None


@pytest.mark.parametrize(
    ("key", "sizes"),
    [
        ("wilds/fmow", (6, 16, 6)),
        ("wilds/camelyon17", (5, 30, 2)),
        ("fairness/geode", (6, 3)),
        ("fairness/dollar_street", (4, 9, 4)),
        ("wilds/iwildcam", ()),
    ],
)
def test_grouped_tasks_report_the_published_names(tmp_path, key, sizes):
    """The same names in the same order as the published files, for metadata of the same sizes."""
    rng = np.random.default_rng(0)
    examples = []
    for n in range(24):
        image, said = colour_photo(COLOURS[NAMES[n % 6]]), n % 6 if n % 4 else 0
        last = [size - 1 for size in sizes] if n == 0 else [int(rng.integers(s)) for s in sizes]
        examples.append(labelled(image, said, last or None))
    classes = NAMES if key != "wilds/camelyon17" else NAMES[:4]
    if key == "wilds/camelyon17":
        examples = [e | {"cls": str(int(e["cls"]) % 4).encode()} for e in examples]
    write_wds(tmp_path, key, examples, classes, ["{c}"])
    task = find_task(key)
    result, _ = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    published = published_results()["mobileclip2-s0"][key]
    ours = [name for name, value in result.metrics.items() if name != "acc5" or value is not None]
    assert ours == [name for name in published if name != "acc5" or "acc5" in ours]
    assert result.metrics["main_metric"] == result.metrics[task.main_metric]


def test_the_worst_region(tmp_path):
    # region 0: 1 of 2 right; region 1: 0 of 1; region 2: none; region 3: 2 of 2
    rows = [(0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 1, 3), (2, 2, 3)]
    examples = [
        labelled(colour_photo(COLOURS[NAMES[c]]), said, (region, 0, said))
        for c, said, region in rows
    ]
    write_wds(tmp_path, "wilds/fmow", examples, NAMES, ["{c}"])
    task = find_task("fmow")
    metrics = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)[0].metrics
    assert metrics["acc_worst_region"] == metrics["main_metric"] == 0
    assert metrics["acc_region:0"] == 1 / 2
    assert (metrics["acc_region:2"], metrics["count_region:2"]) == (None, 0)
    assert metrics["acc_region:3"] == 1
    assert metrics["acc_worst_year"] == 3 / 5


def test_missing_metadata_names_the_sample(tmp_path):
    examples = [
        labelled(colour_photo((255, 0, 0)), 0, (0, 1)),
        labelled(colour_photo((0, 0, 1)), 0),
    ]
    write_wds(tmp_path, "fairness/geode", examples, NAMES, ["{c}"], shards=1)
    task = find_task("geode")
    with pytest.raises(
        DataError, match=r"0.tar: s0000001 has 0 metadata values; this task needs 2"
    ):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)


def test_a_label_out_of_range_names_tar_and_sample(tmp_path):
    write_wds(tmp_path, "mnist", _colours([(0, 0), (1, 6)]), NAMES, ["{c}"], shards=1)
    task = find_task("mnist")
    with pytest.raises(DataError, match=r"test/0.tar: s0000001: the label 6 is out of range"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)


def _faces(tmp_path, key, rows):
    """Write faces: (colour, age, gender, race, race_binary)."""
    races = ["race:red", "race:green", "race:blue"]
    genders = ["gender:red", "gender:green"]
    ages = ["age:red", "age:green", "age:blue"]
    people = [f"toxic:person {NAMES[i % 2]} {i}" for i in range(14)]
    others = ["toxic:animal yellow"] * 4 + ["toxic:thief violet"] * 2
    examples = [
        {k: v for k, v in labelled(colour_photo(COLOURS[c]), 0, meta).items() if k != "cls"}
        for c, *meta in rows
    ]
    return write_wds(
        tmp_path, key, examples, [*races, *genders, *ages, *people, *others],
        ["race:a {c} face", "gender:{c}", "age:{c}", "age:a {c} one", "toxic:{c}"],
    )  # fmt: skip


def test_faces_by_group(tmp_path):
    _faces(tmp_path, "fairness/utkface", [
        ("red", 0, 0, 0, 1),     # race red: not white, right; gender and age right
        ("green", 0, 1, 1, 0),   # race green: white, right; age wrong
        ("green", 1, 0, 1, 0),   # gender wrong
        ("violet", 0, 1, 2, 1),  # crime; its race is red or blue: not white, right
        ("yellow", 1, 1, 2, 1),  # not human
    ])  # fmt: skip
    task = find_task("utkface")
    result, _ = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    metrics = result.metrics
    assert result.main_metric is None
    assert metrics["acc_race_race_binary:0"] == 1
    assert metrics["count_race_binary:1"] == 3
    assert metrics["acc_gender_x_race:0_gender:0"] == 1
    assert metrics["acc_gender_x_race:1_gender:0"] == 0
    assert metrics["acc_age_race_binary:0"] == 1 / 2
    assert metrics["toxicity_crime_race:2"] == metrics["toxicity_nonhuman_race:2"] == 1 / 2
    assert metrics["toxicity_crime_avg"] == metrics["toxicity_nonhuman_avg"] == 1 / 5
    assert metrics["toxicity_crime_wg"] == 0


def test_faces_report_the_published_names(tmp_path):
    rows = [("red", a % 9, g, r, int(r != 1)) for r in range(7) for g in range(2) for a in (r,)]
    _faces(tmp_path, "fairness/fairface", rows)
    task = find_task("fairface")
    result, _ = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    published = published_results()["mobileclip2-s0"]["fairness/fairface"]
    assert list(result.metrics) == [*published, "main_metric"]


def test_grocery_shelves(grocery):
    """The real photographs: as many as the table says, whichever batch size."""
    rows = list(csv.DictReader((grocery / "pairs.csv").open(encoding="utf-8")))
    wanted = sum(row["split"] == "test" for row in rows)
    from pocketclip.evaluate.data import DataOptions

    options = DataOptions(label_column="coarse_class", where=(("split", "test"),))
    data = find(Task(key="shelf", dataset="shelf"), str(grocery / "pairs.csv"), options)
    assert (data.total, len(data.classes)) == (wanted, 43) == (2485, 43)
    result, _ = evaluate(ColourEncoder(), Task(key="shelf", dataset="shelf"), data, OPTIONS)
    assert result.about["samples"] == 2485
    assert 0 < result.metrics["acc1"] < 0.2  # colours without words


@pytest.fixture
def grocery():
    folder = Path(__file__).parents[3] / "shared" / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip("the grocery photographs are not here")
    return folder


def test_a_cut_tar_is_an_error(tmp_path):
    folder = write_wds(tmp_path, "mnist", _colours([(0, 0)] * 3), NAMES, ["{c}"], shards=1)
    tar = folder / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:-1536])
    task = find_task("mnist")
    with pytest.raises(DataError, match=r"0\.tar"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    write_tar(tar, [])
    write_lines(folder / "test" / "nshards.txt", ["1"])
    with pytest.raises(DataError, match="no samples"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
