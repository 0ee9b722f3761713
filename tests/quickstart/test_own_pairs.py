"""The quickstart on a user's own pairs: one run without a teacher, the rest in parts."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections import Counter

import pytest
from PIL import Image

from pocketclip import checkpoint
from pocketclip.errors import ConfigError, DataError
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.progress import ProgressReporter
from pocketclip.quickstart import budget, pairs_steps
from pocketclip.quickstart.advice import expectation
from pocketclip.quickstart.collection import jpeg, read_rows, write_table
from pocketclip.quickstart.own_pairs import (
    CopySettings,
    _parts,
    _Row,
    copy_pairs,
    list_pairs,
    with_labels,
)
from pocketclip.quickstart.pipeline import minutes_of, next_commands, quickstart_pairs
from pocketclip.quickstart.scenes import draw_scene
from pocketclip.quickstart.students import choice_lines
from pocketclip.quickstart.text_variants import COLUMNS, variants
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


def test_no_photograph_is_in_two_parts(finished):
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
    assert "not clearly better, so it was left out" in text


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
    rows = [_Row(f"{i}.jpg", "text", f"label {i % 300}") for i in range(600)]
    parts = Counter(_parts(rows).values())
    assert parts == {"train": 480, "validation": 60, "test": 60}
    common = [_Row(f"{i}.jpg", "text", f"label {i % 3}") for i in range(20_000)]
    assert Counter(_parts(common).values())["test"] == pytest.approx(1000, abs=3)


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
    assert variants("a picture of two cats", "b")["prompt"] == "a picture of two cats"
    assert variants("the red door", "b")["prompt"] == "a photo of the red door."
    long = " ".join(f"w{i}" for i in range(30))
    assert 15 < len(variants(long, "b")["part"].split()) < 30
