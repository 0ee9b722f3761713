"""The quickstart on a user's own pairs: one run without a teacher, the rest in parts."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pocketclip import checkpoint
from pocketclip.errors import ConfigError, DataError
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.progress import ProgressReporter
from pocketclip.quickstart import budget, pairs_steps
from pocketclip.quickstart.advice import data_lines, expectation, teacher_lines
from pocketclip.quickstart.collection import jpeg, read_rows, write_table
from pocketclip.quickstart.listing import (
    Row,
    list_pairs,
    split_parts,
    unnamed_labels,
    with_labels,
)
from pocketclip.quickstart.own_pairs import CopySettings, copy_pairs
from pocketclip.quickstart.pipeline import minutes_of, next_commands, quickstart_pairs
from pocketclip.quickstart.scenes import draw_scene
from pocketclip.quickstart.students import checkpoints, choice_lines
from pocketclip.quickstart.text_variants import COLUMNS, variants
from pocketclip.teacher_score import TeacherScore, is_clearly_better
from pocketclip.train.recipe import load_recipe
from tests.quickstart.test_quickstart import page_of

QUICK = {"minutes": 0.2, "workers": 0}


@pytest.fixture(autouse=True)
def rate(monkeypatch):
    """A slow machine, so that 0.2 minutes are 12 steps; nothing is measured."""
    monkeypatch.setattr(pairs_steps, "measure_rate", lambda _recipe, _seconds: 10.0)


def shop(folder, *, caption="picture {index}: {name}", count=70):
    """A user's table: good pairs, a file that is missing, one that is no image, no caption."""

    def rows():
        for index in range(count):
            thing = draw_scene("test", seed=9, index=index).things[0]
            text = caption.format(index=index, name=thing.name, shape=thing.shape)
            yield (
                jpeg("test", seed=9, index=index),
                {"caption": text, "colour": thing.colour, "number": str(index % 7)},
            )

    path = folder / "shop" / "mine.csv"
    write_table(path, rows())
    (path.parent / "broken.jpg").write_bytes(b"no image at all" * 10)
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerows(
            [["gone.jpg", "it is gone", "red", "1"], ["broken.jpg", "broken", "red", "1"],
             ["images/00000000.jpg", "", "red", "1"]]
        )  # fmt: skip
    return path


def copied(folder, table, label_column=None, **settings):
    options = with_labels(PairOptions(), label_column)
    shards = open_pairs(str(table), options)
    return copy_pairs(
        folder, shards, list_pairs(shards, label_column), options,
        CopySettings(label_column=label_column, **settings), lambda _done, _total: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_steps, "measure_rate", lambda _recipe, _seconds: 10.0)
        return out, quickstart_pairs(out, [str(table)], label_column="colour", **QUICK)


@pytest.mark.slow
def test_without_a_teacher_all_time_goes_to_the_plain_student(finished):
    out, result = finished
    pairs = result["pairs"]
    assert pairs["train"] + pairs["validation"] + pairs["test"] == 70
    assert pairs["unreadable"] == 3
    assert any("gone.jpg" in reason for reason in pairs["reasons"])
    assert list(result["arms"]) == ["plain"]
    assert "teachers" not in result
    assert not (out / "reinforced").exists()
    assert set(result["arms"]["plain"]["metrics"]) == {"labels", "retrieval"}
    assert result["plan"]["plain"] == 12
    assert result["plan"] == json.loads((out / "plan.json").read_text())


def test_the_model_is_the_best_on_the_validation_set(finished):
    out, result = finished
    arm, choice = result["arms"]["plain"], result["choice"]
    scores = {point["samples"]: point["score"] for point in arm["curve"]}
    assert len(scores) == 6
    assert choice["scores"] == {"plain": max(scores.values())}
    assert scores[arm["chosen_step"] * 16] == arm["validation"]
    chosen = checkpoint.load(out / "model")
    assert chosen.space_id == checkpoint.load(out / "runs" / "plain" / "model").space_id
    assert (out / "data/tests/validation-labels/test.csv").is_file()
    recipe = (out / "runs" / "plain" / "recipe.yaml").read_text()
    assert "validation-labels" in recipe


def test_no_photograph_is_in_twosplit_parts(finished):
    out, _ = finished
    data = out / "data"
    parts = [
        {(path.parent / row["image"]).resolve() for row in read_rows(path)}
        for path in (
            data / "pairs.csv",
            data / "tests/validation-labels/test.csv",
            data / "tests/labels/test.csv",
        )
    ]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 70


