from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from pocketclip.errors import ExportError, MissingDependencyError
from pocketclip.export.quantize import choose_layers
from pocketclip.export.sensitivity import GROUPS, cosines, search

LAYERS = [f"image.blocks.{i}" for i in range(40)]


def fake(harm: dict[str, float], *, dimension: int = 8):
    """Return a build and its reference; each layer not kept turns the embedding by its harm."""

    def build(keep):
        angle = sum(value for name, value in harm.items() if name not in keep)
        built.append(keep)

        def run(rows):
            out = np.zeros((len(rows), dimension))
            out[:, 0], out[:, 1] = np.cos(angle), np.sin(angle)
            return out * rows[:, :1]  # lengths do not count

        return run

    built: list[frozenset[str]] = []
    reference = np.zeros((3, dimension))
    reference[:, 0] = 2.0
    return build, reference, built


INPUTS = [np.array([[1.0]]), np.array([[2.0], [3.0]])]


def test_nothing_is_kept_where_the_gate_holds():
    build, reference, built = fake({"image.blocks.3": 0.1})
    found = search(LAYERS, build, INPUTS, reference, 0.99)
    assert found.kept == ()
    assert found.tried == len(built) == 1
    assert found.before == found.after
    assert found.after.min_cosine == pytest.approx(np.cos(0.1))


def test_routers_of_mixtures_are_kept_in_any_case():
    layers = ["a.mlp.router", "a.mlp.experts.0.fc1", "b.mlp.router.weight", "b.norm"]
    build, reference, built = fake({"a.mlp.experts.0.fc1": 0.001})
    choice = choose_layers(layers, build, INPUTS, reference, keep=["b.norm"], min_cosine=0.99)
    assert choice.kept == ["a.mlp.router", "b.mlp.router.weight", "b.norm"]
    assert built == [frozenset(choice.kept)]


@pytest.mark.parametrize(
    "sensitive", [("image.blocks.7",), ("image.blocks.0", "image.blocks.39"), tuple(LAYERS[10:14])]
)
def test_exactly_the_sensitive_layers_are_kept(sensitive):
    build, reference, built = fake(dict.fromkeys(LAYERS, 0.001) | dict.fromkeys(sensitive, 0.3))
    found = search(LAYERS, build, INPUTS, reference, 0.99)
    assert found.kept == sensitive
    assert found.before.min_cosine < 0.99 <= found.after.min_cosine
    assert found.tried == len(built) == len(set(built)) <= 40


def test_the_least_harmful_are_given_back_first_and_the_order_is_the_models():
    harm = {"image.blocks.30": 0.10, "image.blocks.2": 0.12}
    build, reference, _ = fake(harm)
    # One of the two may stay quantised: cos(0.12) = 0.9928.
    found = search(LAYERS, build, INPUTS, reference, 0.99)
    assert len(found.kept) == 1
    both = search(LAYERS, fake(harm)[0], INPUTS, reference, 0.999)
    assert both.kept == ("image.blocks.2", "image.blocks.30")


def test_the_search_is_bounded_and_repeatable():
    rng = np.random.RandomState(0)
    harm = dict(zip(LAYERS, rng.uniform(0, 0.1, len(LAYERS)), strict=True))
    results = []
    for _ in range(2):
        build, reference, built = fake(harm)
        results.append(search(LAYERS, build, INPUTS, reference, 0.99))
        assert len(built) <= 40
    assert results[0] == results[1]
    assert 0 < len(results[0].kept) < len(LAYERS)
    few = search(LAYERS, fake(harm)[0], INPUTS, reference, 0.99, max_builds=24)
    assert few.tried <= 24
    assert few.after.min_cosine >= 0.99
    with pytest.raises(ValueError, match=str(3 * GROUPS)):
        search(LAYERS, build, INPUTS, reference, 0.99, max_builds=5)


def test_a_model_that_is_wrong_in_any_case_is_refused():
    build, reference, _ = fake({"of no layer": 1.0})
    with pytest.raises(
        ExportError, match=r"every layer kept .* 0\.540302 \(the search needs 0\.99\)"
    ):
        search(LAYERS, build, INPUTS, reference, 0.99)


