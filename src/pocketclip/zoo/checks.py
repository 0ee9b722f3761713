"""Configurations changed, checked, and written as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from pocketclip.errors import ConfigError
from pocketclip.zoo.configs import (
    DecoderConfig,
    MCiConfig,
    ModelConfig,
    MoEConfig,
    PreprocessConfig,
    TextConfig,
    ViTConfig,
)

# Short names of fields that most recipes set.
_ALIASES = {"image_size": "preprocess.size", "drop_path": "image.drop_path"}


def override(config: ModelConfig, **overrides: Any) -> ModelConfig:
    """Return `config` with fields replaced.

    Nested fields are given as a mapping (`text={"layers": 6}`) or by a dotted name
    (`**{"text.layers": 6}`). `image_size` and `drop_path` are short for `preprocess.size` and
    `image.drop_path`.

    Raises:
        ConfigError: a key is not a field (the message lists the fields), or a value is not allowed.
    """
    for key, value in overrides.items():
        config = _set(config, _ALIASES.get(key, key).split("."), value, key)
    return checked(config)


def _set(node: Any, path: list[str], value: Any, key: str) -> Any:
    head, inner_path = path[0], path[1:]
    fields = {f.name for f in dataclasses.fields(node)}
    if head not in fields:
        known = sorted(fields | (set(_ALIASES) if isinstance(node, ModelConfig) else set()))
        near = difflib.get_close_matches(head, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown field {key!r}{hint} (fields: {', '.join(known)})")
    old = getattr(node, head)
    if inner_path:
        if not dataclasses.is_dataclass(old):
            if old is None and _optional_section(type(node), head) is not None:
                raise ConfigError(
                    f"{key!r}: {head!r} is not set, so it has no fields; give them all at once"
                )
            raise ConfigError(f"{key!r}: {head!r} has no fields")
        value = _set(old, inner_path, value, key)
    elif dataclasses.is_dataclass(old) and isinstance(value, Mapping):
        for name, inner in value.items():
            old = _set(old, [str(name)], inner, f"{key}.{name}")
        value = old
    elif isinstance(value, Mapping):
        value = _built(type(node), head, value)
    elif isinstance(value, list):
        value = tuple(value)
    return replace(node, **{head: value})


_IMAGE_KINDS: dict[str, type[MCiConfig] | type[ViTConfig]] = {"mci": MCiConfig, "vit": ViTConfig}


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return `config` as plain JSON types; `from_dict` is its inverse."""
    out = dataclasses.asdict(config)
    kinds = {cls: kind for kind, cls in _IMAGE_KINDS.items()}
    out["image"] = {"kind": kinds[type(config.image)], **out["image"]}
    # Omitted where they are the default, so that earlier versions read the file.
    if config.preprocess.resize == "shortest":
        del out["preprocess"]["resize"]
    for tower in ("image", "text"):
        if out[tower].get("moe") is None:
            out[tower].pop("moe", None)
    return out


def changed_fields(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of the fields of a dictionary that differ, and our values."""
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from changed_fields(value, other, f"{before}{key}.")
        elif value != other:
            yield f"{before}{key}", value


def from_dict(raw: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that `to_dict` has written.

    Raises:
        ConfigError: a field is unknown or missing, or its value is not allowed.
    """
    try:
        image = dict(raw["image"])
        kind = image.pop("kind")
        sections = {
            "image": _build(_IMAGE_KINDS[kind], image, "image"),
            "text": _build(TextConfig, raw["text"], "text"),
            "preprocess": _build(PreprocessConfig, raw["preprocess"], "preprocess"),
        }
        if raw.get("decoder") is not None:
            sections["decoder"] = _build(DecoderConfig, raw["decoder"], "decoder")
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"configuration lacks or misnames a section: {error}") from error
    return checked(_build(ModelConfig, {**raw, **sections}, "model"))


