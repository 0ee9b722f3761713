"""Losses against the reference's values, a plain numpy form of the papers, and themselves."""

from __future__ import annotations

import itertools
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pocketclip.errors import ConfigError
from pocketclip.train.losses import (
    captioning_loss,
    contrastive_loss,
    distillation_loss,
    reinforced_loss,
    siglip_distillation_loss,
    siglip_loss,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "loss"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
DIMS, SCALES, BIASES = (3, 5), (9.0, 14.0), (-4.0, -5.0)
WEIGHTS = (3.0, 1.0)


def _unit(rows, dim, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=draw, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype)


def _teacher(rows, seed, dims=DIMS):
    return torch.cat([_unit(rows, dim, seed + 50 * k) for k, dim in enumerate(dims, 1)], 1)


def _every(image, text, scale, bias, teacher, **options):
    """Yield name and value of each loss on one image and one caption."""
    given = (*teacher, DIMS, SCALES)
    yield "contrastive", contrastive_loss(image, text, scale, **options)
    yield "distillation", distillation_loss(image, text, scale, *given, **options)
    terms = reinforced_loss(
        image,
        [text, text.roll(1, 0)],
        teacher[0],
        [teacher[1], teacher[1].roll(1, 0)],
        scale,
        DIMS,
        SCALES,
        weights=(0.25, 0.75),
        **options,
    )
    yield "reinforced", sum(terms.values())
    yield "siglip", siglip_loss(image, text, scale, bias, **options)
    soft = siglip_distillation_loss(image, text, scale, bias, *given, BIASES, **options)
    yield "siglip distillation", soft
    weighted = {**options, "teacher_weights": WEIGHTS}
    yield "weighted", distillation_loss(image, text, scale, *given, **weighted)
    soft = siglip_distillation_loss(image, text, scale, bias, *given, BIASES, **weighted)
    yield "siglip weighted", soft


def _inputs(rows, dim=4, seed=0):
    """Return fresh leaves image, text, scale, bias, and the teachers' two matrices."""
    leaves = [_unit(rows, dim, seed), _unit(rows, dim, seed + 1)]
    leaves += [torch.tensor(7.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)]
    teacher = _teacher(rows, seed + 2), _teacher(rows, seed + 3)
    return [x.requires_grad_() for x in leaves], teacher


def _values_and_gradients(rows, dim=4, seed=0, **options):
    leaves, teacher = _inputs(rows, dim, seed)
    actual = {}
    for name, value in _every(*leaves, teacher, **options):
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        actual[name] = [value.detach(), *(g for g in gradients if g is not None)]
    return actual


# The reference's values


@pytest.mark.parametrize("chunk", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{c['case']}" for n, c in enumerate(CASES)])
def test_values_and_gradients_are_the_references(case, chunk):
    with np.load(GOLDEN / "inputs.npz", allow_pickle=False) as arrays:
        given = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    leaves = {
        "image": given["student_image"],
        "text": given["student_text"],
        "syn_text": given["student_syn_text"],
        "logit_scale": given["logit_scale"],
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    actual = _golden_terms(case, leaves, given, chunk)
    assert {k: v.item() for k, v in actual.items()} == pytest.approx(case["losses"], rel=1e-6)
    sum(actual.values()).backward()
    norms = {name: 0.0 if x.grad is None else x.grad.norm().item() for name, x in leaves.items()}
    norms["logit_scale"] = leaves["logit_scale"].grad.item()  # signed, as the README says
    assert norms == pytest.approx(case["grad_norm"], rel=2e-6)


def _golden_terms(case, leaves, given, chunk):
    config, (image, text, synthetic, scale) = case["settings"], leaves.values()
    teachers = (config.get("teacher_dimension"), config.get("teacher_logit_scale"))
    teacher = given["teacher_image"], given["teacher_text"]
    if case["case"] == "clip":
        return {"contrastive_loss": contrastive_loss(image, text, scale, chunk=chunk)}
    if case["case"].startswith("siglip"):
        bias = config["logit_bias"]
        terms = {"contrastive_loss": siglip_loss(image, text, scale, bias, chunk=chunk)}
        if "distill" in case["case"]:
            shifts = config["teacher_logit_bias"]
            terms["distill_loss"] = siglip_distillation_loss(
                image, text, scale, bias, *teacher, *teachers, shifts, chunk=chunk
            )
        return terms
    captions, known = [text], [given["teacher_text"]]
    if "synthetic" in case["case"]:
        captions, known = [text, synthetic], [*known, given["teacher_syn_text"]]
    weights = tuple(config["weights"])
    return reinforced_loss(
        image, captions, teacher[0], known, scale, *teachers, weights=weights, chunk=chunk
    )


# The papers' formulas, written out


def _softmax(x):
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _by_hand(image, text, scale, bias, teacher):
    ends = np.cumsum((0, *DIMS))
    pairs = [tuple(x[:, a:b] for x in teacher) for a, b in itertools.pairwise(ends)]
    logits = scale * image @ text.T
    known = [s * i @ t.T for s, (i, t) in zip(SCALES, pairs, strict=True)]
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    contrastive, distillation, weighted = 0.0, 0.0, 0.0
    for turn in (lambda x: x, lambda x: x.T):
        log_student = np.log(_softmax(turn(logits)))
        affinities = [_softmax(turn(x)) for x in known]
        target = sum(affinities) / len(known)
        contrastive -= np.diag(log_student).mean() / 2
        distillation -= (target * log_student).sum(1).mean() / 2
        target = sum(w * x for w, x in zip(shares, affinities, strict=True))
        weighted -= (target * log_student).sum(1).mean() / 2
    probability = [1 / (1 + np.exp(-x - b)) for x, b in zip(known, BIASES, strict=True)]
    signs = {
        "siglip": 2 * np.eye(len(image)) - 1,
        "siglip distillation": 2 * sum(probability) / 2 - 1,
        "siglip weighted": 2 * sum(w * p for w, p in zip(shares, probability, strict=True)) - 1,
    }
    sigmoid = {
        name: np.log1p(np.exp(-sign * (logits + bias))).sum(1).mean()
        for name, sign in signs.items()
    }
    terms = {"contrastive": contrastive, "distillation": distillation, "weighted": weighted}
    return {**terms, **sigmoid}


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), dim=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_values_are_the_papers_formulas(rows, dim, seed):
    leaves, teacher = _inputs(rows, dim, seed)
    plain = [x.detach().numpy() for x in leaves]
    expected = _by_hand(*plain, [x.numpy() for x in teacher])
    actual = {name: value.item() for name, value in _every(*leaves, teacher)}
    shifted = [plain[0], np.roll(plain[1], 1, 0), *plain[2:]]
    other = _by_hand(*shifted, [teacher[0].numpy(), np.roll(teacher[1].numpy(), 1, 0)])
    expected["reinforced"] = sum(
        0.25 * x["contrastive"] + 0.75 * x["distillation"] for x in (expected, other)
    )
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("rows", "dim", "chunk"), [(1, 3, None), (4, 3, None), (5, 2, 2)])
def test_gradients_are_the_finite_differences(rows, dim, chunk):
    leaves, teacher = _inputs(rows, dim, seed=rows)

    def losses(*inputs):
        return tuple(value for _, value in _every(*inputs, teacher, chunk=chunk))

    assert torch.autograd.gradcheck(losses, leaves)


# Weights of the teachers


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 0.3), (0.1 + 0.2, 0.1 + 0.2)])
def test_equal_weights_are_the_mean_to_the_bit(weights):
    leaves, teacher = _inputs(5, seed=3)
    given = (*leaves[:3], *teacher, DIMS, SCALES)
    plain = distillation_loss(*given)
    assert torch.equal(distillation_loss(*given, teacher_weights=weights), plain)
    (gradient,) = torch.autograd.grad(plain, leaves[0])
    (same,) = torch.autograd.grad(distillation_loss(*given, teacher_weights=weights), leaves[0])
    assert torch.equal(gradient, same)


