from __future__ import annotations

import pytest
import torch

from pocketclip.nn.build import random_model
from pocketclip.nn.cpu_optimize import CompiledTower, compile_for_cpu, optimize_for_onednn
from pocketclip.nn.reparam import fuse
from tests.export.phones import sparse_model
from tests.golden_weights import randomise, relative_error

_TEXT = {"text.layers": 1, "text.width": 64, "text.heads": 2, "text.embedding_buckets": 2048}
CUTS = {
    "tiny": {},
    "mobileclip-s0": {"image.depths": (1, 2, 1, 1), **_TEXT},
    "mobileclip-s3": {"image.depths": (1, 1, 1, 1, 1), "image.widths": (32, 64, 128, 256, 512),
                      **_TEXT},
    "mobileclip-b": {"image.layers": 2, **_TEXT, "text.layers": 2},
}  # fmt: skip


def _model(name):
    if name == "sparse":
        return sparse_model()
    model = random_model(name, seed=0, **CUTS[name])
    randomise(model)
    return model


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("mobileclip-s3", "mobileclip-b") else n
        for n in CUTS
    ]
    + ["sparse"],
)
def test_optimized_models_compute_the_same(name):
    model = _model(name)
    fused = fuse(model).double()
    other = optimize_for_onednn(fused)
    size = model.config.image_size
    pixels = torch.rand(3, 3, size, size).double()
    ids = torch.randint(1, 49407, (3, 77))
    with torch.inference_mode():
        for out, ref in (
            (other.encode_image(pixels), fused.encode_image(pixels)),
            (other.encode_text(ids), fused.encode_text(ids)),
        ):
            assert relative_error(out, ref.numpy()) < 1e-12


def test_micro_batches_are_put_together_in_order(monkeypatch):
    sizes = []

    def compiler(tower, **_options):
        def run(x):
            sizes.append(len(x))
            return tower(x)

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    tower = CompiledTower(torch.nn.Flatten())
    x = torch.arange(11.0).reshape(11, 1)
    assert torch.equal(tower(x), x)
    assert sizes == [4, 4, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "sparse"])
def test_compiled_agrees(name):
    model = _model(name)
    compiled = compile_for_cpu(model)
    size = model.config.image_size
    pixels, ids = torch.rand(5, 3, size, size), torch.randint(1, 49407, (5, 77))
    with torch.inference_mode():
        for out, ref in (
            (compiled.encode_image(pixels), model.encode_image(pixels)),
            (compiled.encode_text(ids), model.encode_text(ids)),
        ):
            assert relative_error(out, ref.numpy()) < 1e-5
    assert not model.is_fused
