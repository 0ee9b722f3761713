"""One model's results, from a file, a run folder or the published tables.

runs = gather(["results.jsonl", "runs/small", "mobileclip2-s0", "siglip-so400m-14"])
runs[1].main("imagenet1k")             # 0.431; values are fractions, as in the files
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pocketclip import storage, zoo
from pocketclip.checkpoint import resolve
from pocketclip.checkpoint.operations import measure
from pocketclip.errors import ConfigError, DataError, PocketclipError, UnknownModelError
from pocketclip.evaluate.results import read_results
from pocketclip.evaluate.rivals import Rival, find_rival, rivals, similar_rivals, zoo_name
from pocketclip.evaluate.tasks import TASKS, Metrics, published_results

log = logging.getLogger(__name__)

RESULTS = "results.jsonl"
"""The results file in a run folder."""
PUBLISHED = tuple(name for name, entry in zoo.ZOO.items() if entry.published is not None)
"""The models whose results and latency are published, in the zoo's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One model's results."""

    title: str
    """Name in tables and charts, unique within a comparison."""
    model: str | None
    """The zoo's name of its architecture, where that is known. None of a model that is named after
    the zoo's and has another size: a sparse one, or one of other images."""
    origin: str
    """The file the results stand in, or "published"."""
    published: bool
    metrics: dict[str, Metrics]
    """By task key."""
    datasets: dict[str, str] = field(default_factory=dict)
    """By task key, the name for people."""
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the values were made, by task key, as recorded in the file."""
    rival: Rival | None = None
    """The model of others that it is, with published results."""

    @property
    def space_id(self) -> str | None:
        """The embedding space, if the file records it."""
        return next((a["space_id"] for a in self.about.values() if a.get("space_id")), None)

    def recorded(self, key: str) -> float | None:
        """Return a size that the file records of the model, such as `gflop`."""
        return next((a[key] for a in self.about.values() if _is_size(a.get(key))), None)

    def main(self, key: str) -> float | None:
        """Return a task's main value, or None."""
        metrics = self.metrics.get(key, {})
        task = TASKS.get(key)
        # Files of other tools may have the main metric only under its own name.
        name = task.main_metric if task is not None else None
        return metrics.get("main_metric", metrics.get(name) if name else None)


def published_run(name: str) -> Run:
    """Return the published results of one of `PUBLISHED`."""
    results = published_results()[name]
    return Run(title=name, model=name, origin="published", published=True, metrics=results)


def rival_run(name: str) -> Run:
    """Return the published results of a model of others, by open_clip's name."""
    rival = rivals()[name]
    return Run(
        title=name,
        model=zoo_name(rival),
        origin="published",
        published=True,
        metrics={key: {"main_metric": value} for key, value in rival.results.items()},
        rival=rival,
    )


def gather(sources: Sequence[str]) -> list[Run]:
    """Return the results of each source.

    Args:
        sources: published names in any spelling (of the zoo, or of a model in
            `pocketclip.evaluate.rivals`), results files, or folders that hold `results.jsonl`;
            files and folders may be in object stores. `./NAME` is always a path, and existing
            results take precedence over published ones of the same name.

    Raises:
        ConfigError: no source, or a source given twice.
        UnknownModelError: neither a file nor a published name, or several; the message suggests
            names.
        DataError: no such file, a folder without results, or an invalid line (see
            `read_results`).
    """
    if not sources:
        raise ConfigError("nothing to compare: give a results file, a run folder or a model")
    runs = [_run(source) for source in sources]
    origins = [run.title if run.published else storage.absolute(run.origin) for run in runs]
    for source, origin in zip(sources, origins, strict=True):
        if origins.count(origin) > 1:
            raise ConfigError(f"{source} is given twice")
    titles = _distinct_titles(runs)
    return [replace(run, title=title) for run, title in zip(runs, titles, strict=True)]


