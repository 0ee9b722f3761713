from __future__ import annotations

import copy
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("coremltools")

from pocketclip.data import check_on_mac
from pocketclip.errors import BundleError, DriftError, ExportError, MissingDependencyError
from pocketclip.export import coreml, mobile
from pocketclip.export.towers import prepare
from pocketclip.nn.build import random_model
from tests.export import phones
from tests.golden_weights import randomise


def _write(folder, kind, precision, made=None, **options):
    made = made or phones.towers()
    tower, example = phones.of(made, kind)
    path = folder / f"{kind}.mlpackage"
    facts = coreml.write(
        tower, example, path, kind=kind, precision=precision, towers=made,
        calibration=phones.inputs(made, kind), **options,
    )  # fmt: skip
    return path, facts


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("text"), "text", "fp16")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("image"), "image", "int8", deployment="ios17")


def _size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_the_text_tower(text):
    path, facts = text
    assert facts["input"] == {"name": "ids", "dtype": "int32", "shape": [None, 77]}
    assert facts["output"] == {"name": "text_features", "dtype": "float32", "shape": [None, 64]}
    assert facts["dynamic_batch"] is True
    assert coreml.NOT_EXECUTED in facts["notes"]
    assert facts["weights"]["compared_share"] == 1.0
    assert 0 < facts["weights"]["max_relative_error"] < 2**-11
    assert facts["weights"]["min_cosine_of_tower_with_them"] > 0.99999
    assert facts["operations"]["linear"] > 0
    spec = coreml.package().utils.load_spec(str(path))
    assert spec.WhichOneof("Type") == "mlProgram"
    assert spec.specificationVersion == 7  # iOS 16
    assert spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges[0].upperBound == 64


@pytest.mark.slow
def test_the_image_tower_in_int8(image):
    path, facts = image
    assert facts["input"] == {"name": "image", "dtype": "image RGB", "shape": [1, 3, 64, 64]}
    assert facts["output"]["shape"] == [1, 64]
    assert facts["dynamic_batch"] is False
    assert facts["weights"]["compared_share"] == 1.0
    assert facts["weights"]["min_cosine_of_tower_with_them"] >= 0.99
    assert facts["weights"]["max_relative_error"] > 1e-3  # it is int8
    assert any(name.startswith("constexpr") for name in facts["operations"])
    spec = coreml.package().utils.load_spec(str(path))
    assert spec.specificationVersion == 8  # iOS 17
    made = phones.towers()
    assert _size(path) < 2.2 * sum(p.numel() for p in made.image.parameters())


def test_a_weight_that_is_another_is_noticed(text):
    values = coreml._read_weights(text[0])
    tower, example = phones.of(phones.towers(), "text")
    rows = mobile.rows(phones.inputs(phones.towers(), "text"), example)
    wanted = mobile.embeddings(tower, rows)
    coreml._round_trip(tower, values, "fp16", rows, wanted)
    name = next(n for n in values if coreml._parameter(n, tower) == "tower.head.weight")
    values[name] = values[name].copy()
    values[name][3, 5] += 0.01
    with pytest.raises(ExportError, match=r"tower\.head\.weight in the package differ"):
        coreml._round_trip(tower, values, "fp16", rows, wanted)


def test_fp32_is_judged_by_the_gate_of_fp32(text, monkeypatch):
    """Weights of half precision are not those of an fp32 package, nor are the embeddings."""
    values = coreml._read_weights(text[0])
    tower, example = phones.of(phones.towers(), "text")
    rows = mobile.rows(phones.inputs(phones.towers(), "text"), example)
    wanted = mobile.embeddings(tower, rows)
    with pytest.raises(ExportError, match=r"in the package differ .* fp32 explains"):
        coreml._round_trip(tower, values, "fp32", rows, wanted)
    monkeypatch.setattr(coreml, "_bound", lambda *_: 1.0)
    with pytest.raises(DriftError, match=r"the largest error is .*; the gate is 0\.0001"):
        coreml._round_trip(tower, values, "fp32", rows, wanted)
    broken = {name: np.full_like(value, np.nan) for name, value in values.items()}
    monkeypatch.setattr(coreml, "_bound", lambda *_: np.inf)
    for precision in coreml.PRECISIONS:
        with pytest.raises(ExportError):
            coreml._round_trip(tower, broken, precision, rows, wanted)


@pytest.mark.slow
def test_layers_are_kept_until_the_weights_are_good_enough(tmp_path):
    path, facts = _write(tmp_path, "text", "int8", min_cosine=0.99998)
    assert facts["kept"]
    small = {
        coreml._parameter(name, phones.towers().text)
        for name in coreml._read_weights(path)
        if "quantized" in name
    } - {None}
    assert small
    assert not small & set(facts["kept"])
    assert facts["weights"]["min_cosine_of_tower_with_them"] >= 0.9999


