"""Captions by one run, teachers by a second one: as one run with both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pocketclip import shards
from pocketclip.errors import ConfigError, DataError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import engine
from pocketclip.reinforce.captioners import load_captioner
from pocketclip.reinforce.job import run
from pocketclip.reinforce.recipe import load_recipe
from tests.cli.inside import run as command

pytestmark = pytest.mark.usefixtures("loaded_once", "captioners_loaded_once")
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
SHARED = {
    "precision": "float32",
    "dtype": "float32",
    "batch_size": 3,
    "device": "cpu",
}
TEACHERS = {
    "teachers": ["random:tiny:0", "random:tiny:1"],
    "augmentations": 2,
    "image_augmentation": {"random_resized_crop": {"size": 64}, "rand_augment": {"p": 1.0}},
}
CAPTIONS = {
    "captioners": ["fine=random:coca-tiny:0", "other=random:coca-tiny:1"],
    "captions": 2,
    "sampling": {"max_length": 7, "first_sentence": True},
}


_loaded = {}


@pytest.fixture
def captioners_loaded_once(monkeypatch):
    def load(spec, **options):
        name = repr((spec, options))
        if name not in _loaded:
            _loaded[name] = load_captioner(spec, **options)
        return _loaded[name]

    monkeypatch.setattr(engine, "load_captioner", load)


def recipe(**fields):
    return load_recipe(**SHARED, **fields)


def same(left, right):
    left, right = list(shards.read(str(left))), list(shards.read(str(right)))
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert (a.uid, a.image, a.url, a.meta, a.param_aug) == (
            b.uid, b.image, b.url, b.meta, b.param_aug
        )  # fmt: skip
        assert list(a.captions.items()) == list(b.captions.items())
        assert a.embeddings.keys() == b.embeddings.keys()
        for key, rows in a.embeddings.items():
            np.testing.assert_array_equal(rows, b.embeddings[key])
    return left


@pytest.fixture
def rows(table, tmp_path):
    """A table with two columns of captions, several captions in one, and bad rows in between."""
    source = table(6).parent
    path = source / "pairs.jsonl"
    lines = []
    for i in range(6):
        own = [f"photograph {i}", "more of it", "and more"][: 1 + i % 3]
        lines.append({"filepath": f"{i}.jpg", "caption": own, "alt": f"alt {i}" * (i % 2)})
    lines.insert(2, {"filepath": "gone.jpg", "caption": "gone"})
    lines.insert(4, {"filepath": "3.jpg", "caption": ""})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert str(path).startswith(str(tmp_path))
    return path


def test_two_runs_store_what_one_run_stores(rows, tmp_path):
    options = PairOptions(shard_size=5, caption_columns=("caption", "alt"))
    pairs = open_pairs(str(rows), options)
    one, first, second = (str(tmp_path / name) for name in ("one", "first", "second"))
    run(pairs, recipe(**TEACHERS, **CAPTIONS), one, workers=0)
    run(pairs, recipe(**CAPTIONS), first, workers=0)
    stored = list(shards.read(first))
    assert all(not s.embeddings and s.param_aug is None and s.image for s in stored)
    again = open_pairs(first, PairOptions(captions_from=("syn_text_*",)))
    run(again, recipe(**TEACHERS), second, workers=0)
    samples = same(one, second)
    assert [len(sample.captions["text"]) for sample in samples] == [1, 2, 3, 1, 2, 3]
    assert "text_alt_emb" in samples[1].embeddings
    assert samples[0].embeddings["syn_text_fine_emb"].shape == (2, 128)
    # The shards are equal byte for byte, and the index still names who wrote the captions.
    names = [shard.name for shard in shards.read_index(one).shards]
    assert names == ["00000000.tar", "00000001.tar"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    indices = [shards.read_index(folder) for folder in (one, first, second)]
    assert indices[0].captioners == indices[1].captioners == indices[2].captioners
    assert [c["key"] for c in indices[2].captioners] == ["syn_text_fine", "syn_text_other"]
    assert indices[1].teachers == []
    assert indices[1].augmentation is None
    assert indices[2].augmentation == indices[0].augmentation
    # Given again, both are finished; other captions of the same set are another job.
    assert run(again, recipe(**TEACHERS), second, workers=0).skipped == 2
    fewer = open_pairs(first, PairOptions(captions_from=("syn_text_fine",)))
    with pytest.raises(DataError, match="other pairs"):
        run(fewer, recipe(**TEACHERS), second, workers=0)


def test_shards_in_jsonl_and_a_captioner_more(table, tmp_path):
    pairs = open_pairs(str(table(4)), PairOptions(shard_size=4))
    one, first, more, second = (tmp_path / name for name in ("one", "first", "more", "second"))
    run(pairs, recipe(**TEACHERS, **CAPTIONS, format="jsonl"), str(one), workers=0)
    fine, other = CAPTIONS["captioners"]
    shared = {**CAPTIONS, "format": "jsonl"}
    run(pairs, recipe(**{**shared, "captioners": [fine]}), str(first), workers=0)
    kept = PairOptions(captions_from=("syn_text_fine",))
    run(open_pairs(str(first), kept), recipe(**{**shared, "captioners": [other]}), str(more),
        workers=0)  # fmt: skip
    both = open_pairs(str(more), PairOptions(captions_from=("syn_text_other", "syn_text_fine")))
    run(both, recipe(**TEACHERS, format="jsonl"), str(second), workers=0)
    same(one, second)
    assert [c["key"] for c in shards.read_index(str(second)).captioners] == [
        "syn_text_fine",
        "syn_text_other",
    ]
    with pytest.raises(ConfigError, match="captions under syn_text_fine already"):
        run(open_pairs(str(first), kept), recipe(**CAPTIONS), str(tmp_path / "x"), workers=0)


def test_captions_that_are_not_there(table, tmp_path):
    pairs = open_pairs(str(table(2)))
    first, out = tmp_path / "first", tmp_path / "out"
    run(pairs, recipe(**CAPTIONS), str(first), workers=0)
    wrong = open_pairs(str(first), PairOptions(captions_from=("syn_text_blip",)))
    summary = run(wrong, recipe(**TEACHERS), str(out), workers=0)
    assert (summary.reports[0].samples, summary.reports[0].bad) == (0, 2)
    reason = json.loads((out / "00000000.bad.jsonl").read_text().splitlines()[0])["reason"]
    assert reason == (
        "its syn.json: there are no captions under 'syn_text_blip'; there is: syn_text_fine, "
        "syn_text_other"
    )
    with pytest.raises(DataError, match=r"pairs.csv: there are no captions under 'syn_\*'"):
        open_pairs(str(table(2)), PairOptions(captions_from=("syn_*",)))
    with pytest.raises(ConfigError, match="or NAME=COLUMN"):
        open_pairs(str(table(2)), PairOptions(captions_from=("coca=syn_*",)))
    with pytest.raises(DataError, match="no captions beside x"):
        open_pairs(str(table(2).parent), PairOptions(captions_from=("syn_text",)))


@pytest.fixture(scope="module")
def captions_only(tmp_path_factory):
    home = tmp_path_factory.mktemp("captions")
    shutil.copy(PHOTOS / "astronaut.jpg", home / "0.jpg")
    (home / "0.txt").write_text("a photograph")
    done = command(
        "reinforce", home, "--captioner", "fine=random:coca-tiny", "--captions", 2, "--out",
        home / "set", "--workers", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home, done.stdout


def test_what_the_other_verbs_say_of_captions_alone(captions_only, tmp_path):
    home, said = captions_only
    folder = home / "set"
    assert "captions alone; the second run: pocketclip reinforce" in said
    assert "--captions-from 'syn_text*'" in said
    audit = command("audit", folder)
    assert audit.returncode == 0
    assert "captions alone, without embeddings" in audit.stdout
    assert json.loads(command("audit", folder, "--json").stdout)["scores"] == {}
    assert command("show", folder, "--out", tmp_path / "page.png").returncode == 0
    train = command("train", "grocery-small", "--data", folder, "--out", tmp_path / "run")
    assert train.returncode == 2
    assert "captions alone" in train.stderr
    assert "--captions-from 'syn_text*' --teacher" in train.stderr
    joined = command("join", folder, home, "--out", tmp_path / "joined")
    assert joined.returncode == 0, joined.stdout
    sample = next(shards.read(str(tmp_path / "joined")))
    assert len(sample.captions["syn_text_fine"]) == 2
    recompute = command("audit", folder, "--recompute", 1, "--teacher", "random:tiny")
    assert recompute.returncode == 2
    assert "captions alone" in recompute.stderr


def test_the_second_run_on_the_command_line(captions_only, tmp_path):
    home, _ = captions_only
    options = ["--teacher", "random:tiny", "--augmentations", 1, "--workers", 0]
    done = command("reinforce", home / "set", "--out", tmp_path, *options,
                   "--captions-from", "syn_text*")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "captions alone" not in done.stdout
    sample = next(shards.read(str(tmp_path)))
    assert list(sample.captions) == ["text", "syn_text_fine"]
    assert len(sample.embeddings["syn_text_fine_emb"]) == 2
    none = command("reinforce", home, "--out", tmp_path / "x", "--captioner", "random:coca-tiny",
                   "--student-start", "random:tiny")  # fmt: skip
    assert none.returncode == 2
    assert "--student-start needs a check of the teachers: there is no --teacher" in none.stderr
