from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("litert_torch")

from pocketclip.errors import BundleError, ExportError, MissingDependencyError
from pocketclip.export import litert, mobile
from tests.export import phones

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(torch|litert|ai_edge)")


def _write(folder, kind, precision, made=None, **options):
    made = made or phones.towers()
    tower, example = phones.of(made, kind)
    path = folder / f"{kind}.tflite"
    facts = litert.write(
        tower, example, path, kind=kind, precision=precision, towers=made,
        calibration=phones.inputs(made, kind), **options,
    )  # fmt: skip
    return path, facts


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("text"), "text", "fp32")


def test_it_computes_what_the_tower_does(text):
    path, facts = text
    run = litert.open_tower(path, trusted=True)
    cosine, error = phones.figures(run, phones.towers(), "text")
    assert cosine >= 0.99999
    assert error <= 1e-4
    assert facts["file"] == "text.tflite"
    assert facts["input"] == {"name": "ids", "dtype": "int32", "shape": [1, 77]}
    assert facts["output"] == {"name": "text_features", "dtype": "float32", "shape": [1, 64]}
    assert facts["dynamic_batch"] is False
    assert facts["kept"] == []


def test_results_do_not_share_memory(text):
    run = litert.open_tower(text[0], trusted=True)
    rows = phones.inputs(phones.towers(), "text")
    first = run(rows[0])
    copy = first.copy()
    run(rows[1])
    assert np.array_equal(first, copy)


def test_another_shape_is_refused(text):
    run = litert.open_tower(text[0], trusted=True)
    with pytest.raises(BundleError, match=r"takes \(1, 77\), not \(2, 77\)"):
        run(np.zeros((2, 77), np.int64))


def test_a_damaged_file_has_a_message(text, tmp_path):
    damaged = tmp_path / "text.tflite"
    damaged.write_bytes(text[0].read_bytes()[:20000])
    with pytest.raises(BundleError, match="LiteRT cannot load it"):
        litert.open_tower(damaged)
    with pytest.raises(BundleError, match="does not exist"):
        litert.open_tower(tmp_path / "nothing.tflite")


@pytest.mark.slow
def test_int8_of_the_text_tower(tmp_path, text):
    path, facts = _write(tmp_path, "text", "int8")
    cosine, error = phones.figures(litert.open_tower(path, trusted=True), phones.towers(), "text")
    assert cosine >= 0.99
    assert error > 1e-4  # it is int8
    assert path.stat().st_size < 0.7 * text[0].stat().st_size
    assert facts["kept"] == []


def _int8(text, keep=(), min_cosine=0.99998):
    made = phones.towers()
    tower, example = phones.of(made, "text")
    rows = mobile.rows(phones.inputs(made, "text"), example.int())
    return litert._int8(text[0].read_bytes(), tower, rows, keep, min_cosine)


def test_layers_are_kept_until_int8_is_good_enough(text):
    model, kept, notes = _int8(text)
    assert kept
    assert len(kept) < len(
        litert._operations_with_weights(text[0].read_bytes(), phones.towers().text)
    )
    assert len(model) < len(text[0].read_bytes())
    assert any("without the kept layers" in note for note in notes)
    run = litert.FORMAT.checked_runner(litert._load(model), "the model")
    assert phones.figures(run, phones.towers(), "text")[0] >= 0.99998
    again, also, _ = _int8(text, keep=kept)
    assert also == kept
    assert len(again) == len(model)


def test_a_layer_to_keep_that_does_not_exist(text):
    with pytest.raises(
        ExportError,
        match=r"no layer 'tower\.nose' to keep.*tower\.blocks\.0\.attn\.qkv.*tower\.head$",
    ):
        _int8(text, keep=["tower.nose"])


def test_an_operation_that_it_lacks_names_the_layer(tmp_path):
    path = tmp_path / "image.tflite"
    with pytest.raises(ExportError, match=r"linalg_eig\w+\.default.* layer odd\.1"):
        litert.write(
            phones.Lacking(), torch.rand(1, 4), path, kind="image", precision="fp32",
            towers=phones.towers(),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[litert\]"):
        litert.package()


@pytest.mark.slow
@pytest.mark.parametrize("precision", litert.PRECISIONS)
@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("name", phones.CUTS)
def test_every_precision_is_within_its_gate(name, kind, precision, tmp_path):
    made = phones.towers(name, smaller=False)
    path, _ = _write(tmp_path, kind, precision, made)
    cosine, error = phones.figures(litert.open_tower(path, trusted=True), made, kind)
    assert cosine >= phones.GATES[precision]
    assert precision != "fp32" or error <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("how", ["garbage", "empty", "head", "middle", "cut"])
def test_no_damage_crashes_the_process(how, text, tmp_path):
    good = text[0].read_bytes()
    noise = np.random.RandomState(0).bytes(4096)
    damaged = {
        "garbage": noise,
        "empty": b"",
        "head": good[:16] + noise + good[16 + 4096 :],
        "middle": good[:60000] + noise + good[60000 + 4096 :],
        "cut": good[: len(good) // 2],
    }[how]
    path = tmp_path / "text.tflite"
    path.write_bytes(damaged)
    if how == "middle":  # noise among the weights, which only the bundle's hash can see
        litert.open_tower(path)(phones.inputs(phones.towers(), "text")[0])
    else:
        with pytest.raises(BundleError, match=path.name):
            litert.open_tower(path)
