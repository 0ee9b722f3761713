"""Classifiers from prompts, classification, groups and faces, with encoders that are known."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pocketclip
from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import CLASSES, TEMPLATES, Example, TaskData
from pocketclip.evaluate.datasets.find import DataOptions, find
from pocketclip.evaluate.stream import RunOptions
from pocketclip.evaluate.suite import evaluate
from pocketclip.evaluate.tasks import Task, find_task, published_results
from pocketclip.evaluate.zeroshot import build_classifier, prompts, run_classification
from tests.evaluate.dummy import COLOURS, ColourEncoder, PixelColourEncoder
from tests.evaluate.sets import colour_photo, labelled, photo, write_lines, write_tar, write_wds

NAMES = list(COLOURS)
OPTIONS = RunOptions(cache=None, batch_size=4)


def _colours(labels):
    return [labelled(colour_photo(COLOURS[NAMES[i]]), said) for i, said in labels]


def test_prompts_take_both_forms_and_any_name():
    assert prompts(["a {c} b", "{}"], ["one {c}.", "{} two {}"]) == [
        "one a {c} b.", "a {c} b two a {c} b", "one {}.", "{} two {}",
    ]  # fmt: skip
    assert prompts(["a", ""], ["the {c}."]) == ["the a.", "the ."]  # some lists have a blank name
    for classes, templates, why in [
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

    encoder = pocketclip.load("random:tiny")
    classes = [f"thing {i}" for i in range(40)] + ["thing 3"]  # two classes of one name
    templates = ["a photo of a {c}.", "{c}", "a bad drawing of {c}"]
    classifier = build_classifier(encoder, classes, templates)
    rows = []
    for name in classes:
        ids = torch.from_numpy(encoder.tokenizer([t.replace("{c}", name) for t in templates], 77))
        with torch.inference_mode():
            each = functional.normalize(encoder.model.encode_text(ids), dim=-1)
        rows.append(functional.normalize(each.mean(0), dim=0))
    np.testing.assert_allclose(classifier, torch.stack(rows).numpy(), atol=2e-6)
    np.testing.assert_allclose(classifier[3], classifier[-1], atol=1e-6)


def _unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_each_prompt_weighs_the_same_whatever_its_length():
    """An encoder's raw length says nothing: by hand, for prompts of very different ones."""

    class Uneven(ColourEncoder):
        def _text(self, text):
            return super()._text(text) * (100 if "loud" in text else 1)

    templates = ["loud {c} and red", "{c} and blue", "{}"]
    classifier = build_classifier(Uneven(), ["green", "cyan"], templates)
    rows = {name: _unit([*np.array(rgb) / 255, 0.1]) for name, rgb in COLOURS.items()}
    for row, name in zip(classifier, ("green", "cyan"), strict=True):
        r, g, b = np.array(COLOURS[name]) / 255
        each = [_unit([r + 1, g, b, 0.1]), _unit([r, g, b + 1, 0.1]), rows[name]]
        np.testing.assert_allclose(row, _unit(np.mean(each, axis=0)), atol=1e-7)
    assert classifier.dtype == np.float32


def test_many_classes_are_embedded_in_parts():
    classes = [f"{NAMES[i % 6]} {i}" for i in range(150)]
    whole = build_classifier(ColourEncoder(), NAMES, ["a {c}", "{c}"])
    encoder = ColourEncoder()
    classifier = build_classifier(encoder, classes, ["a {c}", "{c}"])
    np.testing.assert_array_equal(classifier, whole[np.arange(150) % 6])
    assert encoder.texts == 300
    assert max(encoder.text_batches) < 300


def test_classes_of_one_name_are_equal_to_the_bit_and_the_first_is_chosen(tmp_path):
    class Noisy(ColourEncoder):
        """Rounds a text by where it stands, as models do."""

        def encode_text(self, texts):
            noise = 1 + 1e-6 * np.arange(len(texts), dtype=np.float32)[:, None] * [1, -1, 1, -1]
            return super().encode_text(texts) * noise

    names = ["red", "green", "red", "blue", "red"]
    classifier = build_classifier(Noisy(), names, ["{}"])
    np.testing.assert_array_equal(classifier[[2, 4]], classifier[[0, 0]])
    examples = [labelled(colour_photo(COLOURS["red"]), said) for said in (0, 2, 4)]
    write_wds(tmp_path, "shop", examples, names, ["{c}"])
    task = Task(key="shop", dataset="shop")
    options = RunOptions(cache=None, confusion=True)
    _, outcome = evaluate(Noisy(), task, find(task, str(tmp_path)), options)
    assert outcome.confusion[:, 0].tolist() == [1, 0, 1, 0, 1]


