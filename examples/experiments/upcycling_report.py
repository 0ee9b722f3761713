"""Tables and figure of `upcycling.py`: scores against samples seen, and against training time.

The time of a run is its number of steps times the measured time of one step of its model. Steps of
all models are measured in turn in one process, since other work on the machine changes during hours
of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiment_figure import Line, Panel, draw
from experiment_report import (
    COMPARED,
    MEASURES,
    Difference,
    compare,
    difference_table,
    figures_of,
    score,
    spread,
)

if TYPE_CHECKING:
    from experiment_runs import Arrays
    from upcycling import Run

Done = Mapping["Run", Mapping[int, "Arrays"]]
"""The ranks of each run by samples seen."""
Times = Mapping[str, float]
"""Seconds per sample of each model in training."""
COMPARISONS = (
    ("upcycled", "dense-more"),
    ("upcycled-fast", "dense-more-fast"),
    ("upcycled", "dense-all"),
    ("upcycled", "deeper"),
    ("upcycled", "sparse"),
    ("sparse", "dense-all"),
    ("sparse", "deeper"),
    ("deeper", "dense-all"),
    ("upcycled-all-tokens", "upcycled-fast"),
)
"""What is compared at the end of the runs, the first less the second."""
DRAWN = {
    "dense": ("#888888", ""),
    "dense-more": ("#888888", "5 3"),
    "dense-more-fast": ("#444444", ""),
    "upcycled": ("#d08000", "5 3"),
    "upcycled-fast": ("#d08000", ""),
    "dense-all": ("#c03060", ""),
    "deeper": ("#1060c0", ""),
    "sparse": ("#208040", ""),
}
"""Colours and dashes."""


def ends(done: Done, name: str) -> dict[int, Arrays]:
    """Return the last ranks of an arm's runs by seed."""
    return {
        run.seed: points[max(points)] for run, points in done.items() if run.name == name and points
    }


def differences(done: Done) -> list[Difference]:
    """Return the comparisons of which both sides were run, over the seeds that both have."""
    found = []
    for left, right in COMPARISONS:
        ours, theirs = ends(done, left), ends(done, right)
        pairs = [[(ours[seed], theirs[seed])] for seed in sorted(ours.keys() & theirs.keys())]
        if pairs:
            found += [compare(f"{left} less {right}", m, pairs) for m in COMPARED]
    return found


def seconds(run: Run, samples: int, times: Times) -> float:
    """Return the training time of a run until so many samples, its first phase included."""
    before = run.seen_before
    return before * times["dense"] + (samples - before) * times[run.arm.model]


def report(done: Done, times: Times) -> str:
    """Return the report as markdown."""
    shown = ["classification", "retrieval", "precision"]
    heads = [MEASURES[measure] for measure in shown]
    lines = [
        "Percent after the last sample, the mean with the lowest and highest seed:", "",
        "| arm | model | samples | time of a step | training time | seeds | "
        + " | ".join(heads) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(shown),
    ]  # fmt: skip
    for name in dict.fromkeys(run.name for run in done):
        last = ends(done, name)
        runs = [run for run, points in done.items() if run.name == name and points]
        if not runs:
            continue
        run, samples = runs[0], max(done[runs[0]])
        cells = [spread([score(arrays, measure) for arrays in last.values()]) for measure in shown]
        step = f"{times[run.arm.model] / times['dense']:.2f}" if times else "not measured"
        spent = f"{seconds(run, samples, times):.0f} s" if times else "not measured"
        lines.append(
            f"| `{name}` | {run.arm.model} | {samples:,} | {step} | {spent} | "
            f"{', '.join(str(seed) for seed in sorted(last))} | " + " | ".join(cells) + " |"
        )
    lines += [
        "", "Differences in points, seed by seed; both intervals are of 95 %:", "",
        *difference_table(differences(done)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def figure(done: Done, times: Times) -> str:
    """Return an SVG: a row of panels against samples, and one against time if that is known."""
    runs = {run: points for run, points in done.items() if points and run.name in DRAWN}
    names = [name for name in DRAWN if any(run.name == name for run in runs)]
    titles = {run.name: run.arm.title for run in runs}
    legend = [(titles[name], _line(name, {})) for name in names]
    axes: list[tuple[str, Callable[[Run, int], float]]] = [
        ("thousands of samples seen", lambda _, samples: samples / 1000)
    ]
    if times:
        axes.append(
            (
                "minutes of training, one core",
                lambda run, samples: seconds(run, samples, times) / 60,
            )
        )
    rows = [[_panel(runs, names, measure, label, at) for measure in COMPARED] for label, at in axes]
    return draw("Dense against upcycled", legend, rows)


def _line(name: str, points: Mapping[float, Sequence[float]]) -> Line:
    colour, dash = DRAWN[name]
    return Line(colour=colour, dash=dash, points=points)


def _panel(
    runs: Done, names: Sequence[str], measure: str, label: str, at: Callable[[Run, int], float]
) -> Panel:
    far = max(at(run, max(points)) for run, points in runs.items()) * 1.04
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if far <= 7 * s)
    lines = []
    for name in names:
        scores: dict[float, list[float]] = {}
        for run, points in runs.items():
            if run.name != name:
                continue
            whole = dict(points)
            if run.arm.continues and run.base in runs:  # the line begins where its base ends
                last = max(runs[run.base])
                whole[last] = runs[run.base][last]
            for samples in sorted(whole):
                place = at(run, samples) / far
                scores.setdefault(place, []).append(score(whole[samples], measure))
        lines.append(_line(name, scores))
    ticks = {tick / far: f"{tick:g}" for tick in range(0, int(far) + 1, step)}
    return Panel(title=f"{MEASURES[measure]}, %", x_label=label, ticks=ticks, lines=lines)


def summary(done: Done, times: Times) -> dict[str, Any]:
    """Return the figures of the last line."""
    return {
        "experiment": "upcycling",
        "runs": sum(1 for points in done.values() if points),
        "step_time": {name: round(time / times["dense"], 3) for name, time in times.items()},
        "differences": [figures_of(one) for one in differences(done)],
    }
