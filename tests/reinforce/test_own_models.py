"""The user's own teachers and captioners; the example is the one of the documentation."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketclip import checkpoint
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import ConfigError, EmbeddingError, PocketclipError
from pocketclip.reinforce.captioners import load_captioner
from pocketclip.reinforce.own_models import OwnCaptioner, OwnTeacher
from pocketclip.reinforce.teachers import load_teacher
from pocketclip.shards import read, read_index
from pocketclip.types import Encoder
from tests.cli import inside

PAGE = Path(__file__).parents[2] / "docs/how-to/reinforce.md"
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def _example() -> str:
    section = PAGE.read_text("utf-8").partition("{ #models-of-your-own }")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write modules into the working directory, and forget them afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = []

    def write(text, name):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def pairs(tmp_path):
    """Thirty plain pictures in three colours, and what they are."""
    home = tmp_path / "raw"
    home.mkdir()
    with (home / "pairs.csv").open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["filepath", "caption", "number"])
        for i in range(30):
            name = list(COLOURS)[i % 3]
            Image.new("RGB", (20 + i, 24), COLOURS[name]).save(home / f"{i}.png")
            rows.writerow([f"{i}.png", f"a {name} wall", i % 2])
    return home / "pairs.csv"


FLAGS = ["--augmentations", "2", "--captions", "2", "--workers", "1"]


def test_the_example_of_the_page(module, pairs):
    assert len(_example().splitlines()) < 40
    module(_example(), "acme")
    command = [
        "reinforce", pairs, "--out", "dr", "--teacher", "python:acme:teacher",
        "--captioner", "ours=python:acme:captioner", *FLAGS, "--json",
    ]  # fmt: skip
    done = inside.run(*command)
    assert done.returncode == 0, done.stderr
    check = json.loads(done.stdout)["teacher_check"]
    assert check["teachers"][0]["name"] == "acme:teacher"
    assert check["teachers"][0]["value"] == 1
    assert check["warnings"] == []
    index = read_index("dr")
    assert index.teachers[0]["space_id"] == "acme-colours 1"
    assert index.captioners[0] == {
        "key": "syn_text_ours", "name": "ours", "kind": "python", "model": "acme:captioner",
        "identity": "acme-captions 1",
    }  # fmt: skip
    samples = list(read("dr"))
    assert len(samples) == 30
    for sample in samples:
        assert len(sample.captions["syn_text_ours"]) == 2
        assert all(text.startswith("a p") for text in sample.captions["syn_text_ours"])
        assert sample.embeddings["image_emb"].shape == (2, 3)
        lengths = np.linalg.norm(sample.embeddings["image_emb"], axis=1)
        np.testing.assert_allclose(lengths, 1, atol=0.01)
    audit = inside.run("audit", "dr", "--recompute", 9, "--teacher", "python:acme:teacher")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    captions = [sample.captions["syn_text_ours"] for sample in samples]
    # Another job with the same seed writes the same captions; the seeds differ by image.
    again = inside.run(*[part if part != "dr" else "again" for part in command])
    assert again.returncode == 0, again.stderr
    assert [sample.captions["syn_text_ours"] for sample in read("again")] == captions
    assert len({texts[0].partition(",")[0] for texts in captions}) == 3


@pytest.mark.parametrize(
    ("teacher", "start", "says"),
    [
        ("teacher", "noise", None),
        (
            "noise",
            "teacher",
            [
                "no better than chance: mine; ",
                "not clearly better than the student's start acme:teach",
            ],
        ),
    ],
)
def test_a_teacher_is_checked_against_the_students_start(module, pairs, teacher, start, says):
    noise = """
def noise():
    encoder = ColourEncoder()
    encoder.space_id = "noise"
    encoder.encode_image = lambda images: np.random.default_rng(0).normal(size=(len(images), 3))
    return encoder
