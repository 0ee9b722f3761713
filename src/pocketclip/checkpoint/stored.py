"""The weights of a MODEL argument as named arrays, without torch.

    stored = read_stored(resolve_model("mobileclip2-s0"))
    stored.config.name, stored.weights["image.head.weight"].shape

`read_stored` finds out which model a file holds and whether it fits, for the loader in torch
(`pocketclip.checkpoint.folder`) as well as for conversions without it.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import zoo
from pocketclip.checkpoint import hub, parameters, resolve
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint.hub_cache import HubFile
from pocketclip.checkpoint.hub_files import is_own_folder
from pocketclip.checkpoint.names import Naming, Shaped, ThirdPartyEntry
from pocketclip.checkpoint.parameters import Shape
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.checkpoint.safe_load import StoredTensor, read_tensors
from pocketclip.checkpoint.weight_license import (
    license_of_checkpoint,
    license_of_file,
    license_of_hub_file,
)
from pocketclip.embedding_space import SpaceIdentity, digest_weights, embedding_fields, identify
from pocketclip.embeddings import check_scale
from pocketclip.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    HubError,
    MissingDependencyError,
    how_to_install,
)
from pocketclip.formats.fields import field, reason_of, typed
from pocketclip.formats.json_text import digest_json, load_json, read_json
from pocketclip.formats.lfs import check_lfs_pointer
from pocketclip.formats.stored_tensor import aligned_copy
from pocketclip.license import UNKNOWN, License
from pocketclip.types import Arrays, LazyArrays

CONFIG = resolve.CONFIG
WEIGHTS = resolve.WEIGHTS
VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model in a file: its configuration is known and fits, its weights are read when used."""

    source: ModelSource
    """Where it comes from."""
    file: Path
    """The weight file."""
    hub_file: HubFile | None = None
    """The file's repository and commit, if it is from the hub."""
    config: zoo.ModelConfig
    weights: Arrays
    """Every entry of the state dict of the model in torch, in its order: floats are float32. Each
    access reads the file; the caller owns the array.

    Raises `CheckpointError` if the file was changed or is damaged.
    """
    is_fused: bool = False
    """Whether the weights are those of the fused form, see `pocketclip.nn.reparam.fuse`."""
    recorded: SpaceIdentity | None = None
    """The identity that a checkpoint of ours records; `identity` compares it with the weights."""
    is_sealed: bool = False
    """Whether that checkpoint's configuration contains its own hash."""
    license: License = UNKNOWN
    """Of the weights, as far as it is known."""

    @functools.cached_property
    def identity(self) -> SpaceIdentity:
        """The identity of the embedding space; the first access reads all weights.

        Raises:
            CheckpointError: a checkpoint's weights are not those that were saved.
        """
        return self.check_digest(digest_weights(self.weights))

    def check_digest(self, digest: str) -> SpaceIdentity:
        """Return the identity of the embedding space of weights with this digest.

        Raises:
            CheckpointError: a checkpoint's weights are not those that were saved.
        """
        if self.recorded is not None and self.recorded.weights_digest != digest:
            _refuse_changed_weights(self.file.parent, self.is_sealed)
        return identify(self.config, digest, self.recorded)

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities, which files hold as its logarithm.

        Raises:
            EmbeddingError: it is not finite.
        """
        with np.errstate(over="ignore"):
            return check_scale(float(np.exp(self.weights["logit_scale"])))


def read_stored(
    source: ModelSource, model: str | None = None, *, offline: bool = False
) -> StoredModel:
    """Return the weights and the configuration of a model, without torch.

    Names and shapes are compared with the model's; the numbers are read later. Nothing but headers
    is in memory afterwards.

    Args:
        source: what `pocketclip.checkpoint.resolve.resolve_model` returns.
        model: the zoo name of a weight file that does not name its model itself.
        offline: take hub files from the local cache only.

    Raises:
        BundleError: the source is a bundle, which holds an exported model.
        CheckpointError: the file is damaged, refused, or does not fit.
        ConfigError: a model of another library.
        UnknownModelError: `model` is not in the zoo.
        HubError: the weights could not be fetched from the hub.
        MissingDependencyError: random weights, which only torch makes.
    """
    if source.kind == "bundle":
        raise BundleError(
            f"{source.text} is a bundle, which holds an exported model: pass the checkpoint that "
            "it was exported from"
        )
    if source.note:
        log.warning("%s", source.note)
    name = expected_name(source, model)
    if source.kind == "hub":
        return _read_hub(source, name, offline=offline)
    if source.kind == "random":
        raise MissingDependencyError(
            f"{source.text}: random weights need torch: {how_to_install('train')}"
        )
    if source.kind == "python":
        raise ConfigError(
            f"{source.text}: a model of your own code serves only as a teacher or captioner; here "
            "a checkpoint, a weight file or a published model is needed"
        )
    if source.path is None:
        raise ConfigError(
            f"{source.text}: models of {source.kind} serve only as teachers and captioners of "
            "`pocketclip reinforce`"
        )
    if source.kind == "checkpoint":
        return _read_folder(source, source.path, name)
    return _read_file(source, source.path, name, source.suggested)


def expected_name(source: ModelSource, model: str | None) -> str | None:
    """Return the zoo name that the weights must fit, or None if they name it themselves.

    Raises:
        ConfigError: the source names another model than `model`.
        UnknownModelError: `model` is not in the zoo.
    """
    if model is None:
        return source.model
    name = zoo.resolve(model)
    if "=" in source.text and source.model not in (None, name):
        raise ConfigError(f"{source.text} names another model than {name}: give one of them")
    return name


def _read_folder(source: ModelSource, path: Path, name: str | None) -> StoredModel:
    facts = _read_config(path)
    if facts is None:
        return _read_third_party_folder(source, path, name)
    config, is_fused, identity, is_sealed, license = facts
    if name is not None and zoo.entry(name).config.name != config.name:
        raise CheckpointError(f"{path} holds {config.name}, not {zoo.resolve(name)}")
    file = path / WEIGHTS
    state, _ = read_tensors(file)
    shapes = parameters.shapes(config, fused=is_fused)
    _compare(state, shapes, file, config.name, None)
    _check_types(state)
    return StoredModel(
        source=source,
        file=file,
        config=config,
        weights=LazyArrays({ours: state[ours].read for ours in shapes}),
        is_fused=is_fused,
        recorded=identity,
        is_sealed=is_sealed,
        license=license,
    )


def _refuse_changed_weights(path: Path, is_sealed: bool) -> None:
    """Refuse weights whose digest is not the one in the configuration.

    Nothing else detects a flipped bit, which makes embeddings slightly or entirely wrong.
    Earlier versions sealed no configuration and wrote another digest for compiled towers, so
    theirs get a warning only.
    """
    differs = (
        f"{path / WEIGHTS} does not hold the weights that were saved with {CONFIG} (their digest "
        "differs)"
    )
    if is_sealed:
        raise CheckpointError(f"{differs}: copy the checkpoint again, or save it again")
    log.warning("%s: the file is damaged, unless its model had compiled towers", differs)


def _read_config(
    path: Path,
) -> tuple[zoo.ModelConfig, bool, SpaceIdentity, bool, License] | None:
    """Return a checkpoint's configuration, if it is fused, its space, if it is sealed, its licence.

    None if another library wrote `config.json`. A sealed one contains its own hash.
    """
    check_lfs_pointer(path / CONFIG)
    try:
        raw = typed(read_json(path / CONFIG, what="its text"), dict, what="its text")
        if raw.get("format") != "pocketclip":
            return None
        if field(raw, "version", int, what="it") > VERSION:
            raise CheckpointError(f"{path} has format {raw['version']}; update pocketclip")
        identity = SpaceIdentity(str(raw["space_id"]), str(raw["weights_digest"]))
        config = zoo.from_dict(raw["model"])
        sealed = raw.pop("sha256", None)  # earlier versions wrote none
        if sealed is not None and sealed != digest_json(raw):
            raise CheckpointError(
                f"{path / CONFIG} was changed after it was saved (its hash differs): "
                "copy the checkpoint again, or save it again"
            )
        license = license_of_checkpoint(path, raw.get("licence"))
        return config, bool(raw["fused"]), identity, sealed is not None, license
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path / CONFIG} is damaged: {reason_of(error)}; copy the checkpoint again"
        ) from error


def _read_third_party_folder(source: ModelSource, path: Path, name: str | None) -> StoredModel:
    """Read a folder with another library's `config.json`, such as a repository of the hub."""
    chosen = resolve.find_weights(path)
    try:
        return _read_file(source, chosen or path / WEIGHTS, name, source.suggested)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path / CONFIG} was not written by pocketclip, and {error}"
        ) from error


