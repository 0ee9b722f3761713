"""`pocketclip train` as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from pocketclip import checkpoint
from pocketclip.cli.main import build
from pocketclip.errors import PocketclipError
from pocketclip.train import checkpoints
from pocketclip.train.logs import read
from tests.cli import inside
from tests.shards.making import folder, sample

app = build()

TINY = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    fields = {
        "model": {"name": "tiny", "overrides": TINY},
        "data": {"workers": 0},
        "loss": {"weights": [0.0, 1.0]},
        "schedule": {"warmup": 1},
        "steps": 4,
        "batch_size": 6,
        "precision": "float32",
        "tensorboard": False,
        "checkpoint": {"every_steps": 2},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def shards(tmp_path):
    made = tmp_path / "dr"
    made.mkdir()
    return str(folder(made, [[sample(i) for i in range(12)]]))


def call(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_recipes_are_listed_and_shown():
    listed = call("--list")
    assert listed.exit_code == 0
    assert "mobileclip-b-datacompdr12m" in listed.stdout
    assert json.loads(call("--list", "--json").stdout)["grocery-small"]["model"]["name"] == "small"
    shown = call("mobileclip2-dfndr2b", "--data", "mine", "--set", "steps=30000", "--show")
    resolved = yaml.safe_load(shown.stdout)
    assert (resolved["steps"], resolved["data"]["source"]) == (30_000, "mine")
    assert resolved["loss"]["teacher_scales"] == [70.0, 60.0]


def test_a_run_from_the_shell(recipe, shards, tmp_path):
    out = tmp_path / "run"
    done = call(recipe, "--data", shards, "--out", out, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["step"], facts["samples"], facts["model"]) == (4, 24, str(out / "model"))
    again = call(recipe, "--data", shards, "--out", out, "--device", "cpu")
    assert again.exit_code == 0
    assert "24 samples seen" in again.stdout


def test_a_profile_from_the_shell(recipe, shards, tmp_path):
    common = (recipe, "--data", shards, "--device", "cpu", "--set", "steps=6")
    done = call(*common, "--out", tmp_path / "a", "--profile", "1", "--json")
    assert done.exit_code == 0, done.output
    profile = json.loads(done.stdout)["profile"]
    stored = json.loads((tmp_path / "a" / "profile" / "profile.json").read_text())
    assert profile == stored
    assert (profile["steps"], profile["peak"], profile["share_of_peak"]) == (1, None, None)
    done = call(*common, "--out", tmp_path / "b", "--profile", "1")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    phases = [line.split()[0] for line in lines[:9]]
    assert phases == ["phase", *profile["milliseconds"], "step"]
    assert lines[8].endswith("100.0 %")
    assert "no peak is known of this device" in done.stdout.replace("\n", " ")
    done = call(*common, "--out", tmp_path / "c", "--profile", "2")
    assert done.exit_code != 0
    assert not (tmp_path / "c").exists()


def test_a_run_called_like_a_model_is_the_run(recipe, shards, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    done = call(recipe, "--data", shards, "--out", "small", "--device", "cpu")
    assert done.exit_code == 0, done.output
    wanted = checkpoint.load("small/model").space_id
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (70, 70), "red").save("photos/a.png")
    for text, noted in (("small", True), ("./small", False), ("small/", False)):
        done = inside.run("classify", "photos", "--labels", "a,b", "-m", text, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["space_id"] == wanted
        assert ("small is the file or folder of that name" in caplog.text) == noted
        caplog.clear()
    shutil.rmtree("small/model")  # as if it had been stopped
    last = checkpoint.load("small/checkpoints/step-00000004").space_id
    done = inside.run("classify", "photos", "--labels", "a,b", "-m", "./small", "--json")
    assert json.loads(done.stdout)["space_id"] == last
    assert "./small is an unfinished run: its checkpoint of step 4 is" in caplog.text
    shutil.rmtree("small")
    for text in ("small", "./small", "small/"):
        for verb in (("classify", "photos", "--labels", "a,b", "-m", text),
                     ("embed", "photos", "--out", "x.npy", "-m", text),
                     ("export", text, "--out", "bundle"),
                     ("eval", text, "--data", "photos", "--tasks", "cifar10")):  # fmt: skip
            done = inside.run(*verb)
            assert done.returncode == 2, verb
            assert done.stdout == ""
            assert "random:small" in done.stderr or verb[0] == "eval"
    assert not Path("bundle").exists()


def test_the_weights_to_begin_with_are_any_model(recipe, shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = (recipe, "--data", shards, "--device", "cpu", "--offline", "--set", "steps=2")
    for init, message in (
        ("./tiny", "no such file"),
        ("tiny", "random:tiny"),
        ("apple/MobileCLIP-S0@main", "the network is off"),
        ("laptop", "is a bundle"),
        ("random:small", r"does not fit"),
    ):
        (tmp_path / "laptop").mkdir(exist_ok=True)
        (tmp_path / "laptop" / "bundle.json").touch()
        done = call(*common, "--set", f"model.init={init}", "--out", "run")
        assert message in str(done.exception), init
        assert not Path("run", "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--list"),
        (("no-such-recipe",), "neither a file nor a recipe"),
        (("grocery-small",), "no training data"),
        (("grocery-small", "--data", "nowhere"), "nowhere"),
        (("grocery-small", "--set", "optimizer.lrr=1"), "did you mean 'lr'"),
        (("grocery-small", "--data", "x", "--set", "steps=40"), "schedule.warmup: 40 steps"),
        (("grocery-small", "--data", "x", "--device", "gpu9"), "no device"),
    ],
)
def test_what_cannot_begin_says_why(arguments, message, tmp_path):
    done = call(*arguments, "--out", tmp_path / "run")
    assert isinstance(done.exception, PocketclipError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_bad_samples_are_named_and_counted_and_with_strict_the_exit_code_tells(recipe, tmp_path):
    made = tmp_path / "dr"
    made.mkdir()
    samples = [sample(i) for i in range(12)]
    samples[3].image = b"\xff\xd8\xff not a JPEG at all"
    folder(made, [samples])
    command = [recipe, "--data", made, "--device", "cpu", "--json"]
    done = call(*command, "--out", tmp_path / "run")
    assert done.exit_code == 0  # a completed run; torchrun would call anything else a failure
    facts = json.loads(done.stdout)
    assert facts["skipped"] >= 1
    assert facts["model"]
    assert read(tmp_path / "run" / "log.jsonl")[-1]["skipped"] == facts["skipped"]
    assert call(*command, "--out", tmp_path / "strict", "--strict").exit_code == 1


def test_checkpoints_are_scored_as_eval_would(recipe, shards, tmp_path):
    table = ["filepath,product"]
    for i, colour in enumerate(["red", "green", "blue"] * 3):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{i}.png")
        table.append(f"{i}.png,{colour}")
    (tmp_path / "colours.csv").write_text("\n".join(table) + "\n")
    fields = yaml.safe_load(recipe.read_text())
    fields["evaluation"] = {"data": str(tmp_path / "colours.csv"), "label_column": "product"}
    recipe.write_text(yaml.safe_dump(fields))
    out = tmp_path / "run"
    done = call(recipe, "--data", shards, "--out", out, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["metrics"]["main_metric"] == facts["metrics"]["colours"]
    assert facts["best"]["step"] in (2, 4)
    scored = [line for line in read(out / "log.jsonl") if "eval/main_metric" in line]
    assert [line["step"] for line in scored] == [2, 4]
    assert facts["selection"]["chosen"] == facts["best"]["step"]


def test_what_was_chosen_and_how_to_train_on_is_printed(recipe, shards, tmp_path, monkeypatch):
    from pocketclip.train import evaluation

    fields = yaml.safe_load(recipe.read_text())
    fields["checkpoint"] = {"every_steps": 1}
    recipe.write_text(yaml.safe_dump(fields))
    scores = {"rising": (0.1, 0.2, 0.4, 0.6), "falling": (0.6, 0.4, 0.2, 0.1)}
    for name, values in scores.items():
        monkeypatch.setattr(
            evaluation,
            "make_scorer",
            lambda _, values=values: lambda _model, step: {"main_metric": values[step - 1]},
        )
        command = [recipe, "--data", shards, "--device", "cpu", "--set", "evaluation.data=x"]
        done = call(*command, "--set", "evaluation.patience=2", "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        said = " ".join(done.stdout.split())
        if name == "rising":
            assert "step 4, 0.6000, the best of 4 scores on the evaluation data. This" in said
            assert f"to train on: pocketclip train {tmp_path}/rising/recipe.yaml --set" in said
        else:
            assert "in 3 steps of 4, ended by evaluation.patience" in said
            assert "step 1, 0.6000, the best of 3 scores" in said
            assert "(the last: 0.2000)" in said
            assert "to train on" not in said
    for setting, message in (
        ("patience=0", "greater than or equal to 1"),
        ("choose=first", "last"),
    ):
        done = call(*command, "--set", f"evaluation.{setting}", "--out", tmp_path / "no")
        assert message in str(done.exception)


def test_an_evaluation_that_fails_is_counted_and_with_strict_the_exit_code_tells(
    recipe, shards, tmp_path, monkeypatch
):
    from pocketclip.train import evaluation

    def failing(_wanted):
        def score(_model, step):
            if step == 2:
                raise PocketclipError("a photograph is gone")
            return {"main_metric": 0.25}

        return score

    monkeypatch.setattr(evaluation, "make_scorer", failing)
    command = [recipe, "--data", shards, "--device", "cpu", "--set", "evaluation.data=x"]
    done = call(*command, "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["failed_evaluations"] == 1
    strict = call(*command, "--out", tmp_path / "strict", "--strict")
    assert strict.exit_code == 1
    assert "1 checkpoints could not be scored" in strict.stderr


def test_live_teachers_stand_in_for_stored_embeddings(recipe, tmp_path):
    table = ["filepath,caption"]
    for i in range(8):
        Image.new("RGB", (20, 20), (30 * i, 0, 90)).save(tmp_path / f"{i}.png")
        table.append(f"{i}.png,shade {i}")
    (tmp_path / "pairs.csv").write_text("\n".join(table) + "\n")
    done = call(
        recipe, "--data", tmp_path / "pairs.csv", "--out", tmp_path / "run", "--device", "cpu",
        "--set", "data.reinforced=false", "--set", "data.captions=truth", "--set",
        "teachers=[random:tiny:1]", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert read(tmp_path / "run" / "log.jsonl")[-1]["distill_loss"] > 0


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(recipe, shards, tmp_path):
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "pocketclip", "train", str(recipe), "--data", shards),
        *("--out", str(out), "--device", "cpu", "--set", "steps=100000", "--set", "log_every=1"),
        *("--set", "data.workers=1"),
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while len(read(out / "log.jsonl")) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers too
        _, told = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert "the same command continues" in told
    assert "Traceback" not in told
    step = read(out / "log.jsonl")[-1]["step"]
    assert checkpoints.newest(out).step == step
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    state = torch.load(checkpoints.newest(out).folder / "trainer.pt", weights_only=True)
    assert state["world_size"] == 1
