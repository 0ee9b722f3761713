"""Charts for the report pages: scales, ticks, marks, and labels that do not cover each other.

    chart = Chart(name="published", title="Accuracy against latency", x_label="ms",
                  y_label="top-1, %", marks=[Mark(name="small", label="small", x=12.3, y=61.2)])
    drawing = Drawing(chart, WIDE)         # `templates/macros.html` writes it as SVG

Coordinates are pixels of the drawing, y downwards. Boxes are (left, top, right, bottom), segments
(x1, y1, x2, y2). Shapes: K candidate positions of a label, M marks, S segments.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketclip.evaluate.report.render import render

Array = NDArray[np.float64]
Series = Literal["v1", "v2", "own"]
Scale = Literal["log", "linear", "from zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point of a chart."""

    name: str
    x: float
    y: float
    series: Series = "own"
    label: str = ""
    """Stands beside the mark; without one the mark has only its tooltip."""
    tooltip: str = ""
    filled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A dashed line across the whole chart, for a value without an x."""

    name: str
    y: float
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a drawing in pixels."""

    kind: Literal["wide", "narrow"]
    width: float
    height: float
    font: float
    stretch: float = 1.0
    """How much higher the drawing may become where levels lie far from the marks."""


WIDE = Size(kind="wide", width=1000, height=560, font=13.5, stretch=1.25)
NARROW = Size(kind="narrow", width=360, height=460, font=11.5, stretch=1.5)


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
    levels: Sequence[Level] = ()
    joined: Sequence[Series] = ()
    """Series whose marks are joined by a line in the order of x."""
    legend: Mapping[Series, str] = field(default_factory=dict)
    hollow: str = ""
    """What a hollow mark means, for the legend."""


class Label(NamedTuple):
    """A label where it was placed."""

    text: str
    series: Series
    box: tuple[float, ...]
    leader: tuple[float, ...] | None


