from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketclip import shards, storage
from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError, DataError, EmbeddingError, StorageError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import job
from pocketclip.reinforce.check_report import CheckOptions, TeacherCheck
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.job import Limit, run
from pocketclip.reinforce.recipe import load_recipe
from pocketclip.reinforce.workers import WorkersDiedError
from pocketclip.teacher_score import TeacherScore
from tests.cli import inside

pytestmark = pytest.mark.usefixtures("loaded_once")
TEACHERS = ["random:tiny:0", "random:tiny:1"]
CROP = {"random_resized_crop": {"size": 64}, "rand_augment": {"p": 1.0}}


def recipe(**changes):
    facts = {
        "teachers": TEACHERS,
        "augmentations": 2,
        "image_augmentation": CROP,
        "dtype": "float32",
        "precision": "float32",
        "batch_size": 4,
        "sampling": {"max_length": 12},
    }
    return load_recipe(**{**facts, **changes})


def pairs(path, size=4):
    return open_pairs(str(path), PairOptions(shard_size=size))


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def test_samples_hold_what_the_recipe_says(table, tmp_path):
    out = str(tmp_path / "dr")
    what = recipe(captioners=["fine=random:coca-tiny:0"], captions=3)
    summary = run(pairs(table(6)), what, out, workers=0)
    samples = list(shards.read(out))
    assert [sample.uid for sample in samples] == [f"{i:08d}" for i in range(6)]
    assert summary.skipped == 0
    assert [report.samples for report in summary.reports] == [4, 2]
    for i, sample in enumerate(samples):
        assert sample.image == (tmp_path / "raw" / f"{i}.jpg").read_bytes()
        assert sample.captions["text"] == [f"photograph number {i}"]
        written = sample.captions["syn_text_fine"]
        assert sample.embeddings["image_emb"].shape == (2, 128)
        assert sample.embeddings["text_emb"].shape == (1, 128)
        assert sample.embeddings["syn_text_fine_emb"].shape == (len(written), 128)
        assert len(sample.param_aug) == 2
        assert sample.url is None


def test_a_stored_embedding_is_that_of_the_replayed_augmentation(table, tmp_path):
    out = str(tmp_path / "dr")
    what = recipe()
    run(pairs(table(5)), what, out, workers=0)
    engine = Engine(what)
    augmentation = Augmentation.from_config(shards.read_index(out).augmentation)
    for sample in shards.read(out):
        picture = Image.open(io.BytesIO(sample.image)).convert("RGB")
        for k, packed in enumerate(sample.param_aug):
            view = augmentation.apply(picture, augmentation.unpack(packed))
            parts = [
                teacher.encode_squares(teacher.transform.square(view)[None])[0]
                for teacher in engine.teachers
            ]
            np.testing.assert_allclose(
                sample.embeddings["image_emb"][k], np.concatenate(parts), atol=1e-5
            )
        texts = [teacher.encode_text(sample.captions["text"])[0] for teacher in engine.teachers]
        np.testing.assert_allclose(
            sample.embeddings["text_emb"][0], np.concatenate(texts), atol=1e-5
        )


def test_the_index_names_teachers_captioners_and_shards(table, tmp_path):
    out = str(tmp_path / "dr")
    run(pairs(table(3)), recipe(captioners=["random:coca-tiny"]), out, workers=0)
    index = json.loads((tmp_path / "dr" / "index.json").read_text())
    assert [teacher["embed_dim"] for teacher in index["teachers"]] == [64, 64]
    assert len({teacher["space_id"] for teacher in index["teachers"]}) == 2
    assert all(teacher["logit_scale"] > 1 for teacher in index["teachers"])
    assert [c["key"].startswith("syn_text_") for c in index["captioners"]] == [True]
    assert sum(shard["samples"] for shard in index["shards"]) == 3


def test_worker_processes_give_the_same_bytes(table, tmp_path):
    path = table(6)
    run(pairs(path), recipe(), str(tmp_path / "alone"), workers=0)
    run(pairs(path), recipe(), str(tmp_path / "many"), workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "many")


