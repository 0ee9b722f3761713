"""Renders scenes with signed distances; the bytes are equal on every machine.

    image = render(scene, side=96, rng=ReplayRNG(0, 1))  # uint8 (96, 96, 3)

A shape is a function from points to their signed distance from its outline (negative inside), in
units where the shape fills the square from -1 to 1 and y grows downwards. The distance in pixels
gives a pixel's coverage.

Shapes: S side of the image, N side of the patch around an object, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import COLOURS, Scene, Thing

Plane = NDArray[np.float32]
Distance = Callable[[Plane, Plane], Plane]
_OUTLINE = 0.09  # relative to an object's radius
_DARK, _LIGHT = np.float32(0.55), np.float32(0.5)


def _circle(x: Plane, y: Plane, cx: float, cy: float, radius: float) -> Plane:
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - np.float32(radius)


def _box(x: Plane, y: Plane, cx: float, cy: float, half_x: float, half_y: float) -> Plane:
    across, down = np.abs(x - cx) - np.float32(half_x), np.abs(y - cy) - np.float32(half_y)
    outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(down, 0) ** 2)
    return outside + np.minimum(np.maximum(across, down), 0)


def _polygon(x: Plane, y: Plane, corners: Sequence[tuple[float, float]]) -> Plane:
    """Return the distance from a polygon, convex or not."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = np.float32(bx - ax), np.float32(by - ay)
        px, py = x - np.float32(ax), y - np.float32(ay)
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - ex * along) ** 2 + (py - ey * along) ** 2)
        if ey:
            inside ^= ((y < ay) != (y < by)) & (px < ex * py / ey)
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)


def _star_corners() -> list[tuple[float, float]]:
    radii = (1.0, 0.45)
    turns = [math.pi * k / 5 for k in range(10)]
    return [(radii[k % 2] * math.sin(t), -radii[k % 2] * math.cos(t)) for k, t in enumerate(turns)]


_STAR = _star_corners()
_PETALS = [(0.58 * math.sin(a), -0.58 * math.cos(a)) for a in (math.tau * k / 6 for k in range(6))]


def _star(x: Plane, y: Plane) -> Plane:
    return _polygon(x, y - np.float32(0.05), _STAR)


def _heart(x: Plane, y: Plane) -> Plane:
    # Deep inside, a union of distances has seams that the outline would follow.
    right = np.abs(x)
    point = _polygon(
        right, y, [(-0.5, -0.35), (0.4, -0.5), (0.88, -0.05), (0.0, 0.95), (-0.5, 0.4)]
    )
    return np.minimum(point, _circle(right, y, 0.46, -0.32, 0.5))


def _moon(x: Plane, y: Plane) -> Plane:
    return np.maximum(_circle(x, y, 0, 0, 0.95), -_circle(x, y, 0.48, -0.12, 0.78))


def _cross(x: Plane, y: Plane) -> Plane:
    return np.minimum(_box(x, y, 0, 0, 0.92, 0.3), _box(x, y, 0, 0, 0.3, 0.92))


def _ring(x: Plane, y: Plane) -> Plane:
    return np.abs(_circle(x, y, 0, 0, 0.7)) - np.float32(0.24)


def _flower(x: Plane, y: Plane) -> Plane:
    out = _circle(x, y, 0, 0, 0.5)
    for cx, cy in _PETALS:
        out = np.minimum(out, _circle(x, y, cx, cy, 0.38))
    return out


def _house(x: Plane, y: Plane) -> Plane:
    roof = _polygon(x, y, [(-0.98, -0.12), (0.0, -0.95), (0.98, -0.12)])
    return np.minimum(roof, _box(x, y, 0, 0.38, 0.7, 0.52))


def _fish(x: Plane, y: Plane) -> Plane:
    # An ellipse: the distance from a circle in scaled space, corrected by the larger factor.
    body = _circle(x + np.float32(0.2), y * np.float32(1.5), 0, 0, 0.75) / np.float32(1.5)
    tail = _polygon(x, y, [(0.35, 0.0), (0.98, -0.55), (0.98, 0.55)])
    return np.minimum(body, tail)


def _tree(x: Plane, y: Plane) -> Plane:
    top = _polygon(x, y, [(0.0, -1.0), (0.6, -0.1), (-0.6, -0.1)])
    low = _polygon(x, y, [(0.0, -0.55), (0.8, 0.55), (-0.8, 0.55)])
    return np.minimum(np.minimum(top, low), _box(x, y, 0, 0.7, 0.16, 0.28))


_BODIES: dict[str, Distance] = {
    "circle": lambda x, y: _circle(x, y, 0, 0, 0.92),
    "square": lambda x, y: _box(x, y, 0, 0, 0.82, 0.82),
    "triangle": lambda x, y: _polygon(x, y, [(0.0, -0.92), (0.98, 0.78), (-0.98, 0.78)]),
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "cross": _cross,
    "ring": _ring,
    "flower": _flower,
    "house": _house,
    "fish": _fish,
    "tree": _tree,
}
# Details drawn inside in a contrasting shade.
_DETAILS: dict[str, Distance] = {
    "flower": lambda x, y: _circle(x, y, 0, 0, 0.27),
    "house": lambda x, y: _box(x, y, 0, 0.58, 0.18, 0.3),
    "fish": lambda x, y: _circle(x, y, -0.55, -0.1, 0.1),
}


def render(scene: Scene, *, side: int, rng: ReplayRNG) -> NDArray[np.uint8]:
    """Return a scene's pixels, uint8 (S, S, 3), textures and shades drawn from `rng`."""
    canvas = _background(scene.background, side, rng)  # float32 (S, S, 3), 0 to 255
    for thing in scene.things:
        _draw(canvas, thing, side, rng)
    canvas += rng.uniform(-8, 8)
    canvas += (rng.random(side * side).reshape(side, side, 1) - np.float32(0.5)) * np.float32(6)
    return np.clip(canvas + np.float32(0.5), 0, 255).astype(np.uint8)


