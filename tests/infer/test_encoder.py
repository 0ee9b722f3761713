from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pocketclip
from pocketclip import checkpoint
from pocketclip.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    EmbeddingError,
    ImageError,
    PocketclipError,
    UnknownModelError,
)
from pocketclip.export.towers import prepare
from pocketclip.graph.build import write_tower
from pocketclip.nn.build import random_model
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform
from pocketclip.reinforce.teachers import Teacher
from pocketclip.reinforce.zoo_towers import ZooTowers
from pocketclip.train.sections import LossSection
from pocketclip.train.step import Stepper
from pocketclip.types import Encoder
from tests.cli import inside
from tests.golden_weights import randomise

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def encoder():
    model = random_model("tiny", seed=0)
    randomise(model)
    return pocketclip.Encoder(model, batch_size=3)


def test_it_is_an_encoder(encoder):
    assert isinstance(encoder, Encoder)
    assert encoder.embed_dim == 64
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert encoder.space_id == encoder.model.space_id


def test_images_in_any_form_and_any_batch(encoder):
    assert len(PHOTOS) == 4
    several = encoder.encode_image(PHOTOS)
    assert several.shape == (4, 64)
    assert several.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(several, axis=1), 1, rtol=1e-5)
    with Image.open(PHOTOS[0]) as image:
        forms = [str(PHOTOS[0]), PHOTOS[0], PHOTOS[0].read_bytes(), image, np.asarray(image)]
        for form in forms:
            np.testing.assert_allclose(encoder.encode_image(form), several[:1], atol=1e-5)
    assert encoder.encode_image([]).shape == (0, 64)
    # the model itself, on the same pixels
    pixels = torch.from_numpy(encoder.preprocess.batch(PHOTOS))
    with torch.inference_mode():
        expected = encoder.model.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(several, expected, atol=1e-5)
    raw = encoder.encode_image(PHOTOS, normalize=False)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), several, atol=1e-5)


def test_texts(encoder):
    texts = ["a cat", "a dog", "", "naïve café", "a cat"]
    out = encoder.encode_text(texts)
    assert out.shape == (5, 64)
    np.testing.assert_allclose(out[0], out[4], atol=1e-6)
    assert np.abs(out[0] - out[1]).max() > 1e-3
    np.testing.assert_allclose(encoder.encode_text("a cat"), out[:1], atol=1e-5)
    assert encoder.encode_text([]).shape == (0, 64)


def test_classify_ranks_by_cosine(encoder):
    labels = ["a cat", "a cup of coffee", "a rocket"]
    (row,) = encoder.classify(PHOTOS[0], labels)
    assert sum(row.values()) == pytest.approx(1)
    assert list(row.values()) == sorted(row.values(), reverse=True)
    similarity = encoder.encode_image(PHOTOS[0]) @ encoder.encode_text(labels).T
    logits = encoder.logit_scale * similarity[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    for label, share in zip(labels, expected, strict=True):
        assert row[label] == pytest.approx(share, rel=1e-4)


def test_templates_are_averaged_and_normalised(encoder):
    templates = ["a photo of {}.", "{} in a bowl"]
    classifier = encoder.classifier(["a cat", "50 % {off}"], templates)
    both = encoder.encode_text(["a photo of a cat.", "a cat in a bowl"]).mean(0)
    np.testing.assert_allclose(classifier[0], both / np.linalg.norm(both), atol=1e-5)


def test_templates_are_written_as_for_evaluation(encoder):
    plain = encoder.classifier(["a cat", "{x}"], ["the {}.", "{} or {}"])
    np.testing.assert_array_equal(encoder.classifier(["a cat", "{x}"], ["the {c}.", "{} or {c}"]),
                                  plain)  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [([], ["{}"], "no labels"), (["a", "b", "a"], ["{}"], "'a' is given twice"),
     (["a"], ["a photo"], "has no {c} or {}"), (["a"], [], "needs class names and prompts")],
)  # fmt: skip
def test_labels_and_templates_that_make_no_sense(encoder, labels, templates, message):
    with pytest.raises(PocketclipError, match=message):
        encoder.classify(PHOTOS[0], labels, templates)


