"""Loading and saving: every naming both ways, and what goes wrong said in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint import safe_load as weights
from pocketclip.checkpoint import stored
from pocketclip.checkpoint.folder import to_third_party
from pocketclip.errors import CheckpointError, ConfigError, HubError, UnknownModelError
from pocketclip.nn.build import build_empty, random_model
from pocketclip.nn.cpu_optimize import optimize_for_onednn
from pocketclip.nn.reparam import fuse
from tests.golden_weights import TAGS, golden, randomise

CUTS = {
    "mobileclip-s0": {"image.depths": (1, 1, 1, 1), "text.layers": 1, "text.vocab_size": 600},
    "mobileclip2-s0": {"image.depths": (1, 1, 1, 1), "text.layers": 1, "text.vocab_size": 600},
}


def _light(name="mobileclip2-s0"):
    model = random_model(name, seed=0, **CUTS[name])
    randomise(model)
    return model


def _same(one, other):
    size = one.config.image_size
    pixels, ids = torch.rand(2, 3, size, size), torch.tensor([[7, 8, 599, 0], [5, 599, 0, 0]])
    with torch.inference_mode():
        for a, b in (
            (one.encode_image(pixels), other.encode_image(pixels)),
            (one.encode_text(ids), other.encode_text(ids)),
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tag", TAGS)
def test_layout_is_the_golden_parameter_list(tag):
    config = zoo.entry(TAGS[tag]).config
    assert naming.entry_shapes(config, tag.partition(".")[0]) == golden(tag).shapes


@pytest.mark.parametrize("form", ["unfused", "fused"])
def test_our_folder_round_trip(tmp_path, form):
    model = _light()
    saved = fuse(model) if form == "fused" else model
    checkpoint.save(saved, tmp_path / "run" / "model")
    loaded = checkpoint.load(tmp_path / "run" / "model")
    assert loaded.is_fused == (form == "fused")
    assert not loaded.training
    assert loaded.config == model.config
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert loaded.space_id == model.space_id
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["model"]


def test_half_precision_is_loaded_as_float32(tmp_path):
    model = _light().half()
    checkpoint.save(model, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "convention", "suffix"),
    [("tiny", "apple", ".pt"), ("tiny", "openclip", ".pt"), ("tiny", "openclip", ".safetensors"),
     ("tiny", "openclip", ".bin")],
)  # fmt: skip
def test_foreign_round_trip(tmp_path, name, convention, suffix):
    model = random_model(name, seed=0)
    randomise(model)
    if convention == "apple":
        torch.nn.init.zeros_(model.image.head.bias)
    path = tmp_path / f"weights{suffix}"
    checkpoint.save(model, path, naming=convention)
    loaded = checkpoint.load(path, model=name)
    ids = torch.tensor([[49406, 320, 1125, 49407, 0]])
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.encode_image(pixels), model.encode_image(pixels))
        torch.testing.assert_close(loaded.encode_text(ids), model.encode_text(ids))


def test_a_zero_bias_is_added_for_open_clip_and_dropped_for_apple(tmp_path):
    model = random_model(
        "mobileclip-s1", seed=0, **{"image.depths": (1, 1, 1, 1), "text.layers": 1}
    )
    state = to_third_party(model, "openclip")
    assert not state["visual.trunk.head.fc.bias"].any()
    assert "image_encoder.model.head.proj" in to_third_party(model, "apple")
    checkpoint.save(model, tmp_path / "x.safetensors", naming="openclip")
    again = checkpoint.load(tmp_path / "x.safetensors")  # our safetensors say which model
    assert again.config.image.head_bias
    # A bias of zeros is no other embedding space.
    assert again.space_id == model.space_id
    checkpoint.save(again, tmp_path / "x.pt", naming="apple")


def test_what_a_naming_cannot_express_is_refused(tmp_path):
    sparse = build_empty(zoo.sparse_config(zoo.entry("mobileclip-b").config))
    cases = [
        (_light("mobileclip-s0"), "openclip", "MCt"),
        (_light("mobileclip2-s0"), "apple", "bias"),
        (fuse(_light("mobileclip-s0")), "apple", "fused"),
        (fuse(_light("mobileclip2-s0")), "openclip", "fused"),
        (build_empty(zoo.entry("mobileclip-s3").config), "apple", "five-stage"),
        (
            build_empty(zoo.entry("vit-b16").config),
            "apple",
            "plain vision transformer",
        ),
        (sparse, "openclip", "mixtures of experts"),
        (sparse, "apple", "mixtures of experts"),
    ]
    for model, convention, reason in cases:
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.save(model, tmp_path / "x.pt", naming=convention)
    assert not list(tmp_path.iterdir())


def test_b_in_open_clip_naming_is_computed_as_open_clip_does(tmp_path):
    cut = {"image.layers": 1, "text.layers": 1}
    padded = random_model("mobileclip-b", seed=0, **cut)
    state = to_third_party(padded, "openclip")
    config = naming.adapt_config(padded.config, state.keys(), "openclip")
    assert (config.image.stem_padding, config.image.eps) == (0, 1e-6)
    # Apple's own file, and our safetensors, keep Apple's padding.
    checkpoint.save(padded, tmp_path / "x.safetensors", naming="openclip")
    assert checkpoint.load(tmp_path / "x.safetensors").config.image.stem_padding == 1
    state = to_third_party(padded, "apple")
    assert naming.adapt_config(padded.config, state.keys(), "apple").image.stem_padding == 1


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.", "model."]
)
def test_training_wrappers_are_taken_off(tmp_path, prefix):
    model = random_model("tiny", seed=0)
    state = to_third_party(model, "openclip")
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, tmp_path / "epoch_3.pt")
    loaded = checkpoint.load(tmp_path / "epoch_3.pt", model="tiny")
    assert torch.equal(loaded.image.stem[0].conv.conv.weight, model.image.stem[0].conv.conv.weight)


@pytest.mark.parametrize("names", [["model.a", "b"], ["model.a", "module.b"], ["my_model.a"]])
def test_a_prefix_of_some_names_only_stays(tmp_path, names):
    state = {f"module.{name}": torch.zeros(1) for name in names}
    torch.save(state, tmp_path / "x.pt")
    assert list(weights.read_tensors(tmp_path / "x.pt")[0]) == names


def test_plain_clip_with_and_without_the_text_prefix():
    config = zoo.override(zoo.entry("vit-b16").config, **{"image.layers": 1})
    names = dict(naming.entry_shapes(config, "openclip"))
    assert "token_embedding.weight" in names
    prefixed = {
        n if n.startswith("visual") or n == "logit_scale" else f"text.{n}": s
        for n, s in names.items()
    }
    prefixed["text.attn_mask"] = (77, 77)
    assert naming.normalize_text_prefix(prefixed, config) == names


@pytest.mark.parametrize("stem", ["mobileclip2_s0", "anything"])
def test_the_model_is_found_out_where_only_one_fits(tmp_path, stem, monkeypatch):
    # With a zoo of small models, so that the test is quick.
    small = {n: zoo.ZOO[n] for n in ("tiny", "small")}
    light = zoo.Entry(
        config=zoo.override(zoo.ZOO["mobileclip2-s0"].config, **CUTS["mobileclip2-s0"])
    )
    monkeypatch.setattr(zoo, "ZOO", {"mobileclip2-s0": light, **small})
    model = _light()
    checkpoint.save(model, tmp_path / f"{stem}.pt", naming="openclip")
    loaded = checkpoint.load(tmp_path / f"{stem}.pt")
    assert loaded.config.name == "mobileclip2-s0"
    _same(loaded, model)


def test_activations_do_not_show_in_a_file_so_clip_must_be_named(tmp_path):
    shapes = naming.entry_shapes(zoo.entry("vit-b16").config, "openclip")
    state = {name: torch.zeros(()).expand(size) for name, size in shapes.items()}
    with pytest.raises(CheckpointError, match=r"it fits vit-b16\); pass model=NAME"):
        stored._config_of(tmp_path / "x.pt", None, state, {}, "openclip")


def test_a_wrong_model_names_the_differences_and_what_would_fit(tmp_path):
    model = random_model("tiny", seed=0)
    path = tmp_path / "x.pt"
    checkpoint.save(model, path, naming="openclip")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, model="small")
    message = str(caught.value)
    assert "visual.trunk.stages.0.blocks.1" in message
    assert "is missing" in message
    assert message.endswith("It fits tiny")
    assert "\n" not in message
    # and with the right names but another shape
    state = torch.load(path, weights_only=True)
    state["logit_scale"] = torch.zeros(3)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"logit_scale has shape \(3,\), not \(\)"):
        checkpoint.load(path, model="tiny")


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb-went-off",))


def test_a_pickle_with_code_is_refused_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = to_third_party(random_model("tiny", seed=0), "openclip")
    torch.save({**state, "x": _Bomb()}, "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps({"x": _Bomb()}, protocol=2))
    (tmp_path / "z.bin").write_bytes(pickle.dumps({"x": _Bomb()}))
    for name, reason in (("x.pt", "mkdir"), ("y.pt", "mkdir"), ("z.bin", "more than tensors")):
        with pytest.raises(CheckpointError, match=rf"refused: its pickle .*{reason}.*none of it"):
            checkpoint.load(name, model="tiny")
    assert not (tmp_path / "bomb-went-off").exists()


def _bad_files(folder):
    state = to_third_party(random_model("tiny", seed=0), "openclip")
    torch.save(state, folder / "whole.pt")
    save_file(state, folder / "whole.safetensors")
    for name in ("whole.pt", "whole.safetensors"):
        data = (folder / name).read_bytes()
        for share in (0.001, 0.3, 0.9, 0.9999):
            cut = folder / f"cut-{share}-{name}"
            cut.write_bytes(data[: int(len(data) * share)])
            yield cut, "truncated or damaged|empty|refused"
    (folder / "empty.pt").touch()
    yield folder / "empty.pt", "is empty"
    (folder / "noise.pt").write_bytes(bytes(range(256)) * 40)
    yield folder / "noise.pt", "not a torch file"
    (folder / "zeros.pt").write_bytes(bytes(1000))
    yield folder / "zeros.pt", "not a torch file"
    (folder / "text.safetensors").write_text("hello " * 100)
    yield folder / "text.safetensors", "truncated or damaged"
    shutil.copy(folder / "whole.pt", folder / "photo.jpg")
    yield folder / "photo.jpg", r"\.jpg is not a weight file's suffix"
    shutil.copy(folder / "whole.pt", folder / "renamed.safetensors")
    yield folder / "renamed.safetensors", r"wrong suffix; rename it to \.pt"
    shutil.copy(folder / "whole.safetensors", folder / "renamed.pt")
    yield folder / "renamed.pt", r"wrong suffix; rename it to \.safetensors"
    (folder / "folder").mkdir()
    yield folder / "folder", "folder without config.json"
    (folder / "folder.pt").mkdir()
    yield folder / "folder.pt", "folder without config.json"
    yield folder / "missing.pt", "no such file"
    torch.save([torch.zeros(2)], folder / "list.pt")
    yield folder / "list.pt", "not named tensors"
    torch.save({"a": 1}, folder / "numbers.pt")
    yield folder / "numbers.pt", "no tensors"
    torch.save({"bert.embeddings": torch.zeros(2)}, folder / "bert.pt")
    yield folder / "bert.pt", "unknown parameter names"


def test_bad_files_each_get_one_clear_line(tmp_path):
    count = 0
    for path, message in _bad_files(tmp_path):
        count += 1
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.load(path, model="tiny")
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert count == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "not written by pocketclip"),
        (lambda c: c.update(version=99), "update pocketclip"),
        (
            lambda c: (c.pop("sha256"), c.pop("fused")),
            'config.json is damaged: "fused" is missing; copy',
        ),
        (lambda c: c.update(version="1"), 'damaged: it: "version" should be a whole number'),
        (lambda c: c["model"].update(surprise=1), "damaged.*surprise"),
        (lambda c: c["model"]["text"].pop("width"), "damaged.*width"),
        (lambda c: c["model"]["text"].update(layers="2"), "text.layers cannot be '2'"),
        (lambda c: c["model"]["text"].update(layers=3), "changed after it was saved"),
        (
            lambda c: (c.pop("sha256"), c["model"]["text"].update(layers=3)),
            "text.blocks.2.* is missing",
        ),
    ],
)
def test_damaged_folders(tmp_path, change, message):
    folder = tmp_path / "model"
    checkpoint.save(random_model("tiny", seed=0), folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"its text is not JSON: .*; copy") as caught:
        checkpoint.load(folder)
    assert str(caught.value).count("config.json") == 1


def test_weights_that_are_not_those_that_were_saved(tmp_path):
    folder = tmp_path / "model"
    saved = random_model("tiny", seed=0)
    checkpoint.save(saved, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-2] ^= 1  # of a float
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not hold the weights that"):
        checkpoint.load(folder)
    checkpoint.save(random_model("tiny", seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match="digest differs"):
        checkpoint.load(folder)
    for model in (saved.half(), fuse(random_model("tiny", seed=2)), saved.double()):
        checkpoint.save(model, folder)
        assert checkpoint.load(folder).space_id == model.space_id


def test_a_configuration_that_is_not_the_one_that_was_saved(tmp_path, caplog):
    folder = tmp_path / "model"
    checkpoint.save(random_model("tiny", seed=0), folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["preprocess"]["mean"] = [0.5, 0.5, 0.5]  # other embeddings, the same weights
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json was changed after it was saved"):
        checkpoint.load(folder)
    del config["sha256"]  # as earlier versions wrote it
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.load(folder).config.preprocess.mean == (0.5, 0.5, 0.5)
    assert not caplog.messages
    (folder / "config.json").write_text(json.dumps({**config, "weights_digest": "0"}))
    checkpoint.load(folder)
    assert "their digest differs" in caplog.text


def test_a_folder_without_its_weights(tmp_path):
    checkpoint.save(random_model("tiny", seed=0), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "model")


def test_a_folder_says_itself_what_it_holds(tmp_path):
    checkpoint.save(random_model("tiny", seed=0), tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds tiny, not small"):
        checkpoint.load(tmp_path / "model", model="small")


def test_saving_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    checkpoint.save(random_model("tiny", seed=0), folder)
    before = load_file(folder / "model.safetensors")

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(random_model("tiny", seed=1), folder)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    checkpoint.save(random_model("tiny", seed=1), folder)
    now = load_file(folder / "model.safetensors")
    assert not torch.equal(now["image.head.weight"], before["image.head.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_compiled_and_wrapped_models_are_saved_as_the_model_inside(tmp_path):
    model = random_model("tiny", seed=0)
    expected = model.state_dict()
    checkpoint.save(torch.compile(model, backend="eager"), tmp_path / "whole")
    space_id = model.space_id
    model.image = torch.compile(model.image, backend="eager")
    model.text = torch.compile(model.text, backend="eager")
    checkpoint.save(model, tmp_path / "towers")
    checkpoint.save(model, tmp_path / "towers.pt", naming="openclip")
    assert model.space_id == space_id
    for path in ("whole", "towers"):
        loaded = checkpoint.load(tmp_path / path)
        assert loaded.space_id == space_id
        assert all(torch.equal(loaded.state_dict()[n], v) for n, v in expected.items())
    assert checkpoint.load(tmp_path / "towers.pt", "tiny").config.name == "tiny"
    for other in (optimize_for_onednn(fuse(random_model("tiny", seed=0))), torch.nn.Linear(2, 2)):
        with pytest.raises(CheckpointError, match=r"inference only|a Linear cannot be saved"):
            checkpoint.save(other, tmp_path / "other")


def test_clips_own_towers_are_not_taken_for_each_other(tmp_path):
    # A quick and a plain GELU, causal or not, do not show in a file; its names do.
    for inside, asked in (("vit-l14-quickgelu", "mobileclip2-l14"),
                          ("mobileclip2-l14", "vit-l14-quickgelu")):  # fmt: skip
        shapes = naming.entry_shapes(zoo.entry(inside).config, "openclip")
        state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
        config = stored._config_of(tmp_path / "x.pt", asked, state, {}, "openclip")
        with pytest.raises(CheckpointError, match="does not fit"):
            stored._fitting_entries(
                naming.normalize_text_prefix(state, config), config, "openclip", tmp_path / "x.pt"
            )


def test_saving_refuses_paths_that_would_lose_something(tmp_path):
    model = random_model("tiny", seed=0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "file").touch()
    for path, convention, message in (
        ("photos", "pocketclip", "holds other files"),
        ("file", "pocketclip", "is a file"),
        ("x.safetensors", "pocketclip", "leave out the suffix"),
        ("x.jpg", "openclip", "the file ends in"),
        ("x.safetensors", "apple", "the file ends in"),
        ("x.pt", "mine", "unknown naming"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.save(model, tmp_path / path, naming=convention)
    assert (tmp_path / "photos" / "a.jpg").exists()


@pytest.mark.parametrize("other", ["trainer.pt", "thesis.txt", "notes/a.txt", "config.json"])
def test_saving_replaces_nothing_but_our_own_checkpoint(tmp_path, other):
    model, target = random_model("tiny", seed=0), tmp_path / "m"
    if other == "config.json":  # of another library
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"theirs")
        (target / other).write_text('{"model_type": "clip"}')
    else:
        checkpoint.save(model, target)
        (target / other).parent.mkdir(exist_ok=True)
        (target / other).write_text("mine")
    before = {p: p.read_bytes() for p in target.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"holds other files.*would be lost"):
        checkpoint.save(model, target)
    assert {p: p.read_bytes() for p in target.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saving_twice_replaces_the_first(tmp_path):
    for seed in (0, 1):
        checkpoint.save(random_model("tiny", seed=seed), tmp_path / "m")
    assert checkpoint.load(tmp_path / "m").space_id == random_model("tiny", seed=1).space_id
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_that_a_killed_process_moved_aside_is_read(tmp_path, caplog):
    model = random_model("tiny", seed=0)
    for folder_path in (tmp_path / "m", tmp_path / "run" / "model"):
        checkpoint.save(model, folder_path)
        folder_path.rename(folder_path.with_name(f".{folder_path.name}.123.abcd.old"))
    for path in ("m", "run"):
        assert checkpoint.load(tmp_path / path).space_id == model.space_id
    assert caplog.text.count("was restored") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "run"]


def test_the_space_follows_weights_preprocessing_and_architecture():
    model = random_model("tiny", seed=0)
    assert model.space_id == random_model("tiny", seed=0, drop_path=0.1).space_id
    others = [
        random_model("tiny", seed=1),
        random_model("tiny", seed=0, **{"preprocess.interpolation": "bicubic"}),
        random_model("tiny", seed=0, **{"text.causal": True}),
    ]
    assert len({m.space_id for m in [model, *others]}) == 4
    fused = fuse(model)
    assert fused.space_id == model.space_id
    with torch.no_grad():
        fused.image.head.weight.add_(1)  # trained on: no longer the same space
    assert fused.space_id != model.space_id


def test_names_come_from_the_hub(hub, tmp_path, monkeypatch):
    model = random_model("tiny", seed=0)
    light = zoo.Entry(config=model.config, hub=("apple/Tiny", "timm/Tiny-OpenCLIP"))
    monkeypatch.setitem(zoo.ZOO, "tiny", light)
    path = tmp_path / "open_clip_model.safetensors"
    save_file(to_third_party(model, "openclip"), path)
    hub.repos["timm/Tiny-OpenCLIP"] = {"open_clip_model.safetensors": path.read_bytes()}
    with pytest.raises(HubError, match="offline"):
        checkpoint.load("tiny", offline=True)
    for name in ("tiny", "Tiny", "timm/Tiny-OpenCLIP"):
        loaded = checkpoint.load(name, fuse=True)
        assert loaded.is_fused
        assert loaded.config.name == "tiny"
    seen = len(hub.requests)
    assert seen > 0
    checkpoint.load("tiny", offline=True)
    checkpoint.load("timm/Tiny-OpenCLIP")
    assert len(hub.requests) == seen  # a cached file never touches the network


def test_a_folder_from_the_hub_is_read_from_the_disk(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = random_model("tiny", seed=0)
    light = zoo.Entry(config=model.config, hub=("apple/Tiny",))
    monkeypatch.setattr(zoo, "ZOO", {"tiny": light})  # so that what fits is soon found
    (tmp_path / "Tiny").mkdir()
    torch.save(to_third_party(model, "openclip"), "Tiny/tiny.pt")
    (tmp_path / "Tiny" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    models = [checkpoint.load(text) for text in ("Tiny", "./Tiny/", "Tiny/")]
    # transformers' file beside it, as in many repositories
    save_file({"text_model.embeddings": torch.zeros(2)}, "Tiny/model.safetensors")
    models.append(checkpoint.load("Tiny"))
    (tmp_path / "Tiny" / "tiny.pt").rename("Tiny/open_clip_pytorch_model.bin")
    models.append(checkpoint.load("Tiny"))
    for loaded in models:
        assert torch.equal(loaded.image.head.weight, model.image.head.weight)
    assert not hub.requests
    (tmp_path / "Tiny" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"not written by pocketclip, and .* unknown parameter names"
    ):
        checkpoint.load("Tiny")
    with pytest.raises(HubError, match="apple/Tiny was not found"):
        checkpoint.load("hf-hub:apple/Tiny")
    with pytest.raises(HubError, match="there is no file or folder some/where here; "):
        checkpoint.load("some/where")


def test_a_revision_is_asked_of_the_hub(hub, tmp_path):
    model = random_model("tiny", seed=0)
    path = tmp_path / "open_clip_model.safetensors"
    save_file(to_third_party(model, "openclip"), path)
    hub.repos["me/tiny"] = {"open_clip_model.safetensors": path.read_bytes()}
    commit = hub.commit("me/tiny")
    for text, revision in ((f"me/tiny@{commit}", None), ("me/tiny", commit)):
        loaded = checkpoint.load(text, "tiny", revision=revision)
        assert torch.equal(loaded.image.head.weight, model.image.head.weight)
    for text, revision in (("me/tiny@v9", None), ("me/tiny", "v9"), ("hf-hub:me/tiny@v9", None)):
        with pytest.raises(HubError, match="no revision 'v9'"):
            checkpoint.load(text, "tiny", revision=revision)


def test_the_repositorys_name_says_what_shapes_do_not(tmp_path, monkeypatch):
    cut = {"image.layers": 1, "text.layers": 1, "text.vocab_size": 600}
    names = ("vit-l14", "vit-l14-quickgelu")
    light = {
        name: zoo.Entry(config=zoo.override(zoo.ZOO[name].config, **cut), hub=zoo.ZOO[name].hub)
        for name in names
    }
    monkeypatch.setattr(zoo, "ZOO", light)
    model = random_model("vit-l14-quickgelu", seed=0)
    folder = tmp_path / "DFN2B-CLIP-ViT-L-14"
    for path in (folder, tmp_path / "mine"):
        path.mkdir()
        save_file(to_third_party(model, "openclip"), path / "open_clip_model.safetensors")
    assert checkpoint.load(folder).config.name == "vit-l14-quickgelu"
    with pytest.raises(CheckpointError, match=r"pass model=NAME, or write NAME=FILE"):
        checkpoint.load(tmp_path / "mine")
    named = checkpoint.load(f"vit-l14={tmp_path}/mine")
    assert named.config.name == "vit-l14"


def test_unknown_names_and_models_without_weights():
    with pytest.raises(UnknownModelError, match="did you mean mobileclip2-s0"):
        checkpoint.load("mobileclip2-s00")
    with pytest.raises(CheckpointError, match="random:tiny to try things out"):
        checkpoint.load("tiny")
    loaded, expected = checkpoint.load("random:tiny:3"), random_model("tiny", seed=3)
    assert loaded.space_id == expected.space_id != checkpoint.load("random:tiny").space_id
    with pytest.raises(CheckpointError, match="random:tiny is tiny, not small"):
        checkpoint.load("random:tiny", "small")
    with pytest.raises(ConfigError, match="names another model than small"):
        checkpoint.load("tiny=timm/MobileCLIP2-S0-OpenCLIP", "small")
    for text in ("transformers:google/siglip", "open_clip:ViT-B-32/openai"):
        with pytest.raises(ConfigError, match="teachers and captioners"):
            checkpoint.load(text)