def _run(source: str) -> Run:
    published = None if _is_path(source) else _published(source)
    if published is not None:
        if not _holds_results(source):
            return published
        log.warning("%s: using the results at this path, not the published ones", source)
    if not storage.exists(source):
        raise _not_found(source)
    path = source
    if storage.is_folder(source):
        path = storage.join(source, RESULTS)
        if not storage.exists(path):
            raise DataError(f"{source} holds no {RESULTS}: `pocketclip eval MODEL --out {path}` "
                            "writes one")  # fmt: skip
    results = read_results(path)
    model = next((r.about["model"] for r in results if isinstance(r.about.get("model"), str)), None)
    run = Run(
        title=" ".join(model.split()) if model else _stem(path),
        model=canonical(model) if model else None,
        origin=path,
        published=False,
        metrics={r.key: r.metrics for r in results},
        datasets={r.key: r.dataset for r in results},
        about={r.key: r.about for r in results},
    )
    return run if _has_size_of_name(run) else replace(run, model=None)


def _has_size_of_name(run: Run) -> bool:
    """Return whether a run's operations are those of the zoo's model that it is named after."""
    entry, gflop = None if run.model is None else zoo.find(run.model), run.recorded("gflop")
    return (
        entry is None
        or gflop is None
        or math.isclose(gflop, measure(entry.config).gflop, rel_tol=0.01)
    )


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e12


def _published(source: str) -> Run | None:
    """Return the published results that a name means, if any.

    Raises:
        UnknownModelError: it may mean several models; not if something is at this path.
    """
    entry = zoo.find(source)
    if entry is not None and entry.published is not None:
        return published_run(entry.config.name)
    try:
        rival = find_rival(source)
    except UnknownModelError:
        if storage.exists(source):
            return None
        raise
    return None if rival is None else rival_run(rival.name)


def _is_path(source: str) -> bool:
    return storage.is_remote(source) or resolve.is_path(source)


def _holds_results(source: str) -> bool:
    """Return whether a local path is a file, or a folder with results."""
    path = Path(source)
    return path.is_file() or (path / RESULTS).is_file()


def _not_found(source: str) -> PocketclipError:
    near = similar_rivals(source)
    if _is_path(source) or source.endswith(".jsonl") or ("/" in source and not near):
        return DataError(f"{source}: no such file or folder")
    try:
        name = zoo.resolve(source)
    except UnknownModelError as error:
        if near:
            return UnknownModelError(
                f"no published results of {source!r}; did you mean {' or '.join(near)}? "
                "`pocketclip models --rivals` lists the models of others (no such file or folder "
                "either)"
            )
        return UnknownModelError(f"{error} (no such file or folder either)")
    return UnknownModelError(
        f"{name} has no published results (published: {', '.join(PUBLISHED)}, and the models that "
        "`pocketclip models --rivals` lists); give a results file or a run folder"
    )


def canonical(model: str) -> str:
    """Return the zoo's spelling of a model's name, or the name itself if it is not in the zoo."""
    entry = zoo.find(model)
    return model if entry is None else entry.config.name


def _stem(origin: str) -> str:
    path = PurePosixPath(origin.replace("\\", "/"))
    return (path.parent.name if path.name == RESULTS else path.stem) or path.stem


def _distinct_titles(runs: Sequence[Run]) -> list[str]:
    """Return titles; a repeated or published name gets its path beside it."""
    names = [run.title for run in runs]
    tails = _short_paths([run.origin for run in runs if not run.published])
    titles = []
    for run in runs:
        ambiguous = names.count(run.title) > 1 or canonical(run.title) in PUBLISHED
        with_path = ambiguous and not run.published
        titles.append(f"{run.title} ({tails[run.origin]})" if with_path else run.title)
    # A file may call its model anything, even by what became another one's title.
    return [f"{t} [{i + 1}]" if titles.count(t) > 1 else t for i, t in enumerate(titles)]


def _short_paths(origins: Sequence[str]) -> dict[str, str]:
    """Return the shortest distinct tails of paths."""
    parts = {}
    for origin in origins:
        path = PurePosixPath(origin.replace("\\", "/"))
        run_path = path.parent if path.name == RESULTS and path.parent.name else path
        parts[origin] = run_path.parts
    longest = max(map(len, parts.values()), default=0)
    for length in range(1, longest + 1):
        short = {origin: "/".join(p[-length:]) for origin, p in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {origin: origin for origin in origins}