def test_weights_are_divided_by_their_sum_and_a_teacher_can_be_left_out():
    (image, text, scale, _), teacher = _inputs(5, seed=4)
    given = (image, text, scale, *teacher, DIMS, SCALES)
    whole = distillation_loss(*given, teacher_weights=(0.75, 0.25))
    torch.testing.assert_close(distillation_loss(*given, teacher_weights=(3, 1)), whole)
    first = [x[:, : DIMS[0]] for x in teacher]
    alone = distillation_loss(image, text, scale, *first, DIMS[:1], SCALES[:1])
    torch.testing.assert_close(distillation_loss(*given, teacher_weights=(2, 0)), alone)
    both = reinforced_loss(
        image, [text], teacher[0], [teacher[1]], scale, DIMS, SCALES, teacher_weights=(3, 1)
    )
    torch.testing.assert_close(both["distill_loss"], whole)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "give one weight per teacher"),
        ((0.0, 0.0), "one of them above 0"),
        ((-1.0, 2.0), "must be 0 or more"),
        ((float("nan"), 1.0), "must be 0 or more"),
        ((float("inf"), 1.0), "must be 0 or more"),
    ],
)
def test_weights_that_mean_nothing(weights, message):
    (image, text, scale, _), teacher = _inputs(3)
    with pytest.raises(ConfigError, match=message):
        distillation_loss(image, text, scale, *teacher, DIMS, SCALES, teacher_weights=weights)


