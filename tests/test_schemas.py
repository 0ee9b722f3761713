"""The documented file formats fit the files that are really written, and leave no key out."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketclip import checkpoint
from pocketclip.fit import fit_labels
from pocketclip.infer.bundle import read
from pocketclip.infer.web_models import SiteFile, group_bundles, models_json, public_label_set
from pocketclip.license import License
from pocketclip.pages.presets import encode_presets
from tests.bundles import model, with_license
from tests.cli import inside
from tests.evaluate.dummy import ColourEncoder
from tests.fit.test_fit import shelf

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("torch")
pytest.importorskip("pydantic")

ROOT = Path(__file__).parents[1]
PAIRS = ROOT / "examples/photos/pairs.csv"


def schema(name: str) -> dict[str, Any]:
    """Return a documented schema."""
    return json.loads((ROOT / f"docs/reference/schemas/{name}.schema.json").read_text("utf-8"))


def check(name: str, value: Any) -> None:
    """Fail if a value does not fit a schema, or holds a key that the schema does not name."""
    described = schema(name)
    jsonschema.validate(value, described)
    kinds = [kind for kind in described.get("anyOf", ()) if fits(value, kind)]
    properties = {k: v for one in [described, *kinds] for k, v in one.get("properties", {}).items()}
    patterns = {k: v for one in kinds for k, v in one.get("patternProperties", {}).items()}
    merged = {**described, "properties": properties, "patternProperties": patterns}
    assert list(undocumented(merged, value)) == []


def fits(value: Any, kind: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(kind).is_valid(value)


def undocumented(described: dict[str, Any], value: Any, path: str = ""):
    """Yield the keys in `value` that a schema does not name; free-form objects are passed over."""
    if isinstance(value, list):
        for item in value:
            yield from undocumented(described.get("items") or {}, item, f"{path}[]")
        return
    named, others = described.get("properties", {}), described.get("additionalProperties")
    if not isinstance(value, dict) or not (named or others):
        return
    for key, inner in value.items():
        if key in named:
            yield from undocumented(named[key], inner, f"{path}.{key}")
        elif isinstance(others, dict):
            yield from undocumented(others, inner, f"{path}.{key}")
        elif not described.get("patternProperties"):
            yield f"{path}.{key}"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A reinforced set, a run of four steps with an evaluation, and results."""
    folder = tmp_path_factory.mktemp("work")
    commands = (
        ["reinforce", PAIRS, "--out", folder / "dr", "--teacher", "random:tiny", "--captioner",
         "random:coca-tiny", "--augmentations", 1, "--captions", 1, "--workers", 1,
         "--student-start", "random:tiny:1"],
        ["train", "scenes-tiny", "--data", folder / "dr", "--out", folder / "run",
         "--set", "steps=2", "--set", "schedule.warmup=0", "--set", "batch_size=2",
         "--set", "log_every=1", "--set", "data.workers=0", "--set", "tensorboard=false",
         "--set", f"evaluation.data={PAIRS}"],
        ["eval", folder / "run", "--data", PAIRS, "--out", folder / "results.jsonl"],
    )  # fmt: skip
    for command in commands:
        done = inside.run(*command)
        assert done.returncode == 0, done.stderr
    return folder


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    "name",
    ["bundle", "checkpoint", "index", "report", "result", "log", "labels", "teacher_check",
     "captions", "models", "presets"],
)  # fmt: skip
def test_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_index_and_report(work):
    check("index", json.loads((work / "dr/index.json").read_text("utf-8")))
    [report] = (work / "dr").glob("*.report.json")
    check("report", json.loads(report.read_text("utf-8")))
    check("teacher_check", json.loads((work / "dr/teacher_check.json").read_text("utf-8")))


def test_table_of_captions(tmp_path):
    out = tmp_path / "c.jsonl"
    for source in (PAIRS.parent, PAIRS):
        out.unlink(missing_ok=True)
        done = inside.run(
            "caption", source, "--model", "random:coca-tiny", "--length", 6, "-o", out
        )
        assert done.returncode == 0, done.stderr
        check("captions", json.loads((tmp_path / "c.jsonl.json").read_text("utf-8")))


def test_log(work):
    records = lines(work / "run/log.jsonl")
    for record in records:
        check("log", record)
    assert any("eval/main_metric" in record for record in records)
    assert any("loss" in record for record in records)
    check("log", {"step": 3, "eval/error": "the set is gone"})


def test_checkpoint(work):
    check("checkpoint", json.loads((work / "run/model/config.json").read_text("utf-8")))


def test_results(work):
    [line] = lines(work / "results.jsonl")
    check("result", line)


def test_results_of_others():
    check("result", {"key": "cifar10", "dataset": "CIFAR-10", "metrics": {"main_metric": 0.5}})


@pytest.mark.parametrize("each", [1, 5])
def test_label_set(tmp_path, each):
    made = fit_labels(ColourEncoder(), shelf(tmp_path / "shelf", each=each)).label_set
    made.write(tmp_path / "labels.json")
    check("labels", json.loads((tmp_path / "labels.json").read_text("utf-8")))


@pytest.mark.parametrize("options", [{}, {"preprocessing": True, "precision": "fp16"}])
def test_bundle(exported, options):
    pytest.importorskip("onnx")
    check("bundle", json.loads((exported(**options) / "bundle.json").read_text("utf-8")))


def test_models_of_a_site(exported, tmp_path):
    made = fit_labels(ColourEncoder(), shelf(tmp_path / "shelf", each=1)).label_set
    [one] = group_bundles([read(exported())])
    presets = encode_presets(one.space_id, ["a photo"], np.ones((1, 4), np.float32))
    check("presets", json.loads(presets))
    labels = dataclasses.replace(made, space_id=one.space_id)
    file = SiteFile.of("label-sets/shelf.json", public_label_set(labels))
    entries = [
        one.entry(presets=one.file("presets.json", presets), label_sets=[("shelf", labels, file)]),
        one.entry(stored=lambda stored: stored.packed(1)),
    ]
    assert entries[0]["label_sets"]
    check("models", json.loads(models_json(entries)))


def test_a_licence(exported, tmp_path):
    pytest.importorskip("onnx")
    known = {"name": "birds", "url": "https://birds.example"}
    with_license(exported(), tmp_path / "bundle", known, "For birds only.\n")
    check("bundle", json.loads((tmp_path / "bundle/bundle.json").read_text("utf-8")))
    made = copy.copy(model())
    made.license = License(**known, text="For birds only.\n")
    checkpoint.save(made, tmp_path / "checkpoint")
    check("checkpoint", json.loads((tmp_path / "checkpoint/config.json").read_text("utf-8")))


def test_what_does_not_fit_is_refused(work):
    index = json.loads((work / "dr/index.json").read_text("utf-8"))
    for changed in (
        {**index, "version": 3},
        {**index, "shards": [{"samples": 3}]},
        {**index, "extra": 1},
        {k: v for k, v in index.items() if k != "shards"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, schema("index"))


def test_a_key_without_a_description_is_found():
    described = {"properties": {"a": {"properties": {"b": {}}}}}
    assert list(undocumented(described, {"a": {"b": 1, "c": 2}})) == [".a.c"]
