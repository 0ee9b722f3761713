from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pocketclip
from pocketclip import checkpoint, devices, zoo
from pocketclip.errors import (
    CheckpointError,
    ConfigError,
    EmbeddingError,
    HubError,
    MissingDependencyError,
    UnknownModelError,
)
from pocketclip.nn.build import random_model
from pocketclip.nn.reparam import fuse
from pocketclip.preprocess import Preprocess
from pocketclip.reinforce import specs, teacher_preprocess
from pocketclip.reinforce.protocols import Pixels
from pocketclip.reinforce.teacher_preprocess import SquareTransform
from pocketclip.reinforce.teachers import Teacher, load_teacher
from pocketclip.reinforce.zoo_towers import ZooTowers
from pocketclip.train.live_teachers import TensorEncoder
from pocketclip.types import Encoder
from tests.golden_weights import randomise

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
TEXTS = ["a cat", "", "a photo of the red cup on the table and some more", "dog " * 90]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_model("tiny", seed=0)
    randomise(model)
    path = tmp_path_factory.mktemp("models") / "mine-0.5"
    checkpoint.save(model, path)
    return path


@pytest.fixture(scope="module")
def teacher(folder):
    return load_teacher(str(folder), device="cpu", precision="float32")


def _views(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


# --- zoo models


def test_it_is_the_encoder_of_that_checkpoint(teacher, folder):
    encoder = pocketclip.load(folder)
    assert isinstance(teacher, Encoder)
    assert teacher.name == "mine-0.5"
    assert teacher.dtype == "float32"
    assert (teacher.embed_dim, teacher.logit_bias) == (64, 0.0)
    assert teacher.logit_scale == pytest.approx(encoder.logit_scale)
    # fused to run, and of the space that it was fused from
    assert teacher.space_id == checkpoint.load(folder).space_id
    assert teacher.towers.model.is_fused
    ours = teacher.encode_image(PHOTOS)
    np.testing.assert_allclose(ours, encoder.encode_image(PHOTOS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        teacher.encode_text(TEXTS[:3]), encoder.encode_text(TEXTS[:3]), atol=1e-6
    )
    assert teacher.encode_image([]).shape == teacher.encode_text([]).shape == (0, 64)


@pytest.mark.parametrize("name", ["tiny", "vit-b16"])
def test_squares_embed_as_the_images_they_are(name, teacher, request):
    # mean and bicubic, in micro-batches; the model is as good as any
    if name != "tiny":
        config = zoo.entry(name).config
        model = random_model(
            name, seed=0, image={"layers": 1, "width": 64, "heads": 2},
            text={"layers": 1, "width": 64, "heads": 2},
        )  # fmt: skip
        path = request.getfixturevalue("tmp_path") / "vit"
        checkpoint.save(model, path)
        teacher = load_teacher(str(path), device="cpu", precision="float32")
        assert teacher.scaling.mean == config.preprocess.mean
    views = _views(teacher.transform.size, 9)
    encoder = pocketclip.Encoder(teacher.towers.model)
    np.testing.assert_allclose(
        teacher.encode_squares(views), encoder.encode_image(views), atol=1e-6
    )
    wide = _views(300, 1)[0, :200]
    np.testing.assert_array_equal(teacher.transform.square(wide), encoder.preprocess.to_uint8(wide))


@pytest.mark.parametrize("name", ["tiny", "vit-b16"])
def test_pixels_on_the_device_are_the_preprocessing_to_the_bit(name):
    config = zoo.entry(name).config.preprocess
    views = _views(config.size)
    scaling = teacher_preprocess.Scaling(mean=config.mean, std=config.std)
    views.flags.writeable = False  # as from another process; torch would warn
    ours = Pixels(scaling, torch.device("cpu"), torch.float32)(views)
    np.testing.assert_array_equal(ours.numpy(), Preprocess(config).batch(views))


def test_a_square_is_left_as_it_is():
    transform = SquareTransform.of(zoo.entry("vit-b16").config.preprocess)
    view = _views(224, 1)[0]
    assert transform.square(view) is view
    np.testing.assert_array_equal(transform.square(Image.fromarray(view)), view)
    back = pickle.loads(pickle.dumps(transform))
    assert back == transform
    assert back.key == transform.key
    assert hash(back.key) == hash(transform.key)
    other = SquareTransform.of(zoo.entry("mobileclip-b").config.preprocess)
    assert other.key != transform.key  # bilinear


@pytest.mark.parametrize("size", [64, 48])
def test_tensors_embed_as_arrays_to_the_bit(teacher, size, monkeypatch):
    assert isinstance(teacher, TensorEncoder)
    views = _views(size, 5)
    expected = torch.from_numpy(teacher.encode_image(list(views)))
    texts = torch.from_numpy(teacher.encode_text(TEXTS))
    images = torch.from_numpy(views).permute(0, 3, 1, 2)
    if size == teacher.transform.size:  # nothing to resize: they stay on the device

        def refuse(*_):
            raise AssertionError("the host waits for this")

        for method in ("cpu", "numpy", "tolist", "item"):
            monkeypatch.setattr(torch.Tensor, method, refuse)
    assert torch.equal(teacher.encode_image_tensors(images), expected)
    assert torch.equal(teacher.encode_text_tensors(TEXTS), texts)


def test_wrong_squares_are_refused(teacher):
    with pytest.raises(ValueError, match=r"takes uint8 \(B, 64, 64, 3\)"):
        teacher.encode_squares(_views(32))
    with pytest.raises(ValueError, match="float32"):
        teacher.encode_squares(_views(64).astype(np.float32))


def test_causal_texts_are_cut_to_their_length_and_stay_what_they_are(monkeypatch):
    model = random_model("vit-b16", seed=0, image={"layers": 1}, text={"layers": 2})
    seen = []
    towers = ZooTowers(model, torch.device("cpu"), torch.float32)
    assert towers.trims
    real = towers.model.encode_text
    monkeypatch.setattr(
        towers.model, "encode_text", lambda ids: seen.append(tuple(ids.shape)) or real(ids)
    )
    transform = SquareTransform.of(model.config.preprocess)
    teacher = Teacher(
        towers, name="x", transform=transform, scaling=teacher_preprocess.Scaling(),
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    teacher.text_batch = 2
    ours = teacher.encode_text(TEXTS)
    assert seen == [(2, 4), (2, 77)]  # the short ones together
    encoder = pocketclip.Encoder(fuse(model))
    with pytest.warns(UserWarning, match="truncated"):
        np.testing.assert_allclose(ours, encoder.encode_text(TEXTS), atol=1e-6)


def test_long_captions_are_counted_without_a_warning(teacher):
    assert teacher.encode_text(TEXTS).shape == (4, 64)
    assert teacher.over_length(TEXTS) == [False, False, False, True]
    # 75 words of one token each just fit
    assert teacher.over_length(["dog " * 75, "dog " * 76]) == [False, True]


def test_half_precision(folder, teacher):
    half = load_teacher(str(folder), device="cpu", precision="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.space_id == teacher.space_id
    assert half.logit_scale == teacher.logit_scale
    out = half.encode_squares(_views(64))
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    assert (out * teacher.encode_squares(_views(64))).sum(1).min() > 0.99
    assert (half.encode_text(TEXTS) * teacher.encode_text(TEXTS)).sum(1).min() > 0.99


def test_precision_and_device_by_themselves(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: True)
    assert devices.resolve_dtype("auto", cpu) is torch.bfloat16
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: False)
    assert devices.resolve_dtype("auto", cpu) is torch.float32
    assert devices.resolve_dtype("float16", cpu) is torch.float16
    with pytest.raises(ConfigError, match="float32, bfloat16 or float16, not 'double'"):
        devices.resolve_dtype("double", cpu)
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        devices.resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.resolve_device("auto") == cpu


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 amx_tile amx_bf16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("flags\t\t: fpu avx512_bf16x", False),
        ("model name\t: bf16", False),
    ],
)
def test_bfloat16_in_the_description_of_a_processor(line, native):
    assert devices.has_bfloat16_flag(f"processor\t: 0\n{line}\nbugs\t: none\n") is native


@pytest.mark.slow  # test_job compares what they say in two processes
def test_random_teachers_are_the_same_everywhere():
    one = load_teacher("random:tiny:3", device="cpu", precision="float32")
    assert one.name == "random-tiny-3"
    code = (
        "from pocketclip.reinforce.teachers import load_teacher as f\n"
        "print(f('random:tiny:3').space_id, f('random:tiny').space_id)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    same, other = run.stdout.split()
    assert one.space_id == same != other


def test_workers_and_recipes_need_no_torch():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import pocketclip.reinforce.prepare, pocketclip.reinforce.recipe\n"
        "del sys.modules['torch']\n"
        "import pocketclip.reinforce.teachers, pocketclip.reinforce.captioners\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- specs


@pytest.mark.parametrize(
    ("text", "kind", "target", "model", "label"),
    [
        ("vit-b16", "hub", "vit-b16", "vit-b16", "vit-b16"),
        ("timm/MobileCLIP2-S0-OpenCLIP", "hub", "timm/MobileCLIP2-S0-OpenCLIP", "mobileclip2-s0",
         "timm/MobileCLIP2-S0-OpenCLIP"),
        ("ViT_L14-QuickGELU=w/openai.pt", "file", "w/openai.pt", "vit-l14-quickgelu",
         "vit-l14-quickgelu=openai"),
        ("openai=vit-l14-quickgelu=w/openai.pt", "file", "w/openai.pt", "vit-l14-quickgelu",
         "openai"),
        ("random:tiny", "random", "tiny", "tiny", "random-tiny-0"),
        ("mine=random:tiny:7", "random", "tiny:7", "tiny", "mine"),
        ("small=random:tiny:7", "random", "tiny:7", "tiny", "small"),
        ("transformers:google/siglip-base", "transformers", "google/siglip-base", None,
         "google/siglip-base"),
        ("open_clip:ViT-L-14/openai", "open_clip", "ViT-L-14/openai", None, "ViT-L-14/openai"),
        ("w/a.b.safetensors", "file", "w/a.b.safetensors", None, "a.b"),
    ],
)  # fmt: skip
def test_specs(text, kind, target, model, label, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    for name in ("openai.pt", "a.b.safetensors"):
        (tmp_path / "w" / name).touch()
    source = specs.parse(text)
    assert (source.kind, source.target, source.model, source.label) == (kind, target, model, label)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", UnknownModelError, "no model given"),
        ("transformers:", ConfigError, "transformers:ID"),
        ("random:tiny:x", ConfigError, "random:MODEL:SEED"),
        ("random:tyni", UnknownModelError, "did you mean tiny"),
        ("a/b=c", ConfigError, "or NAME=FILE"),
        ("vit-b16=", ConfigError, "the form is NAME=FILE"),
        ("mine=", ConfigError, "LABEL=MODEL"),
    ],
)
def test_specs_that_make_no_sense(text, error, message):
    with pytest.raises(error, match=message):
        specs.parse(text)


def test_a_path_with_an_equals_sign(folder, tmp_path):
    (tmp_path / "lr=0.1").symlink_to(folder)
    assert specs.parse(str(tmp_path / "lr=0.1")).target == str(tmp_path / "lr=0.1")


def test_models_that_cannot_be_had(tmp_path):
    with pytest.raises(CheckpointError, match="random:tiny to try things out"):
        load_teacher("tiny")
    with pytest.raises(CheckpointError, match="no such file"):
        load_teacher(f"vit-l14-quickgelu={tmp_path}/openai.pt")
    with pytest.raises(UnknownModelError, match="did you mean vit-b16"):
        load_teacher("vit-b17")


def test_a_bare_file_with_its_model(tmp_path):
    model = random_model("vit-l14-quickgelu", seed=0, image={"layers": 1}, text={"layers": 1})
    checkpoint.save(model, tmp_path / "weights.safetensors", naming="openclip")
    for spec in ("", "openai=vit-l14-quickgelu="):
        teacher = load_teacher(f"{spec}{tmp_path}/weights.safetensors", precision="float32")
        assert teacher.space_id == model.space_id
    assert teacher.name == "openai"
    with pytest.raises(CheckpointError, match="does not fit vit-b16"):
        load_teacher(f"vit-b16={tmp_path}/weights.safetensors")


# --- processors of transformers


PROCESSORS = {
    "CLIP": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "CLIP cropped": {"size": {"shortest_edge": 37}, "crop_size": 32, "resample": 2},
    "CLIP plain": {"do_normalize": False, "size": {"height": 40, "width": 40}, "crop_size": 32},
    "CLIP all by default": {},
    "Siglip": {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3]},
    "Siglip all by default": {},
    "ViT": {"size": {"height": 32, "width": 32}},
    "ViT all by default": {},
    "Blip": {"size": {"height": 33, "width": 33}, "resample": 1, "rescale_factor": 1 / 127.5},
    "DeiT": {"size": {"height": 40, "width": 40}, "crop_size": {"height": 35, "width": 35}},
    "DeiT all by default": {},
    "Bit": {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 32}},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(50, 71), (71, 50), (32, 32), (33, 64), (20, 20)])