def test_a_text_for_a_list(encoder):
    with pytest.raises(PocketclipError, match="pass a list of labels"):
        encoder.classify(PHOTOS[0], "cat")
    one = encoder.classifier(["a", "b"], "a photo of {}.")
    np.testing.assert_array_equal(one, encoder.classifier(["a", "b"], ["a photo of {}."]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(encoder, dtype):
    model = random_model("tiny", seed=0)
    randomise(model)
    half = pocketclip.Encoder(model.to(dtype))
    assert half.encode_image(PHOTOS).dtype == np.float32
    assert (half.encode_image(PHOTOS) * encoder.encode_image(PHOTOS)).sum(1).min() > 0.99
    assert (half.encode_text(["a cat"]) * encoder.encode_text(["a cat"])).sum() > 0.99


def test_a_stack_of_images(encoder):
    stack = np.random.default_rng(0).integers(0, 255, (3, 70, 80, 3), np.uint8)
    np.testing.assert_allclose(
        encoder.encode_image(stack), encoder.encode_image(list(stack)), atol=1e-6
    )


def test_a_bad_image_is_named(encoder, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not a photograph")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        encoder.encode_image([PHOTOS[0], tmp_path / "bad.jpg"])


def test_load_a_folder_and_a_random_model(tmp_path, caplog):
    checkpoint.save(random_model("tiny", seed=5), tmp_path / "model")
    assert pocketclip.load(tmp_path / "model").model.is_fused
    assert not caplog.records
    one, other = pocketclip.load("random:tiny"), pocketclip.load("random:Tiny", fuse=False)
    assert one.space_id == other.space_id
    with pytest.raises(CheckpointError, match="random:tiny to try things out"):
        pocketclip.load("tiny")
    with pytest.raises(UnknownModelError, match="did you mean"):
        pocketclip.load("tinyy")


def test_a_folder_named_like_a_model_is_the_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(random_model("small", seed=5), "tiny")
    assert pocketclip.load("tiny").model.config.name == "small"
    (record,) = caplog.records
    assert record.message.startswith("tiny is the file or folder of that name here; ")
    caplog.clear()
    for text in ("./tiny", "tiny/", str(tmp_path / "tiny")):
        assert pocketclip.load(text).model.config.name == "small"
    assert not caplog.records
    # any other spelling is not what is here
    with pytest.raises(CheckpointError, match="no published weights"):
        pocketclip.load("Tiny")


def test_a_folder_of_that_name_without_a_model_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(CheckpointError, match=r"no model in it; .* is random:tiny"):
        pocketclip.load("tiny")


def test_encoder_takes_what_load_takes(tmp_path, exported):
    checkpoint.save(random_model("tiny", seed=5), tmp_path / "run" / "model")
    expected = pocketclip.load(tmp_path / "run").encode_text(["a cat"])
    made = pocketclip.Encoder(str(tmp_path / "run"), batch_size=3, device="cpu")
    assert made.model.is_fused
    assert made.batch_size == 3
    np.testing.assert_array_equal(made.encode_text(["a cat"]), expected)
    random = pocketclip.Encoder("random:tiny:5")
    np.testing.assert_array_equal(random.encode_text(["a cat"]), expected)
    assert pocketclip.Encoder(exported()).bundle is not None
    with pytest.raises(CheckpointError, match="random:tiny"):
        pocketclip.Encoder("tiny")


def test_threads_of_a_model_in_torch_are_torchs_own(tmp_path):
    checkpoint.save(random_model("tiny", seed=5), tmp_path / "model")
    for call in (
        lambda: pocketclip.load(tmp_path / "model", threads=1),
        lambda: pocketclip.Encoder(random_model("tiny", seed=5), threads=1),
        lambda: pocketclip.Encoder(tmp_path / "model", threads=1),
    ):
        before = torch.get_num_threads()
        with pytest.raises(ConfigError, match=r"torch\.set_num_threads\(N\), which applies to"):
            call()
        assert torch.get_num_threads() == before
    assert pocketclip.load(tmp_path / "model").threads == torch.get_num_threads()


def test_precision_and_device_of_load(tmp_path, exported):
    checkpoint.save(random_model("tiny", seed=5), tmp_path / "model")
    whole = pocketclip.load(tmp_path / "model", precision="fp32", device="cpu", batch_size=7)
    half = pocketclip.load(tmp_path / "model", precision="bf16")
    assert whole.batch_size == 7
    assert half.model.logit_scale.dtype == torch.bfloat16
    # They are the same model, and a scale of three digits would move the probabilities.
    assert (half.space_id, half.logit_scale) == (whole.space_id, whole.logit_scale)
    cosine = (half.encode_image(PHOTOS) * whole.encode_image(PHOTOS)).sum(1)
    assert 0.99 < cosine.min() <= cosine.max() < 1.01
    with pytest.raises(ConfigError, match="precision is auto, float32"):
        pocketclip.load(tmp_path / "model", precision="fp64")
    with pytest.raises(ConfigError, match="no device 'cuda:9' here"):
        pocketclip.load(tmp_path / "model", device="cuda:9")
    # torch's own reason is a page of backends and advice for its makers.
    for name in ("mtia", "tpu"):
        with pytest.raises(
            ConfigError, match=rf"^no device '{name}' here.{{0,110}}; try cpu or auto$"
        ):
            pocketclip.load(tmp_path / "model", device=name)
    with pytest.raises(ConfigError, match="runs on the CPU: leave out device 'cuda'"):
        pocketclip.load(exported(), device="cuda")
    with pytest.raises(ConfigError, match="is not a repository on the hub"):
        pocketclip.load(tmp_path / "model", revision="main")
    with pytest.raises(BundleError, match="holds tiny, not small"):
        pocketclip.load(exported(), "small")


def test_greyscale_and_transparent_images(encoder):
    for mode in ("L", "RGBA", "P", "CMYK", "I;16"):
        image = Image.new(mode if mode != "I;16" else "I;16", (80, 70))
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        assert encoder.encode_image(buffer.getvalue()).shape == (1, 64)


def _damaged(part, value=float("nan")):
    model = random_model("tiny", seed=0)
    with torch.no_grad():
        getattr(model, part).head.weight.fill_(value)
    return pocketclip.Encoder(model, batch_size=3)


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "not finite"), (0.0, "zero")])
def test_useless_embeddings_are_an_error_that_names_the_input(value, what):
    encoder = _damaged("image", value)
    if what == "zero":
        torch.nn.init.zeros_(encoder.model.image.head.bias)
    for call in (encoder.encode_image, lambda photos: encoder.classify(photos, ["a", "b"])):
        with pytest.raises(EmbeddingError, match=rf"{PHOTOS[0].name}: its embedding is {what}"):
            call(PHOTOS)
    with pytest.raises(EmbeddingError, match=r"^image 0 \(counted from 0\): its"):
        encoder.encode_image(PHOTOS[0].read_bytes())
    prepared = [encoder.prepare(photo) for photo in PHOTOS]
    for call in (encoder.encode_prepared, lambda rows: encoder.encode_pixels(np.stack(rows))):
        with pytest.raises(EmbeddingError, match=r"^image 0 \(counted from 0\): its"):
            call(prepared)
    text = _damaged("text", value)
    for call in (text.encode_text, text.classifier):
        with pytest.raises(EmbeddingError, match=f"text 'a cat': its embedding is {what}"):
            call(["a cat", "a dog"])