def test_finished_shards_are_skipped_and_other_recipes_refused(table, tmp_path):
    path, out = table(6), str(tmp_path / "dr")
    run(pairs(path), recipe(), out, workers=0)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "dr").glob("*.tar")}
    starts = []
    summary = run(pairs(path), recipe(), out, workers=0, on_start=lambda *now: starts.append(now))
    assert (summary.skipped, starts) == (2, [(2, 2, 6)])
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "dr").glob("*.tar")}
    with pytest.raises(ConfigError, match=r"another recipe .*seed changed"):
        run(pairs(path), recipe(seed=1), out, workers=0)
    with pytest.raises(ConfigError, match="teachers"):
        run(pairs(path), recipe(teachers=["random:tiny:5"]), out, workers=0)
    with pytest.raises(DataError, match="other pairs"):
        run(pairs(table(5)), recipe(), out, workers=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_runs_into_one_folder_at_the_same_time(table, tmp_path, seed):
    """With one recipe both make the same set; with two, the run that started first stops."""
    path, out = table(6), str(tmp_path / "dr")
    run(pairs(path), recipe(seed=seed), str(tmp_path / "uninterrupted"), workers=0)
    started = []

    def second(*_):
        if not started:
            started.append(True)
            run(pairs(path), recipe(seed=seed), out, workers=0)

    def first():
        run(pairs(path), recipe(), out, workers=0, on_pairs=second)

    if seed == 0:
        first()
    else:
        with pytest.raises(ConfigError, match="another run with another recipe"):
            first()
    assert contents(tmp_path / "dr") == contents(tmp_path / "uninterrupted")


def test_an_index_never_mixes_recipes(table, tmp_path):
    for seed in (0, 1):
        run(pairs(table(2)), recipe(seed=seed), str(tmp_path / str(seed)), workers=0)
    (tmp_path / "0" / "another.report.json").write_bytes(
        next((tmp_path / "1").glob("*.report.json")).read_bytes()
    )
    with pytest.raises(ConfigError, match="another was made with another recipe"):
        run(pairs(table(2)), recipe(), str(tmp_path / "0"), workers=0)


def test_the_batch_size_is_no_part_of_the_recipes_identity(table, tmp_path):
    path, out = table(3), str(tmp_path / "dr")
    run(pairs(path), recipe(batch_size=4), out, workers=0)
    assert run(pairs(path), recipe(batch_size=2), out, workers=0).skipped == 1


def test_files_of_others_are_never_overwritten(table, tmp_path):
    path, out = table(2), tmp_path / "dr"
    out.mkdir()
    (out / "00000000.tar").write_bytes(b"somebody's only copy")
    with pytest.raises(ConfigError, match="did not write"):
        run(pairs(path), recipe(), str(out), workers=0)
    assert (out / "00000000.tar").read_bytes() == b"somebody's only copy"
    assert [p.name for p in out.iterdir()] == ["00000000.tar"]


def test_a_folder_without_a_finished_shard_takes_another_recipe(table, tmp_path):
    path, out = table(2), tmp_path / "dr"
    (path.parent / "0.jpg").unlink()
    with pytest.raises(DataError, match="--max-bad"):
        run(pairs(path), recipe(), str(out), workers=0, limit=Limit(count=0))
    run(pairs(path), recipe(seed=5), str(out), workers=0)
    assert shards.audit(str(out)).clean


def test_two_runs_into_one_folder_make_one_set(table, tmp_path):
    path, out = table(6), str(tmp_path / "dr")
    first, second = pairs(path)
    run([second], recipe(), out, workers=0)
    run([first], recipe(), out, workers=0)
    assert [shard.name for shard in shards.read_index(out).shards] == [
        "00000000.tar",
        "00000001.tar",
    ]
    assert shards.audit(out).clean
    run([first, second], recipe(), str(tmp_path / "once"), workers=0)
    assert contents(out) == contents(tmp_path / "once")


def test_a_repaired_pair_leaves_no_list_of_bad_pairs(table, tmp_path):
    path, out = table(3), tmp_path / "dr"
    photo = (path.parent / "1.jpg").read_bytes()
    (path.parent / "1.jpg").unlink()
    with pytest.raises(DataError, match="--max-bad"):
        run(pairs(path), recipe(), str(out), workers=0, limit=Limit(count=0))
    assert (out / "00000000.bad.jsonl").exists()
    (path.parent / "1.jpg").write_bytes(photo)
    run(pairs(path), recipe(), str(out), workers=0)
    run(pairs(path), recipe(), str(tmp_path / "uninterrupted"), workers=0)
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_file_names_that_are_not_unicode(table, tmp_path):
    path = table(1)
    rows = path.parent / "pairs.jsonl"
    rows.write_text(
        '{"filepath": "cof\\ud83dfee.jpg", "caption": "gone"}\n'
        '{"filepath": "0.jpg", "caption": "here"}\n'
    )
    summary = run(pairs(rows), recipe(), str(tmp_path / "dr"), workers=0)
    assert (summary.reports[0].samples, summary.reports[0].bad) == (1, 1)
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = os.fsdecode(b"caf\xe9")
    (folder / f"{odd}.jpg").write_bytes((path.parent / "0.jpg").read_bytes())
    (folder / f"{odd}.txt").write_text("a cup")
    assert run(pairs(folder), recipe(), str(tmp_path / "o"), workers=0).reports[0].samples == 1


def test_a_damaged_report_is_named(table, tmp_path):
    path, out = table(2), tmp_path / "dr"
    run(pairs(path), recipe(), str(out), workers=0)
    report = out / "00000000.report.json"
    for text in ("{", "[]", "{}", json.dumps({**json.loads(report.read_text()), "stats": {}})):
        report.write_text(text)
        with pytest.raises(DataError, match=r"00000000\.report\.json"):
            run(pairs(path), recipe(), str(out), workers=0)


def test_an_unfinished_shard_is_made_again(table, tmp_path):
    path, out = table(6), tmp_path / "dr"
    run(pairs(path), recipe(), str(out), workers=0)
    whole = contents(out)
    (out / "00000001.report.json").unlink()
    tar = next(out.glob("00000000*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1024])  # its size no longer fits its report
    run(pairs(path), recipe(), str(out), workers=0)
    assert contents(out) == whole


def test_bad_pairs_are_named_beside_the_shard(table, tmp_path):
    path, out = table(7), tmp_path / "dr"
    raw = path.parent
    (raw / "1.jpg").write_bytes(b"")
    (raw / "2.jpg").write_bytes((raw / "2.jpg").read_bytes()[:500])
    (raw / "3.jpg").write_bytes(b"no image at all")
    lines = path.read_text().splitlines()
    lines[5] = "4.jpg,  "
    lines[6] = "none.jpg,it is gone"
    path.write_text("\n".join(lines) + "\n")
    summary = run(pairs(path, 10), recipe(), str(out), workers=0)
    assert [sample.uid for sample in shards.read(str(out))] == ["00000000", "00000006"]
    bad = [json.loads(x) for x in next(out.glob("*.bad.jsonl")).read_text().splitlines()]
    assert sorted(one["uid"] for one in bad) == [f"{i:08d}" for i in range(1, 6)]
    assert all(one["reason"] and "\n" not in one["reason"] for one in bad)
    assert summary.reports[0].bad == 5
    assert shards.audit(str(out)).clean


def test_duplicate_uids_keep_the_first(table, tmp_path):
    path = table(3)
    with path.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["filepath", "caption", "sku"])
        rows.writerows([["0.jpg", "first", "a"], ["1.jpg", "second", "a"], ["2.jpg", "x", "b"]])
    options = PairOptions(uid_column="sku")
    summary = run(open_pairs(str(path), options), recipe(), str(tmp_path / "dr"), workers=0)
    captions = {s.uid: s.captions["text"] for s in shards.read(str(tmp_path / "dr"))}
    assert captions == {"a": ["first"], "b": ["x"]}
    assert summary.reports[0].bad == 1


def test_long_captions_are_stored_whole_and_counted(table, tmp_path):
    path, out = table(2), tmp_path / "dr"
    long = "a very long caption " * 60
    path.write_text(f"filepath,caption\n0.jpg,{long}\n1.jpg,short\n")
    summary = run(pairs(path), recipe(), str(out), workers=0)
    assert summary.reports[0].captions_cut == 1
    assert next(iter(shards.read(str(out)))).captions["text"] == [long.strip()]


def test_too_many_bad_pairs_stop_a_run(table, tmp_path):
    path, out = table(12), tmp_path / "dr"
    for i in range(5, 12):
        (path.parent / f"{i}.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"of 12 pairs were bad|of 8 pairs were bad"):
        run(pairs(path), recipe(), str(out), workers=0, limit=Limit(count=3))
    assert len(list(out.glob("*.tar"))) >= 1  # what was finished is kept
    assert not list(out.glob("*.tmp"))
    run(pairs(path), recipe(), str(out), workers=0, limit=Limit(count=7))


def test_limits_are_numbers_or_shares():
    assert Limit.parse("7").count == 7
    assert Limit.parse("5%").share == 0.05
    assert Limit.parse(None) == Limit()
    for text in ("many", "-1", "101%", "5.5", "%"):
        with pytest.raises(ConfigError, match="--max-bad"):
            Limit.parse(text)
    limit = Limit.parse("10%")
    limit.add(50, 40)  # too few to say
    with pytest.raises(DataError, match="45 of 100"):
        limit.add(50, 5)


def test_no_pairs_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no pairs"):
        run([], recipe(), str(tmp_path / "dr"), workers=0)


def test_layout_v1_has_one_captioner():
    two = ["a=random:coca-tiny", "b=random:coca-tiny"]
    with pytest.raises(ConfigError, match="layout named"):
        Engine(recipe(captioners=two, layout="v1"))


def test_a_worker_that_dies_is_one_message(table, tmp_path, monkeypatch):
    monkeypatch.setattr("pocketclip.reinforce.workers.prepare", _die)
    with pytest.raises(WorkersDiedError, match="worker process died"):
        run(pairs(table(3)), recipe(), str(tmp_path / "dr"), workers=1)
    assert not list((tmp_path / "dr").glob("*.tar"))


def _die(*_):
    os._exit(1)


def test_two_captioners_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="give each a name"):
        Engine(recipe(captioners=["random:coca-tiny:0", "random:coca-tiny:0"]))


def test_a_full_disk_leaves_finished_shards_and_no_half_one(table, tmp_path, monkeypatch):
    path, out = table(8), tmp_path / "dr"
    run(pairs(path), recipe(), str(out), workers=0)
    whole = contents(out)
    second = sorted(out.glob("*.tar"))[1]
    for name in (second.name, second.name.replace(".tar", ".report.json"), "index.json"):
        (out / name).unlink()
    real = os.fsync

    def full(descriptor):
        if "tar" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            run(pairs(path), recipe(), str(out), workers=0)
    left = contents(out)
    assert second.name not in left
    assert not [name for name in left if "tmp" in name]
    run(pairs(path), recipe(), str(out), workers=0)
    assert contents(out) == whole


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_an_object_store_gets_the_same_bytes(table, tmp_path):
    path = table(6)
    run(pairs(path), recipe(), str(tmp_path / "local"), workers=0)
    out = "s3://bucket/dr"
    run(pairs(path), recipe(), out, workers=0)
    stored = {name.rpartition("/")[2]: storage.read_bytes(name) for name in storage.list_files(out)}
    assert stored == contents(tmp_path / "local")
    assert run(pairs(path), recipe(), out, workers=0).skipped == 2
    assert shards.audit(out).clean
    # From a store to a folder, tar by tar: the reinforced set is pairs itself.
    again = open_pairs(f"{out}/0000000{{0..1}}.tar", PairOptions())
    run(again, recipe(), str(tmp_path / "again"), workers=1)
    first, second = (
        {s.uid: s.embeddings["image_emb"].tolist() for s in shards.read(str(tmp_path / name))}
        for name in ("local", "again")
    )
    assert first == second


@pytest.mark.usefixtures("s3")
def test_an_unreachable_store_is_one_message(table):
    missing = "s3://no-such-bucket-here/dr"
    with pytest.raises(StorageError, match="no-such-bucket-here"):
        run(pairs(table(2)), recipe(), missing, workers=0)


RECIPE = """
teachers: random:tiny
captioners: random:coca-tiny
captions: 2
augmentations: 4
batch_size: 4
precision: float32
sampling: {max_length: 12}
"""


@pytest.mark.parametrize(
    ("count", "workers", "at_most"),  # pairs, in shards of four, and kills
    [(8, 0, 1), pytest.param(16, 1, 40, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(table, tmp_path, count, workers, at_most):
    path = table(count)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    options = [str(path), "--config", str(tmp_path / "recipe.yaml"), "--shard-size", "4"]
    options += ["--workers", str(workers)]
    done = inside.run("reinforce", *options, "--out", tmp_path / "uninterrupted")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "pocketclip", "reinforce", *options, "--out", str(out)]
    moments = random.Random()
    kills = 0
    for start in range(at_most + 1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finished = len(list(out.glob("*.tar")))
        deadline = time.monotonic() + 120
        # Until its next shard is finished, then for a random time.
        while process.poll() is None and time.monotonic() < deadline:
            if start < at_most and len(list(out.glob("*.tar"))) > finished:
                time.sleep(moments.uniform(0, 0.4 if workers else 0.1))
                break
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= count // 8
    assert process.returncode == 0
    assert contents(out) == contents(tmp_path / "uninterrupted")
    assert len(contents(out)) == 3 + 2 * (count // 4)


def test_useless_embeddings_are_never_stored(table, tmp_path, monkeypatch):
    engine_teachers = Engine.__init__

    def damaged(self, what):
        engine_teachers(self, what)
        encode = self.teachers[1].towers.encode_pixels
        calls = []

        def overflowing(pixels):
            calls.append(len(pixels))
            embeddings = encode(pixels)
            if sum(calls) > 8:  # a later image's second view
                embeddings[1] = float("inf")
            return embeddings

        monkeypatch.setattr(self.teachers[1].towers, "encode_pixels", overflowing)

    monkeypatch.setattr(Engine, "__init__", damaged)
    out = tmp_path / "dr"
    with pytest.raises(EmbeddingError, match=r"^image '0000000\d', augmentation 1: .*not finite"):
        run(pairs(table(8)), recipe(), str(out), workers=0)
    assert not list(out.glob("*.tmp"))
    for sample in (s for path in out.glob("*.tar") for s in shards.read(str(path))):
        assert all(np.isfinite(rows).all() for rows in sample.embeddings.values())


def test_teachers_are_checked_once_per_job_and_question(tmp_path):
    out, made, shown = str(tmp_path), [], []
    score = TeacherScore(
        name="t", metric="zero_shot_accuracy", value=0.5, chance=0.1, n=20, texts=5,
        standard_error=0.1, hits=np.ones(20),
    )  # fmt: skip

    def check(options):
        made.append(options)
        return TeacherCheck(teachers=[score])

    def once(options, config_hash="a", needed=True):
        return job.check_once(out, config_hash, options, check, shown.append, needed=needed)

    asked = CheckOptions(pairs=20)
    assert once(None) is None
    assert once(asked, needed=False) is None  # a finished job is not checked
    first = once(asked)
    assert first["teachers"][0]["value"] == 0.5
    assert once(asked) == once(None) == first
    assert len(made) == len(shown) == 1
    # Another question, or another recipe, is checked again.
    assert once(CheckOptions(pairs=20, student_start="random:tiny"))["asked"] != first["asked"]
    assert once(asked, "b")["config_hash"] == "b"
    assert len(made) == len(shown) == 3
    (tmp_path / "teacher_check.json").write_text("{")
    with pytest.raises(DataError, match=r"teacher_check\.json.*: remove it and run again"):
        once(asked)
    with pytest.raises(ConfigError, match="needs 2 or more pairs, not 1"):
        CheckOptions(pairs=1)
