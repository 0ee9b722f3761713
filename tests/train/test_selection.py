"""What a run hands over: the best of what was scored, exactly, also after kills and resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from pocketclip import checkpoint
from pocketclip.errors import PocketclipError
from pocketclip.train import checkpoints, selection
from pocketclip.train.logs import LOG, read
from pocketclip.train.loop import train
from pocketclip.train.run import Run
from pocketclip.train.save_and_score import CheckpointScorer
from pocketclip.train.selection import Score, Selection
from tests.shards.making import folder, sample
from tests.train.test_loop import recipe, same, weights

EVALUATION = {"evaluation": {"data": "the caller's"}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    made = tmp_path_factory.mktemp("data") / "dr"
    made.mkdir()
    return str(folder(made, [[sample(i) for i in range(k, k + 9)] for k in (0, 9, 18)]))


@pytest.fixture(scope="module")
def start(shards, tmp_path_factory):
    """A model to start from; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "start"
    train(recipe(shards, steps=1), run, device="cpu")
    return run / "model"


class Scorer:
    """Gives each step its score and keeps what was scored; an exception is raised."""

    def __init__(self, *scores, first=2, every=2):
        self.scores = {first + every * i: score for i, score in enumerate(scores)}
        self.seen = {}

    def __call__(self, model, step):
        self.seen[step] = {name: value.clone() for name, value in model.state_dict().items()}
        score = self.scores[step]
        if isinstance(score, BaseException):
            raise score
        return {"main_metric": score}


def of(run):
    return json.loads((run / "selection.json").read_text())


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"ema": 0.9},
        pytest.param({"checkpoint.keep_best": False}, marks=pytest.mark.slow),
    ],
)
def test_the_best_is_handed_over_exactly_as_it_was_scored(shards, tmp_path, fields):
    run, score = tmp_path / "run", Scorer(0.1, 0.9, 0.3, 0.2)
    whole = recipe(shards, steps=8, **{"checkpoint.keep_last": 1}, **fields)
    summary = train(whole, run, device="cpu", on_checkpoint=score)
    assert same(weights(run), score.seen[4])
    assert (summary.best, summary.metrics) == ((4, 0.9), {"main_metric": 0.2})
    assert summary.selection.chosen == of(run)["chosen"] == 4
    assert of(run)["scores"] == [
        {"step": step, "main_metric": score.scores[step]} for step in (2, 4, 6, 8)
    ]
    assert (
        "step 4, 0.9000, the best of 4 scores on the evaluation data (the last: 0.2000)"
        in summary.selection.describe()
    )
    kept = [saved.name for saved in checkpoints.find(run)]
    best = [] if fields.get("checkpoint.keep_best") is False else ["step-00000004"]
    assert kept == ["step-00000008", *best]
    # Once more: nothing is scored or chosen anew.
    again = train(whole, run, device="cpu", on_checkpoint=Scorer())
    assert (again.selection, again.best) == (summary.selection, summary.best)
    # The model is made again, where its checkpoint is still there.
    shutil.rmtree(run / "model")
    again = train(whole, run, device="cpu", on_checkpoint=Scorer())
    assert same(weights(run), score.seen[4 if best else 8])
    assert ("is gone" in again.selection.describe()) is not bool(best)


@pytest.mark.slow
def test_the_last_weights_on_request_and_of_equal_scores_the_later(shards, tmp_path):
    run, score = tmp_path / "run", Scorer(0.9, 0.5, 0.9)
    evaluation = {"evaluation": {"data": "x", "choose": "last"}}
    score.scores[6] = 0.1
    summary = train(recipe(shards, **evaluation), run, device="cpu", on_checkpoint=score)
    assert same(weights(run), score.seen[6])
    assert (
        "the last weights, step 6 with 0.1000, as evaluation.choose says; the best is step 2 "
        in (summary.selection.describe())
    )
    # Another choice of a finished run is made without training or scoring.
    score = Scorer()
    summary = train(recipe(shards, **EVALUATION), run, device="cpu", on_checkpoint=score)
    assert (summary.selection.chosen, score.seen) == (2, {})
    equal = train(
        recipe(shards), tmp_path / "equal", device="cpu", on_checkpoint=Scorer(0.9, 0.5, 0.9)
    )
    assert equal.selection.chosen == 6
    # The best of all as the last weights, which no score has chosen.
    evaluation = {"evaluation": {"data": "x", "choose": "last"}}
    summary = train(
        recipe(shards, **evaluation), tmp_path / "equal", device="cpu", on_checkpoint=Scorer()
    )
    assert summary.selection.describe().endswith("choose says; the best of all scores")


