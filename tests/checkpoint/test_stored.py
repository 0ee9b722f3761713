"""Weights of every kind of file are read without torch, and are those that torch loads."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketclip import checkpoint
from pocketclip.checkpoint.folder import to_third_party
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import read_stored
from pocketclip.errors import CheckpointError, EmbeddingError, MissingDependencyError
from pocketclip.nn.build import random_model
from pocketclip.nn.reparam import fuse
from tests.golden_weights import randomise

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # its import fails
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import read_stored
for text in sys.argv[1:]:
    stored = read_stored(resolve_model(text))
    types = sorted({str(a.dtype) for a in stored.weights.values()})
    print(json.dumps([stored.identity, list(stored.weights), types, stored.logit_scale]))
"""


@pytest.fixture(scope="module")
def model():
    model = random_model("tiny", seed=0)
    randomise(model)
    torch.nn.init.zeros_(model.image.head.bias)  # Apple's files have none
    return model


def test_every_kind_of_file_is_read_without_torch(model, tmp_path):
    sources = []
    for form, saved in (("unfused", model), ("fused", fuse(model))):
        checkpoint.save(saved, tmp_path / form)
        sources.append(str(tmp_path / form))
    for naming, name in (("apple", "a.pt"), ("openclip", "o.pt"), ("openclip", "o.safetensors")):
        checkpoint.save(model, tmp_path / name, naming=naming)
        sources.append(f"tiny={tmp_path / name}")
    state = to_third_party(model, "openclip").items()
    half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in state}
    save_file(half, tmp_path / "half.safetensors")
    sources.append(f"tiny={tmp_path}/half.safetensors")
    out = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *sources],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    facts = [json.loads(line) for line in out.stdout.splitlines()]
    assert len(facts) == len(sources)
    for source, (identity, names, types, scale) in zip(sources, facts, strict=True):
        loaded = checkpoint.load(source)
        assert names == list(loaded.state_dict())
        assert tuple(identity) == loaded.identify_space()  # a digest of every weight
        assert types == (["float32"] if loaded.is_fused else ["float32", "int64"])
        assert scale == pytest.approx(float(loaded.logit_scale.detach().exp()), rel=1e-6)
    assert facts[0][0] == list(model.identify_space())
    assert facts[0][0][0] == facts[1][0][0]  # one space
    assert facts[2][0] == facts[3][0] == facts[4][0]


def test_weights_are_read_anew_and_belong_to_the_caller(model, tmp_path):
    checkpoint.save(model, tmp_path / "x.pt", naming="openclip")
    weights = read_stored(resolve_model(f"tiny={tmp_path}/x.pt")).weights
    for name in ("text.head.weight", "text.position", "logit_scale"):  # transposed, reshaped, 0-d
        array = weights[name]
        np.testing.assert_array_equal(array, model.state_dict()[name].numpy())
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0  # as torch's own memory
        array[...] = 7
        np.testing.assert_array_equal(weights[name], model.state_dict()[name].numpy())
    assert "image.head" not in weights
    assert len(weights) == len(dict(weights))


def test_what_has_no_weights_without_torch(model, tmp_path):
    with pytest.raises(MissingDependencyError, match="random:tiny: random weights need torch: "):
        read_stored(resolve_model("random:tiny"))
    state = to_third_party(model, "openclip")
    torch.save({**state, "logit_scale": torch.tensor(1e3)}, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError, match="logit scale: it is inf"):
        _ = read_stored(resolve_model(tmp_path / "x.pt"), "tiny").logit_scale
    torch.save({**state, "logit_scale": torch.tensor(4)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="logit_scale has type int64, not float32"):
        read_stored(resolve_model(tmp_path / "x.pt"), "tiny")


def test_changed_weights_have_no_identity(model, tmp_path):
    checkpoint.save(model, tmp_path / "m")
    stored = read_stored(resolve_model(tmp_path / "m"))
    state = {n: v.detach() for n, v in model.state_dict().items()}
    state["image.head.weight"] = state["image.head.weight"] + 1
    save_file(state, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        _ = stored.identity
    with pytest.raises(CheckpointError, match=r"does not hold the weights that were saved"):
        _ = read_stored(resolve_model(tmp_path / "m")).identity
