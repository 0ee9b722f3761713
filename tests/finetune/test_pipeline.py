from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pocketclip import checkpoint, zoo
from pocketclip.errors import BundleError, CheckpointError, ConfigError, DataError, PocketclipError
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.finetune import pipeline
from pocketclip.finetune.commands import next_commands
from pocketclip.finetune.generic import training_captions
from pocketclip.finetune.own_images import read_images
from pocketclip.finetune.pipeline import Options, finetune
from pocketclip.finetune.start import open_start, overrides_of
from pocketclip.finetune.tables import write_tables
from pocketclip.nn.reparam import fuse
from pocketclip.nn.upcycle import upcycle
from pocketclip.shards import read
from pocketclip.train import logs
from tests.finetune.conftest import COLOURS, draw_folder, draw_square

QUICK = {"preset": "last-n", "steps": 4, "views": 2, "retain": 0.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start, squares):
    out = tmp_path_factory.mktemp("finetune") / "out"
    return finetune(str(start), str(squares), out, Options(**QUICK), workers=0)


def test_everything_is_said(finished):
    out = Path(finished["out"])
    assert finished == json.loads((out / "result.json").read_text())
    assert finished["task"] == "labels"
    assert finished["metric"] == "zero-shot top-1"
    assert finished["counts"]["train"] == 15
    assert finished["counts"]["validation"] == 3
    assert "rough" in finished["warnings"][0]
    names = [row["name"] for row in finished["candidates"]]
    assert names[:2] == ["start", "trained"]
    assert [point["a"] for point in finished["line"]] == [n / 10 for n in range(11)]
    assert sum(row["chosen"] for row in finished["candidates"]) == 1
    assert {row["name"] for row in finished["classes"]} == set(COLOURS)
    assert finished["training"]["steps"] == 4
    assert finished["next"]
    assert "<html" in (out / "report.html").read_text()


def test_the_model_is_the_best_of_what_was_scored(finished):
    chosen = next(row for row in finished["candidates"] if row["chosen"])
    assert chosen["validation"] == max(point["validation"] for point in finished["line"])
    folder = Path(finished["out"]) / "data" / "validation"
    model = checkpoint.load(Path(finished["out"]) / "model")
    score = pipeline.Validation(folder, "x").score(model)
    assert score == pytest.approx(chosen["validation"])
    assert (model.license.name, model.license.text) == ("birds", "For birds only.\n")


def test_photographs_are_copied_into_shards_only(finished, squares):
    out = Path(finished["out"])
    assert not [path for path in out.rglob("*") if path.suffix in (".png", ".img")]
    assert str(squares) in (out / "data" / "train.csv").read_text()


def test_a_finished_folder_is_left_alone(finished, start, squares):
    with pytest.raises(ConfigError, match="is finished"):
        finetune(str(start), str(squares), finished["out"], Options(**QUICK), workers=0)
    other = Options(**QUICK | {"seed": 1})
    with pytest.raises(ConfigError, match=r"other settings \(seed"):
        finetune(str(start), str(squares), finished["out"], other, workers=0)


def test_where_training_does_harm_the_start_is_handed_over(start, squares, tmp_path):
    harm = {"optimizer.lr": 30.0, "optimizer.clip_norm": None}
    options = Options(
        preset="head", steps=4, views=1, retain=0.999, settings=harm, interpolation=False
    )
    result = finetune(str(start), str(squares), tmp_path / "out", options, workers=0)
    assert result["line"] == []
    assert result["chosen"] == {"a": 0.0}
    assert result["verdict"].startswith("the start itself")
    assert [c for c in result["next"] if c.startswith("pocketclip fit")]
    assert any("--set optimizer.lr=1e+01" in command for command in result["next"])
    handed = checkpoint.load(tmp_path / "out" / "model")
    assert handed.space_id == checkpoint.load(start).space_id


def test_a_sparse_start_stays_sparse(start, squares, tmp_path):
    moe = {"experts": 4, "layers": [0], "towers": ("text",)}
    sparse = upcycle(checkpoint.load(start), **moe)
    checkpoint.save(sparse, tmp_path / "sparse")
    begin = str(tmp_path / "sparse")
    with pytest.raises(ConfigError, match=r"model.lora: tiny .* mixtures of experts, .* presets"):
        finetune(begin, str(squares), tmp_path / "out", Options(preset="lora", steps=4))
    assert not (tmp_path / "out").exists()
    options = Options(preset="full", steps=4, views=1)
    finetune(begin, str(squares), tmp_path / "out", options, workers=0)
    assert checkpoint.load(tmp_path / "out" / "model").config == sparse.config
    log = logs.read(tmp_path / "out" / "runs" / "full" / "log.jsonl")
    routed = [list(record["experts"]) for record in log if "loss" in record]
    assert routed
    assert all(names == ["text.blocks.0.mlp"] for names in routed)


