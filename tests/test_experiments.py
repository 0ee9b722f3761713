"""The experiments: each command on a tiny set, and their arithmetic by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import augmentation
import captions
import distillation
import experiment_figure
import experiment_report
import experiment_runs
import experiment_sets
import learning_student
import upcycling
import upcycling_report
from pocketclip.nn.moe import moe_layers
from pocketclip.quickstart.collection import Sizes
from pocketclip.train.recipe import load_recipe
from tests.small_groceries import write_groceries

ARMS = experiment_runs.Arm(name="left"), experiment_runs.Arm(name="right", captions="random")
PAIR = experiment_runs.Experiment(
    name="pair", title="Left & right", question="Which?", papers="Left.", arms=ARMS
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_groceries(folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where the tests keep the tiny sets, each made once."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A student, a batch and a teacher that take no time."""
    overrides = {
        **learning_student.STUDENT["overrides"],
        "image_size": 32,
        "image.depths": [1, 1],
        "image.widths": [8, 32],
    }
    student = {"name": "small", "overrides": overrides}
    monkeypatch.setitem(learning_student.COMMON, "model", student)
    monkeypatch.setitem(learning_student.STUDENT, "overrides", overrides)
    monkeypatch.setitem(learning_student.COMMON, "batch_size", 4)
    settings = {"steps": 1, "batch_size": 4, "model.overrides": overrides, "schedule.warmup": 0}
    for name, value in settings.items():
        monkeypatch.setitem(experiment_sets.TEACHER, name, value)


def command(module, capsys, data, out, *more):
    arguments = ["--data", str(data), "--out", str(out), "--samples", "8", *more]
    experiment_runs.main(module.EXPERIMENT, arguments)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("module", "arms"), [(distillation, 1), (captions, 2), (augmentation, 2)], ids=str
)
def test_each_command_on_a_tiny_set(module, arms, data, out, capsys, monkeypatch):
    options = ["--sets", "groceries", "--seeds", "0", "--lambdas", "0.5", "1"]
    before = len(learning_student.results(out / "results.jsonl"))
    last = command(module, capsys, data, out, *options)
    assert (last["experiment"], last["runs"]) == (module.EXPERIMENT.name, 2 * arms)
    shown = {d["difference"] for d in last["differences"]}
    assert len(shown) == (1 if arms == 1 else 3)  # each lambda, and all together
    records = learning_student.results(out / "results.jsonl")[before:]
    assert [r["lambda"] for r in records] == [0.5] * arms + [1.0] * arms
    assert all(round(r["classification"] * 3 / 100, 6) in (0, 1, 2, 3) for r in records)
    text = (out / f"{last['experiment']}.md").read_text()
    assert text.count("| 0.5 |") == arms
    assert (out / f"{last['experiment']}.svg").read_text().startswith("<svg")

    (out / "ranks" / f"{records[0]['run']}.npz").unlink()
    assert command(module, capsys, data, out, *options) == last  # that run is repeated
    monkeypatch.setattr(experiment_runs, "do", lambda *_: pytest.fail("a run was repeated"))
    assert command(module, capsys, data, out, *options) == last


@pytest.mark.slow
def test_the_scenes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment_sets, "SCENES", Sizes(train=64, unseen=24, retrieval=24))
    options = ["--sets", "scenes", "--seeds", "0", "--lambdas", "1"]
    last = command(augmentation, capsys, tmp_path, tmp_path, *options)
    assert last["runs"] == 2
    weak = experiment_sets.load_set("scenes", "weak", tmp_path, tmp_path)
    strong = experiment_sets.load_set("scenes", "strong", tmp_path, tmp_path)
    assert weak.texts == strong.texts  # only the views differ, and what the teachers say of them
    assert not np.array_equal(weak.image, strong.image)
    assert len(weak.gallery) == len(weak.descriptions) == 24


def test_the_teachers_know_the_views_that_the_student_sees(data, out):
    """Weak views of an image are alike, strong ones differ; one teacher embeds both."""
    weak = experiment_sets.load_set("groceries", "weak", data, out)
    strong = experiment_sets.load_set("groceries", "strong", data, out)
    assert weak.views.shape == strong.views.shape == (9, 5, 32, 32, 3)
    assert weak.views.std(axis=1).mean() < strong.views.std(axis=1).mean() / 2
    assert weak.image.std(axis=1).mean() < strong.image.std(axis=1).mean()
    assert weak.texts == strong.texts
    assert weak.texts[0] == [["buy apple"], ["apple", "A red fruit, crisp."]]
    for ours, theirs in zip(weak.captions[0], strong.captions[0], strict=True):
        assert np.array_equal(ours, theirs)


