from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from pocketclip import checkpoint
from pocketclip.caption_settings import Settings
from pocketclip.errors import CheckpointError, ConfigError, HubError
from pocketclip.nn.build import random_model
from pocketclip.preprocess import Preprocess
from pocketclip.reinforce import captioners
from pocketclip.reinforce.captioners import Captioner, load_captioner, seed_of
from pocketclip.reinforce.protocols import Pixels
from pocketclip.reinforce.sampling import Sampling
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform
from pocketclip.reinforce.teachers import load_teacher
from pocketclip.tokenizer import Tokenizer

UIDS = ["00000000", "00000001", "apple", "b"]
SHORT = {"max_length": 8}


def _squares(size, count=4):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def _coca(**sampling):
    return load_captioner(
        "random:coca-tiny:1", device="cpu", precision="float32", sampling={**SHORT, **sampling}
    )


@pytest.fixture(scope="module")
def coca():
    return _coca()


def test_what_it_says_of_itself(coca):
    assert (coca.name, coca.key) == ("random-coca-tiny-1", "syn_text_random-coca-tiny-1")
    space = random_model("coca-tiny", seed=1).space_id
    assert coca.identity == {
        "name": coca.name,
        "kind": "coca",
        "model": "coca-tiny",
        "space_id": space,
        "precision": "float32",
        "sampling": dataclasses.asdict(Settings(**SHORT)),
    }
    assert coca.transform.size == 64
    named = load_captioner("random:coca-tiny", name="big_one-2")
    assert named.key == "syn_text_big_one-2"
    with pytest.raises(ConfigError, match=r"only lower-case letters, digits, - and _, not 'A\.b'"):
        load_captioner("random:coca-tiny", name="A.b")
    assert load_captioner("My.One=random:coca-tiny").key == "syn_text_my-one"
    assert load_captioner("syn_text=random:coca-tiny").key == "syn_text"  # DataCompDR's


def test_its_captions_are_what_the_model_writes(coca):
    squares = _squares(64)
    ours = coca.caption_squares(squares, UIDS, 2, 5)
    model = random_model("coca-tiny", seed=1)
    pixels = torch.from_numpy(Preprocess(model.config.preprocess).batch(squares))
    seeds = [seed_of(5, uid, k) for uid in UIDS for k in range(2)]
    rows = model.generate(pixels, captions_per_image=2, seeds=seeds, **SHORT)
    expected = [" ".join(text.split()) for text in Tokenizer().decode(rows)]
    assert [text for row in ours for text in row] == expected
    assert len({*expected}) == 8


def test_a_caption_depends_on_its_seed_alone(coca, monkeypatch):
    squares = _squares(64)
    whole = coca.caption_squares(squares, UIDS, 3, 0)
    assert [len(row) for row in whole] == [3] * 4
    assert coca.caption_squares(squares[2:3], ["apple"], 3, 0) == whole[2:3]
    # of fewer captions, the first ones
    assert coca.caption_squares(squares, UIDS, 1, 0) == [row[:1] for row in whole]
    monkeypatch.setattr(captioners, "ROWS", 4)  # an image at a time
    assert coca.caption_squares(squares, UIDS, 3, 0) == whole
    assert coca.caption_squares(squares, UIDS, 3, 1) != whole
    assert coca.caption_squares(squares, UIDS[::-1], 3, 0) != whole
    assert coca.caption_squares(squares, UIDS, 0, 0) == [[], [], [], []]
    assert coca.caption_squares(squares[:0], [], 3, 0) == []


