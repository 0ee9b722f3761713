"""Settings on top of a recipe: `optimizer.lr=1e-3`, dotted keys, and fields that go with a model.

Works on the recipe's raw mapping, before it is checked. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocketclip import zoo
from pocketclip.errors import ConfigError, ParseError, UnknownModelError
from pocketclip.formats.json_text import MAX_DEPTH
from pocketclip.formats.yaml_text import load_yaml
from pocketclip.train.sections import not_a_section

_MAX_DOTS = 8
# Fields that are mappings; their own keys may contain dots.
_MAPPINGS = ("model.overrides", "data.image_augmentation", "data.where", "evaluation.where")


def parse_settings(settings: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key, from `key=value` texts or a mapping.

    Raises:
        ConfigError: a text is not `key=value`, or a key or value cannot be used.
    """
    if isinstance(settings, Mapping):
        return {_check_key(key): plain_copy(value) for key, value in settings.items()}
    values: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r} is not key=value, as in optimizer.lr=1e-3")
        try:
            values[_check_key(key.strip())] = load_yaml(value, what="its value")
        except ParseError as error:
            raise ConfigError(f"--set {text[:80]!r}: {error}") from error
    return values


def _check_key(key: Any) -> str:
    if not isinstance(key, str) or (key.count(".") > _MAX_DOTS and not key.startswith(_MAPPINGS)):
        raise ConfigError(f"--set {str(key)[:80]}: this is not the name of a field")
    return key


def with_field(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return `raw` with the field of a dotted name set.

    Raises:
        ConfigError: the name goes through a value that has no fields.
    """
    for mapping in _MAPPINGS:
        if key.startswith(f"{mapping}."):
            section, field = mapping.split(".")
            old = _section(_section(raw, section, key), field, key)
            return _merge(raw, {section: {field: {**old, key[len(mapping) + 1 :]: value}}})
    head, dot, tail = key.partition(".")
    if not dot:
        return {**raw, head: value}
    return {**raw, head: with_field(dict(_section(raw, head, key)), tail, value)}


def _section(raw: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    section = raw.get(name)
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"--set {key}: {name} has no fields")
    return section or {}


def apply_by_model(raw: dict[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `raw` without `by_model`, with the fields that it has for the model to be trained.

    Args:
        raw: the recipe's mapping; its `by_model` is removed.
        settings: values by dotted key; they may name another model.
        where: the recipe's name, for errors.

    Raises:
        ConfigError: `model` or `by_model` is not a mapping.
    """
    by_model = raw.pop("by_model", {})
    model = settings.get("model", raw.get("model"))
    if model is not None and not isinstance(model, dict):
        raise ConfigError(f"{where}: model: {not_a_section('model', model)}")
    chosen = settings.get("model.name", (model or {}).get("name", ""))
    if not isinstance(by_model, dict) or any(not isinstance(f, dict) for f in by_model.values()):
        raise ConfigError(f"{where}: by_model must hold fields by the name of a model")
    for name, fields in by_model.items():
        if _is_same_model(str(name), str(chosen)):
            raw = _merge(raw, fields)
    return raw


def _is_same_model(name: str, chosen: str) -> bool:
    try:
        return zoo.entry(name).config.name == zoo.entry(chosen).config.name
    except UnknownModelError:
        return False  # checking the model's section gives the better message


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        out[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return out


def plain_copy(value: Any, depth: int = 0) -> Any:
    """Return a copy of `value` with dicts and lists for its containers, as YAML has them.

    Raises:
        ConfigError: it is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"the recipe is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {key: plain_copy(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_copy(one, depth + 1) for one in value]
    return value