def test_a_processor_file_is_followed_to_the_bit(name, shape):
    transformers = pytest.importorskip("transformers")
    kind = f"{name.split()[0]}ImageProcessor"
    facts = PROCESSORS[name]
    # The one on Pillow, by its newer or its older name.
    theirs = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    expected = theirs(**facts)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    transform, scaling = teacher_preprocess.from_processor(
        {"image_processor_type": kind, **facts}, "x"
    )
    square = transform.square(image)
    assert square.shape == (transform.size, transform.size, 3)
    ours = Pixels(scaling, torch.device("cpu"), torch.float32)(square[None])
    # Scaled by way of float64 there: the last bit may differ, and no level of 256 does.
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def test_saved_processors_are_read_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    theirs(size={"shortest_edge": 48}, crop_size=40).save_pretrained(tmp_path)
    from pocketclip.reinforce.hf import processor_of

    transform, _ = teacher_preprocess.from_processor(*processor_of(tmp_path))
    assert (transform.edge, transform.size, transform.resize) == (48, 40, "shortest")
    nested = {"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": 56}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    transform, _ = teacher_preprocess.from_processor(*processor_of(tmp_path))
    assert (transform.size, transform.resize) == (56, "exact")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"image_processor_type": "ConvNextImageProcessor"},
            "a ConvNext image processor, which is not supported",
        ),
        ({"size": {"height": 32, "width": 48}}, "is not square"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "is not square"),
        ({"size": {"shortest_edge": 32}, "crop_size": 48}, "crops 48 pixels from 32"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "keeps the aspect ratio"),
        ({"do_resize": False}, "does not resize"),
        ({"do_pad": True}, "it pads"),
        ({"image_mean": [0.5, 0.5]}, "is not supported"),
        ({"rescale_factor": 0}, "is not supported"),
        ({"size": {"short": 3}}, "is not square"),
        ({"size": None, "resample": "best"}, "is not supported"),
    ],
)
def test_processors_that_cannot_be_followed(facts, message):
    with pytest.raises(ConfigError, match=message):
        teacher_preprocess.from_processor(
            {"image_processor_type": "CLIPImageProcessor"} | facts, "the file"
        )


