"""Files that an earlier release wrote are still read, resumed and extended with the same results.

`tests/golden/landing22/README.md` says what they are. Hashes, texts and identities must be equal.
Floats are compared to 1e-5, since another processor may round them differently.
"""

from __future__ import annotations

import json
import lzma
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

import pocketclip
from pocketclip import checkpoint, shards
from pocketclip.errors import BundleError
from pocketclip.evaluate.report.latency import read_latency
from pocketclip.evaluate.results import read_results
from pocketclip.infer import bundle
from pocketclip.infer.vectors import read_vectors
from pocketclip.reinforce.recipe import digest
from pocketclip.train.recipe import load_recipe
from pocketclip.train.setup import uses_channels_last
from tests import stored
from tests.cli.inside import run

EXPECTED = json.loads((stored.FOLDER / "expected.json").read_text("utf-8"))
ARRAYS = dict(np.load(stored.FOLDER / "expected.npz"))
SPACE = EXPECTED["space_id"]
REINFORCE = ["reinforce", "pairs/pairs.csv", "--config", "reinforce_recipe.yaml",
             "--shard-size", "4", "--workers", "0"]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the stored files, as the current directory."""
    copy = tmp_path / "landing22"
    shutil.copytree(stored.FOLDER, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copy


def complete_bundle(folder, target):
    """Put the tokenizer, which is stored compressed, into a bundle."""
    text = lzma.decompress((folder / "tokenizer.json.xz").read_bytes())
    (folder / target / "tokenizer.json").write_bytes(text)
    return folder / target


@pytest.mark.parametrize("name", stored.SHARDS)
def test_reinforced_shards_hold_the_same(name):
    facts = stored.shard_facts(stored.FOLDER / name)
    assert facts == EXPECTED["shards"][name]


@pytest.mark.parametrize("name", ["named", "v1"])
def test_reinforced_shards_pass_the_audit(name):
    done = run("audit", stored.FOLDER / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recipes_have_the_same_fields():
    # Later releases add fields, whose defaults are what earlier ones did.
    found = stored.recipe_facts(stored.FOLDER)
    known = _without_new_fields(found["reinforce"], EXPECTED["recipes"]["reinforce"])
    found["reinforce_digest"] = digest(known)
    for name in ("train", "run"):
        # `replay: fast` is the name of `fast: true` now, which is still read.
        found[name]["data"]["fast"] = found[name]["data"]["replay"] == "fast"
    # A choice by the device, which on a CPU is what the default was.
    assert found["train"]["channels_last"] == "auto"
    assert not uses_channels_last(load_recipe(found["train"]), torch.device("cpu"))
    found["train"]["channels_last"] = False
    assert _without_new_fields(found, EXPECTED["recipes"]) == EXPECTED["recipes"]


def _without_new_fields(found, expected):
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return found
    return {k: _without_new_fields(v, expected[k]) for k, v in found.items() if k in expected}


def test_a_finished_reinforcement_is_not_begun_again(folder):
    before = {path.name: path.read_bytes() for path in (folder / "named").glob("0*")}
    done = run(*REINFORCE, "--out", "named", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards_finished_before"] == 2
    assert {path.name: path.read_bytes() for path in (folder / "named").glob("0*")} == before


def test_the_same_reinforcement_gives_the_same_shards(folder):
    done = run(*REINFORCE, "--out", "again")
    assert done.returncode == 0, done.stderr
    again = stored.shard_facts(folder / "again")
    for new, old in zip(again["samples"], EXPECTED["shards"]["named"]["samples"], strict=True):
        for key in ("uid", "image", "param_aug", "views", "captions"):
            assert new[key] == old[key], (new["uid"], key)
    pairs = zip(shards.read("again"), shards.read("named"), strict=True)
    for new, old in pairs:  # stored in bfloat16: 8 bits of precision
        for name, values in old.embeddings.items():
            np.testing.assert_allclose(new.embeddings[name], values, atol=2**-9, err_msg=name)


def test_the_checkpoint_has_the_same_weights_and_embeddings():
    assert stored.weights_digest(stored.FOLDER / "model") == EXPECTED["weights"]
    assert pocketclip.Encoder(str(stored.FOLDER / "model")).space_id == SPACE
    for name, values in stored.embeddings(stored.FOLDER, "model").items():
        np.testing.assert_allclose(values, ARRAYS[name], atol=1e-5, err_msg=name)


def test_a_stored_checkpoint_is_written_as_it_was(tmp_path):
    checkpoint.save(checkpoint.load(str(stored.FOLDER / "model")), str(tmp_path / "model"))
    for name in ("config.json", "model.safetensors"):
        old = (stored.FOLDER / "model" / name).read_bytes()
        assert (tmp_path / "model" / name).read_bytes() == old, name


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_steps(folder):
    done = run("train", "run/recipe.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    log, expected = (
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("run/log.jsonl", "log_of_whole.jsonl")
    )
    assert [row["step"] for row in log] == [row["step"] for row in expected] == list(range(1, 9))
    for row, other in zip(log, expected, strict=True):
        for key in ("samples", "epoch", "lr", "skipped"):
            assert row[key] == other[key], key
        for key in ("loss", "contrastive_loss", "distill_loss", "logit_scale"):
            assert row[key] == pytest.approx(other[key], rel=1e-4), (row["step"], key)
    trained, whole = (checkpoint.load(f"{name}").state_dict() for name in ("run/model", "model"))
    for name, values in whole.items():
        torch.testing.assert_close(trained[name], values, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("target", "tolerance"), [("onnx", 1e-5), ("openvino", 1e-3)])
def test_a_bundle_gives_the_same_embeddings(folder, target, tolerance):
    if target == "openvino":
        pytest.importorskip("openvino")
    place = complete_bundle(folder, target)
    assert bundle.read(place, space_id=SPACE).space_id == SPACE
    values = stored.embeddings(folder, target)
    assert values["logit_scale"] == ARRAYS["logit_scale"]
    for tower in ("image", "text"):
        # The bundle for OpenVINO resizes in its graph and computes from half-precision weights.
        np.testing.assert_allclose(values[tower], ARRAYS[tower], atol=tolerance * 10, err_msg=tower)


def test_a_bundle_without_its_tokenizer_is_refused(folder):
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        pocketclip.Encoder(str(folder / "onnx")).encode_text(["a cat"])


def test_embeddings_in_files_are_read_with_their_facts():
    values, about = read_vectors(str(stored.FOLDER / "photos.npy"))
    assert about["space_id"] == SPACE
    names = sorted(path.rpartition("/")[2] for path in stored.pairs(stored.FOLDER)[0])
    assert about["inputs"] == [f"pairs/{name}" for name in names]
    encoder = pocketclip.Encoder(str(stored.FOLDER / "model"))
    paths = [str(stored.FOLDER / name) for name in about["inputs"]]
    np.testing.assert_allclose(encoder.encode_image(paths), values, atol=1e-5)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(stored.FOLDER / "photos.parquet")
    assert table["input"].to_pylist() == about["inputs"]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), values)
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert SPACE in json.dumps(facts)


def test_results_are_read_and_not_computed_again(folder):
    results = {result.key: result for result in read_results("results.jsonl")}
    assert results["splits"].main_metric == 0.5
    assert results["pairs"].main_metric == 0.125
    assert {result.about["space_id"] for result in results.values()} == {SPACE}
    before = (folder / "results.jsonl").read_bytes()
    evaluate = ["eval", "model", "--data", "pairs/pairs.csv", "--caption-column", "caption",
                "--tasks", "pairs", "--no-cache"]  # fmt: skip
    done = run(*evaluate, "--out", "results.jsonl")
    assert done.returncode == 0, done.stderr
    assert (folder / "results.jsonl").read_bytes() == before
    done = run(*evaluate, "--out", "again.jsonl")
    assert done.returncode == 0, done.stderr
    [again] = read_results("again.jsonl")
    assert again.metrics == results["pairs"].metrics
    assert again.about["identity"] == results["pairs"].about["identity"]


def test_latency_is_read():
    measured = read_latency(str(stored.FOLDER / "latency.log")).of(["tiny"])
    assert (measured.variant, measured.threads) == ("compiled", 1)
    assert measured.ms == {"tiny": pytest.approx(4.23 + 2.55)}
