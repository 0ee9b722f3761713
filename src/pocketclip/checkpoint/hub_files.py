"""The hub's file choice: which of a repository's files holds the weights, by name alone.

choose_weights(["config.json", "model.safetensors", "open_clip_model.safetensors"])
# open_clip_model.safetensors
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pocketclip.errors import HubError
from pocketclip.formats.json_text import read_json
from pocketclip.license import FILE

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a checkpoint of ours, which other libraries' repositories may have too."""
LIBRARY = "pocketclip"
"""The `library_name` in the card of a repository with a checkpoint of ours."""
PICKLED = (".pt", ".pth", ".bin")
SUFFIXES = (*PICKLED, ".safetensors")
"""Suffixes of weight files."""
_SHARD = re.compile(r"-\d{5}-of-(?!00001\.)\d{5}\.[a-z]+$")
_TRANSFORMERS_FILE = re.compile(
    r"(model(-00001-of-00001)?\.safetensors|pytorch_model(-00001-of-00001)?\.bin)", re.IGNORECASE
)
_TRAINER_FILE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)", re.IGNORECASE
)


def choose_weights(files: Sequence[str]) -> str:
    """Return the file that holds the weights, of a repository or a downloaded folder.

    The order is: open_clip's file (`open_clip_*`), other names, transformers' file
    (`model.safetensors`, `pytorch_model.bin`), since a repository may have the first and the last
    beside its own. Safetensors win over pickles of the same name. Files in subfolders count only
    if the top level has no weights.

    Args:
        files: paths within the repository, separated by `/`.

    Raises:
        HubError: no weights, several candidates, or only a set of shards.
    """
    weights = [name for name in files if is_weight_file(name)]
    weights = [name for name in weights if "/" not in name] or weights
    whole = [name for name in weights if not _SHARD.search(name.lower())]
    if weights and not whole:
        raise HubError(
            f"the weights are split into {len(weights)} shards ({_listed(weights)}), which is not "
            "supported; join them into one file and pass its path"
        )
    open_clip = [name for name in whole if PurePosixPath(name).name.startswith("open_clip_")]
    transformers = [
        name for name in whole if _TRANSFORMERS_FILE.fullmatch(PurePosixPath(name).name)
    ]
    others = [name for name in whole if name not in (*open_clip, *transformers)]
    for group in (open_clip, others, transformers):
        safe = [name for name in group if name.lower().endswith(".safetensors")]
        if group is others and len({PurePosixPath(name).stem for name in others}) > 1:
            safe = others  # different names: none has precedence
        matches = safe or group
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise HubError(
                f"several files could be the weights ({_listed(matches)}); "
                "pass the path of the right one"
            )
    raise HubError(f"no .safetensors, .bin, .pt or .pth file among: {_listed(files)}")


def is_own_repository(files: Sequence[str], facts: Mapping[str, Any]) -> bool:
    """Return whether a repository holds a checkpoint of ours, as `pocketclip push` uploads it.

    Args:
        files: paths within the repository.
        facts: of its card, `README.md`.
    """
    return facts.get("library_name") == LIBRARY and {CONFIG, WEIGHTS} <= set(files)


def is_own_folder(folder: Path) -> bool:
    """Return whether a downloaded repository holds a checkpoint of ours, with all its files."""
    if not (folder / WEIGHTS).is_file():
        return False
    try:
        raw = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    if not isinstance(raw, dict) or raw.get("format") != LIBRARY:
        return False
    entry = raw.get("licence")
    text = entry.get("file") if isinstance(entry, dict) else None
    return text is None or (text == FILE and (folder / FILE).is_file())


def is_weight_file(name: str) -> bool:
    """Return whether a file may hold weights, by its name; states of trainers do not."""
    name = name.lower()
    return name.endswith(SUFFIXES) and not _TRAINER_FILE.fullmatch(PurePosixPath(name).name)


def _listed(files: Sequence[str]) -> str:
    shown = ", ".join(sorted(files)[:8]) or "no files"
    return f"{shown}, ..." if len(files) > 8 else shown
