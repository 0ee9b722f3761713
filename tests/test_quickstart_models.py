from __future__ import annotations

import json
from importlib import resources

import pytest
import torch

from pocketclip import checkpoint, zoo
from pocketclip.nn.build import create_model
from quickstart_models import make
from quickstart_models.captioner import NarrowHead
from quickstart_models.dataset import crop, draw_dataset
from quickstart_models.make import PLANS, Plan, Round, save_half_precision

SHIPPED = resources.files("pocketclip") / "data" / "quickstart"


@pytest.fixture(scope="module")
def dataset():
    return draw_dataset(12)


def _captioner():
    torch.manual_seed(0)
    plan = PLANS["captioner"]
    return create_model(plan.base, **plan.overrides).eval()


@torch.no_grad()
def test_the_wide_layer_gives_the_logits_of_the_narrow_one(dataset):
    model = _captioner()
    narrow = NarrowHead(model, dataset.ids)
    pixels, ids = crop(dataset.images, torch.Generator().manual_seed(0)), dataset.ids[:, 0, :12]
    before = model(pixels, ids).logits  # (B, T, U + 1)
    narrow.widen()
    after = model(pixels, ids).logits  # (B, T, V)
    assert len(narrow.used) > 30
    torch.testing.assert_close(after[..., narrow.used], before[..., 1:], atol=1e-5, rtol=1e-5)
    unused = torch.ones(after.shape[-1], dtype=torch.bool)
    unused[narrow.used] = False
    assert torch.equal(after[..., unused].unique(), torch.tensor([-30.0]))
    assert torch.equal(narrow.used[narrow.labels(ids)[ids != 0] - 1], ids[ids != 0])


def test_crops_keep_the_middle():
    images = torch.zeros(8, 3, 80, 80, dtype=torch.uint8)
    images[:, :, 30:50, 30:50] = 255
    cut = crop(images, torch.Generator().manual_seed(1))
    assert cut.shape == (8, 3, 64, 64)
    covered = cut.mean(dim=(1, 2, 3))
    assert (covered > 0.99 * (20 / 80) ** 2).all()  # 65 to 100 % of the area
    assert (covered < 1.01 * (20 / 80) ** 2 / 0.6).all()
    assert covered.unique().numel() == 8


def test_a_trained_model_loads_with_its_space_id(dataset, tmp_path, monkeypatch):
    plan = PLANS["captioner"]
    small = Plan(
        base=plan.base,
        overrides=plan.overrides,
        rounds=(Round(steps=1, captioning=2.0), Round(steps=1, scenes=8, captioning=5.0)),
        lr=1e-3,
        batch=6,
        decoder_rounds=(Round(steps=1), Round(steps=1)),
    )
    monkeypatch.setitem(PLANS, "captioner", small)
    monkeypatch.setattr(make, "evaluate", lambda _model: {})
    model, _ = make.train_model("captioner", dataset)
    save_half_precision(model, tmp_path / "captioner")
    loaded = checkpoint.load(tmp_path / "captioner")
    facts = json.loads((tmp_path / "captioner" / "config.json").read_text())
    loaded.space_identity = None  # computed anew from the weights
    assert loaded.space_id == facts["space_id"]
    weights = (tmp_path / "captioner" / "model.safetensors").stat().st_size
    assert weights < 2.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PLANS)
def test_shipped_configs_match_the_plans(name):
    facts = json.loads((SHIPPED / name / "config.json").read_text("utf-8"))
    plan = PLANS[name]
    described = zoo.override(zoo.entry(plan.base).config, **plan.overrides)
    assert zoo.from_dict(facts["model"]) == described


def test_shipped_models_are_small():
    sizes = [file.stat().st_size for name in PLANS for file in (SHIPPED / name).iterdir()]
    assert sum(sizes) < 8_000_000
