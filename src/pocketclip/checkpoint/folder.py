"""Checkpoints: models loaded and saved, from disk or the hub.

Our checkpoint is a folder with `config.json` and `model.safetensors`. Any weights are read through
`pocketclip.checkpoint.stored`; Apple's and open_clip's files are written with the tables of
`pocketclip.checkpoint.names`.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pocketclip import zoo
from pocketclip._version import __version__
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint import resolve
from pocketclip.checkpoint.hub_files import PICKLED, SUFFIXES
from pocketclip.checkpoint.names import Naming
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.checkpoint.stored import (
    CONFIG,
    VERSION,
    WEIGHTS,
    StoredModel,
    expected_name,
    read_stored,
)
from pocketclip.checkpoint.weight_license import license_files, license_metadata, write_license
from pocketclip.embedding_space import digest_weights
from pocketclip.errors import CheckpointError
from pocketclip.formats.json_text import digest_json, read_json
from pocketclip.nn import reparam
from pocketclip.nn.build import build_empty, random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.text import ComposedEmbedding
from pocketclip.storage.local import refuse_others, write_whole, write_whole_folder

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
    if source.kind == "random":
        loaded = _load_random(source, expected_name(source, model))
    else:
        loaded = _build(read_stored(source, model, offline=offline))
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


def _load_random(source: ModelSource, name: str | None) -> CLIP:
    assert source.model is not None
    if name != source.model:
        raise CheckpointError(f"{source.text} is {source.model}, not {name}")
    return random_model(source.model, seed=source.seed)


def _build(stored: StoredModel) -> CLIP:
    model = build_empty(stored.config)
    if stored.is_fused:
        model = reparam.fuse(model)
    # The arrays are in aligned memory, as torch's own, and nobody else has them.
    state = {name: torch.from_numpy(array) for name, array in stored.weights.items()}
    model.load_state_dict(state, assign=True)
    model.license = stored.license
    if stored.recorded is not None:
        model.space_identity = stored.check_digest(digest_weights(model.arrays()))
    return model


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
    return {CONFIG, WEIGHTS, *license_files(raw)} if ours else set()


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
        **write_license(model.license, folder),
    }
    config["sha256"] = digest_json(config)
    state = {n: v.detach().cpu().contiguous() for n, v in model.plain_state().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def check_target(target: Path) -> None:
    """Check that `save` may write a checkpoint folder here; nothing is changed.

    Raises:
        CheckpointError: it is not a folder's name, or holds other files.
    """
    if target.suffix.lower() in SUFFIXES:
        raise CheckpointError(f"{target}: a checkpoint is a folder; leave out the suffix")
    refuse_others(target, own_files, CheckpointError)


def _save_folder(model: CLIP, target: Path) -> None:
    check_target(target)
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
            metadata = {
                "format": "pt",
                "pocketclip": json.dumps(zoo.to_dict(config)),
                **license_metadata(model.license),
            }
            save_file(state, temporary, metadata=metadata)
        else:
            if model.license.is_known:
                log.warning(
                    "%s has no room for the licence of its weights (%s): hand it on beside it",
                    target, model.license,
                )  # fmt: skip
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
