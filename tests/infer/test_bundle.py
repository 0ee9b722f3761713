"""Bundles: what was changed, damaged or is of something else is refused in one clear line."""

from __future__ import annotations

import json

import pytest

from pocketclip import Encoder
from pocketclip.errors import BundleError, ChangedBundleError, PocketclipError
from pocketclip.infer import bundle as module
from pocketclip.infer.bundle import is_bundle, read
from tests.bundles import manifest, model, rewritten

PHOTO = module.Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"


@pytest.fixture
def folder(exported, tmp_path):
    """A bundle to be damaged."""
    return exported.copy(tmp_path / "bundle")


def _use(folder):
    encoder = Encoder(folder, threads=1)
    return encoder.encode_image(PHOTO), encoder.encode_text("a cat")


def _signed(folder, **changes):
    """Change fields of the manifest as someone would who also writes its hash anew."""
    raw = manifest(folder) | changes
    del raw["sha256"]
    raw = {key: value for key, value in raw.items() if value is not None}
    raw["sha256"] = module._digest(raw)
    (folder / "bundle.json").write_text(json.dumps(raw), "utf-8")


def test_a_bundle_says_what_it_is(exported):
    folder = exported()
    assert is_bundle(folder)
    bundle = read(folder, space_id=model().space_id)
    assert bundle.config == model().config
    assert bundle.path("image") == folder / "image.onnx"
    encoder = Encoder(folder)
    assert encoder.space_id == bundle.space_id == model().space_id
    assert encoder.embed_dim == 64
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    with pytest.raises(BundleError, match="no model in torch"):
        _ = encoder.model


@pytest.mark.parametrize("name", ["image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_file_that_is_not_the_exported_one(folder, name, harm):
    file = folder / name
    data = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if harm == "flip" else data[:-10])
    with pytest.raises(ChangedBundleError, match="is missing" if harm == "gone" else "its hash"):
        _use(folder)
    with pytest.raises(ChangedBundleError, match=name):
        read(folder).check()


def test_check_covers_the_tokenizer_too(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ChangedBundleError, match=r"tokenizer\.json"):
        read(folder).check()
    with pytest.raises(ChangedBundleError, match=r"tokenizer\.json"):
        _use(folder)


@pytest.mark.parametrize("field", ["logit_scale", "space_id", "normalized", "precision"])
def test_a_changed_manifest(folder, field):
    raw = manifest(folder)
    raw[field] = 3.0
    (folder / "bundle.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(ChangedBundleError, match=r"bundle\.json is not the file"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2.*reads version 1: update pocketclip"),
        ({"format": "zip"}, "was not written by `pocketclip export`"),
        ({"tokenizer": "0" * 16}, "another tokenizer"),
        ({"tokenizer": None}, "damaged"),
        ({"space_id": None}, "damaged"),
        ({"image": None}, "damaged"),
        ({"logit_scale": "much"}, "damaged"),
        ({"model": {"name": "x", "nothing": 1}}, "damaged"),
        ({"files": [1, 2]}, "damaged"),
    ],
)
def test_a_manifest_of_something_else(folder, changes, message):
    _signed(folder, **changes)
    with pytest.raises(BundleError, match=message):
        read(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", '{"format"', "\xff\xfe"])
def test_a_manifest_that_is_none(folder, text):
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        read(folder)


def test_no_bundle_at_all(tmp_path):
    assert not is_bundle(tmp_path)
    for place in (tmp_path, tmp_path / "nothing", PHOTO):
        with pytest.raises(BundleError, match="no bundle"):
            read(place)


def test_another_embedding_space(folder):
    with pytest.raises(BundleError, match=rf"space {model().space_id}, and mine is wanted"):
        read(folder, space_id="mine")


@pytest.mark.slow  # a runtime may leave a damaged heap behind, and later tests crash
@pytest.mark.parametrize("harm", ["noise", "cut", "empty", "weights cut"])
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_corrupted_model_whose_hash_is_right(exported, tmp_path, target, harm):
    """The runtime's own errors come out as one of ours."""
    folder = exported.copy(tmp_path / "bundle", target=target)
    weights = {"onnx": "image.onnx.data", "openvino": "image.bin"}[target]
    file = folder / (weights if harm == "weights cut" else manifest(folder)["image"]["file"])
    data = file.read_bytes()
    file.write_bytes(
        {"noise": bytes(range(256)) * 64, "empty": b""}.get(harm, data[: len(data) // 2])
    )
    rewritten(folder)
    with pytest.raises(BundleError, match=r"cannot load it: .") as caught:
        _use(folder)
    assert "\n" not in str(caught.value)


def test_a_bundle_for_devices_is_not_run_here(folder):
    _signed(folder, target="coreml")
    with pytest.raises(BundleError, match=r"coreml bundle, for devices.*--format openvino"):
        Encoder(folder)
    assert issubclass(BundleError, PocketclipError)