def test_the_page_and_the_lines_say_what_was_chosen(finished):
    out, result = finished
    page, text = page_of(out)
    (line, *_) = choice_lines(result)
    assert f"the best on the {result['pairs']['validation']} validation pairs" in line
    assert line in text
    assert f"{100 * result['arms']['plain']['metrics']['labels']['acc1']:.1f}" in text
    assert len(page.images) >= 16
    for command in next_commands(out, result):
        assert command.replace("&", "&amp;") in text


def test_the_lines_say_what_is_chance_and_what_still_rises():
    choice = {
        "task": "labels", "samples": 100, "chance": 0.1,
        "scores": {"plain": 0.5, "plain-more": 0.52},
        "chosen": "plain-more", "step": 7, "standard_error": 0.07, "rising": True,
    }  # fmt: skip
    chosen, chance, rising = choice_lines({"choice": choice})
    assert "(plain 50.0 %, plain-more 52.0 %)" in chosen
    assert "within chance" in chance
    assert "still rose" in rising
    clear = choice | {"scores": {"plain": 0.2, "plain-more": 0.6}, "rising": False}
    assert len(choice_lines({"choice": clear})) == 1
    guessed = choice | {"scores": {"plain": 0.12}, "chosen": "plain", "rising": False}
    assert "hardly better than guessing (10.0 %)" in choice_lines({"choice": guessed})[1]


def test_commands_begin_from_a_published_model_with_the_users_arguments():
    options = PairOptions(image_column="file", caption_columns=("title",), where={"split": "a b"})
    first, *commands = expectation(["my shop.csv"], options, "kind")
    assert "from nothing" in first
    finetune, fit = (shlex.split(command) for command in commands)
    assert finetune == [
        "pocketclip", "finetune", "mobileclip2-s0", "--data", "my shop.csv",
        "--image-column", "file", "--label-column", "kind", "--where", "split=a b",
        "--out", "finetuned",
    ]  # fmt: skip
    assert fit[:2] == ["pocketclip", "fit"]
    assert fit[-2:] == ["--out", "labels.json"]
    (captioned,) = expectation(["a.csv"], PairOptions(caption_columns=("title",)), None)[1:]
    assert "--caption-column title" in captioned


@pytest.mark.slow
def test_an_interrupted_one_goes_on_to_the_same_model(finished, table, tmp_path, monkeypatch):
    out, result = finished

    class Stop(ProgressReporter):
        def progress(self, done, total, note=""):  # noqa: ARG002
            if "steps" in note and done == 5:
                raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        quickstart_pairs(again, [str(table)], label_column="colour", reporter=Stop(), **QUICK)
    # A machine that is faster now: what was decided stays.
    monkeypatch.setattr(pairs_steps, "measure_rate", lambda _recipe, _seconds: 1e6)
    resumed = quickstart_pairs(again, [str(table)], label_column="colour", **QUICK)
    assert resumed["arms"] == result["arms"]
    one, other = ((f / "model" / "model.safetensors").read_bytes() for f in (out, again))
    assert one == other


def scored(hits, chance):
    value = sum(hits) / len(hits)
    return TeacherScore(
        name="t", metric="zero_shot_accuracy", value=value, chance=chance, n=len(hits), texts=28,
        standard_error=0.02, hits=np.array(hits, float),
    )  # fmt: skip


def test_a_teacher_that_knows_nothing_is_left_out_even_if_the_student_knows_less():
    student = scored([0] * 188 + [1] * 12, 0.06)
    useless = scored([1] * 28 + [0] * 172, 0.115)
    good = scored([1] * 85 + [0] * 115, 0.031)
    assert is_clearly_better(useless, student)
    assert not pairs_steps._is_worth_it(useless, student)
    assert pairs_steps._is_worth_it(good, student)


