"""Accuracy against latency as SVG: points on a logarithmic axis, models without a time as levels.

Coordinates are pixels of the drawing, y downwards; values are in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pocketclip.evaluate.report.markup import cut, text, width_of
from pocketclip.evaluate.report.placing import Box, Place, Segment, along, around, place

Series = Literal["v1", "v2", "own"]
_NAMES: dict[Series, str] = {
    "v1": "MobileCLIP (v1)",
    "v2": "MobileCLIP2 (v2)",
    "own": "your models",
}
_MARK = 5.0  # half the width of a marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model with a latency."""

    name: str
    label: str
    series: Series
    ms: float
    value: float
    compared: bool = True
    """Filled; the others, which only give the picture, are hollow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A model without one: a dashed line over the whole width."""

    name: str
    value: float
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a drawing is, in pixels."""

    kind: Literal["wide", "narrow"]
    width: float
    height: float
    stretch: float
    """How many times as high it may become to show a wide range of values."""
    font: float


SIZES = (
    Size(kind="wide", width=1000, height=560, stretch=1.25, font=13.5),
    Size(kind="narrow", width=360, height=460, stretch=1.5, font=11.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What a plot shows, and in which words."""

    identity: str
    """Begins the ids of its parts; unique within a page."""
    title: str
    description: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    levels: Sequence[Level] = ()

    def svg(self) -> str:
        """Return the drawing in both sizes, of which the page shows one."""
        return "\n".join(_Drawing(self, size).svg() for size in SIZES)


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: 1-2-5, finer over a short range, coarser over a long."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: max(1, len(ticks) // 6)]


def linear_ticks(low: float, high: float) -> list[float]:
    """Return four to nine round ticks that lie in a range of per cents."""
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < 9:
            break
    return [round(i * step, 6) for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), 1.0)
    return max(0.0, low - room), min(104.0, high + room)


def _height(plot: Plot, size: Size) -> float:
    """Return more height where levels far from the points would press these together."""
    low, high = _range([point.value for point in plot.points])
    values = [p.value for p in plot.points] + [level.value for level in plot.levels]
    whole = _range(values)
    ratio = (whole[1] - whole[0]) / (high - low)
    return size.height * min(size.stretch, max(1.0, ratio**0.4))


