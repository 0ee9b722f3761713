"""A conversion without torch carries its own check, and is refused if it fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import StoredModel, read_stored
from pocketclip.errors import DriftError, ExportError
from pocketclip.infer import convert as module
from pocketclip.infer.bundle import read
from pocketclip.infer.comparison import CAPTIONS, compare, own_photos
from pocketclip.infer.convert import convert
from pocketclip.infer.encoder import Encoder
from pocketclip.types import LazyArrays
from tests.infer import slim


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    path = slim.weight_file(tmp_path_factory.mktemp("weights"))
    return read_stored(resolve_model(path))


def changed(stored: StoredModel, name: str, value: float) -> StoredModel:
    """Return the model with one number of one array replaced."""
    array = stored.weights[name]
    array.flat[0] = value
    readers = {key: (lambda key=key: stored.weights[key]) for key in stored.weights}
    weights = LazyArrays({**readers, name: array.copy})
    return dataclasses.replace(stored, weights=weights)


def test_every_installed_backend_is_compared(stored, tmp_path):
    pytest.importorskip("openvino")
    bundle = convert(stored, tmp_path / "new", precision="fp16", about={"source": {"file": "x"}})
    assert bundle.source == {"file": "x"}
    assert bundle.precision == "fp16"
    figures = bundle.verification["backends"]
    assert set(figures) == {"onnxruntime", "openvino"}
    for backend in figures.values():
        assert backend["passed"]
        assert backend["ms"] > 0
        assert 0 < backend["image"]["max_abs_error"] < 1e-2
        assert (backend["image"]["count"], backend["text"]["count"]) == (4, len(CAPTIONS))
    with pytest.raises(ExportError, match="fp32 or fp16, not 'int8'"):
        convert(stored, tmp_path / "int8", precision="int8")


def test_the_whole_transform_and_unit_embeddings_in_the_graph(stored, tmp_path):
    plain = convert(stored, tmp_path / "plain")
    whole = convert(stored, tmp_path / "whole", preprocessing=True, normalize=True)
    assert (whole.image_input, whole.normalized) == ("photo", True)
    assert list(whole.verification["backends"]) == ["onnxruntime"]  # OpenVINO resizes otherwise
    raw = Encoder(whole, "onnxruntime").encode_image(own_photos(), normalize=False)
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-5)
    figures = compare(raw, Encoder(plain, "onnxruntime").encode_image(own_photos()))
    # The photographs' embeddings by this model are 3e-3 apart.
    assert figures["max_abs_error"] < 1e-4


def test_weights_that_are_not_usable(stored, tmp_path):
    out = tmp_path / "new"
    for name, value, message in (
        ("logit_scale", float("inf"), "the model itself is not usable: "),
        ("image.head.bias", float("nan"), "is not finite"),
    ):
        with pytest.raises(ExportError, match=message):
            convert(changed(stored, name, value), out)
        assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_survives_a_failure(stored, tmp_path, monkeypatch):
    out = tmp_path / "new"
    before = convert(stored, out)
    monkeypatch.setattr(module, "compare", lambda a, b: compare(a, b) | {"min_cosine": np.nan})
    with pytest.raises(DriftError, match="nothing was kept: onnxruntime: image tower: the small"):
        convert(stored, out, precision="fp16")
    assert read(out) == before
    before.check()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds other files"):
        convert(stored, out)
    with pytest.raises(ExportError, match="paths in UTF-8"):
        convert(stored, Path("a\udcff"))


def test_one_backend_that_drifts_is_recorded(stored, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    calls: list[int] = []

    def wrong(a, b):
        calls.append(1)
        return compare(a, b) | ({"min_cosine": 0.5} if len(calls) == 3 else {})

    monkeypatch.setattr(module, "compare", wrong)
    bundle = convert(stored, tmp_path / "new")
    assert bundle.verification["not_passed"] == ["openvino"]
    assert Encoder(bundle).backend.name == "onnxruntime"