"""
    module(_example() + noise, "acme")
    command = [
        "reinforce", pairs, "--out", "dr", "--teacher", f"mine=python:acme:{teacher}",
        "--student-start", f"python:acme:{start}", *FLAGS,
    ]  # fmt: skip
    done = inside.run(*command)
    assert done.returncode == 0, done.stderr
    assert "teacher mine: zero-shot accuracy" in done.stdout
    assert f"student start acme:{start}: zero-shot accuracy" in done.stdout
    for text in says or ():
        assert f"warning: {text}" in done.stderr
    if not says:
        assert "warning" not in done.stderr
    stored = json.loads(Path("dr/teacher_check.json").read_text("utf-8"))
    assert len(stored["warnings"]) == len(says or ())
    again = inside.run(*command, "--json")
    assert json.loads(again.stdout)["teacher_check"] == stored
    assert "warning" not in again.stderr  # a resumed run does not check again
    unchecked = inside.run(*command, "--check-pairs", 0)
    assert unchecked.returncode == 2
    assert "--student-start needs a check" in unchecked.stderr


def test_labels_are_checked_and_not_stored(module, pairs):
    module(_example(), "acme")
    command = ["reinforce", pairs, "--teacher", "python:acme:teacher", *FLAGS, "--json"]
    plain = inside.run(*command, "--out", "plain", "--check-pairs", 0)
    assert json.loads(plain.stdout)["teacher_check"] is None
    done = inside.run(*command, "--out", "dr", "--label-column", "number", "--check-pairs", "10")
    [score] = json.loads(done.stdout)["teacher_check"]["teachers"]
    assert (score["pairs"], score["texts"]) == (10, 2)
    assert not score["above_chance"]  # the labels have nothing to do with the colours
    assert Path("dr/00000000.tar").read_bytes() == Path("plain/00000000.tar").read_bytes()
    wrong = inside.run(*command, "--out", "e", "--label-column", "kind")
    assert wrong.returncode == 2
    assert "there is no column 'kind'" in wrong.stderr


def test_captions_that_are_all_the_same_cannot_be_checked(module, pairs):
    module(_example(), "acme")
    pairs.write_text(re.sub("red|green|blue", "grey", pairs.read_text()))
    done = inside.run("reinforce", pairs, "--out", "d", "--teacher", "python:acme:teacher", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "warning: the teachers were not checked: a teacher cannot be checked" in done.stderr


GOOD = """
import numpy as np
class Good:
    embed_dim, logit_scale, space_id = 2, 10.0, "good 1"
    def encode_image(self, images): return np.ones((len(images), 2))
    def encode_text(self, texts): return np.ones((len(texts), 2))
    def __getattr__(self, name): raise AttributeError(name)
