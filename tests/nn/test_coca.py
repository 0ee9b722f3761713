"""The captioner computes what open_clip's does, is loaded and saved like the others, and learns."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from peers import import_open_clip
from pocketclip import checkpoint, zoo
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint.folder import to_third_party
from pocketclip.embedding_space import embedding_fields
from pocketclip.errors import CheckpointError, ConfigError
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.build import build_empty, create_model, random_model
from pocketclip.nn.coca import CoCa
from pocketclip.nn.reparam import fuse
from pocketclip.tokenizer import Tokenizer
from tests.golden_features import check_maps
from tests.golden_weights import FOLDER, fill, golden, randomise, relative_error

TAG = "openclip.coca_ViT-B-32"
# A captioner with open_clip's parts, small in every way.
CUT = {
    "image.layers": 1, "image.width": 64, "image.heads": 4, "image.pool_queries": 5,
    "image_size": 64, "text.layers": 2, "text.width": 64, "text.vocab_size": 600, "embed_dim": 64,
    "decoder.layers": 2,
}  # fmt: skip


def _light(name="coca-vit-b32", **overrides):
    model = random_model(name, seed=0, **{**CUT, **overrides})
    randomise(model)
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("coca") / "weights.pt"
    torch.save(golden(TAG).state(), path)
    return checkpoint.load(path)


def test_golden_captioner(published):
    case = golden(TAG)
    logits = np.load(FOLDER / f"{TAG}.npz")["logits"]
    assert isinstance(published, CoCa)
    assert published.config == zoo.entry("coca-vit-b32").config
    assert naming.entry_shapes(published.config, "openclip") == case.shapes
    with torch.inference_mode():
        out = published(case.pixels, case.ids)
        assert relative_error(out.image, case.image) < 1e-5
        assert relative_error(out.text, case.text) < 1e-5
        assert relative_error(out.logits[:, :8, :256], logits) < 1e-5
        assert out.logits.shape == (2, 76, 49408)
        assert out.logit_scale.item() == pytest.approx(np.exp(2.6592))
        # The towers alone take shorter ways to the same.
        assert (
            relative_error(published.encode_image(case.pixels, normalize=True), case.image) < 1e-5
        )
        assert relative_error(published.encode_text(case.ids, normalize=True), case.text) < 1e-5
        check_maps(TAG, published.image)


def test_the_decoder_looks_at_the_image_and_not_ahead():
    model = _light()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[598, 7, 8, 9, 599, 0], [598, 7, 8, 10, 599, 0]])
    with torch.inference_mode():
        logits = model(pixels[:1].expand(2, -1, -1, -1), ids).logits
        other = model(pixels[1:].expand(2, -1, -1, -1), ids).logits
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert (logits[0, 3] - logits[1, 3]).abs().max() > 0.01
    assert (logits - other).abs().amax(-1).min() > 0.01


@pytest.mark.parametrize("context", [76, 255])
def test_texts_of_one_id_too_many_are_cut_as_the_tokenizer_cuts(context):
    model = _light(**{"text.context_length": context, "text.vocab_size": 49408})
    texts = ["a photo of a dog", " ".join(["a dog"] * (context // 2)), "dog " * 300]
    tokenizer = Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitting, long = (tokenizer(texts, context + extra) for extra in (0, 1))
    assert torch.equal(model.text.fit(torch.from_numpy(long)), torch.from_numpy(fitting))
    with torch.inference_mode():
        assert torch.equal(model.encode_text(long), model.encode_text(fitting))
        assert model(torch.rand(3, 3, 64, 64), torch.from_numpy(long)).logits.shape[1] == context
    message = f"{context + 2} tokens; this tower takes at most {context}"
    with pytest.raises(ValueError, match=message):
        model.encode_text(torch.ones(1, context + 2, dtype=torch.int64))


def test_each_tower_runs_alone():
    model = _light()
    pixels, ids = torch.rand(1, 3, 64, 64), torch.tensor([[598, 7, 599]])
    out = model(pixels=pixels)
    assert out.text is None
    assert out.logits is None
    assert out.image.norm().item() == pytest.approx(1, abs=1e-5)
    out = model(ids=ids)
    assert out.image is None
    assert out.text.shape == (1, 64)
    with pytest.raises(ValueError, match="pool_queries"):
        random_model("vit-b16", seed=0, **{"image.layers": 1}).image.with_tokens(pixels)


def test_it_learns_captions():
    # Two images, two captions: after some steps each image is given its own.
    model = create_model("coca-tiny", **{"text.vocab_size": 40, "text.embedding_buckets": None})
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 64, 64)
    ids = torch.tensor([[38, 5, 6, 7, 39, 0, 0], [38, 9, 9, 4, 3, 39, 0]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(40):
        model.set_gradient_checkpointing(step % 2 == 0)
        out = model(pixels, ids)
        loss = F.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0
        )
        loss = loss + F.cross_entropy(out.logit_scale * out.image @ out.text.T, torch.arange(2))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    for method in ("greedy", "beam"):
        assert model.generate(pixels, method=method, min_length=1) == [[5, 6, 7], [9, 9, 4, 3]]
    assert model.training


def test_recomputing_changes_no_gradient():
    model = _light()
    pixels, ids = torch.rand(2, 3, 64, 64), torch.tensor([[598, 7, 8, 599], [598, 9, 599, 0]])
    grads = []
    for on in (False, True):
        model.set_gradient_checkpointing(on)
        assert model.decoder.recompute == on
        model.zero_grad()
        model(pixels, ids).logits.logsumexp(-1).sum().backward()
        grads.append([p.grad.clone() for p in model.decoder.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("context", "suffix"), [(77, ".bin"), (128, ".safetensors"), (256, ".pt")])
def test_the_context_length_comes_from_the_file(tmp_path, context, suffix):
    model = _light(**{"text.context_length": context - 1})
    state = to_third_party(model, "openclip")
    assert state["text.positional_embedding"].shape[0] == context
    for buffer in ("text.attn_mask", "text_decoder.attn_mask"):  # as older files have them
        state[buffer] = torch.zeros(2, 2)
    path = tmp_path / f"captioner{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    entry = zoo.Entry(config=_light().config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.ZOO, "coca-vit-b32", entry)
        loaded = checkpoint.load(path, "coca-vit-b32")
        patch.setattr(zoo, "ZOO", {"coca-vit-b32": entry, "tiny": zoo.ZOO["tiny"]})
        assert checkpoint.load(path).config == loaded.config  # no other model fits
    assert loaded.config.text.context_length == context - 1
    ids = torch.randint(1, 598, (2, context - 1))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        for one, other in zip(loaded(pixels, ids), model(pixels, ids), strict=True):
            assert torch.equal(one, other)


def test_our_folder_and_open_clips_names(tmp_path):
    model = random_model("coca-tiny", seed=0)
    randomise(model)
    pixels, ids = torch.rand(2, 3, 64, 64), torch.tensor([[49406, 320, 1125, 49407, 0]] * 2)
    checkpoint.save(model, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model", fuse=True)
    assert loaded.config == model.config
    assert loaded.space_id == model.space_id
    assert loaded.generate(pixels, max_length=9) == model.generate(pixels, max_length=9)
    # The composed embedding becomes the plain table that it stands for.
    for suffix in (".pt", ".safetensors"):
        checkpoint.save(model, tmp_path / f"x{suffix}", naming="openclip")
        loaded = checkpoint.load(tmp_path / f"x{suffix}", "coca-tiny")
        with torch.inference_mode():
            for one, other in zip(loaded(pixels, ids), model(pixels, ids), strict=True):
                torch.testing.assert_close(one, other)
    with pytest.raises(CheckpointError, match="naming='openclip'"):
        checkpoint.save(model, tmp_path / "y.pt", naming="apple")


def test_what_does_not_fit_is_reported(tmp_path):
    state = to_third_party(_light(), "openclip")
    del state["text_decoder.cross_attn.1.ln_1_kv.bias"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.ZOO, "coca-vit-b32", zoo.Entry(config=_light().config))
        with pytest.raises(CheckpointError, match=r"cross_attn\.1\.ln_1_kv\.bias is missing"):
            checkpoint.load(tmp_path / "x.pt", "coca-vit-b32")
    with pytest.raises(CheckpointError, match="no published weights"):
        checkpoint.load("coca-tiny")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("coca-tiny", {"text.class_token": False}, "needs text.class_token"),
        ("coca-tiny", {"text.causal": False}, "needs text.causal"),
        ("coca-tiny", {"image.pool_queries": 1}, "pool_queries of 2 or more"),
        ("coca-tiny", {"image.pool_queries": None}, "pool_queries of 2 or more"),
        ("coca-tiny", {"embed_dim": 64}, r"embed_dim \(64\) must be text.width \(128\)"),
        ("coca-tiny", {"decoder.heads": 3}, "decoder: a width of 128"),
        ("coca-tiny", {"image.pool_heads": 5}, "image: a width of 128"),
        ("coca-tiny", {"decoder.layers": 0}, "decoder.layers cannot be 0"),
        ("coca-tiny", {"decoder.depth": 2}, "unknown field 'decoder.depth'"),
        ("vit-b16", {"image.pool_queries": 0}, "pool_queries cannot be 0"),
        ("tiny", {"decoder.layers": 2}, "has no fields"),
    ],
)
def test_configurations_that_make_no_captioner(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        create_model(name, **overrides)


def test_older_spaces_keep_their_ids():
    # What captioners added to the configurations is no part of other models' identity.
    digests = {"tiny": "ed13ff38b8c9bdf0", "vit-b16": "3ce72e155c71a489",
               "mobileclip-s0": "90c9942322fe90c4", "mobileclip-b": "1f4d669b5335c3de"}  # fmt: skip
    for name, digest in digests.items():
        text = json.dumps(embedding_fields(zoo.entry(name).config), sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    old = zoo.to_dict(zoo.entry("vit-b16").config)
    del old["decoder"], old["text"]["class_token"]
    del old["image"]["pool_queries"], old["image"]["pool_heads"]
    assert zoo.from_dict(old) == zoo.entry("vit-b16").config


def test_it_is_an_encoder_like_the_others():
    encoder = Encoder(random_model("coca-tiny", seed=0))
    text = encoder.encode_text(["a dog", "a cat"])
    image = encoder.encode_image(np.zeros((2, 70, 80, 3), np.uint8))
    assert text.shape == image.shape == (2, 128)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-5)


def test_sizes_of_the_small_one():
    model = build_empty(zoo.entry("coca-tiny").config)
    vocabulary = {id(p) for part in (model.text.embedding, model.decoder.head)
                  for p in part.parameters()}  # fmt: skip
    others = sum(p.numel() for p in model.parameters() if id(p) not in vocabulary)
    assert 1e6 < others < 2.2e6


@pytest.mark.parametrize("which", ["image", "text"])
def test_towers_export_and_fuse(which):
    model = fuse(_light())
    tower = model.image if which == "image" else model.text
    example = torch.rand(2, 3, 64, 64) if which == "image" else torch.randint(1, 599, (2, 76))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},)).module()
    more = torch.cat([example, example.flip(0)[:1]])
    with torch.inference_mode():
        torch.testing.assert_close(program(more), tower(more), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("coca_ViT-B-32", "coca-vit-b32"), ("coca_ViT-L-14", "coca-vit-l14")],
)
@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="needs open_clip")
def test_against_open_clip_itself(theirs, ours, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = import_open_clip().create_model(theirs).eval()
    state = {n: torch.from_numpy(fill(n, tuple(v.shape))) for n, v in peer.state_dict().items()}
    peer.load_state_dict(state)
    torch.save(state, tmp_path / "weights.pt")
    model = checkpoint.load(tmp_path / "weights.pt", ours)
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(1, 49406, (4, 76), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[1, 30], ids[2:, 9] = 49406, 49407, 49407
    ids[1, 31:], ids[2:, 10:], ids[3, 4] = 0, 0, 0  # padding; an id in a text can be 0, too
    for place in (0, 2):
        rows = ids[place : place + 2]
        with torch.inference_mode():
            wanted, out = peer(pixels, rows, output_labels=False), model(pixels, rows)
        assert relative_error(out.image, wanted["image_features"].numpy()) < 1e-5
        assert relative_error(out.text, wanted["text_features"].numpy()) < 1e-5
        assert relative_error(out.logits, wanted["logits"].numpy()) < 1e-5
    assert model.generate(pixels, method="greedy", max_length=9) == _peer_greedy(peer, pixels, 9)


def _peer_greedy(peer, pixels, max_length):
    ids = torch.full((len(pixels), 1), 49406)
    while ids.shape[1] < max_length - 1:
        with torch.inference_mode():
            logits = peer(pixels, ids, output_labels=False)["logits"][:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert (ids != 49407).all()  # with these weights, no text ends so early
    return ids[:, 1:].tolist()
