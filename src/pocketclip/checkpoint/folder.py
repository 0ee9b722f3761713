"""Checkpoints: models loaded and saved, from disk or the hub.

Our checkpoint is a folder with `config.json` and `model.safetensors`. Apple's and open_clip's files
are read and written through `pocketclip.checkpoint.names`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pocketclip import zoo
from pocketclip._version import __version__
from pocketclip.checkpoint import hub, resolve
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint.hub_files import PICKLED, SUFFIXES
from pocketclip.checkpoint.names import Naming
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.checkpoint.safe_load import read_tensors
from pocketclip.embedding_space import SpaceIdentity, digest_weights, embedding_fields
from pocketclip.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    HubError,
)
from pocketclip.formats.fields import field, reason_of, typed
from pocketclip.formats.json_text import digest_json, load_json, read_json
from pocketclip.formats.lfs import check_lfs_pointer
from pocketclip.nn import reparam
from pocketclip.nn.build import build_empty, random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.text import ComposedEmbedding
from pocketclip.storage.local import refuse_others, write_whole, write_whole_folder

CONFIG = resolve.CONFIG
WEIGHTS = resolve.WEIGHTS
VERSION = 1
RUN_MODEL = resolve.RUN_MODEL
"""The subfolder of a training run that holds its finished model."""
log = logging.getLogger(__name__)


def load(
    path_or_name: str | os.PathLike[str] | ModelSource,
    model: str | None = None,
    fuse: bool = False,
    *,
    offline: bool = False,
    revision: str | None = None,
) -> CLIP:
    """Load a model: float32, evaluation mode.

    Args:
        path_or_name: a training run, one of our checkpoint folders, a weight file (`.pt`, `.pth`,
            `.bin`, `.safetensors`) with Apple's or open_clip's parameter names, a folder downloaded
            from the hub, a zoo name, whose published weights come from the hub, a hub id such as
            `timm/MobileCLIP2-S0-OpenCLIP`, or `random:tiny` for random weights; see
            `pocketclip.checkpoint.resolve`. Bundles cannot be loaded here.
        model: the zoo name of a weight file that does not name its model itself; `NAME=FILE` does
            the same.
        fuse: fold the training branches, see `pocketclip.nn.reparam.fuse`.
        offline: take hub files from the local cache only.
        revision: of a repository on the hub: a branch, a tag or a commit; None for `main`.

    Returns:
        The model; `encode_image` and `encode_text` give embeddings (B, D), not normalised.

    Raises:
        BundleError: the path is a bundle, which holds an exported model.
        CheckpointError: the file is damaged, refused, or does not fit; no weights are loaded.
        ConfigError: an invalid argument, or a model of another library.
        UnknownModelError: neither a file, nor a model of the zoo, nor a hub id.
        HubError: the weights could not be fetched from the hub.
    """
    if isinstance(path_or_name, ModelSource):
        source = path_or_name
    else:
        source = resolve_model(path_or_name, revision=revision)
    if source.kind == "bundle":
        raise BundleError(
            f"{source.text} is a bundle, which holds an exported model: pass the checkpoint that "
            "it was exported from"
        )
    if source.note:
        log.warning("%s", source.note)
    name = _expected_name(source, model)
    if source.kind == "hub":
        loaded = _load_hub(source, name, offline=offline)
    elif source.kind == "random":
        loaded = _load_random(source, name)
    elif source.kind == "python":
        raise ConfigError(
            f"{source.text}: a model of your own code serves only as a teacher or captioner; here "
            "a checkpoint, a weight file or a published model is needed"
        )
    elif source.path is None:
        raise ConfigError(
            f"{source.text}: models of {source.kind} serve only as teachers and captioners of "
            "`pocketclip reinforce`"
        )
    elif source.kind == "checkpoint":
        loaded = _load_folder(source.path, name, source.suggested)
    else:
        loaded = _load_file(source.path, name, source.suggested)
    return reparam.fuse(loaded) if fuse and not loaded.is_fused else loaded.eval()


def save(
    model: CLIP,
    path: str | os.PathLike[str],
    naming: Literal["pocketclip", "apple", "openclip"] = "pocketclip",
) -> None:
    """Write `model` whole or not at all.

    Args:
        model: fused or not; third-party namings take unfused models only.
        path: with `pocketclip` a folder, which may hold an older checkpoint but nothing else;
            otherwise a file: `.pt`, `.pth` or `.bin`, with `openclip` also `.safetensors`.
        naming: the parameter names to write.

    Raises:
        CheckpointError: the naming cannot express the model, or the path is not allowed.
        OSError: the disk is full or the path is not writable.
    """
    target, model = Path(path), _uncompiled(model)
    if naming == "pocketclip":
        _save_folder(model, target)
    elif naming in ("apple", "openclip"):
        _save_file(model, target, naming)
    else:
        raise CheckpointError(
            f"unknown naming {naming!r}; it is 'pocketclip', 'apple' or 'openclip'"
        )


def _expected_name(source: ModelSource, model: str | None) -> str | None:
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


def _load_random(source: ModelSource, name: str | None) -> CLIP:
    assert source.model is not None
    if name != source.model:
        raise CheckpointError(f"{source.text} is {source.model}, not {name}")
    return random_model(source.model, seed=source.seed)


def _load_folder(path: Path, name: str | None, suggested: str | None) -> CLIP:
    facts = _read_config(path)
    if facts is None:
        return _load_third_party_folder(path, name, suggested)
    config, is_fused, identity, is_sealed = facts
    if name is not None and zoo.resolve(name) != config.name:
        raise CheckpointError(f"{path} holds {config.name}, not {zoo.resolve(name)}")
    state, _ = _read_tensors(path / WEIGHTS)
    model = build_empty(config)
    if is_fused:
        model = reparam.fuse(model)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _compare(state, expected, path / WEIGHTS, config.name, None)
    _assign(model, state)
    if digest_weights(model.arrays()) != identity.weights_digest:
        _refuse_changed_weights(path, is_sealed)
    model.space_identity = identity
    return model


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


def _read_config(path: Path) -> tuple[zoo.ModelConfig, bool, SpaceIdentity, bool] | None:
    """Return a checkpoint's configuration, whether it is fused, its space, whether it is sealed.

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
        return config, bool(raw["fused"]), identity, sealed is not None
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path / CONFIG} is damaged: {reason_of(error)}; copy the checkpoint again"
        ) from error