def test_an_endless_strip_stays_small():
    transform, _ = teacher_preprocess.from_processor(
        {"image_processor_type": "CLIPImageProcessor"}, "x"
    )
    strip = np.zeros((2, 60_000, 3), np.uint8)
    strip[:, 29_000:31_000] = 200
    assert (transform.square(strip) == 200).all()
    assert (transform.square(strip.transpose(1, 0, 2)) == 200).all()


# --- models of transformers


@pytest.fixture(scope="module")
def hf_models():
    pytest.importorskip("transformers", reason="the extra `teachers` is not installed")
    return importlib.import_module("tests.reinforce.hf_models")


def _theirs(model, tokenizer, processor, texts, **tokens):
    """The embeddings of the library's own calls, unit length."""
    inputs = tokenizer(texts, truncation=True, return_tensors="pt", **tokens)
    inputs.pop("token_type_ids", None)
    with Image.open(PHOTOS[0]) as one, Image.open(PHOTOS[1]) as other:
        pixels = processor([one.convert("RGB"), other.convert("RGB")], return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs, **pixels)
    unit = torch.nn.functional.normalize
    return unit(out.image_embeds, dim=-1).numpy(), unit(out.text_embeds, dim=-1).numpy(), out


def test_clip_of_transformers(hf_models, tmp_path):
    transformers = hf_models.transformers
    hf_models.clip(tmp_path)
    teacher = load_teacher(f"transformers:{tmp_path}", device="cpu", precision="float32")
    assert isinstance(teacher, Encoder)
    assert (teacher.name, teacher.embed_dim, teacher.logit_bias) == (tmp_path.name, 24, 0.0)
    assert teacher.logit_scale == pytest.approx(np.exp(3.0), rel=1e-6)
    texts = ["a photo of the cat", "dog", "red cup on the table and the red cup on the table here"]
    images, words, _ = _theirs(
        transformers.CLIPModel.from_pretrained(tmp_path).eval(),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
            size={"shortest_edge": 32}, crop_size=32
        ),
        texts, padding="max_length", max_length=12,
    )  # fmt: skip
    np.testing.assert_allclose(teacher.encode_image(PHOTOS[:2]), images, atol=1e-6)
    np.testing.assert_allclose(teacher.encode_text(texts), words, atol=1e-6)
    assert np.abs(words[0] - words[1]).max() > 1e-2
    assert teacher.over_length(texts) == [False, False, True]
    # and each text alone, without any padding
    alone = np.concatenate([teacher.encode_text([text]) for text in texts])
    np.testing.assert_allclose(alone, words, atol=1e-6)


