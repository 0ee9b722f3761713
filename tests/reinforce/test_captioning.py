"""Captions alone: a row per image, resumable, and readable as pairs."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pocketclip import shards, storage, zoo
from pocketclip.errors import ConfigError, DataError, StorageError
from pocketclip.nn.build import random_model
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import caption_table, captioning, coca_captioner
from pocketclip.reinforce.captioners import load_captioner
from pocketclip.reinforce.captioning import caption
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.job import run
from pocketclip.reinforce.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("loaded_once")
MODEL = "fine=random:coca-tiny"
SAMPLING = {"max_length": 7}
FIXED = {"precision": "float32", "device": "cpu"}
_loaded = {}


@pytest.fixture(autouse=True)
def captioner_loaded_once(monkeypatch):
    def load(spec, **options):
        name = repr((spec, options))
        if name not in _loaded:
            _loaded[name] = load_captioner(spec, **options)
        return _loaded[name]

    monkeypatch.setattr(captioning, "load_captioner", load)


def test_without_a_length_a_coca_uses_its_context_in_caption_and_in_reinforce(monkeypatch):
    sampling = load_captioner("random:coca-tiny", **FIXED).sampling
    assert sampling.max_length == zoo.ZOO["coca-tiny"].config.text.context_length + 1 == 77
    long = random_model("coca-tiny", seed=0, **{"text.context_length": 127})
    monkeypatch.setattr(coca_captioner, "load_model", lambda *_, **__: long)
    engine = Engine(load_recipe(captioners=[MODEL], **FIXED))
    assert engine.facts["captioners"][0]["sampling"]["max_length"] == 128
    assert load_captioner(MODEL, **FIXED).sampling == engine.captioners[0].sampling
    with pytest.raises(ConfigError, match="min_length is 0 or more, below max_length, not 128"):
        load_captioner(MODEL, sampling={"min_length": 128}, **FIXED)


@pytest.fixture
def photos(table):
    folder = table(5).parent
    (folder / "pairs.csv").unlink()
    (folder / "sub").mkdir()
    (folder / "0.jpg").rename(folder / "sub" / "a.b.jpg")
    return folder


def write(source, out=None, **changes):
    options = {"sampling": SAMPLING, "captions": 2, "batch_size": 2, **FIXED}
    return caption(source, MODEL, out=out, **{**options, **changes})


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_photographs(photos):
    (photos / "@eaDir").mkdir()
    shutil.copy(photos / "1.jpg", photos / "@eaDir" / "x.jpg")
    shutil.copy(photos / "1.jpg", photos / "1.png")
    (photos / "3.jpg").write_bytes(b"no image")
    seen, progress, started = [], [], []
    report = write(
        photos, on_row=seen.append, on_progress=progress.append,
        on_start=lambda *facts: started.append(facts),
    )  # fmt: skip
    assert report.rows == seen
    assert [row["uid"] for row in seen] == ["1", "1_png", "2", "4", "sub_a_b"]
    assert seen[-1]["path"] == str(photos / "sub" / "a.b.jpg")
    assert all(len(row["captions"]) == 2 for row in seen)
    assert [(bad.uid, bad.reason[:12]) for bad in report.bad] == [
        (str(photos / "3.jpg"), "not an image")
    ]
    assert (started[0][0], sum(progress)) == (6, 6)
    assert "1 hidden entry" in started[0][1][0]
    # One photograph: the same captions, as its uid and seed are the same.
    assert write(photos / "2.jpg", batch_size=16).rows[0]["captions"] == seen[2]["captions"]
    assert write(photos / "2.jpg", seed=1).rows[0]["captions"] != seen[2]["captions"]
    assert write(photos / "gone.jpg").bad[0].reason.startswith("no such file")


@pytest.mark.parametrize("suffix", ["jsonl", pytest.param("parquet", marks=pytest.mark.slow)])
def test_pairs_are_captioned_as_reinforce_does_it_and_teachers_come_later(table, tmp_path, suffix):
    shared = {**FIXED, "dtype": "float32", "batch_size": 2}
    teachers = {
        "teachers": ["random:tiny:0"],
        "augmentations": 1,
        "image_augmentation": {"random_resized_crop": {"size": 64}},
    }
    source = str(table(3))
    one, out = tmp_path / "one", tmp_path / "two"
    recipe = load_recipe(captioners=[MODEL], captions=2, sampling=SAMPLING, **teachers, **shared)
    run(open_pairs(source), recipe, str(one), workers=0)
    path = tmp_path / f"captions.{suffix}"
    report = write(source, path)
    assert (report.column, report.count) == ("syn_text_fine", 3)
    again = PairOptions(uid_column="uid", captions_from=("syn_text_fine",))
    run(open_pairs(str(path), again), load_recipe(**teachers, **shared), str(out), workers=0)
    for a, b in zip(shards.read(str(one)), shards.read(str(out)), strict=True):
        assert (a.uid, a.image, a.captions, a.param_aug) == (
            b.uid,
            b.image,
            b.captions,
            b.param_aug,
        )
        assert list(a.embeddings) == list(b.embeddings)
        for key, rows in a.embeddings.items():
            np.testing.assert_array_equal(rows, b.embeddings[key])
    # The table says who wrote it, and so does the set.
    first, second = (shards.read_index(str(folder)).captioners for folder in (one, out))
    assert first == second


def test_captions_of_photographs_are_pairs(photos, tmp_path):
    out = photos.parent / "captions.jsonl"
    write(photos, out)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [
        *(f"raw/{i}.jpg" for i in range(1, 5)), "raw/sub/a.b.jpg"
    ]  # fmt: skip
    pairs = [pair for shard in open_pairs(str(out)) for pair in shard]
    assert [pair.captions["text"] for pair in pairs] == [row["captions"] for row in rows]
    assert pairs[-1].image == (photos / "sub" / "a.b.jpg").read_bytes()
    both = open_pairs(str(out), PairOptions(captions_from=("ours=captions",)))
    assert next(iter(both[0])).captions["syn_text_ours"] == rows[0]["captions"]
    other = tmp_path / "other" / "captions.jsonl"
    write(photos, other)
    assert rows_of(other)[0]["path"] == str(photos / "1.jpg")  # not below the table's folder


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(
    "suffix", ["jsonl", *(pytest.param(s, marks=pytest.mark.slow) for s in ("csv", "parquet"))]
)
def test_an_interrupted_run_goes_on(photos, tmp_path, monkeypatch, suffix):
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"part.{suffix}"
    settings = {"captions": 1, "batch_size": 2}
    write(photos, whole, **settings)

    def stop(row):
        if row["uid"] == "3":
            raise Interrupted

    with pytest.raises(Interrupted):
        write(photos, out, on_row=stop, **settings)
    part = captioning.CaptionTable(str(out), json.loads((tmp_path / f"{out.name}.json").read_text())
                                   ["settings"])  # fmt: skip
    assert list(part.earlier) == ["1", "2", "3"]
    drawn = []
    real = captioning.caption_pairs
    monkeypatch.setattr(
        captioning, "caption_pairs",
        lambda one, batch, *rest: drawn.extend(p.uid for p, _ in batch) or real(one, batch, *rest),
    )  # fmt: skip
    progress = []
    report = write(photos, out, on_progress=progress.append, **settings)
    assert (report.count, report.kept, drawn) == (5, 3, ["4", "sub_a_b"])
    assert sum(progress) == 5
    assert out.read_bytes() == whole.read_bytes()
    stamp = out.stat().st_mtime_ns
    assert write(photos, out, **settings).kept == 5
    assert out.stat().st_mtime_ns == stamp


def test_what_changed_in_between(photos, tmp_path):
    out = tmp_path / "c.jsonl"
    write(photos, out)
    before = {row["uid"]: row for row in rows_of(out)}
    (photos / "0.jpg").write_bytes((photos / "1.jpg").read_bytes())  # new
    (photos / "2.jpg").write_bytes((photos / "1.jpg").read_bytes())  # another one
    (photos / "3.jpg").write_bytes(b"broken")
    (photos / "4.jpg").unlink()
    report = write(photos, out)
    assert (report.count, report.kept, report.left_over, len(report.bad)) == (4, 2, 1, 1)
    after = {row["uid"]: row for row in rows_of(out)}
    assert list(after) == ["0", "1", "2", "sub_a_b", "4"]
    assert after["1"] == before["1"]
    assert after["4"] == before["4"]
    assert after["2"]["captions"] != before["2"]["captions"]


def test_a_replaced_photograph_of_equal_size_and_a_touched_one(photos, tmp_path):
    out = tmp_path / "c.jsonl"
    write(photos, out)
    before = {row["uid"]: row for row in rows_of(out)}
    size = max((photos / f"{i}.jpg").stat().st_size for i in (1, 2)) + 8
    for i in (1, 2):
        data = (photos / f"{i}.jpg").read_bytes()
        (photos / f"{i}.jpg").write_bytes(data.ljust(size, b"\0"))
    assert write(photos, out).kept == 3  # other bytes
    one, other = (photos / "1.jpg").read_bytes(), (photos / "2.jpg").read_bytes()
    (photos / "2.jpg").write_bytes(one)
    os.utime(photos / "2.jpg", ns=(10**18, 10**18))
    assert write(photos, out).kept == 4
    after = {row["uid"]: row for row in rows_of(out)}
    assert after["2"]["captions"] != before["2"]["captions"]
    assert other != one
    os.utime(photos / "3.jpg", ns=(10**18, 10**18))  # copied: the same bytes of another time
    assert write(photos, out).kept == 5
    facts = json.loads((tmp_path / "c.jsonl.json").read_text())["images"]["3"]
    assert facts["version"].endswith(str(10**18))


def test_images_that_cannot_be_reached_keep_their_captions(photos, tmp_path):
    out = tmp_path / "c.jsonl"
    source = photos.parent / "images.jsonl"
    source.write_text("".join(f'{{"path": "raw/{i}.jpg"}}\n' for i in range(1, 4)))
    write(str(source), out)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("c.*")}
    photos.rename(tmp_path / "away")
    report = write(str(source), out)
    assert (report.count, len(report.bad)) == (0, 3)
    assert "its captions of an earlier run are kept" in report.bad[0].reason
    assert {path.name: path.read_bytes() for path in tmp_path.glob("c.*")} == before
    (tmp_path / "away").rename(photos)
    (photos / "2.jpg").unlink()
    assert write(str(source), out).kept == 2
    assert out.read_bytes() == before["c.jsonl"]
    for i in (1, 3):
        (photos / f"{i}.jpg").write_bytes(b"broken")
    assert write(str(source), out).count == 0  # nothing was done, nothing is lost
    assert out.read_bytes() == before["c.jsonl"]


def test_a_run_killed_between_the_two_files_leaves_no_old_caption(photos, tmp_path, monkeypatch):
    out = tmp_path / "c.jsonl"
    write(photos, out)
    (photos / "2.jpg").write_bytes((photos / "1.jpg").read_bytes())

    def killed(*_):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(caption_table, "write_rows", killed)
        with pytest.raises(Interrupted):
            write(photos, out)
    report = write(photos, out)
    assert (report.count, report.kept) == (5, 4)
    assert write(photos, out).kept == 5


def test_the_second_image_of_a_uid_is_left_out(photos, tmp_path):
    source = photos.parent / "twice.jsonl"
    names = ["1", *"2222"]
    source.write_text("".join(f'{{"uid": "{i}", "path": "raw/{i}.jpg"}}\n' for i in names))
    options = PairOptions(uid_column="uid")
    report = write(str(source), tmp_path / "c.jsonl", options=options, batch_size=3)
    assert (report.count, len(report.bad)) == (2, 3)
    assert report.bad[0].uid == "2 (again)"
    assert report.bad[0].reason.startswith("duplicate uid")
    assert [row["uid"] for row in rows_of(tmp_path / "c.jsonl")] == ["1", "2"]


def test_other_settings_are_refused(photos, tmp_path):
    out = tmp_path / "c.jsonl"
    write(photos / "1.jpg", out)
    before = out.read_bytes()
    for changes, named in (
        ({"seed": 3, "captions": 1}, r"\(captions, seed changed\)"),
        ({"sampling": {**SAMPLING, "first_sentence": True}}, r"sampling.first_sentence changed"),
        ({"sampling": {**SAMPLING, "top_p": 0.5}}, r"\(captioner.sampling.top_p changed\)"),
        ({"column": "x"}, r"captioner.key, column changed"),
    ):
        with pytest.raises(ConfigError, match=named):
            write(photos / "1.jpg", out, **changes)
    with pytest.raises(ConfigError, match="inputs changed"):
        write(photos, out)
    assert out.read_bytes() == before
    out.write_text('{"uid": "a"}\n')
    with pytest.raises(DataError, match="was changed: a row has no uid or no list"):
        write(photos / "1.jpg", out)
    (tmp_path / "c.jsonl.json").unlink()
    with pytest.raises(ConfigError, match="exists, and no"):
        write(photos / "1.jpg", out)
    with pytest.raises(StorageError, match="hf://datasets/x/y"):  # before any work
        write(photos / "1.jpg", "hf://datasets/x/y/c.jsonl")
    with pytest.raises(ConfigError, match="ends in"):
        write(photos / "1.jpg", tmp_path / "c.txt")
    with pytest.raises(DataError, match="one kind at a time"):
        write([photos, str(out)])


def test_a_cell_of_a_csv_holds_one_caption(photos, tmp_path):
    with pytest.raises(ConfigError, match="holds one caption per image, not 2"):
        write(photos / "1.jpg", tmp_path / "c.csv")
    (tmp_path / "two.jsonl").write_text(
        json.dumps({"path": str(photos / "1.jpg"), "text": ["one", "two"]}) + "\n"
    )
    with pytest.raises(ConfigError, match="00000000 has 2 under text: write"):
        write(str(tmp_path / "two.jsonl"), tmp_path / "d.csv", captions=1)
    assert not list(tmp_path.glob("d.csv*"))
    for column in ("uid", "path", "url"):
        with pytest.raises(ConfigError, match=f"the column {column} says which image it is"):
            write(photos, column=column)
    write(photos, tmp_path / "c.tsv", captions=1)
    with (tmp_path / "c.tsv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [list(row) for row in rows[:1]] == [["uid", "path", "captions"]]
    assert [bool(row["captions"]) for row in rows] == [True] * 5
    pairs = [pair for shard in open_pairs(str(tmp_path / "c.tsv")) for pair in shard]
    assert [pair.captions["text"] for pair in pairs] == [[row["captions"]] for row in rows]


def test_images_within_tars_and_a_captioner_of_ones_own(table, tmp_path, monkeypatch, caplog):
    recipe = load_recipe(captioners=[MODEL], captions=1, sampling=SAMPLING, **FIXED)
    run(open_pairs(str(table(2))), recipe, str(tmp_path / "set"), workers=0)
    (tmp_path / "mine.py").write_text(
        "class C:\n    identity = 'c 1'\n    def caption(self, images, count, seeds):\n"
        "        return [[f'{i.width} wide'] * count for i in images]\n"
    )
    monkeypatch.chdir(tmp_path)
    report = caption(str(tmp_path / "set"), "python:mine:C", captions=2)
    assert report.rows[0] == {
        "uid": "00000000",
        "text": ["photograph number 0"],
        "syn_text_mine-c": ["90 wide", "90 wide"],
    }
    with pytest.raises(ConfigError, match="sampling does not apply"):
        caption(str(tmp_path / "set"), "python:mine:C", sampling=SAMPLING)
    caption(str(tmp_path / "set"), "python:mine:C", out=tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="does not say where the images are: `pocketclip reinforce"):
        open_pairs(str(tmp_path / "c.jsonl"))
    # A damaged index does not end the job that has done its work.
    (tmp_path / "set" / "index.json").write_text("{")
    again = run(open_pairs(str(table(2))), recipe, str(tmp_path / "set"), workers=0)
    assert (again.skipped, again.index.samples) == (1, 2)
    assert "is written anew" in caplog.text
    # Nor do images without any caption need a column of captions.
    (tmp_path / "images.csv").write_text("path\nraw/0.jpg\nraw/1.jpg\n")
    assert write(str(tmp_path / "images.csv")).column == "captions"


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_in_an_object_store(photos):
    for path in sorted(photos.glob("*.jpg")):
        storage.write_bytes(f"s3://bucket/photos/{path.name}", path.read_bytes())
    out = "s3://bucket/c.jsonl"
    assert write("s3://bucket/photos", out).count == 4
    assert write("s3://bucket/photos", out).kept == 4
    rows = [json.loads(line) for line in storage.read_bytes(out).splitlines()]
    assert rows[0]["path"] == "s3://bucket/photos/1.jpg"
    pairs = [pair for shard in open_pairs(out) for pair in shard]
    assert [pair.captions["text"] for pair in pairs] == [row["captions"] for row in rows]
