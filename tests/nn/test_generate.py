"""Captions: with kept keys and values as without, sampled as the distribution says, beams exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pocketclip.caption_settings import Settings
from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.nn.build import random_model
from pocketclip.nn.cpu_optimize import compile_for_cpu
from pocketclip.nn.sampling import draw_uniforms, sample_ids
from tests.golden_weights import randomise


def _model(vocabulary=40, **overrides):
    overrides = {"text.vocab_size": vocabulary, "text.embedding_buckets": None, **overrides}
    model = random_model("coca-tiny", seed=0, **overrides)
    randomise(model)
    return model


@pytest.fixture(scope="module")
def model():
    return _model()


def _pixels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Images of unlike brightness, so that their captions are unlike.
    shift = torch.randn(count, 3, 1, 1, generator=generator)
    return shift + torch.randn(count, 3, 64, 64, generator=generator)


def _logits(model, pixels, ids):
    """What follows `ids`, by the whole forward pass."""
    with torch.inference_mode():
        logits = model(pixels, torch.tensor(ids)).logits[:, -1]
    return logits.clone().double()


def _greedy(model, pixels, *, max_length, min_length, penalty=1.0):
    """Greedy decoding without a cache."""
    start, end = model.config.text.vocab_size - 2, model.config.text.vocab_size - 1
    ids = [start]
    while len(ids) < max_length - 1:
        logits = _logits(model, pixels, [ids])[0]
        for i in set(ids):
            logits[i] = logits[i] * penalty if logits[i] < 0 else logits[i] / penalty
        logits[[0, start]] = -torch.inf
        if len(ids) < min_length:
            logits[end] = -torch.inf
        chosen = int(logits.argmax())
        if chosen == end:
            break
        ids.append(chosen)
    return ids[1:]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_is_greedy_without_a_cache(model, penalty):
    pixels = _pixels(5)
    found = model.generate(
        pixels, method="greedy", max_length=30, min_length=4, repetition_penalty=penalty
    )
    wanted = [
        _greedy(model, pixels[i : i + 1], max_length=30, min_length=4, penalty=penalty)
        for i in range(5)
    ]
    assert found == wanted
    assert len({tuple(ids) for ids in found}) > 1  # or the images did not matter


@pytest.mark.parametrize("context", [76, 255])
def test_kept_keys_and_values_give_the_logits_of_the_whole_pass(context):
    from pocketclip.nn import generate

    model = _model(**{"text.context_length": context})
    pixels = _pixels(2)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 38, (6, context), generator=generator)
    ids[:, 0] = 38
    settings = Settings(max_length=context + 1)
    with torch.inference_mode():
        state = generate._DecodingState(model, model.image_tokens(pixels), 3, settings)
        steps = []
        for place in range(context):
            steps.append(state.logits())
            if place + 1 < context:
                state.append(ids[:, place + 1])
            if place == 20:  # other rows, in another order
                rows = torch.tensor([1, 0, 4, 5])
                ids, steps = ids[rows], [step[rows] for step in steps]
                state.select(rows, torch.tensor([0, 1]))
        wanted = model(pixels.repeat_interleave(2, 0), ids).logits
    torch.testing.assert_close(torch.stack(steps, 1), wanted, rtol=1e-5, atol=1e-5)


def test_a_caption_depends_on_its_image_and_seed_only(model):
    pixels, seeds = _pixels(4), list(range(100, 112))
    together = model.generate(pixels, captions_per_image=3, seeds=seeds, max_length=40)
    assert len({tuple(ids) for ids in together}) == 12
    assert len({len(ids) for ids in together}) > 3  # so that rows were taken out on the way
    for image, place in itertools.product(range(4), range(3)):
        row = 3 * image + place
        alone = model.generate(pixels[image : image + 1], seeds=[seeds[row]], max_length=40)
        assert alone == [together[row]]
    tokens = model.image_tokens(pixels)
    again = model.generate(image_tokens=tokens, captions_per_image=3, seeds=seeds, max_length=40)
    assert again == together
    assert model.generate(pixels[:1], seeds=[0]) == model.generate(pixels[:1])


@pytest.mark.parametrize("method", ["nucleus", "top_k", "greedy", "beam"])
def test_lengths_and_forbidden_ids(model, method):
    pixels = _pixels(3)
    for least, most in ((1, 3), (5, 12), (11, 12), (1, 77), (76, 77)):
        found = model.generate(pixels, method=method, min_length=least, max_length=most)
        for ids in found:
            assert least - 1 <= len(ids) <= most - 2
            assert all(0 < i < 38 for i in ids)


def test_length_one_may_be_empty():
    model = _model()
    with torch.no_grad():  # the end, always
        model.decoder.head.weight.zero_()
        model.decoder.norm.bias.fill_(1.0)
        model.decoder.head.weight[39] = 1.0
    for method in ("nucleus", "greedy", "beam"):
        assert model.generate(_pixels(1), method=method, min_length=1) == [[]]
        assert len(model.generate(_pixels(1), method=method, min_length=3, top_p=0.1)[0]) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = _model().to(dtype)
    for method in ("nucleus", "beam"):
        found = model.generate(_pixels(2).numpy(), method=method, max_length=12)
        assert len(found) == 2
        assert all(4 <= len(ids) <= 10 for ids in found)


def test_the_mode_is_left_as_it_was_and_no_gradient_remains():
    model = _model().train()
    model.generate(_pixels(1), max_length=8)
    assert model.training
    model.eval().generate(_pixels(1), max_length=8)
    assert not model.training


def test_wrong_settings_are_reported(model):
    pixels = _pixels(2)
    for settings, message in (
        ({"method": "best"}, "method is one of nucleus, top_k, greedy, beam, not 'best'"),
        ({"max_length": 78}, "max_length is at most 77"),
        ({"max_length": 2, "min_length": 0}, "at least 3"),
        ({"min_length": 77}, "below max_length"),
        ({"temperature": 0.0}, "greedy"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"beams": 0, "method": "beam"}, "beams"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"length_penalty": -1.0}, "length_penalty"),
        ({"topp": 0.5}, "unknown setting 'topp'"),
        ({"method": "greedy", "captions_per_image": 2}, "captions_per_image cannot be 2"),
        ({"method": "beam", "captions_per_image": 7}, r"1 to beams \(6\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.generate(pixels, **settings)
    with pytest.raises(ValueError, match="3 seeds for 2 captions"):
        model.generate(pixels, seeds=[1, 2, 3])
    for images in ((None, None), (pixels, pixels)):
        with pytest.raises(ValueError, match="give either"):
            model.generate(images[0], image_tokens=images[1])
    with pytest.raises(ConfigError, match="only embeds"):
        compile_for_cpu(model).generate(pixels)


def test_damaged_weights_are_reported():
    model = _model()
    with torch.no_grad():
        model.decoder.norm.weight.fill_(torch.nan)
    for method in ("nucleus", "top_k", "greedy", "beam"):
        with pytest.raises(PocketclipError, match="is NaN"):
            model.generate(_pixels(1), method=method)


def test_no_images(model):
    for method in ("nucleus", "beam"):
        assert model.generate(image_tokens=torch.zeros(0, 16, 128), method=method) == []


# ---- sampling


def _draw(probabilities, count=20_000, seed=0, **cut):
    logits = torch.tensor(probabilities).log().float().expand(count, -1)
    draws = torch.from_numpy(draw_uniforms([seed], count)[0])
    ids = sample_ids(logits, draws, **cut)
    return np.bincount(ids.numpy(), minlength=len(probabilities)) / count


def test_nucleus_keeps_the_fewest_that_reach_top_p_and_their_proportions():
    probabilities = [0.05, 0.4, 0.1, 0.25, 0.2]
    for top_p, kept in ((0.39, [1]), (0.5, [1, 3]), (0.8, [1, 3, 4]), (0.9, [1, 2, 3, 4])):
        wanted = np.array([p if i in kept else 0 for i, p in enumerate(probabilities)])
        found = _draw(probabilities, top_p=top_p)
        assert set(np.flatnonzero(found)) == set(kept)
        np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.012)


def test_nucleus_at_its_ends():
    probabilities = [0.05, 0.4, 0.1, 0.25, 0.2]
    np.testing.assert_allclose(_draw(probabilities, top_p=1.0), probabilities, atol=0.012)
    assert _draw(probabilities, top_p=1e-12)[1] == 1.0
    # All alike: as many as it takes, those of the lowest ids.
    found = _draw([0.1] * 10, top_p=0.35)
    assert set(np.flatnonzero(found)) == {0, 1, 2, 3}
    assert set(np.flatnonzero(_draw([0.5, 0.0, 0.5, 0.0], top_p=1.0))) == {0, 2}
    assert set(np.flatnonzero(_draw([0.5, 0.0, 0.5, 0.0], top_p=1 - 1e-12))) == {0, 2}


def test_top_k():
    found = _draw([0.05, 0.4, 0.1, 0.25, 0.2], top_k=2)
    np.testing.assert_allclose(found, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=0.012)
    assert set(np.flatnonzero(_draw([0.2] * 5, top_k=3))) == {0, 1, 2}
    everything = _draw([0.3, 0.0, 0.7], top_k=50)
    np.testing.assert_allclose(everything, [0.3, 0, 0.7], atol=0.012)
    assert _draw([0.2, 0.5, 0.3], top_k=1)[1] == 1.0


def test_temperature_sharpens():
    model = _model()
    flat, sharp = (
        {tuple(ids) for ids in model.generate(
            _pixels(1), captions_per_image=40, temperature=t, top_p=1.0, max_length=6)}
        for t in (3.0, 0.02)
    )  # fmt: skip
    assert len(sharp) < 5 < len(flat)
    assert sharp == {tuple(model.generate(_pixels(1), method="greedy", max_length=6)[0])}


def test_the_ends_of_the_unit_interval():
    for cut in ({"top_p": 0.7}, {"top_k": 2}):
        logits = torch.tensor([[-torch.inf, 1.0, 0.5, -1.0, -torch.inf]] * 2)
        draws = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
        assert sample_ids(logits, draws, **cut).tolist() == [1, 2]


def test_draws_are_those_of_numpys_generator():
    # A change of these would change every seeded caption.
    assert draw_uniforms([7, 8], 4).tolist() == [
        np.random.default_rng(seed).random(4).tolist() for seed in (7, 8)
    ]


# ---- beams


def _texts(model, pixels, *, max_length, min_length, length_penalty):
    """Every text that there is with its score, by the whole forward pass."""
    vocabulary = model.config.text.vocab_size
    start, end = vocabulary - 2, vocabulary - 1
    done, live = [], [((start,), 0.0)]
    while live:
        logits = _logits(model, pixels.expand(len(live), -1, -1, -1), [ids for ids, _ in live])
        following = logits.log_softmax(-1).tolist()
        longer = []
        for (ids, score), row in zip(live, following, strict=True):
            if len(ids) >= min_length:
                done.append(((score + row[end]) / len(ids) ** length_penalty, ids[1:]))
            for i in range(1, start):
                longer.append(((*ids, i), score + row[i]))
        live = longer
        if len(live[0][0]) == max_length - 1:
            done += [(s / (max_length - 2) ** length_penalty, ids[1:]) for ids, s in live]
            live = []
    return sorted(done, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("min_length", [1, 3])
def test_with_beams_enough_the_best_texts_of_all_are_found(min_length, length_penalty):
    model = _model(6)  # padding, three words, start and end
    pixels = _pixels(3)
    found = model.generate(
        pixels, method="beam", beams=27, captions_per_image=4, max_length=6,
        min_length=min_length, length_penalty=length_penalty,
    )  # fmt: skip
    wanted = []
    for image in pixels:
        texts = _texts(
            model, image[None], max_length=6, min_length=min_length, length_penalty=length_penalty
        )
        assert len(texts) > 100 - 13 * (min_length - 1)
        wanted += [list(ids) for _, ids in texts[:4]]
    assert found == wanted


def _plain_beam(model, pixels, beams, max_length, min_length):
    """Beam search with lists and the whole forward pass, to the end of the length."""
    vocabulary = model.config.text.vocab_size
    start, end = vocabulary - 2, vocabulary - 1
    live, done = [((start,), 0.0)], []
    while len(live[0][0]) < max_length - 1:
        longer = []
        for ids, score in live:
            row = _logits(model, pixels, [ids])[0].log_softmax(-1).tolist()
            if len(ids) >= min_length:
                done.append(((score + row[end]) / len(ids), ids[1:]))
            longer += [((*ids, i), score + row[i]) for i in range(1, start)]
        live = sorted(longer, key=lambda text: -text[1])[:beams]
    done += [(score / (max_length - 2), ids[1:]) for ids, score in live]
    return list(max(done)[1])


@pytest.mark.parametrize("beams", [1, 3])
def test_few_beams_are_those_of_plain_beam_search(model, beams):
    pixels = _pixels(4)
    found = model.generate(pixels, method="beam", beams=beams, max_length=14, min_length=3)
    assert found == [_plain_beam(model, image[None], beams, 14, 3) for image in pixels]


def test_more_beams_than_words():
    model = _model(6)
    texts = model.generate(
        _pixels(1), method="beam", beams=50, captions_per_image=50, min_length=4, max_length=5
    )
    assert len({tuple(ids) for ids in texts[:27]}) == 27  # all that there are: three words, thrice
    assert texts[27:] == [texts[26]] * 23
