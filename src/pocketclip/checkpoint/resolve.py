"""The meaning of a MODEL argument, the same for the library and every command.

    source = resolve_model("runs/small")
    source.kind, source.path                 # "checkpoint", Path("runs/small/model")

Spelling and file names decide; no file is opened and no network is used. A folder that a killed
process moved aside is restored (`recover`). In this order:

1. `random:NAME[:SEED]`, `NAME=FILE`, `transformers:ID`, `open_clip:NAME/TAG`, `hf-hub:OWNER/NAME`,
   `python:MODULE:FACTORY`
2. a path by its spelling: a leading `.`, `~` or `/`, a trailing separator, two or more separators,
   or a weight file's suffix; it is an error if nothing exists there
3. an existing file or folder, even if a model of the zoo has the same name
4. `OWNER/NAME[@REVISION]` on the Hugging Face hub
5. a zoo name, whose published weights are on the hub

A path is a training run, a checkpoint folder, a bundle, a weight file, or a folder downloaded from
the hub. `docs/how-to/naming-models.md` is the page for users.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pocketclip import zoo
from pocketclip.checkpoint import hub_files
from pocketclip.checkpoint.hub_files import SUFFIXES, choose_weights, is_weight_file
from pocketclip.errors import CheckpointError, ConfigError, HubError, UnknownModelError
from pocketclip.storage.hub_settings import is_hub_id
from pocketclip.storage.local import recover

Kind = Literal[
    "random", "checkpoint", "file", "bundle", "hub", "transformers", "open_clip", "python"
]

CONFIG, WEIGHTS = hub_files.CONFIG, hub_files.WEIGHTS
"""The files of a checkpoint folder."""
MANIFEST = "bundle.json"
"""The file that makes a folder a bundle."""
RUN_MODEL, RUN_CHECKPOINTS, RUN_RECIPE = "model", "checkpoints", "recipe.yaml"
"""A training run's finished model, its checkpoints and its train recipe, within its folder."""
SEAL = "checkpoint.json"
"""The file that a run's checkpoint has in addition to the model's."""

_FORMS = {
    "random": "the form is random:MODEL or random:MODEL:SEED",
    "transformers": "the form is transformers:ID or transformers:FOLDER",
    "open_clip": "the form is open_clip:NAME/PRETRAINED",
    "python": "the form is python:PACKAGE.MODULE:FACTORY",
    "hf-hub": "the form is hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION",
}
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_STEP = re.compile(r"step-(\d+)")
_WINDOWS = os.name == "nt"
_MAX_SEED = 2**64 - 1  # the largest that torch takes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """The source of a model."""

    text: str
    """The argument as given."""
    kind: Kind
    target: str
    """`text` without a label, `NAME=` or prefix."""
    path: Path | None = None
    """The folder of a `checkpoint` or `bundle`, or the weight file of a `file`."""
    model: str | None = None
    """The zoo name, if the text or the repository determines it."""
    suggested: str | None = None
    """The zoo name that a downloaded folder's name suggests; the weights decide."""
    seed: int = 0
    """The seed of `random` weights."""
    repos: tuple[str, ...] = ()
    """For `hub`: repositories with the same weights, the preferred one first."""
    revision: str | None = None
    """For `hub`: a branch, a tag or a commit; None for `main`."""
    label: str = ""
    """A short name for display, without folders."""
    note: str = ""
    """A one-line warning for the user, or empty."""


def resolve_model(
    model: str | os.PathLike[str], *, revision: str | None = None, labels: bool = False
) -> ModelSource:
    """Return the source that `model` means; see the module's docstring for forms and order.

    Args:
        model: the MODEL argument; a `Path` is always a path.
        revision: of a repository on the hub: a branch, a tag or a commit.
        labels: accept `LABEL=MODEL` too, where LABEL is a display name (teachers, captioners).

    Raises:
        CheckpointError: a path without a model, or a zoo name without published weights.
        ConfigError: an invalid argument after a prefix, or an invalid revision.
        UnknownModelError: none of the forms, or an unknown model.
    """
    text = os.fsdecode(model)
    if not text.strip():
        raise UnknownModelError("no model given: pass a zoo name, a folder, a file or a hub id")
    if "\0" in text:
        raise UnknownModelError(f"{text!r} is not a model: it holds a null character")
    if isinstance(model, os.PathLike):
        return _with_revision(_at_path(text), revision)
    if not os.path.lexists(text):
        text = text.strip()
    source = _prefixed(text, labels) or _on_disk(text) or _by_name(text)
    return _with_revision(source, revision)


