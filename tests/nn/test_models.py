"""Every model computes the same as the published one, unfused and fused."""

from __future__ import annotations

import copy
import csv
import functools

import numpy as np
import pytest
import torch
from torch import nn

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import read_stored
from pocketclip.graph.build import write_tower
from pocketclip.infer.backends import onnx_session
from pocketclip.nn.build import build_empty, create_model, random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.reparam import fuse
from pocketclip.tokenizer import Tokenizer
from tests.golden_features import check_maps
from tests.golden_weights import (
    FOLDER,
    TAGS,
    golden,
    randomise,
    relative_error,
    standard_normal,
)

# One of each kind of tower; the others are slow tests.
FUSED = {"tiny", "small", "coca-tiny"}  # that of MobileCLIP-S0 is among the golden models
BOTH = (True, False)
# Whether the text tower is compared, and the graphs to write, fused or not. The golden captioner's
# text tower is causal as that of MobileCLIP-B; base_install.sh runs the graphs of all three.
GOLDEN = {
    "apple.mobileclip_s0": (True, BOTH), "apple.mobileclip_b": (False, ()),
    "openclip.MobileCLIP2-S0": (True, ()),
}  # fmt: skip


def _slow_unless(values, quick):
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (7, 5), (300, 333)])
def test_golden_weights_are_numpys_normal_numbers(shape):
    expected = np.random.RandomState(5).standard_normal(shape)
    np.testing.assert_array_equal(standard_normal(5, shape), np.asarray(expected, np.float32))


