"""Results side by side: as tables, as pages with charts, and as JSON.

    from pocketclip.evaluate.report import compare, gather

    comparison = compare(gather(["results.jsonl", "mobileclip2-s0"]))
    comparison.average.values              # one mean per model

| module | holds |
|---|---|
| `runs` | one model's results, from a file, a run folder or the published tables |
| `comparison` | results task by task, with averages; its names are here too |
| `latency` | published latency, and latency measured by `benchmarks/encode.py` |
| `page`, `confusion` | the pages of a comparison and of a confusion matrix |
| `templates/` | what `pages.render` fills |
"""

from pocketclip.evaluate.report.comparison import (
    Comparison,
    Measure,
    Row,
    averages,
    best,
    compare,
    measure,
    percent,
    points_between,
)
from pocketclip.evaluate.report.runs import PUBLISHED, Run, gather, published_run

__all__ = [
    "PUBLISHED",
    "Comparison",
    "Measure",
    "Row",
    "Run",
    "averages",
    "best",
    "compare",
    "gather",
    "measure",
    "percent",
    "points_between",
    "published_run",
]