# One row, equal rows, order


def test_one_row_is_certain():
    image, text = _unit(1, 4, 0), _unit(1, 4, 1)
    teacher = _teacher(1, 2), _teacher(1, 3)
    assert contrastive_loss(image, text, 50.0).item() == 0
    assert distillation_loss(image, text, 50.0, *teacher, DIMS, SCALES).item() == 0


def test_equal_rows_share_the_probability():
    # Two equal pairs beside an orthogonal one: at a high scale the first two guess between two.
    rows = torch.eye(2)[[0, 0, 1]]
    assert contrastive_loss(rows, rows, 100.0).item() == pytest.approx(2 / 3 * np.log(2))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
def test_the_order_of_pairs_does_not_matter(seed, order):
    leaves, teacher = _inputs(6, seed=seed)
    bias = leaves[3]
    turned = [x[list(order)] for x in leaves[:2]], [x[list(order)] for x in teacher]
    plain = dict(_every(*leaves, teacher))
    actual = dict(_every(*turned[0], leaves[2], bias, turned[1]))
    for name in plain.keys() - {"reinforced"}:  # there the second caption is a neighbour's
        torch.testing.assert_close(actual[name], plain[name])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_distillation_is_least_where_the_student_is_the_teacher(seed):
    image, text = _unit(6, 4, seed).requires_grad_(), _unit(6, 4, seed + 1).requires_grad_()
    teacher = image.detach(), text.detach()
    scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    least = distillation_loss(image, text, scale, *teacher, [4], [8.0])
    for gradient in torch.autograd.grad(least, (image, text, scale)):
        assert gradient.abs().max() < 1e-12
    other = distillation_loss(_unit(6, 4, seed + 2), text, scale, *teacher, [4], [8.0])
    assert other > least


# Chunks


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 10), chunk=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_chunks_change_neither_values_nor_gradients(rows, chunk, seed):
    expected = _values_and_gradients(rows, seed=seed)
    actual = _values_and_gradients(rows, seed=seed, chunk=chunk)
    assert actual.keys() == expected.keys()
    for name, tensors in expected.items():
        torch.testing.assert_close(actual[name], tensors, rtol=1e-10, atol=1e-12, msg=name)


