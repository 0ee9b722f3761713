"""The benchmark of learning efficiency: on a tiny set of its form, and its arithmetic by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import learning_efficiency as benchmark
import learning_student
import learning_trials
from learning_convs import MatrixConv, RepeatedConv, quicken
from learning_report import averages, plot, summary
from pocketclip.nn.build import create_model
from tests.small_groceries import write_groceries

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_groceries(folder)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """A student and a batch that take no time."""
    overrides = {
        **learning_student.STUDENT["overrides"],
        "image_size": 32,
        "image.depths": [1, 1],
        "image.widths": [8, 32],
        "text.layers": 1,
    }
    student = {"name": "small", "overrides": overrides}
    monkeypatch.setitem(learning_student.COMMON, "model", student)
    monkeypatch.setitem(learning_student.COMMON, "batch_size", 4)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_runs_are_kept_and_not_repeated(data, tmp_path, capsys, monkeypatch):
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--budgets", "8", "16"]
    arguments += ["--seeds", "0", "--plot", str(tmp_path / "plot.svg")]
    benchmark.main(arguments)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    records = learning_student.results(tmp_path / "out" / "results.jsonl")
    assert [(r["arm"], r["samples"]) for r in records] == [
        (arm, budget) for budget in (8, 16) for arm in ("plain", "captions", "reinforced")
    ]
    # Three test photographs: each accuracy is a whole number of thirds.
    assert all(round(r["top1"] * 3 / 100, 6) in (0, 1, 2, 3) for r in records)
    plain = [r["top1"] for r in records if r["arm"] == "plain"]
    assert last["plain_best_top1"] == round(max(plain), 2)
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")

    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("a run was repeated"))
    benchmark.main(arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == last


@pytest.mark.usefixtures("tiny")
def test_settings_add_up(data, tmp_path, monkeypatch):
    recipe_of, seen = benchmark.recipe_of, []
    monkeypatch.setattr(
        benchmark, "recipe_of", lambda *of, **changes: seen.append(changes) or recipe_of(*of)
    )
    settings = ["--set", "x=1", "--set", "y=[2]", "z=3"]
    benchmark.main(["--data", str(data), "--out", str(tmp_path), "--prepare", *settings])
    assert seen == [{"x": 1, "y": [2], "z": 3}]


@pytest.mark.usefixtures("tiny")
def test_the_arms_see_the_same_views_in_the_same_order(data, tmp_path):
    photos = benchmark.prepare(data, tmp_path, 32)
    streams = [
        list(learning_student.batches(photos, benchmark.recipe_of(arm, 16, 3)))
        for arm in benchmark.ARMS
    ]
    for batches in zip(*streams, strict=True):
        assert all((b.images == batches[0].images).all() for b in batches)
        assert all(b.texts[0] == batches[0].texts[0] for b in batches)
    other = next(learning_student.batches(photos, benchmark.recipe_of("plain", 16, 4)))
    assert other.texts != streams[0][0].texts
    # Each sample comes once before any comes twice.
    seen = [text for batch in streams[0] for text in batch.texts[0]]
    assert sorted(seen[:9]) == sorted(photos.texts[row][0][0] for row in range(9))


@pytest.mark.usefixtures("tiny")
def test_fewer_views(data, tmp_path):
    photos = benchmark.prepare(data, tmp_path, 32)
    photos.views = np.broadcast_to(
        np.arange(2, dtype=np.uint8)[:, None, None, None], (9, 2, 8, 8, 3)
    )
    recipe = benchmark.recipe_of("plain", 16, 0)
    for stored, expected in ((None, {0, 1}), (1, {0})):
        batches = learning_student.batches(photos, recipe, stored)
        assert {v for batch in batches for v in batch.images.unique().tolist()} == expected


@pytest.mark.usefixtures("tiny")
def test_embeddings_belong_to_their_captions(data, tmp_path):
    photos = benchmark.prepare(data, tmp_path, 32)
    batch = next(learning_student.batches(photos, benchmark.recipe_of("reinforced", 16, 0)))
    for key in (0, 1):
        for text, row in zip(batch.texts[key], batch.teacher_captions[key], strict=True):
            matches = [
                photos.captions[n][key][i]
                for n in range(9)
                for i, known in enumerate(photos.texts[n][key])
                if known == text
            ]
            assert any(np.array_equal(row.numpy(), match) for match in matches)


@pytest.mark.usefixtures("tiny")
def test_trials_are_scored_on_the_validation_photographs(data, tmp_path, capsys, monkeypatch):
    variations = ({}, {"first_scale": 7.0}, {"ema": 0.5}, {"batch_size": 2})
    for name, value in {
        "RATES": (1e-3, 2e-3), "VARIATIONS": variations, "RATE_SAMPLES": 8, "VARIED_SAMPLES": 16,
    }.items():  # fmt: skip
        monkeypatch.setattr(learning_trials, name, value)
    arguments = ["--data", str(data), "--out", str(tmp_path)]
    learning_trials.main(arguments)
    records = learning_student.results(tmp_path / "trials.jsonl")
    assert [(r["arm"], r["samples"], r["changes"]) for r in records] == [
        *((arm, 8, {"optimizer.lr": rate}) for rate in (1e-3, 2e-3) for arm in benchmark.ARMS),
        *(("reinforced", 16, changes) for changes in variations),
    ]
    assert len({r["loss"] for r in records[-4:]}) == 3  # an average leaves the training as it is
    photos = benchmark.prepare(data, tmp_path, 32, "val")
    assert photos.held_out.shape == (6, 32, 32, 3)  # as the views, whatever the recipe's size
    assert all(round(r["top1"] * 6 / 100, 6) in range(7) for r in records)
    assert capsys.readouterr().out.count("| reinforced | 8 | lr 0.00") == 2
    monkeypatch.setattr(learning_trials, "run", lambda *_, **__: pytest.fail("run again"))
    learning_trials.main(arguments)


def test_scores_by_hand():
    class Model:
        def encode_image(self, pixels, **_):
            return torch.from_numpy(pixels.reshape(len(pixels), -1)[:, :3])

    class Encoder:
        model = Model()

    photos = type("Photos", (), {})()
    photos.classes, photos.labels = list("abc"), np.array([0, 1, 2])
    photos.templates = ("{}",)
    photos.held_out = np.zeros((3, 1, 1, 3), np.uint8)
    photos.held_out[:, 0, 0] = [[255, 100, 0], [255, 100, 0], [255, 100, 50]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_student, "build_classifier", lambda *_: np.eye(3, dtype=np.float32))
        found = learning_student.scores(photos, Encoder())
    # The right products are first, second and third.
    assert found["top1"] == pytest.approx(100 / 3)
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_quick_convolutions_are_the_same_function():
    torch.manual_seed(0)
    overrides = {"image.depths": (1, 1, 1), "image.widths": (8, 16, 32)}
    model = create_model("small", image_size=64, **overrides)
    pixels = torch.rand(4, 3, 64, 64)
    results = []
    for _ in range(2):
        model.zero_grad()
        model.image.train()(pixels).square().sum().backward()
        grads = [p.grad.clone() for p in model.image.parameters()]
        results.append((grads, model.image.eval()(pixels).detach()))
        quicken(model.image, pixels[:1])
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.reset_running_stats()
    kinds = [type(m) for m in model.modules()]
    assert MatrixConv in kinds
    assert RepeatedConv in kinds
    (plain, out), (quick, same) = results
    torch.testing.assert_close(same, out, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(quick, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def record(arm, samples, seed, top1):
    return {"arm": arm, "samples": samples, "seed": seed, "top1": top1}


def test_the_ratio_counts_measured_budgets_only():
    records = [record("plain", 10, 0, 10.0), record("plain", 10, 1, 14.0)]
    records += [record("plain", 100, 0, 20.0), record("plain", 100, 1, 24.0)]
    records += [record("plain", 400, 0, 8.0)]
    records += [record("reinforced", 10, 0, 21.9), record("reinforced", 20, 0, 22.0)]
    table = averages(["plain", "captions", "reinforced"], records)
    found = summary(table)
    assert (found["plain_best_top1"], found["plain_best_samples"]) == (22.0, 100)
    assert (found["reinforced_samples"], found["ratio"]) == (20, 5.0)
    assert found["reinforced_best_top1"] == 22.0
    assert found["captions_best_top1"] is None
    assert found["fewest_seeds"] == 1


def test_without_a_budget_that_reaches_it_there_is_no_ratio():
    records = [record("plain", 10, 0, 10.0), record("reinforced", 10, 0, 9.0)]
    found = summary(averages(["plain", "captions", "reinforced"], records))
    assert found["ratio"] is None
    assert found["reinforced_samples"] is None


def test_the_plot_has_a_point_for_each_mean():
    records = [record("plain", 10, s, 10.0 + s) for s in range(3)]
    records += [record("reinforced", b, 0, 30.0) for b in (10, 20)]
    text = plot(averages(["plain", "captions", "reinforced"], records))
    assert len(re.findall("<circle", text)) == 3
    assert ">captions<" not in text  # no run of it


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
@pytest.mark.slow
def test_the_real_set_is_whole(tmp_path):
    photos = benchmark.prepare(SHARED, tmp_path, 64)
    assert photos.views.shape == (2640, 5, 64, 64, 3)
    assert len(photos.held_out) == len(photos.labels) == 2485
    assert len(photos.classes) == 81
    assert photos.scales == (23.2, 22.7)
