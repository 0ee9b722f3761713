"""The figures of the experiments: panels of scores, a dot for each seed and lines through means."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from experiment_report import MEASURES, score

if TYPE_CHECKING:
    from experiment_runs import Arrays, Experiment, Run

SHOWN = ("classification", "retrieval")
COLOURS = ("#1060c0", "#d08000")
_WIDTH, _HEIGHT = 380, 250  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 44, 42  # margins within it
_ROW = 26  # of the legend


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The scores of one arm."""

    colour: str
    points: Mapping[float, Sequence[float]]
    """The seeds' scores by place, from 0 (left) to 1 (right), places rising."""
    dash: str = ""
    """SVG's stroke-dasharray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart."""

    title: str
    x_label: str
    ticks: Mapping[float, str]
    """Labels of the horizontal axis by place."""
    lines: Sequence[Line]


def figure(experiment: Experiment, done: Mapping[Run, Arrays]) -> str:
    """Return an SVG: scores against lambda, a panel for each set and measure."""
    rows = []
    for world in dict.fromkeys(run.world for run in done):
        runs = {run: arrays for run, arrays in done.items() if run.world == world}
        rows.append([_by_share(experiment, world, measure, runs) for measure in SHOWN])
    legend = [
        (arm.name, Line(colour=colour, points={}))
        for arm, colour in zip(experiment.arms, COLOURS, strict=False)
    ]
    return draw(experiment.title, legend, rows)


def _by_share(
    experiment: Experiment, world: str, measure: str, runs: Mapping[Run, Arrays]
) -> Panel:
    shares = sorted({run.share for run in runs})
    lines = []
    for number, (arm, colour) in enumerate(zip(experiment.arms, COLOURS, strict=False)):
        # So that arms do not cover each other.
        aside = 10 * (number - (len(experiment.arms) - 1) / 2) / (_WIDTH - _LEFT - _RIGHT)
        points = {
            _place(shares, share) + aside: [
                score(arrays, measure)
                for run, arrays in runs.items()
                if (run.arm, run.share) == (arm, share)
            ]
            for share in shares
        }
        lines.append(Line(colour=colour, points=points))
    return Panel(
        title=f"{world}: {MEASURES[measure]}, %", x_label="lambda", lines=lines,
        ticks={_place(shares, share): f"{share:g}" for share in shares},
    )  # fmt: skip


def _place(shares: Sequence[float], share: float) -> float:
    return (shares.index(share) + 0.5) / len(shares)


def draw(title: str, legend: Sequence[tuple[str, Line]], rows: Sequence[Sequence[Panel]]) -> str:
    """Return an SVG of panels in rows below a legend, which names lines by their colour."""
    width = _WIDTH * max((len(row) for row in rows), default=2)
    entries, x, y = [], float(_LEFT), 16
    for name, line in legend:
        needed = 34 + 7.5 * len(name)
        if x + needed > width and x > _LEFT:
            x, y = float(_LEFT), y + _ROW - 6
        if line.dash:  # a piece of the line, with the dot in its middle
            entries.append(
                f'<path d="M{x - 12:.0f} {y}h24" stroke="{line.colour}" stroke-width="2"'
                f"{_dash(line)}/>"
            )
        entries.append(f'<circle cx="{x:.0f}" cy="{y}" r="4" fill="{line.colour}"/>')
        beside = x + (16 if line.dash else 9)
        entries.append(
            f'<text x="{beside:.0f}" y="{y + 4}" fill="{line.colour}">{escape(name)}</text>'
        )
        x += needed
    head = y + 10
    height = head + _HEIGHT * max(len(rows), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *entries,
    ]
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            parts.append(f'<g transform="translate({_WIDTH * column} {head + _HEIGHT * row})">')
            parts += _panel(panel)
            parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _dash(line: Line) -> str:
    return f' stroke-dasharray="{line.dash}"' if line.dash else ""


def _panel(panel: Panel) -> list[str]:
    scores = [v for line in panel.lines for values in line.points.values() for v in values]
    low, high = min(scores), max(scores)
    step = next((s for s in (1, 2, 5, 10) if high - low <= 6 * s), 20)
    low, high = step * (low // step), step * (high // step + 1)

    def x(place: float) -> float:
        return _LEFT + place * (_WIDTH - _LEFT - _RIGHT)

    def y(percent: float) -> float:
        part = (percent - low) / (high - low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)

    out = [f'<text x="{_LEFT}" y="{_TOP - 14}">{escape(panel.title)}</text>']
    tick = low
    while tick <= high:
        out.append(f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        tick += step
    for place, label in panel.ticks.items():
        at = f'x="{x(place):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle"'
        out.append(f"<text {at}>{escape(label)}</text>")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    label = escape(panel.x_label)
    out.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{label}</text>')
    for line in panel.lines:
        means = []
        for place, values in line.points.items():
            if values:
                means.append(f"{x(place):.1f},{y(statistics.fmean(values)):.1f}")
            out += [
                f'<circle cx="{x(place):.1f}" cy="{y(value):.1f}" r="3.5" fill="{line.colour}" '
                'fill-opacity="0.55"/>'
                for value in values
            ]
        path = f'<polyline points="{" ".join(means)}" fill="none"'
        out.append(f'{path} stroke="{line.colour}" stroke-width="2"{_dash(line)}/>')
    return out