@pytest.mark.parametrize("ema", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_the_start_is_handed_over_if_training_hurts(shards, start, tmp_path, caplog, ema):
    run, score = tmp_path / "run", Scorer(0.5, 0.2, 0.3, 0.1, first=0)
    fields = {"model.init": str(start), "ema": ema, "checkpoint.keep_last": 1}
    summary = train(recipe(shards, **fields), run, device="cpu", on_checkpoint=score)
    assert same(weights(run), weights(start))
    assert summary.selection.start_won
    said = "training did not help: the start has 0.5000; the best after it has step 4 with 0.3000"
    assert said in summary.selection.describe()
    assert said in caplog.text
    assert [saved.name for saved in checkpoints.find(run)] == ["step-00000006", "step-00000000"]
    # What was trained is as in a run without scores.
    plain = tmp_path / "plain"
    train(recipe(shards, **fields), plain, device="cpu")
    assert same(weights(checkpoints.find(run)[0]), weights(checkpoints.find(plain)[0]))
    assert not (plain / "selection.json").exists()


def test_trained_weights_that_score_as_the_start_are_not_called_better():
    scores = [Score(step=0, main_metric=0.5), Score(step=2, main_metric=0.5)]
    tie = Selection(scores=scores, chosen=2)
    assert tie.equals_start
    assert tie.describe().startswith("training did not raise the score: the start has 0.5000, and")
    tie.add(Score(step=2, main_metric=0.6))
    assert not tie.equals_start
    assert not Selection(scores=[Score(step=0), Score(step=2)], chosen=2).equals_start


def test_a_huge_learning_rate_does_not_spoil_a_measured_score(shards, start, tmp_path):
    """The score is how well the start's embeddings are kept."""
    photographs = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = checkpoint.load(start).eval().encode_image(photographs).detach()

    def score(model, _step):
        with torch.no_grad():
            now = model.eval().encode_image(photographs)
        return {"main_metric": float(torch.cosine_similarity(now, before).mean())}

    fields = {"model.init": str(start), "optimizer.lr": 10.0}
    summary = train(recipe(shards, **fields), tmp_path / "run", device="cpu", on_checkpoint=score)
    assert summary.selection.start_won
    assert same(weights(tmp_path / "run"), weights(start))


def test_patience_ends_the_run_and_the_same_command_does_nothing_more(shards, tmp_path):
    run, score = tmp_path / "run", Scorer(0.5, 0.7, 0.6, 0.7, 0.9)
    fields = {"steps": 10, "log_every": 100, **EVALUATION}
    patient = recipe(shards, **fields, **{"evaluation.patience": 2})
    summary = train(patient, run, device="cpu", on_checkpoint=score)
    assert (summary.step, summary.steps, summary.interrupted) == (8, 10, False)
    assert summary.stopped_early
    assert summary.selection.chosen == 8  # equal to step 4, and later
    assert same(weights(run), score.seen[8])
    assert [line["step"] for line in read(run / LOG) if "loss" in line] == [8]
    again = train(patient, run, device="cpu", on_checkpoint=Scorer())
    assert (again.step, again.stopped_early, again.seconds) == (8, True, 0.0)
    # The steps done are those of a run without patience: the schedule is not altered.
    whole = tmp_path / "whole"
    del fields["evaluation"]
    train(recipe(shards, **fields, **{"checkpoint.keep_last": 9}), whole, device="cpu")
    assert same(weights(whole / "checkpoints" / "step-00000008"), score.seen[8])
    # With more patience it goes on.
    patient = recipe(shards, **fields, **EVALUATION, **{"evaluation.patience": 3})
    more = train(patient, run, device="cpu", on_checkpoint=score)
    assert (more.step, more.stopped_early, more.selection.chosen) == (10, False, 10)
    assert same(weights(run), weights(whole))


MOMENTS = ["selection"]
MORE_MOMENTS = ["score", "signal", "step", "save", "note", "log", "model"]


@pytest.mark.parametrize(
    "moment", [*MOMENTS, *(pytest.param(m, marks=pytest.mark.slow) for m in MORE_MOMENTS)]
)
def test_a_run_killed_anywhere_chooses_the_same(shards, start, tmp_path, monkeypatch, moment):
    """Killed at the third of four scores, by which the patience is exhausted; or at the end."""
    fields = {
        "model.init": str(start), "ema": 0.9, "steps": 8, "checkpoint.keep_last": 1, **EVALUATION,
        "evaluation.patience": 2,
    }  # fmt: skip
    run, whole = tmp_path / "run", recipe(shards, **fields)
    score = Scorer(0.2, 0.6, 0.5, 0.4, 0.9, first=0)
    expected = train(whole, tmp_path / "whole", device="cpu", on_checkpoint=score)
    assert (expected.step, expected.selection.chosen) == (6, 2)
    killed = 0

    def kill(original, when=lambda *_: True):
        def call(*args, **options):
            nonlocal killed
            if when(*args) and not killed:
                killed += 1
                raise KeyboardInterrupt
            return original(*args, **options)

        return call

    def at_4(_self, saved, *_):
        return saved.step == 4

    resumed = Scorer(*score.scores.values(), first=0)
    on_log = None
    with monkeypatch.context() as patch:
        if moment == "step":
            step = kill(Run.update_weights, lambda run, _: run.step == 5)
            patch.setattr(Run, "update_weights", step)
        elif moment == "save":
            save = kill(checkpoints.save, lambda _run, step, *_: step == 4)
            patch.setattr(checkpoints, "save", save)
        elif moment == "score":
            resumed.scores[6] = KeyboardInterrupt()
        elif moment == "note":
            patch.setattr(CheckpointScorer, "_note", kill(CheckpointScorer._note, at_4))
        elif moment == "log":
            note = kill(CheckpointScorer._log, lambda _self, step, *_: step == 6)
            patch.setattr(CheckpointScorer, "_log", note)
        elif moment == "model":
            patch.setattr(checkpoint, "save", kill(checkpoint.save))
        elif moment == "selection":
            write = kill(Selection.write, lambda chosen, _run: chosen.chosen is not None)
            patch.setattr(Selection, "write", write)
        else:

            def on_log(record):
                # The signal is seen in step 4, whose checkpoint is saved, and scored later.
                if record["step"] == 3:
                    os.kill(os.getpid(), signal.SIGINT)

        try:
            stopped = train(whole, run, device="cpu", on_checkpoint=resumed, on_log=on_log)
            assert stopped.interrupted
        except KeyboardInterrupt:
            pass
    resumed.scores[6] = score.scores[6]
    summary = train(whole, run, device="cpu", on_checkpoint=resumed)
    assert summary.selection == expected.selection
    assert same(weights(run), weights(tmp_path / "whole"))
    assert same(weights(run), score.seen[2])
    assert of(run) == of(tmp_path / "whole")
    scores = [(r["step"], r["eval/main_metric"]) for r in read(run / LOG) if len(r) == 2]
    assert scores == [(0, 0.2), (2, 0.6), (4, 0.5), (6, 0.4)]


def test_failed_evaluations_are_not_chosen(shards, tmp_path, caplog):
    lost = PocketclipError("a disk is gone")
    run, score = tmp_path / "run", Scorer(0.3, 0.1, lost)
    fields = {**EVALUATION, "evaluation.patience": 2}
    summary = train(recipe(shards, **fields), run, device="cpu", on_checkpoint=score)
    assert not summary.stopped_early  # a failure does not count
    assert (summary.selection.chosen, summary.failed_evaluations) == (2, 1)
    assert of(run)["scores"][2] == {"step": 6, "error": "a disk is gone"}
    caplog.clear()
    summary = train(
        recipe(shards), tmp_path / "all", device="cpu", on_checkpoint=Scorer(lost, lost, lost)
    )
    assert summary.selection.chosen == 6
    assert "no checkpoint has a score, so model/ holds the last weights (step 6)" in caplog.text
    assert same(weights(tmp_path / "all"), weights(checkpoints.find(tmp_path / "all")[0]))


def test_a_lost_best_checkpoint_is_said(shards, tmp_path, caplog):
    run, score = tmp_path / "run", Scorer(0.9, 0.5, 0.1)
    whole = recipe(shards)
    train(whole, run, device="cpu", on_checkpoint=score)
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"cut")
    summary = train(whole, run, device="cpu", on_checkpoint=Scorer())
    assert summary.selection.chosen == 4
    assert same(weights(run), score.seen[4])
    assert "the checkpoint of the best, step 2 with 0.9000, is gone" in caplog.text


