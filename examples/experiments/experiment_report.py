"""Tables and intervals of an experiment, as markdown, and its last line.

Two arms are compared seed by seed: the same initial weights, and the same samples and views in the
same order. Each difference has two intervals of 95 %: over seeds (Student's t of the
paired differences), which says whether other seeds would agree, and over test images (bootstrap of
the mean over the seeds that were run), which says whether other images would.

Shapes: K seeds, N images or texts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from experiment_runs import Arrays, Experiment, Run

MEASURES = {
    "classification": "zero-shot top-1",
    "retrieval": "retrieval, mean recall@1",
    "image to text": "image to text R@1",
    "text to image": "text to image R@1",
    "precision": "text to image, mAP",
}
_PARTS = {
    "classification": ("class",),
    "retrieval": ("text", "image"),
    "image to text": ("text",),
    "text to image": ("image",),
    "precision": ("precision",),
}
COMPARED = ("classification", "retrieval", "precision")
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom."""
_RESAMPLES = 4000
Pair = tuple["Arrays", "Arrays"]
"""The ranks of two runs that differ in what is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much one setting is above another, in points."""

    what: str
    measure: str
    by_seed: tuple[float, ...]
    seeds: tuple[float, float] | None
    """The interval over seeds; None with one seed."""
    images: tuple[float, float]
    """The interval over test images."""

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.by_seed)

    @property
    def verdict(self) -> str:
        """`higher` or `lower` if both intervals exclude 0; which of them does not otherwise."""
        images = _side(self.images)
        if self.seeds is None:
            return f"{images} (one seed)"
        if _side(self.seeds) == images:
            return images
        return "open over images" if images == "open" else f"{images}, but open over seeds"


def _side(interval: tuple[float, float]) -> str:
    return "higher" if interval[0] > 0 else "lower" if interval[1] < 0 else "open"


def values(arrays: Arrays, part: str) -> np.ndarray[Any, Any]:
    """Return what each image or text adds to a measure, (N,), in percent."""
    rows = arrays[part]
    return 100 * rows if part == "precision" else 100.0 * (rows == 1)


def score(arrays: Arrays, measure: str) -> float:
    """Return a measure of one run, in percent."""
    return statistics.fmean(float(values(arrays, part).mean()) for part in _PARTS[measure])


def compare(what: str, measure: str, seeds: Sequence[Sequence[Pair]]) -> Difference:
    """Return how much the first of each pair of runs is above the second.

    Args:
        what: describes the comparison.
        measure: a key of `MEASURES`.
        seeds: for each of K seeds the pairs of runs to be averaged; a seed counts once.
    """
    by_seed = tuple(
        statistics.fmean(score(a, measure) - score(b, measure) for a, b in pairs) for pairs in seeds
    )
    rng = np.random.default_rng(0)
    parts = []
    for part in _PARTS[measure]:
        gains = [
            np.mean([values(a, part) - values(b, part) for a, b in pairs], axis=0)
            for pairs in seeds
        ]
        rows = np.mean(gains, axis=0)  # (N,)
        counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_RESAMPLES)
        parts.append(counts @ rows / len(rows))
    low, high = np.quantile(np.mean(parts, axis=0), [0.025, 0.975]).tolist()
    return Difference(
        what=what, measure=measure, by_seed=by_seed, seeds=t_interval(by_seed), images=(low, high)
    )