@pytest.mark.parametrize(
    ("tag", "has_text", "graphs"),
    [*((tag, *what) for tag, what in GOLDEN.items()),
     # The image tower of five stages; the text tower is of MobileCLIP2-S0's kind.
     pytest.param("openclip.MobileCLIP2-S3", False, BOTH, marks=pytest.mark.slow),
     *(pytest.param(tag, True, BOTH, marks=pytest.mark.slow)
       for tag in TAGS if GOLDEN.get(tag) != (True, BOTH))],
)  # fmt: skip
def test_golden_model(tag, has_text, graphs, tmp_path):
    case = golden(tag)
    path = tmp_path / "weights.pt"
    torch.save(case.state(has_text=has_text), path)
    model = checkpoint.load(path, model=TAGS[tag])
    parameters = sum(p.numel() for p in model.parameters())
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert parameters == sum(
        torch.Size(shape).numel()
        for name, shape in case.shapes.items()
        if not name.endswith(buffers)
    )
    for variant in (model, fuse(model)):
        with torch.inference_mode():
            assert relative_error(variant.encode_image(case.pixels), case.image) < 1e-5
            check_maps(tag, variant.image)
            if has_text:
                assert relative_error(variant.encode_text(case.ids), case.text) < 1e-5
    del model, variant
    stored = read_stored(resolve_model(f"{TAGS[tag]}={path}"))
    for fused in graphs:
        for kind, rows, expected in (
            ("image", case.pixels, case.image), ("text", case.ids, case.text)
        ):  # fmt: skip
            if kind == "text" and not has_text:
                continue
            file = tmp_path / f"{kind}.onnx"
            write_tower(stored.weights, stored.config, kind, file, fuse=fused)
            session = onnx_session(str(file), 1)
            out = session.run(None, {session.get_inputs()[0].name: rows.numpy()})[0]
            assert np.abs(out - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("name", [n for n, entry in zoo.ZOO.items() if entry.published])
def test_fused_parameter_counts_are_the_published_ones(name):
    facts = zoo.entry(name).published
    model = fuse(build_empty(zoo.entry(name).config))
    image, text = (
        sum(p.numel() for p in tower.parameters()) / 1e6 for tower in (model.image, model.text)
    )
    # The papers round each tower to 0.1 million; together they must be within 0.2 %.
    total = facts.image_params_million + facts.text_params_million
    assert image + text == pytest.approx(total, rel=0.002)
    assert image == pytest.approx(facts.image_params_million, rel=0.002, abs=0.051)
    assert text == pytest.approx(facts.text_params_million, rel=0.002, abs=0.051)


def test_published_facts_are_those_of_the_table():
    with (FOLDER.parent / "published_models.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    published = {name: e.published for name, e in zoo.ZOO.items() if e.published is not None}
    assert rows.keys() == published.keys()
    columns = [c for c in next(iter(rows.values())) if c != "model"]
    for name, row in rows.items():
        ours = [getattr(published[name], field) for field in zoo.PUBLISHED_FIELDS]
        assert [float(row[c]) for c in columns] == ours


@pytest.mark.parametrize("name", _slow_unless(zoo.ZOO, FUSED))
def test_fused_agrees_with_unfused(name):
    # In float64, since random weights of great depth magnify the rounding of float32.
    config = zoo.entry(name).config
    if isinstance(config.image, zoo.ViTConfig):
        config = zoo.override(config, image_size=4 * config.image.patch_size)
    model = build_empty(config).to_empty(device="cpu").eval().double()
    randomise(model)
    before = copy.deepcopy(model.state_dict()) if name == "tiny" else None
    fused = fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not model.is_fused
    assert model.image is not fused.image
    if before is not None:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    size = _small_size(model)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, size, size, generator=generator).double()
    ids = torch.randint(1, 49406, (2, 77), generator=generator)
    ids[:, 20] = 49407
    with torch.inference_mode():
        for out, ref in (
            (fused.encode_image(pixels), model.encode_image(pixels)),
            (fused.encode_text(ids), model.encode_text(ids)),
        ):
            assert relative_error(out, ref.numpy()) < 1e-10
            # Constant embeddings would agree whatever was computed.
            assert relative_error(out[:1], ref[1:].numpy()) > 1e-2


def test_fusing_leaves_the_original_trainable():
    model = create_model("tiny")
    fused = fuse(model)
    assert model.training
    model.encode_image(torch.rand(2, 3, 64, 64)).sum().backward()
    assert model.image.stem[0].conv.conv.weight.grad is not None
    assert not fused.training


def test_fusing_twice_changes_nothing():
    fused = fuse(random_model("tiny", seed=0))
    again = fuse(fused)
    assert again.is_fused
    assert again.space_id == fused.space_id
    for one, other in zip(fused.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


TOWERS = ["tiny", "mobileclip-s0", "vit-b16", "mobileclip-b"]


def _small_size(model: CLIP) -> int:
    """Return a small image size; convolutional towers take any multiple of their stride."""
    is_convolutional = isinstance(model.config.image, zoo.MCiConfig)
    return 2 * model.image.stride if is_convolutional else model.config.image_size


@functools.cache
def _shallow_model(name: str) -> CLIP:
    """Return a shared model with the same kinds of towers, of few layers."""
    cuts = {
        "tiny": {},
        "mobileclip-s0": {"image.depths": (1, 1, 1, 1), "text.layers": 1},
        "mobileclip2-s3": {"image.depths": (1, 1, 1, 1, 1), "text.layers": 1},
        "vit-b16": {"image.layers": 2, "text.layers": 1},
        "mobileclip-b": {"image.layers": 2, "text.layers": 1, "image_size": 64},
    }
    model = random_model(name, seed=0, **cuts[name])
    randomise(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", _slow_unless([*TOWERS, "mobileclip2-s3"], {"tiny", "mobileclip-s0"})
)
def test_half_precision(name, dtype):
    model = copy.deepcopy(_shallow_model(name))
    size = _small_size(model)
    pixels, ids = torch.rand(2, 3, size, size), torch.tensor([[49406, 320, 1125, 49407, 0]] * 2)
    for variant in (fuse(model), model):
        with torch.inference_mode():
            expected = (
                variant.encode_image(pixels, normalize=True),
                variant.encode_text(ids, normalize=True),
            )
            half = variant.to(dtype)
            actual = (
                half.encode_image(pixels.to(dtype), normalize=True),
                half.encode_text(ids, normalize=True),
            )
        for out, ref in zip(actual, expected, strict=True):
            assert out.dtype is dtype
            assert (out.float() * ref).sum(-1).min() > 0.995


@pytest.mark.parametrize("name", _slow_unless([*TOWERS, "mobileclip2-s3"], {"tiny"}))
def test_exports_with_a_dynamic_batch(name):
    model = fuse(_shallow_model(name))
    size = _small_size(model)
    batch = torch.export.Dim("batch", min=1, max=64)
    pixels, ids = torch.rand(2, 3, size, size), torch.randint(1, 49407, (2, 77))
    for tower, example in ((model.image, pixels), (model.text, ids)):
        program = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},)).module()
        more = torch.cat([example, example.flip(0)[:1]])
        with torch.inference_mode():
            torch.testing.assert_close(program(more), tower(more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", _slow_unless(TOWERS, {"tiny"}))
def test_compiles(name):
    # A single graph; the compiler behind it is not ours to test.
    model = _shallow_model(name)
    size = _small_size(model)
    pixels, ids = torch.rand(1, 3, size, size), torch.randint(1, 49407, (1, 77))
    for variant in (model, fuse(model)):
        for tower, example in ((variant.image, pixels), (variant.text, ids)):
            compiled = torch.compile(tower, backend="aot_eager", fullgraph=True)
            with torch.inference_mode():
                torch.testing.assert_close(compiled(example), tower(example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "step"),
    [("tiny", 32), ("mobileclip-s0", 32), ("mobileclip2-s3", 64), ("vit-b16", 16),
     ("mobileclip-b", 16)],
)  # fmt: skip
def test_other_image_sizes(name, step):
    model = _shallow_model(name)
    assert model.image.stride == step
    size = max(_small_size(model), 3 * step)
    pixels = torch.rand(1, 3, size + step, size - step)
    with torch.inference_mode():
        out = model.encode_image(pixels)
        assert relative_error(fuse(model).encode_image(pixels), out.numpy()) < 1e-4
    assert out.shape == (1, model.config.embed_dim)
    assert out.isfinite().all()


def test_vit_position_embedding_of_the_trained_grid_is_exact():
    tower = _shallow_model("vit-b16").image
    assert tower.position_for(14, 14) is tower.position
    resized = tower.position_for(28, 14)
    assert resized.shape == (1, 28 * 14 + 1, 768)
    assert torch.equal(resized[:, 0], tower.position[:, 0])


def test_text_is_pooled_at_the_first_end_token():
    model = random_model("vit-b16", seed=0, **{"text.layers": 1})
    ids = torch.tensor([[49406, 320, 49407, 0, 0], [49406, 320, 49407, 49407, 7]])
    with torch.inference_mode():
        one, other = model.encode_text(ids)
    # The tower is causal: ids after the first end token have no effect.
    torch.testing.assert_close(one, other)


def test_shorter_texts_are_exact_in_a_causal_tower():
    model = random_model("mobileclip-b", seed=0, **{"text.layers": 2, "image.layers": 1})
    ids = torch.zeros(2, 77, dtype=torch.int64)
    ids[:, :5] = torch.tensor([49406, 320, 1125, 49407, 0])
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(ids[:, :5]), model.encode_text(ids))


def test_composed_embedding_gives_every_token_its_own_row():
    table = random_model("tiny", seed=0).text.embedding.table(49408)
    assert table.shape == (49408, 64)
    assert len(torch.unique(table[:, :3], dim=0)) == 49408


def test_arrays_of_tokenizer_and_preprocessing_are_accepted():
    model = random_model("tiny", seed=0)
    ids = Tokenizer()(["a cat", "a dog"])
    pixels = np.zeros((2, 3, 64, 64), np.float32)
    with torch.inference_mode():
        text, image = model.encode_text(ids), model.encode_image(pixels)
        assert torch.equal(text, model.encode_text(torch.from_numpy(ids)))
        assert torch.equal(image, model.encode_image(torch.from_numpy(pixels)))


def test_each_tower_runs_alone():
    model = random_model("tiny", seed=0)
    image, text, scale = model(pixels=torch.rand(1, 3, 64, 64))
    assert text is None
    assert image.norm().item() == pytest.approx(1, abs=1e-5)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-4)
    image, text, _ = model(ids=torch.tensor([[49406, 320, 49407]]))
    assert image is None
    assert text.shape == (1, 64)


def test_parameter_counts_of_the_small_models():
    counts = {n: sum(p.numel() for p in create_model(n).parameters()) for n in ("tiny", "small")}
    assert counts["tiny"] == pytest.approx(0.5e6, rel=0.1)
    assert counts["small"] == pytest.approx(5e6, rel=0.1)


def test_invalid_sizes_are_refused():
    model = random_model("vit-b16", seed=0, **{"image.layers": 1, "text.layers": 1})
    with pytest.raises(ValueError, match="multiples of 16"):
        model.encode_image(torch.rand(1, 3, 230, 224))
    with pytest.raises(ValueError, match="78 tokens"):
        model.encode_text(torch.ones(1, 78, dtype=torch.int64))