def test_teachers_that_know_less_together_are_not_used_together(monkeypatch):
    monkeypatch.setattr(pairs_steps, "load_teacher", str)
    checked = [
        {"spec": name, "better": better, "value": value, "line": name, "above_chance": True}
        for name, better, value in (("a", True, 0.4), ("b", True, 0.6), ("c", False, 0.3))
    ]
    for together, used in ((0.5, ["b"]), (0.7, ["a", "b"])):
        ensemble = scored([1] * round(10 * together) + [0] * round(10 - 10 * together), 0.1)
        monkeypatch.setattr(pairs_steps, "check_teachers", lambda *_, e=ensemble, **__: ([], e))
        found, line = pairs_steps._use(None, ("{}",), checked)
        assert found == used
        facts = {"checked": checked, "used": found, "ensemble": line}
        said = teacher_lines({"teachers": facts})
        assert len(said) == 4
        assert ("together the teachers know less" in said[0]) is (used == ["b"])
        assert "not clearly better" in said[2]
    assert pairs_steps._use(None, ("{}",), checked[2:]) == ([], None)


def test_scoring_takes_at_most_a_part_of_the_time():
    assert checkpoints(61_568, 311) == 8
    assert checkpoints(1_536, 266) == 3
    assert checkpoints(2_400, 266) == 6
    facts = {"train": 2109, "validation": 266}
    speed = {"batch_size": 64, "samples_per_second": 36.0}
    assert pairs_steps._steps(facts, speed, 52) == 52 * 36 * 3 // 4 // 64


@pytest.mark.slow
def test_a_teacher_that_knows_no_more_is_left_out(table, tmp_path):
    result = quickstart_pairs(
        tmp_path / "out", [str(table)], label_column="colour", teachers=["random:tiny"], **QUICK
    )
    (checked,) = result["teachers"]["checked"]
    assert not checked["better"]
    assert list(result["arms"]) == ["plain", "plain-more"]
    assert "reinforced" not in result
    # The second run began from the first one's model, which was scored again: never worse.
    scores = result["choice"]["scores"]
    assert scores["plain-more"] >= scores["plain"]
    _, text = page_of(tmp_path / "out")
    assert "so it was left out" in text


@pytest.mark.slow
def test_a_teacher_that_knows_more_is_used(tmp_path):
    from importlib import resources

    table = shop(tmp_path, caption="a drawing of a {name}", count=240)
    shipped = resources.files("pocketclip") / "data" / "quickstart" / "teacher-a"
    result = quickstart_pairs(tmp_path / "out", [str(table)], teachers=[str(shipped)], **QUICK)
    assert result["teachers"]["checked"][0]["better"]
    assert list(result["arms"]) == ["plain", "reinforced"]
    assert result["reinforced"]["teachers"] == ["teacher-a"]
    scores = result["choice"]["scores"]
    assert scores["reinforced"] >= scores["plain"]
    assert result["pairs"]["tasks"] == ["texts"]


def test_texts_that_repeat_are_classes(tmp_path):
    table = shop(tmp_path, caption="a {shape}")
    facts = copied(tmp_path / "data", table)
    assert facts["tasks"] == ["texts"]
    names = (tmp_path / "data/tests/texts/classnames.txt").read_text().splitlines()
    assert len(names) == len(set(names)) == 12
    assert facts["texts"] <= 12


def test_photographs_are_not_mirrored_where_texts_name_sides(tmp_path):
    for name, caption, sides in (("a", "a {name} to the left", True), ("b", "a {shape}", False)):
        facts = copied(tmp_path / name / "data", shop(tmp_path / name, caption=caption, count=41))
        assert facts["sides"] is sides
        assert ("random_horizontal_flip" in pairs_steps._views(facts, 64)) is not sides


def test_many_rare_labels_are_not_all_held_out():
    rows = [Row(f"{i}.jpg", "text", f"label {i % 300}") for i in range(600)]
    parts = Counter(split_parts(rows).values())
    assert parts == {"train": 480, "validation": 60, "test": 60}
    common = [Row(f"{i}.jpg", "text", f"label {i % 3}") for i in range(20_000)]
    assert Counter(split_parts(common).values())["test"] == pytest.approx(1000, abs=3)


def test_rows_of_one_photograph_stay_together(tmp_path):
    path = tmp_path / "mine.csv"
    images = [(jpeg("test", seed=9, index=i), {"caption": f"number {i}"}) for i in range(40)]
    write_table(path, images)
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerows([f"images/{i:08d}.jpg", f"again {i}"] for i in range(40))
    facts = copied(tmp_path / "data", path)
    assert facts["train"] + facts["validation"] + facts["test"] == 80
    assert facts["validation"] == facts["test"] == 12
    learnt = {row["caption"].split()[1] for row in read_rows(tmp_path / "data/pairs.csv")}
    tested = read_rows(tmp_path / "data/tests/retrieval/test.csv")
    assert not learnt & {row["caption"].split()[1] for row in tested}


