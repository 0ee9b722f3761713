"""The likelihood over scales as a chart.

svg_file(sweep_chart(report))
"""

from __future__ import annotations

import math

from pocketclip.pages.svg import Chart, Mark, Series
from pocketclip.sweep_scales.sweep import SweepReport

_SERIES: tuple[Series, ...] = ("v1", "v2", "own", "openai", "siglip", "dfn", "datacomp", "metaclip")


def sweep_chart(report: SweepReport) -> Chart:
    """Return the geometric mean of the right class's probability against the scale.

    Of more than eight teachers the first eight are drawn, and the title says so.
    """
    marks, count = [], len(report.teachers)
    for series, teacher in zip(_SERIES, report.teachers, strict=False):
        best = teacher.best.point
        labelled = [(best, f"{best.scale:.3g}", True)]
        if teacher.recorded is not None:
            labelled.append((teacher.recorded, f"recorded {teacher.recorded.scale:.3g}", False))
        grid = [(scale, value, "", False) for scale, value in teacher.best.curve]
        others = [(p.scale, p.log_likelihood, label, filled) for p, label, filled in labelled]
        for scale, value, label, filled in [*grid, *others]:
            percent = 100 * math.exp(value)
            marks.append(Mark(
                name=f"{teacher.name} {scale:.3g}", x=scale, y=percent, series=series,
                label=label, filled=filled,
                tooltip=f"{teacher.name}: scale {scale:.3g}, {percent:.1f} %",
            ))  # fmt: skip
    return Chart(
        name="scales",
        title=f"Logit scales of {report.folder}"
        + (f", {len(_SERIES)} of {count} teachers" if count > len(_SERIES) else ""),
        x_label="logit scale (log)",
        y_label="probability of the right class, geometric mean, %",
        marks=marks,
        joined=_SERIES[:count],
        legend={s: t.name for s, t in zip(_SERIES, report.teachers, strict=False)},
        hollow="hollow: not the best",
    )