@pytest.mark.slow
def test_captions_are_validated_by_retrieval(start, squares, tmp_path):
    rows = [[p, f"{p.stem} of {p.parent.name}"] for p in sorted(squares.glob("*/*.png"))]
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as out:
        csv.writer(out).writerows([["image", "caption"], *rows])
    options = Options(**QUICK, self_distillation=False, interpolation=False)
    result = finetune(str(start), str(table), tmp_path / "out", options, workers=0)
    assert result["metric"] == "retrieval, mean recall@1"
    assert "classes" not in result
    recipe = (tmp_path / "out" / "runs" / "last-n" / "recipe.yaml").read_text()
    assert "captions: truth" in recipe
    assert result["training"]["self_distillation"] is False


def test_images_without_texts_learn_from_a_teacher(start, squares, tmp_path):
    with pytest.raises(DataError, match=r"--teacher MODEL .* --captioner MODEL"):
        finetune(str(start), str(squares), tmp_path / "out", Options(unlabelled=True))
    assert not (tmp_path / "out").exists()
    options = Options(**QUICK, unlabelled=True, teachers=["random:tiny"], interpolation=False)
    result = finetune(str(start), str(squares), tmp_path / "out", options, workers=0)
    assert result["task"] == "none"
    assert result["metric"] == "agreement with the teacher"
    assert result["training"]["teachers"] == ["random:tiny"]


def test_a_teacher_that_knows_no_more_is_left_out(start, squares, tmp_path):
    options = Options(**QUICK, teachers=["random:tiny:5"], interpolation=False)
    result = finetune(str(start), str(squares), tmp_path / "out", options, workers=0)
    assert result["teachers"]["used"] is False
    assert "left out" in result["teachers"]["lines"][-1]
    assert result["training"]["teachers"] == []
    index = json.loads((tmp_path / "out" / "shards" / "index.json").read_text())
    assert len(index["teachers"]) == 1


def test_one_image_per_class_is_refused(start, tmp_path):
    with pytest.raises(DataError, match="pocketclip fit"):
        finetune(str(start), str(draw_folder(tmp_path / "in", 1)), tmp_path / "out")


def test_one_class_is_refused(start, tmp_path):
    for number in range(3):
        draw_square(tmp_path / "in" / "one" / f"{number}.png", (1, 2, 3), number)
    with pytest.raises(DataError, match="at least two labels"):
        finetune(str(start), str(tmp_path / "in"), tmp_path / "out")


def test_a_fused_start_is_refused_with_what_it_was_made_from(start, squares, tmp_path):
    source = tmp_path / "mine"
    shutil.copytree(start, source)
    checkpoint.save(fuse(checkpoint.load(source)), tmp_path / "fast")
    with pytest.raises(CheckpointError, match=f"pocketclip finetune {source}"):
        finetune(str(tmp_path / "fast"), str(squares), tmp_path / "out")


def test_a_sparse_bundle_is_not_taken_for_the_published_dense_model(tmp_path, squares):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    config = zoo.to_dict(zoo.sparse_config(zoo.entry("mobileclip2-s0").config))
    facts = {"target": "onnx", "space_id": "space-1", "model": config}
    (bundle / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=r"mobileclip2-s0, sparse \(text: 2 of 8") as raised:
        finetune(str(bundle), str(squares), tmp_path / "out")
    assert "pocketclip finetune mobileclip2-s0" not in str(raised.value)


def test_a_bundle_is_refused_with_what_it_was_made_from(tmp_path, squares):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    facts = {"target": "onnx", "space_id": "space-1", "model": {"name": "mobileclip2-s0"}}
    (bundle / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=r"bundle \(onnx\).*pocketclip finetune mobileclip2-s0"):
        finetune(str(bundle), str(squares), tmp_path / "out")


def test_a_captioner_is_refused():
    with pytest.raises(ConfigError, match=r"train coca-finetune .* model\.init=random:coca-tiny`"):
        open_start("random:coca-tiny")


def test_settings_are_checked(start, squares, tmp_path):
    for bad, words in (
        ({"preset": "most"}, "no preset"),
        ({"retain": 2.0}, "--retain"),
        ({"steps": 1}, "--steps"),
        ({"share": 1.5}, "share"),
        ({"settings": ["optimizer.rate=1"]}, "unknown field"),
    ):
        with pytest.raises(PocketclipError, match=words):
            finetune(str(start), str(squares), tmp_path / "out", Options(**bad), workers=0)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_overrides_of_a_changed_model(start):
    config = checkpoint.load(start).config
    assert overrides_of(config) == {
        "text.layers": 1, "text.context_length": 16, "preprocess.size": 32
    }  # fmt: skip


