"""Reads and checks an augmentation's configuration in the published format.

    parse({"random_resized_crop": {"size": 224}, "rand_augment": {"enable": False}})
    # {"random_resized_crop": RandomResizedCrop(size=224, scale=(0.08, 1.0), ...)}

Settings have their published names and defaults, see `transforms`; an unknown setting is an error.
Settings that cannot change the result are accepted as the published code accepts them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from pocketclip.augment.setting_checks import InvalidError
from pocketclip.augment.transforms import REFUSED, TRANSFORMS, Transform
from pocketclip.errors import AugmentationError, ParseError
from pocketclip.formats.json_text import load_json


def parse(config: Any) -> dict[str, Transform]:
    """Return the enabled transforms of a configuration by name, in the order of application.

    Args:
        config: the transforms by name, or a whole reinforcement configuration with the transforms
            in `reinforce.image_augmentation`; or the JSON text of either.

    Raises:
        AugmentationError: a transform or setting does not exist, or its value is not allowed.
    """
    if isinstance(config, (str, bytes)):
        try:
            config = load_json(config)
        except ParseError:
            raise AugmentationError("the augmentation configuration is not valid JSON") from None
    for outer in ("reinforce", "image_augmentation"):
        if isinstance(config, dict) and outer in config:
            config = config[outer]
    if not isinstance(config, dict):
        raise AugmentationError(f"an augmentation configuration is a dict, not {_kind(config)}")
    enabled = {}
    for name, settings in config.items():
        if name not in TRANSFORMS and name not in REFUSED:
            raise AugmentationError(_unknown("transform", name, TRANSFORMS))
        if TRANSFORMS.get(name) is Transform and (settings is None or isinstance(settings, bool)):
            settings = {"enable": settings is not False}  # it has no other setting
        if not isinstance(settings, dict):
            raise AugmentationError(
                f'{name} must be a dict, as {{"enable": false}}, not {_kind(settings)}'
            )
        settings = dict(settings)
        enable = settings.pop("enable", True)
        if not isinstance(enable, bool):
            raise AugmentationError(f"{name}.enable must be true or false, not {enable!r}")
        if enable and name in REFUSED:
            raise AugmentationError(f"{name} {REFUSED[name]}")
        if enable:
            enabled[name] = _build(TRANSFORMS[name], name, settings)
    return {name: enabled[name] for name in TRANSFORMS if name in enabled}


def to_config(transforms: dict[str, Transform]) -> dict[str, dict[str, Any]]:
    """Return parsed transforms as plain JSON types with all settings."""
    return {
        name: {each.name: _plain(getattr(transform, each.name)) for each in fields(transform)}
        for name, transform in transforms.items()
    }


def _build(kind: type[Transform], name: str, settings: dict[str, Any]) -> Transform:
    known = {each.name: each for each in fields(kind)}
    values = {}
    for setting, value in settings.items():
        key = kind.ALIASES.get(setting, setting)
        if key != setting and key in settings:
            raise AugmentationError(
                f"{name}.{setting} is another name of {name}.{key}: give only one"
            )
        check = known[key].metadata["check"] if key in known else kind.FIXED.get(key)
        if check is None:
            raise AugmentationError(_unknown(f"{name} setting", setting, known))
        try:
            checked = check(value)
        except InvalidError as error:
            raise AugmentationError(f"{name}.{setting} must be {error}; got {value!r}") from None
        if key in known:
            values[key] = checked
    missing = [key for key in known if key not in values and known[key].default is MISSING]
    if missing:
        raise AugmentationError(f"{name} needs the setting {', '.join(missing)}")
    return kind(**values)


def _unknown(what: str, name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known: " + (", ".join(known) or "none")
    return f"unknown {what} {str(name)[:80]!r}; {hint}"


def _kind(value: Any) -> str:
    return type(value).__name__


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