def test_copies_of_held_out_photographs_are_not_learnt_from(tmp_path):
    path = tmp_path / "mine.csv"
    images = [(jpeg("test", seed=9, index=i % 50), {"caption": f"number {i}"}) for i in range(100)]
    write_table(path, images)
    facts = copied(tmp_path / "data", path)
    assert facts["copies"] > 0
    assert sum(facts[name] for name in ("train", "validation", "test", "copies")) == 100
    data = tmp_path / "data"
    parts = [
        {(path.parent / row["image"]).read_bytes() for row in read_rows(path)}
        for path in (
            data / "pairs.csv",
            data / "tests/validation-retrieval/test.csv",
            data / "tests/retrieval/test.csv",
        )
    ]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 50
    assert len(list((data / "images").iterdir())) == 100 - facts["copies"]


def test_a_photograph_with_several_labels_is_not_scored(tmp_path):
    rows = [["image", "caption", "kind"]]
    rows += [[f"{i}.jpg", f"number {i}", "shoe" if i % 2 else "hat"] for i in range(60)]
    rows += [["0.jpg", "again", "shoe"], ["1.jpg", "again", ""]]
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    listed = list_pairs(open_pairs(str(path), with_labels(PairOptions(), "kind")), "kind")
    assert listed.several_labels == 1
    labels = {(row.name, row.caption): row.label for row in listed.rows}
    assert labels["0.jpg", "number 0"] == labels["0.jpg", "again"] == ""
    assert labels["1.jpg", "again"] == "shoe"
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerows([f"{i}.jpg", "again", "other"] for i in range(60))
    with pytest.raises(DataError, match="60 photographs of 60 are listed with different labels"):
        list_pairs(open_pairs(str(path), with_labels(PairOptions(), "kind")), "kind")


def test_one_text_for_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="have the same text, 'a picture'"):
        list_pairs(open_pairs(str(one_text(tmp_path))), None)


def one_text(folder):
    path = folder / "mine.csv"
    path.write_text("image,caption\n" + "".join(f"{i}.jpg,a picture\n" for i in range(50)))
    return path


def test_labels_that_no_text_names_are_said():
    rows = [Row(f"{i}.jpg", f"a frog number {i}", "animals") for i in range(30)]
    rows += [Row(f"p{i}.jpg", f"a red plant {i}", "red plants") for i in range(30)]
    assert unnamed_labels(rows) == ["animals"]
    facts = {
        "unreadable": 2, "reasons": ["9: no image"], "left_out": 0, "copies": 1,
        "several_labels": 0, "unlabelled": 0, "unnamed": ["animals"], "labels": 2,
    }  # fmt: skip
    lines = data_lines({"pairs": facts, "settings": {"label_column": "kind"}})
    assert lines[:2] == [
        "2 pairs could not be used; the first: 9: no image.",
        "1 pair left out: copies, under other names, of held-out photographs.",
    ]
    assert lines[2].startswith(
        "The texts hardly ever name 1 of the 2 labels ('animals'): a student"
    )
    assert data_lines({"settings": {}}) == []


def test_large_photographs_are_stored_small_and_upright(tmp_path):
    path = tmp_path / "mine.csv"
    turned = Image.Exif()
    turned[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (1200, 900), "red").save(out, "jpeg", exif=turned)
    rows = [(jpeg("test", seed=9, index=i), {"caption": f"number {i}"}) for i in range(45)]
    write_table(path, [*rows, (out.getvalue(), {"caption": "large"})])
    facts = copied(tmp_path / "data", path)
    assert facts["unreadable"] == 0
    sizes = {open_image(file).size for file in (tmp_path / "data/images").iterdir()}
    assert sizes == {(96, 96), (128, 171)}