@pytest.mark.parametrize(
    ("mean", "std", "scale", "bias", "in_graph"),
    [
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1 / 255, (0, 0, 0), False),
        ((0.5, 0.4, 0.3), (0.5, 0.5, 0.5), 2 / 255, (-1, -0.8, -0.6), False),
        ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255, (0, 0, 0), True),
    ],
)
def test_the_image_type_scales_as_the_evaluation_does(mean, std, scale, bias, in_graph):
    model = random_model("tiny", seed=0, **{"preprocess.mean": mean, "preprocess.std": std})
    randomise(model)
    made = prepare(model)
    tower, given = coreml._image_input(made.image, made)
    assert given.scale == pytest.approx(scale)
    assert given.bias == pytest.approx(bias)
    assert (tower is not made.image) == in_graph
    levels = torch.randint(0, 256, (1, 3, 64, 64)).float()
    shift = torch.tensor(mean).reshape(3, 1, 1)
    seen = (levels / 255 - shift) / torch.tensor(std).reshape(3, 1, 1)
    scaled = levels * given.scale + torch.tensor(given.bias).reshape(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(tower(scaled), made.image(seen), rtol=1e-4, atol=1e-5)


def test_an_operation_that_it_lacks_names_the_layer(tmp_path):
    with pytest.raises(ExportError, match=r"linalg_eig\w+\.default.* layer odd\.1"):
        coreml.write(
            phones.Lacking(), torch.rand(2, 4), tmp_path / "text.mlpackage", kind="text",
            precision="fp32", towers=phones.towers(),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_damaged_package_has_a_message(text, tmp_path):
    package = tmp_path / "text.mlpackage"
    with pytest.raises(BundleError, match="not a Core ML package"):
        coreml.inspect(package)
    shutil.copytree(text[0], package)
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\xff" * 500)
    with pytest.raises(BundleError, match="not a Core ML package"):
        coreml.inspect(package)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[coreml\]"):
        coreml.package()


def test_an_unknown_deployment(tmp_path):
    with pytest.raises(ExportError, match=r"ios3.*ios16, ios17"):
        _write(tmp_path, "text", "fp16", deployment="ios3")


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle as the script for a Mac finds it, with a Core ML that says what it is told to."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    ids, embeddings = np.arange(6).reshape(3, 2), rng.randn(5, 4).astype(np.float32)
    names = coreml.add_check(tmp_path, images, ids, embeddings[:2], embeddings[2:], 0.99)
    facts = {kind: {"file": f"{kind}.mlpackage", "input": {"name": given},
                    "output": {"name": f"{kind}_features"}}
             for kind, given in (("image", "image"), ("text", "ids"))}  # fmt: skip
    (tmp_path / "bundle.json").write_text(json.dumps(facts))
    assert all((tmp_path / name).is_file() for name in names)
    answers = {"image.mlpackage": embeddings[:2].copy(), "text.mlpackage": embeddings[2:].copy()}

    class Model:
        def __init__(self, path):
            self.kind = path.rpartition("/")[2]
            self.seen = 0

        def predict(self, given):
            (name, value), row = next(iter(given.items())), self.seen
            self.seen += 1
            if self.kind == "image.mlpackage":
                assert name == "image"
                assert np.array_equal(np.asarray(value), images[row])
                assert isinstance(value, Image.Image)
            else:
                assert name == "ids"
                assert value.tolist() == [ids[row].tolist()]
                assert value.dtype == np.int32
            return {self.kind.replace(".mlpackage", "_features"): answers[self.kind][row][None]}

    fake = types.SimpleNamespace(models=types.SimpleNamespace(MLModel=Model))
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setattr(check_on_mac, "HERE", tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    return answers


def test_the_script_for_a_mac_passes_what_is_equal(bundle, capsys):
    assert bundle
    assert check_on_mac.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["executed"] is True
    assert last["image"]["min_cosine"] == pytest.approx(1)
    assert last["text"]["max_abs_error"] == 0


@pytest.mark.parametrize("wrong", [np.array([1, -1, 1, -1], np.float32), np.nan])
def test_the_script_for_a_mac_refuses_what_is_not(bundle, capsys, wrong):
    bundle["text.mlpackage"][1] = wrong
    assert check_on_mac.main() == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["image"]["passed"] is True
    assert last["text"]["passed"] is False


def test_the_script_says_where_it_can_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert check_on_mac.main() == 2
    assert "copy this folder to one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("precision", coreml.PRECISIONS)
@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("name", phones.CUTS)
def test_the_weights_of_every_precision_come_back(name, kind, precision, tmp_path):
    made = phones.towers(name, smaller=False)
    _, facts = _write(tmp_path, kind, precision, made)
    assert facts["weights"]["compared_share"] > 0.99
    assert facts["weights"]["min_cosine_of_tower_with_them"] >= phones.GATES[precision]


@pytest.mark.slow
def test_a_router_stays_in_float32_and_equal_experts_are_recognised(tmp_path):
    made = phones.towers("sparse", smaller=False)
    tower, example = phones.of(made, "text")
    path = tmp_path / "text.mlpackage"
    copies = copy.deepcopy(tower)
    experts = copies.tower.blocks[1].mlp.experts
    for expert in experts[1:]:
        expert.load_state_dict(experts[0].state_dict())
    facts = coreml.write(
        copies, example, path, kind="text", precision="fp16", towers=made,
        calibration=phones.inputs(made, "text"),
    )  # fmt: skip
    values = coreml._read_weights(path)
    stored = {coreml._parameter(name, copies): value.dtype for name, value in values.items()}
    assert stored["tower.blocks.1.mlp.router.weight"] == np.float32
    assert stored["tower.blocks.1.mlp.experts.0.fc1.weight"] == np.float16
    assert "tower.blocks.1.mlp.experts.1.fc1.weight" not in stored  # stored once
    assert facts["weights"]["compared_share"] > 0.99
    assert facts["weights"]["max_relative_error"] > 0
