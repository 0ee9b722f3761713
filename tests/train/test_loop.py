"""Runs from end to end: their folder, resuming, kills, damage, full disks, several processes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pocketclip import checkpoint, devices
from pocketclip.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    PocketclipError,
    TrainingError,
)
from pocketclip.license import License
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.nn.reparam import fuse
from pocketclip.shards import read_index, write_index
from pocketclip.storage.local import write_whole_folder
from pocketclip.train import checkpoints, distributed
from pocketclip.train import run as running
from pocketclip.train.deterministic import deterministic_algorithms
from pocketclip.train.initial_model import initial_model
from pocketclip.train.logs import Log, read
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe, names
from pocketclip.train.run import Run
from pocketclip.train.setup import build_run, open_loader, uses_channels_last
from pocketclip.train.step import Stepper
from tests.shards.making import folder, sample

MORE_MOMENTS = [("scoring", 6), ("noting", 4), ("logging", 6)]
SMALL = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    made = tmp_path_factory.mktemp("data") / "dr"
    made.mkdir()
    path = str(folder(made, [[sample(i) for i in range(k, k + 9)] for k in (0, 9, 18)]))
    about = read_index(path)
    about.captioners = [{"key": "syn_text", "name": "writer"}]
    write_index(path, about)
    return path


def recipe(shards, **fields):
    base = {
        "model": {"name": "tiny", "overrides": SMALL},
        "data": {"source": shards, "workers": 0},
        "loss": {"weights": [0.5, 0.5]},
        "schedule": {"warmup": min(2, fields.get("steps", 6) - 1)},
        "steps": 6,
        "batch_size": 8,
        "precision": "float32",
        "log_every": 1,
        "checkpoint": {"every_steps": 2, "every_minutes": None},
        "tensorboard": False,
    }
    return load_recipe(base, fields)


def stop_in(step, number):
    """Return an `on_log` that sends this process a signal, so that `step` is its last one."""

    def on_log(record):
        if record["step"] == step - 1:
            os.kill(os.getpid(), number)

    return on_log


def weights(run):
    return checkpoint.load(run).state_dict()


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(shards), run, device="cpu")
    return run


def test_a_run_leaves_the_documented_files(undisturbed, shards):
    assert {p.name for p in undisturbed.iterdir()} == {
        "recipe.yaml", "run.json", "log.jsonl", "checkpoints", "model",
    }  # fmt: skip
    assert load_recipe(undisturbed / "recipe.yaml") == recipe(shards)
    facts = json.loads((undisturbed / "run.json").read_text())
    assert facts["samples"] == 27
    assert facts["index_hash"]
    assert facts["teachers"] == ["one", "two"]
    assert facts["captioners"] == ["writer"]
    assert facts["starts"][0]["torch"] == torch.__version__
    log = read(undisturbed / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    for line in log:
        assert line["loss"] == pytest.approx(
            line["contrastive_loss"] + line["distill_loss"], abs=1e-5
        )
        assert line["samples_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
    assert log[-1]["seconds_left"] == 0
    assert [p.name for p in checkpoints.find(undisturbed)] == [
        "step-00000006", "step-00000004", "step-00000002",
    ]  # fmt: skip
    model = checkpoint.load(undisturbed)
    assert same(model.state_dict(), weights(checkpoints.find(undisturbed)[0]))
    fuse(model)


def test_it_learns(shards, tmp_path):
    fields = {"steps": 40, "optimizer.lr": 3e-3, "loss.weights": [0.0, 1.0], "log_every": 5}
    train(recipe(shards, **fields), tmp_path / "run", device="cpu")
    losses = [line["loss"] for line in read(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.3


def test_the_same_command_twice_does_nothing_more(undisturbed, shards):
    before = weights(undisturbed)
    summary = train(recipe(shards), undisturbed, device="cpu")
    assert (summary.step, summary.seconds) == (6, 0.0)
    assert same(before, weights(undisturbed))


LORA = {
    "model.lora": {"rank": 2, "alpha": 4}, "optimizer.layer_decay": 0.5, "channels_last": True,
    "gradient_checkpointing": True,
}  # fmt: skip
SPARSE = {
    "model.overrides.text.moe": {"blocks": [0], "experts": 4, "top_k": 2},
    "moe.noise": 0.25, "moe.capacity_factor": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [{}, {"ema": 0.9, "accumulate": 2}, {"ema": 0.9, **LORA}, {"ema": 0.9, **SPARSE}],
)
def test_a_stopped_run_ends_with_the_same_bits(shards, undisturbed, tmp_path, fields):
    whole, uninterrupted = recipe(shards, **fields), undisturbed
    if fields:
        uninterrupted = tmp_path / "whole"
        train(whole, uninterrupted, device="cpu")
    summary = train(whole, tmp_path / "parts", device="cpu", on_log=stop_in(3, signal.SIGTERM))
    assert (summary.interrupted, summary.step, summary.model) == (True, 3, None)
    assert not train(whole, tmp_path / "parts", device="cpu").interrupted
    assert same(weights(uninterrupted), weights(tmp_path / "parts"))
    steps = [line["step"] for line in read(tmp_path / "parts" / "log.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert len(json.loads((tmp_path / "parts" / "run.json").read_text())["starts"]) == 2


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "more"),
    [
        ("cpu", {}),
        ("cpu", SPARSE),
        *(
            pytest.param("cuda", {"deterministic": True, **more}, marks=NEEDS_CUDA)
            for more in ({}, {"precision": "bfloat16", "ema": 0.9})
        ),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(shards, tmp_path, monkeypatch, device, more):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # another test may have used CUDA
    fields = {"steps": 14, "data.workers": 1, "model.overrides.drop_path": 0.2}
    whole = recipe(shards, **fields, **more)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole.model_dump(mode="json")))
    train(whole, tmp_path / "whole", device=device)
    command = [
        *(sys.executable, "-m", "pocketclip", "train", str(tmp_path / "recipe.yaml")),
        *("--out", str(tmp_path / "killed"), "--device", device),
    ]
    log = tmp_path / "killed" / "log.jsonl"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while len(read(log)) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read().decode()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert not (tmp_path / "killed" / "model").exists()
    assert train(whole, tmp_path / "killed", device=device).step == 14
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_deterministic_algorithms_are_for_the_run_only(shards, undisturbed, tmp_path):
    during = []

    def on_log(_record):
        cudnn = torch.backends.cudnn
        during.append(
            (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
        )

    torch.backends.cudnn.benchmark = True
    try:
        train(recipe(shards, deterministic=True), tmp_path / "run", device="cpu", on_log=on_log)
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert during == [(True, True, False)] * 6
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert same(weights(tmp_path / "run"), weights(undisturbed))  # on a CPU, it changes nothing


def test_what_has_no_deterministic_form_is_a_clear_error(shards, tmp_path, monkeypatch):
    def backward(*_):
        raise RuntimeError(
            "put_ does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
        )

    monkeypatch.setattr(Stepper, "backward", backward)
    with pytest.raises(ConfigError, match=r"deterministic: .*put_ .*set deterministic=false"):
        train(recipe(shards, deterministic=True), tmp_path / "run", device="cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="put_"):
        train(recipe(shards), tmp_path / "other", device="cpu")


def test_cublas_is_told_before_it_starts(monkeypatch):
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.delenv(name)
    with deterministic_algorithms(False, "auto"):
        assert name not in os.environ
    with deterministic_algorithms(True, "cpu"):
        assert name not in os.environ
    with deterministic_algorithms(True, "auto"):
        assert os.environ[name] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic_algorithms(True, "cuda"):
        pass
    monkeypatch.setenv(name, ":0:0")
    with (
        pytest.raises(ConfigError, match=f"{name} is ':0:0'.*{name}=:4096:8"),
        deterministic_algorithms(True, "cuda"),
    ):
        pass
    monkeypatch.delenv(name)
    with (
        pytest.raises(ConfigError, match="was not set before CUDA was used"),
        deterministic_algorithms(True, "cuda:0"),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def _stop_at_5(shards, run):
    assert train(recipe(shards), run, device="cpu", on_log=stop_in(5, signal.SIGINT)).step == 5


@pytest.fixture(scope="module")
def stopped(shards, tmp_path_factory):
    """A run that was stopped after step 5, with checkpoints 2, 4 and 5; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    _stop_at_5(shards, run)
    return run


