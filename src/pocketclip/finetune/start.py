"""The model that fine-tuning starts from: opened, and refused where it has no weights to train."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint import resolve
from pocketclip.checkpoint.resolve import CONFIG, MANIFEST, RUN_MODEL, ModelSource
from pocketclip.errors import BundleError, CheckpointError, ConfigError
from pocketclip.formats.json_text import read_json
from pocketclip.nn.clip import CLIP

_NEAR = 200
"""Folders beside a bundle that are looked at for the checkpoint that it was made from."""


def open_start(model: str, *, offline: bool = False) -> CLIP:
    """Return the model to start from, unfused, in evaluation mode.

    Args:
        model: a MODEL argument, see `pocketclip.checkpoint.resolve`.
        offline: take hub files from the local cache only.

    Raises:
        BundleError: a bundle, which has no weights to train; the message names what it was made
            from.
        CheckpointError: a fused checkpoint, likewise; or it cannot be read.
        ConfigError: a model of another library, or a captioner.
        PocketclipError: as `pocketclip.checkpoint.load`.
    """
    source = resolve.resolve_model(model)
    if source.kind == "bundle":
        assert source.path is not None
        facts = _json(source.path / MANIFEST)
        kind = f"a bundle ({facts.get('target', 'unknown target')})"
        raise BundleError(_no_weights(source, kind, facts))
    loaded = checkpoint.load(source, offline=offline)
    if loaded.is_fused:
        facts = _json(source.path / CONFIG) if source.path is not None else {}
        raise CheckpointError(_no_weights(source, "fused, for inference only", facts))
    if loaded.config.is_captioner:
        raise ConfigError(
            f"{model} is a captioner, which learns captions word by word: train it with "
            "`pocketclip train coca-finetune --data SHARDS --set "
            f"{shlex.quote(f'model.init={model}')}`"
        )
    return loaded


def _no_weights(source: ModelSource, what: str, facts: Mapping[str, Any]) -> str:
    """Return why a model cannot be trained, what it was made from, and the command with that."""
    name = _name(facts)
    space = str(facts.get("space_id", ""))
    begin = f"{source.text} is {what}, and has no weights to train"
    if source.path is not None and space:
        found = _unfused_of_space(source.path, space)
        if found is not None:
            return (
                f"{begin}; it was made from {found}: run `pocketclip finetune "
                f"{shlex.quote(str(found))}` with the same options"
            )
    if name is None:
        return f"{begin}: start from the checkpoint that it was made from"
    config = _config(facts)
    entry = zoo.find(name) if config is None or not zoo.is_sparse(config) else None
    name = name if config is None else zoo.describe(config)
    published = (
        f"; if that is the published model, run `pocketclip finetune {name}` with the same options"
        if entry is not None and entry.hub
        else ""
    )
    return (
        f"{begin}; it was made from a checkpoint of {name} with the embedding space {space[:12]}: "
        f"start from that checkpoint{published}"
    )


def _name(facts: Mapping[str, Any]) -> str | None:
    model = facts.get("model")
    if isinstance(model, dict):
        model = model.get("name")
    return model if isinstance(model, str) else None


def _config(facts: Mapping[str, Any]) -> zoo.ModelConfig | None:
    """Return the configuration in a checkpoint's or a bundle's facts."""
    try:
        return zoo.from_dict(facts["model"])
    except (ConfigError, KeyError, TypeError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _unfused_of_space(folder: Path, space: str) -> Path | None:
    """Return a checkpoint near a folder that has its embedding space and can be trained."""
    for candidate in _near(folder):
        facts = _json(candidate / CONFIG)
        if facts.get("space_id") == space and facts.get("fused") is False:
            return candidate.parent if candidate.name == RUN_MODEL else candidate
    return None


def _near(folder: Path) -> Iterator[Path]:
    parent = folder.absolute().parent
    for home in (parent, parent.parent):
        try:
            folders = sorted(path for path in home.iterdir() if path.is_dir())[:_NEAR]
        except OSError:
            continue
        for path in folders:
            yield path
            yield path / RUN_MODEL


def overrides_of(config: zoo.ModelConfig) -> dict[str, Any]:
    """Return the fields by dotted name in which a configuration differs from its zoo model's.

    Raises:
        ConfigError: they cannot be expressed as overrides of a train recipe.
    """
    base = zoo.entry(config.name).config
    changed = dict(zoo.changed_fields(zoo.to_dict(config), zoo.to_dict(base)))
    if zoo.override(base, **changed) != config:
        raise ConfigError(
            f"the model's configuration cannot be expressed as overrides of {config.name}"
        )
    return {key: list(v) if isinstance(v, tuple) else v for key, v in changed.items()}