def published_model(name: str) -> ModelSource:
    """Return the published weights of a model of the zoo, ignoring files of the same name.

    Raises:
        CheckpointError: it has none.
        UnknownModelError: it is not in the zoo.
    """
    name = zoo.resolve(name)
    repos = zoo.entry(name).hub
    if not repos:
        raise CheckpointError(
            f"{name} has no published weights: give a checkpoint folder or {name}=FILE, or "
            f"random:{name} to try things out with random weights"
        )
    return ModelSource(text=name, kind="hub", target=name, repos=repos, model=name, label=name)


def absolute(text: str) -> str:
    """Return a MODEL argument of a teacher with its path, if any, made absolute.

    Raises:
        PocketclipError: see `resolve_model`.
    """
    source = resolve_model(text, labels=True)
    local = source.path is not None
    if source.kind == "transformers":
        local = os.path.lexists(source.target)
    if not local:
        return text
    before = text.strip().removesuffix(source.target)
    whole = os.path.abspath(_expanded(source.target))  # noqa: PTH100 - links stay links
    return before + whole


def is_path(text: str, *, windows: bool = _WINDOWS) -> bool:
    """Return whether `text` is spelled as a path; it then has no other meaning."""
    separators = "/\\" if windows else "/"
    return (
        text.startswith((".", "~", *separators))
        or text.endswith(tuple(separators))
        or sum(text.count(separator) for separator in separators) > 1
        or os.path.splitext(text)[1].lower() in SUFFIXES  # noqa: PTH122 - of any text
        or (windows and ("\\" in text or re.match("[A-Za-z]:", text) is not None))
    )


def find_weights(folder: Path) -> Path | None:
    """Return the weight file of a folder laid out like a repository, or None.

    `pocketclip.checkpoint.hub_files.choose_weights` chooses it. Hidden files and subfolders are
    ignored.

    Raises:
        CheckpointError: several files could be the weights, or the folder cannot be read.
    """
    candidates = list(filter(is_weight_file, _files(folder)))
    if not candidates:
        return None
    try:
        return folder / choose_weights(candidates)
    except HubError as error:
        raise CheckpointError(f"{folder}: {error}") from None


# --- 1: prefixes


def _prefixed(text: str, labels: bool) -> ModelSource | None:
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _FORMS:
        if not rest.strip():
            raise ConfigError(f"{text!r} does not say which model; {_FORMS[prefix]}")
        return _of_prefix(text, prefix, rest.strip())
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not name[:1].isalnum() or any(sep in name for sep in "/\\"):
        return None
    entry = zoo.find(name)
    with_prefix = rest.partition(":")[0] in _FORMS and not rest.startswith("hf-hub:")
    if entry is not None and not (labels and with_prefix):
        return _named_file(text, entry.config.name, rest)
    if not labels or not _LABEL.fullmatch(name) or os.path.lexists(text):
        return None
    if not rest:
        raise ConfigError(f"{text!r}: the form is LABEL=MODEL or NAME=FILE")
    inner = _prefixed(rest, labels=False) or _on_disk(rest) or _by_name(rest)
    return replace(inner, text=text, label=name)


def _of_prefix(text: str, prefix: str, rest: str) -> ModelSource:
    if prefix == "random":
        return _random(text, rest)
    if prefix == "hf-hub":
        return _repository(text, rest)
    if prefix == "python":
        if not _FACTORY.fullmatch(rest):
            raise ConfigError(f"{text!r}: {_FORMS['python']}, all names of Python")
        return ModelSource(text=text, kind="python", target=rest, label=rest)
    label = _name_of(rest) if os.path.lexists(rest) else rest.replace("//", "/")
    kind: Kind = "transformers" if prefix == "transformers" else "open_clip"
    return ModelSource(text=text, kind=kind, target=rest, label=label)


def _random(text: str, rest: str) -> ModelSource:
    name, colon, seed = rest.partition(":")
    digits = seed.isascii() and seed.isdecimal() and len(seed) <= 20
    if not name.strip() or (colon and not (digits and int(seed) <= _MAX_SEED)):
        raise ConfigError(f"{text!r}: {_FORMS['random']}, with a seed from 0 to {_MAX_SEED}")
    if is_path(name):
        raise ConfigError(f"{text!r}: random weights need a model of the zoo, not a path")
    name, number = zoo.resolve(name), int(seed or 0)
    return ModelSource(
        text=text, kind="random", target=rest, model=name, seed=number,
        label=f"random-{name}-{number}",
    )  # fmt: skip