def test_one_useless_embedding_among_good_ones_is_the_one_that_is_named(encoder, monkeypatch):
    inside = encoder.backend.image

    def overflowing(pixels):
        rows = inside(pixels)
        bright = pixels.mean((1, 2, 3)) > 0.99
        rows[bright] = np.inf
        return rows

    monkeypatch.setattr(encoder.backend, "image", overflowing)
    white = np.full((64, 64, 3), 255, np.uint8)
    images = [*PHOTOS, white, PHOTOS[0]]
    with pytest.raises(EmbeddingError, match=r"^image 4 \(counted from 0\)"):
        encoder.encode_image(images)
    with pytest.raises(EmbeddingError) as caught:
        encoder.encode_prepared([encoder.prepare(image) for image in images])
    assert caught.value.index == 4
    assert encoder.encode_image(PHOTOS).shape == (4, 64)


def test_a_scale_that_is_not_finite_gives_no_shares(encoder):
    model = random_model("tiny", seed=0)
    with torch.no_grad():
        model.logit_scale.fill_(float("nan"))
    with pytest.raises(EmbeddingError, match="logit scale: it is nan"):
        pocketclip.Encoder(model).classify(PHOTOS, ["a", "b"])
    rows = np.full((1, 64), np.nan, np.float32)
    with pytest.raises(EmbeddingError, match="not finite"):
        encoder.rank(rows, encoder.classifier(["a", "b"]), ["a", "b"])