class _Drawing:
    def __init__(self, plot: Plot, size: Size) -> None:
        size = replace(size, height=_height(plot, size))
        self.plot, self.size = plot, size
        self.legend, rows = self._legend()
        font = size.font
        self.area: Box = (3.1 * font, (2.6 + 1.7 * rows) * font, size.width - 1.3 * font,
                          size.height - 3.6 * font)  # fmt: skip
        times = [point.ms for point in plot.points]
        self.x_range = (min(times) / 1.4, max(times) * 1.5)
        values = [p.value for p in plot.points] + [level.value for level in plot.levels]
        self.y_range = _range(values)

    def x(self, ms: float) -> float:
        """Return where a latency lies."""
        low, high = (math.log(value) for value in self.x_range)
        return self.area[0] + (math.log(ms) - low) / (high - low) * (self.area[2] - self.area[0])

    def y(self, value: float) -> float:
        """Return where an accuracy lies."""
        low, high = self.y_range
        return self.area[3] - (value - low) / (high - low) * (self.area[3] - self.area[1])

    def svg(self) -> str:
        """Return one `svg` element."""
        size, plot, kind = self.size, self.plot, self.size.kind
        name = f"{plot.identity}-{kind}"
        parts = [
            f'<svg class="{kind}" viewBox="0 0 {size.width:g} {size.height:g}" role="img" '
            f'aria-labelledby="{name}-t {name}-d" font-size="{size.font}">',
            f'<title id="{name}-t">{text(plot.title)}</title>',
            f'<desc id="{name}-d">{text(plot.description)}</desc>',
            *self._axes(),
            *self.legend,
            *self._curves(),
            *(self._level(level) for level in plot.levels),
            *(self._point(point) for point in plot.points),
            *self._labels(),
            "</svg>",
        ]
        return "\n".join(parts)

    def _axes(self) -> list[str]:
        left, top, right, bottom = self.area
        font = self.size.font
        parts = []
        for value in linear_ticks(*self.y_range):
            y = self.y(value)
            parts.append(_line((left, y, right, y), 'stroke="var(--rule)" stroke-width="0.7"'))
            parts.append(_text(left - 6, y + 0.35 * font, f"{value:g}", anchor="end", dim=True))
        for ms in log_ticks(*self.x_range):
            x = self.x(ms)
            parts.append(_line((x, top, x, bottom), 'stroke="var(--faint)"'))
            parts.append(_text(x, bottom + 1.35 * font, f"{ms:g}", anchor="middle", dim=True))
        parts.append(_line((left, bottom, right, bottom), 'stroke="var(--dim)"'))
        label = cut(self.plot.x_label, font, right)
        parts.append(_text(right, self.size.height - 0.6 * font, label, anchor="end", dim=True))
        parts.append(_text(2, 1.1 * font, cut(self.plot.y_label, font, right), dim=True))
        return parts

    def _legend(self) -> tuple[list[str], int]:
        """Return the legend, below the axis' name, and how many rows it takes."""
        font, shown = self.size.font, self.plot.points
        entries: list[tuple[str, str]] = []
        for series, name in _NAMES.items():
            if any(p.series == series for p in shown):
                whole = any(p.compared for p in shown if p.series == series)
                entries.append((_marker(series, 0, 0, filled=whole), name))
        if not all(p.compared for p in shown):
            hollow = '<circle r="5" fill="none" stroke="var(--dim)" stroke-width="2"/>'
            entries.append((hollow, "hollow: not in the table below"))
        parts, x, row = [], 8.0, 0
        for mark, name in entries:
            width = 14 + width_of(name, font) + 12
            if x > 8 and x + width > self.size.width:
                x, row = 8.0, row + 1
            y = (2.6 + 1.7 * row) * font
            parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{mark}</g>')
            parts.append(_text(x + 11, y + 0.35 * font, name))
            x += width
        return parts, row + 1

    def _curves(self) -> list[str]:
        parts = []
        for series in ("v1", "v2"):
            found = [(p.ms, p.value) for p in self.plot.points if p.series == series]
            steps = " ".join(f"{self.x(ms):.2f},{self.y(v):.2f}" for ms, v in sorted(found))
            if len(found) > 1:
                parts.append(
                    f'<polyline class="{series}" points="{steps}" fill="none" '
                    f'stroke="var(--{series})" stroke-width="1.6" opacity="0.65"/>'
                )
        return parts

    def _level(self, level: Level) -> str:
        y = self.y(level.value)
        drawn = _line((self.area[0], y, self.area[2], y),
                      'stroke="var(--own)" stroke-width="1.8" stroke-dasharray="7 5"')  # fmt: skip
        about = f"{level.name}: {level.value:.1f} %, {level.remark}"
        return (
            f'<g class="level" data-model="{text(level.name)}" data-value="{level.value:.4f}">'
            f"<title>{text(about)}</title>{drawn}</g>"
        )

    def _point(self, point: Point) -> str:
        mark = _marker(point.series, self.x(point.ms), self.y(point.value), filled=point.compared)
        about = f"{point.name}: {point.value:.1f} %, {point.ms:.3g} ms"
        return (
            f'<g class="point" data-model="{text(point.name)}" data-ms="{point.ms:.4f}" '
            f'data-value="{point.value:.4f}"><title>{text(about)}</title>{mark}</g>'
        )

    def _labels(self) -> list[str]:
        font, (left, _, right, bottom) = self.size.font, self.area
        height = 1.2 * font
        words, colours, candidates = [], [], []
        for point in self.plot.points:
            words.append(cut(point.label, font, 0.5 * self.size.width))
            colours.append(point.series)
            x, y = self.x(point.ms), self.y(point.value)
            candidates.append(around(x, y, width_of(words[-1], font), height))
        for level in self.plot.levels:
            tail = f" {level.value:.1f}: {level.remark}"
            room = right - left - 8 - width_of(tail, font)
            words.append(cut(level.name, font, room) + tail)
            colours.append("own")
            width = width_of(words[-1], font)
            candidates.append(along(left + 4, right - 2, self.y(level.value), width, height))
        bounds = (left + 2, (1.5 * font), right, bottom - 2)
        legend = (0.0, 0.0, self.size.width, self.area[1] - 0.8 * font)
        spots = [(self.x(p.ms), self.y(p.value)) for p in self.plot.points]
        marks = [*self._marks(spots), legend]
        found = place(candidates, marks, self._segments(), bounds, spots)
        parts = []
        for word, colour, spot in zip(words, colours, found, strict=True):
            if spot is not None:
                parts += _label(word, colour, spot, font)
        return parts

    def _marks(self, spots: Sequence[tuple[float, float]]) -> list[Box]:
        r = _MARK + 1
        heights = [self.y(level.value) for level in self.plot.levels]
        return [(x - r, y - r, x + r, y + r) for x, y in spots] + [
            (self.area[0], y - 1, self.area[2], y + 1) for y in heights
        ]

    def _segments(self) -> list[Segment]:
        found: list[Segment] = []
        for series in ("v1", "v2"):
            steps = sorted((p.ms, p.value) for p in self.plot.points if p.series == series)
            spots = [(self.x(ms), self.y(value)) for ms, value in steps]
            found += [(*a, *b) for a, b in pairwise(spots)]
        return found


def _marker(series: Series, x: float, y: float, *, filled: bool) -> str:
    r = _MARK
    colour = f"var(--{series})"
    style = f'fill="{colour if filled else "var(--page)"}" stroke="{colour}" stroke-width="2"'
    if series == "v1":
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{r + 0.5}" {style}/>'
    if series == "v2":
        side = 2 * r - 3  # a circle at the same spot shows around it
        return (f'<rect x="{x - side / 2:.2f}" y="{y - side / 2:.2f}" width="{side:g}" '
                f'height="{side:g}" {style}/>')  # fmt: skip
    corners = ((0.0, -r - 1), (r + 0.5, r - 1), (-r - 0.5, r - 1))
    steps = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in corners)
    return f'<polygon points="{steps}" {style}/>'


def _label(word: str, colour: str, spot: Place, font: float) -> list[str]:
    left, _, right, bottom = spot.box
    parts = []
    if spot.leader is not None:
        parts.append(_line(spot.leader, f'stroke="var(--{colour})" stroke-width="0.8"'))
    box = " ".join(f"{value:.1f}" for value in spot.box)
    parts.append(
        f'<text class="label" data-box="{box}" x="{(left + right) / 2:.1f}" '
        f'y="{bottom - 0.3 * font:.1f}" text-anchor="middle" style="fill: var(--{colour}); '
        'paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round">'
        f"{text(word)}</text>"
    )
    return parts


def _line(ends: Segment, style: str) -> str:
    x1, y1, x2, y2 = ends
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" {style}/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", dim: bool = False) -> str:
    colour = ' style="fill: var(--dim)"' if dim else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{colour}>{text(words)}</text>'
