"""Curves of scores against samples seen, as SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from pocketclip.evaluate.report.markup import text

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 118, 14, 44
_COLOURS = ("var(--v2)", "var(--v1)", "var(--own)")

Points = Sequence[tuple[float, float]]


def curves(
    title: str, series: Mapping[str, Points], *, x_label: str, y_label: str, level: float | None
) -> str:
    """Return a drawing of lines, one per name; values of y are shares and shown in per cent.

    Args:
        title: what it shows, for readers who do not see it.
        series: points (x, y) by name, x rising.
        x_label: what x is.
        y_label: what y is.
        level: a dashed line at this y: what guessing gives.
    """
    points = [point for line in series.values() for point in line]
    right = max((x for x, _ in points), default=1.0) or 1.0
    top = _ceiling(max([y for _, y in points] + [level or 0.0, 0.05]))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / right * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}" '
        'font-size="12">',
        *_axes(right, top, place(0, 0), place(right, top)),
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{text(x_label)}</text>',
        f'<text x="{_LEFT + 6}" y="{_TOP + 10}">{text(y_label)}</text>',
    ]
    if level is not None:
        (x1, y1), (x2, _) = place(0, level), place(right, level)
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y1:.1f}" stroke="var(--dim)" '
            f'stroke-dasharray="4 4"/><text x="{x2 + 6:.1f}" y="{y1 + 4:.1f}">guessing</text>'
        )
    ends = _spread([place(*line[-1])[1] for line in series.values() if line])
    drawn = [(name, line) for name, line in series.items() if line]
    for number, ((name, line), end) in enumerate(zip(drawn, ends, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
                      for x, y in places)
            + f'<text x="{places[-1][0] + 8:.1f}" y="{end + 4:.1f}" style="fill:{colour}">'
            f"{text(name)} {100 * line[-1][1]:.1f} %</text>"
        )  # fmt: skip
    return "\n".join([*parts, "</svg>"])


def _axes(
    right: float, top: float, low: tuple[float, float], high: tuple[float, float]
) -> list[str]:
    (x0, y0), (x1, y1) = low, high
    out = []
    for k in range(5):
        share = k / 4
        x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
        value = f"{100 * top * share:g} %"
        out.append(
            f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}" stroke="var(--faint)"/>'
            f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
            f'<text x="{x:.1f}" y="{y0 + 17:.1f}" text-anchor="middle">{right * share:,.0f}</text>'
        )
    return out


def _ceiling(value: float) -> float:
    return next(top for top in (0.08, 0.2, 0.4, 0.6, 0.8, 1.0) if value <= top or top == 1.0)


def _spread(places: Sequence[float], least: float = 15) -> list[float]:
    """Return heights of labels, moved apart where two would overlap."""
    out = list(places)
    order = sorted(range(len(out)), key=out.__getitem__)
    for above, below in pairwise(order):
        out[below] = max(out[below], out[above] + least)
    return out
