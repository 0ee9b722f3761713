"""Gradients of a step: accumulated, trimmed, distilled by live teachers, frozen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pocketclip.errors import ConfigError
from pocketclip.nn.build import random_model
from pocketclip.tokenizer import Tokenizer
from pocketclip.train import losses
from pocketclip.train.batch_types import longest_text
from pocketclip.train.loader import Batch, normalise
from pocketclip.train.sections import LossSection
from pocketclip.train.step import Stepper

GOLDEN = Path(__file__).parents[1] / "golden" / "loss"
CPU = torch.device("cpu")
DIMS, SCALES = (8, 4), (30.0, 20.0)
# Without BatchNorm, so that micro-batches can equal a batch.
VIT = {
    "image.width": 32, "image.layers": 2, "image.heads": 2, "image.patch_size": 8,
    "image_size": 16, "text.width": 32, "text.layers": 2, "text.heads": 2, "embed_dim": 16,
    "text.embedding_buckets": 2048,
}  # fmt: skip
MCI = {
    "image.depths": (1, 1, 1, 1), "image_size": 32, "text.layers": 1, "text.context_length": 16,
}  # fmt: skip
WORDS = [
    "a",
    "red",
    "cup",
    "and",
    "two",
    "green",
    "apples",
    "on",
    "some",
    "old",
    "wooden",
    "table",
    "in",
    "Paris",
]


def batch(model, size, *, seed=0, captions=2, dims=DIMS):
    rng = np.random.default_rng(seed)
    side, context = model.config.image_size, model.config.text.context_length
    texts = [
        [" ".join(rng.choice(WORDS, rng.integers(1, 8))) + "!" for _ in range(size)]
        for _ in range(captions)
    ]
    tokenizer = Tokenizer()
    ids = [torch.from_numpy(np.asarray(tokenizer(one)))[:, : max(context, 20)] for one in texts]
    if context < 77:
        ids = [_cut(one, context) for one in ids]

    def unit():
        parts = [F.normalize(torch.from_numpy(rng.standard_normal((size, d))), dim=1) for d in dims]
        return torch.cat(parts, 1).float()

    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), np.uint8)),
        captions=ids,
        texts=texts,
        teacher_image=unit(),
        teacher_captions=[unit() for _ in range(captions)],
        uids=[str(i) for i in range(size)],
        text_length=longest_text(ids),
    )


def _cut(ids, context):
    out = ids[:, :context].clone()
    out[ids[:, :context].max(1).values < 49407, -1] = 49407
    return out


def rows(whole, first, last):
    part = slice(first, last)
    return Batch(
        images=whole.images[part],
        captions=[ids[part] for ids in whole.captions],
        texts=[texts[part] for texts in whole.texts],
        teacher_image=whole.teacher_image[part],
        teacher_captions=[t if t is None else t[part] for t in whole.teacher_captions],
        uids=whole.uids[part],
        kinds=whole.kinds,
    )


def stepper(model, **settings):
    facts = {"teacher_dims": DIMS, "teacher_scales": SCALES, "device": CPU}
    own = LossSection.model_fields.keys() - {"teacher_dims", "teacher_scales", "teacher_biases"}
    extra = {k: settings.pop(k) for k in list(settings) if k not in own}
    return Stepper(model, model, LossSection(**settings), **(facts | extra))


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(a, b, tolerance=2e-5):
    assert a.keys() == b.keys()
    largest = max(value.abs().max() for value in b.values())
    for name, value in a.items():
        difference = (value - b[name]).abs().max() / largest
        assert difference < tolerance, (name, float(difference))


def whole_and_parts(model, whole, parts, **settings):
    """Gradients and terms of a batch, and of the same in parts."""
    out = []
    for batches in ([whole], parts):
        model.zero_grad()
        terms = stepper(model, **settings).backward(batches)
        out.append((gradients(model), {k: float(v) for k, v in terms.items()}))
    return out


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize("captions", [1, 2])
def test_accumulation_equals_the_large_batch(weights, captions):
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 12, captions=captions)
    parts = [rows(whole, 0, 4), rows(whole, 4, 8), rows(whole, 8, 12)]
    (one, terms), (other, parted) = whole_and_parts(model, whole, parts, weights=weights)
    assert "logit_scale" in one
    assert parted == pytest.approx(terms, rel=1e-5)
    close(other, one)


def test_accumulation_equals_the_large_batch_with_frozen_statistics():
    model = random_model("tiny", seed=0, **MCI).train()
    model.freeze_batch_norm_statistics()
    whole = batch(model, 8)
    parts = [rows(whole, 0, 4), rows(whole, 4, 8)]
    (one, terms), (other, parted) = whole_and_parts(model, whole, parts, weights=(0.5, 0.5))
    assert parted == pytest.approx(terms, rel=1e-5)
    close(other, one)


def test_accumulation_replays_chance_and_counts_statistics_once():
    model = random_model("tiny", seed=0, drop_path=0.5, **MCI).train()
    whole = batch(model, 8)
    parts = [rows(whole, 0, 4), rows(whole, 4, 8)]
    # What it has to equal: both micro-batches' graphs kept, and one loss.
    torch.manual_seed(7)
    outs = [
        model(normalise(p.images, model.config.preprocess), torch.cat(p.captions)) for p in parts
    ]
    image = torch.cat([out[0] for out in outs])
    texts = [out[1].chunk(2) for out in outs]
    captions = [torch.cat([pair[k] for pair in texts]) for k in range(2)]
    reference = losses.reinforced_loss(
        image, captions, whole.teacher_image, whole.teacher_captions, outs[0][2], DIMS, SCALES,
        weights=(0.5, 0.5),
    )  # fmt: skip
    sum(reference.values()).backward()
    expected, state = gradients(model), {k: v.clone() for k, v in model.state_dict().items()}

    again = random_model("tiny", seed=0, drop_path=0.5, **MCI).train()
    torch.manual_seed(7)
    terms = stepper(again, weights=(0.5, 0.5)).backward(parts)
    assert sum(terms.values()) == pytest.approx(float(sum(reference.values()).detach()), rel=1e-5)
    close(gradients(again), expected)
    for name, value in again.state_dict().items():
        if "num_batches" in name:
            assert value == state[name] == 2, name
        elif "running" in name:
            torch.testing.assert_close(value, state[name])


def test_accumulation_of_siglip_reaches_its_bias():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 6)
    results = []
    for parts in ([whole], [rows(whole, 0, 3), rows(whole, 3, 6)]):
        model.zero_grad()
        bias = torch.nn.Parameter(torch.tensor(-3.0))
        engine = stepper(
            model, kind="siglip", weights=(0.5, 0.5), logit_bias=bias, teacher_biases=(-5.0, -6.0)
        )
        terms = engine.backward(parts)
        results.append(({**gradients(model), "bias": bias.grad}, terms))
    close(results[1][0], results[0][0])
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value)
        assert value > 0


@pytest.mark.parametrize(
    ("weights", "same_text"),
    [pytest.param((0.0, 0.0), "negative", marks=pytest.mark.slow), ((1.0, 0.0), "positive")],
)
def test_accumulation_of_a_captioner(weights, same_text):
    model = random_model("coca-tiny", seed=0, image_size=32).train()
    whole = repeated(model, 6, captions=1)
    parts = [rows(whole, 0, 2), rows(whole, 2, 4), rows(whole, 4, 6)]
    options = {
        "kind": "captioning", "weights": weights, "captioning_weight": 2.0, "same_text": same_text,
    }  # fmt: skip
    (one, terms), (other, parted) = whole_and_parts(model, whole, parts, **options)
    assert terms["captioning_loss"] > 0
    assert parted == pytest.approx(terms, rel=1e-5)
    close(other, one)


def test_a_captioner_learns_what_the_reference_loss_says():
    model = random_model("coca-tiny", seed=0, image_size=32).train()
    whole = batch(model, 4, captions=1)
    terms = stepper(model, kind="captioning", weights=(0.0, 0.0), captioning_weight=1.0).backward(
        [whole]
    )
    with torch.no_grad():
        out = model(normalise(whole.images, model.config.preprocess), whole.captions[0])
    labels = whole.captions[0][:, 1:76]
    expected = F.cross_entropy(out[3][:, :-1].flatten(0, 1), labels.flatten(), ignore_index=0)
    torch.testing.assert_close(terms["captioning_loss"], expected)


CASES = json.loads((GOLDEN / "coca.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=["as in pre-training", "captioning alone"])
def test_a_captioners_loss_is_open_clips(case):
    with np.load(GOLDEN / "inputs.npz", allow_pickle=False) as arrays:
        image, text, scale = (
            torch.from_numpy(arrays[name]).requires_grad_()
            for name in ("student_image", "student_text", "logit_scale")
        )
    draw = np.random.RandomState(11).standard_normal((8, 5, 13)).astype(np.float32)
    logits = torch.from_numpy(draw).requires_grad_()
    labels = np.random.RandomState(12).randint(0, 13, (8, 5))
    labels[:, 3:] *= np.random.RandomState(13).randint(0, 2, (8, 2))  # 0 is padding
    # The label of a position is the next id; the last position has none.
    ids = torch.from_numpy(np.pad(labels, ((0, 0), (1, 0)), constant_values=1))
    outputs = F.pad(logits, (0, 0, 0, 1), value=9.0)
    model = random_model("coca-tiny", seed=0, image_size=32)
    weights = {"weights": (case["weights"][0], 0.0), "captioning_weight": case["weights"][1]}
    engine = Stepper(
        model, lambda *_: (image, text, scale, outputs), LossSection(kind="captioning", **weights),
        device=CPU,
    )  # fmt: skip
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    terms = engine.backward([Batch(images=images, captions=[ids], uids=[""] * 8)])
    expected = {name: value for name, value in case["losses"].items() if value}
    assert {k: v.item() for k, v in terms.items() if v} == pytest.approx(expected, rel=1e-6)
    leaves = {"image": image, "text": text, "logits": logits}
    norms = {k: 0.0 if x.grad is None else x.grad.norm().item() for k, x in leaves.items()}
    norms["logit_scale"] = 0.0 if scale.grad is None else scale.grad.item()
    assert norms == pytest.approx(case["grad_norm"], rel=2e-6)


def repeated(model, size, **options):
    """Return a batch in which texts occur in several micro-batches, per caption."""
    whole = batch(model, size, **options)
    for k, ids in enumerate(whole.captions):
        ids[2 + k :: 3] = ids[1 + k].clone()
    return whole


def learnt(model, whole, **settings):
    """Gradients and terms of one step."""
    model.zero_grad()
    terms = stepper(model, **settings).backward([whole])
    return gradients(model), {k: float(v) for k, v in terms.items()}


def test_accumulation_knows_the_equal_texts_of_other_micro_batches():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = repeated(model, 9)
    parts = [rows(whole, k, k + 3) for k in (0, 3, 6)]
    options = {"kind": "siglip", "weights": (1.0, 0.0), "chunk": 4}
    options |= {"logit_bias": torch.nn.Parameter(torch.tensor(-3.0))}
    (one, terms), (other, parted) = whole_and_parts(
        model, whole, parts, same_text="positive", **options
    )
    assert parted == pytest.approx(terms, rel=1e-5)
    close(other, one)
    _, negative = learnt(model, whole, **options)
    assert abs(negative["contrastive_loss"] - terms["contrastive_loss"]) > 0.01
    # Found for each caption by its tokens.
    with torch.no_grad():
        pixels = normalise(whole.images, model.config.preprocess)
        expected = 0.0
        for ids in whole.captions:
            words = [tuple(row.tolist()) for row in ids]
            numbers = torch.tensor([words.index(word) for word in words])
            assert len(set(words)) < 9
            image, text, scale = model(pixels, ids)
            expected += float(losses.siglip_loss(image, text, scale, -3.0, text_ids=numbers))
    assert terms["contrastive_loss"] == pytest.approx(expected, rel=1e-5)


def test_equal_embeddings_of_equal_texts_leave_the_softmax_loss_as_it_is():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = repeated(model, 9)
    (one, terms), (other, same) = (
        learnt(model, whole, same_text=choice) for choice in ("negative", "positive")
    )
    assert same == pytest.approx(terms, rel=1e-6)
    close(other, one)
    # With drop path they have different embeddings.
    model = random_model("vit-b16", seed=0, **VIT, **{"text.drop_path": 0.5}).train()
    values = []
    for choice in ("negative", "positive"):
        torch.manual_seed(0)
        values.append(learnt(model, whole, same_text=choice)[1]["contrastive_loss"])
    assert abs(values[1] - values[0]) > 1e-3


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("live", [False, True])
def test_each_term_uses_its_own_captions(kind, live):
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 6, dims=(8,))
    whole.kinds = ["truth", "synthetic"]
    oracle = Oracle()
    options = {
        "kind": kind, "teacher_dims": (8,), "teacher_scales": (30.0,), "teacher_biases": (-5.0,),
        "teachers": [oracle] if live else [],
    }  # fmt: skip
    if kind == "siglip":
        options |= {"logit_bias": torch.nn.Parameter(torch.tensor(-3.0))}
    # What it has to equal: each term alone, of a batch with that caption alone.
    expected = {}
    for k, (name, weights) in enumerate(
        {"contrastive_loss": (0.5, 0.0), "distill_loss": (0.0, 2.0)}.items()
    ):
        alone = Batch(
            images=whole.images, captions=[whole.captions[k]], texts=[whole.texts[k]],
            teacher_image=whole.teacher_image, teacher_captions=[whole.teacher_captions[k]],
            uids=whole.uids,
        )  # fmt: skip
        expected[name] = learnt(model, alone, weights=weights, **options)[1][name]
    whole.teacher_captions[0] = None  # not needed
    chosen = {"contrastive_captions": "truth", "distill_captions": "synthetic"}
    for batches in ([whole], [rows(whole, 0, 3), rows(whole, 3, 6)]):
        terms = stepper(model, weights=(0.5, 2.0), **chosen, **options).backward(batches)
        assert {k: float(v) for k, v in terms.items()} == pytest.approx(expected, rel=1e-5)
    if live:
        assert oracle.texts == whole.texts[1][3:]


def test_captions_that_a_batch_lacks_are_named():
    model = random_model("vit-b16", seed=0, **VIT)
    one = batch(model, 3, captions=1)
    one.kinds = ["truth"]
    with pytest.raises(ConfigError, match="no synthetic captions, but truth; set"):
        stepper(model, contrastive_captions="synthetic").backward([one])
    engine = stepper(model, weights=(0.0, 1.0), distill_captions="synthetic")
    with pytest.raises(ConfigError, match=r"loss.distill_captions: .* but truth"):
        engine.backward([one])
    one.kinds = []
    with pytest.raises(ConfigError, match="of no stated kind"):
        stepper(model, contrastive_captions="truth").backward([one])


def test_leaving_out_padding_changes_nothing():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 5)
    assert any((ids == 0).any() for ids in whole.captions)
    results = []
    lengths, real = [], model.forward
    model.forward = lambda pixels, ids: (lengths.append(ids.shape[1]), real(pixels, ids))[1]
    for multiple in (1, 8, 64, 0):
        model.zero_grad()
        engine = stepper(model, weights=(1.0, 0.0), text_multiple=multiple)
        engine.backward([whole])
        results.append(gradients(model))
    assert lengths == [9, 16, 64, 77]
    # The rows of the position table that nothing reached have no gradient either way.
    for other in results[1:]:
        close(results[0], other)
    unknown = batch(model, 5)
    unknown.text_length = None
    stepper(model, weights=(1.0, 0.0)).backward([unknown])
    assert lengths[-1] == 9


def test_towers_that_see_their_padding_are_not_trimmed():
    assert not stepper(random_model("tiny", seed=0, **MCI)).text_multiple
    assert not stepper(random_model("coca-tiny", seed=0)).text_multiple


class Oracle:
    """An encoder that remembers what it was shown."""

    embed_dim, logit_scale, space_id = 8, 30.0, "oracle"

    def encode_image(self, images):
        self.images = list(images)
        flat = np.stack([np.resize(image.astype(np.float32).ravel() - 100, 8) for image in images])
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    def encode_text(self, texts):
        self.texts = list(texts)
        flat = np.stack([np.resize([ord(c) - 100.0 for c in text], 8) for text in texts])
        return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


def test_live_teachers_see_the_students_view():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 4)
    oracle = Oracle()
    stored = Batch(
        images=whole.images, captions=whole.captions, texts=whole.texts, uids=whole.uids,
        teacher_image=torch.from_numpy(oracle.encode_image(
            [image.permute(1, 2, 0).numpy() for image in whole.images])),
        teacher_captions=[torch.from_numpy(oracle.encode_text(t)) for t in whole.texts],
    )  # fmt: skip
    options = {"weights": (0.0, 1.0), "teacher_dims": (8,), "teacher_scales": (30.0,)}
    expected = stepper(model, **options).backward([stored])
    plain = Batch(images=whole.images, captions=whole.captions, texts=whole.texts, uids=whole.uids)
    live = stepper(model, teachers=[oracle], **options).backward([plain])
    torch.testing.assert_close(live, expected)
    assert oracle.texts == whole.texts[1]
    assert oracle.images[0].shape == (16, 16, 3)


class OnDevice(Oracle):
    """The same with tensors in and out."""

    def encode_image(self, images):  # noqa: ARG002
        raise AssertionError("the host waits for these")

    encode_text = encode_image

    def encode_image_tensors(self, images):
        return torch.from_numpy(Oracle.encode_image(self, images.permute(0, 2, 3, 1).numpy()))

    def encode_text_tensors(self, texts):
        return torch.from_numpy(Oracle.encode_text(self, texts))


def test_live_teachers_that_take_tensors_are_given_tensors():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 4)
    options = {"weights": (0.0, 1.0), "teacher_dims": (8, 8), "teacher_scales": (30.0, 20.0)}
    plain = Batch(images=whole.images, captions=whole.captions, texts=whole.texts, uids=whole.uids)
    expected = stepper(model, teachers=[Oracle(), Oracle()], **options).backward([plain])
    live = stepper(model, teachers=[OnDevice(), Oracle()], **options).backward([plain])
    assert live == expected


def test_dimensions_that_do_not_fit_are_named():
    model = random_model("vit-b16", seed=0, **VIT)
    engine = stepper(model, weights=(0.0, 1.0), teacher_dims=(8, 8))
    with pytest.raises(ConfigError, match=r"12 values.*add up to 16.*loss.teacher_dims"):
        engine.backward([batch(model, 3)])


def test_bfloat16_computes_in_it_and_keeps_float32_losses():
    model = random_model("vit-b16", seed=0, **VIT).train()
    whole = batch(model, 6)
    exact = stepper(model, weights=(0.5, 0.5)).backward([whole])
    expected = gradients(model)
    model.zero_grad()
    half = stepper(model, weights=(0.5, 0.5), dtype=torch.bfloat16).backward([whole])
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact[name]), rel=0.05)
        assert float(value) != float(exact[name])
    assert all(g.dtype == torch.float32 for g in gradients(model).values())
    flat = torch.cat([g.flatten() for g in expected.values()])
    other = torch.cat([gradients(model)[n].flatten() for n in expected])
    assert F.cosine_similarity(flat, other, dim=0) > 0.98
