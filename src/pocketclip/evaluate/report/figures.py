"""What a model costs: its parameters, operations and published latency.

    figures = figures_of(run)
    figures.params_million, figures.gflop, figures.ms, figures.how

| run | parameters | operations | latency |
|---|---|---|---|
| a published model of the zoo | published | counted, by open_clip's rule | published |
| a model of others | open_clip's table | open_clip's table | three are derived from a ratio |
| a results file | as `pocketclip eval` recorded them | the same | none |
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pocketclip import zoo
from pocketclip.checkpoint.operations import measure
from pocketclip.evaluate.report.latency import published_ms
from pocketclip.evaluate.report.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one model; None where one is not known."""

    params_million: float | None = None
    """Parameters of both towers, in millions."""
    active_params_million: float | None = None
    """Those of a sparse model that one token uses; None of a dense one, which uses all."""
    gflop: float | None = None
    """Billions of operations for one image and one text; two per multiply-accumulate."""
    ms: float | None = None
    """Published milliseconds for one image and one text, on an iPhone 12 Pro Max."""
    how: str = ""
    """How the latency was derived; empty if it was published itself."""

    def facts(self) -> dict[str, Any]:
        """Return plain JSON types."""
        facts = {
            "params_million": self.params_million,
            "gflop": self.gflop,
            "published_ms": self.ms,
        }
        if self.active_params_million is not None:
            facts["active_params_million"] = self.active_params_million
        rounded: dict[str, Any] = {k: None if v is None else round(v, 3) for k, v in facts.items()}
        return rounded | ({"published_ms_how": self.how} if self.how else {})


def figures_of(run: Run) -> Figures:
    """Return what is known of a run's model."""
    if run.rival is not None:
        ms, how = run.rival.derived_latency or (None, "")
        return Figures(
            params_million=run.rival.params_million, gflop=run.rival.gflop, ms=ms, how=how
        )
    if run.published and run.model is not None:
        return _of_zoo(run.model)
    params, active = run.recorded("params_million"), run.recorded("active_params_million")
    return Figures(
        params_million=params,
        active_params_million=None if active == params else active,
        gflop=run.recorded("gflop"),
    )


@functools.cache
def _of_zoo(name: str) -> Figures:
    entry = zoo.entry(name)
    facts = entry.published
    assert facts is not None
    return Figures(
        params_million=facts.image_params_million + facts.text_params_million,
        gflop=measure(entry.config).gflop,
        ms=published_ms(name),
    )