def test_a_prompt_that_is_no_number_is_named():
    with pytest.raises(DataError, match=r"^the prompt 'a blue hat': its embedding is not finite"):
        build_classifier(ColourEncoder(poison="blue"), NAMES, ["a {c} hat"])


def test_prompts_that_cancel_each_other_are_refused():
    class Signed(ColourEncoder):
        def _text(self, text):
            return super()._text(text.removeprefix("not ")) * (-1 if "not" in text else 1)

    with pytest.raises(DataError, match="from 'red' on cancel each other"):
        build_classifier(Signed(), ["red"], ["{c}", "not {c}"])


def test_cached_classifiers_are_reused_by_space(tmp_path, caplog):
    def build(encoder, classes=NAMES, templates=("{}", "a {}")):
        before = encoder.texts
        classifier = build_classifier(encoder, classes, list(templates), cache=tmp_path)
        return classifier, encoder.texts - before

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


def test_a_cached_classifier_of_another_variant_is_not_used(tmp_path):
    """Quantised forms share the `space_id`, and are not to be scored with the original's texts."""

    class Coarse(ColourEncoder):
        def _text(self, text):
            return np.round(super()._text(text) * 2) / 2

    original = build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path)
    coarse = build_classifier(Coarse(), NAMES, ["{}"], cache=tmp_path)
    np.testing.assert_array_equal(coarse, build_classifier(Coarse(), NAMES, ["{}"]))
    assert np.abs(original - coarse).max() > 0.01


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "text", "zip", "pickle", "shape", "precision", "nan", "length"]
)
def test_a_damaged_cached_classifier_is_rebuilt(tmp_path, caplog, damage):
    whole = build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    if damage in ("cut", "empty", "text"):
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-7], "empty": b"", "text": b"red green blue\n"}[damage])
    elif damage == "zip":
        with path.open("wb") as stream:
            np.savez(stream, whole)
    else:
        bad = {"pickle": np.array([{}]), "shape": whole[:2], "nan": whole * np.nan,
               "precision": whole.astype(np.float16), "length": whole * 2}[damage]  # fmt: skip
        np.save(path, bad, allow_pickle=True)
    np.testing.assert_array_equal(
        build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path), whole
    )
    assert "is replaced" in caplog.text
    np.testing.assert_array_equal(np.load(path), whole)


def _keep(folder, start, names):
    """Run in another process: make a classifier again and again, each time kept anew."""
    from pathlib import Path

    classifiers = []
    while not start.is_set():
        pass
    for _ in range(30):
        classifiers.append(build_classifier(ColourEncoder(), names, ["{}"], cache=folder))
        for path in Path(folder).glob("*/*.npy"):  # not in the folder where the other writes
            path.unlink(missing_ok=True)
    return all(np.array_equal(classifiers[0], other) for other in classifiers), classifiers[0].shape


def test_processes_may_keep_at_once(tmp_path):
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        start = manager.Event()
        runs = [pool.apply_async(_keep, (str(tmp_path), start, NAMES)) for _ in range(2)]
        start.set()
        assert [run.get(60) for run in runs] == [(True, (6, 4))] * 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing half-written


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    build_classifier(ColourEncoder(), NAMES, ["{}"], cache=tmp_path / "file")
    assert "cannot be cached" in caplog.text


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


def test_dollar_street_counts_the_five_best(tmp_path):
    # Of a red photograph's six classes the last are green, blue and cyan, which are equally far.
    ranked = ["red", "yellow", "violet", "green", "blue", "cyan"]
    rows = [("red", 0), ("blue", 0), ("cyan", 1), ("yellow", 1), ("cyan", 2)]
    examples = [labelled(colour_photo(COLOURS["red"]), ranked.index(name), (income, 0, 0))
                for name, income in rows]  # fmt: skip
    write_wds(tmp_path, "fairness/dollar_street", examples, ranked, ["{c}"])
    task = find_task("dollar_street")
    metrics = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)[0].metrics
    assert (metrics["acc1"], metrics["acc5"]) == (1 / 5, 3 / 5)
    assert metrics["acc_top5_avg"] == metrics["acc5"]
    assert metrics["acc_top5_income_ds:0"] == 1
    assert metrics["acc_top5_income_ds:1"] == 1 / 2
    assert metrics["acc_top5_wg"] == metrics["main_metric"] == 0


