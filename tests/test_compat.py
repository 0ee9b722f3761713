"""The READMEs' own lines, word for word apart from the import and the path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import pocketclip
from pocketclip import checkpoint
from pocketclip.errors import ConfigError, PocketclipError, UnknownModelError
from pocketclip.nn.build import random_model
from pocketclip.nn.reparam import fuse

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "chelsea.jpg"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights in Apple's naming; not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    checkpoint.save(random_model("tiny", seed=0), path, naming="apple")
    return path


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
    narrow = {"image.width": 64, "image.heads": 2, "text.width": 64, "text.heads": 2}
    model = random_model("vit-b16", seed=0, **{"image.layers": 1, "text.layers": 1, **narrow})
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


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """A saved captioner and its model; neither is to be changed."""
    folder = tmp_path_factory.mktemp("captioner") / "coca"
    model = random_model("coca-tiny", seed=0)
    checkpoint.save(model, folder)
    return folder, model


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"image_mean": (0.5, 0.5, 0.5)},
        {"gradient_checkpointing": True},
        pytest.param({"text": {"drop_path": 0.1}}, marks=pytest.mark.slow),
        pytest.param(
            {"image": {"drop_path": 0.1}, "gradient_checkpointing": True}, marks=pytest.mark.slow
        ),
        pytest.param({"image_size": 96}, marks=pytest.mark.slow),
        {"image_size": 96, "text.drop_path": 0.1},
    ],
)
def test_a_captioner_stays_one(captioner, options):
    folder, saved = captioner
    model, _, preprocess = pocketclip.create_model_and_transforms(
        "coca-tiny", pretrained=folder, reparameterize=False, **options
    )
    assert type(model) is type(saved)
    recomputes = options.get("gradient_checkpointing", False)
    for part in (model.image, model.text, model.decoder):
        assert part.recompute is recomputes
    assert model.config.gradient_checkpointing is recomputes
    assert model.config.text.drop_path == (0.1 if "text" in str(options) else 0)
    pixels = preprocess(PHOTO).unsqueeze(0)
    assert pixels.shape[-1] == options.get("image_size", 64)
    if "image_size" not in options:
        with torch.inference_mode():
            torch.testing.assert_close(model.encode_image(pixels), saved.encode_image(pixels))
    ids = torch.tensor([[49406, 320, 1125, 49407, *[0] * 72]])
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(ids), saved.encode_text(ids))
    assert len(model.generate(pixels)) == 1
    # Training options are no other embedding space.
    same = not {"image_mean", "image_size"} & set(options)
    assert (model.space_id == saved.space_id) is same


def test_gradient_checkpointing_is_obeyed_and_can_be_switched(weights):
    model, _, preprocess = pocketclip.create_model_and_transforms(
        "tiny", pretrained=weights, reparameterize=False, gradient_checkpointing=True
    )
    assert model.image.recompute
    assert model.text.recompute
    plain, _, _ = pocketclip.create_model_and_transforms(
        "tiny", pretrained=weights, reparameterize=False
    )
    assert not plain.image.recompute
    assert model.space_id == plain.space_id
    pixels = torch.stack([preprocess(PHOTO), preprocess(PHOTO).flip(2)])
    for one in (model, plain):
        one.freeze_batch_norm_statistics()
        one.train().encode_image(pixels).square().sum().backward()
    torch.testing.assert_close(model.image.head.weight.grad, plain.image.head.weight.grad)
    model.set_grad_checkpointing(False)
    assert not model.image.recompute
    model.set_grad_checkpointing()
    assert model.text.recompute


def test_a_model_that_was_fused_here_says_how_to_get_one_to_train(weights, tmp_path):
    for reparameterize in (None, True):
        model, _, _ = pocketclip.create_model_and_transforms(
            "tiny", pretrained=weights, reparameterize=reparameterize
        )
        with pytest.raises(PocketclipError, match="pass reparameterize=False"):
            model.train()
        assert not model.eval().training
        assert not model.train(False).training
    checkpoint.save(model, tmp_path / "fused")  # it can be kept
    model, _, _ = pocketclip.create_model_and_transforms(
        "tiny", pretrained=weights, reparameterize=False
    )
    assert model.train().training


def test_options_in_the_names_of_open_clip(weights):
    model, _, preprocess = pocketclip.create_model_and_transforms(
        "tiny", pretrained=weights, image_mean=None, image_std=[0.5, 0.5, 0.5],
        image_interpolation="bicubic", force_image_size=96,
    )  # fmt: skip
    config = model.config.preprocess
    assert (config.size, config.interpolation) == (96, "bicubic")
    assert config.std == (0.5, 0.5, 0.5)
    assert preprocess(PHOTO).shape == (3, 96, 96)
    for name, value in (("image_std", (0, 1, 1)), ("image_mean", (float("nan"), 0, 0))):
        with pytest.raises(ConfigError, match=rf"preprocess\.{name[6:]} cannot be"):
            pocketclip.create_model_and_transforms("tiny", pretrained=weights, **{name: value})