def _named_file(text: str, name: str, rest: str) -> ModelSource:
    if not rest:
        raise ConfigError(f"{text!r}: the form is NAME=FILE")
    if rest.startswith("hf-hub:"):
        inner: ModelSource | None = _prefixed(rest, labels=False)
    else:
        inner = _on_disk(rest)
        if inner is None and is_hub_id(rest.partition("@")[0]):
            inner = _repository(rest, rest)
    if inner is None:
        literal = (
            f"; for the file with that whole name, write ./{text}" if os.path.lexists(text) else ""
        )
        raise CheckpointError(f"{rest}: no such file or folder, in NAME=FILE{literal}")
    return replace(inner, text=text, model=name, label=f"{name}={inner.label}")


def _repository(text: str, target: str) -> ModelSource:
    repo, at, revision = target.partition("@")
    if not is_hub_id(repo) or (at and not revision):
        raise ConfigError(f"{text!r}: {_FORMS['hf-hub']}")
    return ModelSource(
        text=text, kind="hub", target=target, repos=(repo,), revision=revision or None,
        model=zoo.name_of_repository(repo), label=target,
    )  # fmt: skip


# --- 2 and 3: paths


def _on_disk(text: str) -> ModelSource | None:
    if is_path(text):
        return _at_path(text)
    recover(text)
    if not os.path.lexists(text):
        return None
    source = _at_path(text)
    # In `runs/small` only the last component is the name of a model, so nobody meant that model.
    other = _alike(text) if _means_a_model(text) else ""
    if not other:
        return source
    note = f"{text} is the file or folder of that name here; {other}"
    return replace(source, note="; ".join(filter(None, (note, source.note))))


def _means_a_model(text: str) -> bool:
    """Return whether a text would be a model of the zoo or the hub if no such path existed."""
    return "/" not in text or zoo.name_of_repository(text) is not None


def _alike(text: str) -> str:
    """Return how to write the model of the zoo or the hub that has the name of a path."""
    entry = zoo.find(Path(text).name)
    if entry is not None and not entry.hub:
        return f"a model of the zoo with random weights is random:{entry.config.name}"
    if entry is not None:
        return f"the published model is hf-hub:{entry.hub[0]}"
    return f"the hub's is hf-hub:{text}" if zoo.name_of_repository(text) is not None else ""


def _expanded(text: str) -> str:
    has_home = text.startswith("~") and not os.path.lexists(text)
    return os.path.expanduser(text) if has_home else text  # noqa: PTH111 - a separator may end it


def _at_path(text: str) -> ModelSource:
    """Return the model at a path."""
    expanded = _expanded(text)
    recover(expanded)
    try:
        mode = os.stat(expanded).st_mode  # noqa: PTH116 - `Path` drops a separator at the end
    except (OSError, ValueError) as error:
        raise CheckpointError(_missing(text, expanded, error)) from None
    path = Path(expanded)
    if stat.S_ISDIR(mode):
        return _in_folder(text, path)
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{text} is neither a file nor a folder: pass the path of a model")
    if path.name in (MANIFEST, CONFIG, SEAL):
        raise CheckpointError(f"{text} is part of a model: name its folder, {path.parent}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(
            f"{text}: {suffix or 'no suffix'} is not a weight file's suffix ({', '.join(SUFFIXES)})"
        )
    suggested = _suggested(path.parent, exactly=True)
    return _local(text, "file", path, suggested=suggested)


def _local(
    text: str, kind: Kind, path: Path, *, suggested: str | None = None, note: str = ""
) -> ModelSource:
    return ModelSource(
        text=text, kind=kind, target=text, path=path, suggested=suggested, note=note,
        label=_name_of(_expanded(text)),
    )  # fmt: skip


def _missing(text: str, path: str, error: OSError | ValueError) -> str:
    if os.path.islink(path):  # noqa: PTH114
        why = "is a broken link" if isinstance(error, FileNotFoundError) else "is a bad link"
        return f"{text} {why} ({os.readlink(path)})"  # noqa: PTH115
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or str(error)
        return f"{text}: no such file or folder ({reason})"
    if "://" in text:
        return f"{text}: URLs are not supported; download the model and give its path, or a hub id"
    repo = text.partition("@")[0]
    if "@" in text and is_hub_id(repo):
        return f"{text}: no such file or folder; on the hub, write hf-hub:{text}"
    entry = zoo.find(os.path.basename(text.rstrip("/\\")))  # noqa: PTH119
    hint = ""
    if entry is not None:
        name = entry.config.name
        hint = f"; the published model is {name}" if entry.hub else f"; did you mean random:{name}?"
    return f"{text}: no such file or folder{hint}"