def fetch_source(source: ModelSource, *, offline: bool = False) -> HubFile:
    """Return the weight file of a source on the hub, fetched if the cache lacks it.

    Raises:
        HubError: see `pocketclip.checkpoint.hub.fetch`.
    """
    try:
        return hub.fetch(source.repos, offline=offline, revision=source.revision)
    except HubError as error:
        if "/" not in source.target or "hf-hub:" in source.text:
            raise
        raise HubError(f"there is no file or folder {source.target} here; {error}") from error


def _read_hub(source: ModelSource, name: str | None, *, offline: bool) -> StoredModel:
    file = fetch_source(source, offline=offline)
    stored = _read_file(source, file.path, name, None)
    return replace(stored, hub_file=file, license=license_of_hub_file(file))


def _read_file(
    source: ModelSource, path: Path, name: str | None, suggested: str | None
) -> StoredModel:
    state, metadata = read_tensors(path)
    convention = naming.detect_naming(state)
    if convention is None:
        some = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{path} has unknown parameter names (the first are {some}); known are Apple's, "
            "open_clip's and ours"
        )
    if convention == "pocketclip":
        # In the hub's cache, as `pocketclip push` uploaded it.
        if path.parent.parent.name == "snapshots" and is_own_folder(path.parent):
            return _read_folder(source, path.parent, name)
        raise CheckpointError(f"{path} is part of a checkpoint: load its folder instead")
    config = _config_of(path, name, state, metadata, convention, suggested)
    state = naming.normalize_text_prefix(state, config)
    entries = _fitting_entries(state, config, convention, path)
    _check_types({ours: state[entry.name] for ours, entry in entries.items()})
    weights = {
        ours: functools.partial(_read_entry, state[entry.name], entry)
        for ours, entry in entries.items()
    }
    return StoredModel(
        source=source,
        file=path,
        config=config,
        weights=LazyArrays(weights),
        license=license_of_file(source, path, metadata),
    )


