"""Charts for the report pages: scales, ticks, marks, and labels that do not cover each other.

    chart = Chart(name="published", title="Accuracy against latency", x_label="ms",
                  y_label="top-1, %", marks=[Mark(name="small", label="small", x=12.3, y=61.2)])
    drawing = Drawing(chart, WIDE)         # `templates/macros.html` writes it as SVG

Coordinates are pixels of the drawing, y downwards. Boxes are (left, top, right, bottom). Shapes:
K candidate positions of a label, M marks, N boxes to avoid, T points of a line.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketclip.pages.render import render

Array = NDArray[np.float64]
Series = Literal["v1", "v2", "own", "openai", "datacomp", "dfn", "siglip", "metaclip", "other"]
Scale = Literal["log", "linear", "from zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point of a chart."""

    name: str
    x: float | None
    """None draws a dashed line across the whole chart."""
    y: float
    series: Series = "own"
    label: str = ""
    """Stands beside the mark, shortened where it is long; without one there is only a tooltip."""
    remark: str = ""
    """Follows the label, never shortened."""
    tooltip: str = ""
    filled: bool = True


class Size(NamedTuple):
    """The size of a drawing in pixels."""

    kind: Literal["wide", "narrow"]
    width: float
    height: float
    font: float
    stretch: float = 1.0
    """How much higher the drawing may become where dashed lines lie far from the points."""


