"""`pocketclip sweep-scales`, with encoders whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pocketclip import shards
from pocketclip.errors import ConfigError, DataError
from pocketclip.sweep_scales import sweep_scales
from tests.cli.inside import run
from tests.evaluate.dummy import COLOURS, ColourEncoder
from tests.evaluate.sets import colour_photo, write_table

NAMES = list(COLOURS)[:4]
OURS = "python:tests.sweep_scales.test_sweep"
FLAGS = ("--label-column", "what", "--where", "split=val", "--template", "{}")


class Blind(ColourEncoder):
    """Sees noise: another colour for every photograph, the right one for a few."""

    def __init__(self):
        super().__init__(space_id="space-blind")

    def encode_image(self, images):
        noise = np.random.default_rng(0).normal(size=(len(images), 4))
        return super().encode_image(images) + 6 * noise


def make_set(folder, *names, **changes):
    teachers = [
        {"name": name, "embed_dim": 4, "logit_scale": 10.0, "space_id": f"space-{name}"} | changes
        for name in names
    ]
    folder.mkdir(exist_ok=True)
    shards.write_index(str(folder), shards.Index(teachers=teachers))
    return str(folder)


@pytest.fixture
def table(tmp_path):
    """Sixteen photographs to hold out; the labels of three are wrong."""
    rows = [{"file": f"{NAMES[i % 4]}.png", "what": NAMES[i % 4], "split": "val", "caption": "x"}
            for i in range(16)]  # fmt: skip
    for at in (0, 5, 10):
        rows[at]["what"] = NAMES[(at + 1) % 4]
    rows.append({"file": "red.png", "what": "red", "split": "one", "caption": "x"})
    photos = {f"{name}.png": colour_photo(COLOURS[name]) for name in NAMES}
    write_table(tmp_path / "pairs.csv", rows, photos)
    return str(tmp_path / "pairs.csv")


def options(**more):
    return {"label_column": "what", "where": {"split": "val"}, "templates": ["{}"], **more}


def test_one_teacher(tmp_path, table):
    folder = make_set(tmp_path / "dr", "colours")
    report = sweep_scales(folder, table, teachers=[f"colours={OURS}:ColourEncoder"], **options())
    (teacher,) = report.teachers
    assert (report.images, report.classes, teacher.accuracy) == (16, 4, 13 / 16)
    # Three labels are wrong, so that the surest scale is not the best.
    assert 1 < teacher.best.point.scale < 10
    assert teacher.recorded.scale == 10
    assert teacher.recorded.log_likelihood < teacher.best.point.log_likelihood
    assert (teacher.published, report.own, report.joint) == (None, None, None)
    assert report.scales == [float(f"{teacher.best.point.scale:.3g}")]
    few = sweep_scales(folder, table, teachers=[f"{OURS}:ColourEncoder"], samples=9, **options())
    assert few.images == 9


def test_several_teachers_and_the_command(tmp_path, table):
    folder = make_set(tmp_path / "dr", "colours", "blind")
    given = ("--teacher", f"blind={OURS}:Blind", "--teacher", f"colours={OURS}:ColourEncoder")
    plot = tmp_path / "scales.svg"
    done = run("sweep-scales", folder, "--data", table, *given, *FLAGS, "--plot", plot)
    assert done.returncode == 0
    assert "16 images of 4 classes" in done.stdout
    assert "colours, recorded in the set" in done.stdout
    assert "together, each at its own best" in done.stdout
    assert "joint" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        f"pocketclip train RECIPE --data {folder} --set 'loss.teacher_scales=["
    )
    assert "recorded 10" in plot.read_text("utf-8")
    facts = json.loads(
        run("sweep-scales", folder, "-d", table, *given, *FLAGS, "--joint", "--json").stdout
    )
    assert [teacher["name"] for teacher in facts["teachers"]] == ["colours", "blind"]
    assert facts["teacher_scales"] == pytest.approx(facts["joint"]["scales"], rel=5e-3)
    assert facts["joint"]["log_likelihood"] >= facts["together"]["log_likelihood"]
    right, noise = (teacher["best"]["scale"] for teacher in facts["teachers"])
    assert noise < right


def test_an_edge_is_said(tmp_path, table):
    folder = make_set(tmp_path / "dr", "colours")
    given = ("--teacher", f"colours={OURS}:ColourEncoder")
    done = run("sweep-scales", folder, "-d", table, *given, *FLAGS, "--highest", "2")
    assert done.returncode == 0
    assert "colours: the best scale is the largest that was tried" in done.stderr


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ((), {}, "teacher 'colours' of .*dr was not found by its name.*--teacher colours=MODEL"),
        ((f"b={OURS}:Blind", f"a={OURS}:Blind"), {}, "and .* given for b, a"),
        ((f"{OURS}:Blind",), {}, "is not the teacher 'colours' that made .*: its embedding space"),
        ((f"{OURS}:Blind",), {"space_id": None, "embed_dim": 9}, "have 4 values, and the set's 9"),
        ((f"colours={OURS}:Blind", f"colours={OURS}:Blind"), {}, "colours is given twice"),
        ((f"colours={OURS}:Blind", f"x={OURS}:Blind"), {}, "has no teacher 'x'"),
    ],
)  # fmt: skip
def test_other_teachers_are_refused(tmp_path, table, given, changes, message):
    folder = make_set(tmp_path / "dr", "colours", **changes)
    with pytest.raises(ConfigError, match=message):
        sweep_scales(folder, table, teachers=given, **options())


def test_bad_input(tmp_path, table):
    folder = make_set(tmp_path / "dr", "colours")
    teachers = [f"colours={OURS}:ColourEncoder"]
    with pytest.raises(DataError, match=r"neither index\.json nor config\.json"):
        sweep_scales(str(tmp_path), table, teachers=teachers, **options())
    with pytest.raises(DataError, match="names no teacher"):
        sweep_scales(make_set(tmp_path / "none"), table, teachers=teachers, **options())
    with pytest.raises(DataError, match="no labels, only captions: pass --label-column"):
        sweep_scales(folder, table, teachers=teachers, where={"split": "one"})
    with pytest.raises(DataError, match="one class, 'red': a scale needs two"):
        sweep_scales(folder, table, teachers=teachers, **options(where={"split": "one"}))
    with pytest.raises(ConfigError, match="scales from 10 to 2: give a range above 0"):
        sweep_scales(folder, table, teachers=teachers, **options(lowest=10, highest=2))
    done = run("sweep-scales", tmp_path, "-d", table)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_published_scale_belongs_to_the_model(tmp_path, table, monkeypatch):
    """The index's name may be that of the zoo for other weights: only the MODEL given counts."""
    known = []
    monkeypatch.setattr("pocketclip.zoo.teacher_logit_scale", lambda spec: known.append(spec) or 50)
    folder = make_set(tmp_path / "dr", "colours")
    given = f"colours={OURS}:ColourEncoder"
    report = sweep_scales(folder, table, teachers=[given], **options())
    assert known == [given]
    assert report.teachers[0].published.scale == 50
