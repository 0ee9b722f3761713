"""A few named points as one SVG file that stands alone, light and dark.

    scatter([Spot("laptop/", 30.5, 61.2)], title="Accuracy against latency", x_label="ms",
            y_label="top-1, %", percent=True)

The x axis is logarithmic; the y axis is linear for per cents, else logarithmic. Coordinates are
pixels of the drawing, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pocketclip.evaluate.report.markup import cut, text, width_of
from pocketclip.evaluate.report.placing import Place, around, place
from pocketclip.evaluate.report.plot import linear_ticks, log_ticks

_WIDTH, _HEIGHT, _FONT, _RADIUS = 800.0, 480.0, 13.0, 5.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 56.0, 64.0, _WIDTH - 20, _HEIGHT - 48
_STYLE = (
    ":root { color-scheme: light dark; --page: #ffffff; --text: #1c2128; --dim: #59636e; "
    "--rule: #d5dae0; --own: #8a1c8f; } "
    "@media (prefers-color-scheme: dark) { :root { --page: #14171c; --text: #e6e9ed; "
    "--dim: #9ba5b0; --rule: #3a424c; --own: #ef9bf2; } } "
    "text { fill: var(--text); } .dim { fill: var(--dim); } line { stroke: var(--rule); } "
    "circle { fill: var(--own); }"
)


@dataclass(frozen=True, slots=True)
class Spot:
    """A point with a name; `x` is above 0, as is `y` unless it is in per cent."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values of a range to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return (log_ticks if self.log else linear_ticks)(self.low, self.high)


def scatter(spots: Sequence[Spot], *, title: str, x_label: str, y_label: str, percent: bool) -> str:
    """Return the drawing as a whole SVG file."""
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    x = _Axis(min(xs) / 1.5, max(xs) * 1.7, _LEFT, _RIGHT, True)
    if percent:
        room = max(0.15 * (max(ys) - min(ys)), 1.0)
        y = _Axis(max(0.0, min(ys) - room), max(ys) + room, _BOTTOM, _TOP, False)
    else:
        y = _Axis(min(ys) / 1.3, max(ys) * 1.3, _BOTTOM, _TOP, True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT:g}">',
        f"<title>{text(title)}</title>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" style="fill: var(--page)"/>',
        f'<text x="8" y="22" font-size="16">{text(title)}</text>',
        f'<text class="dim" x="8" y="44">{text(y_label)}</text>',
        f'<text class="dim" x="{_RIGHT:g}" y="{_HEIGHT - 8:g}" text-anchor="end">'
        f"{text(x_label)}</text>",
        *_grid(x, y),
        *(_point(spot, x(spot.x), y(spot.y), percent) for spot in spots),
        *_labels(spots, [(x(spot.x), y(spot.y)) for spot in spots]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line x1="{_LEFT:g}" y1="{at:.1f}" x2="{_RIGHT:g}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="dim" x="{_LEFT - 6:g}" y="{at + 4.5:.1f}" text-anchor="end">'
            f"{value:g}</text>"
        )
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP:g}" x2="{at:.1f}" y2="{_BOTTOM:g}"/>')
        parts.append(
            f'<text class="dim" x="{at:.1f}" y="{_BOTTOM + 18:g}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    return parts


def _point(spot: Spot, x: float, y: float, percent: bool) -> str:
    about = f"{spot.name}: {spot.y:.1f}{' %' if percent else ' per s'}, {spot.x:.3g} ms"
    return (
        f'<g class="point" data-name="{text(spot.name)}" data-x="{spot.x:.4f}" '
        f'data-y="{spot.y:.4f}"><title>{text(about)}</title>'
        f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{_RADIUS:g}"/></g>'
    )


def _labels(spots: Sequence[Spot], at: Sequence[tuple[float, float]]) -> list[str]:
    words = [cut(spot.name, _FONT, 0.45 * _WIDTH) for spot in spots]
    candidates = [
        around(x, y, width_of(word, _FONT), 1.2 * _FONT)
        for word, (x, y) in zip(words, at, strict=True)
    ]
    r = _RADIUS + 1
    marks = [(x - r, y - r, x + r, y + r) for x, y in at]
    found = place(candidates, marks, [], (_LEFT, _TOP - 12, _RIGHT, _BOTTOM), list(at))
    return [_label(word, spot) for word, spot in zip(words, found, strict=True) if spot is not None]


def _label(word: str, spot: Place) -> str:
    left, _, right, bottom = spot.box
    leader = ""
    if spot.leader is not None:
        x1, y1, x2, y2 = spot.leader
        leader = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    return (
        f'{leader}<text x="{(left + right) / 2:.1f}" y="{bottom - 4:.1f}" text-anchor="middle">'
        f"{text(word)}</text>"
    )
