from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from pocketclip import checkpoint
from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.progress import ProgressReporter
from pocketclip.quickstart.captions import alt_text, names_in
from pocketclip.quickstart.collection import read_rows
from pocketclip.quickstart.pipeline import next_commands, quickstart_scenes
from pocketclip.shards import read
from pocketclip.storage.locks import claim

SMALL = {"scale": 0.02, "workers": 0}


class Stages(ProgressReporter):
    def __init__(self):
        self.seen = []

    def stage(self, text):
        self.seen.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "out"
    stages = Stages()
    return out, quickstart_scenes(out, reporter=stages, **SMALL), stages.seen


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs["src"])
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:"), attrs
        if tag not in ("img", "meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Nothing stays open, as in <line/>."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(out):
    page = Page((out / "report.html").read_text("utf-8"))
    assert not page.open
    return page, " ".join(" ".join(page.words).split())


def test_everything_is_left_behind(finished):
    out, result, _ = finished
    assert json.loads((out / "result.json").read_text()) == result
    model = checkpoint.load(out / "model")
    assert model.config.name == "tiny"
    choice = result["choice"]
    assert choice["scores"] == {a: arm["validation"] for a, arm in result["arms"].items()}
    assert choice["scores"][choice["chosen"]] == max(choice["scores"].values())
    twin = checkpoint.load(out / "runs" / choice["chosen"] / "model")
    assert model.space_id == twin.space_id
    assert not list(out.rglob("*.tmp"))


def test_the_scores_are_those_of_the_results_files(finished):
    out, result, _ = finished
    for arm in ("plain", "reinforced"):
        lines = [json.loads(t) for t in (out / f"{arm}.results.jsonl").read_text().splitlines()]
        found = {line["key"]: line["metrics"] for line in lines}
        for task, metrics in result["arms"][arm]["metrics"].items():
            assert metrics["main_metric"] == found[task]["main_metric"]
        curve = result["arms"][arm]["curve"]
        assert [p["samples"] for p in curve] == [16, 32, 48, 64]
        assert max(p["score"] for p in curve) == result["arms"][arm]["validation"]


def test_the_students_begin_alike_and_learn_apart(finished):
    out, _, _ = finished
    recipes = {a: (out / "runs" / a / "recipe.yaml").read_text() for a in ("plain", "reinforced")}
    assert [text.count("seed: 0") for text in recipes.values()] == [1, 1]
    plain, strong = (text.splitlines() for text in recipes.values())
    differing = [(a, b) for a, b in zip(plain, strong, strict=True) if a != b]
    assert [(a.strip(), b.strip()) for a, b in differing] == [
        ("captions: truth", "captions: both"),
        ("- 1.0", "- 0.0"),
        ("- 0.0", "- 1.0"),
    ]


def test_missing_texts_are_left_out_and_counted(finished):
    out, result, _ = finished
    missing = sum(alt_text("train", seed=0, index=i)[1] == "missing" for i in range(64))
    facts = result["reinforced"]
    assert missing > 0
    assert (facts["samples"], facts["left_out"]) == (64 - missing, missing)
    assert facts["teachers"] == ["teacher-a", "teacher-b"]
    sample = next(read(str(out / "reinforced")))
    assert sample.embeddings["image_emb"].shape == (4, 192)
    assert len(sample.captions["syn_text_scenes"]) == 2


def test_the_shipped_models_know_their_scenes(finished):
    out, result, _ = finished
    for metrics in result["teachers"].values():
        assert metrics["unseen"]["acc1"] > 0.4  # of 24 pairs; guessing gives 0.04
        assert metrics["retrieval"]["mean_recall@1"] > 0.7  # of 24 scenes
    rows = read_rows(out / "data" / "pairs.csv")
    right = count = 0
    for sample in read(str(out / "reinforced")):
        truth = names_in(rows[int(sample.uid)]["truth"])
        for caption in sample.captions["syn_text_scenes"]:
            right += names_in(caption) == truth
            count += 1
    assert right / count > 0.08  # of captions that name every thing right; most err in a shape
    assert result["captions"]["synthetic"] == pytest.approx(right / count, abs=1e-4)


def test_the_report_is_whole_and_shows_what_was_measured(finished):
    out, result, _ = finished
    page, text = page_of(out)
    for arm in ("plain", "reinforced"):
        for metrics in result["arms"][arm]["metrics"].values():
            assert f"{100 * metrics['main_metric']:.1f}" in text
    assert len(page.images) >= 8 + 8 + 4 * 2 * 6
    found = {sample.captions["text"][0] for sample in read(str(out / "reinforced"))}
    assert sum(caption in text for caption in found) >= 5
    assert "What it does not show" in text
    assert "knowing every colour and no shape 41.7 %" in text  # 10 colours, 24 pairs
    for command in next_commands(out, result):
        assert command in text


def test_of_the_commands_the_first_works_on_what_is_there(finished):
    out, result, _ = finished
    commands = next_commands(out, result)
    assert len(commands) == 3 + result["choice"]["rising"]
    picture, model = re.match(r"pocketclip classify (\S+) .* --model (\S+)$", commands[0]).groups()
    assert (out.parent / picture).is_file()
    assert (out.parent / model / "config.json").is_file()


def test_every_stage_was_reported(finished):
    _, result, stages = finished
    assert len(stages) == len(set(stages)) == len(result["seconds"]) - 1


def test_a_finished_folder_is_not_done_again(finished):
    out, _, _ = finished
    with pytest.raises(ConfigError, match="is finished: open"):
        quickstart_scenes(out, **SMALL)
    with pytest.raises(ConfigError, match=r"other settings \(seed changed\)"):
        quickstart_scenes(out, seed=1, **SMALL)


@pytest.mark.slow
def test_an_interrupted_one_goes_on_to_the_same_result(finished, tmp_path):
    out, result, _ = finished

    class Stop(ProgressReporter):
        def progress(self, done, total, note=""):  # noqa: ARG002
            if "steps" in note and done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickstart_scenes(tmp_path / "again", reporter=Stop(), **SMALL)
    assert not (tmp_path / "again" / "result.json").exists()
    again = quickstart_scenes(tmp_path / "again", **SMALL)
    assert again["arms"] == result["arms"]
    one, other = (
        (f / "model" / "model.safetensors").read_bytes() for f in (out, tmp_path / "again")
    )
    assert one == other


def test_two_quickstarts_into_one_folder_are_refused(tmp_path):
    with (
        claim(tmp_path / "out", "a quickstart"),
        pytest.raises(PocketclipError, match="a quickstart is running there"),
    ):
        quickstart_scenes(tmp_path / "out", **SMALL)
    assert not list(tmp_path.iterdir())


def test_foreign_folders_and_scales_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="holds other files"):
        quickstart_scenes(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match=r"0\.01 to 100"):
        quickstart_scenes(tmp_path / "new", scale=0)


def test_the_curve_labels_the_last_values(finished):
    out, result, _ = finished
    page, _ = page_of(out)
    for arm in ("plain", "reinforced"):
        last = result["arms"][arm]["curve"][-1]["score"]
        assert page.words.count(f"{arm} {100 * last:.1f} %") == 2  # wide and narrow