@pytest.mark.parametrize("kind", ["Siglip", "Siglip2"])
def test_siglip_of_transformers(hf_models, tmp_path, kind):
    transformers = hf_models.transformers
    if not hasattr(transformers, f"{kind}Model"):
        pytest.skip(f"this transformers has no {kind}Model")
    hf_models.siglip(tmp_path, kind)
    teacher = load_teacher(f"transformers:{tmp_path}", device="cpu", precision="float32")
    assert teacher.logit_scale == pytest.approx(np.exp(2.0), rel=1e-6)
    assert teacher.logit_bias == -5.0
    assert teacher.transform.size == 32
    name = f"{kind}ImageProcessor"
    theirs = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    facts = (
        {"size": {"height": 32, "width": 32}}
        if kind == "Siglip"
        else {"patch_size": 8, "max_num_patches": 16}
    )
    model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path).eval()
    texts = ["a photo of the cat", "dog", "red cup on the table and the red cup on the table here"]
    images, words, out = _theirs(
        model, transformers.AutoTokenizer.from_pretrained(tmp_path), theirs(**facts), texts,
        padding="max_length", max_length=9, return_attention_mask=False,
    )  # fmt: skip
    np.testing.assert_allclose(teacher.encode_text(texts), words, atol=1e-6)
    ours = teacher.encode_image(PHOTOS[:2])
    if kind == "Siglip2":
        # Squares, as views are: on a whole photograph that processor keeps the aspect ratio.
        view = _views(50, 1)
        with torch.inference_mode():
            seen = model.get_image_features(**theirs(**facts)(list(view), return_tensors="pt"))
        seen = getattr(seen, "pooler_output", seen)
        images = torch.nn.functional.normalize(seen, dim=-1).numpy()
        ours = teacher.encode_image(list(view))
    else:
        # The multiplier and what is added to it make the library's own logits.
        logits = teacher.logit_scale * teacher.encode_text(texts) @ ours.T + teacher.logit_bias
        np.testing.assert_allclose(logits, out.logits_per_text, atol=1e-4)
    np.testing.assert_allclose(ours, images, atol=1e-6)