def _in_folder(text: str, path: Path) -> ModelSource:
    """Return the model in a folder."""
    names = set(_files(path))
    if MANIFEST in names:
        return _local(text, "bundle", path)
    weights = list(filter(is_weight_file, names))
    suggested = _suggested(path, exactly=False)
    if SEAL in names or (CONFIG in names and (WEIGHTS in names or not weights)):
        return _local(text, "checkpoint", path, suggested=suggested)
    if CONFIG not in names:
        recover(path / RUN_MODEL)
    if CONFIG not in names and (path / RUN_MODEL / CONFIG).is_file():
        return _local(text, "checkpoint", path / RUN_MODEL)
    newest = newest_checkpoint(path)
    if newest is not None:
        step = int(newest.name.removeprefix("step-"))
        note = (
            f"{text} is an unfinished run: its checkpoint of step {step} is used, the newest as it "
            "trains; a finished run hands over the best of what it scored, and averaged weights"
        )
        return _local(text, "checkpoint", newest, note=note)
    chosen = find_weights(path)
    if chosen is not None:
        return _local(text, "file", chosen, suggested=suggested)
    if RUN_RECIPE in names:
        raise CheckpointError(f"{text} is a training run without a checkpoint yet: let it continue")
    snapshots = _folders(path / "snapshots") if path.name.startswith("models--") else []
    if len(snapshots) == 1:
        return replace(_in_folder(str(snapshots[0]), snapshots[0]), text=text, target=text)
    if snapshots:
        raise CheckpointError(
            f"{text} holds {len(snapshots)} revisions: name one, such as {snapshots[0]}"
        )
    other = _alike(text)
    raise CheckpointError(
        f"{text} is a folder without config.json, bundle.json or weights, so there is no model in "
        f"it{f'; {other}' if other else ''}"
    )


def newest_checkpoint(run: Path) -> Path | None:
    """Return the folder of a run's newest complete checkpoint, or None."""
    steps = [(int(found[1]), folder) for folder in _folders(run / RUN_CHECKPOINTS)
             if (found := _STEP.fullmatch(folder.name)) is not None
             and all((folder / name).is_file() for name in (CONFIG, WEIGHTS, SEAL))]  # fmt: skip
    return max(steps)[1] if steps else None


def _suggested(folder: Path, *, exactly: bool) -> str | None:
    """Return the zoo name of a folder named like a repository with published weights.

    Args:
        folder: as downloaded, or a snapshot of the hub's cache.
        exactly: match only `models--OWNER--NAME`, the folders of the hub's cache.
    """
    whole = Path(os.path.abspath(folder))  # noqa: PTH100 - a snapshot's links lead elsewhere
    folder_name = whole.name
    if whole.parent.name == "snapshots":
        folder_name = whole.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    elif exactly:
        return None
    for name, entry in zoo.entries():
        for repo in entry.hub:
            if folder_name.lower() in (repo.lower(), repo.rpartition("/")[2].lower()):
                return name
    return None


def _files(folder: Path) -> list[str]:
    return sorted(e.name for e in _entries(folder) if os.path.isfile(e))  # noqa: PTH113 - no errors


def _folders(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):  # noqa: PTH112
        return []
    return sorted(entry for entry in _entries(folder) if os.path.isdir(entry))  # noqa: PTH112


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error


def _name_of(text: str) -> str:
    path = Path(text)
    # A folder may have a dot in its name, as in "clip-0.5".
    return path.stem if path.suffix.lower() in SUFFIXES else path.resolve().name


# --- 4 and 5: the hub and the zoo


def _by_name(text: str) -> ModelSource:
    entry = zoo.find(text)
    if is_hub_id(text.partition("@")[0]):
        source = _repository(text, text)
        if entry is None:
            return source
        return replace(source, note=f"{text} is read as OWNER/NAME of the hub; the zoo's model is "
                       f"written {entry.config.name}")  # fmt: skip
    if "=" in text:
        raise ConfigError(f"{text!r} is not a file, a folder, or NAME=FILE with a model of the zoo")
    try:
        name = zoo.resolve(text)
    except UnknownModelError as error:
        raise UnknownModelError(f"{error} (no such file or folder either)") from None
    return replace(published_model(name), text=text, target=text, label=text)


def _with_revision(source: ModelSource, revision: str | None) -> ModelSource:
    if revision is None:
        return source
    if source.kind != "hub":
        raise ConfigError(
            f"{source.text} is not a repository on the hub, so it has no revisions: leave the "
            "revision out"
        )
    if not revision.strip() or source.revision not in (None, revision):
        raise ConfigError(f"revision {revision!r} does not fit {source.text}: give one of them")
    return replace(source, revision=revision)