@pytest.mark.slow
def test_a_changed_evaluation_scores_again(shards, tmp_path, caplog, monkeypatch):
    from pocketclip.train import evaluation

    scorers = {"a": Scorer(0.9, 0.1, 0.2), "b": Scorer(0.1, 0.2, 0.5)}
    monkeypatch.setattr(evaluation, "make_scorer", lambda section: scorers[section.data])
    run = tmp_path / "run"

    def stop(record):
        if record["step"] == 3:  # the signal is seen in the next step
            os.kill(os.getpid(), signal.SIGINT)

    train(recipe(shards, **{"evaluation.data": "a"}), run, device="cpu", on_log=stop)
    summary = train(recipe(shards, **{"evaluation.data": "b"}), run, device="cpu")
    assert "the evaluation changed" in caplog.text
    assert [score.main_metric for score in summary.selection.scores] == [0.1, 0.2, 0.5]
    assert summary.selection.chosen == 6
    assert of(run)["evaluation"]["data"] == "b"
    # A finished run is left as it is, and this is said.
    caplog.clear()
    train(recipe(shards, **{"evaluation.data": "a"}), run, device="cpu")
    assert "its model was chosen by another evaluation" in caplog.text
    # Also where another choice is asked for, which the earlier scores decide.
    caplog.clear()
    last = {"evaluation.data": "a", "evaluation.choose": "last"}
    train(recipe(shards, **last), run, device="cpu")
    assert "its model was chosen by another evaluation" in caplog.text
    shutil.rmtree(run / "model")
    summary = train(recipe(shards, **{"evaluation.data": "a"}), run, device="cpu")
    assert summary.selection.chosen == 2
    assert same(weights(run), scorers["a"].seen[2])