"""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("space_id = ''", "has the space_id '', which is no text: give it a text that names"),
        ("space_id = None", "has the space_id None, which is no text"),
        ("space_id = 'a\\nb'", "not one printable line"),
        ("space_id = property(lambda self: str(id(object())) + repr(self))", "another one each"),
        ("space_id = property(lambda self: 1 / 0)", "its space_id raised ZeroDivisionError"),
        ("embed_dim = '2'", "embed_dim '2', which is no whole number"),
        ("embed_dim = 0", "embed_dim 0; it must be from 1"),
        ("logit_scale = -1", "logit_scale -1.0; it must be a finite number above 0"),
        ("logit_scale = float('nan')", "logit_scale nan"),
        ("logit_scale = 'x'", "logit_scale 'x', which is no number"),
        ("logit_bias = 'x'", "logit_bias 'x', which is no number"),
        ("encode_text = None", "has no method encode_text"),
    ],
)
def test_encoders_that_are_refused(module, line, says):
    module(f"{GOOD}class Bad(Good):\n    {line}\n", "own_bad")
    assert isinstance(load_teacher("python:own_bad:Good"), Encoder)
    with pytest.raises(ConfigError, match=f"python:own_bad:Bad.*{re.escape(says)}"):
        load_teacher("python:own_bad:Bad")


@pytest.mark.parametrize("name", ["space_id", "embed_dim", "logit_scale", "encode_image"])
def test_encoders_that_lack_something(module, name):
    module(f"{GOOD}del Good.{name}\n", "own_lacks")
    with pytest.raises(ConfigError, match=f"of type Good that has no .*{name}"):
        load_teacher("python:own_lacks:Good")


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("return np.ones((len(images), 3))", PocketclipError, "(2, 3) for 2 inputs; with its emb"),
        ("return np.ones(2)", PocketclipError, "an array of shape (2,)"),
        ("return [object()]", PocketclipError, "no array of numbers"),
        ("return None", PocketclipError, "encode_image returned"),
        ("return np.ones((len(images), 2)) * np.nan", EmbeddingError, "image 0 .*not finite"),
        ("return np.zeros((len(images), 2))", EmbeddingError, "image 0 .*is zero"),
        ("raise KeyError('x')", PocketclipError, "encode_image raised KeyError: 'x' (.*line 11)"),
    ],
)
def test_embeddings_that_are_refused(module, body, error, says):
    text = f"{GOOD}class Bad(Good):\n  def encode_image(self, images):\n    {body}\n"
    module(text.replace("class Bad", "\nclass Bad"), "own_rows")
    teacher = load_teacher("python:own_rows:Bad")
    pattern = says if says.startswith("image 0") else re.escape(says).replace(r"\.\*", ".*")
    with pytest.raises(error, match=pattern):
        teacher.encode_image([Image.new("RGB", (4, 4))] * 2)


def test_embeddings_get_unit_length_whatever_is_returned(module):
    text = GOOD.replace("np.ones((len(images), 2))", "torch.full((len(images), 2), 3.).bfloat16()")
    module(f"import torch\n{text}", "own_torch")
    teacher = load_teacher("mine=python:own_torch:Good")
    assert isinstance(teacher, OwnTeacher)
    assert (teacher.name, teacher.logit_bias) == ("mine", 0)
    images = [np.zeros((3, 5, 3), np.uint8)] * 70  # more than are encoded at a time
    np.testing.assert_allclose(teacher.encode_image(images), np.full((70, 2), 0.5**0.5), 1e-6)
    assert teacher.encode_text([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("python:no_such_module_x:make", "there is no module 'no_such_module_x': install"),
        ("python:own_broken:make", "importing own_broken raised NameError: name 'oops'"),
        ("python:own_syntax:make", "importing own_syntax raised SyntaxError"),
        ("python:own_exits:make", "importing own_exits raised SystemExit: 3"),
        ("python:own_imports:make", "own_imports imports 'no_such_package', which is not inst"),
        ("python:own_fine:other", "own_fine has no 'other'"),
        ("python:own_fine:NUMBER", "NUMBER is int, not a function"),
        ("python:own_fine:fails", "fails() raised RuntimeError: no weights (.*line 3)"),
        ("python:own_fine:nothing", "made an object of type NoneType that has no method encode_"),
    ],
)
def test_modules_that_make_no_teacher(module, spec, says):
    module("oops\n", "own_broken")
    module("def (:\n", "own_syntax")
    module("raise SystemExit(3)\n", "own_exits")
    module("import no_such_package\n", "own_imports")
    fails = "NUMBER = 3\ndef fails():\n    raise RuntimeError('no weights')\n"
    module(f"{fails}def nothing(): pass\n", "own_fine")
    with pytest.raises(ConfigError, match=re.escape(says).replace(r"\.\*", ".*")):
        load_teacher(spec)


@pytest.mark.parametrize("rest", ["", "acme", "acme:", ":make", "a b:make", "acme:make()", "./a:b"])
def test_forms_that_are_refused(rest):
    with pytest.raises(ConfigError, match=r"the form is python:PACKAGE\.MODULE:FACTORY"):
        resolve_model(f"python:{rest}")


def test_where_weights_are_needed_it_is_refused(module):
    module(GOOD, "own_weights")
    with pytest.raises(ConfigError, match="serves only as a teacher or captioner"):
        checkpoint.load("python:own_weights:Good")
    assert "own_weights" not in sys.modules  # nothing was run


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return [['a'] * (count + 1)] * len(images)", "3 captions for an image, but at most 2"),
        ("return [['a']]", "returned list of 1 for 2 images"),
        ("return 'ab'", "returned str for 2 images"),
        ("return ['a', 'b']", "returned 'a' for an image; it must be a list of texts"),
        ("return [[1], ['b']]", "returned [1] for an image"),
        ("raise ValueError", "caption raised ValueError"),
    ],
)
def test_captions_that_are_refused(module, body, says):
    module(
        f"class C:\n  identity = 'c 1'\n  def caption(self, images, count, seeds):\n    {body}\n",
        "own_captions",
    )
    captioner = load_captioner("python:own_captions:C")
    with pytest.raises(PocketclipError, match=f"python:own_captions:C: .*{re.escape(says)}"):
        captioner.caption_images([Image.new("RGB", (4, 4))] * 2, [1, 2], 2)


def test_captioners(module):
    module(
        "class C:\n  identity = 'c 1'\n  def caption(self, images, count, seeds):\n"
        "    return [[' a  b ', ''], []]\n"
        "class D(C):\n  identity = ' '\n",
        "own_captioner",
    )
    captioner = load_captioner("python:own_captioner:C")
    assert isinstance(captioner, OwnCaptioner)
    assert captioner.key == "syn_text_own_captioner-c"
    assert captioner.caption_images([Image.new("RGB", (4, 4))] * 2, [1, 2], 2) == [["a b"], []]
    with pytest.raises(ConfigError, match="has the identity ' ', which is no text"):
        load_captioner("python:own_captioner:D")
    module(GOOD, "own_no_captioner")
    with pytest.raises(ConfigError, match="has no method caption"):
        load_captioner("python:own_no_captioner:Good")


def test_what_own_models_cannot_follow_is_refused(module, pairs):
    module(_example(), "acme")
    command = ["reinforce", pairs, "--out", "dr", "--teacher", "python:acme:teacher", *FLAGS]
    Path("sampling.json").write_text(json.dumps({"sampling": {"top_p": 0.5}}))
    done = inside.run(*command, "--config", "sampling.json", "--captioner", "python:acme:captioner")
    assert done.returncode == 2
    assert "sampling does not apply to captioners of your own" in done.stderr
    Path("views.json").write_text(json.dumps({"image_augmentation": {"rand_augment": {"p": 1}}}))
    done = inside.run(*command, "--config", "views.json")
    assert done.returncode == 2
    assert "acme:teacher takes views of one size" in done.stderr
