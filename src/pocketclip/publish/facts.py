"""What is known of a trained model: data, recipe, teachers, results, and their licences.

Only what may be published is kept: of a local path its last part, never a folder, the user's name
or the machine's.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip import shards, storage, zoo
from pocketclip.checkpoint import resolve
from pocketclip.checkpoint.resolve import RUN_MODEL, RUN_RECIPE, ModelSource, resolve_model
from pocketclip.checkpoint.weight_license import published_license
from pocketclip.errors import CheckpointError, ConfigError, DataError, PocketclipError
from pocketclip.evaluate.results import Result, read_results
from pocketclip.formats.json_text import read_json
from pocketclip.formats.yaml_text import load_yaml
from pocketclip.license import UNKNOWN, License
from pocketclip.publish.terms import Origin
from pocketclip.storage.hub_settings import is_hub_id
from pocketclip.storage.hub_store import is_hub, parse

RESULTS = "results.jsonl"
"""The file of results that is taken from a run's folder."""
_PRIVATE = {
    "data": ("workers", "cache_dir", "where", "image_column", "caption_columns"),
    "evaluation": ("where", "label_column", "image_column", "caption_column"),
    "": ("about", "wandb", "tensorboard", "log_every", "compile"),
}
"""Keys of a recipe that say nothing of the model, or something of its maker."""
AskLicense = Callable[[str, str], License]
"""Returns the licence of a repository: (`model` or `dataset`, its id)."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """What a model card says of a model."""

    source: ModelSource
    origins: list[Origin] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    """The train recipe, as it may be published."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts of the training by name: samples, steps, ..."""
    selection: dict[str, Any] | None = None
    """How the weights were chosen among checkpoints."""
    finetuned: dict[str, Any] | None = None
    """Of a fine-tuning: task, metric, scores of start and result, counts."""
    results: list[Result] = field(default_factory=list)


def public_name(text: str) -> str:
    """Return the name of a model or of data without what only this machine's user knows."""
    label, equals, rest = text.partition("=")
    if equals and not resolve.is_path(label) and "/" not in label:
        text = rest
    for prefix in ("hf-hub:", "transformers:", "open_clip:"):
        if text.startswith(prefix):
            return text if not resolve.is_path(text[len(prefix) :]) else _last(text)
    if is_hub(text):
        with contextlib.suppress(PocketclipError):
            return parse(text.partition("*")[0].partition("{")[0]).name
        return "the hub"
    if storage.is_remote(text):
        return "an object store"
    if text.startswith("python:"):
        return "own code"
    if zoo.find(text) is not None:
        return zoo.resolve(text)  # a captioner's configuration bears another name
    local = resolve.is_path(text) or Path(text).exists()
    return text if is_hub_id(text.partition("@")[0]) and not local else _last(text)


def _last(path: str) -> str:
    """Return the last part of a path, unless it names the user or the machine."""
    name = Path(path.replace("\\", "/")).name
    private = {Path.home().name, socket.gethostname().partition(".")[0]}
    with contextlib.suppress(Exception):
        private.add(getpass.getuser())
    return "local files" if not name or name.lower() in {p.lower() for p in private} else name


def gather(
    run: str,
    *,
    results: str | None = None,
    start_license: License = UNKNOWN,
    ask: AskLicense | None = None,
    space_id: str,
) -> Facts:
    """Return what is known of a run.

    Args:
        run: a training run, a fine-tuning, or a checkpoint folder.
        results: a results file of `pocketclip eval`; None: `results.jsonl` in the run's folder.
        start_license: what the weights say themselves.
        ask: asks the hub for licences; None: it is not asked.
        space_id: of the model, which results must have.

    Raises:
        ConfigError: results of another model.
        DataError: a results file that cannot be read.
    """
    source = find(run)
    assert source.path is not None
    facts = Facts(source=source)
    home = _run_folder(source.path)
    recipe = None if home is None else _yaml(home / RUN_RECIPE)
    result = None if home is None else _json(home / "result.json")
    start: str | None = None
    if recipe is not None and home is not None:
        start = _text(recipe.get("model"), "init")
        _add_training(facts, home, recipe)
    elif result is not None and home is not None:
        start = _text(result, "model")
        _add_finetuning(facts, result)
    if start is not None or start_license.is_known:
        name = "weights of earlier training" if start is None else public_name(start)
        repo = _repo_of(name)
        license = start_license
        if not license.is_known and repo is not None:
            license = _licence_of(repo, "model", ask)
        facts.origins.insert(0, Origin(role="start", name=name, license=license, repo=repo))
    for role in ("teacher", "captioner"):
        for name in _helpers(role, recipe, result, home):
            facts.origins.append(_origin(role, name, "model", ask))
    for name in _data(recipe, result):
        facts.origins.append(_origin("data", name, "dataset", ask))
    facts.results = _results(results, home, source.path, space_id)
    return facts