@pytest.fixture
def resumable(stopped, tmp_path):
    """A copy of `stopped` to resume."""
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "flip", "seal", "gone"])
def test_a_corrupt_checkpoint_is_passed_over(shards, resumable, damage, caplog, undisturbed):
    run = resumable
    newest = checkpoints.find(run)[0]
    file = newest / ("model.safetensors" if damage in ("cut", "gone") else "trainer.pt")
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "gone":
        file.unlink()
    else:
        (newest / "checkpoint.json").write_text("{")
    summary = train(recipe(shards), run, device="cpu")
    assert summary.step == 6
    assert "trying an older checkpoint" in caplog.text
    assert same(weights(run), weights(undisturbed))


def test_nothing_readable_is_an_error(shards, resumable):
    run = resumable
    for path in checkpoints.find(run):
        (path / "trainer.pt").unlink()
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        train(recipe(shards), run, device="cpu")


def test_a_full_disk_stops_the_run_and_keeps_the_last_good(shards, tmp_path, monkeypatch):
    real = torch.save

    def full(state, path, *args, **options):
        if "00000004" in str(path):
            Path(path).write_bytes(b"some of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, path, *args, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"disk is full.*step-00000002; free some space"):
        train(recipe(shards), tmp_path / "run", device="cpu")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.setattr(torch, "save", real)
    assert train(recipe(shards), tmp_path / "run", device="cpu").step == 6


def test_a_non_finite_loss_stops_the_run(shards, tmp_path, monkeypatch):
    real, steps = Stepper.backward, itertools.count(1)

    def poisons(self, batches):
        if next(steps) == 4:
            with torch.no_grad():
                self.model.logit_scale.fill_(float("nan"))
        return real(self, batches)

    monkeypatch.setattr(Stepper, "backward", poisons)
    with pytest.raises(TrainingError, match=r"is nan at step 4.*step-00000002.*optimizer.lr"):
        train(recipe(shards), tmp_path / "run", device="cpu")


def test_another_recipe_or_folder_is_refused(shards, undisturbed, tmp_path):
    with pytest.raises(TrainingError, match=r"optimizer.lr was 0.001, is 0.002"):
        train(recipe(shards, **{"optimizer.lr": 2e-3}), undisturbed, device="cpu")
    # What does not decide the weights may change.
    train(recipe(shards, log_every=3), undisturbed, device="cpu")
    with pytest.raises(TrainingError, match="--resume auto"):
        train(recipe(shards), undisturbed, device="cpu", resume="no")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="holds other files"):
        train(recipe(shards), tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        train(recipe(shards), tmp_path / "new", device="cpu", resume=str(tmp_path / "nowhere"))


def test_a_changed_dataset_is_refused(tmp_path):
    made = tmp_path / "dr"
    made.mkdir()
    folder(made, [[sample(i) for i in range(20)]])
    run = tmp_path / "run"
    _stop_at_5(str(made), run)
    for path in made.iterdir():
        path.unlink()
    folder(made, [[sample(i) for i in range(1, 21)]])
    with pytest.raises(TrainingError, match="changed since the checkpoint"):
        train(recipe(str(made)), run, device="cpu")


def test_a_checkpoint_elsewhere_can_be_resumed_from(shards, undisturbed, tmp_path):
    second = str(checkpoints.find(undisturbed)[2])
    summary = train(recipe(shards), tmp_path / "other", device="cpu", resume=second)
    assert summary.step == 6
    assert [line["step"] for line in read(tmp_path / "other" / "log.jsonl")] == [3, 4, 5, 6]
    assert same(weights(tmp_path / "other"), weights(undisturbed))


def test_the_best_checkpoint_is_kept(shards, tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.4])
    seen = []

    def score(model, step):
        assert model.config.name == "tiny"
        seen.append(step)
        return {"main_metric": next(scores)}

    fields = {"steps": 10, "checkpoint.keep_last": 1}
    summary = train(recipe(shards, **fields), tmp_path / "run", device="cpu", on_checkpoint=score)
    assert seen == [2, 4, 6, 8, 10]
    assert summary.best == (4, 0.9)
    assert [p.name for p in checkpoints.find(tmp_path / "run")] == [
        "step-00000010",
        "step-00000004",
    ]
    scored = [line for line in read(tmp_path / "run" / "log.jsonl") if "eval/main_metric" in line]
    assert [line["step"] for line in scored] == seen


