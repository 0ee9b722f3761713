"""Texts about a scene: correct captions, and alt-texts of the quality found on the web.

A correct caption describes all or a part of the scene. An alt-text is of one of the kinds in
`NOISE`: correct, partial, vague, a file name, about another image, or missing.
"""

from __future__ import annotations

import re
from typing import Literal

from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    Split,
    draw_scene,
)

Noise = Literal["right", "partial", "vague", "useless", "wrong", "missing"]

NOISE: dict[Noise, float] = {
    "right": 0.15,
    "partial": 0.30,
    "vague": 0.15,
    "useless": 0.15,
    "wrong": 0.20,
    "missing": 0.05,
}
"""Share of each kind of alt-text: our guess at a bad web page, not a measurement."""

TEMPLATES = ("{}", "a picture of {}", "a drawing of {}")
"""Prompts for zero-shot classification; {} stands for the result of `class_name`."""

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PREFIXES = ("", "", "", "a picture of ", "a drawing of ", "an image of ")
_VAGUE = (
    *("nice picture", "my drawing", "clip art, free download", "cute wallpaper", "image"),
    *("best design ever", "click to enlarge", "made this today", "stock illustration"),
    *("homework", "idea for the kids room", "new in our shop", "photo of the day"),
)
_ALT, _RIGHT, _OTHER = 11, 12, 13  # random streams


def _article(text: str) -> str:
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def class_name(colour: str, shape: str) -> str:
    """Return the class name of a colour and shape pair."""
    return _article(f"{colour} {shape}")


def names_in(text: str) -> set[str]:
    """Return the objects that a caption names, as colour and singular shape."""
    return {f"{colour} {_SINGULAR[shape]}" for colour, shape in _NAMES.findall(text)}


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape if shape == "fish" else f"{shape}es" if shape == "cross" else f"{shape}s"


_SINGULAR = {word: shape for shape in SHAPES for word in (shape, plural(shape))}
_NAMES = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(sorted(_SINGULAR, reverse=True))})\b")


def full_caption(scene: Scene) -> str:
    """Return the complete description of a scene, in one fixed wording."""
    return f"{_subject(scene, everything=True)} {BACKGROUNDS[scene.background]}"


def right_caption(split: Split, *, seed: int, index: int, draw: int = 0) -> str:
    """Return a correct caption; `draw` selects one of many."""
    scene = draw_scene(split, seed=seed, index=index)
    return _right(scene, ReplayRNG(seed, _RIGHT, index, draw))


def _right(scene: Scene, rng: ReplayRNG) -> str:
    subject = _subject(scene, everything=rng.bernoulli(0.6), turn=rng.bernoulli(0.5))
    behind = f" {BACKGROUNDS[scene.background]}" if rng.bernoulli(0.5) else ""
    return f"{rng.choice(_PREFIXES)}{subject}{behind}"


def _subject(scene: Scene, *, everything: bool, turn: bool = False) -> str:
    """Return the objects in a scene; `everything` adds position and size.

    With `turn`, the relation of two objects is stated from the other side.
    """
    names = [_article(name) for name in scene.names]
    if scene.kind == "several":
        first = scene.things[0]
        return f"{_NUMBERS[len(scene.things)]} {first.colour} {plural(first.shape)}"
    if scene.kind == "three":
        return f"{names[0]}, {names[1]} and {names[2]}"
    if scene.kind == "two":
        if not everything:
            return " and ".join(reversed(names) if turn else names)
        relation, subject = {
            ("left", False): ("to the left of", 0),
            ("left", True): ("to the right of", 1),
            ("above", False): ("above", 0),
            ("above", True): ("below", 1),
        }[scene.relation or "left", turn]
        return f"{names[subject]} {relation} {names[1 - subject]}"
    if not everything:
        return names[0]
    name = f"{scene.size} {scene.names[0]}" if scene.size else scene.names[0]
    return f"{_article(name)} {_where(scene.place or 'middle')}"


def _where(place: str) -> str:
    preposition = {"left": "on", "right": "on", "top": "at", "bottom": "at"}.get(place, "in")
    return f"{preposition} the {place}"


def alt_text(split: Split, *, seed: int, index: int) -> tuple[str, Noise]:
    """Return the alt-text of a scene and its kind; a missing one is empty."""
    rng = ReplayRNG(seed, _ALT, index)
    kind = rng.weighted_choice(NOISE)
    if kind == "missing":
        return "", kind
    if kind == "vague":
        return rng.choice(_VAGUE), kind
    if kind == "useless":
        return _file_name(rng), kind
    scene = draw_scene(split, seed=seed, index=index)
    if kind == "right":
        return _right(scene, rng), kind
    if kind == "partial":
        return _partial(scene, rng), kind
    names = set(scene.names)
    while True:
        # A caption of another scene that shares no object with this one.
        other = draw_scene(
            split, seed=seed, index=ReplayRNG(seed, _OTHER, rng.integers(2**30)).integers(2**20)
        )
        if not names & set(other.names):
            return _right(other, rng), kind


def _file_name(rng: ReplayRNG) -> str:
    number = rng.integers(10000)
    return rng.choice(
        (
            f"IMG_{number:04d}.jpg",
            f"DSC{number:05d}",
            f"image{number % 100}",
            f"untitled-{number % 50}.png",
            f"thumb_{number}_large",
        )
    )


def _partial(scene: Scene, rng: ReplayRNG) -> str:
    thing = rng.choice(scene.things)
    behind = BACKGROUNDS[scene.background]
    return rng.choice(
        (
            _article(thing.shape),
            f"something {thing.colour}",
            f"{thing.colour} thing",
            f"my {thing.shape}",
            f"{_article(thing.shape)} {behind}",
            f"{thing.colour} {behind}",
            f"picture {behind}",
        )
    )