def t_interval(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of the mean; None of fewer than two numbers."""
    if len(numbers) < 2:
        return None
    freedom = min(len(numbers) - 1, len(_T))
    half = _T[freedom - 1] * statistics.stdev(numbers) / math.sqrt(len(numbers))
    mean = statistics.fmean(numbers)
    return mean - half, mean + half


def differences(experiment: Experiment, done: Mapping[Run, Arrays]) -> dict[str, list[Difference]]:
    """Return the comparisons of an experiment by world.

    With one arm the lambdas are compared, the largest with each other one. With two arms these are
    compared at each lambda, and over all lambdas together, where a seed counts once.
    """
    out: dict[str, list[Difference]] = {}
    for world in dict.fromkeys(run.world for run in done):
        runs = {
            ((run.arm.name, run.share), run.seed): arrays
            for run, arrays in done.items()
            if run.world == world
        }
        shares = sorted({share for (_, share), _ in runs})
        seeds = sorted({seed for _, seed in runs})
        out[world] = []
        for what, sides in _comparisons(experiment, shares).items():
            pairs = [
                [(runs[left, seed], runs[right, seed]) for left, right in sides]
                for seed in seeds
                if all((side, seed) in runs for both in sides for side in both)
            ]
            if pairs:
                out[world] += [compare(what, measure, pairs) for measure in COMPARED]
    return out


_Setting = tuple[str, float]  # an arm and a lambda


def _comparisons(
    experiment: Experiment, shares: Sequence[float]
) -> dict[str, list[tuple[_Setting, _Setting]]]:
    """Return what is compared, with the settings on both sides."""
    first = experiment.arms[0].name
    if len(experiment.arms) == 1:
        most = shares[-1]
        return {
            f"lambda {most:g} less {share:g}": [((first, most), (first, share))]
            for share in shares[:-1]
        }
    second = experiment.arms[1].name
    each = {share: ((first, share), (second, share)) for share in shares}
    out = {f"lambda {share:g}": [sides] for share, sides in each.items()}
    if len(shares) > 1:
        out["all lambdas"] = list(each.values())
    return out


def compared(experiment: Experiment) -> str:
    """Return which arms a difference is of; nothing where the lambdas are compared."""
    return " less ".join(arm.name for arm in experiment.arms) if len(experiment.arms) > 1 else ""


def report(experiment: Experiment, done: Mapping[Run, Arrays]) -> str:
    """Return the report as markdown."""
    lines = [f"## {experiment.title}", "", experiment.question, ""]
    lines += [f"**What the papers found.** {experiment.papers}", ""]
    found = differences(experiment, done)
    of = compared(experiment) and f", {compared(experiment)}"
    for world, comparisons in found.items():
        runs = {run: arrays for run, arrays in done.items() if run.world == world}
        samples = sorted({run.samples for run in runs})
        seeds = sorted({run.seed for run in runs})
        lines += [
            f"### {experiment.title}: {world}", "",
            f"{' and '.join(f'{count:,}' for count in samples)} samples per run, "
            f"seeds {', '.join(map(str, seeds))}; percent, the mean with the lowest and highest "
            "seed:",
            "", "| arm | lambda | " + " | ".join(MEASURES.values()) + " |",
            "|---|---|" + "---|" * len(MEASURES),
        ]  # fmt: skip
        for arm in experiment.arms:
            for share in sorted({run.share for run in runs}):
                cell = [a for run, a in runs.items() if (run.arm, run.share) == (arm, share)]
                cells = [spread([score(a, measure) for a in cell]) for measure in MEASURES]
                lines.append(f"| {arm.name} | {share:g} | " + " | ".join(cells) + " |")
        lines += [
            "", f"Differences in points{of}, seed by seed; both intervals are of 95 %:", "",
            *difference_table(comparisons),
        ]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def difference_table(comparisons: Sequence[Difference]) -> list[str]:
    """Return a table of differences as lines of markdown."""
    lines = [
        "| difference | measure | mean | by seed | over seeds | over test images | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        by_seed = ", ".join(f"{value:+.1f}" for value in one.by_seed)
        seeds_text = "one seed" if one.seeds is None else _interval(one.seeds)
        lines.append(
            f"| {one.what} | {MEASURES[one.measure]} | {one.mean:+.1f} | {by_seed} | "
            f"{seeds_text} | {_interval(one.images)} | {one.verdict} |"
        )
    return lines


def spread(numbers: Sequence[float]) -> str:
    """Return the mean with the lowest and the highest."""
    if not numbers:
        return "not run"
    return f"{statistics.fmean(numbers):.1f} ({min(numbers):.1f} to {max(numbers):.1f})"


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.1f} to {interval[1]:+.1f}"


def summary(experiment: Experiment, done: Mapping[Run, Arrays]) -> dict[str, Any]:
    """Return the figures of the last line."""
    return {
        "experiment": experiment.name,
        "runs": len(done),
        "compared": compared(experiment),
        "differences": [
            {"set": world, **figures_of(one)}
            for world, comparisons in differences(experiment, done).items()
            for one in comparisons
        ],
    }


def figures_of(one: Difference) -> dict[str, Any]:
    """Return a difference for the last line, rounded."""
    return {
        "difference": one.what, "measure": one.measure, "mean": round(one.mean, 2),
        "over_seeds": one.seeds and [round(end, 2) for end in one.seeds],
        "over_images": [round(end, 2) for end in one.images],
        "verdict": one.verdict,
    }  # fmt: skip
