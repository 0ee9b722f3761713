"""`pocketclip quickstart`: the whole pipeline in minutes, on drawn scenes or the user's pairs.

    result = quickstart_scenes("quickstart-out")

With drawn scenes, two students start from the same weights and see the same views of the same
pictures in the same order. The plain student learns from the alt-texts alone (CLIP's loss). The
reinforced student learns from what reinforcing stored: the captioner's captions and the teachers'
embeddings (MobileCLIP, arXiv 2311.17049, section 4). The user's pairs are handled by `pairs_steps`.
In both, `model/` is the best student on a validation set.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketclip._deprecated import renamed_arguments
from pocketclip.errors import ConfigError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.progress import ProgressReporter
from pocketclip.quickstart.advice import commands, data_lines, expectation, teacher_lines
from pocketclip.quickstart.budget import LEAST_MINUTES, MOST_MINUTES, Clock, check_minutes
from pocketclip.quickstart.listing import list_pairs, with_labels
from pocketclip.quickstart.pairs_steps import own_pairs_steps
from pocketclip.quickstart.quickstart_run import QuickstartRun
from pocketclip.quickstart.scenes_steps import scenes_steps
from pocketclip.quickstart.students import choice_lines

__all__ = [
    "MINUTES", "choice_lines", "data_lines", "minutes_of", "next_commands", "quickstart_pairs",
    "quickstart_scenes", "teacher_lines",
]  # fmt: skip

MINUTES = 10.0
"""The default time for own pairs."""


@renamed_arguments(tell="reporter")
def quickstart_scenes(
    out: str | Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    workers: int | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Run the pipeline on drawn scenes, with the models that ship with the package.

    Args:
        out: the output folder; a second call with the same arguments resumes an interrupted one.
        seed: for the scenes and all other random choices.
        scale: multiplies the number of scenes and training steps; 1 takes some minutes on two
            cores.
        workers: decode processes; None chooses a number for the machine.
        reporter: receives the progress.

    Returns:
        The contents of `result.json`.

    Raises:
        ConfigError: a scale out of range, or a folder that holds something else.
    """
    _check(scale)
    settings = {"mode": "scenes", "seed": seed, "scale": scale}
    run = QuickstartRun(
        out=Path(out), settings=settings, reporter=reporter or ProgressReporter(), workers=workers
    )
    with run.claim_folder():
        scenes_steps(run)
    return run.result


@renamed_arguments(tell="reporter")
def quickstart_pairs(
    out: str | Path,
    pairs: Sequence[str],
    *,
    options: PairOptions | None = None,
    label_column: str | None = None,
    teachers: Sequence[str] = (),
    seed: int = 0,
    minutes: float = MINUTES,
    scale: float | None = None,
    workers: int | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Train a small student on the user's pairs within a time, and hand over the best one.

    Args:
        out: as in `quickstart_scenes`; also gets small copies of the photographs.
        pairs: sources, as `pocketclip.pairs.open_pairs` takes them.
        options: how to read the pairs.
        label_column: a column with class names: students are chosen and evaluated by zero-shot
            classification.
        teachers: as `pocketclip.reinforce.teachers.load_teacher` takes them. They are used if they
            are clearly better than the plain student; without one, all time goes to that student.
        seed: for all random choices.
        minutes: the time to fill, 0.2 to 600, by a measured rate. What is decided by it is
            recorded, so that a resumed quickstart ends with the same model; it may then take
            longer.
        scale: the old way to give the time: 10 minutes times this.
        workers: decode processes; None chooses a number for the machine.
        reporter: receives the progress.

    Returns:
        The contents of `result.json`.

    Raises:
        ConfigError, DataError: bad settings, or pairs that cannot be used.
    """
    if scale is not None:
        minutes = minutes_of(scale)
        warnings.warn(
            f"scale is for drawn scenes; with pairs give minutes={minutes:g}",
            DeprecationWarning,
            stacklevel=3,
        )
    check_minutes(minutes)
    options = options or PairOptions()
    sources = [str(Path(p).resolve()) if Path(p).exists() else p for p in pairs]
    settings = {
        "mode": "pairs", "seed": seed, "minutes": minutes, "pairs": sources,
        "options": options.identity(), "label_column": label_column, "teachers": list(teachers),
    }  # fmt: skip
    clock = Clock(minutes)
    kept = with_labels(options, label_column)
    shards = open_pairs(list(pairs), kept)
    # Before the folder is claimed: who names the wrong column can give the same --out again.
    listed = list_pairs(shards, label_column)
    run = QuickstartRun(
        out=Path(out), settings=settings, reporter=reporter or ProgressReporter(), workers=workers
    )
    with run.claim_folder():
        if not teachers:
            for line in expectation(pairs, options, label_column):
                run.reporter.remark(line)
        own_pairs_steps(run, shards, listed, kept, clock)
    return run.result


def minutes_of(scale: float) -> float:
    """Return the minutes that the old option `scale` asks for with pairs."""
    _check(scale)
    return min(max(MINUTES * scale, LEAST_MINUTES), MOST_MINUTES)


def next_commands(out: str | Path, result: Mapping[str, Any]) -> list[str]:
    """Return commands to go on with."""
    run = QuickstartRun(out=Path(out), settings=result["settings"], result=dict(result))
    return commands(run)


def _check(scale: float) -> None:
    if not 0.01 <= scale <= 100:
        raise ConfigError(f"the scale is {scale:g}; it must be from 0.01 to 100")