def test_a_run_of_an_older_version_keeps_its_model_and_its_scores_count(shards, tmp_path):
    run, whole = tmp_path / "run", recipe(shards, steps=6)
    train(whole, run, device="cpu", on_checkpoint=Scorer(0.9, 0.5, 0.1))
    (run / "selection.json").unlink()
    before = weights(run)
    summary = train(whole, run, device="cpu", on_checkpoint=Scorer())
    assert same(weights(run), before)
    assert summary.best == (2, 0.9)
    shutil.rmtree(run / "model")
    summary = train(whole, run, device="cpu", on_checkpoint=Scorer())
    assert summary.selection.chosen == 2


@pytest.mark.slow
def test_from_another_runs_checkpoint_that_one_is_scored_and_may_win(shards, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    train(recipe(shards), one, device="cpu")
    score = Scorer(0.8, 0.3, first=4)
    summary = train(
        recipe(shards), other, device="cpu", on_checkpoint=score,
        resume=str(one / "checkpoints" / "step-00000004"),
    )  # fmt: skip
    assert summary.selection.chosen == 4
    assert same(weights(other), weights(one / "checkpoints" / "step-00000004"))


def test_no_main_metric_means_the_last_weights(shards, tmp_path):
    run = tmp_path / "run"
    summary = train(recipe(shards), run, device="cpu", on_checkpoint=lambda *_: {"mine": 1})
    assert (summary.best, summary.selection.chosen) == (None, 6)
    assert "no checkpoint has a score" in summary.selection.describe()


def test_patience_counts_scores_that_are_not_better():
    def ends(*scores, patience=2):
        made = Selection(scores=[Score(step=i, main_metric=s) for i, s in enumerate(scores)])
        return made.out_of_patience(patience)

    assert ends(0.5, 0.5, 0.4)
    assert not ends(0.5, 0.4)
    assert not ends(0.5, 0.4, None)
    assert ends(0.5, 0.4, None, 0.5)
    assert not ends(0.5, 0.4, 0.6)
    assert not ends(0.1, 0.1, patience=None)
    assert ends(0.1, 0.1, patience=1)
    assert not ends()


def test_a_damaged_selection_is_read_from_the_log(tmp_path):
    (tmp_path / "selection.json").write_text('{"version": 1, "scores": [{"step": 1, "odd": 2}]}')
    (tmp_path / LOG).write_text(
        '{"step": 2, "loss": 1.0}\n{"step": 2, "eval/main_metric": 0.5}\n'
        '{"step": 4, "eval/error": "gone"}\n'
    )
    found = selection.load(tmp_path)
    assert found.scores == [Score(step=2, main_metric=0.5), Score(step=4, error="gone")]
    assert selection.load(tmp_path / "nowhere") is None


@pytest.mark.slow
def test_two_processes_stop_early_and_choose_together(shards, start, tmp_path):
    """Of one class every score is 1, so the first checkpoint after the start ends the run."""
    (tmp_path / "red.csv").write_text("filepath,product\nred.png,red\n")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    evaluation = {"data": str(tmp_path / "red.csv"), "label_column": "product", "patience": 1}
    whole = recipe(shards, **{"model.init": str(start), "ema": 0.9, "evaluation": evaluation})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole.model_dump(mode="json")))
    run = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "pocketclip.train"),
        *(str(tmp_path / "recipe.yaml"), "--out", str(run), "--device", "cpu", "--json"),
    ]
    for _ in range(2):  # the second time, nothing is left to do
        done = subprocess.run(command, timeout=240, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert (facts["step"], facts["stopped_early"]) == (2, True)
        assert facts["selection"] == of(run)
        assert [score["step"] for score in of(run)["scores"]] == [0, 2]
        assert of(run)["chosen"] == 2
    average = torch.load(run / "checkpoints" / "step-00000002" / "trainer.pt")["average"]["state"]
    assert same(weights(run), average)