def _teacher(model):
    return Teacher(
        ZooTowers(model, torch.device("cpu"), torch.float32),
        name="x", transform=SquareTransform.of(model.config.preprocess), scaling=Scaling(),
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip


TEXTS = ["", "a cat", "a photo of two dogs that run along a beach in the evening " * 3]


@pytest.mark.parametrize(
    ("options", "trims"),
    [
        ({"causal": True}, True),
        ({"causal": False}, False),
        ({"causal": True, "repmixer": True}, False),
        ({"causal": False, "repmixer": True}, False),
    ],
)
def test_texts_are_trimmed_only_where_that_changes_nothing(tmp_path, options, trims):
    model = random_model("tiny", seed=0, text=options)
    randomise(model)
    assert model.config.text.ignores_padding is trims
    encoder = pocketclip.Encoder(model)
    ids = torch.from_numpy(encoder.tokenizer(TEXTS, model.config.text.context_length))
    with torch.inference_mode():
        expected = model.encode_text(ids, normalize=True).numpy()
        one = encoder.tokenizer(["a cat"])
        short = model.encode_text(one[:, : one.argmax() + 1], normalize=True).numpy()
    # The property says what is true of the tower itself.
    assert np.allclose(short, expected[1:2], atol=1e-5) is trims
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-5)
    for text, row in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(encoder.encode_text(text)[0], row, atol=1e-5)
    teacher = _teacher(model)
    assert teacher.towers.trims is trims
    np.testing.assert_allclose(teacher.encode_text(TEXTS), expected, atol=1e-5)
    towers = prepare(model, normalize=True)
    entry = write_tower(model.arrays(), model.config, "text", tmp_path / "text.onnx")
    assert (entry["input"]["shape"] == [None, None]) is trims
    np.testing.assert_allclose(towers.text(ids).numpy(), expected, atol=1e-5)
    step = Stepper(model, model, LossSection(), device=torch.device("cpu"))
    assert (step.text_multiple > 0) is trims


def test_threads_beyond_any_machine_are_refused(tmp_path, monkeypatch):
    torch_was_asked = []
    monkeypatch.setattr(torch, "set_num_threads", torch_was_asked.append)
    checkpoint.save(random_model("tiny", seed=5), tmp_path / "model")
    done = inside.run(
        "classify", PHOTOS[0], "--labels", "a,b", "--model", tmp_path / "model", "--threads", 20000
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: threads is 20,000; the maximum is 1,024")
    assert not torch_was_asked
    with pytest.raises(ConfigError, match="20,000"):
        pocketclip.Encoder(tmp_path / "model", threads=20_000)