def test_the_space_of_an_hf_model(hf_models, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        hf_models.clip(folder)
    space = load_teacher(f"transformers:{one}").space_id
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "_name_or_path": "elsewhere"}))
    assert load_teacher(f"transformers:{other}").space_id == space
    facts = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**facts, "resample": 2}))
    assert load_teacher(f"transformers:{other}").space_id != space


def test_a_missing_preprocessing_file(hf_models, tmp_path):
    hf_models.clip(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json .* copy that file"):
        load_teacher(f"transformers:{tmp_path}")


def test_preprocessing_of_another_model(hf_models, tmp_path):
    hf_models.clip(tmp_path)
    hf_models.processor(tmp_path, image_processor_type="CLIPImageProcessor")
    with pytest.raises(ConfigError, match="squares of 224 pixels, but the model takes 32"):
        load_teacher(f"transformers:{tmp_path}")


@pytest.mark.usefixtures("hf_models")
def test_folders_that_hold_no_teacher(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        load_teacher(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match="holds a vit model, which cannot serve as a teacher"):
        load_teacher(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(CheckpointError, match="it is a captioner"):
        load_teacher(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_teacher(f"transformers:{tmp_path}")
    with pytest.raises(HubError, match="neither a folder nor a hub id"):
        load_teacher(f"transformers:{tmp_path}/none/at/all")


@pytest.mark.usefixtures("hf_models")
def test_offline_nothing_is_fetched(hub):
    with pytest.raises(HubError, match=r"cannot fetch owner/model: .* the network is off"):
        load_teacher("transformers:owner/model", offline=True)
    assert not hub.requests


def test_incomplete_and_damaged_weights(hf_models, tmp_path):
    from safetensors.torch import load_file, save_file

    hf_models.clip(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    state = load_file(weights)
    del state["text_projection.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of CLIPModel: text_projection"):
        load_teacher(f"transformers:{tmp_path}")
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_teacher(f"transformers:{tmp_path}")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_runs(hf_models, tmp_path):
    from safetensors.torch import load_file

    hf_models.clip(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    space = load_teacher(f"transformers:{tmp_path}").space_id
    weights.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")  # tensors alone are fine
    assert load_teacher(f"transformers:{tmp_path}").space_id != space
    torch.save({**state, "bomb": _Bomb(tmp_path / "exploded")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_teacher(f"transformers:{tmp_path}")
    assert not (tmp_path / "exploded").exists()


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[teachers\]"):
        load_teacher(f"transformers:{tmp_path}")


# --- open_clip


def test_open_clip_where_it_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingDependencyError, match="need open_clip_torch"):
        load_teacher("open_clip:ViT-B-32/openai")


def test_open_clip(tmp_path):
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    from peers import import_open_clip

    if import_open_clip() is None:
        pytest.skip("open_clip cannot be imported")
    model = random_model("vit-b16", seed=0)
    checkpoint.save(model, tmp_path / "b16.safetensors", naming="openclip")
    teacher = load_teacher(f"open_clip:ViT-B-16/{tmp_path}/b16.safetensors", precision="float32")
    ours = load_teacher(f"vit-b16={tmp_path}/b16.safetensors", precision="float32")
    assert (teacher.embed_dim, teacher.transform.key) == (512, ours.transform.key)
    assert teacher.logit_scale == pytest.approx(ours.logit_scale)
    assert teacher.over_length(TEXTS) == ours.over_length(TEXTS)
    np.testing.assert_allclose(teacher.encode_text(TEXTS), ours.encode_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        teacher.encode_image(PHOTOS[:2]), ours.encode_image(PHOTOS[:2]), atol=1e-5
    )
    with pytest.raises(ConfigError, match="does not say which weights"):
        load_teacher("open_clip:ViT-B-16")
    with pytest.raises(ConfigError, match="is offline: give the path"):
        load_teacher("open_clip:ViT-B-16/openai", offline=True)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_teacher("open_clip:ViT-B-17/openai")


@pytest.mark.parametrize(
    ("facts", "resize"),
    [({"size": 64, "resize_mode": "squash"}, "exact"), ({"size": (64, 64)}, "shortest")],
)
def test_open_clips_description_of_preprocessing(facts, resize):
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"} | facts
    transform, scaling = teacher_preprocess.from_open_clip(config, "x")
    assert (transform.size, transform.resize) == (64, resize)
    assert scaling.std == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="is not supported"):
        teacher_preprocess.from_open_clip(config | {"resize_mode": "longest"}, "x")


def test_useless_embeddings_are_an_error_that_names_the_input(folder):
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.image.head.weight.fill_(float("nan"))
        model.text.head.weight.mul_(1e30)
    transform = SquareTransform.of(model.config.preprocess)
    teacher = Teacher(
        ZooTowers(model, torch.device("cpu"), torch.float16), name="mine", transform=transform,
        scaling=teacher_preprocess.Scaling(), device=torch.device("cpu"), dtype=torch.float16,
    )  # fmt: skip
    with pytest.raises(EmbeddingError, match=r"^image 0 .*not finite.*of mine.*float16"):
        teacher.encode_squares(_views(64))
    with pytest.raises(EmbeddingError, match=r"^a\.jpg: its embedding"):
        teacher.encode_squares(_views(64), lambda _row: "a.jpg")
    images = torch.from_numpy(_views(64)).permute(0, 3, 1, 2)
    assert teacher.encode_image_tensors(images).isnan().all()  # ends the run at its next record
    with pytest.raises(EmbeddingError, match=r"^text 'a dog': .*try precision float32"):
        teacher.encode_text(["a dog", "a cat"])
    with torch.no_grad():
        model.logit_scale.fill_(float("inf"))
    checkpoint.save(model, folder.parent / "damaged")
    with pytest.raises(EmbeddingError, match="logit scale: it is inf"):
        load_teacher(str(folder.parent / "damaged"), device="cpu", precision="float32")


def _served(hub, folder, repo="owner/model"):
    hub.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_teacher_of_the_hub_follows_its_rules(hf_models, hub, tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    hf_models.clip(tmp_path / "made")
    _served(hub, tmp_path / "made")
    hub.repos["owner/model"]["open_clip_model.safetensors"] = b"x" * 100
    hub.revisions.add("v1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))  # since it was imported
    spec = "transformers:owner/model@v1"
    with pytest.raises(HubError, match=r"cannot fetch owner/model at revision 'v1'.*is off"):
        load_teacher(spec, device="cpu", precision="float32", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="the network is off"):
        load_teacher(spec, device="cpu", precision="float32")
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    space = load_teacher(spec, device="cpu", precision="float32").space_id
    assert (tmp_path / "elsewhere" / "models--owner--model").is_dir()
    assert not any("open_clip" in request.path for request in hub.requests)
    hub.requests.clear()
    for offline in (True, False):
        teacher = load_teacher(spec, device="cpu", precision="float32", offline=offline)
        assert teacher.space_id == space
    assert hub.requests == []
    # What another library left in the same folder is not part of the model.
    (snapshot,) = (tmp_path / "elsewhere").glob("models--*/snapshots/*")
    (snapshot / "open_clip_model.safetensors").write_bytes(b"y")
    assert load_teacher(spec, device="cpu", precision="float32").space_id == space
    # A cache with the weights alone is completed.
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(HubError, match="the network is off"):
        load_teacher(spec, device="cpu", precision="float32", offline=True)
    assert load_teacher(spec, device="cpu", precision="float32").space_id == space


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_in_a_folder_is_named(hf_models, tmp_path, name):
    hf_models.clip(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a git-LFS pointer.*git lfs pull"):
        load_teacher(f"transformers:{tmp_path}", device="cpu", precision="float32")


class _OpenClip:
    """What is asked of open_clip."""

    def __init__(self, known):
        self.known = known

    def get_pretrained_cfg(self, name, tag):
        return self.known.get((name, tag))


def test_weights_of_open_clip_come_by_the_same_rules(hub, tmp_path, monkeypatch):
    from pocketclip.reinforce.open_clip_towers import _fetch

    described = {"mean": (0.5, 0.5, 0.5), "interpolation": "bicubic", "quick_gelu": True}
    library = _OpenClip(
        {
            ("ViT-B-32", "dfn"): {"hf_hub": "owner/b32/", "url": "", **described},
            ("ViT-B-32", "named"): {"hf_hub": "owner/named/best.pt", "url": ""},
            ("RN50", "openai"): {"url": "https://example.invalid/RN50.pt", "hf_hub": ""},
        }
    )
    hub.repos["owner/b32"] = {
        "open_clip_model.safetensors": b"a" * 50, "model.safetensors": b"b" * 50,
        "open_clip_config.json": b"{}", "vocab.txt": b"a",
    }  # fmt: skip
    hub.repos["owner/named"] = {"best.pt": b"c" * 50, "other.pt": b"d" * 50}
    for tag in ("dfn", "named"):
        with pytest.raises(HubError, match="the network is off"):
            _fetch(library, "ViT-B-32", tag, offline=True)
    with pytest.raises(ConfigError, match="is offline: give the path"):
        _fetch(library, "RN50", "openai", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="is offline: give the path"):
        _fetch(library, "RN50", "openai", offline=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.requests == []
    name, settings = _fetch(library, "ViT-B-32", "dfn", offline=False)
    assert name == "ViT-B-32"
    assert Path(settings.pop("pretrained")).read_bytes() == b"a" * 50
    assert settings.pop("force_quick_gelu") is True
    assert settings == {
        "force_preprocess_cfg": {"mean": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
    }
    _, settings = _fetch(library, "ViT-B-32", "named", offline=False)
    assert Path(settings["pretrained"]).read_bytes() == b"c" * 50
    name, settings = _fetch(library, "hf-hub:owner/b32", "", offline=False)
    folder = Path(name.removeprefix("local-dir:"))
    assert (folder / "open_clip_config.json").is_file()
    assert settings == {}
    hub.requests.clear()
    for name, tag in (("ViT-B-32", "dfn"), ("ViT-B-32", "named"), ("hf-hub:owner/b32", "")):
        for offline in (True, False):
            _fetch(library, name, tag, offline=offline)
    assert hub.requests == []
    assert _fetch(library, "RN50", "openai", offline=False)[1]["pretrained"] == "openai"
    (tmp_path / "x.pt").touch()
    assert _fetch(library, "RN50", f"{tmp_path}/x.pt", offline=True)[1] == {
        "pretrained": f"{tmp_path}/x.pt"
    }


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"image_std": [0, 1, 1]}, "std cannot be"),
        ({"image_std": float("nan")}, "std cannot be"),
        ({"image_mean": [float("inf"), 0, 0]}, "mean cannot be"),
        ({"rescale_factor": 0}, "is not supported"),
        ({"rescale_factor": float("nan")}, "divisor of pixels must be"),
        ({"crop_size": 10**9, "size": {"shortest_edge": 10**9}}, "size cannot be"),
        ({"crop_size": -3}, "size cannot be"),
    ],
)
def test_numbers_of_a_processor_that_make_no_sense(facts, reason):
    with pytest.raises(ConfigError, match=rf"^x\.json is not supported.*{reason}|^x.*{reason}"):
        teacher_preprocess.from_processor(
            {"image_processor_type": "CLIPImageProcessor", **facts}, "x.json"
        )


@pytest.mark.parametrize(
    "facts",
    [{"std": (0.0, 1.0, 1.0)}, {"std": 0.0}, {"mean": (float("nan"),) * 3}, {"size": 10**9},
     {"std": None}, {"mean": (0.0, 0.0)}],
)  # fmt: skip
def test_numbers_of_open_clip_that_make_no_sense(facts):
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "size": 64}
    with pytest.raises(ConfigError, match=r"^x: its preprocessing is not supported"):
        teacher_preprocess.from_open_clip(config | facts, "x")


def test_a_tokenizer_with_more_tokens_than_its_model_knows(tmp_path):
    hf_models = pytest.importorskip("tests.reinforce.hf_models")
    hf_models.clip(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["cup"] = 500
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    made = load_teacher(f"transformers:{tmp_path}", device="cpu", precision="float32", offline=True)
    assert made.encode_text(["a red cat"]).shape == (1, 24)
    with pytest.raises(CheckpointError, match="gives the token 500, but the model has 16"):
        made.encode_text(["a cat", "a red cup"])
