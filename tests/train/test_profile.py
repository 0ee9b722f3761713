"""Profiles of training steps: phases that add up, operations, files, and results that stay."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from pocketclip import checkpoint
from pocketclip.checkpoint.operations import forward_operations
from pocketclip.devices import peak_operations
from pocketclip.errors import ConfigError
from pocketclip.nn.build import random_model
from pocketclip.train.loop import train
from pocketclip.train.phases import PHASES, PhaseTimer, phase, timer_of_run
from pocketclip.train.recipe import load_recipe
from tests.shards.making import folder, sample

SMALL = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    made = tmp_path_factory.mktemp("data") / "dr"
    made.mkdir()
    return str(folder(made, [[sample(i) for i in range(16)]]))


def recipe(shards, **fields):
    base = {
        "model": {"name": "tiny", "overrides": SMALL},
        "data": {"source": shards, "workers": 0},
        "loss": {"weights": [0.5, 0.5]},
        "schedule": {"warmup": 2},
        "steps": 8,
        "batch_size": 8,
        "precision": "float32",
        "log_every": 1,
        "checkpoint": {"every_steps": 4, "every_minutes": None},
        "tensorboard": False,
    }
    return load_recipe(base, fields)


def weights(run):
    return checkpoint.load(run).state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_profile_says_where_the_time_goes_and_changes_nothing(shards, tmp_path, accumulate):
    chosen = recipe(shards, accumulate=accumulate)
    train(chosen, tmp_path / "plain", device="cpu")
    profiles = []
    run = tmp_path / "profiled"
    train(chosen, run, device="cpu", profile=2, on_profile=profiles.append)
    expected = weights(tmp_path / "plain")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())

    (found,) = profiles
    assert (found.first_step, found.steps, found.samples) == (4, 2, 8)
    assert list(found.milliseconds) == [*PHASES, "other"]
    assert all(value >= 0 for value in found.milliseconds.values())
    for name in ("data", "forward", "loss", "backward", "optimizer"):
        assert found.milliseconds[name] > 0, name
    config = chosen.model.config()
    longest = range(3, 17)  # tokens of the longest text: the tower leaves out what follows
    one_pass = {8 * (o.image + 2 * o.text)
                for o in (forward_operations(config, tokens=n, fused=False)
                          for n in longest)}  # fmt: skip
    if accumulate == 1:
        assert found.operations / 3 in {(a + b) / 2 for a in one_pass for b in one_pass}
    else:  # the pass without gradients counts too; the lengths of the micro-batches differ
        assert 4 * min(one_pass) <= found.operations <= 4 * max(one_pass)
    # Nothing is known of this CPU's peak, and nothing is claimed.
    assert found.peak is None
    assert found.share_of_peak is None
    assert found.operations_per_second == pytest.approx(1000 * found.operations / found.total)

    files = sorted(path.name for path in (run / "profile").iterdir())
    assert files == ["profile.json", "trace.json"]
    stored = json.loads((run / "profile" / "profile.json").read_text())
    assert stored == json.loads(json.dumps(found.as_json()))
    assert stored["milliseconds_per_step"] == pytest.approx(sum(stored["milliseconds"].values()))
    events = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    forwards = 2 * accumulate * (2 if accumulate > 1 else 1)  # of two steps
    assert names.count("forward") == forwards
    assert names.count("optimizer") == 2
    assert any("conv" in str(event.get("name")) for event in events)


def test_what_cannot_be_profiled_is_one_error(shards, tmp_path):
    for steps, message in (
        (0, "must be 1 or more, not 0"),
        (4, r"profiling 4 steps takes 9 .* the run has 8 left"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(recipe(shards), tmp_path / "run", device="cpu", profile=steps)
        assert not (tmp_path / "run").exists()
    run = tmp_path / "run"
    train(recipe(shards), run, device="cpu")
    with pytest.raises(ConfigError, match="the run has 0 left"):
        train(recipe(shards), run, device="cpu", profile=1)


@pytest.mark.parametrize("last", [4, 7])
def test_an_interrupted_profile_leaves_no_files(shards, tmp_path, caplog, last):
    def on_log(record):
        if record["step"] == last - 1:
            os.kill(os.getpid(), signal.SIGINT)

    profiles = []
    run = tmp_path / "run"
    done = train(
        recipe(shards, steps=20), run, device="cpu",
        profile=3, on_profile=profiles.append, on_log=on_log,
    )  # fmt: skip
    assert (done.interrupted, done.step, profiles) == (True, last, [])
    assert not (run / "profile").exists()
    assert "no profile" in caplog.text
    assert timer_of_run.get() is None


def test_an_error_while_the_trace_is_written_leaves_the_run_to_resume(
    shards, tmp_path, monkeypatch
):
    def full(_self, path):
        Path(path).write_text("{")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", full)
    run = tmp_path / "run"
    with pytest.raises(Exception, match="No space left") as caught:
        train(recipe(shards), run, device="cpu", profile=1)
    assert "resume" in str(caught.value)
    assert not list((run / "profile").iterdir())
    assert timer_of_run.get() is None
    monkeypatch.undo()
    assert train(recipe(shards), run, device="cpu").step == 8


def test_phases_are_exclusive():
    with phase("forward"):
        assert timer_of_run.get() is None
    timer = PhaseTimer(torch.device("cpu"), random_model("tiny", seed=0))
    times = iter(range(100))
    timer._mark = lambda: next(times)
    token = timer_of_run.set(timer)
    try:
        timer.switch("other")  # 0
        with phase("data"), phase("copy"):  # 1, 2 to 3, 4
            pass
        with pytest.raises(ValueError, match="in it"), phase("loss"):  # 5 to 6
            raise ValueError("in it")
        timer.switch(None)  # 7
        timer.switch("other")  # 8
        timer.switch(None)  # 9
    finally:
        timer_of_run.reset(token)
    assert timer.seconds() == {"other": 4, "data": 2, "copy": 1, "loss": 1}


def test_peaks_are_those_of_the_card_itself():
    tera = {
        ("NVIDIA H100 80GB HBM3", "bfloat16"): 989.5,
        ("NVIDIA H100 80GB HBM3", "float32"): 494.5,
        ("NVIDIA H100 PCIe", "float16"): 756.0,
        ("NVIDIA H200", "bfloat16"): 989.5,
        ("NVIDIA A100-SXM4-80GB", "bfloat16"): 312.0,
        ("NVIDIA A100 80GB PCIe", "bfloat16"): 312.0,
        ("NVIDIA L4", "bfloat16"): 121.0,
        ("NVIDIA GeForce RTX 4090", "bfloat16"): 165.2,
    }
    for (name, precision), peak in tera.items():
        assert peak_operations(name, precision) == peak * 1e12
    for name in (
        "cpu", "Tesla T4", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GH200 480GB", "NVIDIA L40", "NVIDIA A100X",
    ):  # fmt: skip
        assert peak_operations(name, "bfloat16") is None, name