def test_random_captions_are_of_other_samples_with_their_embeddings(data, out):
    photos = experiment_sets.load_set("groceries", "given", data, out)
    photos.texts = [[["truth"], [f"{row} {i}" for i in range(2)]] for row in range(9)]
    photos.views = np.broadcast_to(
        np.arange(9, dtype=np.uint8)[:, None, None, None, None], (9, 2, 8, 8, 3)
    )
    seen = {}
    for name, own in (("synthetic", {True}), ("random", {False})):
        recipe = learning_student.recipe_for(64, 0, {"loss.weights": (0, 1), "data.captions": name})
        found, seen[name] = set(), []
        for batch in learning_student.batches(photos, recipe):
            seen[name].append(batch.images.numpy())
            (texts,), (embeddings,) = batch.texts, batch.teacher_captions
            for image, text, embedding in zip(batch.images, texts, embeddings, strict=True):
                row, number = map(int, text.split())
                found.add(int(image[0, 0, 0]) == row)
                assert np.array_equal(embedding.numpy(), photos.captions[row][1][number])
        assert found == own
    # All else is the same in both arms, which are compared in pairs.
    assert np.array_equal(seen["synthetic"], seen["random"])


def test_ranks_by_hand():
    class Encoder:
        def encode_text(self, _texts):
            return np.eye(2, 3, dtype=np.float32)

        class model:
            @staticmethod
            def encode_image(pixels, **_):
                return torch.from_numpy(pixels.reshape(len(pixels), -1)[:, :3])

    photos = learning_student.Set(
        views=None, texts=[], image=None, captions=[], dims=(), scales=(), classes=["a", "b"],
        held_out=np.zeros((4, 1, 1, 3), np.uint8), labels=np.array([0, 1, 1, 0]),
        descriptions=["first", "second"], described=np.array([0, 1, 1, 0]),
    )  # fmt: skip
    photos.held_out[:, 0, 0] = [[200, 0, 0], [250, 250, 0], [0, 240, 0], [10, 20, 0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_runs, "build_classifier", lambda *_: np.eye(2, 3))
        ranks = experiment_runs.measure(photos, Encoder())
    assert ranks["class"].tolist() == ranks["text"].tolist() == [1, 2, 1, 2]  # a tie is a miss
    # Of the first text image 1 is the best, then its own 0, then its own 3. Of the second, its own
    # 1 and 2 come first.
    assert ranks["image"].tolist() == [2, 1]
    assert ranks["precision"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0])
    assert experiment_runs.scores_of(ranks)["retrieval"] == 50.0


def ranks_of(right, of=100):
    """Return ranks with so many first ones."""
    rows = np.where(np.arange(of) < right, 1, 2)
    return {"class": rows, "text": rows, "image": rows, "precision": 1 / rows}


def test_intervals_by_hand():
    fifty = ranks_of(50)
    one = experiment_report.compare(
        "a less b", "classification", [[(ranks_of(n), fifty)] for n in (52, 53, 57)]
    )
    assert one.by_seed == pytest.approx((2, 3, 7))
    # mean 4, deviation 2.6458, t 4.303: 4 +- 6.573
    assert one.seeds == pytest.approx((-2.573, 10.573), abs=1e-3)
    # The mean gain of an image has the deviation 18.2, so its standard error is about 1.8.
    assert 0 < one.images[0] < one.mean < one.images[1] < 9
    assert one.verdict == "higher, but open over seeds"
    two = [[(ranks_of(n), fifty), (ranks_of(n + 2), fifty)] for n in (70, 71)]
    both = experiment_report.compare("", "classification", two)
    assert (both.by_seed, both.verdict) == ((21, 22), "higher")
    alone = experiment_report.compare("", "retrieval", [[(fifty, fifty)]])
    assert (alone.seeds, alone.verdict) == (None, "open (one seed)")