class Axis(NamedTuple):
    """Maps the values of a range to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def fit(cls, values: Sequence[float], scale: Scale, start: float, end: float) -> Axis:
        """Return an axis with some room around the values; a linear one is for per cents."""
        low, high = min(values), max(values)
        if scale == "log":
            return cls(low / 1.4, high * 1.5, start, end, True)
        if scale == "from zero":
            return cls(0.0, 1.12 * high or 1.0, start, end, False)
        room = max(0.12 * (high - low), 1.0)
        return cls(max(0.0, low - room), min(104.0, high + room), start, end, False)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the pixel and the text of each tick."""
        values = (log_ticks if self.log else linear_ticks)(self.low, self.high)
        return [(self.at(value), f"{value:,.10g}") for value in values]


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
    """Return four to nine round ticks of a linear axis."""
    for step in (s * 10.0**d for d in range(-1, 15) for s in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < 9:
            break
    return [round(i * step, 6) for i in range(first, last + 1)]


class Drawing:
    """The geometry of a chart at one size; its attributes are what the template writes."""

    radius = 6.0

    def __init__(self, chart: Chart, size: Size, *, titled: bool = False) -> None:
        y_values = [mark.y for mark in chart.marks]
        all_y = y_values + [level.y for level in chart.levels]
        if chart.y_scale == "linear":
            spans = [
                a.high - a.low for a in (Axis.fit(v, "linear", 0, 1) for v in (all_y, y_values))
            ]
            growth = min(size.stretch, max(1.0, (spans[0] / spans[1]) ** 0.4))
            size = replace(size, height=size.height * growth)
        self.chart, self.size = chart, size
        self.head = 2 * size.font if titled else 0.0
        self.legend, rows = self._legend()
        font = size.font
        self.left, self.top = 3.4 * font, self.head + (2.6 + 1.7 * rows) * font
        self.right, self.bottom = size.width - 1.3 * font, size.height - 3.6 * font
        self.x = Axis.fit([mark.x for mark in chart.marks], chart.x_scale, self.left, self.right)
        self.y = Axis.fit(all_y, chart.y_scale, self.bottom, self.top)
        self.marks = [(self.x.at(mark.x), self.y.at(mark.y), mark) for mark in chart.marks]
        self.levels = [(self.y.at(level.y), level) for level in chart.levels]
        self.lines = {
            series: sorted(
                ((x, y) for x, y, mark in self.marks if mark.series == series),
                key=lambda point: (point[0], -point[1]),
            )
            for series in chart.joined
        }
        self.labels = self._labels()
        self.x_label = shorten(chart.x_label, font, self.right)
        self.y_label = shorten(chart.y_label, font, self.right)

    def _legend(self) -> tuple[list[tuple[float, float, str, str]], int]:
        """Return x, y, class and text of each entry, and how many rows they take."""
        chart, font = self.chart, self.size.font
        entries: list[tuple[str, str]] = []
        for series, name in chart.legend.items():
            filled = [mark.filled for mark in chart.marks if mark.series == series]
            if filled:
                entries.append((series if any(filled) else f"{series} hollow", name))
        if chart.hollow and not all(mark.filled for mark in chart.marks):
            entries.append(("v1 grey hollow", chart.hollow))
        placed, x, row = [], 8.0, 0
        for css_class, name in entries:
            width = 26 + text_width(name, font)
            if x > 8 and x + width > self.size.width:
                x, row = 8.0, row + 1
            placed.append((x, self.head + (2.6 + 1.7 * row) * font, css_class, name))
            x += width
        return placed, row + 1 if entries else 0

    def _labels(self) -> list[Label]:
        font, width = self.size.font, self.size.width

        def size_of(text: str) -> tuple[float, float]:
            return text_width(text, font), 1.2 * font

        texts: list[tuple[str, Series]] = []
        candidates = []
        for x, y, mark in self.marks:
            if mark.label:
                texts.append((shorten(mark.label, font, 0.5 * width), mark.series))
                points = np.array([[x, y]])
                candidates.append(_around(points, *size_of(texts[-1][0]), own=True))
        for y, level in self.levels:
            tail = f" {level.y:.1f}: {level.remark}"
            room = self.right - self.left - 8 - text_width(tail, font)
            texts.append((shorten(level.name, font, room) + tail, "own"))
            half = text_width(texts[-1][0], font) / 2 + 4
            xs = np.linspace(self.left + half, max(self.left, self.right - half), 17)
            points = np.stack([xs, np.full(17, y)], 1)
            candidates.append(_around(points, *size_of(texts[-1][0]), own=False))
        points = np.array([(x, y) for x, y, _ in self.marks])
        obstacles = np.array([
            *(np.hstack([points - self.radius, points + self.radius])),
            *((self.left, y - 1, self.right, y + 1) for y, _ in self.levels),
            (0.0, 0.0, width, self.top - 0.8 * font),
        ])  # fmt: skip
        segments = [(*a, *b) for line in self.lines.values() for a, b in pairwise(line)]
        bounds = np.array([self.left + 2, self.head + 1.5 * font, self.right, self.bottom - 2])
        chosen = _place(candidates, obstacles, np.array(segments).reshape(-1, 4), bounds, points)
        labels = []
        for (text, series), options, k in zip(texts, candidates, chosen, strict=True):
            if k is not None:
                leader = options.leaders[k].tolist()
                labels.append(Label(text, series, tuple(options.boxes[k].tolist()),
                                    None if math.isnan(leader[0]) else tuple(leader)))  # fmt: skip
        return labels


def svg_file(chart: Chart) -> str:
    """Return a chart as an SVG file that stands alone."""
    size = Size(kind="wide", width=800, height=480, font=13)
    return render("chart.svg", drawing=Drawing(chart, size, titled=True))


# Placing labels: a greedy choice and a few passes of repair.

_PASSES = 4
_OUTSIDE, _LABEL, _MARK, _LINE, _LEADER, _UNCLEAR, _UNCLEAR_LED = 1e4, 1e3, 120, 14, 40, 50, 3
_DIRECTIONS = np.array([
    (0.7, -0.7), (-0.7, -0.7), (0.7, 0.7), (-0.7, 0.7), (1.0, 0.0), (-1.0, 0.0), (0.0, -1.0),
    (0.0, 1.0), (0.35, -0.95), (-0.35, -0.95), (0.35, 0.95), (-0.35, 0.95),
])  # fmt: skip
_REACHES = np.array([8.0, 15.0, 26.0, 40.0, 56.0, 74.0])


class _Candidates(NamedTuple):
    """The positions that a label may take, the best first."""

    boxes: Array
    """(K, 4)."""
    leaders: Array
    """(K, 4), the line from its mark; NaN where it needs none."""
    costs: Array
    """(K,)."""
    anchor: Array | None
    """(2,), the mark that it names."""


def _around(points: Array, width: float, height: float, *, own: bool) -> _Candidates:
    """Return positions around points (P, 2), from beside one to some way off, the first preferred.

    With `own` the label names the first point, and should be nearer to it than to other marks.
    """
    half = np.array([width, height]) / 2
    sides = np.sign(np.where(abs(_DIRECTIONS) < 0.5, 0, _DIRECTIONS))
    offsets = _REACHES[:, None, None] * _DIRECTIONS + half * sides  # rings, directions, 2
    centres = points[:, None, None] + offsets
    boxes = np.concatenate([centres - half, centres + half], -1)
    starts = np.broadcast_to(points[:, None, None], centres.shape)
    leaders = np.concatenate([starts, starts.clip(boxes[..., :2], boxes[..., 2:])], -1)
    leaders[:, :2] = np.nan  # the two nearest rings need none
    costs = [0.5 * i + 7.0 * ring + 0.4 * turn for i, ring, turn in np.ndindex(centres.shape[:3])]
    anchor = points[0] if own else None
    return _Candidates(boxes.reshape(-1, 4), leaders.reshape(-1, 4), np.array(costs), anchor)


def _place(candidates: Sequence[_Candidates], obstacles: Array, segments: Array, bounds: Array,
           points: Array) -> list[int | None]:  # fmt: skip
    """Return the position of each label, so that no two overlap; None where there is no room.

    Args:
        candidates: the positions of each label.
        obstacles: (M, 4), what labels should not cover.
        segments: (S, 4), what labels should rather not cross.
        bounds: (4,), where all labels lie.
        points: (M, 2); a label should be nearest to its own.
    """
    inside = [np.all((c.boxes - bounds) * (1, 1, -1, -1) >= 0, axis=1) for c in candidates]
    fixed = []
    for c, within in zip(candidates, inside, strict=True):
        cost = c.costs + _OUTSIDE * ~within + _MARK * _overlap(c.boxes, obstacles).sum(1)
        cost += _LINE * _cross(segments, c.boxes).sum(0)
        # A leader begins at its own mark and may not run through another.
        cost += _LEADER * (_cross(c.leaders, obstacles).sum(1) - 1).clip(0)
        if c.anchor is not None:
            marks = np.array([c.anchor, *points[(points != c.anchor).any(1)]])[:, None]
            gaps = np.hypot(*(marks.clip(c.boxes[:, :2], c.boxes[:, 2:]) - marks).T).T  # (M, K)
            nearer = (gaps[1:] < gaps[0] + 3).sum(0)
            cost += nearer * np.where(np.isnan(c.leaders[:, 0]), _UNCLEAR, _UNCLEAR_LED)
        fixed.append(cost)
    chosen: dict[int, int] = {}
    for _ in range(_PASSES):
        for i in sorted(range(len(fixed)), key=lambda i: -fixed[i].min()):
            others = [(candidates[j], k) for j, k in chosen.items() if j != i]
            boxes = np.array([c.boxes[k] for c, k in others]).reshape(-1, 4)
            leaders = np.array([c.leaders[k] for c, k in others]).reshape(-1, 4)
            mine = candidates[i]
            cost = fixed[i] + _LABEL * _overlap(mine.boxes, boxes).sum(1)
            cost += _LEADER * _cross(leaders, mine.boxes).sum(0)
            cost += _LEADER * _cross(mine.leaders, boxes).sum(1)
            chosen[i] = int(cost.argmin())
    kept: dict[int, int] = {}
    for i, c in enumerate(candidates):
        taken = np.array([candidates[j].boxes[k] for j, k in kept.items()]).reshape(-1, 4)
        if inside[i][chosen[i]] and not _overlap(c.boxes[[chosen[i]]], taken).any():
            kept[i] = chosen[i]
    return [kept.get(i) for i in range(len(candidates))]


def _overlap(boxes: Array, others: Array) -> NDArray[np.bool_]:
    """Return (K, M): which boxes share more than an edge."""
    a, b = boxes[:, None], others[None]
    return np.all((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), axis=-1)


def _cross(segments: Array, boxes: Array) -> NDArray[np.bool_]:
    """Return (S, K): which segments pass through which boxes (clipping by slabs)."""
    start = segments[:, None, :2]
    step = segments[:, None, 2:] - start
    step = np.where(step == 0, 1e-9, step)
    a, b = (boxes[:, :2] - start) / step, (boxes[:, 2:] - start) / step
    enter, leave = np.minimum(a, b).max(-1).clip(0), np.maximum(a, b).min(-1).clip(max=1)
    return np.less(enter, leave)


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