def _load_third_party_folder(path: Path, name: str | None, suggested: str | None) -> CLIP:
    """Load a folder with another library's `config.json`, such as a repository of the hub."""
    chosen = resolve.find_weights(path)
    try:
        return _load_file(chosen or path / WEIGHTS, name, suggested)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path / CONFIG} was not written by pocketclip, and {error}"
        ) from error


def _load_file(path: Path, name: str | None, suggested: str | None = None) -> CLIP:
    state, metadata = _read_tensors(path)
    convention = naming.detect_naming(state)
    if convention is None:
        some = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{path} has unknown parameter names (the first are {some}); known are Apple's, "
            "open_clip's and ours"
        )
    if convention == "pocketclip":
        raise CheckpointError(f"{path} is part of a checkpoint: load its folder instead")
    config = _config_of(path, name, state, metadata, convention, suggested)
    state = naming.normalize_text_prefix(state, config)
    model, entries = _fitting_shell(state, config, convention, path)
    own: dict[str, Any] = {n: e.to_own(state[e.name]) for n, e in entries.items()}  # type: ignore[arg-type]
    _assign(model, own)
    return model


def _load_hub(source: ModelSource, name: str | None, *, offline: bool) -> CLIP:
    try:
        file = hub.fetch(source.repos, offline=offline, revision=source.revision)
    except HubError as error:
        if "/" not in source.target or "hf-hub:" in source.text:
            raise
        raise HubError(f"there is no file or folder {source.target} here; {error}") from error
    return _load_file(file.path, name)


