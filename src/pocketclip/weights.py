"""Reading foreign weight files safely: tensors come out, no code runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pocketclip.errors import CheckpointError

PICKLED = (".pt", ".pth", ".bin")
SUFFIXES = (*PICKLED, ".safetensors")

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What `DistributedDataParallel`, `torch.compile` and trainers put before each name."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a `.safetensors`, `.pt`, `.pth` or `.bin` file, and its metadata.

    A training checkpoint is unwrapped (`state_dict`), and what wrappers put before every name
    (`module.`, `_orig_mod.`, `model.`, in any order) is removed. Pickles are read by torch's
    restricted unpickler; one that holds anything but tensors and plain values is refused before
    any of it runs.

    Raises:
        CheckpointError: the file is missing, empty, truncated, of another kind, or refused.
    """
    _check_readable(path)
    metadata: dict[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state = _unwrap(_read_pickled(path), path)
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
            head = handle.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    # A safetensors file begins with the length of its JSON header.
    looks_safe = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000
    if looks_safe != (path.suffix.lower() == ".safetensors") and (looks_safe or _is_pickled(head)):
        actual = "a safetensors file" if looks_safe else "a pickled torch file"
        right = ".safetensors" if looks_safe else ".pt"
        raise CheckpointError(f"{path} is {actual} with a wrong suffix; rename it to {right}")
    if path.suffix.lower() != ".safetensors" and not _is_pickled(head):
        raise CheckpointError(f"{path} is not a torch file: it begins with neither zip nor pickle")


def _is_pickled(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"\x80"))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            names = list(handle.keys())
            return {n: handle.get_tensor(n) for n in names}, dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {_line(error)}") from error


def _read_pickled(path: Path) -> Any:
    try:
        # Older files are not zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        _refuse(path, error)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive; save its state_dict() as .pt and load that"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged") from error
    except Exception as error:
        # The restricted unpickler meets arbitrary bytes here and fails in as many ways.
        raise CheckpointError(f"{path} cannot be read: {_line(error)}") from error


def _refuse(path: Path, error: pickle.UnpicklingError) -> NoReturn:
    found = re.search(r"(?:GLOBAL|class|function|[Gg]lobal) ([\w.]+\.[\w.]+)", str(error))
    if found:
        raise CheckpointError(
            f"{path} is refused: its pickle holds {found[1]} and not only tensors; nothing of it "
            "was run. Save the bare state_dict and load that"
        ) from error
    raise CheckpointError(
        f"{path} is refused: its pickle is damaged, or holds more than tensors; nothing of it "
        "was run"
    ) from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not named tensors")
    state = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    return state


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while state:
        first = next(iter(state))
        prefix = next((known for known in _WRAPPERS if first.startswith(known)), None)
        if prefix is None or not all(name.startswith(prefix) for name in state):
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
