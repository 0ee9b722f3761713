"""The READMEs' own lines, word for word apart from the import and the path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import pocketclip
from pocketclip import checkpoint
from pocketclip.errors import PocketclipError, UnknownModelError
from pocketclip.nn.clip import random_model
from pocketclip.nn.reparam import fuse

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "chelsea.jpg"


@pytest.fixture
def weights(tmp_path):
    model = random_model("tiny", seed=0)
    checkpoint.save(model, tmp_path / "tiny.pt", naming="apple")
    return tmp_path / "tiny.pt"


def test_the_first_readme(weights):
    model, _, preprocess = pocketclip.create_model_and_transforms("tiny", pretrained=str(weights))
    tokenizer = pocketclip.get_tokenizer("tiny")
    image = preprocess(Image.open(PHOTO).convert("RGB")).unsqueeze(0)
    text = tokenizer(["a diagram", "a dog", "a cat"])
    with torch.no_grad(), torch.amp.autocast("cpu"):
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        text_probs = (100.0 * image_features @ text_features.T).softmax(dim=-1)
    assert model.is_fused
    assert text.dtype == torch.int64
    assert text_probs.shape == (1, 3)
    assert text_probs.sum().item() == pytest.approx(1, abs=0.02)


def test_the_second_readme(weights):
    model_kwargs = {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    model, _, preprocess = pocketclip.create_model_and_transforms(
        "TINY", pretrained=str(weights), reparameterize=False, **model_kwargs
    )
    model.eval()
    fused = pocketclip.reparameterize_model(model)
    assert not model.is_fused
    pixels = preprocess(Image.open(PHOTO)).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(fused.encode_image(pixels), model.encode_image(pixels),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


def test_another_mean_is_another_space(weights):
    plain, _, _ = pocketclip.create_model_and_transforms("tiny", pretrained=weights)
    other, _, preprocess = pocketclip.create_model_and_transforms(
        "tiny", pretrained=weights, image_mean=(0.5, 0.5, 0.5)
    )
    assert preprocess(PHOTO).min() < 0
    assert plain.space_id != other.space_id


def test_random_weights_stay_unfused():
    model, _, _ = pocketclip.create_model_and_transforms("tiny")
    assert not model.is_fused
    model, _, _ = pocketclip.create_model_and_transforms("tiny", reparameterize=True)
    assert model.is_fused


def test_another_image_size_moves_the_position_embedding_along(tmp_path):
    model = random_model("vit-b16", seed=0, **{"image.layers": 1, "text.layers": 1})
    checkpoint.save(model, tmp_path / "vit")
    larger, _, preprocess = pocketclip.create_model_and_transforms(
        "vit-b16", pretrained=tmp_path / "vit", image_size=256
    )
    pixels = preprocess(PHOTO).unsqueeze(0)
    assert pixels.shape == (1, 3, 256, 256)
    with torch.inference_mode():
        torch.testing.assert_close(larger.encode_image(pixels), model.encode_image(pixels))
    checkpoint.save(larger, tmp_path / "larger")
    assert checkpoint.load(tmp_path / "larger").image.grid == 16


def test_a_fused_folder_can_be_used(tmp_path):
    checkpoint.save(fuse(random_model("tiny", seed=0)), tmp_path / "model")
    model, _, _ = pocketclip.create_model_and_transforms(
        "tiny", pretrained=tmp_path / "model", image_std=(1, 1, 1)
    )
    assert model.is_fused


def test_wrong_names_and_tags(weights):
    with pytest.raises(UnknownModelError):
        pocketclip.create_model_and_transforms("mobileclip_s9")
    with pytest.raises(UnknownModelError):
        pocketclip.get_tokenizer("mobileclip_s9")
    with pytest.raises(PocketclipError, match="one of the tags datacompdr"):
        pocketclip.create_model_and_transforms("ViT-B-16", pretrained="openai")
    with pytest.raises(PocketclipError, match="called 'dfndr2b'"):
        pocketclip.create_model_and_transforms("mobileclip_s0", pretrained="dfndr2b")
    with pytest.raises(PocketclipError, match="do not fit"):
        pocketclip.create_model_and_transforms("tiny", pretrained=weights, **{"text.layers": 3})