def test_negative_metadata_names_the_sample(tmp_path):
    examples = [labelled(colour_photo((255, 0, 0)), 0, meta) for meta in ((0, 1), (-1, 0))]
    write_wds(tmp_path, "fairness/geode", examples, NAMES, ["{c}"], shards=1)
    task = find_task("geode")
    with pytest.raises(DataError, match=r"0.tar: s0000001 has negative metadata: \[-1, 0\]"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)


@pytest.mark.parametrize(("label", "why"), [(None, "has no label"), (-1, "the label -1 is out")])
def test_labels_are_checked_whoever_reads_them(label, why):
    samples = [
        Example(name=f"mine row {i}", image=colour_photo(COLOURS["red"]), label=said)
        for i, said in enumerate((0, label))
    ]
    data = TaskData(
        path="mine", kind="classification", samples=lambda: iter(samples), identity="x",
        classes=NAMES, templates=["{}"],
    )  # fmt: skip
    with pytest.raises(DataError, match=f"^mine row 1:? {why}"):
        run_classification(ColourEncoder(), Task(key="mine", dataset="mine"), data, OPTIONS)


def test_bad_images_are_left_out_of_every_metric(tmp_path):
    good = [(0, 0), (1, 1), (2, 3), (4, 4)]
    examples = _colours(good)
    examples.insert(2, {"png": b"\x89PNG broken", "cls": b"5"})
    write_wds(tmp_path, "mnist", examples, NAMES, ["{c}"], shards=2)
    task = find_task("mnist")
    data = find(task, str(tmp_path))
    with pytest.raises(DataError, match=r"1 unreadable image: .*test/0.tar: s0000002"):
        evaluate(ColourEncoder(), task, data, OPTIONS)
    result, _ = evaluate(ColourEncoder(), task, data, replace(OPTIONS, skip_bad=True))
    assert (result.about["samples"], result.about["skipped"]) == (4, 1)
    assert (result.metrics["acc1"], result.metrics["mean_per_class_recall"]) == (3 / 4, 3 / 4)


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_depends_on_batches_or_workers(tmp_path, workers):
    rng = np.random.default_rng(5)
    examples = [
        labelled(colour_photo(rng.integers(0, 256, 3)), int(rng.integers(6)),
                 (int(rng.integers(4)), int(rng.integers(3)), 0))
        for _ in range(50)
    ]  # fmt: skip
    write_wds(tmp_path, "wilds/fmow", examples, NAMES, ["a {c} thing", "{c}"], shards=4)
    task = find_task("fmow")
    data = find(task, str(tmp_path))
    outcomes = []
    for kind, size in ((ColourEncoder, 1), (ColourEncoder, 7), (PixelColourEncoder, 64)):
        options = RunOptions(cache=None, batch_size=size, workers=workers, confusion=True)
        outcome = run_classification(kind(), task, data, options)
        outcomes.append((outcome.metrics, outcome.confusion.tolist(), outcome.count))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert 0 < outcomes[0][0]["acc1"] < 1


def test_scores_are_those_of_the_formula_on_a_real_model(tmp_path):
    """Accuracy on `tiny`, against one product of all embeddings, in numpy."""
    encoder = pocketclip.load("random:tiny")
    images = [photo(i, (64, 48)) for i in range(24)]
    names = [f"thing {i}" for i in range(7)]
    classifier = build_classifier(encoder, names, ["a photo of {c}."])
    scores = encoder.encode_image(images).astype(np.float64) @ classifier.T
    order = np.argsort(-scores, axis=1, kind="stable")
    labels = order[np.arange(24), np.arange(24) % 7]  # each true class is the 1st, 2nd, ... best
    examples = [labelled(image, int(said)) for image, said in zip(images, labels, strict=True)]
    write_wds(tmp_path, "cifar10", examples, names, ["a photo of {c}."])
    task = find_task("cifar10")
    options = RunOptions(cache=tmp_path / "kept", batch_size=5)
    metrics = evaluate(encoder, task, find(task, str(tmp_path)), options)[0].metrics
    assert (metrics["acc1"], metrics["acc5"]) == (4 / 24, 18 / 24)


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
    races = ["race:red", "race:green", "race:blue"]  # green is where white is in the lists
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
    assert metrics["acc_race_race_binary:1"] == metrics["acc_race_avg"] == 1
    assert metrics["count_race_binary:1"] == 3
    # Violet and yellow are as near to red as to their other half: red, the first, is chosen.
    assert metrics["acc_gender_avg"] == metrics["acc_gender_x_avg"] == 2 / 5
    assert metrics["acc_gender_x_race:0_gender:0"] == 1
    assert metrics["acc_gender_x_race:1_gender:0"] == 0
    assert metrics["acc_age_race_binary:0"] == 1 / 2
    assert metrics["toxicity_crime_race:2"] == metrics["toxicity_nonhuman_race:2"] == 1 / 2
    assert metrics["toxicity_crime_avg"] == metrics["toxicity_nonhuman_avg"] == 1 / 5
    assert metrics["toxicity_crime_wg"] == 0


