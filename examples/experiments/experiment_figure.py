"""The figure of an experiment: scores against lambda, a panel for each set and measure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from experiment_report import MEASURES, score

if TYPE_CHECKING:
    from experiment_runs import Arrays, Experiment, Run

SHOWN = ("classification", "retrieval")
COLOURS = ("#1060c0", "#d08000")
_WIDTH, _HEIGHT = 380, 250  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 44, 42  # margins within it
_HEAD = 26


def figure(experiment: Experiment, done: Mapping[Run, Arrays]) -> str:
    """Return an SVG: a dot for each seed, and a line through the means of each arm."""
    worlds = list(dict.fromkeys(run.world for run in done))
    width, height = _WIDTH * len(SHOWN), _HEAD + _HEIGHT * max(len(worlds), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><title>{escape(experiment.title)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    ]
    x = float(_LEFT)
    for arm, colour in zip(experiment.arms, COLOURS, strict=False):
        parts.append(f'<circle cx="{x:.0f}" cy="16" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 9:.0f}" y="20" fill="{colour}">{escape(arm.name)}</text>')
        x += 34 + 7.5 * len(arm.name)
    for row, world in enumerate(worlds):
        for column, measure in enumerate(SHOWN):
            parts.append(f'<g transform="translate({_WIDTH * column} {_HEAD + _HEIGHT * row})">')
            runs = {run: score(a, measure) for run, a in done.items() if run.world == world}
            parts += _panel(experiment, f"{world}: {MEASURES[measure]}, %", runs)
            parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(experiment: Experiment, title: str, runs: Mapping[Run, float]) -> list[str]:
    shares = sorted({run.share for run in runs})
    low, high = min(runs.values()), max(runs.values())
    step = next((s for s in (1, 2, 5, 10) if high - low <= 6 * s), 20)
    low, high = step * (low // step), step * (high // step + 1)

    def x(share: float) -> float:
        place = (shares.index(share) + 0.5) / len(shares)
        return _LEFT + place * (_WIDTH - _LEFT - _RIGHT)

    def y(percent: float) -> float:
        part = (percent - low) / (high - low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)

    out = [f'<text x="{_LEFT}" y="{_TOP - 14}">{escape(title)}</text>']
    tick = low
    while tick <= high:
        out.append(f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        tick += step
    for share in shares:
        place = f'x="{x(share):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle"'
        out.append(f"<text {place}>{share:g}</text>")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    out.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">lambda</text>')
    for number, (arm, colour) in enumerate(zip(experiment.arms, COLOURS, strict=False)):
        aside = 10 * (number - (len(experiment.arms) - 1) / 2)  # so that arms do not cover another
        means = []
        for share in shares:
            values = [v for run, v in runs.items() if (run.arm, run.share) == (arm, share)]
            if values:
                means.append(f"{x(share) + aside:.1f},{y(statistics.fmean(values)):.1f}")
            out += [
                f'<circle cx="{x(share) + aside:.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}" '
                'fill-opacity="0.55"/>'
                for value in values
            ]
        line = f'<polyline points="{" ".join(means)}" fill="none"'
        out.append(f'{line} stroke="{colour}" stroke-width="2"/>')
    return out
