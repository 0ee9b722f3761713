"""Models of `transformers`, from a folder or the hub: files, weights, tokenizer, identity.

No code of a model's repository runs, and no pickle: weights are safetensors, or torch's restricted
unpickler reads them. Preprocessing follows the model's own file: see
`teacher_preprocess.from_processor`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketclip.checkpoint import hub
from pocketclip.errors import (
    CheckpointError,
    ConfigError,
    HubError,
    MissingDependencyError,
    ParseError,
    how_to_install,
    one_line,
)
from pocketclip.formats import json_text
from pocketclip.formats.lfs import check_lfs_pointer
from pocketclip.storage.local import digest_file

TEACHERS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
CAPTIONERS = {
    "blip": "BlipForConditionalGeneration",
    "git": "GitForCausalLM",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
_SAFE = "model*.safetensors"
_PICKLED = "pytorch_model*.bin"
_VOCABULARIES = (
    ("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",),
    ("tokenizer.model",),
)  # fmt: skip
"""Any of these groups is enough for a tokenizer."""
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip
# Fields of a configuration that do not affect what the model computes.
_VOLATILE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}


def folder_of(target: str, *, offline: bool) -> Path:
    """Return the local folder of a model of transformers, fetched from the hub if necessary.

    Args:
        target: a folder, or `OWNER/NAME` or `OWNER/NAME@REVISION` on the hub.
        offline: use the cache only.

    Raises:
        HubError: it is neither a folder nor an id, or it cannot be fetched: `hub.fetch_folder`.
    """
    path = Path(target)
    if path.is_dir():
        return path
    repo, _, revision = target.partition("@")
    if path.exists() or not hub.is_hub_id(repo):
        raise HubError(f"{target} is neither a folder nor a hub id of the form owner/name")
    return hub.fetch_folder(
        repo,
        [[*_SMALL, _SAFE], [*_SMALL, _PICKLED]],
        is_complete=_is_complete,
        offline=offline,
        revision=revision if "@" in target else None,
    )


def _is_complete(folder: Path) -> bool:
    """Return whether a folder has a configuration, preprocessing, a tokenizer and all weights."""

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    return (
        has("config.json")
        and (has("preprocessor_config.json") or has("processor_config.json"))
        and any(has(*names) for names in _VOCABULARIES)
        and bool(_weights_of(folder))
    )


def _weights_of(folder: Path) -> list[Path]:
    """Return the weight files that transformers would load; empty if one of them is missing."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            shards = read_json(index).get("weight_map")
            names = sorted(set(shards.values())) if isinstance(shards, dict) else []
            paths = [folder / str(name) for name in names]
            return paths if all(path.is_file() for path in paths) else []
    return []


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds no object.
    """
    try:
        value = json_text.read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ParseError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def processor_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Return a folder's description of the preprocessing, and the path of its file.

    Raises:
        ConfigError: neither file is there.
    """
    newer, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    if newer.is_file():
        nested = read_json(newer).get("image_processor")
        if isinstance(nested, dict):
            return nested, str(newer)
    if older.is_file():
        return read_json(older), str(older)
    raise ConfigError(
        f"{folder} has no {older.name} (nor a {newer.name} with an image_processor), so the "
        "model's preprocessing is unknown: copy that file from the source of the model"
    )


def need_transformers() -> Any:
    """Return the module transformers.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"transformers: models need transformers: {how_to_install('teachers')}"
        ) from error
    return transformers


def config_of(folder: Path, known: Mapping[str, str], role: str) -> tuple[dict[str, Any], str]:
    """Return a folder's configuration and the class of its model.

    Raises:
        CheckpointError: no configuration, or a model that cannot serve as `role`.
    """
    check_lfs_pointer(folder / "config.json")
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in known:
        hint = ""
        if kind in (TEACHERS if known is CAPTIONERS else CAPTIONERS):
            hint = " (it is a teacher)" if known is CAPTIONERS else " (it is a captioner)"
        raise CheckpointError(
            f"{folder} holds a {kind} model, which cannot serve as a {role}{hint}: use one of "
            f"{', '.join(known)}"
        )
    return config, known[kind]


def load_weights(folder: Path, class_name: str) -> Any:
    """Return the model of a folder, in float32 and evaluation mode.

    Raises:
        CheckpointError: files are missing, damaged or refused, or lack weights of the model.
    """
    transformers = need_transformers()
    cls = getattr(transformers, class_name)
    for path in _weights_of(folder):
        check_lfs_pointer(path)
    # Set here, because a configuration could name attention code on the hub.
    attention = "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
    try:
        with quiet(transformers):
            model, report = cls.from_pretrained(
                folder,
                local_files_only=True,
                weights_only=True,
                attn_implementation=attention,
                output_loading_info=True,
            )
    except Exception as error:  # it lets any type of exception escape
        reason = one_line(error, 300)
        raise CheckpointError(f"{folder} cannot be loaded ({reason})") from error
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise CheckpointError(f"{folder} lacks weights of {class_name}: {', '.join(missing[:3])}")
    return model.float().eval().requires_grad_(False)


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Silence the library's logs and progress bars; errors are raised here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        CheckpointError: the tokenizer is missing, or needs a package that is not installed.
    """
    transformers = need_transformers()
    for name in _TOKENIZER:
        check_lfs_pointer(folder / name)
    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # it lets any type of exception escape
        reason = one_line(error, 300)
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({reason})") from error


def identity(folder: Path, kind: str, config: Mapping[str, Any], processor: Any) -> str:
    """Return the space id of a folder's model: a hash of everything that affects embeddings."""
    weights = _weights_of(folder)
    files = [*weights, *(folder / name for name in _TOKENIZER if (folder / name).is_file())]
    digests = {path.name: digest_file(path) for path in files}
    relevant = {key: value for key, value in config.items() if key not in _VOLATILE}
    return space_of([kind, relevant, processor, digests])


def space_of(facts: Any) -> str:
    """Return the space id for JSON values."""
    return f"space-{json_text.digest_json(facts, default=str)[:16]}"