def find(run: str) -> ModelSource:
    """Return the model of a run that is finished.

    Raises:
        ConfigError: it is none that can be published.
        CheckpointError: it is an unfinished run.
    """
    source = resolve_model(run)
    if source.kind == "bundle":
        raise ConfigError(
            f"{run} is a bundle, an exported model: push the run or checkpoint that it was "
            "exported from, so that others can train on"
        )
    if source.kind == "random":
        raise ConfigError(f"{run} has random weights, which nobody needs: train it first")
    if source.kind == "hub":
        raise ConfigError(
            f"there is no run or checkpoint {run} here; published weights are on the hub already"
        )
    if source.kind != "checkpoint":
        raise ConfigError(
            f"{run}: push takes a training run, a fine-tuning or a checkpoint folder; save these "
            "weights as a checkpoint first (pocketclip.checkpoint.load and save)"
        )
    if "unfinished run" in source.note:
        raise CheckpointError(
            f"{run} is an unfinished run: let it finish (the same command continues), or push one "
            f"of its checkpoints by its folder, such as {source.path}"
        )
    return source


def _run_folder(model: Path) -> Path | None:
    """Return the folder of the run that a model belongs to, if it says so."""
    whole = model.absolute()
    parents = [whole.parent] if whole.name == RUN_MODEL else [whole.parent.parent]
    for folder in parents:
        if (folder / RUN_RECIPE).is_file() or (folder / "result.json").is_file():
            return folder
    return None


def _add_training(facts: Facts, home: Path, recipe: Mapping[str, Any]) -> None:
    about = _json(home / "run.json") or {}
    starts = [s for s in about.get("starts") or [] if isinstance(s, dict)]
    last = starts[-1] if starts else {}
    facts.recipe = _public_recipe(recipe)
    steps, batch = recipe.get("steps"), recipe.get("batch_size")
    if isinstance(steps, int) and isinstance(batch, int):
        facts.training["samples seen"] = f"{steps * batch:,} in {steps:,} steps of {batch:,}"
    if isinstance(about.get("samples"), int):
        facts.training["training samples"] = f"{about['samples']:,}"
    for name in ("processes", "device", "precision", "pocketclip", "torch"):
        if isinstance(last.get(name), (str, int)):
            facts.training[name] = str(last[name])
    chosen = _json(home / "selection.json")
    if chosen is not None and isinstance(chosen.get("scores"), list):
        facts.selection = chosen


def _add_finetuning(facts: Facts, result: Mapping[str, Any]) -> None:
    kept = {name: result.get(name) for name in ("task", "metric", "verdict", "retention")}
    training = result.get("training")
    if isinstance(training, Mapping):
        names = ("preset", "steps_done", "batch_size", "lr", "balance", "views", "seed")
        facts.training |= {n: str(training[n]) for n in names if training.get(n) is not None}
    facts.finetuned = {
        **kept,
        "candidates": [c for c in result.get("candidates") or [] if isinstance(c, Mapping)],
        "counts": dict(result.get("counts") or {}),
    }


def _distils(recipe: Mapping[str, Any]) -> bool:
    """Return whether a run's loss has a term for teachers; a written recipe has every field."""
    loss = recipe.get("loss")
    weights = loss.get("weights") if isinstance(loss, Mapping) else None
    return not isinstance(weights, (list, tuple)) or len(weights) < 2 or weights[1] != 0