def test_unreadable_images_are_named(start, tmp_path):
    folder = draw_folder(tmp_path / "in", 5)
    (folder / "grey" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    options = Options(**QUICK, interpolation=False)
    for number in range(2):  # a training and, more often than not, a validation image
        (folder / "grey" / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    result = finetune(str(start), str(folder), tmp_path / "out", options, workers=0)
    assert any("could not be read" in text or "left out" in text for text in result["warnings"])
    assert result["counts"]["left_out"] == 3


@pytest.mark.slow
def test_reinforced_shards_keep_their_teachers(finished, start, tmp_path):
    shards = Path(finished["out"]) / "shards"
    options = Options(**QUICK, interpolation=False)
    result = finetune(str(start), str(shards), tmp_path / "out", options, workers=0)
    # The labels repeat as captions, so they are classes.
    assert result["metric"] == "zero-shot top-1"
    assert result["counts"]["train"] + result["counts"]["validation"] == 15
    stored = {sample.uid: sample for sample in read(str(shards))}
    copied = list(read(str(tmp_path / "out" / "shards")))
    assert len(copied) == result["counts"]["train"]
    for sample in copied:
        for key, rows in sample.embeddings.items():
            assert (rows == stored[sample.uid].embeddings[key]).all()
    held_out = {path.stem for path in (tmp_path / "out" / "data" / "images").iterdir()}
    assert held_out == stored.keys() - {sample.uid for sample in copied}


def test_shards_of_another_width_than_the_index_says(finished, start, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(Path(finished["out"]) / "shards", shards)
    index = json.loads((shards / "index.json").read_text())
    index["teachers"][0]["embed_dim"] += 8
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"pocketclip audit"):
        finetune(str(start), str(shards), tmp_path / "out", Options(**QUICK), workers=0)


def test_a_teacher_does_not_go_with_shards(finished, start, tmp_path):
    shards = str(Path(finished["out"]) / "shards")
    with pytest.raises(ConfigError, match="--teacher does not go with reinforced shards"):
        finetune(str(start), shards, tmp_path / "out", Options(teachers=["random:tiny"]))


@pytest.mark.slow
def test_a_killed_call_continues_at_each_step(finished, start, squares, tmp_path, monkeypatch):
    out = tmp_path / "out"
    stops = (
        (pipeline, "write_tables"), (pipeline.FinetuneRun, "reinforce_shards"),
        (pipeline.FinetuneRun, "train_run"), (pipeline, "_line"), (pipeline.checkpoint, "save"),
        (pipeline, "describe_labels"), (pipeline, "finetune_page"),
    )  # fmt: skip
    for owner, name in stops:
        with monkeypatch.context() as patch:

            def stop(*_args, **_kwargs):
                raise KeyboardInterrupt

            patch.setattr(owner, name, stop)
            with pytest.raises(KeyboardInterrupt):
                finetune(str(start), str(squares), out, Options(**QUICK), workers=0)
        assert not (out / "result.json").exists()
    result = finetune(str(start), str(squares), out, Options(**QUICK), workers=0)
    for key in ("counts", "candidates", "line", "chosen", "classes", "verdict"):
        assert result[key] == finished[key]


def test_a_table_of_labels(start, squares, tmp_path):
    table = tmp_path / "t.csv"
    rows = [[p, p.parent.name, "train"] for p in sorted(squares.glob("*/*.png"))]
    with table.open("w", newline="") as out:
        csv.writer(out).writerows([["photo", "kind", "part"], *rows])
    images = DataOptions(image_column="photo", label_column="kind", templates=("my {}",),
                         where=(("part", "train"),), split="train")  # fmt: skip
    options = Options(**QUICK, images=images, interpolation=False)
    result = finetune(str(start), str(table), tmp_path / "out", options, workers=0)
    assert result["counts"]["classes"] == 3
    assert "my grey" in (tmp_path / "out" / "data" / "train.csv").read_text()


def test_an_output_folder_inside_the_images_is_refused(start, squares):
    with pytest.raises(ConfigError, match="is inside"):
        finetune(str(start), str(squares), squares / "run", Options(**QUICK))
    assert not (squares / "run").exists()


def test_wrong_settings_are_found_before_there_is_a_folder(start, squares, tmp_path):
    with pytest.raises(PocketclipError, match=r"optimizer\.lr"):
        finetune(str(start), str(squares), tmp_path / "out", Options(settings=["optimizer.lr=abc"]))
    assert not (tmp_path / "out").exists()


def test_a_call_with_conditions_resumes_unless_an_image_changed(start, tmp_path, monkeypatch):
    folder = draw_folder(tmp_path / "in", 3)
    table = tmp_path / "t.csv"
    rows = [[p, p.parent.name, "a"] for p in sorted(folder.glob("*/*.png"))]
    with table.open("w", newline="") as out:
        csv.writer(out).writerows([["image", "kind", "part"], *rows])
    images = DataOptions(label_column="kind", where=(("part", "a"),), split="train")
    options, reached = Options(**QUICK, images=images), []

    def stop(*_args):
        reached.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_run", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finetune(str(start), str(table), tmp_path / "out", options)
    assert len(reached) == 2
    draw_square(folder / "grey" / "0.png", (9, 9, 9), 77)
    with pytest.raises(ConfigError, match=r"other settings \(images changed"):
        finetune(str(start), str(table), tmp_path / "out", options)


def test_the_command_for_another_try_repeats_all_options(finished):
    settings = finished["settings"] | {
        "images.where": [["part", "a b"]], "images.templates": ["my {}"], "retain": 0.5,
        "teachers": ["big"], "settings": {"optimizer.lr": 1.0, "data.balance": 0.5},
        "interpolation": False,
    }  # fmt: skip
    candidates = [{**finished["candidates"][0], "chosen": True}]
    result = {**finished, "settings": settings, "candidates": candidates}
    command = next(c for c in next_commands(result) if c.startswith("pocketclip finetune"))
    for words in (
        "--where 'part=a b'", "--template 'my {}'", "--teacher big", "--retain 0.5", "--steps 4",
        "--set data.balance=0.5", "--no-interpolation", "--preset last-n", "--views 2",
    ):  # fmt: skip
        assert f" {words} " in command
    assert command.count("optimizer.lr") == 1
    assert not any(c.startswith("pocketclip fit") for c in next_commands(result))


def test_labels_that_name_all_generic_captions(squares):
    names = ["a", "photo", "picture", *training_captions()]
    own = dataclasses.replace(read_images(str(squares)), classes=names)
    held_out = np.zeros(len(own), bool)
    held_out[:2] = True
    with pytest.raises(DataError, match="--no-self-distillation"):
        write_tables(squares.parent / "t", own, held_out, 0)
    write_tables(squares.parent / "t", own, held_out, 0, generic=False)
    assert (squares.parent / "t" / "train.csv").read_text().startswith("image,caption\n")


TEACHER = '''
import numpy as np

TEXTS = {"red": (1, 0, 0.3), "green": (0, 1, 0.3), "grey": (0, 0, 1)}


class Colours:
    """Knows the three colours."""

    embed_dim, logit_scale, space_id = 3, 20.0, "colours-1"

    def encode_image(self, images):
        rows = []
        for image in images:
            pixels = np.asarray(image.convert("RGB"), np.float32)
            h, w = pixels.shape[:2]
            r, g, _ = pixels[h // 3 : -h // 3, w // 3 : -w // 3].mean((0, 1))
            rows.append((max(r - g, 0), max(g - r, 0), 60))
        return self._unit(rows)

    def encode_text(self, texts):
        return self._unit(
            [next((v for k, v in TEXTS.items() if k in text), (1, 1, 1)) for text in texts]
        )

    def _unit(self, rows):
        rows = np.array(rows, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def teacher(**_options):
    return Colours()
'''


@pytest.mark.slow
def test_a_better_teacher_takes_the_place_of_the_start(tmp_path, monkeypatch, start, squares):
    (tmp_path / "colours_of_a_test.py").write_text(TEACHER)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = "python:colours_of_a_test:teacher"
    options = Options(**QUICK, teachers=(spec,))
    result = finetune(str(start), str(squares), tmp_path / "out", options, workers=0)
    assert result["teachers"]["used"]
    assert result["training"]["teachers"] == [spec]
    assert not result["training"]["self_distillation"]
    sample = next(iter(read(str(tmp_path / "out" / "shards"))))
    assert sample.embeddings["image_emb"].shape == (QUICK["views"], 3)
    assert {"text_emb", "text_generic_1_emb"} <= set(sample.embeddings)
    recipe = (tmp_path / "out" / "runs" / "last-n" / "recipe.yaml").read_text()
    assert "distill_captions: all" in recipe
    assert "in the place of the start" in (tmp_path / "out" / "report.html").read_text()
