"""The logit scale per teacher that its zero-shot likelihood prefers: `pocketclip sweep-scales`.

    report = sweep_scales("dr", "pairs.csv", label_column="product", where={"split": "val"})
    report.scales                          # [21.4, 18.9], for loss.teacher_scales

A teacher's logit scale decides how sharp the distribution is that a student learns from it
(MobileCLIP, arXiv 2311.17049, equation 2; MobileCLIP2, arXiv 2508.20691, tunes it per teacher). The
paper chooses it by training students. This package chooses it without training: the scale under
which the teacher gives the right classes of held-out images the highest likelihood.

| module | holds |
|---|---|
| `sweep` | a reinforced set and a labelled set to a report |
| `likelihood` | the likelihood over scales, of one teacher and of several together |
| `chart` | the likelihood over scales, drawn |
| `set_teachers` | the models that made a set, loaded one by one |
"""

from pocketclip.sweep_scales.chart import sweep_chart
from pocketclip.sweep_scales.likelihood import Fit, Point
from pocketclip.sweep_scales.sweep import SweepReport, TeacherSweep, sweep_scales

__all__ = ["Fit", "Point", "SweepReport", "TeacherSweep", "sweep_chart", "sweep_scales"]
