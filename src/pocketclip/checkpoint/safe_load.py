"""Third-party weight files read safely: tensors are returned, and no code runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketclip.checkpoint.hub_files import SUFFIXES
from pocketclip.errors import CheckpointError
from pocketclip.formats.escaping import escape_controls
from pocketclip.formats.lfs import LFS_ADVICE, is_lfs_pointer
from pocketclip.formats.safetensors_file import read_header
from pocketclip.formats.stored_tensor import ITEMSIZE, FileStamp, StoredTensor, check_growth
from pocketclip.formats.torch_file import ZIP, TorchFile, read_torch_file
from pocketclip.formats.torch_pickle import Called, Named, Unusual, View

__all__ = ["StoredTensor", "read_tensors"]

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes that `DistributedDataParallel`, `torch.compile` and trainers add to each name."""
_PLAIN = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params",
    "weights",
)  # fmt: skip
"""Keys of the weights in training checkpoints."""
_AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model",
    "ema_model_state_dict", "model_state_dict_ema", "ema", "params_ema", "swa_state_dict",
    "shadow",
)  # fmt: skip
"""Keys of their averaged weights."""
_MAX_DEPTH = 8
_HEAD = 256
log = logging.getLogger(__name__)


def read_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a `.safetensors`, `.pt`, `.pth` or `.bin` file, and its metadata.

    Their numbers are read by `StoredTensor.read`, one tensor at a time. No code in the file runs,
    and torch is not needed.

    A training checkpoint is unwrapped: the weights under `state_dict`, `model`, `module` and the
    like, or the averaged ones (`model_ema`, `state_dict_ema`, ...) if there are no others. Prefixes
    that wrappers add to every name (`module.`, `_orig_mod.`, `model.`, in any order) are removed.
    A pickle with anything but tensors and plain values is refused.

    Raises:
        CheckpointError: the file is missing, empty, truncated, not a weight file, or refused.
    """
    _check_readable(path)
    metadata: dict[str, str] = {}
    try:
        if path.suffix.lower() == ".safetensors":
            state, metadata = read_header(path)
        else:
            state = _unwrap(read_torch_file(path), path)
        check_growth(list(state.values()), FileStamp.of(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return _without_wrappers(state), metadata


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without config.json, not a checkpoint")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(
            f"{path}: {path.suffix or 'no suffix'} is not a weight file's suffix "
            f"({', '.join(SUFFIXES)})"
        )
    try:
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    if is_lfs_pointer(head):
        raise CheckpointError(f"{path} {LFS_ADVICE}")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not weights; download the file itself")
    # A safetensors file begins with the length of its JSON header.
    looks_safe = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000
    if looks_safe != (path.suffix.lower() == ".safetensors") and (looks_safe or _is_pickled(head)):
        actual = "a safetensors file" if looks_safe else "a pickled torch file"
        right = ".safetensors" if looks_safe else ".pt"
        raise CheckpointError(f"{path} is {actual} with a wrong suffix; rename it to {right}")
    if path.suffix.lower() != ".safetensors" and not _is_pickled(head):
        raise CheckpointError(f"{path} is not a torch file: it begins with neither zip nor pickle")


def _is_pickled(head: bytes) -> bool:
    return head.startswith((ZIP, b"\x80"))


def _unwrap(file: TorchFile, path: Path) -> dict[str, StoredTensor]:
    """Return the named tensors of a training checkpoint, at any depth up to `_MAX_DEPTH`."""
    names: list[str] = []
    loaded = file.loaded
    for _ in range(_MAX_DEPTH):
        name = _inner_name(loaded, path)
        if name is None:
            break
        names.append(name)
        loaded = loaded[name]
    where = "".join(f"[{name!r}]" for name in names)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}{where} holds a {_kind(loaded)}, not named tensors")
    state = {str(k): v for k, v in loaded.items() if isinstance(v, (View, Unusual))}
    if not state:
        some = ", ".join(_shown(name) for name in list(loaded)[:5]) or "nothing"
        raise CheckpointError(f"{path}{where} holds no tensors by name (its entries: {some})")
    tensors = {}
    for name, view in state.items():
        if isinstance(view, Unusual):
            raise CheckpointError(f"{path}: {_shown(name)} is a {view.kind} tensor")
        if view.dtype not in ITEMSIZE:
            raise CheckpointError(
                f"{path}: {_shown(name)} has type {view.dtype}, which no model here has"
            )
        tensors[name] = file.tensor(view)
    return tensors


def _shown(name: object) -> str:
    return escape_controls(str(name)[:40])


def _kind(loaded: Any) -> str:
    if isinstance(loaded, (View, Unusual)):
        return "Tensor"
    if isinstance(loaded, (Called, Named)):
        return loaded.name.rpartition(".")[2]
    return type(loaded).__name__


def _inner_name(loaded: Any, path: Path) -> str | None:
    """Return the key of a training checkpoint's weights; None for plain named tensors."""
    if not isinstance(loaded, Mapping):
        return None
    inner = {str(name) for name, value in loaded.items() if isinstance(value, Mapping)}
    plain = next((name for name in _PLAIN if name in inner), None)
    averaged = next((name for name in _AVERAGED if name in inner), None)
    if plain is not None and averaged is not None:
        log.info("%s has plain and averaged weights: using %r, not %r", path, plain, averaged)
    elif averaged is not None:
        log.info("%s has only averaged weights: using %r", path, averaged)
    return plain or averaged


def _without_wrappers(state: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    if "n_averaged" in state and any(name.startswith("module.") for name in state):
        # The counter of `torch.optim.swa_utils.AveragedModel`.
        state = {name: value for name, value in state.items() if name != "n_averaged"}
    while state:
        first = next(iter(state))
        prefix = next((known for known in _WRAPPERS if first.startswith(known)), None)
        if prefix is None or not all(name.startswith(prefix) for name in state):
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