def test_more_pairs_than_the_time_allows(tmp_path):
    table = shop(tmp_path, caption="{name}")
    facts = copied(tmp_path / "data", table, "colour", most=20)
    assert facts["train"] == 20
    others = ("validation", "test", "left_out", "unreadable")
    assert sum(facts[name] for name in others) == 73 - 20
    assert copied(tmp_path / "data", table, "colour", most=30) == facts  # it is finished


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (lambda _i: "shoe", "only one label, 'shoe'"),
        (lambda i: "Shoe" if i % 2 else "shoe", "differ in case"),
        (lambda i: f"a thing of the kind number {i}", "looks like a column of captions"),
        (lambda i: "shoe" if i > 20 else f"thing {i}", "has a single photograph"),
        (lambda i: str(i % 3), "are numbers: give a column of names"),
    ],
)
def test_labels_that_nothing_can_be_learnt_from(labels, said, tmp_path):
    path = tmp_path / "mine.csv"
    data = jpeg("test", seed=9, index=0)
    write_table(path, [(data, {"caption": f"n {i}", "kind": labels(i)}) for i in range(60)])
    with pytest.raises(DataError, match=said):
        copied(tmp_path / "data", path, "kind")
    assert not list((tmp_path / "data").rglob("*.csv"))


def test_too_few_pairs_are_an_error(tmp_path):
    path = tmp_path / "few.csv"
    rows = [(jpeg("test", seed=9, index=i), {"caption": f"number {i}"}) for i in range(5)]
    write_table(path, rows)
    with pytest.raises(DataError, match="5 pairs could be read, and a quickstart needs 40"):
        quickstart_pairs(tmp_path / "out", [str(path)], **QUICK)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_not_there_are_an_error(table, tmp_path):
    with pytest.raises(DataError, match="there is no column 'brand'"):
        quickstart_pairs(tmp_path / "out", [str(table)], label_column="brand", **QUICK)
    assert not (tmp_path / "out").exists()


def test_minutes_are_checked_and_the_old_scale_becomes_minutes(table, tmp_path):
    with pytest.raises(ConfigError, match=r"--minutes is 0.1; it must be from 0.2 to 600"):
        quickstart_pairs(tmp_path / "out", [str(table)], minutes=0.1)
    assert (minutes_of(1), minutes_of(0.5), minutes_of(0.01), minutes_of(100)) == (10, 5, 0.2, 600)
    with (
        pytest.warns(DeprecationWarning, match="give minutes=5"),
        pytest.raises(DataError, match="no column 'brand'"),
    ):
        quickstart_pairs(tmp_path / "out", [str(table)], scale=0.5, label_column="brand")


def test_steps_fill_the_time():
    assert budget.steps_within(100, 64, 32) == 200
    assert budget.steps_within(100, 64, 32, scored=640) == 190
    assert budget.steps_within(0.1, 64, 32) == 12
    assert budget.Clock(10).left() == pytest.approx(574, abs=1)


def test_decisions_are_made_once(tmp_path):
    assert budget.Decisions(tmp_path)("steps", lambda: 7) == 7
    assert budget.Decisions(tmp_path)("steps", lambda: 8) == 7
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        budget.Decisions(tmp_path)


def test_the_rate_is_measured_on_the_real_training(table, tmp_path):
    copied(tmp_path / "data", table)
    recipe = load_recipe(
        "scenes-tiny",
        {
            "data.source": str(tmp_path / "data" / "pairs.csv"), "data.reinforced": False,
            "data.captions": "truth", "data.image_column": "image",
            "data.caption_columns": ["caption"], "loss.weights": [1.0, 0.0], "data.workers": 0,
            "batch_size": 16,
        },
    )  # fmt: skip
    before = set(tmp_path.iterdir())
    assert 1 < budget.measure_rate(recipe, 0.01) < 100_000
    assert set(tmp_path.iterdir()) == before


def test_variants_of_a_text():
    made = variants("Arla Standard Milk", "shelf/1.jpg")
    assert tuple(made) == COLUMNS
    assert made["caption"] == "Arla Standard Milk"
    assert made["prompt"] in {f"a photo of {a}Arla Standard Milk." for a in ("", "a ")}
    assert made == variants("Arla Standard Milk", "shelf/1.jpg")
    parts = {variants("Arla Standard Milk", str(i))["part"] for i in range(60)}
    assert {"Milk", "Arla Milk", "Arla Standard Milk"} <= parts
    assert "" not in parts
    parts = {variants("A walnut on the table.", str(i))["part"] for i in range(60)}
    assert {"walnut", "A walnut"} <= parts
    assert not {"A", "on", "the", "A on the"} & parts
    assert variants("the", "b")["part"] == "the"
    assert variants("a picture of two cats", "b")["prompt"] == "a picture of two cats"
    assert variants("the red door", "b")["prompt"] == "a photo of the red door."
    long = " ".join(f"w{i}" for i in range(30))
    assert 15 < len(variants(long, "b")["part"].split()) < 30