def test_the_report_and_the_figure_hold_every_run():
    done = {
        experiment_runs.Run(world="scenes", arm=arm, share=share, seed=seed, samples=8): ranks_of(
            40 + 10 * (arm is ARMS[0]) + seed
        )
        for arm in ARMS
        for share in (0.5, 1.0)
        for seed in (0, 1)
    }
    text = experiment_report.report(PAIR, done)
    assert "| left | 0.5 | 50.5 (50.0 to 51.0) |" in text
    assert "| lambda 1 | zero-shot top-1 | +10.0 | +10.0, +10.0 |" in text
    assert "points, left less right, seed" in text
    assert "| all lambdas |" in text
    picture = experiment_figure.figure(PAIR, done)
    assert len(re.findall(r"<circle[^>]*fill-opacity", picture)) == 2 * len(done)  # two panels
    assert "Left &amp; right" in picture


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--samples", "40961"], "it must be from 1 to 40960"),
        (["--lambdas", "0"], "above 0"),
        (["--data", "nowhere"], "nowhere/grocery/pairs.csv does not exist"),
    ],
)
def test_bad_options(wrong, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        experiment_runs.main(PAIR, ["--data", str(tmp_path), "--out", str(tmp_path), *wrong])
    assert message in capsys.readouterr().err


@pytest.fixture
def tiny_vit(monkeypatch):
    """The recipe `grocery-vit` with a model and a batch that take no time."""
    sizes = {
        "image_size": 32, "embed_dim": 16, "image.width": 16, "image.layers": 4, "image.heads": 2,
        "text.width": 16, "text.layers": 4, "text.heads": 2, "text.embedding_buckets": 64,
        "text.context_length": 16,
    }  # fmt: skip
    recipe = load_recipe("grocery-vit", {"model.overrides": sizes, "batch_size": 4})
    monkeypatch.setattr(upcycling, "load_recipe", lambda name: {"grocery-vit": recipe}[name])


@pytest.mark.usefixtures("tiny_vit")
def test_upcycling_on_a_tiny_set(data, tmp_path, capsys, monkeypatch):
    command = ["--data", str(data), "--out", str(tmp_path), "--first", "8", "--more", "12"]
    with pytest.raises(SystemExit, match="continues the arm `dense` of seed 0"):
        upcycling.main([*command, "--seeds", "0", "--arms", "upcycled"])
    arms = ["--seeds", "0", "--arms", "dense", "dense-more", "upcycled", "sparse"]
    upcycling.main([*command, "--time", "2"])
    upcycling.main([*command, *arms])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["runs"] == 4
    assert last["step_time"].keys() == upcycling.MODELS.keys()
    compared = {one["difference"] for one in last["differences"]}
    assert compared == {"upcycled less dense-more", "upcycled less sparse"}
    ends = {}
    for record in learning_student.results(tmp_path / "results.jsonl"):
        ends.setdefault(record["arm"], []).append(record["samples"])
    assert ends["dense"][-1] == 8
    assert ends["upcycled"] == ends["dense-more"] == [16, 20]
    assert ends["sparse"][-1] == 20
    assert (tmp_path / "upcycling.svg").read_text().count("<polyline") == 4 * 6
    monkeypatch.setattr(upcycling, "do", lambda *_: pytest.fail("a run was repeated"))
    upcycling.main([*command, *arms])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == last


@pytest.mark.usefixtures("tiny_vit")
def test_a_continued_run_sees_what_follows_its_first_phase(data, out):
    photos = experiment_sets.load_set("groceries", "given", data, out)
    runs = [
        upcycling.Run(name=name, seed=1, first=8, more=12)
        for name in ("dense", "upcycled", "sparse")
    ]
    seen = [
        [
            batch.texts
            for batch in learning_student.batches(
                photos, run.recipe(), skip=run.seen_before // run.recipe().batch_size
            )
        ]
        for run in runs
    ]
    assert seen[0] + seen[1] == seen[2]
    assert [run.recipe().optimizer.lr for run in runs] == pytest.approx([1e-3, 1e-4, 1e-3])


@pytest.mark.usefixtures("tiny_vit")
def test_routing_all_tokens_changes_what_the_last_router_sees_in_training_only():
    run = upcycling.Run(name="sparse", seed=0, first=8, more=12)
    model = upcycling.initial_model(run.recipe())
    for layer in moe_layers(model).values():
        layer.capacity_factor = None
    pixels, ids = torch.rand(2, 3, 32, 32), torch.tensor([[49406, 5, 49407, 0]] * 2)
    pooled = model.train().encode_image(pixels), model.encode_text(ids)
    counts = {n: int(layer.sums.tokens) for n, layer in moe_layers(model).items()}
    with upcycling.routing_all_tokens():
        every = model.encode_image(pixels), model.encode_text(ids)
        more = {n: int(layer.sums.tokens) for n, layer in moe_layers(model).items()}
        evaluated = model.eval().encode_image(pixels)
    for one, other in zip(pooled, every, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert (counts["image.blocks.3.mlp"], more["image.blocks.3.mlp"]) == (2, 2 * 5)
    assert (counts["text.blocks.3.mlp"], more["text.blocks.3.mlp"]) == (2, 2 * 3)  # no padding
    assert torch.equal(evaluated, model.encode_image(pixels))


def test_training_time_counts_the_first_phase_at_the_dense_rate():
    run = upcycling.Run(name="upcycled", seed=0, first=100, more=50)
    times = {"dense": 0.01, "sparse": 0.02}
    assert upcycling_report.seconds(run, 130, times) == pytest.approx(1.0 + 30 * 0.02)


def test_the_recipe_is_the_upcycled_arm():
    recipe = load_recipe("grocery-clip-up")
    run = upcycling.Run(name="upcycled", seed=0, first=upcycling.FIRST, more=upcycling.MORE)
    ours = run.recipe()
    assert recipe.model.config() == ours.model.config()
    for name in ("loss", "moe", "optimizer", "schedule", "steps", "batch_size"):
        assert getattr(recipe, name) == getattr(ours, name), name