def _read_entry(tensor: StoredTensor, entry: ThirdPartyEntry) -> NDArray[Any]:
    array = entry.to_own(tensor.read())
    return aligned_copy(array) if entry.transposed else array


def _config_of(
    path: Path,
    name: str | None,
    state: Mapping[str, Shaped],
    metadata: Mapping[str, str],
    convention: Naming,
    suggested: str | None = None,
) -> zoo.ModelConfig:
    """Return the configuration of a weight file: from its metadata, `name`, or its shapes."""
    if "pocketclip" in metadata:
        try:
            config = zoo.from_dict(load_json(metadata["pocketclip"]))
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"{path} has damaged metadata: {error}") from error
        if name is None or zoo.entry(name).config.name == config.name:
            return config
    if name is not None:
        return naming.fit_config(zoo.entry(name).config, state, convention)
    fits = _fitting_models(state, convention)
    called = zoo.find(path.stem)
    by_name = [n for n in fits if n == suggested or called is zoo.entry(n)]
    configs = [naming.fit_config(zoo.entry(n).config, state, convention) for n in by_name or fits]
    computed = {json.dumps(embedding_fields(config), sort_keys=True) for config in configs}
    # Shapes do not tell activations apart, so CLIP's own transformers must be named. All published
    # captioners have the same activation.
    if by_name or (
        len(computed) == 1 and (configs[0].is_captioner or not naming.is_plain_clip(configs[0]))
    ):
        return configs[0]
    hint = f"it fits {' or '.join(fits)}" if fits else "it fits no model of the zoo"
    raise CheckpointError(
        f"{path} does not say which model it holds ({hint}); pass model=NAME, or write NAME=FILE"
    )


def _fitting_entries(
    state: Mapping[str, Shaped], config: zoo.ModelConfig, convention: Naming, path: Path
) -> dict[str, ThirdPartyEntry]:
    """Return the file's entries by our names; raise if they are not exactly the model's."""
    entries = naming.map_entries(config, convention)
    expected = {entry.name: entry.shape for entry in entries.values()}
    _compare(state, expected, path, config.name, convention)
    return entries


def _compare(
    state: Mapping[str, Shaped],
    expected: Mapping[str, Shape],
    path: Path,
    name: str,
    convention: Naming | None,
) -> None:
    """Raise with the first differences if a file's names and shapes are not those expected."""
    problems = [f"{n} is missing" for n in expected if n not in state]
    problems += [f"{n} is not part of the model" for n in state if n not in expected]
    problems += [
        f"{n} has shape {tuple(state[n].shape)}, not {shape}"
        for n, shape in expected.items()
        if n in state and tuple(state[n].shape) != shape
    ]
    if not problems:
        return
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    message = f"{path} does not fit {name}: {'; '.join(problems[:3])}{more}"
    if convention is not None:
        fits = _fitting_models(state, convention)
        message += f". It fits {' or '.join(fits)}" if fits else ". It fits no model of the zoo"
    raise CheckpointError(message)


def _fitting_models(state: Mapping[str, Shaped], convention: Naming) -> list[str]:
    """Return the zoo names of the models with exactly the names and shapes of `state`."""
    matches = []
    has_decoder = any(name.startswith("text_decoder.") for name in state)
    for name, entry in zoo.ZOO.items():
        if entry.config.is_captioner != has_decoder:
            continue
        config = naming.fit_config(entry.config, state, convention)
        if naming.unsupported_reason(config, convention):
            continue
        normalized = naming.normalize_text_prefix(state, config)
        shapes = {n: tuple(v.shape) for n, v in normalized.items()}
        if shapes == naming.entry_shapes(config, convention):
            matches.append(name)
    return matches


def _check_types(state: Mapping[str, StoredTensor]) -> None:
    for name, tensor in state.items():
        if not (tensor.is_float or name.endswith("num_batches_tracked")):
            raise CheckpointError(
                f"the weights do not fit: {name} has type {tensor.dtype}, not float32"
            )
