"""Against open_clip itself, where it can be imported: files both ways, embeddings, transforms.

pip install --no-deps torchvision open_clip_torch timm && pytest tests/checkpoint/test_open_clip.py
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from peers import import_open_clip
from pocketclip import checkpoint, zoo
from pocketclip.checkpoint import names as naming
from pocketclip.nn.build import random_model
from pocketclip.preprocess import Preprocess
from pocketclip.publish import open_clip_form
from pocketclip.tokenizer import Tokenizer
from tests.golden_weights import fill, relative_error

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.jpg"
# open_clip's name -> ours; one of each kind of tower that open_clip knows
MODELS = {
    "MobileCLIP-S1": "mobileclip-s1",
    "MobileCLIP-B": "mobileclip-b",
    "MobileCLIP2-S2": "mobileclip2-s2",
    "MobileCLIP2-S3": "mobileclip2-s3",
    "ViT-B-16": "vit-b16",
}


@pytest.fixture(scope="module")
def open_clip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield import_open_clip()


def _embeddings(model, size):
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ids = torch.from_numpy(Tokenizer()(["a photo of a dog", "naïve café — 日本語 😀"]))
    with torch.inference_mode():
        return model.encode_image(pixels), model.encode_text(ids)


def _agree(one, other, size):
    for out, ref in zip(_embeddings(one, size), _embeddings(other, size), strict=True):
        assert relative_error(out, ref.numpy()) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_we_read_what_open_clip_writes(open_clip, name, tmp_path):
    theirs = open_clip.create_model(name).eval()
    # The golden rules, but with small layer scales: with those of the rules, activations grow
    # through the deepest towers until attention magnifies the last bit a thousandfold.
    state = {
        key: torch.from_numpy(fill(key, tuple(value.shape))) * (0.1 if "gamma" in key else 1)
        for key, value in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    size = zoo.entry(MODELS[name]).config.image_size
    for fused in (False, True):
        ours = checkpoint.load(tmp_path / "weights.pt", MODELS[name], fuse=fused)
        _agree(ours, theirs, size)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_open_clip_reads_what_we_write(open_clip, name, suffix, tmp_path):
    # Files of B in open_clip's naming are computed as open_clip computes them.
    config = zoo.entry(MODELS[name]).config
    overrides = {"image.stem_padding": 0, "image.eps": 1e-6} if name == "MobileCLIP-B" else {}
    ours = random_model(config.name, seed=0, **overrides)
    path = tmp_path / f"weights{suffix}"
    checkpoint.save(ours, path, naming="openclip")
    theirs = open_clip.create_model(name, pretrained=str(path)).eval()
    _agree(theirs, ours, config.image_size)


@pytest.mark.parametrize("name", ["mobileclip2-s0", "mobileclip2-b", "vit-b16"])
def test_open_clip_reads_the_form_that_is_pushed(open_clip, name, tmp_path):
    """Weights, sizes and transform, by the folder alone; see `pocketclip push`."""
    ours = random_model(name, seed=0)
    assert open_clip_form.reason_against(ours.config, fused=False) is None
    checkpoint.save(ours, tmp_path / open_clip_form.WEIGHTS, naming="openclip")
    config = open_clip_form.open_clip_config(ours.config)
    (tmp_path / open_clip_form.CONFIG).write_text(json.dumps(config), "utf-8")
    theirs, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    _agree(theirs.eval(), ours, ours.config.image_size)
    with Image.open(PHOTO) as image:
        expected = transform(image)
    assert torch.equal(torch.from_numpy(Preprocess(ours.config.preprocess)(PHOTO)), expected)


def test_the_transform_and_the_tokenizer_are_open_clips(open_clip):
    _, _, transform = open_clip.create_model_and_transforms(
        "MobileCLIP2-S0", image_mean=(0, 0, 0), image_std=(1, 1, 1), image_interpolation="bilinear"
    )
    with Image.open(PHOTO) as image:
        expected = transform(image)
    actual = Preprocess(zoo.entry("mobileclip2-s0").config.preprocess)(PHOTO)
    assert torch.equal(torch.from_numpy(actual), expected)
    texts = ["a photo of a dog", "naïve café — 日本語 😀", "50% &amp; more"]
    theirs = open_clip.get_tokenizer("MobileCLIP2-S0")(texts)
    assert torch.equal(torch.from_numpy(Tokenizer()(texts)), theirs)


def test_every_open_clip_mobileclip_has_our_layout(open_clip):
    for name in open_clip.list_models():
        entry = zoo.find(name)
        if entry is None or name == "mobileclip-b":
            continue
        theirs = open_clip.create_model(name, device="meta")
        config = naming.adapt_config(entry.config, set(theirs.state_dict()), "openclip")
        assert naming.entry_shapes(config, "openclip") == {
            key: tuple(value.shape) for key, value in theirs.state_dict().items()
        }, name