def _build(cls: Any, raw: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise ConfigError(f"unknown field {unknown[0]!r} in the {where} configuration")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    values = {k: _built(cls, k, v) if isinstance(v, Mapping) else v for k, v in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"incomplete {where} configuration: {error}") from error


def _built(cls: Any, name: str, raw: Mapping[str, Any]) -> Any:
    """Return a mapping as the section that an optional field of `cls` takes, if it takes one."""
    section = _optional_section(cls, name)
    return raw if section is None else _build(section, raw, name)


def _optional_section(cls: Any, name: str) -> Any:
    """Return the class of a field that holds a section or None; None for other fields."""
    args = typing.get_args(typing.get_type_hints(cls)[name])
    found = [arg for arg in args if dataclasses.is_dataclass(arg)]
    return found[0] if types.NoneType in args and found else None


MAX_IMAGE_SIZE = 2048
"""Limit on the side of the input, in pixels."""
_LARGEST = 1 << 20
# Ranges of numbers by the name of their field; the default is integers up to the largest.
# A standard deviation near 0 would make pixels infinite.
_RANGES: dict[str, tuple[float, float]] = {
    "size": (1, MAX_IMAGE_SIZE),
    "mean": (-1e3, 1e3),
    "std": (1e-3, 1e3),
    "layers": (1, 1024),
    "context_length": (1, 8192),
    "depths": (0, 1024),
    "mlp_ratio": (1e-3, 64),
    "layer_scale": (-1e3, 1e3),
    "drop_path": (0, 1),
    "eps": (0, 1),
    "experts": (1, 1024),
    "top_k": (1, 1024),
    "blocks": (0, 1023),
}
_MAX_ENTRIES = {"blocks": 1024}
_HINTS = {
    "blocks": "; give the numbers of transformer blocks, from 0, such as [1, 3, 5]",
    "moe": "; give blocks, experts and top_k, such as {blocks: [1, 3], experts: 8, top_k: 2}",
}
_MAX_STAGES = 16  # stages of a tower, and entries of every other tuple
# The only integers that may be zero.
_MAY_BE_ZERO = {"attention_stages", "squeeze_excite_stages", "stem_padding"}


def checked(config: ModelConfig) -> ModelConfig:
    """Return `config` after checking it.

    Raises:
        ConfigError: a value has the wrong type or range, or values contradict each other.
    """
    for where, section in (
        ("", config),
        ("image.", config.image),
        ("text.", config.text),
        ("preprocess.", config.preprocess),
        *([] if config.decoder is None else [("decoder.", config.decoder)]),
        *_mixtures(config),
    ):
        hints = typing.get_type_hints(type(section))
        for name, hint in hints.items():
            value = getattr(section, name)
            zero = value == 0 and hint is int and name not in _MAY_BE_ZERO
            if zero or not _fits(value, hint):
                raise ConfigError(f"{where}{name} cannot be {_shown(value)}{_HINTS.get(name, '')}")
            check_range(f"{where}{name}", value)
    image, text = config.image, config.text
    pairs = [("text", text.width, text.heads)]
    if config.decoder is not None:
        pairs.append(("decoder", text.width, config.decoder.heads))
    if isinstance(image, ViTConfig):
        pairs.append(("image", image.width, image.heads))
        if image.pool_queries is not None:
            pairs.append(("image", config.embed_dim, image.pool_heads))
    else:
        if len(image.depths) != len(image.widths):
            raise ConfigError("image.depths and image.widths must be equally long")
        if any(b % a for a, b in zip(image.widths, image.widths[1:], strict=False)):
            raise ConfigError("each of image.widths must be a multiple of the one before")
        count = image.attention_stages
        pairs += [("image", w, w // image.head_dim) for w in image.widths[-count:] if count]
    for where, width, heads in pairs:
        if heads < 1 or width % heads:
            raise ConfigError(f"{where}: a width of {width} cannot be split into {heads} heads")
    _check_captioner(config)
    _check_mixtures(config)
    return config


def check_range(name: str, value: Any) -> None:
    """Check the range of a number or a tuple of numbers; other values pass.

    Args:
        name: the field's name, which may have a prefix: `preprocess.std`.
        value: its value.

    Raises:
        ConfigError: a number is not finite or out of range.
    """
    field = name.rpartition(".")[2]
    low, high = _RANGES.get(field, (-_LARGEST, _LARGEST))
    values = value if isinstance(value, tuple) else (value,)
    most = _MAX_ENTRIES.get(field, _MAX_STAGES)
    if len(values) > most:
        raise ConfigError(f"{name} cannot have {len(values)} entries, only up to {most}")
    for number in values:
        # Fails for NaN.
        if type(number) in (int, float) and not low <= number <= high:
            raise ConfigError(
                f"{name} cannot be {_shown(value)}: it must be between {low:g} and {high:g}"
            )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number this large"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _mixtures(config: ModelConfig) -> list[tuple[str, MoEConfig]]:
    """Return each tower's mixture of experts, if it has one, and its prefix in messages."""
    towers = (("image.moe.", config.image), ("text.moe.", config.text))
    found = [(where, getattr(tower, "moe", None)) for where, tower in towers]
    return [(where, moe) for where, moe in found if isinstance(moe, MoEConfig)]


def _check_mixtures(config: ModelConfig) -> None:
    for where, moe in _mixtures(config):
        tower = config.text if where == "text.moe." else config.image
        assert not isinstance(tower, MCiConfig)
        if moe.top_k > moe.experts:
            raise ConfigError(
                f"{where}top_k cannot be {moe.top_k}: there are only {moe.experts} experts"
            )
        if max(moe.blocks) >= tower.layers:
            raise ConfigError(
                f"{where}blocks: there is no block {max(moe.blocks)}; this tower has "
                f"{tower.layers}, 0 to {tower.layers - 1}"
            )
        if len(set(moe.blocks)) != len(moe.blocks) or list(moe.blocks) != sorted(moe.blocks):
            raise ConfigError(f"{where}blocks must be in rising order, each once")


def _check_captioner(config: ModelConfig) -> None:
    text, decoder = config.text, config.decoder
    queries = config.image.pool_queries if isinstance(config.image, ViTConfig) else None
    if queries == 0:
        raise ConfigError("image.pool_queries cannot be 0")
    if text.class_token and (not text.causal or text.repmixer):
        raise ConfigError("text.class_token needs text.causal, and no text.repmixer")
    if decoder is None:
        return
    if not text.class_token or queries is None or queries < 2:
        raise ConfigError("a decoder needs text.class_token and image.pool_queries of 2 or more")
    if config.embed_dim != text.width:
        raise ConfigError(
            f"with a decoder, embed_dim ({config.embed_dim}) must be text.width ({text.width})"
        )


def _fits(value: Any, hint: Any) -> bool:
    """Return whether `value` has the annotated type of a field; integers must not be negative."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return 0 < len(value) == len(inner) and all(
            _fits(v, arg) for v, arg in zip(value, inner, strict=True)
        )
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) < math.inf
    return isinstance(value, hint) and (hint is not int or value >= 0)