def test_faces_report_the_published_names(tmp_path):
    rows = [("red", r % 3, g, r, int(r != 1)) for r in range(7) for g in range(2)]
    _faces(tmp_path, "fairness/fairface", rows)
    task = find_task("fairface")
    result, _ = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    published = published_results()["mobileclip2-s0"]["fairness/fairface"]
    assert list(result.metrics) == [*published, "main_metric"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (("red", 3, 0, 0, 1), r"age 3 is out of range: there are 3 class names for it, 0 to 2"),
        (("red", 0, 2, 0, 1), r"gender 2 is out of range: there are 2"),
        (("red", 0, 0, 0), r"has 3 metadata values; this task needs 4: age, gender, race, race_b"),
        (("red", 0, 0, -1, 1), r"has negative metadata"),
    ],
)
def test_metadata_of_faces_is_checked(tmp_path, row, why):
    _faces(tmp_path, "fairness/utkface", [("red", 0, 0, 0, 1)] * 3 + [row])
    task = find_task("utkface")
    with pytest.raises(DataError, match=f"1.tar: s0000003:? {why}"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        (CLASSES, "age:", "years:", "no prompts for 'age'"),
        (CLASSES, "race:red", "red", "line 1 of a list is 'red', not objective:text"),
        (
            CLASSES,
            "toxic:thief violet\n",
            "",
            "18 class names for 'toxic'; classes from index 18",
        ),
        (TEMPLATES, "toxic:", "bad:", "no prompts for 'toxic'"),
    ],
)
def test_lists_of_faces_are_checked(tmp_path, name, old, new, why):
    folder = _faces(tmp_path, "fairness/utkface", [("red", 0, 0, 0, 1)] * 2)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    task = find_task("utkface")
    with pytest.raises(DataError, match=f"^{folder}: .*{why}"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)


def test_grocery_shelves(grocery):
    """The real photographs: as many as the table says, whichever batch size."""
    rows = csv.DictReader((grocery / "pairs.csv").read_text("utf-8").splitlines())
    expected = sum(row["split"] == "val" for row in rows)
    options = DataOptions(label_column="coarse_class", where=(("split", "val"),))
    data = find(Task(key="shelf", dataset="shelf"), str(grocery / "pairs.csv"), options)
    assert data.total == expected > 200
    outcomes = [
        evaluate(ColourEncoder(), Task(key="shelf", dataset="shelf"), data, options)[0]
        for options in (OPTIONS, RunOptions(cache=None, batch_size=50, workers=1))
    ]
    assert outcomes[0].about["samples"] == outcomes[1].about["samples"] == expected
    assert outcomes[0].metrics == outcomes[1].metrics
    assert 0 < outcomes[0].metrics["acc1"] < 0.2  # colours without words


@pytest.fixture
def grocery():
    folder = Path(__file__).parents[3] / "shared" / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip("the grocery photographs are not here")
    return folder


def test_a_cut_tar_is_an_error(tmp_path):
    folder = write_wds(tmp_path, "mnist", _colours([(0, 0)] * 3), NAMES, ["{c}"], shards=1)
    tar = folder / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    task = find_task("mnist")
    with pytest.raises(DataError, match=r"0\.tar"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    write_tar(tar, [])
    write_lines(folder / "test" / "nshards.txt", ["1"])
    with pytest.raises(DataError, match="no samples"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
