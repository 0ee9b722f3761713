"""Teachers of `open_clip`, where it can be imported.

Shapes: B batch, T tokens, S side of a square in pixels, D embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketclip.checkpoint import hub
from pocketclip.errors import (
    CheckpointError,
    ConfigError,
    HubError,
    MissingDependencyError,
    PocketclipError,
    one_line,
)
from pocketclip.reinforce import teacher_preprocess
from pocketclip.reinforce.hf import space_of
from pocketclip.reinforce.protocols import Ids, Towers
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


# The files of a repository in open_clip's format; the preprocessing keys of its list of weights.
_OPEN_CLIP = ("*.json", "*.txt", "*.model")
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


class OpenClipTowers:
    """A model of open_clip."""

    def __init__(
        self, model: Any, tokenizer: Any, space_id: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        bias = getattr(model, "logit_bias", None)
        self.space_id = space_id
        self.logit_scale = float(model.logit_scale.exp())
        self.logit_bias = 0.0 if bias is None else float(bias)
        self.context_length = int(tokenizer.context_length)
        self.trims = False
        self.image_batch = 8 if device.type == "cpu" else 128
        self.tokenizer = tokenizer
        self.model = model.to(device, dtype)
        self.embed_dim = int(self._width(device))

    def _width(self, device: torch.device) -> int:
        import torch

        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(["a"]).to(device)).shape[-1]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to embeddings (B, D)."""
        return self.model.encode_image(pixels)

    def tokenize(self, texts: list[str]) -> tuple[Ids, Ids]:
        """Return ids (B, T) and their lengths (B,)."""
        ids = self.tokenizer(texts).numpy()
        return ids, np.full(len(ids), ids.shape[1])

    def encode_ids(self, ids: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        """Map ids (B, T) to embeddings (B, D)."""
        return self.model.encode_text(ids)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of the whole `text`, with its start and end token."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # a wrapped tokenizer of transformers
        if inner is not None:
            return len(inner(text, truncation=False, verbose=False)["input_ids"])
        return len(self.tokenizer.encode(text)) + 2


def open_clip_teacher(
    target: str, device: torch.device, dtype: torch.dtype, *, offline: bool
) -> tuple[Towers, SquareTransform, Scaling]:
    """Load `NAME/PRETRAINED` of open_clip; PRETRAINED is a tag of its list or a file's path.

    Raises:
        CheckpointError, ConfigError, HubError, MissingDependencyError: see `load_teacher`.
    """
    try:
        import open_clip
    except Exception as error:  # torchvision's failures are of many types
        reason = one_line(error)
        raise MissingDependencyError(
            f"open_clip: models need open_clip_torch and a torchvision that fits torch ({reason}); "
            "many of its models are also in the zoo, or can be loaded with transformers:"
        ) from error
    name, _, tag = target.partition("/")
    if target.startswith(("hf-hub:", "local-dir:")):
        name, tag = target, ""
    elif not tag:
        raise ConfigError(f"open_clip:{target} names no weights: write open_clip:NAME/TAG")
    try:
        model_name, settings = _fetch(open_clip, name, tag, offline=offline)
        model, tokenizer = _create(open_clip, model_name, settings, offline=offline)
    except PocketclipError:
        raise
    except Exception as error:  # it lets any type of exception escape
        reason = one_line(error, 300)
        raise CheckpointError(f"open_clip:{target} cannot be loaded ({reason})") from error
    model = model.float().eval().requires_grad_(False)
    preprocess = dict(model.visual.preprocess_cfg)
    transform, scaling = teacher_preprocess.from_open_clip(preprocess, f"open_clip:{target}")
    space = space_of(["open_clip", name, preprocess, _state_digest(model)])
    return OpenClipTowers(model, tokenizer, space, device, dtype), transform, scaling


def _fetch(open_clip: Any, name: str, tag: str, *, offline: bool) -> tuple[str, dict[str, Any]]:
    """Fetch a model's files; return open_clip's name of the model and its arguments.

    `pocketclip.checkpoint.hub` fetches them, as all others: open_clip reads the environment when
    it is imported, and makes requests for cached files.
    """
    repo = name.removeprefix("hf-hub:")
    if repo != name:
        repo, _, revision = repo.partition("@")
        folder = hub.fetch_folder(
            repo,
            [[*_OPEN_CLIP, "open_clip_model.safetensors"], [*_OPEN_CLIP, "open_clip_*.bin"]],
            is_complete=_has_open_clip,
            offline=offline,
            revision=revision or None,
        )
        return f"local-dir:{folder}", {}
    if name.startswith("local-dir:"):
        return name, {}
    if Path(tag).is_file():
        return name, {"pretrained": tag}
    entry = dict(open_clip.get_pretrained_cfg(name, tag) or {})
    gelu = {"force_quick_gelu": bool(entry.get("quick_gelu"))}
    source = str(entry.get("hf_hub") or "")
    if not source:
        if hub.is_offline(offline):
            raise ConfigError(
                f"open_clip:{name}/{tag} must be fetched, but the run is offline: give the path "
                "of a local file instead of the tag"
            )
        return name, {"pretrained": tag, **gelu}
    weights = _weights(source, offline=offline)
    preprocessing = {key: entry[key] for key in _PREPROCESS if entry.get(key) is not None}
    return name, {
        "pretrained": str(weights),
        **gelu,
        **({"force_preprocess_cfg": preprocessing} if preprocessing else {}),
    }


def _weights(source: str, *, offline: bool) -> Path:
    """Fetch the weights at `owner/name/file` or `owner/name/` of open_clip's list."""
    owner, name, *rest = source.split("/")
    file = "/".join(rest) or "open_clip_pytorch_model.bin"
    safe = "open_clip_model.safetensors" if not any(rest) else f"{Path(file).stem}.safetensors"

    def weight_files(folder: Path) -> list[Path]:
        return [folder / name for name in (safe, file) if (folder / name).is_file()]

    folder = hub.fetch_folder(
        f"{owner}/{name}",
        [[safe], [file]],
        is_complete=lambda folder: bool(weight_files(folder)),
        offline=offline,
    )
    if not weight_files(folder):
        raise HubError(f"{owner}/{name} has neither {safe} nor {file}; give the path of a file")
    return weight_files(folder)[0]


def _create(
    open_clip: Any, model_name: str, settings: Mapping[str, Any], *, offline: bool
) -> tuple[Any, Any]:
    """Return the model and its tokenizer, from the cache if it holds both."""
    for cached_only in (True, False):
        try:
            with hub.environment(offline=cached_only):
                model = open_clip.create_model(
                    model_name, require_pretrained=True, weights_only=True, **settings
                )
                return model, open_clip.get_tokenizer(model_name)
        except Exception:
            if not cached_only or hub.is_offline(offline):
                raise
    raise AssertionError("unreachable")


def _has_open_clip(folder: Path) -> bool:
    weights = [*folder.glob("open_clip_*.safetensors"), *folder.glob("open_clip_*.bin")]
    return (folder / "open_clip_config.json").is_file() and bool(weights)


def _state_digest(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.detach().cpu().contiguous().numpy().data).hexdigest()
        for name, value in model.state_dict().items()
    }