@pytest.fixture(scope="module")
def averaged(shards, tmp_path_factory):
    """A finished run that keeps an average; not to be changed. `scored.pt`: what was scored."""
    run = tmp_path_factory.mktemp("runs") / "averaged"

    def score(model, step):  # noqa: ARG001
        torch.save(model.state_dict(), run.parent / "scored.pt")
        return {"main_metric": 0.0}

    train(recipe(shards, ema=0.9), run, device="cpu", on_checkpoint=score)
    return run


def test_the_average_is_scored_and_is_the_finished_model(averaged):
    scored_last = torch.load(averaged.parent / "scored.pt", weights_only=True)
    assert same(weights(averaged), scored_last)
    assert not same(weights(averaged), weights(checkpoints.find(averaged)[0]))


def test_the_scale_is_clamped(shards, tmp_path):
    fields = {"max_logit_scale": 14.0, "optimizer.lr": 1e-3, "steps": 2}
    train(recipe(shards, **fields), tmp_path / "run", device="cpu")
    log = read(tmp_path / "run" / "log.jsonl")
    assert max(line["logit_scale"] for line in log) == pytest.approx(14.0, abs=1e-3)


def test_frozen_weights_stay(shards, tmp_path, caplog):
    fields = {"model.freeze_text": 0, "model.freeze_image": 1, "model.freeze_batch_norm": True}
    changed = recipe(shards, **fields)
    before = initial_model(changed).state_dict()
    train(changed, tmp_path / "run", device="cpu")
    assert "model.freeze_image is set without model.init" in caplog.text
    after = weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "image.head.weight" in moved or any(n.startswith("image.") for n in moved)
    assert not any(name.startswith("text.") for name in moved)
    assert not any("running_" in name for name in moved)
    with pytest.raises(ConfigError, match=r"model.freeze_image: train_last must be"):
        train(recipe(shards, **{"model.freeze_image": 99}), tmp_path / "no", device="cpu")


def test_low_rank_updates_leave_an_ordinary_model(shards, undisturbed, tmp_path, caplog):
    fields = {"model.init": str(undisturbed), "optimizer.lr": 1e-2, "steps": 3}
    summary = train(recipe(shards, **fields, **LORA), tmp_path / "run", device="cpu")
    assert "stay random" not in caplog.text
    before, after = weights(undisturbed), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    model = checkpoint.load(tmp_path / "run")
    updates = LowRankUpdates(model, rank=2, alpha=4, towers=("image", "text"), seed=0)
    assert moved == {"logit_scale", *updates.names()}
    for name in updates.names():
        change = (after[name] - before[name]).flatten(1).double()
        values = torch.linalg.svdvals(change)
        assert values[2:].sum() < 1e-2 * values[:2].sum(), name
    saved = checkpoints.newest(tmp_path / "run")
    assert same(weights(saved.folder), after)
    assert summary.model == tmp_path / "run" / "model"

    # Nothing is continued that trained something else.
    other = recipe(shards, **{**fields, "steps": 4})
    with pytest.raises(CheckpointError, match=r"trained other parameters .* as model.init"):
        train(other, tmp_path / "other", resume=str(tmp_path / "run"), device="cpu")


def test_the_rate_of_each_layer_is_its_own(shards, undisturbed, tmp_path):
    fields = {"optimizer.layer_decay": 0.5, "optimizer.weight_decay": 0.0, "steps": 1}
    fields |= {"model.init": str(undisturbed), "optimizer.lr": 1e-3, "optimizer.eps": 1e-12}
    train(recipe(shards, **fields), tmp_path / "run", device="cpu")
    before, after = weights(undisturbed), weights(tmp_path / "run")
    # AdamW's first step is the rate itself, whatever the gradient.
    for name, scale in {
        "image.head.weight": 1, "image.stages.3.blocks.0.attn.qkv.weight": 0.5,
        "image.stem.0.conv.conv.weight": 0.5**5, "text.blocks.0.attn.qkv.weight": 0.5,
    }.items():  # fmt: skip
        steps = (after[name] - before[name]).abs()
        assert steps.max().item() == pytest.approx(1e-3 * scale, rel=0.02), name


def test_what_one_tower_adapted_means_for_the_other(shards, undisturbed, tmp_path):
    fields = {"model.init": str(undisturbed), "model.lora.towers": "image", "steps": 2}
    train(recipe(shards, **fields), tmp_path / "frozen", device="cpu")
    fields["model.freeze_text"] = "head"
    train(recipe(shards, **fields), tmp_path / "head", device="cpu")
    before = weights(undisturbed)
    for name, expected in {"frozen": set(), "head": {"text.head.weight"}}.items():
        after = weights(tmp_path / name)
        moved = {n for n in after if not torch.equal(before[n], after[n])}
        assert {n for n in moved if n.startswith("text.")} == expected
        assert any(n.startswith("image.") for n in moved)


