"""Results side by side: where they come from, what is averaged, what is refused."""

from __future__ import annotations

import json

import pytest

from pocketclip import zoo
from pocketclip.checkpoint.operations import measure as measure_size
from pocketclip.errors import ConfigError, DataError, UnknownModelError
from pocketclip.evaluate.report.charts import architecture
from pocketclip.evaluate.report.comparison import averages, compare, measure, points_between
from pocketclip.evaluate.report.figures import Figures, figures_of
from pocketclip.evaluate.report.latency import published_ms, read_latency
from pocketclip.evaluate.report.runs import PUBLISHED, gather, published_run
from pocketclip.evaluate.tasks import DATACOMP38, TASKS


def write(path, values, *, model=None, about=None):
    """Write a results file; with a model it is one of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for key, value in values.items():
        line = {"key": key, "dataset": key.upper(), "metrics": {"acc1": value}}
        line["metrics"]["main_metric"] = value
        if model:
            line["pocketclip"] = {"model": model, "space_id": "s", "samples": 9} | (about or {})
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def timing(model, tower, batch=1, **ms):
    return {"model": model, "tower": tower, "batch": batch, "ms": ms}


def write_latency(path, rows, before="mobileclip2-s0 image batch 1: 3 GFLOP\n", threads=2):
    path.write_text(before + json.dumps({"threads": threads, "torch": "2.9.0", "rows": rows}))
    return str(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_averages(name):
    comparison = compare([published_run(name)])
    assert 100 * comparison.average_38[0] == pytest.approx(zoo.entry(name).published.average38,
                                                           abs=0.06)  # fmt: skip


def test_published_averages_by_hand():
    comparison = compare(gather(["mobileclip-s0", "MobileCLIP2_S4"]))
    assert 100 * comparison.average_38[0] == pytest.approx(58.1, abs=0.06)
    assert 100 * comparison.average_38[1] == pytest.approx(67.5, abs=0.06)
    # FairFace and UTKFace are shown, and are no part of averages.
    assert comparison.average.tasks == 38
    faces = [row for row in comparison.rows if "Face, " in row.label]
    assert [row.label for row in faces[:2]] == ["FairFace, race", "FairFace, gender"]
    assert all(value is not None for row in faces for value in row.values)


def test_rows_follow_the_table_and_the_users_own_come_last(tmp_path):
    own = write(tmp_path / "r.jsonl", {"shelf": 0.5, "cifar10": 0.9, "cars": 0.25})
    comparison = compare(gather([own, "mobileclip-s0"]))
    keys = [row.key for row in comparison.rows]
    assert keys[:2] == ["cars", "cifar10"]
    assert keys[-1] == "shelf"
    shelf = comparison.rows[-1]
    assert (shelf.label, shelf.values) == ("SHELF", (0.5, None))
    assert comparison.rows[0].values[0] == 0.25
    assert comparison.average.tasks == 2
    assert comparison.average.values[0] == pytest.approx((0.9 + 0.25) / 2)
    assert comparison.average.label == "average over the 2 tasks that all have"


def test_a_partial_set_has_no_average_over_38(tmp_path):
    almost = dict.fromkeys(DATACOMP38[:-1], 0.5)
    own = write(tmp_path / "a.jsonl", almost)
    null = write(tmp_path / "b.jsonl", almost | {DATACOMP38[-1]: None})
    nan = write(tmp_path / "c.jsonl", almost | {DATACOMP38[-1]: float("nan")})
    whole = write(tmp_path / "d.jsonl", almost | {DATACOMP38[-1]: 0.5})
    comparison = compare(gather([own, null, nan, whole]))
    assert comparison.average_38 == (None, None, None, 0.5)
    assert comparison.average.tasks == 37
    assert averages(comparison)[1] == ("38-task average", (None, None, None, 0.5))
    assert len(averages(compare(gather([own, nan])))) == 1


def test_chosen_tasks():
    runs = gather(["mobileclip-s0", "mobileclip2-s0"])
    comparison = compare(runs, ["cifar100", "imagenet1k"])
    assert [row.key for row in comparison.rows] == ["imagenet1k", "vtab/cifar100"]
    assert comparison.average.values[0] == pytest.approx((0.678 + 0.7486) / 2, abs=1e-3)
    assert comparison.average_38 == (None, None)
    assert compare(runs, DATACOMP38).average_38[0] == pytest.approx(0.581, abs=6e-4)
    with pytest.raises(ConfigError, match="cifar10"):
        compare(runs, ["cifar1"])


def test_a_main_metric_that_others_left_out_is_the_tasks_own(tmp_path):
    path = tmp_path / "r.jsonl"
    metrics = {"acc1": 0.1, "mean_per_class_recall": 0.3}
    path.write_text(json.dumps({"key": "vtab/pets", "dataset": "Pets", "metrics": metrics}))
    assert compare(gather([str(path)])).rows[0].values == (0.3,)


def test_titles(tmp_path):
    a = write(tmp_path / "x" / "one" / "results.jsonl", {"cars": 0.5}, model="small")
    b = write(tmp_path / "y" / "one" / "results.jsonl", {"cars": 0.6}, model="small")
    c = write(tmp_path / "z.jsonl", {"cars": 0.6}, model="MobileCLIP2-S0")
    d = write(tmp_path / "others.jsonl", {"cars": 0.6})
    e = write(tmp_path / "tiny.jsonl", {"cars": 0.6}, model=" ti\nny ")
    runs = gather([a, str(tmp_path / "y" / "one"), c, "mobileclip2-s0", d, e])
    assert [run.title for run in runs] == [
        "small (x/one)", "small (y/one)", f"MobileCLIP2-S0 ({tmp_path.name}/z.jsonl)",
        "mobileclip2-s0", "others", "ti ny",
    ]  # fmt: skip
    assert runs[2].model == "mobileclip2-s0"
    assert runs[4].model is None
    assert runs[1].origin == b
    assert [run.title for run in gather([a, d])] == ["small", "others"]


def test_given_twice(tmp_path):
    a = write(tmp_path / "run" / "results.jsonl", {"cars": 0.5})
    with pytest.raises(ConfigError, match="given twice"):
        gather([a, str(tmp_path / "run")])
    with pytest.raises(ConfigError, match="MobileCLIP-S0 is given twice"):
        gather(["MobileCLIP-S0", "mobileclip_s0"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        gather([])


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match=r"mobileclip2-s4.*no such file or folder either"):
        gather(["mobileclip2-s9"])
    with pytest.raises(UnknownModelError, match=r"small has no published results.*mobileclip-s0"):
        gather(["small"])
    with pytest.raises(UnknownModelError, match=r"mean ViT-SO400M-14-SigLIP-384/webli or"):
        gather(["siglip2-so400m-14"])
    with pytest.raises(UnknownModelError, match=r"'metaclip-b16' may mean .*fullcc, .*400m: give"):
        gather(["metaclip-b16"])
    with pytest.raises(DataError, match=r"nothing/here\.jsonl: no such file"):
        gather(["nothing/here.jsonl"])
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match=r"run holds no results\.jsonl"):
        gather(["run"])


def test_results_that_are_here_come_before_published_ones(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mobileclip2-s0" / "results.jsonl", {"cars": 0.5})
    write(tmp_path / "small" / "results.jsonl", {"cars": 0.5})
    (tmp_path / "mobileclip2-s2").mkdir()  # as downloaded: no results
    folder, published, small = gather(["mobileclip2-s0", "mobileclip2-s2", "small"])
    assert (folder.published, folder.title) == (False, "mobileclip2-s0 (mobileclip2-s0)")
    assert "mobileclip2-s0: using the results at this path" in caplog.text
    assert published.published
    assert small.title == "small"
    with pytest.raises(ConfigError, match="given twice"):
        gather(["mobileclip2-s0", "./mobileclip2-s0"])
    assert gather(["mobileclip2_s0"])[0].published
    with pytest.raises(DataError, match="holds no results"):
        gather(["./mobileclip2-s2"])


def test_models_of_others(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    siglip, teacher = gather(["siglip-so400m-14", "vit-b16"])
    assert (siglip.title, siglip.published, siglip.model) == (
        "ViT-SO400M-14-SigLIP/webli", True, None,
    )  # fmt: skip
    assert (teacher.title, teacher.model) == ("ViT-B-16/datacomp_xl_s13b_b90k", "vit-b16")
    assert siglip.main("imagenet1k") == pytest.approx(0.82, abs=1e-3)
    with pytest.raises(ConfigError, match="given twice"):
        gather(["vit-b16", "ViT-B-16/datacomp_xl_s13b_b90k"])
    # Results here come first, and a name with several meanings is then no matter.
    write(tmp_path / "vit-b16" / "results.jsonl", {"cars": 0.5})
    write(tmp_path / "openai" / "results.jsonl", {"cars": 0.5})
    assert [run.published for run in gather(["vit-b16", "openai"])] == [False, False]
    assert "vit-b16: using the results at this path" in caplog.text


def test_figures_of_size(tmp_path):
    about = {"params_million": 4.8, "gflop": 0.47}
    own = write(tmp_path / "a.jsonl", {"cars": 0.5}, model="small", about=about)
    old = write(tmp_path / "b.jsonl", {"cars": 0.5}, model="mobileclip2-s0")
    figures = [figures_of(run) for run in gather([own, old, "mobileclip2-s4", "openai-vit-b-16"])]
    assert (figures[0].params_million, figures[0].gflop, figures[0].ms) == (4.8, 0.47, None)
    assert figures[1] == Figures()  # the name alone does not tell the size of a user's model
    assert figures[2].params_million == pytest.approx(445.2)
    assert figures[2].gflop == pytest.approx(68.8, abs=0.05)
    assert figures[3].ms == pytest.approx(4.8 * 3.1)
    assert figures[3].facts()["published_ms_how"].startswith("derived")
    assert "published_ms_how" not in figures[2].facts()
    bad = write(tmp_path / "c.jsonl", {"cars": 0.5}, about={"params_million": "<b>", "gflop": -1})
    assert figures_of(gather([bad])[0]) == Figures()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"dataset": "x", "metrics": {}}', 'line 2: "key" is missing'),
        ('{"key": "x", "dataset": "x"}', 'line 2 .x.: "metrics" is missing'),
        (
            '{"key": "x", "metrics": {"main_metric": "high"}}',
            "line 2 .x.: main_metric should be a number, not the text 'high'",
        ),
        ('{"key": "cars", "metrics": {}}', "line 2: cars is already in line 1"),
        ('{"key": "x", "metrics": {}, "pocketclip": {"space_id": "t"}}', "line 2 .x. is of emb"),
    ],
    ids=["json", "key", "metrics", "number", "twice", "space"],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", {"cars": 0.5}, model="small")
    with open(path, "a") as stream:  # noqa: PTH123
        stream.write(line)
    with pytest.raises(DataError, match=f"bad.jsonl {message}"):
        gather([path])


def test_notes(tmp_path):
    a = write(tmp_path / "a.jsonl", {"shelf": 0.5}, model="a", about={"identity": "1"})
    b = write(tmp_path / "b.jsonl", {"shelf": 0.5}, model="b",
              about={"identity": "2", "skipped": 3})  # fmt: skip
    notes = compare(gather([a, b])).notes
    assert len(notes) == 2
    assert "b skipped 3 unreadable" in notes[0]
    assert "a and b were not evaluated on the same images" in notes[1]
    assert compare(gather([a])).notes == []


def test_the_measure_of_a_plot(tmp_path):
    published = [published_run(name) for name in PUBLISHED]
    assert measure(published).label == "38-task average"
    (part,) = gather([write(tmp_path / "p.jsonl", {"cars": 0.5, "imagenet1k": 0.25})])
    measured = measure([part, *published])
    assert (measured.label, measured.values[0]) == ("ImageNet top-1", 0.25)
    assert measured.values[1] == pytest.approx(0.678, abs=1e-3)
    measured = measure([part, *published], frozenset(["cars"]))
    assert (measured.label, measured.values[0]) == ("average over the 1 task that all have", 0.5)
    (own,) = gather([write(tmp_path / "o.jsonl", {"shelf": 0.5})])
    assert measure([own, *published]) is None
    assert measure([own]).values == (0.5,)


def test_differences():
    assert points_between((0.5, 0.625)) == "+12.5"
    assert points_between((0.5, 0.25)) == "-25.0"
    assert points_between((0.5, 0.49999)) == "0.0"
    assert points_between((None, 0.5)) == "-"


def test_json_is_plain(tmp_path):
    own = write(tmp_path / "r.jsonl", {"cars": float("nan"), "shelf": 0.5}, model="small")
    facts = json.loads(
        json.dumps(compare(gather([own, "mobileclip-s0"])).as_json(), allow_nan=False)
    )
    assert facts["models"][0]["space_id"] == "s"
    assert facts["average"] is None
    assert facts["average_38"]["mobileclip-s0"] == pytest.approx(0.581, abs=6e-4)
    assert facts["tasks"][-1]["values"] == {"small": 0.5, "mobileclip-s0": None}
    assert len(TASKS) == 50


def test_published_latency_is_of_both_towers():
    assert published_ms("mobileclip-s0") == pytest.approx(3.1)
    assert published_ms("MobileCLIP2-L14") == pytest.approx(64.5)
    assert published_ms("small") is None
    assert published_ms("nobody") is None


def test_measured_latency(tmp_path):
    rows = [
        timing("small", "image", eager=4.0, compiled=3.0),
        timing("small", "image", 32, eager=90.0, compiled=80.0),
        timing("small", "text", eager=2.0, compiled=1.0),
        timing("MobileCLIP2-S0", "image", eager=40.0),
        timing("MobileCLIP2-S0", "text", eager=20.0, compiled=10.0),
        timing("tiny", "image", eager=1.0),
    ]
    file = read_latency(write_latency(tmp_path / "encode.log", rows))
    assert file.of(["small", "nobody", "tiny"]).ms == {"small": 4.0}
    assert file.of(["small"]).variant == "compiled"
    both = file.of(["small", "mobileclip2-s0"])
    assert (both.variant, both.threads) == ("eager", 2)
    assert both.ms == {"small": 6.0, "mobileclip2-s0": 60.0}
    with pytest.raises(DataError, match=r"for tiny; measured there: small, mobileclip2-s0, tiny"):
        file.of(["tiny"])
    # Only the JSON, also over several lines.
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"threads": 2, "rows": rows}, indent=1))
    assert read_latency(whole).of(["small"]).ms == {"small": 4.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a\nb", "line 2 is not JSON"),
        ("[]", 'no "rows"'),
        ('{"rows": []}', '"threads" is None'),
        ('{"threads": 1, "rows": [{}]}', 'row 1 has no "model"'),
        ('{"threads": 1, "rows": [{"model": "a", "tower": "x"}]}', "row 1 .a.: tower is 'x'"),
        ('{"threads": 1, "rows": [{"model": "a", "tower": "text", "batch": 1, "ms": {"e": 0}}]}',
         "row 1 .a text.: e is 0"),
        ('{"threads": 1, "rows": [{"model": "a", "tower": "text", "batch": 1, "ms": {"e": NaN}}]}',
         "row 1 .a text.: e is nan"),
        ('{"threads": 1, "rows": [{"model": "a", "tower": "text", "batch": 1}]}', 'has no "ms"'),
    ],
    ids=["empty", "json", "rows", "threads", "model", "tower", "zero", "nan", "ms"],
)  # fmt: skip
def test_bad_latency_is_named(tmp_path, text, message):
    path = tmp_path / "encode.log"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_latency(path)
    assert "encode.log" in str(error.value)


def test_latency_that_comes_twice_or_in_no_common_form(tmp_path):
    row = timing("small", "text", eager=1.0)
    with pytest.raises(DataError, match="row 2: small text at batch 1 comes twice"):
        read_latency(write_latency(tmp_path / "a.log", [row, row]))
    rows = [timing("small", t, eager=1.0) for t in ("image", "text")]
    rows += [timing("tiny", t, compiled=1.0) for t in ("image", "text")]
    file = read_latency(write_latency(tmp_path / "b.log", rows))
    with pytest.raises(DataError, match="not all measured compiled, or all eager"):
        file.of(["small", "tiny"])


def test_a_model_that_only_bears_a_name_has_none_of_its_figures(tmp_path):
    """A sparse model, and one of other images, keep the name of the zoo's that they are made of."""
    config = zoo.entry("vit-b16").config
    rows = [timing("vit-b16", tower, eager=5.0) for tower in ("image", "text")]
    latency = read_latency(write_latency(tmp_path / "encode.log", rows))
    for number, (own, is_its) in enumerate((
        (config, True), (zoo.sparse_config(config), False),
        (zoo.override(config, image_size=320), False),
    )):  # fmt: skip
        size = measure_size(own)
        about = {"params_million": size.params_million, "gflop": round(size.gflop, 4),
                 "active_params_million": size.active_params_million}  # fmt: skip
        path = write(tmp_path / f"{number}.jsonl", {"cars": 0.5}, model="vit-b16", about=about)
        (run,) = gather([path])
        assert run.model == ("vit-b16" if is_its else None)
        assert latency.total(architecture(run), "eager") == (10.0 if is_its else None)
        figures = figures_of(run)
        assert figures.params_million == size.params_million
        sparse = zoo.is_sparse(own)
        assert figures.active_params_million == (size.active_params_million if sparse else None)
        assert ("active_params_million" in figures.facts()) == sparse