def test_nan_passes_no_gate():
    assert np.isnan(cosines(np.zeros((1, 4)), np.ones((1, 4)))).all()
    _, reference, _ = fake({})
    with pytest.raises(ExportError, match="nan"):
        search(
            LAYERS,
            lambda _keep: lambda rows: np.full((len(rows), 8), np.nan),
            INPUTS,
            reference,
            0.99,
        )


# From here on, real towers in real runtimes.


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The towers of a tiny model with weights that mean something, in fp32, and inputs."""
    pytest.importorskip("openvino")
    from pocketclip.export import onnx as to_onnx
    from pocketclip.export import openvino as to_openvino
    from pocketclip.export.towers import GraphTowers
    from pocketclip.nn.build import random_model
    from pocketclip.nn.reparam import fuse
    from tests.export.phones import SMALLER
    from tests.golden_weights import randomise

    model = random_model("tiny", seed=0, **SMALLER)
    randomise(model)
    towers = GraphTowers(weights=model.arrays(), config=model.config)
    folder = tmp_path_factory.mktemp("fp32")
    for kind in ("image", "text"):
        to_onnx.write(towers, folder / f"{kind}.onnx", kind=kind, precision="fp32")
        to_openvino.write(towers, folder / f"{kind}.xml", kind=kind, precision="fp32")
    modules = {name for name, _ in fuse(model).named_modules()}
    # The graph has one convolution each for queries, keys and values.
    parts = [name.removesuffix("qkv") for name in modules if name.endswith(".attn.qkv")]
    modules |= {f"{part}{letter}" for part in parts for letter in "qkv"}
    rng = np.random.RandomState(0)
    size, length = model.config.image_size, model.config.text.context_length
    pixels = [_photo_like(rng, size) for _ in range(12)]
    ids = [_ids(rng, length) for _ in range(12)]
    return folder, {"image": pixels, "text": ids}, modules


def _photo_like(rng, size):
    """Random colours that change slowly over the image, with some noise."""
    coarse = rng.uniform(0, 1, (1, 3, 4, 4))
    fine = np.kron(coarse, np.ones((1, 1, size // 4, size // 4)))
    return (fine + 0.1 * rng.standard_normal(fine.shape)).astype(np.float32)


def _ids(rng, length):
    row = np.zeros((1, length), np.int64)
    count = rng.randint(3, length - 1)
    row[0, 0], row[0, 1:count], row[0, count] = 49406, rng.randint(1, 49000, count - 1), 49407
    return row


def _quantise(folder, target, kind, calibration, out, **options):
    from pocketclip.export.quantize_onnx import quantize_onnx
    from pocketclip.export.quantize_openvino import quantize_openvino

    suffix, function = {
        "onnx": (".onnx", quantize_onnx),
        "openvino": (".xml", quantize_openvino),
    }[target]
    path = out / f"{kind}{suffix}"
    return path, function(folder / f"{kind}{suffix}", path, calibration[kind], **options)


def _bytes(folder, kind, target):
    """Return the size of a tower's files but for OpenVINO's description of the graph."""
    names = {"onnx": f"{kind}.onnx*", "openvino": f"{kind}.bin"}[target]
    return sum(path.stat().st_size for path in folder.glob(names))


def _open(path):
    from pocketclip.infer.backends import onnx_session, openvino_runner

    if path.suffix == ".xml":
        return openvino_runner(os.fspath(path), 1)
    session = onnx_session(os.fspath(path), 1)
    return lambda array: session.run(None, {session.get_inputs()[0].name: array})[0]


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_written_tower_is_as_near_as_reported_and_smaller(exports, tmp_path, target, kind):
    folder, calibration, modules = exports
    path, facts = _quantise(folder, target, kind, calibration, tmp_path)
    assert facts["quantised"] > len(facts["kept"])
    assert 0.99 <= facts["min_cosine"] < 0.99999  # not the float tower
    before, after = _open(folder / path.name), _open(path)
    rows = calibration[kind]
    found = np.concatenate([after(row) for row in rows])
    cosine = cosines(found, np.concatenate([before(row) for row in rows]))
    assert cosine.min() == pytest.approx(facts["min_cosine"], abs=1e-4)
    assert set(facts["kept"]) <= modules
    assert _bytes(tmp_path, kind, target) < 0.6 * _bytes(folder, kind, target)
    batch = np.concatenate(rows[:3])
    np.testing.assert_allclose(after(batch), found[:3], atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_strict_gate_keeps_layers_by_their_module_paths(exports, tmp_path, target):
    folder, calibration, modules = exports
    _, loose = _quantise(folder, target, "image", calibration, tmp_path, min_cosine=0.5)
    assert loose["kept"] == []
    assert loose["tried"] == 1
    wanted = (loose["min_cosine"] + 3) / 4
    path, strict = _quantise(folder, target, "image", calibration, tmp_path, min_cosine=wanted)
    assert strict["min_cosine_before"] == pytest.approx(loose["min_cosine"], abs=1e-6)
    assert strict["min_cosine"] >= wanted
    assert strict["kept"]
    assert strict["quantised"] > 0
    assert strict["tried"] <= 40
    assert set(strict["kept"]) <= modules
    # What the report says is kept is what has to be kept.
    _, again = _quantise(
        folder, target, "image", calibration, tmp_path,
        keep=strict["kept"], min_cosine=strict["min_cosine"] - 1e-5,
    )  # fmt: skip
    assert again["kept"] == strict["kept"]
    assert again["tried"] == 1
    assert path.exists()


def test_layers_have_the_names_of_the_models_modules(exports):
    openvino = pytest.importorskip("openvino")
    from pocketclip.export import qdq, quantize_openvino
    from pocketclip.graph import proto as protos

    folder, _, modules = exports
    for kind in ("image", "text"):
        proto = protos.read_model(folder / f"{kind}.onnx")
        graph = openvino.Core().read_model(os.fspath(folder / f"{kind}.xml"))
        names = [layer.name for layer in qdq.layers(proto)]
        assert set(names) <= modules
        assert len(set(names)) == len(names)
        assert set(names) <= set(quantize_openvino.quantizable_operations(graph)) <= modules


def test_with_every_layer_kept_openvino_computes_the_same(exports):
    openvino = pytest.importorskip("openvino")
    from pocketclip.export import quantize_openvino
    from pocketclip.infer.backends import openvino_runner

    folder, calibration, _ = exports
    plain = openvino.Core().read_model(os.fspath(folder / "image.xml"))
    full = quantize_openvino._quantize_all(
        quantize_openvino._import_nncf(), plain, calibration["image"]
    )
    names = quantize_openvino.quantizable_operations(plain)
    row = calibration["image"][0]
    wanted = openvino_runner(plain, 1)(row)
    float_again = openvino_runner(quantize_openvino.revert_operations(full, plain, names), 1)(row)
    np.testing.assert_allclose(float_again, wanted, atol=1e-6 * np.abs(wanted).max())
    kinds = [
        o.get_type_name()
        for o in quantize_openvino.revert_operations(full, plain, names[:-1]).get_ops()
    ]
    assert "FakeQuantize" in kinds
    before = [o.get_type_name() for o in full.get_ops()].count("FakeQuantize")
    quantize_openvino.revert_operations(full, plain, names[:3])
    assert [o.get_type_name() for o in full.get_ops()].count("FakeQuantize") == before


def _ours(model):
    """Return a model of the package `onnx` as one of ours."""
    from pocketclip.graph import proto as protos

    out = protos.messages().ModelProto()
    out.ParseFromString(model.SerializeToString())
    return out


def test_embedding_tables_have_a_scale_per_row():
    onnx = pytest.importorskip("onnx")
    import onnxruntime
    from onnx import helper, numpy_helper

    from pocketclip.export import qdq

    table = np.random.RandomState(0).standard_normal((40, 16)).astype(np.float32)
    table *= np.logspace(-3, 3, 40, dtype=np.float32)[:, None]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["out"], "node_embedding")],
        "text_tower",
        [helper.make_tensor_value_info("ids", 7, ["batch", "tokens"])],
        [helper.make_tensor_value_info("out", 1, ["batch", "tokens", 16])],
        [numpy_helper.from_array(table, "table")],
    )
    proto = _ours(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )
    made = qdq.quantised(proto, {})
    onnx.checker.check_model(made.SerializeToString(), full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (found,) = session.run(None, {"ids": np.arange(40)[None]})
    largest = np.abs(table).max(1, keepdims=True)
    assert np.abs(found[0] - table).max() > 0
    assert (np.abs(found[0] - table) <= largest / 127 / 2 * 1.001).all()
    assert {t.data_type for t in made.graph.initializer} == {onnx.TensorProto.INT8, 1}


def test_convolutions_that_share_a_bias_have_each_their_own_scale():
    onnx = pytest.importorskip("onnx")
    import onnxruntime
    from onnx import helper, numpy_helper

    from pocketclip.export import qdq
    from pocketclip.infer.backends import onnx_session

    rng = np.random.RandomState(0)
    weights = {
        "w1": rng.randn(64, 64, 1, 1), "w2": 50 * rng.randn(64, 64, 1, 1), "b": rng.randn(64)
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "w1", "b"], ["middle"], "node_first"),
            helper.make_node("Conv", ["middle", "w2", "b"], ["out"], "node_second"),
        ],
        "image_tower",
        [helper.make_tensor_value_info("pixels", 1, ["batch", 64, 8, 8])],
        [helper.make_tensor_value_info("out", 1, ["batch", 64, 8, 8])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    proto = _ours(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )
    pixels = rng.rand(1, 64, 8, 8).astype(np.float32)
    ranges = qdq.calibrate(proto, lambda m: onnx_session(m, 1), [pixels])
    made = qdq.quantised(proto, ranges)
    onnx.checker.check_model(made.SerializeToString(), full_check=True)
    wanted, found = (
        onnxruntime.InferenceSession(p.SerializeToString()).run(None, {"pixels": pixels})[0]
        for p in (proto, made)
    )
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_weights_leave_room_for_the_sums_of_processors_without_dot_products(exports):
    onnx = pytest.importorskip("onnx")
    from pocketclip.export import qdq
    from pocketclip.graph import proto as protos

    folder, calibration, _ = exports
    proto = protos.read_model(folder / "image.onnx")
    chosen = qdq.layers(proto)
    assert not any(layer.name.endswith(("mixer", "mlp.conv")) for layer in chosen)  # depthwise
    from pocketclip.infer.backends import onnx_session

    ranges = qdq.calibrate(proto, lambda m: onnx_session(m, 1), calibration["image"][:2])
    made = qdq.quantised(proto, ranges)
    onnx.checker.check_model(made.SerializeToString(), full_check=True)
    arrays = {t.name: protos.array_from_tensor(t) for t in made.graph.initializer}
    weights = [arrays[f"{layer.weight}_int8"].astype(int) for layer in chosen]
    assert max(np.abs(w).max() for w in weights) == 63
    assert 2 * 63 * 255 < 2**15
    kept = qdq.quantised(proto, ranges, {chosen[0].name})
    assert f"{chosen[0].weight}_int8" not in {t.name for t in kept.graph.initializer}


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_bad_input_is_said(exports, tmp_path, target):
    folder, calibration, _ = exports
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[target]
    with pytest.raises(ExportError, match="give some photographs"):
        _quantise(folder, target, "image", {"image": []}, tmp_path)
    with pytest.raises(ExportError, match="write to another file"):
        _quantise(folder, target, "image", calibration, folder)
    with pytest.raises(ExportError, match=r"no layer 'image\.nothing' to keep; the layers"):
        _quantise(folder, target, "image", calibration, tmp_path, keep=["image.nothing"])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    whole = (folder / f"image{suffix}").read_bytes()
    (damaged / f"image{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match=r"cannot run it"):
        _quantise(damaged, target, "image", calibration, tmp_path)
    assert not (tmp_path / f"image{suffix}").exists()


def test_a_missing_package_names_the_extra(exports, tmp_path, monkeypatch):
    folder, calibration, _ = exports
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pocketclip\[openvino\]'"):
        _quantise(folder, "openvino", "image", calibration, tmp_path)


def test_nothing_is_printed(exports, tmp_path, capfd):
    folder, calibration, _ = exports
    _quantise(folder, "openvino", "image", calibration, tmp_path)
    _quantise(folder, "onnx", "image", calibration, tmp_path)
    assert capfd.readouterr() == ("", "")
