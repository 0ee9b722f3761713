"""The teachers and captioners compute what open_clip's models of that configuration do.

The stored outputs are open_clip's, with weights filled by name (`tests.golden_values`). A tag that
ends in `.cut` is the same configuration with one layer of each kind and a vocabulary of 1,000; the
captioners are also narrower. They are cheap, and the tests of the whole models are slow.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint.folder import to_third_party
from pocketclip.errors import ConfigError
from pocketclip.nn.build import build_empty
from pocketclip.nn.reparam import fuse
from pocketclip.reinforce.captioners import load_captioner
from tests.golden_values import FOLDER
from tests.golden_weights import fill, relative_error

TEACHERS = {
    "openclip.ViT-B-32": "vit-b32",
    "openclip.ViT-L-14": "vit-l14-39b",
    "openclip.ViT-H-14-quickgelu": "vit-h14-quickgelu",
    "openclip.ViT-H-14-378-quickgelu": "vit-h14-378-quickgelu",
}
CUT = {"image.layers": 1, "text.layers": 1, "text.vocab_size": 1000}
NARROW = {
    **CUT, "image.width": 256, "image.heads": 4, "text.width": 192, "text.heads": 3,
    "decoder.layers": 1, "decoder.heads": 3, "embed_dim": 192,
}  # fmt: skip


def _shapes(tag):
    facts = json.loads((FOLDER / f"{tag}.json").read_text())
    return {name: tuple(shape) for name, shape, _ in facts["parameters"]}


def _model(config):
    model = build_empty(config)
    state = {
        ours: torch.from_numpy(np.array(entry.to_own(fill(entry.name, entry.shape))))
        for ours, entry in naming.map_entries(config, "openclip").items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


def _pixels(config):
    shape = (2, 3, config.image_size, config.image_size)
    return torch.from_numpy(np.random.RandomState(1234).random_sample(shape).astype(np.float32))


def _agrees(model, tag):
    stored = np.load(FOLDER / f"{tag}.npz")
    pixels, ids = _pixels(model.config), torch.from_numpy(stored["tokens"]).long()
    with torch.inference_mode():
        errors = [
            relative_error(model.encode_image(pixels), stored["image"]),
            relative_error(model.encode_text(ids), stored["text"]),
        ]
    assert max(errors) < 1e-4, errors


@pytest.mark.parametrize(("tag", "name"), TEACHERS.items())
def test_names_and_shapes_of_the_whole_teacher(tag, name):
    config = zoo.entry(name).config
    assert naming.entry_shapes(config, "openclip") == _shapes(tag)


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("openclip.ViT-B-32", "vit-b32"),
        pytest.param("openclip.ViT-L-14-quickgelu", "vit-l14-quickgelu", marks=pytest.mark.slow),
        pytest.param("openclip.ViT-L-14", "vit-l14-39b-quickgelu", marks=pytest.mark.slow),
        ("openclip.ViT-H-14-quickgelu", "vit-h14-quickgelu"),
        pytest.param(
            "openclip.ViT-H-14-378-quickgelu", "vit-h14-378-quickgelu", marks=pytest.mark.slow
        ),
    ],
)
def test_a_teacher_of_one_layer(tag, name):
    config = zoo.override(zoo.entry(name).config, **CUT)
    assert naming.entry_shapes(config, "openclip") == _shapes(f"{tag}.cut")
    model = _model(config)
    _agrees(model, f"{tag}.cut")
    _agrees(fuse(model), f"{tag}.cut")


@pytest.mark.slow
@pytest.mark.parametrize(("tag", "name"), TEACHERS.items())
def test_the_whole_teacher(tag, name):
    model = _model(zoo.entry(name).config)
    _agrees(model, tag)
    model = fuse(model)  # the unfused one, of up to 4 GB, is let go
    _agrees(model, tag)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        pytest.param("coca-dfn2b-mscoco38k-context77", 77, marks=pytest.mark.slow),
        pytest.param("coca-dfn2b-docci-context128", 128, marks=pytest.mark.slow),
        ("coca-dfn2b-gbc10m-long-context256", 256),
    ],
)
def test_a_captioner_of_one_layer(name, context):
    tag = f"openclip.coca_ViT-L-14-context{context}.cut"
    config = zoo.override(zoo.entry(name).config, **NARROW)
    assert naming.entry_shapes(config, "openclip") == _shapes(tag)
    stored = np.load(FOLDER / f"{tag}.npz")
    ids = torch.from_numpy(stored["tokens"]).long()
    assert ids.shape == (2, context - 1)
    model = _model(config)
    for variant in (model, fuse(model)):
        with torch.inference_mode():
            out = variant(_pixels(config), ids)
        assert relative_error(out.image, stored["image"]) < 1e-4
        assert relative_error(out.text, stored["text"]) < 1e-4
        # open_clip gives the last token no logits.
        assert relative_error(out.logits[:, :-1, :64], stored["logits"]) < 1e-4


@pytest.mark.parametrize("file", ["mobileclip2_coca.pt", "open_clip_model.safetensors"])
def test_a_captioner_by_its_short_name_from_the_hub(hub, file, tmp_path, monkeypatch):
    # Repositories with a long context have open_clip's configuration beside the weights.
    name, cut = "coca-dfn2b-docci-context128", {**NARROW, "image_size": 28, "image.pool_queries": 3}
    entry = zoo.entry(name)
    small = zoo.override(entry.config, **cut)
    model = _model(small)
    state = to_third_party(model, "openclip")
    path = tmp_path / file
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    config = b'{"embed_dim": 768, "multimodal_cfg": {"context_length": 127}}'
    hub.repos[entry.hub[0]] = {"config.json": config, file: path.read_bytes()}
    # The entry says 76: the file decides.
    short = zoo.override(small, **{"text.context_length": 76})
    monkeypatch.setitem(zoo.CAPTIONERS, name, dataclasses.replace(entry, config=short))
    loaded = checkpoint.load(name)
    assert loaded.config == small
    assert loaded.license.name == zoo.APPLE_AMLR
    captioner = load_captioner(name, device="cpu", precision="float32")
    assert captioner.key == f"syn_text_{name}"
    assert captioner.identity["space_id"] == model.space_id
    labelled = f"dfn_docci={name}"
    assert load_captioner(labelled, device="cpu", sampling={"max_length": 128}).key == (
        "syn_text_dfn_docci"
    )
    with pytest.raises(ConfigError, match="max_length is at most 128"):
        load_captioner(labelled, device="cpu", sampling={"max_length": 129})
