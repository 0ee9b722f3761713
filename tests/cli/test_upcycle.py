"""`pocketclip upcycle` as a user runs it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from pocketclip import checkpoint, upcycling, zoo
from pocketclip.infer.encoder import Encoder
from pocketclip.license import License
from pocketclip.nn.upcycle import upcycle
from tests import bundles
from tests.cli.inside import run


@pytest.fixture
def dense(tmp_path):
    model = bundles.model("mobileclip-b")
    checkpoint.save(model, tmp_path / "dense")
    return model


def test_a_sparse_checkpoint_equals_the_dense_one(dense, tmp_path):
    done = run("upcycle", "dense", "--out", "sparse", "--experts", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    sparse = checkpoint.load(tmp_path / "sparse")
    assert lines[0] == f"sparse: mobileclip-b, sparse (2 of 4 experts), {sparse.space_id}"
    assert lines[1:3] == [
        f"  {tower} tower: 4 experts, 2 per token, in block 1 (of 2, from 0)"
        for tower in ("image", "text")
    ]
    assert "equals the dense model" in lines[3]
    assert "--set model.init=./sparse --set model.name=mobileclip-b" in lines[-1]
    assert sparse.space_id != dense.space_id
    texts = ["a photo of a dog", "x"]
    one, other = (Encoder(model).encode_text(texts) for model in (dense, sparse))
    assert np.abs(one - other).max() < 1e-6


@pytest.mark.usefixtures("dense")
def test_json(tmp_path):
    done = run("upcycle", "dense", "--out", "sparse", "--towers", "text", "--layers", "0,1",
               "--json", cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["mixtures"] == {
        "image": None, "text": {"blocks": [0, 1], "experts": 8, "top_k": 2}
    }  # fmt: skip
    assert 0 < facts["max_abs_error"] < 1e-6
    size = facts["sparse"]
    assert size["params_million"] > size["active_params_million"]
    assert facts["dense"]["params_million"] == facts["dense"]["active_params_million"]
    sparse = checkpoint.load(tmp_path / "sparse")
    assert facts["space_id"] == sparse.space_id
    recipe = facts["recipe"]
    assert zoo.override(zoo.entry(recipe["name"]).config, **recipe["overrides"]) == sparse.config


def test_a_convolutional_tower_stays_dense_and_says_so(tmp_path):
    checkpoint.save(bundles.model("tiny"), tmp_path / "dense")
    done = run("upcycle", "dense", "--out", "sparse", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image tower: dense: it is convolutional (MCi)" in done.stdout
    assert re.search(r"text tower: 8 experts, 2 per token, in block", done.stdout)


def test_a_captioner(tmp_path):
    done = run("upcycle", "random:coca-tiny", "--out", "sparse", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "sparse").config.is_captioner
    assert "equals the dense model" in done.stdout


@pytest.mark.usefixtures("dense")
def test_noise_makes_another_model(tmp_path):
    done = run("upcycle", "dense", "--out", "sparse", "--noise", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "differs from the dense model: --noise" in done.stdout
    one, other = (Encoder(checkpoint.load(tmp_path / name)).encode_text("x")
                  for name in ("dense", "sparse"))  # fmt: skip
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dense --out new --top-k 9", "top_k cannot be 9: there are only 8 experts"),
        ("dense --out new --experts 1", "experts must be 2 or more, not 1"),
        ("dense --out new --layers 1,2", "no block 2: the image tower has 2 transformer blocks"),
        ("dense --out new --layers every-3", "names no block"),
        ("dense --out new --layers odd", "every-N, last-N or numbers"),
        ("dense --out new --towers vision", "--towers vision: say both, image or text"),
        ("dense --out new --noise -1", "noise must be 0 or more"),
        ("dense --out new --noise 1e39", "the sparse model's embeddings are not finite"),
        ("dense --out new --layers 1_0", "every-N, last-N or numbers"),
        (f"dense --out new --seed {2**64}", "seed must be between 0 and"),
        ("mobileclip2-s0 --out new --towers image", "no transformer blocks"),  # nothing is fetched
        ("fused --out new", "a fused model is for inference only"),
        ("sparse --out new", "has mixtures of experts already"),
        ("dense --out ./new/../dense", "is the dense model itself"),
        ("dense --out photos", "holds other files ('a.jpg')"),
        ("dense --out new.pt", "a checkpoint is a folder"),
        ("missing --out new", "unknown model 'missing'"),
    ],
)
def test_what_is_refused_in_one_line(arguments, message, dense, tmp_path):
    name = arguments.partition(" ")[0]
    if name == "fused":
        checkpoint.save(checkpoint.load(tmp_path / "dense", fuse=True), tmp_path / "fused")
    if name == "sparse":
        checkpoint.save(upcycle(dense, experts=2), tmp_path / "sparse")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"photo")
    before = sorted(tmp_path.rglob("*"))
    done = run("upcycle", *arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before
    assert checkpoint.load(tmp_path / "dense").space_id == dense.space_id


def test_without_out():
    done = run("upcycle", "vit-b16")
    assert done.returncode == 2
    assert "Missing option '--out'" in done.stderr


@pytest.mark.usefixtures("dense")
def test_a_model_that_differs_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(upcycling, "upcycle", lambda model, **_: upcycle(model, noise=0.1))
    done = run("upcycle", "dense", "--out", "sparse", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing was written: the sparse model's embeddings differ by" in done.stderr
    assert not (tmp_path / "sparse").exists()


@pytest.mark.usefixtures("dense")
def test_damaged_weights_are_named(tmp_path):
    damaged = checkpoint.load(tmp_path / "dense")
    damaged.text.head.weight.data[0, 0] = float("nan")
    checkpoint.save(damaged, tmp_path / "dense")
    done = run("upcycle", "dense", "--out", "sparse", "--noise", "0.1", cwd=tmp_path)
    assert done.returncode == 2
    assert "the dense model's embeddings are not finite; its weights are damaged" in done.stderr
    assert not (tmp_path / "sparse").exists()


@pytest.mark.usefixtures("dense")
def test_an_interruption_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    arguments = ("upcycle", "dense", "--out", "sparse", "--seed", "1")
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", interrupt)
        assert run(*arguments, cwd=tmp_path).returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    assert run(*arguments, cwd=tmp_path).returncode == 0
    # Never replaced: it may be the only one of a long training.
    before = checkpoint.load(tmp_path / "sparse").space_id
    again = run("upcycle", "dense", "--out", "sparse", cwd=tmp_path)
    assert again.returncode == 2
    assert "sparse holds a checkpoint already; choose another folder" in again.stderr
    assert checkpoint.load(tmp_path / "sparse").space_id == before


@pytest.mark.usefixtures("dense")
def test_the_licence_stays_with_the_weights(tmp_path):
    licensed = checkpoint.load(tmp_path / "dense")
    licensed.license = License(name="apple-amlr", text="Its terms.")
    checkpoint.save(licensed, tmp_path / "dense")
    done = run("upcycle", "dense", "--out", "sparse", cwd=tmp_path)
    assert "licence of the weights: apple-amlr" in done.stdout
    known = checkpoint.load(tmp_path / "sparse").license
    assert replace(known, url=None) == licensed.license