WIDE, NARROW = Size("wide", 1000, 560, 13.5, 1.25), Size("narrow", 360, 460, 11.5, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows."""

    name: str
    """Prefix of its element ids; unique within a page."""
    title: str
    """For readers who cannot see the chart; a file of its own shows it too."""
    description: str = ""
    x_label: str
    y_label: str
    x_scale: Scale = "log"
    y_scale: Scale = "linear"
    marks: Sequence[Mark]
    joined: Sequence[Series] = ()
    """Series whose marks are joined by a line in the order of x."""
    legend: Mapping[Series, str] = field(default_factory=dict)
    hollow: str = ""
    """What a hollow mark means, for the legend."""


class Axis(NamedTuple):
    """Maps the values of a range to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def fit(cls, values: Sequence[float], scale: Scale, start: float, end: float) -> Axis:
        """Return an axis with some room around the values; a linear one is for percentages."""
        low, high = min(values), max(values)
        if scale == "log":
            return cls(low / 1.4, high * 1.5, start, end, True)
        if scale == "from zero":
            return cls(0.0, 1.12 * high or 1.0, start, end, False)
        room = max(0.12 * (high - low), 1.0)
        return cls(max(0.0, low - room), min(104.0, high + room), start, end, False)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = np.log((*self[:2], value)) if self.log else (*self[:2], value)
        return float(self.start + (value - low) / (high - low) * (self.end - self.start))

    def ticks(self) -> list[tuple[float, str]]:
        """Return the pixel and the text of each tick."""
        values = (log_ticks if self.log else linear_ticks)(self.low, self.high)
        return [(self.at(value), f"{value:,.10g}") for value in values]


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: 1-2-5, finer over a short range, coarser over a long."""
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [v for v in np.outer(decades, steps).ravel().tolist() if low <= v <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: max(1, len(ticks) // 6)]


def linear_ticks(low: float, high: float) -> list[float]:
    """Return four to nine round ticks of a linear axis."""
    steps = (s * 10.0**d for d in range(-1, 15) for s in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step < 9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 6) for i in range(first, last + 1)]


class Drawing:
    """The geometry of a chart at one size; its attributes are what the template writes."""

    def __init__(self, chart: Chart, size: Size, *, titled: bool = False) -> None:
        points = [(mark.x, mark.y, mark) for mark in chart.marks if mark.x is not None]
        all_y, point_y = [mark.y for mark in chart.marks], [y for _, y, _ in points]
        if chart.y_scale == "linear":
            full, own = Axis.fit(all_y, "linear", 0, 1), Axis.fit(point_y, "linear", 0, 1)
            growth = ((full.high - full.low) / (own.high - own.low)) ** 0.4
            size = size._replace(height=size.height * min(size.stretch, growth))
        font = size.font
        self.chart, self.size = chart, size
        self.head = 2 * font if titled else 0.0
        self.legend, rows = self._legend()
        self.left, self.top = 3.4 * font, self.head + (2.6 + 1.7 * rows) * font
        self.right, self.bottom = size.width - 1.3 * font, size.height - 3.6 * font
        self.x = Axis.fit([x for x, _, _ in points], chart.x_scale, self.left, self.right)
        self.y = Axis.fit(all_y, chart.y_scale, self.bottom, self.top)
        self.marks = [(self.x.at(x), self.y.at(y), mark) for x, y, mark in points]
        self.levels = [(self.y.at(mark.y), mark) for mark in chart.marks if mark.x is None]
        self.lines = {
            series: sorted(((x, y) for x, y, mark in self.marks if mark.series == series),
                           key=lambda point: (point[0], -point[1]))
            for series in chart.joined
        }  # fmt: skip
        self.labels = self._labels()
        self.x_label = shorten(chart.x_label, font, self.right)
        self.y_label = shorten(chart.y_label, font, self.right)

    def _legend(self) -> tuple[list[tuple[float, float, str, str]], int]:
        """Return x, y, class and text of each entry, and how many rows they take."""
        chart, font = self.chart, self.size.font
        names, points = {}, [mark for mark in chart.marks if mark.x is not None]
        for series, name in chart.legend.items():
            filled = [mark.filled for mark in points if mark.series == series]
            if filled:
                names[series if any(filled) else f"{series} hollow"] = name
        if chart.hollow and not all(mark.filled for mark in points):
            names["v1 grey hollow"] = chart.hollow
        entries, x, row = [], 8.0, 0
        for css_class, name in names.items():
            width = 26 + text_width(name, font)
            if x > 8 and x + width > self.size.width:
                x, row = 8.0, row + 1
            entries.append((x, self.head + (2.6 + 1.7 * row) * font, css_class, name))
            x += width
        return entries, row + 1 if entries else 0

    def _labels(self) -> list[Label]:
        font, width = self.size.font, self.size.width
        labels = []
        for x, y, mark in self.marks:
            if mark.label:
                text = shorten(mark.label, font, 0.5 * width) + mark.remark
                labels.append(Label(text, mark.series, np.array([[x, y]]), font))
        for y, mark in self.levels:
            room = self.right - self.left - 8 - text_width(mark.remark, font)
            text = shorten(mark.label, font, room) + mark.remark
            margin = text_width(text, font) / 2 + 4
            ends = (self.left + margin, y), (max(self.left, self.right - margin), y)
            labels.append(Label(text, mark.series, np.linspace(*ends, 17), font))
        points = np.array([(x, y) for x, y, _ in self.marks])
        bounds = np.array([self.left + 2, self.head + 1.5 * font, self.right, self.bottom - 2])
        legend = [0.0, 0.0, width, self.top - 0.8 * font, 120.0]
        levels = [[self.left, y - 2, self.right, y + 2, 120.0] for y, _ in self.levels]
        lines = [_line(*ends, 4) for line in self.lines.values() for ends in pairwise(line)]
        avoid = [_boxes(points, 6, 120), np.array([legend, *levels]), *lines]
        for label in labels:
            label.weigh(points, np.concatenate(avoid), bounds)
        place_labels(labels)
        return [label for label in labels if label.box]


def svg_file(chart: Chart) -> str:
    """Return a chart as an SVG file that stands alone."""
    return render("chart.svg", drawing=Drawing(chart, Size("wide", 800, 480, 13), titled=True))


# Placing labels.

_DIRECTIONS = np.array([
    (0.7, -0.7), (-0.7, -0.7), (0.7, 0.7), (-0.7, 0.7), (1.0, 0.0), (-1.0, 0.0), (0.0, -1.0),
    (0.0, 1.0), (0.35, -0.95), (-0.35, -0.95), (0.35, 0.95), (-0.35, 0.95),
])  # fmt: skip
_REACHES = np.array([8.0, 15.0, 26.0, 40.0, 56.0, 74.0])
_FORBIDDEN = 1e6
_ROUNDS = 4


class Label:
    """A label and the positions that it may take around its anchors, the nearest preferred.

    Args:
        text: in one line.
        series: colours it.
        anchors: (P, 2), points that it may name, the first preferred.
        font: size in pixels.
    """

    box: tuple[float, ...] | None = None
    """Where it stands; None where there is no room."""
    leader: tuple[float, ...] | None = None
    """x1, y1, x2, y2 of a line from its mark; None where it stands beside it."""

    def __init__(self, text: str, series: Series, anchors: Array, font: float) -> None:
        self.text, self.series, self.anchors = text, series, anchors
        half = np.array([text_width(text, font), 1.2 * font]) / 2
        sides = np.sign(np.where(abs(_DIRECTIONS) < 0.5, 0, _DIRECTIONS))
        offsets = _REACHES[:, None, None] * _DIRECTIONS + half * sides
        centres = anchors[:, None, None] + offsets  # anchors, reaches, directions, 2
        starts = np.broadcast_to(anchors[:, None, None], centres.shape).reshape(-1, 2)
        self.boxes = np.concatenate([centres - half, centres + half], -1).reshape(-1, 4)
        self.leaders = np.stack([starts, starts.clip(self.boxes[:, :2], self.boxes[:, 2:])], 1)
        preferences = np.indices(centres.shape[:3]).reshape(3, -1)
        self.costs = np.array([0.5, 7.0, 0.4]) @ preferences
        self.led = preferences[1] > 1  # the two nearest need no leader

    def weigh(self, points: Array, avoid: Array, bounds: Array) -> None:
        """Add the costs of positions that other labels do not change.

        Positions out of bounds are forbidden. A label of one point should not stand nearer to
        another one.
        """
        outside = (self.boxes - bounds) * (1, 1, -1, -1) < 0
        self.costs += _FORBIDDEN * outside.any(1) + self.covered(avoid)
        if len(self.anchors) == 1:
            points = np.concatenate([self.anchors, points[(points != self.anchors).any(1)]])
            at = points[:, None]
            gaps = np.linalg.norm(at.clip(self.boxes[:, :2], self.boxes[:, 2:]) - at, axis=-1)
            self.costs += (gaps[1:] < gaps[0] + 3).sum(0) * np.where(self.led, 3, 50)

    def covered(self, avoid: Array) -> Array:
        """Return what each position covers of boxes with costs (N, 5), its leader included."""
        starts, ends = self.leaders[self.led, 0], self.leaders[self.led, 1]
        # The first quarter of a leader may lie on its own mark.
        ways = np.stack([starts + part * (ends - starts) for part in np.linspace(0.25, 1, 10)], 1)
        costs = _covers(self.boxes, avoid) @ avoid[:, 4]
        crossed = _covers(np.concatenate([ways, ways], -1), avoid) @ avoid[:, 4].clip(max=40)
        costs[self.led] += crossed.sum(1)
        return costs

    def choose(self, others: Array) -> None:
        """Take the cheapest position, given the other labels as boxes with costs, (N, 5)."""
        costs = self.costs + self.covered(others)
        best = int(costs.argmin())
        free = costs[best] < _FORBIDDEN
        self.box = tuple(self.boxes[best].tolist()) if free else None
        self.leader = (
            tuple(self.leaders[best].ravel().tolist()) if free and self.led[best] else None
        )

    def avoided(self) -> Array:
        """Return boxes that other labels avoid for this one, with their costs, (N, 5)."""
        boxes = [np.array([[*self.box, _FORBIDDEN]])] if self.box else []
        if self.leader:
            boxes.append(_line(self.leader[:2], self.leader[2:], 20))
        return np.concatenate([np.empty((0, 5)), *boxes])


def place_labels(labels: Sequence[Label]) -> None:
    """Let the labels choose, those with the least room first; then again, now that all have a box.

    No two overlap.
    """
    order = sorted(labels, key=lambda label: -float(label.costs.min()))
    for _ in range(_ROUNDS):
        before = [label.box for label in order]
        for label in order:
            others = [other.avoided() for other in labels if other is not label]
            label.choose(np.concatenate([np.empty((0, 5)), *others]))
        if [label.box for label in order] == before:
            return  # another round would choose the same


def _covers(boxes: Array, others: Array) -> NDArray[np.bool_]:
    """Return (..., N): which boxes (..., 4) share more than an edge with which others (N, 4+)."""
    left, top, right, bottom = np.moveaxis(boxes[..., None], -2, 0)
    beside = (left < others[:, 2]) & (others[:, 0] < right)
    return np.asarray(beside & (top < others[:, 3]) & (others[:, 1] < bottom))


def _boxes(points: Array, radius: float, cost: float) -> Array:
    """Return boxes around points (T, 2), with what covering one of them costs, (T, 5)."""
    return np.hstack([points - radius, points + radius, np.full((len(points), 1), cost)])


def _line(start: Sequence[float], end: Sequence[float], cost: float) -> Array:
    """Return boxes along a line, (T, 5)."""
    return _boxes(np.linspace(start, end, 2 + int(math.dist(start, end) / 5)), 1, cost)


def text_width(text: str, font: float) -> float:
    """Return the approximate width of text in a sans-serif font in pixels; rather too wide."""
    ems = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else
              0.86 if c in "MWmw@%" else 0.36 if c in "ijl.,:;'|!() " else 0.64
              for c in text)  # fmt: skip
    return ems * font


def shorten(text: str, font: float, width: float) -> str:
    """Return text, cut with an ellipsis where it would be wider than `width` pixels."""
    if text_width(text, font) <= width:
        return text
    while text and text_width(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
