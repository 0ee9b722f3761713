"""Table, summary and plot for `learning_efficiency.py`: accuracy against samples seen, by arm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Table = dict[str, dict[int, list[float]]]
"""Accuracies of the seeds, in percent, by arm and samples seen."""


def averages(arms: Iterable[str], records: Sequence[dict[str, Any]]) -> Table:
    """Return the accuracies by arm and budget, budgets rising."""
    out: Table = {arm: {} for arm in arms}
    for record in sorted(records, key=lambda r: (r["samples"], r["seed"])):
        out[record["arm"]].setdefault(record["samples"], []).append(record["top1"])
    return out


def summary(table: Table) -> dict[str, Any]:
    """Return the figures of the last line: means over seeds.

    The number of samples that reinforcement needs is the smallest measured budget whose mean
    reaches the best plain mean, without interpolation.
    """
    means = {
        arm: {budget: statistics.fmean(values) for budget, values in runs.items()}
        for arm, runs in table.items()
    }
    plain, captions, reinforced = (means[arm] for arm in ("plain", "captions", "reinforced"))
    if not plain or not reinforced:
        return {"runs": sum(len(values) for runs in table.values() for values in runs.values())}
    best = max(plain.values())
    reached_at = min(budget for budget, values in plain.items() if values == best)
    enough = [budget for budget, values in reinforced.items() if values >= best]
    return {
        "plain_best_top1": round(best, 2),
        "plain_best_samples": reached_at,
        "reinforced_samples": min(enough) if enough else None,
        "ratio": round(reached_at / min(enough), 2) if enough else None,
        "captions_best_top1": round(max(captions.values()), 2) if captions else None,
        "reinforced_best_top1": round(max(reinforced.values()), 2),
        "fewest_seeds": min(len(values) for runs in table.values() for values in runs.values()),
    }


COLOURS = {"plain": "#888888", "captions": "#d08000", "reinforced": "#1060c0"}


def plot(table: Table) -> str:
    """Return an SVG: mean accuracy against samples seen, with bars from lowest to highest."""
    budgets = sorted({budget for runs in table.values() for budget in runs})
    high = max((max(f) for runs in table.values() for f in runs.values()), default=10.0)
    top = 10 * (int(high // 10) + 1)
    low, span = np.log(budgets[0]), max(np.log(budgets[-1]) - np.log(budgets[0]), 1e-9)

    def x(budget: int) -> float:
        return float(60 + 460 * (np.log(budget) - low) / span)

    def y(percent: float) -> float:
        return 300 - 270 * percent / top

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 350" font-family="sans-serif" '
        'font-size="12"><rect width="640" height="350" fill="white"/>'
    ]
    for tick in range(0, top + 1, 10):
        parts.append(f'<path d="M60 {y(tick):.1f}H520" stroke="#ddd"/>')
        parts.append(f'<text x="52" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    free = 0.0  # where the last label ends
    for budget in budgets:
        label = f"{budget / 1000:.3g}k"
        if x(budget) < free:
            continue
        free = x(budget) + 40
        parts.append(f'<text x="{x(budget):.1f}" y="318" text-anchor="middle">{label}</text>')
    parts.append('<text x="290" y="340" text-anchor="middle">samples seen</text>')
    parts.append('<text x="60" y="18">zero-shot top-1 of 81 products, %</text>')
    for arm, runs in table.items():
        if not runs:
            continue
        colour = COLOURS[arm]
        means = {budget: statistics.fmean(values) for budget, values in runs.items()}
        line = " ".join(f"{x(b):.1f},{y(m):.1f}" for b, m in means.items())
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for budget, values in runs.items():
            ends = f"M{x(budget):.1f} {y(min(values)):.1f}V{y(max(values)):.1f}"
            parts.append(f'<path d="{ends}" stroke="{colour}"/>')
            spot = f'cx="{x(budget):.1f}" cy="{y(means[budget]):.1f}"'
            parts.append(f'<circle {spot} r="3.5" fill="{colour}"/>')
        last = list(means)[-1]
        parts.append(
            f'<text x="{x(last) + 10:.1f}" y="{y(means[last]) + 4:.1f}" '
            f'fill="{colour}">{arm}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def show(table: Table) -> None:
    """Print mean and spread of each cell."""
    budgets = sorted({budget for runs in table.values() for budget in runs})
    print(f"{'samples':>10}" + "".join(f"{arm:>24}" for arm in table))
    for budget in budgets:
        cells = []
        for runs in table.values():
            f = runs.get(budget, [])
            cells.append(
                f"{statistics.fmean(f):.1f} ({min(f):.1f}-{max(f):.1f}, {len(f)})" if f else "-"
            )
        print(f"{budget:>10}" + "".join(f"{cell:>24}" for cell in cells))