def test_a_run_can_start_from_a_model(shards, undisturbed, tmp_path):
    begun = recipe(shards, **{"model.init": str(undisturbed), "optimizer.lr": 1e-9, "steps": 1})
    train(begun, tmp_path / "run", device="cpu")
    before, after = weights(undisturbed), weights(tmp_path / "run")
    for name, value in after.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)
    wrong = recipe(shards, **{"model.init": str(undisturbed), "model.overrides.text.layers": 2})
    with pytest.raises(CheckpointError, match="does not fit tiny as the recipe describes"):
        train(wrong, tmp_path / "no", device="cpu")


def test_a_start_that_computes_something_else_is_named(shards, undisturbed, caplog):
    fields = {"model.init": str(undisturbed), "model.overrides.text.heads": 4}
    initial_model(recipe(shards, **fields))
    assert "was made with text.heads=2" in caplog.text
    caplog.clear()
    initial_model(
        recipe(shards, **{"model.init": str(undisturbed), "model.overrides.drop_path": 0.1})
    )
    assert not caplog.text


def test_a_model_inherits_the_licence_of_what_it_began_with(shards, undisturbed, tmp_path):
    init = checkpoint.load(undisturbed)
    init.license = License(name="birds", text="For birds only.\n")
    checkpoint.save(init, tmp_path / "init")
    fields = {"model.init": str(tmp_path / "init"), "steps": 3, "ema": 0.5}
    fields |= {"checkpoint.keep_last": 1, "checkpoint.keep_best": False}
    train(recipe(shards, **fields), tmp_path / "run", device="cpu")
    assert checkpoint.load(tmp_path / "run").license == init.license
    # Of the two checkpoints, the first was removed with its text.
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert (step / "LICENCE.txt").read_text() == init.license.text
    assert checkpoints.load_scored(checkpoints.check(step)).license == init.license


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("scoring", 4),
        ("noting", 6),
        ("logging", 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_MOMENTS),
    ],
)
def test_a_run_killed_between_saving_and_scoring_has_its_scores(
    shards, tmp_path, monkeypatch, moment, step
):
    """The process that resumes scores the checkpoint, once."""
    run = tmp_path / "run"

    def killed(where):
        if where == moment and now == [step]:
            raise KeyboardInterrupt

    def score(_, at):
        now[:] = [at]
        killed("scoring")
        return {"main_metric": float(at == 2)}

    now = []
    record, write = checkpoints.record_metrics, Log.write
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints, "record_metrics", lambda *args: (killed("noting"), record(*args))
        )
        patch.setattr(
            Log,
            "write",
            lambda self, record: (
                "eval/main_metric" in record and killed("logging"),
                write(self, record),
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            train(recipe(shards), run, device="cpu", on_checkpoint=score)
    moment = None
    summary = train(recipe(shards), run, device="cpu", on_checkpoint=score)
    assert (summary.best, summary.metrics) == ((2, 1.0), {"main_metric": 0.0})
    scores = [(r["step"], r["eval/main_metric"]) for r in read(run / "log.jsonl") if len(r) == 2]
    assert scores == [(2, 1.0), (4, 0.0), (6, 0.0)]
    assert [checkpoints.check(p).metrics["main_metric"] for p in checkpoints.find(run)] == [
        0.0,
        0.0,
        1.0,
    ]


def test_precision_checkpointing_and_layout(shards, tmp_path):
    plain = recipe(shards, steps=2)
    train(plain, tmp_path / "plain", device="cpu")
    expected = read(tmp_path / "plain" / "log.jsonl")[0]["loss"]
    for name, fields in {
        "checkpointing": {"gradient_checkpointing": True},
        "channels_last": {"channels_last": True},
        "bfloat16": {"precision": "bfloat16"},
        "float16": {"precision": "float16"},
    }.items():
        train(recipe(shards, steps=2, **fields), tmp_path / name, device="cpu")
        loss = read(tmp_path / name / "log.jsonl")[0]["loss"]
        starts = json.loads((tmp_path / name / "run.json").read_text())["starts"]
        if "16" in name:
            # BatchNorm over eight single pixels magnifies rounding: how near it comes with a
            # well-conditioned model is tested in test_step.
            assert starts[0]["precision"] == name
            assert np.isfinite(loss)
            assert loss != expected
        else:
            assert loss == pytest.approx(expected, rel=1e-4), name


def test_the_memory_format_follows_the_device_and_the_image_tower(shards):
    def chosen(device, **fields):
        return uses_channels_last(recipe(shards, **fields), torch.device(device))

    assert chosen("cuda")
    assert not chosen("cpu")
    vit = {"model": {"name": "vit-b16"}}
    assert not chosen("cuda", **vit)
    assert chosen("cpu", channels_last=True)
    assert chosen("cuda", channels_last=True, **vit)
    assert not chosen("cuda", channels_last=False)
    with pytest.raises(ConfigError, match="channels_last: should be auto, true or false, not 'som"):
        recipe(shards, channels_last="sometimes")


@pytest.mark.parametrize("saved", ["false", "true"])
def test_a_run_from_before_the_automatic_memory_format_resumes(
    shards, undisturbed, tmp_path, saved
):
    run = tmp_path / "run"
    _stop_at_5(shards, run)
    path = run / "recipe.yaml"
    text = path.read_text()
    assert "channels_last: auto" in text
    path.write_text(text.replace("channels_last: auto", f"channels_last: {saved}"))
    other = saved == "false"
    with pytest.raises(TrainingError, match=f"channels_last was {not other}, is {other}"):
        train(recipe(shards, channels_last=other), run, device="cpu")
    train(recipe(shards), run, device="cpu")
    assert same(weights(run), weights(undisturbed))


def test_errors_before_the_first_step_leave_no_folder(shards, tmp_path):
    with pytest.raises(ConfigError, match="no training data"):
        train(recipe(()), tmp_path / "run", device="cpu")
    with pytest.raises(DataError):
        train(recipe(str(tmp_path / "nowhere")), tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="8 does not divide by 1 processes x 3"):
        train(recipe(shards).model_copy(update={"accumulate": 3}), tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="live teachers; 0 were given"):
        train(recipe(shards).model_copy(update={"teachers": ("x",)}), tmp_path / "r", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_the_teachers_dimensions_and_scales_must_be_known(tmp_path):
    made = tmp_path / "dr"
    made.mkdir()
    source = str(folder(made, [[sample(i) for i in range(20)]], index=False))
    (made / "config.json").write_text(
        json.dumps({"reinforce": {"image_augmentation": {"random_resized_crop": {"size": 8}}}})
    )
    with pytest.raises(ConfigError, match=r"set loss\.teacher_dims"):
        train(recipe(source), tmp_path / "run", device="cpu")
    known = recipe(
        source, **{"loss.teacher_dims": [8, 4], "loss.teacher_scales": [50, 60], "steps": 1}
    )
    assert train(known, tmp_path / "run", device="cpu").step == 1


def reduced(full, shards):
    """Return the fields that shrink a recipe to one step of a tiny model of the same kind."""
    config = full.model.config()
    small = dict(full.model.overrides)
    small |= {
        "image_size": 32,
        "embed_dim": 16,
        "text.width": 32,
        "text.layers": 1,
        "text.heads": 2,
    }
    if hasattr(config.image, "depths"):
        stages = len(config.image.depths)
        small |= {"image.depths": [1] * stages, "image.widths": [8 * 2**i for i in range(stages)]}
    else:
        small |= {"image.width": 32, "image.layers": 1, "image.heads": 2}
        if config.image.stem == "patch":
            small |= {"image.patch_size": 16}
        if config.image.pool_queries:
            small |= {"image.pool_queries": 5, "image.pool_heads": 2}
    for tower in ("image", "text"):
        if getattr(getattr(config, tower), "moe", None) is not None:
            small |= {f"{tower}.moe": {"blocks": [0], "experts": 4}}
    if config.decoder is not None:
        small |= {"decoder.layers": 1, "decoder.heads": 2, "embed_dim": 32}
    return {
        "model.name": full.model.name,
        "model.overrides": small,
        "model.init": None,  # coca-finetune's is on the hub
        "data.source": shards,
        "data.workers": 0,
        # The published keys of captions and logit scales, on shards that have others.
        "data.caption_pattern": ".*",
        "batch_size": 4 * full.accumulate,
        "steps": 1,
        "schedule.warmup": 0,
        "schedule.constant": 0,
        "precision": "float32",
        "tensorboard": False,
    }


@pytest.mark.parametrize("name", names())
def test_the_first_step_of_every_recipe(name, shards, tmp_path):
    full = load_recipe(name)
    summary = train(load_recipe(name, reduced(full, shards)), tmp_path / "run", device="cpu")
    assert summary.step == 1
    log = read(tmp_path / "run" / "log.jsonl")[0]
    assert np.isfinite(log["loss"])
    assert log["grad_norm"] > 0
    weights_of = dict(zip(("contrastive_loss", "distill_loss"), full.loss.weights, strict=True))
    for term, weight in weights_of.items():
        assert (log.get(term, 0.0) != 0) == (weight > 0)
    assert (full.moe is not None) == ("experts" in log) == ("text_balance_loss" in log)


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("mobileclip2-dfndr2b", "mobileclip2-s2 mobileclip2-b mobileclip2-s3 mobileclip2-l14"),
        ("mobileclip-datacompdr1b", "mobileclip-b vit-b16"),
    ],
)
def test_the_first_step_by_model(name, models, shards, tmp_path):
    world = distributed.World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    for model in models.split():
        full = load_recipe(name, {"model.name": model})
        small = load_recipe(name, reduced(full, shards))
        assert small.loss == full.loss
        with open_loader(small, world, 4, None) as loader:
            run = build_run(
                small, tmp_path, world, model=initial_model(small), loader=loader,
                teachers=(), step=0, trainer_state={},
            )  # fmt: skip
            terms = run.stepper.backward(list(itertools.islice(loader.batches(), 1)))
            run.update_weights(terms)
        assert run.check_steps()["grad_norm"] > 0
        assert [float(v) != 0 for v in terms.values()] == [w > 0 for w in full.loss.weights]


def test_each_term_has_its_own_captions_in_a_run(tmp_path):
    made = tmp_path / "dr"
    made.mkdir()
    stored = [sample(i) for i in range(9)]
    for one in stored:
        del one.embeddings["text_emb"]  # only the synthetic captions are distilled
    source = str(folder(made, [stored]))
    own = {"loss.contrastive_captions": "truth", "loss.distill_captions": "synthetic", "steps": 1}
    train(recipe(source, **own, **{"loss.same_text": "positive"}), tmp_path / "run", device="cpu")
    (log,) = read(tmp_path / "run" / "log.jsonl")
    assert log["contrastive_loss"] > 0
    assert log["distill_loss"] > 0
    with pytest.raises(DataError, match="no embedding 0 under text_emb"):
        train(recipe(source), tmp_path / "all", device="cpu")


def test_plain_training_on_raw_pairs(tmp_path):
    from PIL import Image

    table = ["filepath,caption,split"]
    for i in range(12):
        Image.new("RGB", (24, 20), (20 * i, 10, 200)).save(tmp_path / f"{i}.png")
        table.append(f"{i}.png,shade number {i},{'train' if i < 10 else 'test'}")
    (tmp_path / "pairs.csv").write_text("\n".join(table) + "\n")
    fields = {
        "data.reinforced": False, "data.captions": "truth", "data.where.split": "train",
        "loss.weights": [1.0, 0.0], "batch_size": 5, "steps": 3,
    }  # fmt: skip
    run = tmp_path / "run"
    assert train(recipe(str(tmp_path / "pairs.csv"), **fields), run, device="cpu").step == 3
    assert json.loads((run / "run.json").read_text())["samples"] == 10


@pytest.mark.slow
def test_two_processes_by_torchrun_and_one_resumes(shards, tmp_path, caplog):
    whole = recipe(shards, steps=4, **{"model.freeze_batch_norm": False})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole.model_dump(mode="json")))
    arguments = [str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "pocketclip.train"),
    ]
    done = subprocess.run(
        [*command, *arguments, "--json"], timeout=240, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["step"], facts["samples"]) == (4, 32)
    run = tmp_path / "run"
    assert [line["step"] for line in read(run / "log.jsonl")] == [1, 2, 3, 4]
    assert json.loads((run / "run.json").read_text())["starts"][0]["processes"] == 2
    for name, value in weights(run).items():
        assert torch.isfinite(value.float()).all(), name
    # One process resumes where two stopped, and says so.
    (run / "model").rename(tmp_path / "finished")
    for path in checkpoints.find(run)[:1]:
        path.rename(tmp_path / "last")
    train(whole, run, device="cpu")
    assert "had 2 processes and resumes with 1" in caplog.text
    assert json.loads((run / "run.json").read_text())["starts"][1]["step"] == 2
    assert (run / "model" / "model.safetensors").is_file()