def _public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in recipe.items():
        if name in _PRIVATE[""] or value in (None, [], {}):
            continue
        if isinstance(value, Mapping):
            left_out = _PRIVATE.get(name, ())
            value = {k: v for k, v in value.items() if k not in left_out and v is not None}
        out[name] = value
    for section, key in (("model", "init"), ("data", "source"), ("evaluation", "data")):
        inner = out.get(section)
        if isinstance(inner, dict) and inner.get(key):
            inner[key] = _public_value(inner[key])
    if out.get("teachers"):
        out["teachers"] = _public_value(out["teachers"])
    return out


def _public_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _public_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [public_name(str(one)) for one in value]
    return public_name(str(value))


def _helpers(
    role: str,
    recipe: Mapping[str, Any] | None,
    result: Mapping[str, Any] | None,
    home: Path | None,
) -> list[str]:
    """Return the names of the teachers, or of the captioners, that the model learned from."""
    if result is not None:
        training = result.get("training")
        names = training.get(f"{role}s") if isinstance(training, Mapping) else None
        return [str(name) for name in names or []]
    if recipe is None or home is None:
        return []
    if role == "captioner" and _text(recipe.get("data"), "captions") == "truth":
        return []
    if role == "teacher" and not _distils(recipe):
        return []  # the index of the data may name teachers all the same
    recorded = (_json(home / "run.json") or {}).get(f"{role}s")
    if isinstance(recorded, list):
        return [str(name) for name in recorded if name]
    # Of runs of earlier versions.
    names = [str(name) for name in recipe.get("teachers") or []] if role == "teacher" else []
    for source in _data(recipe, None):
        with contextlib.suppress(PocketclipError, OSError):
            if not storage.is_remote(source) and Path(source).is_dir():
                index = shards.describe(source)
                used = [] if index is None else getattr(index, f"{role}s")
                names += [str(one["name"]) for one in used if one.get("name")]
    return names


def _data(recipe: Mapping[str, Any] | None, result: Mapping[str, Any] | None) -> list[str]:
    if result is not None:
        return [str(result["data"])] if result.get("data") else []
    section = (recipe or {}).get("data")
    value = section.get("source") if isinstance(section, Mapping) else None
    return [str(one) for one in ([value] if isinstance(value, str) else value or [])]


def _origin(role: str, text: str, kind: str, ask: AskLicense | None) -> Origin:
    name = public_name(text)
    repo = _repo_of(name) if role != "data" else None
    if is_hub(name):
        repo = parse(name).repo
    license = UNKNOWN if repo is None else _licence_of(repo, kind, ask)
    return Origin(role=role, name=name, license=license, repo=repo)


def _repo_of(name: str) -> str | None:
    """Return the repository of a model by its published name; None if it has none."""
    known = zoo.find(name)
    if known is not None:
        return known.hub[0] if known.hub else None
    plain = name.removeprefix("hf-hub:").removeprefix("transformers:").partition("@")[0]
    weights = zoo.name_of_open_clip(name)
    if weights is not None and zoo.entry(weights).hub:
        return zoo.entry(weights).hub[0]
    return plain if is_hub_id(plain) and not name.startswith("open_clip:") else None


def _licence_of(repo: str, kind: str, ask: AskLicense | None) -> License:
    known = published_license(repo) if kind == "model" else UNKNOWN
    if known.is_known or ask is None:
        return known
    return ask(kind, repo)


def _results(file: str | None, home: Path | None, model: Path, space_id: str) -> list[Result]:
    if file is None:
        folders: Sequence[Path] = [model] if home is None else [home, model]
        found = next((folder / RESULTS for folder in folders if (folder / RESULTS).is_file()), None)
        if found is None:
            return []
        file = str(found)
    results = read_results(file)
    spaces = {result.about.get("space_id") for result in results} - {None}
    if spaces and spaces != {space_id}:
        raise ConfigError(
            f"{file} holds results of another model (embedding space {spaces.pop()}, not "
            f"{space_id}): evaluate this one, or name its results with --results"
        )
    if not spaces:
        raise DataError(f"{file} does not say which model its results are of")
    return results


def _text(section: object, key: str) -> str | None:
    value = section.get(key) if isinstance(section, Mapping) else None
    return value if isinstance(value, str) and value else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _yaml(path: Path) -> dict[str, Any] | None:
    try:
        value = load_yaml(path.read_text("utf-8"), what=str(path))
    except (OSError, ValueError, PocketclipError):
        return None
    return value if isinstance(value, dict) else None