def test_seeds_are_a_pure_function():
    assert seed_of(0, "a", 0) == 6785274145183939579
    seeds = {seed_of(s, u, k, a) for s in (0, 1) for u in "ab" for k in (0, 1) for a in (0, 1)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_beam_and_greedy_draw_nothing():
    squares = _squares(64, 2)
    beam = _coca(method="beam", beams=3)
    rows = beam.caption_squares(squares, UIDS[:2], 5, 0)
    assert [len(row) for row in rows] == [3, 3]  # there are no more beams
    assert rows == beam.caption_squares(squares, ["x", "y"], 5, 9)
    assert beam.caption_squares(squares, UIDS[:2], 1, 0) == [row[:1] for row in rows]
    greedy = _coca(method="greedy")
    rows = greedy.caption_squares(squares, UIDS[:2], 5, 0)
    assert [len(row) for row in rows] == [1, 1]
    assert rows == greedy.caption_squares(squares, ["x", "y"], 2, 9)


def test_the_published_cut_at_the_first_full_stop():
    whole = Sampling(top_p=0.9, max_length=30)
    cut = Sampling(top_p=0.9, max_length=30, first_sentence=True)
    text = " a cat . on a\n mat. and 3.5 more"
    assert whole.trim(text) == "a cat . on a mat. and 3.5 more"
    assert cut.trim(text) == "a cat"
    assert cut.trim("3.5 cats") == "3"  # as published: any full stop
    assert cut.trim("no end") == "no end"
    assert cut.trim(". nothing") == ""  # such a caption is drawn again
    # Jobs that were begun before the option existed go on; those that use it differ.
    assert whole.identity == dataclasses.asdict(Settings(top_p=0.9, max_length=30))
    assert cut.identity == {**whole.identity, "first_sentence": True}
    with pytest.raises(ConfigError, match="first_sentence must be true or false, not 'yes'"):
        Sampling.from_dict({"first_sentence": "yes"})

    class Talker:
        def write(self, _pixels, _per_image, seeds):
            first = ".", "one. two"
            return [first[n % 2] if len(seeds) > 1 else "drawn again. x" for n in range(len(seeds))]

    rows = _scripted(Talker(), first_sentence=True).caption_squares(_squares(8, 1), ["a"], 2, 0)
    assert rows == [["drawn again", "one"]]


class _Scripted:
    """Writes nothing at first, for captions whose seed is in `never` at no time."""

    def __init__(self, never=()):
        self.never = never
        self.calls = []

    def write(self, pixels, per_image, seeds):
        self.calls.append((len(pixels), per_image, list(seeds)))
        assert len(seeds) == len(pixels) * per_image
        first = len(self.calls) == 1
        return [
            " " if (first and n % 2) or seed in self.never else f"  caption \n {seed} "
            for n, seed in enumerate(seeds)
        ]


def _scripted(writer, **sampling):
    return Captioner(
        writer, name="x", facts={}, sampling=Sampling(**sampling),
        transform=SquareTransform(size=8, edge=8),
        pixels=Pixels(Scaling(), torch.device("cpu"), torch.float32),
    )  # fmt: skip


def test_an_empty_caption_is_drawn_again_and_then_left_out():
    writer = _Scripted()
    rows = _scripted(writer).caption_squares(_squares(8, 2), ["a", "b"], 2, 0)
    assert rows == [
        [f"caption {seed_of(0, uid, 0)}", f"caption {seed_of(0, uid, 1, 1)}"] for uid in "ab"
    ]
    assert [call[:2] for call in writer.calls] == [(2, 2), (2, 1)]
    hopeless = _Scripted({seed_of(0, "a", 1, attempt) for attempt in range(9)})
    rows = _scripted(hopeless).caption_squares(_squares(8, 1), ["a"], 2, 0)
    assert rows == [[f"caption {seed_of(0, 'a', 0)}"]]
    assert len(hopeless.calls) == 1 + captioners.RETRIES
    greedy = _Scripted({seed_of(0, "a", 0)})
    assert _scripted(greedy, method="greedy").caption_squares(_squares(8, 1), ["a"], 2, 0) == [[]]
    assert len(greedy.calls) == 1


def test_squares_and_uids_belong_together(coca):
    with pytest.raises(ValueError, match="4 squares and 2 uids"):
        coca.caption_squares(_squares(64), UIDS[:2], 1, 0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"topp": 0.5}, "unknown field 'topp' .fields: method, max_length"),
        ({"method": "best"}, "method is one of nucleus, top_k, greedy, beam, not 'best'"),
        ({"temperature": 0}, "temperature is above 0"),
        ({"top_p": 1.5}, "top_p is above 0 and at most 1"),
        ({"top_k": 0}, "top_k is at least 1"),
        ({"beams": 1.5}, "must be a whole number"),
        ({"max_length": 2}, "max_length is at least 3"),
        ({"min_length": 80, "max_length": 80}, "min_length is 0 or more, below max_length"),
        ({"repetition_penalty": 0}, "repetition_penalty is above 0"),
        ({"temperature": "hot"}, "sampling: "),
    ],
)
def test_sampling_that_makes_no_sense(raw, message):
    with pytest.raises(ConfigError, match=message):
        Sampling.from_dict(raw)
    with pytest.raises(ConfigError, match=message):
        load_captioner("random:coca-tiny", sampling=raw)


def test_models_that_write_nothing(tmp_path):
    with pytest.raises(
        ConfigError, match=r"tiny cannot write captions: use a captioner \(coca-vit-"
    ):
        load_captioner("random:tiny")
    with pytest.raises(ConfigError, match="in the zoo: use coca-vit-b32"):
        load_captioner("open_clip:coca_ViT-B-32/x")
    with pytest.raises(ConfigError, match="max_length is at most 77"):
        load_captioner("random:coca-tiny", sampling={"max_length": 100})
    with pytest.raises(CheckpointError, match="random:coca-tiny to try things out"):
        load_captioner("coca-tiny")
    with pytest.raises(HubError, match="offline"):  # a captioner by its short name
        load_captioner("coca-dfn2b-docci-context128", offline=True)
    checkpoint.save(random_model("coca-tiny", seed=4), tmp_path / "mine")
    mine = load_captioner(str(tmp_path / "mine"), precision="float32")
    assert mine.key == "syn_text_mine"
    assert mine.identity["space_id"] == random_model("coca-tiny", seed=4).space_id


def test_half_precision():
    half = load_captioner("random:coca-tiny:1", precision="bfloat16", sampling=SHORT)
    assert half.identity["precision"] == half.dtype == "bfloat16"
    rows = half.caption_squares(_squares(64), UIDS, 2, 0)
    assert [len(row) for row in rows] == [2] * 4


