from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from pocketclip.quickstart.captions import (
    NOISE,
    alt_text,
    class_name,
    full_caption,
    names_in,
    right_caption,
)
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import BACKGROUNDS, COLOURS, SHAPES, UNSEEN, Scene, draw_scene

SPLITS = ("train", "test", "unseen", "teaching")
MANY = 3000
DRAWN = [670, 111, 511, 356, 704, 479]
LITERAL = {
    "train": ("a white circle, a yellow ring and an orange star on wood", "bdc1dcfe918a2b64"),
    "test": ("a red star to the left of a green moon on wood", "3ac904def8445667"),
    "unseen": ("a brown heart on the left on stripes", "afa9776beca158e6"),
    "teaching": ("a blue heart in the bottom right corner on grass", "8f2568a73e862d53"),
}


def test_chance_is_what_it_was():
    rng = ReplayRNG(1, 2, 3)
    drawn = [rng.integers(1000) for _ in range(6)]
    assert drawn == [int(u * 1000) for u in _uniforms(6)]
    assert drawn == DRAWN
    assert ReplayRNG(1, 2, 3).integers(1000) == drawn[0]
    assert ReplayRNG(1, 2, 4).integers(1000) != drawn[0]


def _uniforms(count):
    bits = np.random.PCG64(np.random.SeedSequence((1, 2, 3)))
    return [(int(bits.random_raw()) >> 11) / 2**53 for _ in range(count)]


@pytest.mark.parametrize(("number", "split"), list(enumerate(SPLITS)))
def test_scenes_and_their_pixels_are_what_they_were(number, split):
    scene = draw_scene(split, seed=7, index=number + 3)
    pixels = render(scene, side=32, rng=ReplayRNG(7, number))
    assert (full_caption(scene), hashlib.sha256(pixels.tobytes()).hexdigest()[:16]) == LITERAL[
        split
    ]


@pytest.mark.parametrize("split", ["train", "test", "teaching"])
def test_unseen_pairs_are_in_no_other_split(split):
    seen = {
        (thing.colour, thing.shape)
        for index in range(MANY)
        for thing in draw_scene(split, seed=5, index=index).things
    }
    assert not seen & UNSEEN
    assert len(seen) == len(COLOURS) * len(SHAPES) - len(UNSEEN)  # and all others are


def test_unseen_pairs_are_spread_evenly():
    assert len(UNSEEN) == 24
    assert set(Counter(shape for _, shape in UNSEEN).values()) == {2}
    assert set(Counter(colour for colour, _ in UNSEEN).values()) <= {2, 3}
    drawn = [draw_scene("unseen", seed=0, index=i).things for i in range(48)]
    assert Counter((t.colour, t.shape) for (t,) in drawn) == dict.fromkeys(UNSEEN, 2)


def test_texts_do_not_name_unseen_pairs_either():
    named = set()
    for index in range(MANY):
        named |= names_in(alt_text("train", seed=0, index=index)[0])
        named |= names_in(right_caption("teaching", seed=0, index=index))
    assert len(named) == 96
    assert not named & {f"{colour} {shape}" for colour, shape in UNSEEN}


def test_alt_texts_are_as_bad_as_they_should_be():
    drawn = [alt_text("train", seed=3, index=index) for index in range(MANY)]
    counts = Counter(kind for _, kind in drawn)
    for kind, share in NOISE.items():
        deviation = (share * (1 - share) / MANY) ** 0.5
        assert abs(counts[kind] / MANY - share) < 4 * deviation, kind
    for index, (text, kind) in enumerate(drawn):
        scene = draw_scene("train", seed=3, index=index)
        assert (text == "") == (kind == "missing")
        if kind == "right":
            assert names_in(text) == set(scene.names)
        elif kind == "wrong":
            assert names_in(text)
            assert not names_in(text) & set(scene.names)
        else:
            assert not names_in(text)


def test_right_captions_tell_the_truth():
    for index in range(500):
        scene = draw_scene("teaching", seed=1, index=index)
        texts = {right_caption("teaching", seed=1, index=index, draw=k) for k in range(6)}
        assert len(texts) > 1
        for text in [*texts, full_caption(scene)]:
            assert names_in(text) == set(scene.names), text
            if scene.relation and any(word in text for word in ("left", "right", "above", "below")):
                first, second = (text.index(name) for name in scene.names)
                forwards = "to the left of" in text or "above" in text
                assert (first < second) == forwards, text


def test_things_are_where_the_scene_says():
    for index in range(300):
        scene = draw_scene("train", seed=2, index=index)
        if scene.relation == "left":
            assert scene.things[0].x < scene.things[1].x - 0.3
        if scene.relation == "above":
            assert scene.things[0].y < scene.things[1].y - 0.3
        for thing in scene.things:
            assert thing.x - thing.radius * 0.8 > 0
            assert thing.x + thing.radius * 0.8 < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_shows_on_every_background(shape):
    for background in BACKGROUNDS:
        thing = draw_scene("unseen", seed=0, index=0).things[0]
        red = type(thing)(shape=shape, colour="red", x=0.5, y=0.5, radius=0.3, angle=0.0)
        bare = Scene(kind="one", things=(), background=background)
        full = Scene(kind="one", things=(red,), background=background)
        ground = render(bare, side=48, rng=ReplayRNG(1)).astype(int)
        image = render(full, side=48, rng=ReplayRNG(1)).astype(int)
        inside = np.abs(image - ground).max(2) > 40
        # A ring or a moon covers a fifth of its square, a square two thirds.
        assert 0.15 * 29**2 < inside.sum() < 29**2
        assert not inside[:5].any()
        assert not inside[:, :5].any()


def test_class_names_have_their_article():
    assert class_name("orange", "star") == "an orange star"
    assert class_name("blue", "fish") == "a blue fish"


def test_names_are_found_in_the_plural():
    assert names_in("three red crosses and two blue fish") == {"red cross", "blue fish"}
    assert names_in("a redstar, greenish moon") == set()
