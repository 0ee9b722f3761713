"""Feature maps in an ONNX bundle: those of the model, for images of any size, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketclip.errors import BundleError, ChangedBundleError, ConfigError, DriftError, ExportError
from pocketclip.export import features as writer
from pocketclip.export.job import export
from pocketclip.infer.bundle import read
from pocketclip.infer.encoder import Encoder
from pocketclip.preprocess import Preprocess
from tests.bundles import manifest, model
from tests.cli import inside
from tests.golden_features import image
from tests.test_schemas import check

SIZES = [(224, 224), (96, 320)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("tiny", {}), ("mobileclip-b", {}), ("tiny", {"precision": "fp16", "preprocessing": True})],
)
def test_the_maps_are_the_models(exported, name, options):
    folder = exported(name, features=True, **options)
    bundle = read(folder)
    bundle.check()
    about = bundle.features
    check("bundle", manifest(folder))
    limit = 1e-4 if not options else 1e-2
    assert max(about["verification"]["max_relative_error"].values()) <= limit
    assert len({tuple(size) for size in about["verification"]["sizes"]}) == 2
    # The weights are those of the image tower: hardly any are stored again.
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert sizes["features.onnx.data"] < 0.1 * sizes["image.onnx.data"]
    own = model(name)
    assert bundle.variant == read(exported(name, **options)).variant
    encoder = Encoder(bundle)
    sides = [(70, 130)] if name == "tiny" else []
    for size in [*SIZES, *sides]:
        found = encoder.features_of_pixels(image(*size, batch=2).numpy())
        with torch.inference_mode():
            expected = [*own.image.features(image(*size, batch=2)),
                        own.image.tokens(image(*size, batch=2))]  # fmt: skip
        assert list(found) == [*(m.name for m in own.image.feature_maps()), "tokens"]
        for ours, theirs in zip(found.values(), expected, strict=True):
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs.numpy()).max() / theirs.abs().max() < limit
    with pytest.raises(ConfigError):
        encoder.features_of_pixels(np.zeros((1, 4, 64, 64), np.float32))
    if name == "mobileclip-b":
        with pytest.raises(ConfigError, match="multiples of 16, not 70 x 64 pixels"):
            encoder.features_of_pixels(np.zeros((1, 3, 70, 64), np.float32))


def test_photographs_whole_or_cropped_and_by_torch(exported):
    photos = [np.random.default_rng(i).integers(0, 255, (50, 90, 3), np.uint8) for i in range(2)]
    bundle, own = Encoder(read(exported("tiny", features=True))), Encoder(model("tiny"))
    for size in (None, (64, 128)):
        found, expected = bundle.features(photos, size=size), own.features(photos, size=size)
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert found["stage1"].shape == (2, 32, 8, 16)
    transform = Preprocess(model("tiny").config.preprocess)
    assert transform.whole(photos[0], (50, 90)).shape == (3, 50, 90)
    np.testing.assert_allclose(
        transform.whole(photos[0], (50, 90)), photos[0].transpose(2, 0, 1) / np.float32(255)
    )
    for size in ((0, 5), (5000, 5000)):
        with pytest.raises(ConfigError, match="sides are at least 1"):
            transform.whole(photos[0], size)


def test_it_runs_without_torch(exported):
    folder = exported("tiny", features=True)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pocketclip, numpy\n"
        f"maps = pocketclip.load({str(folder)!r}).features(numpy.zeros((9, 9, 3), 'uint8'))\n"
        "print({k: v.shape for k, v in maps.items()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'tokens': (1, 4, 256)" in done.stdout


def test_what_cannot_be_exported(tmp_path):
    for target, precision, says in (
        ("openvino", "fp32", "openvino bundles have no feature maps"),
        ("onnx", "int8", "in fp32 or fp16, not in int8"),
    ):
        with pytest.raises(ExportError, match=says):
            export(model(), tmp_path / "a", target=target, precision=precision, features=True,
                   calibration=[b""] * 16)  # fmt: skip
        assert not (tmp_path / "a").exists()


def test_drift_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def drifting(weights, *args, **kwargs):
        name = "image.stages.2.blocks.0.mlp.fc2.weight"
        changed = {**weights, name: 1.01 * weights[name]}
        return written(changed, *args, **kwargs)

    written = writer.write_features
    monkeypatch.setattr(writer, "write_features", drifting)
    with pytest.raises(DriftError, match=r"stage2 at \d+ x \d+ pixels differs by"):
        export(model(), tmp_path / "a", target="onnx", features=True)
    assert not (tmp_path / "a").exists()


def test_bundles_without_features_or_damaged_ones(exported, tmp_path):
    pixels = image(64, 64).numpy()
    with pytest.raises(BundleError, match="without feature maps: export the model again"):
        Encoder(read(exported("tiny"))).features_of_pixels(pixels)
    for file in ("features.onnx", "image.onnx.data"):
        folder = exported.copy(tmp_path / file, "tiny", features=True)
        data = bytearray((folder / file).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / file).write_bytes(data)
        with pytest.raises(ChangedBundleError):
            Encoder(read(folder)).features_of_pixels(pixels)


def test_the_verb(tmp_path):
    place = Path(writer.__file__).parents[1] / "data" / "quickstart" / "teacher-a"
    done = inside.run("export", place, "--features", "--out", tmp_path / "b", "--json")
    facts = json.loads(done.stdout)
    assert [m["stride"] for m in facts["features"]["maps"]] == [4, 8, 16, 32]