def test_a_captioner_teaches_too():
    teacher = load_teacher("random:coca-tiny:1", device="cpu", precision="float32")
    model = random_model("coca-tiny", seed=1)
    assert (teacher.embed_dim, teacher.space_id) == (128, model.space_id)
    texts = ["a cat", "a photo of a dog " * 20, ""]
    with torch.inference_mode():
        ids = torch.from_numpy(Tokenizer(warn=False)(texts, 76))
        expected = model.encode_text(ids, normalize=True).numpy()
    np.testing.assert_allclose(teacher.encode_text(texts), expected, atol=1e-6)


# --- models of transformers


@pytest.fixture(scope="module")
def hf_models():
    pytest.importorskip("transformers", reason="the extra `teachers` is not installed")
    return importlib.import_module("tests.reinforce.hf_models")


@pytest.fixture(scope="module", params=["blip", "encoder_decoder", "git"])
def folder(request, hf_models, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / request.param
    path.mkdir()
    getattr(hf_models, request.param)(path)
    return path


def _load_hf(folder, **sampling):
    return load_captioner(
        f"transformers:{folder}", device="cpu", precision="float32",
        sampling={"max_length": 10, **sampling},
    )  # fmt: skip


@pytest.mark.parametrize("method", ["nucleus", "top_k"])
def test_hf_captions_depend_on_their_seed_alone(folder, method):
    captioner = _load_hf(folder, method=method, top_k=9)
    assert captioner.identity["kind"] == "transformers"
    assert captioner.name == folder.name
    squares = _squares(32, 3)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    whole = captioner.caption_squares(squares, UIDS[:3], 3, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(len(row) == 3 and len({*row}) > 1 for row in whole)
    for text in (text for row in whole for text in row):
        assert "<" not in text
        assert 4 <= len(text.split()) <= 9
    # whatever else is in the batch, and whatever was drawn before
    assert captioner.caption_squares(squares[1:2], UIDS[1:2], 3, 0) == whole[1:2]
    assert captioner.caption_squares(squares, UIDS[:3], 1, 0) == [row[:1] for row in whole]
    assert captioner.caption_squares(squares, UIDS[:3], 3, 1) != whole


def test_hf_beams_and_greedy_are_the_librarys_own(folder, hf_models):
    transformers = hf_models.transformers
    squares = _squares(32, 2)
    beam = _load_hf(folder, method="beam", beams=3)
    rows = beam.caption_squares(squares, UIDS[:2], 2, 0)
    assert [len(row) for row in rows] == [2, 2]
    greedy = _load_hf(folder, method="greedy")
    assert [len(row) for row in greedy.caption_squares(squares, UIDS[:2], 4, 0)] == [1, 1]

    kind = {"blip": "Blip", "git": "Git"}.get(folder.name)
    name = {"Blip": "BlipForConditionalGeneration", "Git": "GitForCausalLM"}.get(
        kind, "VisionEncoderDecoderModel"
    )
    model = getattr(transformers, name).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = beam._pixels(squares)
    with torch.inference_mode():
        ids = model.generate(
            pixel_values=pixels, num_beams=3, num_return_sequences=2, do_sample=False,
            max_new_tokens=9, min_new_tokens=4,
        )  # fmt: skip
    expected = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text for row in rows for text in row] == [" ".join(text.split()) for text in expected]


def test_hf_nucleus_draws_from_the_right_distribution(hf_models, tmp_path):
    """The first word over many seeds, against the model's own probabilities."""
    hf_models.encoder_decoder(tmp_path)
    captioner = _load_hf(tmp_path, max_length=3, min_length=2, top_p=0.8, temperature=0.2)
    squares = _squares(32, 1)
    count = 2000
    (rows,) = captioner.caption_squares(squares, ["a"], count, 0)
    model, transformers = captioner.writer.model, hf_models.transformers
    with torch.inference_mode():
        logits = model(
            pixel_values=captioner._pixels(squares),
            decoder_input_ids=torch.tensor([[hf_models.BOS]]),
        ).logits[:, -1]
        logits[:, :4] = -torch.inf  # suppressed by its configuration, and no end yet
        warpers = transformers.LogitsProcessorList(
            [transformers.TemperatureLogitsWarper(0.2), transformers.TopPLogitsWarper(0.8)]
        )
        shares = warpers(None, logits).softmax(-1)[0, 4:]
    assert 2 < (shares > 0).sum() < len(shares)
    first = [text.split()[0] for text in rows]
    for word, share in zip(hf_models.WORDS, shares.tolist(), strict=True):
        slack = 5 * (share * (1 - share) / count) ** 0.5  # standard errors; none for a zero
        assert abs(first.count(word) / count - share) <= slack


def test_folders_that_hold_no_captioner(hf_models, tmp_path):
    hf_models.clip(tmp_path)
    with pytest.raises(CheckpointError, match=r"serve as a captioner \(it is a teacher"):
        load_captioner(f"transformers:{tmp_path}")