def test_a_finished_run_without_its_model_gets_it(shards, undisturbed, averaged, tmp_path):
    for finished, fields in ((undisturbed, {}), (averaged, {"ema": 0.9})):
        run = shutil.copytree(finished, tmp_path / finished.name)
        shutil.rmtree(run / "model")
        summary = train(recipe(shards, **fields), run, device="cpu")
        assert summary.model == run / "model"
        assert same(weights(run), weights(finished))


def test_what_was_just_saved_outlives_damaged_later_ones(shards, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(run / "model")
    for path in checkpoints.find(run)[:2]:
        (path / "trainer.pt").unlink()
    fields = {"checkpoint.every_steps": 3, "checkpoint.keep_last": 1}
    train(recipe(shards, **fields), run, device="cpu")
    assert [p.name for p in checkpoints.find(run)] == ["step-00000006"]
    assert checkpoints.newest(run).step == 6


def test_resuming_does_not_need_the_initial_weights(shards, undisturbed, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(undisturbed / "model", first)
    begun = recipe(shards, **{"model.init": str(first)})
    run = tmp_path / "run"
    train(begun, run, device="cpu")
    shutil.rmtree(first)
    shutil.rmtree(checkpoints.find(run)[0])
    assert train(begun, run, device="cpu").step == 6


def test_half_written_folders_of_killed_processes_go(shards, resumable):
    run = resumable
    killed = """
        import os, signal, sys
        from pathlib import Path
        from pocketclip.storage.local import write_whole, write_whole_folder
        run = Path(sys.argv[1])
        with (
            write_whole_folder(run / "checkpoints" / "step-00000006") as folder,
            write_whole(run / "checkpoints" / "step-00000004" / "checkpoint.json") as seal,
            write_whole_folder(run / "model"),
        ):
            (folder / "model.safetensors").write_bytes(bytes(1000))
            seal.write_bytes(b"{")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(killed), str(run)], check=False)
    (run / "checkpoints" / "step-00000001").mkdir()  # `prune` was killed before it was done
    assert len(list(run.rglob(".*.tmp"))) == 3
    with write_whole_folder(run / "checkpoints" / "step-00000009") as living:
        train(recipe(shards), run, device="cpu")
        assert list(run.rglob(".*.tmp")) == [living.parent]
    assert not list(run.rglob(".*"))
    assert not (run / "checkpoints" / "step-00000001").exists()


def test_a_start_that_was_killed_at_once_is_begun_again(shards, tmp_path):
    killed = """
        import os, signal, sys
        from pathlib import Path
        from pocketclip.storage import locks
        from pocketclip.storage.local import write_whole
        run = Path(sys.argv[1])
        with locks.claim(run, "a training"), write_whole(run / "recipe.yaml"):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", textwrap.dedent(killed), str(run)], check=False)
    assert len(list(run.iterdir())) == 2
    assert train(recipe(shards), run, device="cpu").step == 6
    assert not list(run.rglob(".*"))


def test_two_trainings_into_one_folder_are_refused(shards, tmp_path):
    def second(record):
        if record["step"] == 3:
            with pytest.raises(PocketclipError, match=rf"process {os.getpid()}.*choose another"):
                train(recipe(shards), run, device="cpu")
            tried.append(record["step"])

    run, tried = tmp_path / "run", []
    assert train(recipe(shards), run, device="cpu", on_log=second).step == 6
    assert tried == [3]
    assert [line["step"] for line in read(run / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not list(run.rglob(".*"))


def test_a_run_that_was_killed_while_it_removed_old_checkpoints(shards, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    whole = recipe(shards, **{"checkpoint.keep_last": 1})
    (run / "checkpoints" / "step-00000004" / "checkpoint.json").unlink()
    (run / "checkpoints" / "step-00000002" / "notes.txt").write_text("mine")
    shutil.rmtree(run / "model")
    train(whole, run, device="cpu")
    assert [p.name for p in checkpoints.find(run)] == ["step-00000006"]
    assert [p.name for p in (run / "checkpoints" / "step-00000002").iterdir()] == ["notes.txt"]
    assert not (run / "checkpoints" / "step-00000004").exists()


def test_an_explicit_checkpoint_does_not_fill_a_folder_with_other_files(
    shards, undisturbed, tmp_path
):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="holds other files"):
        train(recipe(shards), tmp_path, device="cpu", resume=str(undisturbed))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_disk_that_fills_outside_of_a_checkpoint(shards, tmp_path, monkeypatch):
    def full(self, record):  # noqa: ARG001
        if record["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Log, "write", full)
    with pytest.raises(TrainingError, match=r"No space left.*step-00000002"):
        train(recipe(shards), tmp_path / "run", device="cpu")


def test_records_are_json_also_where_float16_overflows(shards, tmp_path):
    train(recipe(shards, steps=2, precision="float16"), tmp_path / "run", device="cpu")

    def refuse(text):
        raise AssertionError(text)

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len([json.loads(line, parse_constant=refuse) for line in lines]) == 2


@pytest.mark.slow  # as Ctrl-C, in cli/test_train.py; SIGTERM to one process is shown above
def test_a_schedulers_sigterm_to_all_processes_saves(shards, tmp_path):
    endless = recipe(shards, steps=10**6, **{"data.workers": 1, "checkpoint.every_steps": 10**5})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(endless.model_dump(mode="json")))
    run = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "pocketclip", "train", str(tmp_path / "recipe.yaml")),
        *("--out", str(run), "--device", "cpu"),
    ]
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while len(read(run / "log.jsonl")) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, stderr
    assert checkpoints.newest(run) is not None


def test_siglip_resumes_with_its_bias(shards, tmp_path):
    fields = {"loss.kind": "siglip", "loss.teacher_biases": [-5.0, -6.0], "optimizer.lr": 1e-2}
    whole = recipe(shards, **fields)
    train(whole, tmp_path / "whole", device="cpu")
    saved = checkpoints.newest(tmp_path / "whole")
    bias = checkpoints.load(saved)[1]["bias"]
    assert -10.5 < float(bias) < -9.5
    assert float(bias) != -10.0
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    shutil.rmtree(checkpoints.find(tmp_path / "again")[0])
    train(whole, tmp_path / "again", device="cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "again"))
    assert torch.equal(checkpoints.load(checkpoints.newest(tmp_path / "again"))[1]["bias"], bias)


# Evaluation


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A table of nine photographs in three colours."""
    from PIL import Image

    root = tmp_path_factory.mktemp("colours")
    table = ["filepath,product"]
    for i, colour in enumerate(["red", "green", "blue"] * 3):
        Image.new("RGB", (20, 20), colour).save(root / f"{i}.png")
        table.append(f"{i}.png,{colour}")
    (root / "colours.csv").write_text("\n".join(table) + "\n")
    return root / "colours.csv"


def scored(colours, **fields):
    return {
        "evaluation": {"data": str(colours), "label_column": "product"},
        "checkpoint.keep_last": 1,
        **fields,
    }


def test_train_scores_as_the_recipe_says(shards, colours, tmp_path, monkeypatch):
    from pocketclip.evaluate import DataOptions, RunOptions, plan
    from pocketclip.evaluate import run as evaluate
    from pocketclip.infer.encoder import Encoder
    from pocketclip.train import train as front

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fields = scored(colours, **{"checkpoint.keep_best": False})
    summary = front(recipe(shards, **fields), tmp_path / "run", device="cpu")
    tasks = plan(("colours",), str(colours), DataOptions(label_column="product")).ready
    encoder = Encoder(checkpoint.load(tmp_path / "run"))
    (expected,) = evaluate(encoder, tasks, options=RunOptions(cache=None))
    assert summary.metrics == {
        "main_metric": expected.main_metric, "colours": expected.main_metric
    }  # fmt: skip
    assert summary.failed_evaluations == 0
    lines = read(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines if "eval/colours" in line] == [2, 4, 6]
    # Each checkpoint is an embedding space of its own: nothing is kept for any of them.
    assert not (tmp_path / "cache").exists()


def test_a_caller_s_function_replaces_the_recipe_s_evaluation(shards, colours, tmp_path):
    run = recipe(shards, steps=2, **scored(colours))
    own = train(run, tmp_path / "run", device="cpu", on_checkpoint=lambda *_: {"mine": 1})
    assert own.metrics == {"mine": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluation.data": "nowhere"}, "evaluation: no data for nowhere"),
        ({"evaluation.label_column": "label"}, "evaluation: .*no column 'label'"),
        ({"evaluation.templates": ["no place"]}, "evaluation: .*no place"),
        ({"evaluation.where.product": "pink"}, "evaluation: .*product=pink"),
        ({"evaluation.tasks": ["a", "a"]}, "evaluation: .*given twice"),
    ],
)
def test_bad_evaluation_data_is_found_before_the_first_step(
    shards, colours, tmp_path, fields, message
):
    with pytest.raises(ConfigError, match=message):
        train(recipe(shards, **scored(colours, **fields)), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_photograph_of_the_evaluation_is_found_before_the_first_step(
    shards, colours, tmp_path
):
    root = tmp_path / "set"
    shutil.copytree(colours.parent, root)
    (root / "0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"evaluation: .*0\.png"):
        train(recipe(shards, **scored(root / "colours.csv")), tmp_path / "run", device="cpu")


def test_a_finished_run_does_not_need_its_evaluation_data(shards, colours, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(colours.parent, root)
    whole = recipe(shards, steps=2, **scored(root / "colours.csv"))
    train(whole, tmp_path / "run", device="cpu")
    shutil.rmtree(root)
    assert train(whole, tmp_path / "run", device="cpu").step == 2


FAILED_EVALUATIONS = {
    1: (PocketclipError("a disk is gone"), "a disk is gone"),
    2: (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
    3: ({"main_metric": float("nan")}, "main_metric is nan"),
    4: ({"main_metric": None}, "TypeError: "),
    5: (None, "AttributeError: "),
}
"""What an evaluation raises or returns after each step, and the reason that the log gives."""


def test_a_failed_evaluation_is_logged_and_training_continues(
    shards, undisturbed, tmp_path, caplog
):
    def score(_model, step):
        if step not in FAILED_EVALUATIONS:
            return {"main_metric": step / 10}
        outcome, _ = FAILED_EVALUATIONS[step]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    run = tmp_path / "run"
    fields = {"checkpoint.every_steps": 1, "checkpoint.keep_last": 9}
    summary = train(recipe(shards, **fields), run, device="cpu", on_checkpoint=score)
    assert (summary.step, summary.failed_evaluations, summary.best) == (6, 5, (6, 0.6))
    errors = {r["step"]: r["eval/error"] for r in read(run / "log.jsonl") if "eval/error" in r}
    assert errors.keys() == FAILED_EVALUATIONS.keys()
    for step, (_, reason) in FAILED_EVALUATIONS.items():
        logged = f"the evaluation after step {step} failed; training continues: {reason}"
        assert logged in caplog.text
        assert errors[step].startswith(reason)
        assert checkpoints.check(checkpoints.checkpoint_dir(run, step)).metrics == {}
    # The weights are those of a run without evaluations.
    assert same(weights(run), weights(undisturbed))


def test_an_interruption_while_it_is_scored_ends_the_run(shards, tmp_path):
    def score(_model, _step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(shards), tmp_path / "run", device="cpu", on_checkpoint=score)


# Numbers


def test_the_precision_of_the_first_start_is_kept(shards, tmp_path, monkeypatch, caplog):
    def machine(dtype):
        real = devices.resolve_dtype
        return lambda name, device: dtype if name == "auto" else real(name, device)

    whole = recipe(shards, precision="auto", steps=4)
    run = tmp_path / "run"
    with monkeypatch.context() as first:
        first.setattr(devices, "resolve_dtype", machine(torch.bfloat16))
        train(whole, run, device="cpu")
    assert checkpoints.load(checkpoints.newest(run))[1]["precision"] == "bfloat16"
    shutil.rmtree(run / "model")
    shutil.rmtree(checkpoints.find(run)[0])
    expected = (run / "log.jsonl").read_text().splitlines()[-1]
    with monkeypatch.context() as second:
        second.setattr(devices, "resolve_dtype", machine(torch.float32))
        train(whole, run, device="cpu")
        train(whole, tmp_path / "other", device="cpu", resume=str(checkpoints.find(run)[1]))
    assert "the run continues in bfloat16, as it began; `auto` would choose float32" in caplog.text
    for folder_path in (run, tmp_path / "other"):
        starts = json.loads((folder_path / "run.json").read_text())["starts"]
        assert {start["precision"] for start in starts} == {"bfloat16"}
        last = (folder_path / "log.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["loss"] == json.loads(expected)["loss"]
    # A precision that is named counts, in a folder of its own.
    named = recipe(shards, precision="float32", steps=4)
    train(named, tmp_path / "named", device="cpu", resume=str(checkpoints.find(run)[1]))
    starts = json.loads((tmp_path / "named" / "run.json").read_text())["starts"]
    assert [start["precision"] for start in starts] == ["float32"]


@pytest.mark.parametrize("where", ["weights", "statistics", "average"])
def test_non_finite_weights_are_not_saved(shards, tmp_path, monkeypatch, where):
    """The loss of a step is computed with the weights before it."""
    real = Run.update_weights

    def poisons(self, terms):
        real(self, terms)
        if self.step == 3:  # the fourth step's update
            state = self.average.state if where == "average" else self.model.state_dict()
            suffix = "running_var" if where == "statistics" else "weight"
            next(v for n, v in state.items() if n.endswith(suffix)).fill_(float("inf"))

    monkeypatch.setattr(Run, "update_weights", poisons)
    message = r"holds non-finite values at step 4; the last good .*step-00000002\. Resume"
    with pytest.raises(TrainingError, match=message):
        train(recipe(shards, ema=0.9), tmp_path / "run", device="cpu")
    assert [path.name for path in checkpoints.find(tmp_path / "run")] == ["step-00000002"]


def test_float16_that_never_steps_ends_the_run(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MIN_LOSS_SCALE", 2.0**14)
    real = Run.update_weights

    def overflows(self, terms):
        next(self.model.image.parameters()).grad.fill_(float("inf"))
        real(self, terms)

    monkeypatch.setattr(Run, "update_weights", overflows)
    with pytest.raises(TrainingError, match=r"every float16 gradient overflows.*step 3"):
        train(recipe(shards, precision="float16"), tmp_path / "run", device="cpu")


# What does not fit together


def test_problems_that_need_the_data_are_reported_before_any_work(shards, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="micro-batches of 1 sample"):
        train(recipe(shards, accumulate=8), run, device="cpu")
    with pytest.raises(ConfigError, match=r"12 values.* \[8, 5\] add up to 13"):
        train(recipe(shards, **{"loss.teacher_dims": [8, 5]}), run, device="cpu")
    raw = {"data.reinforced": False, "loss.weights": [1.0, 0.0], "data.where.split": "train"}
    with pytest.raises(ConfigError, match="tar shards have no columns"):
        train(recipe(shards, **raw), run, device="cpu")
    with pytest.raises(MissingDependencyError, match="wandb"):
        train(recipe(shards, wandb="p"), run, device="cpu")
    assert not run.exists()