def _config_of(
    path: Path,
    name: str | None,
    state: Mapping[str, Tensor],
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
        if name is None or zoo.resolve(name) == config.name:
            return config
    if name is not None:
        return naming.fit_config(zoo.entry(name).config, state, convention)
    fits = _fitting_entries(state, convention)
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


def _fitting_shell(
    state: Mapping[str, Tensor], config: zoo.ModelConfig, convention: Naming, path: Path
) -> tuple[CLIP, dict[str, naming.ThirdPartyEntry]]:
    entries = naming.map_entries(config, convention)
    expected = {entry.name: entry.shape for entry in entries.values()}
    _compare(state, expected, path, config.name, convention)
    return build_empty(config), entries


def _compare(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
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
        fits = _fitting_entries(state, convention)
        message += f". It fits {' or '.join(fits)}" if fits else ". It fits no model of the zoo"
    raise CheckpointError(message)


def _fitting_entries(state: Mapping[str, Tensor], convention: Naming) -> list[str]:
    """Return the zoo names of the models with exactly the names and shapes of `state`."""
    matches = []
    has_decoder = any(name.startswith("text_decoder.") for name in state)
    for name, entry in zoo.ZOO.items():
        if entry.config.is_captioner != has_decoder:
            continue  # cheaper than to build the model and compare
        config = naming.fit_config(entry.config, state, convention)
        if naming.unsupported_reason(config, convention):
            continue
        normalized = naming.normalize_text_prefix(state, config)
        shapes = {n: tuple(v.shape) for n, v in normalized.items()}
        if shapes == naming.entry_shapes(config, convention):
            matches.append(name)
    return matches


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    stored, metadata = read_tensors(path)
    return {name: torch.from_numpy(tensor.read()) for name, tensor in stored.items()}, metadata


def _assign(model: CLIP, state: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    for name, value in state.items():
        if expected[name].is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"the weights do not fit: {name} has type {kind}, not float32")
    model.load_state_dict({n: value.contiguous() for n, value in state.items()}, assign=True)


def _uncompiled(model: nn.Module) -> CLIP:
    """Return the model inside the wrappers of `torch.compile` and distributed training."""
    while not isinstance(model, CLIP):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise CheckpointError(f"a {type(model).__name__} cannot be saved, only a whole model")
        model = inner
    if model.inference_only:
        raise CheckpointError(
            "this model is for inference only: save the model that it was made from"
        )
    return model


def own_files(folder: Path) -> set[str]:
    """Return the files of one of our checkpoints; none if `folder` is not one.

    A folder with no other files may be replaced by another checkpoint.
    """
    try:
        raw = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return set()
    ours = isinstance(raw, dict) and raw.get("format") == "pocketclip"
    return {CONFIG, WEIGHTS} if ours else set()


def write_files(model: CLIP, folder: Path) -> None:
    """Write a checkpoint's files into an existing folder that nobody reads yet.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    from safetensors.torch import save_file

    model = _uncompiled(model)
    space, digest = model.identify_space()
    config = {
        "format": "pocketclip",
        "version": VERSION,
        "pocketclip": __version__,
        "space_id": space,
        "weights_digest": digest,
        "fused": model.is_fused,
        "model": zoo.to_dict(model.config),
    }
    config["sha256"] = digest_json(config)
    state = {n: v.detach().cpu().contiguous() for n, v in model.plain_state().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _save_folder(model: CLIP, target: Path) -> None:
    if target.suffix.lower() in SUFFIXES:
        raise CheckpointError(f"{target}: a checkpoint is a folder; leave out the suffix")
    refuse_others(target, own_files, CheckpointError)
    with write_whole_folder(target, own_files) as folder:
        write_files(model, folder)


def _save_file(model: CLIP, target: Path, convention: Naming) -> None:
    suffixes = PICKLED if convention == "apple" else SUFFIXES
    if target.suffix.lower() not in suffixes:
        raise CheckpointError(
            f"{target}: with naming={convention!r} the file ends in {', '.join(suffixes)}"
        )
    state = to_third_party(model, convention)
    if convention == "openclip" and getattr(model.config.image, "stem_padding", False):
        log.warning(
            "open_clip does not pad this model's stem, Apple's code does: with this file open_clip "
            "computes slightly different embeddings"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(target) as temporary:
        if target.suffix.lower() == ".safetensors":
            from safetensors.torch import save_file

            config = naming.written_config(model.config, convention)
            metadata = {"format": "pt", "pocketclip": json.dumps(zoo.to_dict(config))}
            save_file(state, temporary, metadata=metadata)
        else:
            torch.save(state, temporary)


def to_third_party(model: CLIP, convention: Naming) -> dict[str, Tensor]:
    """Return the state dict of `model` under third-party names.

    Composed token embeddings are expanded to the plain table. If open_clip expects a bias after the
    image projection and the model has none, zeros are added.

    Raises:
        CheckpointError: the naming cannot express the model; the message says why.
    """
    if model.is_fused:
        raise CheckpointError(
            f"a fused model cannot be written in {convention} naming: its branches are merged; "
            "save the unfused model, or this one with naming='pocketclip'"
        )
    config = naming.written_config(model.config, convention)
    entries = naming.map_entries(config, convention)
    state = {name: value.detach() for name, value in model.plain_state().items()}
    if isinstance(model.text.embedding, ComposedEmbedding):
        for part in ("remainder", "quotient"):
            del state[f"text.embedding.{part}.weight"]
        table = model.text.embedding.table(model.config.text.vocab_size)
        state["text.embedding.weight"] = table.detach()
    bias = state.get("image.head.bias")
    expects_bias = config.image.head_bias
    if bias is None and expects_bias:
        state["image.head.bias"] = torch.zeros_like(state["image.head.weight"][:, 0])
    elif bias is not None and not expects_bias:
        if bias.any():
            raise CheckpointError(
                f"{model.config.name}: Apple's naming has no bias after the image projection, "
                "and this model's is not zero; use naming='openclip'"
            )
        del state["image.head.bias"]
    return {
        entry.name: (state[ours].T if entry.transposed else state[ours].reshape(entry.shape))
        .contiguous()
        .cpu()
        for ours, entry in entries.items()
    }
