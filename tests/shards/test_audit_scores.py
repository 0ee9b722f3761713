"""What the teachers of a finished set score, from stored embeddings."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pocketclip import shards
from pocketclip.shards import write_index
from pocketclip.teacher_score import number_texts, score_pairs
from tests.cli import inside
from tests.shards.making import SHARED, TEACHERS, folder, sample, unit

WORDS = [f"caption {k}" for k in range(5)]


def _samples(count=60, *, captions=True):
    """The first teacher knows five captions, the second guesses; no images."""
    rng = np.random.default_rng(0)
    own = unit(rng, 5)
    for number in range(count):
        label = number % 5
        image = own[label] + rng.normal(size=12).astype(np.float32) * 0.15
        image[8:] = rng.normal(size=4)
        views = np.stack([image, rng.normal(size=12)]).astype(np.float32)
        for part in (slice(0, 8), slice(8, 12)):
            views[:, part] /= np.linalg.norm(views[:, part], axis=1, keepdims=True)
        one = sample(number, image=False)
        one.captions["text"] = [WORDS[label]]
        one.embeddings |= {"image_emb": views, "text_emb": own[label : label + 1]}
        if not captions:
            one.captions.clear()
        yield one


def _expected(samples):
    """The scores by `score_pairs` itself."""
    text_of, first = number_texts([one.captions["text"][0] for one in samples])
    images, texts = (
        np.stack([one.embeddings[key][0] for one in samples]) for key in ("image_emb", "text_emb")
    )
    rows = [
        (images[:, part], texts[first][:, part], scale)
        for part, scale in ((slice(0, 8), 100.0), (slice(8, 12), 50.0))
    ]
    return [
        *(score_pairs([row], text_of, name=name) for row, name in zip(rows, "ab", strict=True)),
        score_pairs(rows, text_of, name="ensemble"),
    ]


@pytest.mark.parametrize("captions", [True, False])
def test_teachers_and_their_ensemble(tmp_path, captions):
    """Also of a set without captions, where equal embeddings are of equal texts."""
    made = list(_samples(captions=captions))
    home = folder(tmp_path / "set", [made[:25], made[25:]], dtype="bfloat16")
    report = shards.audit(str(home))
    scores = report.scores["text"]
    assert [score.name for score in scores] == ["one", "two", "ensemble"]
    for score, expected in zip(scores, _expected(list(_samples())), strict=True):
        assert (score.n, score.texts, score.metric) == (60, 5, "zero_shot_accuracy")
        assert score.value == pytest.approx(expected.value, abs=0.02)  # bfloat16
        assert score.chance == pytest.approx(expected.chance, abs=0.02)
    assert scores[0].is_above_chance
    assert not scores[1].is_above_chance
    assert report.clean


def test_the_sample_depends_on_uids_only(tmp_path):
    made = list(_samples())
    one = folder(tmp_path / "one", [made])
    other = folder(tmp_path / "other", [made[40:], made[:10], made[10:40]])
    scores = shards.audit(str(one), score_samples=20).scores
    assert {score.n for score in scores["text"]} == {20}
    for workers in (1, 2):
        assert shards.audit(str(other), score_samples=20, workers=workers).scores == scores
    assert shards.audit(str(one), score_samples=0).scores == {}


def test_each_key_is_scored_and_a_single_caption_is_not(tmp_path):
    made = [replace(one, captions={**one.captions, "text": ["same"]}) for one in _samples()]
    report = shards.audit(str(folder(tmp_path / "set", [made])))
    assert set(report.scores) == {"syn_text"}
    assert report.scores["syn_text"][0].metric == "retrieval_recall@1"
    assert not report.scores["syn_text"][0].is_above_chance


def test_without_widths_or_scales(tmp_path):
    made = list(_samples())
    home = folder(tmp_path / "set", [made], index=False)
    [score] = shards.audit(str(home)).scores["text"]
    assert score.name == "teacher 0"
    assert score.is_above_chance
    index = shards.read_index(str(folder(tmp_path / "b", [made])))
    index.teachers = [{**teacher, "logit_scale": None} for teacher in TEACHERS]
    write_index(str(tmp_path / "b"), index)
    names = [score.name for score in shards.audit(str(tmp_path / "b")).scores["text"]]
    assert names == ["one", "two"]  # together they have no score without scales
    index.teachers = [{"name": "one"}, {"name": "two"}]
    write_index(str(tmp_path / "b"), index)
    names = [score.name for score in shards.audit(str(tmp_path / "b")).scores["text"]]
    assert names == ["teacher 0"]  # which width is whose is not known


def test_bad_samples_are_left_out(tmp_path):
    made = list(_samples())
    made[3].embeddings["text_emb"] = made[3].embeddings["text_emb"] * 3
    home = folder(tmp_path / "set", [made])
    report = shards.audit(str(home))
    assert report.counts
    assert report.scores["text"][0].n == 59


def test_the_command_shows_them(tmp_path):
    home = folder(tmp_path / "set", [list(_samples())])
    shown = inside.run("audit", home)
    assert shown.returncode == 0, shown.stderr
    assert "on a stored view of each image against the first caption of text:" in shown.stdout
    assert "\n  one: zero-shot accuracy" in shown.stdout
    assert "\n  all together: zero-shot accuracy" in shown.stdout
    assert "no better than chance" in shown.stdout
    facts = json.loads(inside.run("audit", home, "--json", "--score-samples", 30).stdout)
    assert [score["pairs"] for score in facts["scores"]["text"]] == [30, 30, 30]
    assert facts["clean"] is True


def test_the_published_set():
    """Its teachers were trained on its right captions, and the pairs' own are partly wrong."""
    home = SHARED / "grocery-dr"
    if not home.is_dir():
        pytest.skip("../shared is absent")
    scores = shards.audit(str(home), decode_images=False).scores
    for key, low, high in (("text", 0.1, 0.3), ("syn_text", 0.95, 1.0)):
        assert [score.metric for score in scores[key]] == ["zero_shot_accuracy"] * 3
        assert all(low < score.value <= high for score in scores[key])
        assert all(score.is_above_chance for score in scores[key])