def _draw(canvas: NDArray[np.float32], thing: Thing, side: int, rng: ReplayRNG) -> None:
    radius = thing.radius * side
    left, top = (math.floor(c * side - 1.15 * radius) - 3 for c in (thing.x, thing.y))
    length = math.ceil(2.3 * radius) + 7
    first_x, first_y = max(left, 0), max(top, 0)
    last_x, last_y = min(left + length, side), min(top + length, side)
    across = (np.arange(first_x, last_x, dtype=np.float32) + 0.5 - thing.x * side) / radius
    down = (np.arange(first_y, last_y, dtype=np.float32) + 0.5 - thing.y * side) / radius
    sin, cos = np.float32(math.sin(thing.angle)), np.float32(math.cos(thing.angle))
    x = across[None, :] * cos + down[:, None] * sin  # (N, N)
    y = down[:, None] * cos - across[None, :] * sin
    distance = _BODIES[thing.shape](x, y)
    inside = _covered(distance, radius)
    patch = canvas[first_y:last_y, first_x:last_x]
    shadow = np.zeros_like(inside)
    shadow[2:, 2:] = inside[:-2, :-2]
    patch *= 1 - np.float32(0.3) * shadow[..., None]
    shade = np.array([c + rng.uniform(-12, 12) for c in COLOURS[thing.colour]], np.float32)
    rim = _contrast(shade)
    lit = shade + (-y * np.float32(14))[..., None]  # light from above
    _blend(patch, rim, inside)
    _blend(patch, lit, _covered(distance + np.float32(_OUTLINE), radius))
    detail = _DETAILS.get(thing.shape)
    if detail is not None:
        _blend(patch, rim, _covered(detail(x, y), radius))


def _covered(distance: Plane, radius: float) -> Plane:
    """Return each pixel's coverage, 0 to 1."""
    return np.clip(np.float32(0.5) - distance * np.float32(radius), 0, 1)


def _contrast(shade: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a darker shade, or a lighter one if it is nearly black."""
    if shade.mean() < 60:
        return shade + (255 - shade) * _LIGHT
    return shade * _DARK


def _blend(patch: NDArray[np.float32], colour: NDArray[np.float32], share: Plane) -> None:
    patch += (colour - patch) * share[..., None]


def _plain(side: int, colour: tuple[int, int, int], rng: ReplayRNG) -> NDArray[np.float32]:
    tone = np.array([c + rng.uniform(-10, 10) for c in colour], np.float32)
    return np.broadcast_to(tone, (side, side, 3)).copy()


def _background(name: str, side: int, rng: ReplayRNG) -> NDArray[Any]:
    """Return a background, float32 (S, S, 3), 0 to 255."""
    unit = (np.arange(side, dtype=np.float32) + 0.5) / side
    x: NDArray[Any] = unit[None, :]
    y: NDArray[Any] = unit[:, None]
    noise: NDArray[Any] = rng.random(side * side).reshape(side, side)
    out: NDArray[Any]
    if name == "grass":
        out = _plain(side, (132, 190, 96), rng)
        blades = np.repeat(noise[::6], 6, axis=0)[:side] * (noise > 0.2)
        out += ((blades - 0.5) * 46)[..., None] - (y * 18)[..., None]
    elif name == "sky":
        out = _plain(side, (158, 208, 246), rng) + (y * 34)[..., None]
        for _ in range(3):
            cx, cy, r = rng.uniform(), rng.uniform(), rng.uniform(0.08, 0.16)
            far = np.sqrt((x - cx) ** 2 + (3 * (y - cy)) ** 2) / r
            cloud = (0.8 * np.clip(1.2 - far, 0, 1)).astype(np.float32)
            _blend(out, np.full(3, 250, np.float32), cloud)
    elif name == "sand":
        out = _plain(side, (232, 208, 160), rng) + ((noise - 0.5) * 34)[..., None]
        ripple = np.sin((y * 9 + np.sin(x * 5 + np.float32(rng.uniform(0, 6)))) * 6)
        out += (ripple * 5).astype(np.float32)[..., None]
    elif name == "night":
        out = _plain(side, (30, 36, 78), rng) + (y * 22)[..., None]
        out += ((noise > 0.985) * np.float32(170))[..., None]
    elif name == "stripes":
        out = _plain(side, (222, 214, 228), rng)
        lines = (x + y * rng.choice((0.0, 1.0, -1.0))) * 8 + rng.uniform()
        out -= ((lines % 1 < 0.5) * np.float32(24))[..., None]
    elif name == "dots":
        out = _plain(side, (214, 226, 220), rng)
        cells = 7
        dx, dy = (x * cells + rng.uniform()) % 1 - 0.5, (y * cells + rng.uniform()) % 1 - 0.5
        dots = np.clip((0.3 - np.sqrt(dx**2 + dy**2)) * side / cells + 0.5, 0, 1)
        out -= (dots * 34).astype(np.float32)[..., None]
    elif name == "wood":
        out = _plain(side, (196, 152, 104), rng)
        waves = np.sin((y * 10 + np.sin(x * 3 + np.float32(rng.uniform(0, 6))) * 0.5) * 7)
        out += (waves * 9 + (noise - 0.5) * 10).astype(np.float32)[..., None]
        out -= ((y * 4 % 1 < 0.05) * np.float32(40))[..., None]
    else:
        out = _plain(side, (240, 238, 230), rng)
        out -= ((y * 12 % 1 < 0.1) * np.float32(28))[..., None] * np.array(
            [1.3, 1, 0.5], np.float32
        )
    return out