class _Memory(TorchDispatchMode):
    """Sees every tensor that torch makes: the largest one, and the most bytes alive together."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _memory(rows, chunk, name):
    leaves, teacher = _inputs(rows)
    index = [actual for actual, _ in _every(*_inputs(2)[0], _inputs(2)[1])].index(name)
    calls = [
        lambda: contrastive_loss(*leaves[:3], chunk=chunk),
        lambda: distillation_loss(*leaves[:3], *teacher, DIMS, SCALES, chunk=chunk),
        lambda: sum(
            reinforced_loss(
                leaves[0], [leaves[1]] * 2, teacher[0], [teacher[1]] * 2, leaves[2], DIMS, SCALES,
                chunk=chunk,
            ).values()
        ),
        lambda: siglip_loss(*leaves, chunk=chunk),
        lambda: siglip_distillation_loss(*leaves, *teacher, DIMS, SCALES, BIASES, chunk=chunk),
    ]  # fmt: skip
    with _Memory() as memory:
        calls[index]().backward()
    return memory


@pytest.mark.parametrize(
    "name", ["contrastive", "distillation", "reinforced", "siglip", "siglip distillation"]
)
def test_memory_in_chunks_grows_with_the_rows_and_not_with_their_square(name):
    small, large = _memory(192, 8, name), _memory(384, 8, name)
    assert large.largest <= 8 * 384  # never a matrix of all rows and all columns
    assert large.peak < 2.1 * small.peak
    # The plain form does make one, and grows with the square: the measure would notice.
    plain_small, plain = _memory(192, None, name), _memory(384, None, name)
    assert plain.largest == 384 * 384
    assert plain.peak > 3.8 * plain_small.peak
    assert plain.peak > 8 * large.peak


# Texts that occur several times

_WORDS = [
    [5, 6],
    [7, 8],
    [5, 6],
    [5, 9],
    [7, 8],
    [5, 6],
    [6, 5],
]  # token ids


def _by_loops(kind, image, text, scale, bias, words):
    """Return UniCL's or SigLIP's loss of equal texts, one image and one text at a time."""
    rows = range(len(words))
    logits = [[scale * (image[i] * text[j]).sum() for j in rows] for i in rows]
    total = 0.0
    for i in rows:
        positives = [j for j in rows if words[j] == words[i]]
        if kind == "siglip":
            for j in rows:
                sign = 1.0 if j in positives else -1.0
                total = total + torch.log1p(torch.exp(-sign * (logits[i][j] + bias)))
            continue
        of_texts = torch.log(sum(torch.exp(logits[i][j]) for j in rows))
        of_images = torch.log(sum(torch.exp(logits[j][i]) for j in rows))
        for j in positives:
            total = total + (of_texts - logits[i][j]) / len(positives) / 2
            total = total + (of_images - logits[j][i]) / len(positives) / 2
    return total / len(words)


def _contrasts(leaves, ids, **options):
    """Return the losses that know of equal texts, and their gradients."""
    image, text, scale, bias = leaves
    reinforced = reinforced_loss(
        image, [text, text.roll(1, 0)], None, [], scale, (), (), weights=(1.0, 0.0),
        text_ids=None if ids is None else [ids, ids.roll(1, 0)], **options,
    )  # fmt: skip
    values = {
        "clip": contrastive_loss(image, text, scale, text_ids=ids, **options),
        "siglip": siglip_loss(image, text, scale, bias, text_ids=ids, **options),
        "reinforced": reinforced["contrastive_loss"],
    }
    return {
        name: (value.detach(), *torch.autograd.grad(value, leaves[: 3 + (name == "siglip")]))
        for name, value in values.items()
    }


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_equal_texts_are_positives_of_each_other(chunk):
    leaves, _ = _inputs(len(_WORDS))
    actual = _contrasts(leaves, torch.tensor(_WORDS), chunk=chunk)
    image, text, *others = leaves
    turned = _WORDS[-1:] + _WORDS[:-1]
    sums = {name: _by_loops(name, image, text, *others, _WORDS) for name in ("clip", "siglip")}
    second = _by_loops("clip", image, text.roll(1, 0), *others, turned)
    sums["reinforced"] = sums["clip"] + second
    for name, value in sums.items():
        leaves_of = leaves[: 3 + (name == "siglip")]
        expected = (value.detach(), *torch.autograd.grad(value, leaves_of, retain_graph=True))
        torch.testing.assert_close(actual[name], expected, rtol=1e-10, atol=1e-12, msg=name)
    plain = _contrasts(leaves, None, chunk=chunk)
    assert all(abs(plain[name][0] - actual[name][0]) > 0.01 for name in sums)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 8), seed=st.integers(0, 10**6), chunk=st.sampled_from([None, 3]),
    matrix=st.booleans(),
)  # fmt: skip
def test_with_distinct_texts_positives_change_nothing(rows, seed, chunk, matrix):
    leaves, _ = _inputs(rows, seed=seed)
    ids = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)) - 3
    ids = torch.stack([torch.ones_like(ids), ids], 1) if matrix else ids
    actual, expected = (_contrasts(leaves, x, chunk=chunk) for x in (ids, None))
    for name, tensors in expected.items():
        torch.testing.assert_close(actual[name], tensors, rtol=1e-12, atol=1e-14, msg=name)


def test_text_ids_that_differ_late_or_by_much_are_different_texts():
    # A hash or a float would confuse them.
    leaves, _ = _inputs(4)
    ids = torch.tensor([[2**53, 0], [2**53 + 1, 0], [-(2**62), 1], [2**62, 1]])
    torch.testing.assert_close(_contrasts(leaves, ids), _contrasts(leaves, None))


def test_memory_in_chunks_holds_with_positives():
    leaves, _ = _inputs(384)
    with _Memory() as memory:
        contrastive_loss(*leaves[:3], chunk=8, text_ids=torch.arange(384) % 80).backward()
    assert memory.largest <= 8 * 384


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3).long(), r"shape \(3,\); 4 texts need"),
        (torch.zeros(4, 0).long(), r"shape \(4, 0\)"),
        (torch.zeros(4, 2, 2).long(), r"shape \(4, 2, 2\)"),
        (torch.zeros(4), "must be integers, not torch.float32"),
        (torch.zeros(4).bool(), "must be integers"),
    ],
)
def test_text_ids_that_do_not_fit_are_refused(ids, message):
    with pytest.raises(ConfigError, match=message):
        contrastive_loss(_SQUARE, _SQUARE, 1.0, text_ids=ids)
    with pytest.raises(ConfigError, match=message):
        siglip_loss(_SQUARE, _SQUARE, 1.0, 0.0, text_ids=ids)


# Precision


def test_half_precision_embeddings_are_computed_in_float32():
    leaves, teacher = _inputs(6)
    image, text = (x.detach().bfloat16() for x in leaves[:2])
    teacher = [x.bfloat16() for x in teacher]
    expected = dict(_every(image.float(), text.float(), *leaves[2:], [x.float() for x in teacher]))
    with torch.autocast("cpu", torch.bfloat16):
        actual = dict(_every(image, text, *leaves[2:], teacher))
        parts = dict(_every(image, text, *leaves[2:], teacher, chunk=2))
    for name, value in expected.items():
        assert value.dtype == torch.float32
        assert torch.equal(actual[name], value), name
        torch.testing.assert_close(parts[name], value, msg=name)


def test_gradients_under_autocast_come_back_in_the_embeddings_dtype():
    leaves = [_unit(6, 4, seed, torch.bfloat16).requires_grad_() for seed in (0, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(*leaves, 20.0, chunk=4)
    loss.backward()
    exact = [x.detach().float().requires_grad_() for x in leaves]
    contrastive_loss(*exact, 20.0).backward()
    for half, single in zip(leaves, exact, strict=True):
        assert half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad, single.grad.bfloat16(), rtol=0.01, atol=1e-3)


def test_large_logits_do_not_overflow():
    image = _unit(4, 4, 0, torch.float32)
    for _, value in _every(image, -image, 1e4, 0.0, (_teacher(4, 2), _teacher(4, 3))):
        assert value.isfinite()


def test_no_gradient_reaches_the_teachers():
    leaves, teacher = _inputs(4)
    teacher = [x.requires_grad_() for x in teacher]
    for _, value in _every(*leaves, teacher):
        value.backward()
    assert all(x.grad is None for x in teacher)
    assert leaves[0].grad is not None


# Weights and captions


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def _weighted(weights):
    leaves, teacher = _inputs(6)
    with _Names() as seen:
        terms = reinforced_loss(
            leaves[0],
            [leaves[1]],
            teacher[0],
            [teacher[1]],
            leaves[2],
            DIMS,
            SCALES,
            weights=weights,
        )
    return terms, seen.names


def test_a_term_of_weight_zero_is_zero_and_not_computed():
    both, names = _weighted((0.5, 2.0))
    assert {"mm", "_softmax", "nll_loss_forward"} <= set(names)
    only, names = _weighted((0.0, 2.0))
    assert only["contrastive_loss"].item() == 0.0
    assert torch.equal(only["distill_loss"], both["distill_loss"])
    assert "nll_loss_forward" not in names
    only, names = _weighted((0.5, 0.0))
    assert only["distill_loss"].item() == 0.0
    assert torch.equal(only["contrastive_loss"], both["contrastive_loss"])
    assert "_softmax" not in names
    assert names.count("mm") == 1


def test_plain_training_needs_no_teacher():
    leaves, _ = _inputs(6)
    terms = reinforced_loss(leaves[0], [leaves[1]], None, [], leaves[2], (), (), weights=(1.0, 0.0))
    torch.testing.assert_close(terms["contrastive_loss"], contrastive_loss(*leaves[:3]))
    sum(terms.values()).backward()
    assert leaves[0].grad.abs().sum() > 0


def test_the_terms_of_captions_are_summed():
    leaves, teacher = _inputs(6)
    image, text, scale, _ = leaves
    terms = reinforced_loss(
        image, [text] * 3, teacher[0], [teacher[1]] * 3, scale, DIMS, SCALES, weights=(0.5, 2.0)
    )
    torch.testing.assert_close(
        terms["contrastive_loss"], 1.5 * contrastive_loss(image, text, scale)
    )
    alone = distillation_loss(image, text, scale, *teacher, DIMS, SCALES)
    torch.testing.assert_close(terms["distill_loss"], 6 * alone)


def test_each_term_has_its_own_captions():
    leaves, teacher = _inputs(6)
    image, text, scale, _ = leaves
    other = text.roll(2, 0)
    terms = reinforced_loss(
        image, [text, other], teacher[0], [None, teacher[1]], scale, DIMS, SCALES,
        weights=(0.5, 2.0), contrasted=[True, False],
    )  # fmt: skip
    contrastive = contrastive_loss(image, text, scale)
    distillation = distillation_loss(image, other, scale, *teacher, DIMS, SCALES)
    expected = {"contrastive_loss": 0.5 * contrastive, "distill_loss": 2.0 * distillation}
    torch.testing.assert_close(terms, expected, rtol=1e-12, atol=0)
    for name, value in terms.items():
        torch.testing.assert_close(
            torch.autograd.grad(value, leaves[:3], retain_graph=True),
            torch.autograd.grad(expected[name], leaves[:3], retain_graph=True),
        )


# Captioning


def test_captioning_is_the_mean_over_the_labels_that_are_no_padding():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[4, 2, 0], [1, 0, 0]])
    log = torch.log_softmax(logits.detach().double(), -1)
    expected = -(log[0, 0, 4] + log[0, 1, 2] + log[1, 0, 1]) / 3
    loss = captioning_loss(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    counted = logits.grad.abs().sum(-1) > 0
    assert counted.tolist() == [[True, True, False], [True, False, False]]
    # Another id for padding; 0 is then a word like others.
    other = captioning_loss(logits, labels, pad_id=2).item()
    rest = log[0, 0, 4] + log[0, 2, 0] + log[1, 0, 1] + log[1, 1, 0] + log[1, 2, 0]
    assert other == pytest.approx(-rest.item() / 5, rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3).long(), "expected"),
        (torch.zeros(2, 3, 5), torch.ones(2, 4).long(), "expected"),
        (torch.zeros(2, 3, 5), torch.ones(2, 3), "must be integers"),
        (torch.zeros(2, 3, 5), torch.full((2, 3), 5), "6 labels are outside .* of 5"),
        (torch.zeros(2, 3, 5), torch.full((2, 3), -1), "outside"),
        (torch.zeros(2, 3, 5), torch.zeros(2, 3).long(), "all labels are padding"),
    ],
)
def test_captioning_refuses_what_does_not_fit(logits, labels, message):
    with pytest.raises(ConfigError, match=message):
        captioning_loss(logits, labels)


# Bad input

_SQUARE = torch.ones(4, 3)
_KNOWN = torch.ones(4, 8)


@pytest.mark.parametrize(
    ("image", "text", "scale", "options", "message"),
    [
        (_SQUARE, torch.ones(5, 3), 1.0, {}, r"\(4, 3\), \(5, 3\)"),
        (_SQUARE, torch.ones(4, 2), 1.0, {}, r"\(4, 3\), \(4, 2\)"),
        (torch.ones(3), torch.ones(3), 1.0, {}, "rows, dimension"),
        (torch.ones(0, 3), torch.ones(0, 3), 1.0, {}, "at least one row"),
        (_SQUARE.long(), _SQUARE.long(), 1.0, {}, "floating point"),
        (_SQUARE, _SQUARE, torch.ones(2), {}, "logit_scale must be one number"),
        (_SQUARE, _SQUARE, 1.0, {"chunk": 0}, "chunk must be"),
        (_SQUARE, _SQUARE, 1.0, {"chunk": 1.5}, "chunk must be"),
        (_SQUARE, _SQUARE, 1.0, {"chunk": True}, "chunk must be"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(image, text, scale, options, message):
    with pytest.raises(ConfigError, match=message):
        contrastive_loss(image, text, scale, **options)
    with pytest.raises(ConfigError, match=message):
        siglip_loss(image, text, scale, 0.0, **options)


@pytest.mark.parametrize(
    ("teacher_image", "teacher_text", "dims", "scales", "message"),
    [
        (_KNOWN[:3], _KNOWN, DIMS, SCALES, r"\(3, 8\)"),
        (_KNOWN, _KNOWN[:, :7], DIMS, SCALES, r"\(4, 7\)"),
        (_KNOWN, _KNOWN, (3, 4), SCALES, r"\(4, 7\)"),
        (_KNOWN.long(), _KNOWN, DIMS, SCALES, "floating point"),
        (_KNOWN, _KNOWN, DIMS, (1.0,), "1 scales"),
        (_KNOWN, _KNOWN, (), (), "teacher_dims"),
        (_KNOWN, _KNOWN, (0, 8), SCALES, "teacher_dims"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teacher_image, teacher_text, dims, scales, message):
    with pytest.raises(ConfigError, match=message):
        distillation_loss(_SQUARE, _SQUARE, 1.0, teacher_image, teacher_text, dims, scales)


def test_a_bias_per_teacher_is_required():
    with pytest.raises(ConfigError, match="1 biases"):
        siglip_distillation_loss(
            _SQUARE, _SQUARE, 1.0, 0.0, _KNOWN, _KNOWN, DIMS, SCALES, (1.0,)
        )  # fmt: skip
    with pytest.raises(ConfigError, match="logit_bias must be one number"):
        siglip_loss(_SQUARE, _SQUARE, 1.0, torch.ones(2))


@pytest.mark.parametrize(
    ("captions", "known", "weights", "message"),
    [
        ([], [], (1.0, 1.0), "no caption"),
        ([_SQUARE] * 2, [_KNOWN], (1.0, 1.0), "2 captions have 1 teacher embeddings"),
        ([_SQUARE], [_KNOWN], (1.0, -1.0), "weights"),
        ([_SQUARE], [_KNOWN], (1.0, float("nan")), "weights"),
        ([_SQUARE], [_KNOWN], (1.0,), "weights"),
        ([_SQUARE, _SQUARE[:2]], [_KNOWN] * 2, (1.0, 1.0), r"\(2, 3\)"),
    ],
)
def test_captions_and_weights_that_do_not_fit_are_refused(captions, known, weights, message):
    with pytest.raises(ConfigError, match=message):
        reinforced_loss(_SQUARE, captions, _KNOWN, known, 1.0, DIMS, SCALES, weights=weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrasted": [True]}, r"contrasted is \[True\].* each of the 2 captions"),
        ({"contrasted": [False, False]}, "at least one of them true"),
        ({"text_ids": [torch.zeros(4).long()]}, "2 captions have 1 text_ids"),
        ({"teacher_captions": [None, None]}, "no caption has a teacher embedding"),
    ],
)
def test_choices_of_captions_that_do_not_fit_are_refused(options, message):
    known = options.pop("teacher_captions", [_KNOWN] * 2)
    with pytest.raises(ConfigError, match=message):
        reinforced_loss(_SQUARE, [_SQUARE] * 2, _KNOWN, known, 1.0, DIMS, SCALES, **options)


def test_missing_teachers_are_named():
    with pytest.raises(ConfigError, match="no image embedding"):
        reinforced_loss(_SQUARE, [_SQUARE], None, [_KNOWN], 1.0, DIMS, SCALES)
