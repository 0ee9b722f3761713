"""Scenes with known content: objects, colours, positions and counts.

    scene = draw_scene("train", seed=0, index=41)
    scene.things[0].colour, scene.things[0].shape

A scene is a pure function of (split, seed, index). Some pairs of a colour and a shape
(`UNSEEN`) occur only in the split `unseen`. Neither the students nor the models that ship with the
package see them in training, so recognising them takes more than memory.

Lengths are relative to the image's side: (0, 0) is the top left corner, (1, 1) the bottom right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pocketclip.quickstart.replay_rng import ReplayRNG

Split = Literal["train", "test", "unseen", "teaching"]
Kind = Literal["one", "several", "two", "three"]

SHAPES = (
    *("circle", "square", "triangle", "star", "heart", "moon"),
    *("cross", "ring", "flower", "house", "fish", "tree"),
)
COLOURS = {
    "red": (214, 40, 44),
    "orange": (247, 132, 24),
    "yellow": (250, 214, 48),
    "green": (48, 158, 74),
    "blue": (38, 98, 222),
    "purple": (128, 58, 184),
    "pink": (246, 138, 188),
    "brown": (128, 78, 44),
    "black": (34, 34, 40),
    "white": (246, 246, 244),
}
BACKGROUNDS = {
    "grass": "on grass",
    "sky": "in the sky",
    "sand": "on sand",
    "night": "at night",
    "stripes": "on stripes",
    "dots": "on dots",
    "wood": "on wood",
    "paper": "on paper",
}
# Barely visible combinations of colour and background.
_HIDDEN = {
    ("green", "grass"),
    ("white", "paper"),
    ("white", "sky"),
    ("yellow", "sand"),
    ("brown", "wood"),
    ("black", "night"),
}
PLACES = {
    "middle": (0.5, 0.5),
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "top left corner": (0.25, 0.25),
    "top right corner": (0.75, 0.25),
    "bottom left corner": (0.25, 0.75),
    "bottom right corner": (0.75, 0.75),
}
_SPLITS: dict[Split, int] = {"train": 0, "test": 1, "unseen": 2, "teaching": 3}
_KINDS: dict[Kind, float] = {"one": 0.4, "several": 0.2, "two": 0.3, "three": 0.1}


def _unseen() -> frozenset[tuple[str, str]]:
    """Return two colours for each shape; each colour is in two or three of the pairs."""
    names = list(COLOURS)
    return frozenset(
        (names[(3 * number + step) % len(names)], shape)
        for number, shape in enumerate(SHAPES)
        for step in (0, 5)
    )


UNSEEN = _unseen()
"""Pairs (colour, shape) that occur only in the split `unseen`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object in a scene."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    """Half of the object's side."""
    angle: float
    """Rotation in radians."""

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The content of a picture."""

    kind: Kind
    things: tuple[Thing, ...]
    background: str
    place: str | None = None
    """Position of a single object, a key of `PLACES`."""
    size: Literal["small", "big"] | None = None
    """Size of a single object, if remarkable."""
    relation: Literal["left", "above"] | None = None
    """Position of the first of two objects relative to the second."""

    @property
    def names(self) -> list[str]:
        """The distinct objects, as colour and shape, in order."""
        return list(dict.fromkeys(thing.name for thing in self.things))


def draw_scene(split: Split, *, seed: int, index: int) -> Scene:
    """Return scene number `index` of a split.

    The split `unseen` has single objects, cycling through the pairs of `UNSEEN`; the other splits
    have all kinds of scenes, without those pairs.
    """
    rng = ReplayRNG(seed, _SPLITS[split], index)
    background = rng.choice(list(BACKGROUNDS))
    if split == "unseen":
        pairs = sorted(UNSEEN)
        colour, shape = pairs[index % len(pairs)]
        while (colour, background) in _HIDDEN:
            background = rng.choice(list(BACKGROUNDS))
        return _one(rng, background, colour, shape)
    kind = rng.weighted_choice(_KINDS)
    if kind == "one":
        return _one(rng, background, *_pair(rng, background))
    if kind == "several":
        return _several(rng, background, *_pair(rng, background))
    if kind == "two":
        return _two(rng, background)
    return _three(rng, background)


def _pair(rng: ReplayRNG, background: str) -> tuple[str, str]:
    """Return a colour that is visible on the background, and a shape that it may have."""
    while True:
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        if (colour, background) not in _HIDDEN and (colour, shape) not in UNSEEN:
            return colour, shape


def _thing(rng: ReplayRNG, pair: tuple[str, str], x: float, y: float, radius: float) -> Thing:
    colour, shape = pair
    return Thing(
        shape=shape,
        colour=colour,
        x=x + rng.uniform(-0.03, 0.03),
        y=y + rng.uniform(-0.03, 0.03),
        radius=radius,
        angle=rng.uniform(-0.2, 0.2),
    )


def _one(rng: ReplayRNG, background: str, colour: str, shape: str) -> Scene:
    place = "middle" if rng.bernoulli(0.4) else rng.choice(list(PLACES))
    size: Literal["small", "big"] | None = None
    radius = rng.uniform(0.19, 0.22)
    if place == "middle":
        if rng.bernoulli(0.3):
            size, radius = "big", rng.uniform(0.32, 0.4)
        elif rng.bernoulli(0.3):
            size, radius = "small", rng.uniform(0.11, 0.13)
        else:
            radius = rng.uniform(0.2, 0.27)
    thing = _thing(rng, (colour, shape), *PLACES[place], radius)
    return Scene(kind="one", things=(thing,), background=background, place=place, size=size)


_LAYOUTS = {
    2: ((0.29, 0.5), (0.71, 0.5)),
    3: ((0.28, 0.3), (0.72, 0.3), (0.5, 0.72)),
    4: ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)),
}


def _several(rng: ReplayRNG, background: str, colour: str, shape: str) -> Scene:
    places = _LAYOUTS[2 + rng.integers(3)]
    things = tuple(_thing(rng, (colour, shape), x, y, rng.uniform(0.16, 0.2)) for x, y in places)
    return Scene(kind="several", things=things, background=background)


def _different(rng: ReplayRNG, background: str, count: int) -> list[tuple[str, str]]:
    """Return `count` pairs without a common colour or shape."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = _pair(rng, background)
        if all(pair[0] != other[0] and pair[1] != other[1] for other in pairs):
            pairs.append(pair)
    return pairs


def _two(rng: ReplayRNG, background: str) -> Scene:
    relation: Literal["left", "above"] = rng.choice(("left", "above"))
    places = {"left": ((0.28, 0.5), (0.72, 0.5)), "above": ((0.5, 0.28), (0.5, 0.72))}[relation]
    pairs = _different(rng, background, 2)
    things = tuple(
        _thing(rng, pair, x, y, rng.uniform(0.17, 0.21))
        for pair, (x, y) in zip(pairs, places, strict=True)
    )
    return Scene(kind="two", things=things, background=background, relation=relation)


def _three(rng: ReplayRNG, background: str) -> Scene:
    pairs = _different(rng, background, 3)
    things = tuple(
        _thing(rng, pair, x, y, rng.uniform(0.16, 0.2))
        for pair, (x, y) in zip(pairs, _LAYOUTS[3], strict=True)
    )
    return Scene(kind="three", things=things, background=background)
