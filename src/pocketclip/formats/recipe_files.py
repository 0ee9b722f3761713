"""Recipes: files of the user's, or those that come with a room of this package, by name."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip.errors import ConfigError, ParseError
from pocketclip.formats.fields import kind_of
from pocketclip.formats.json_text import read_json
from pocketclip.formats.yaml_text import load_yaml, read_yaml


def recipe_names(room: str) -> list[str]:
    """Return the names of the recipes that come with a room, such as `pocketclip.train`."""
    folder = resources.files(room) / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def read_recipe(source: str | Path, room: str, *, example: str) -> dict[str, Any]:
    """Return the fields of a recipe: of a file, or else of the recipe of that name.

    Args:
        source: a YAML file, a JSON file (`.json`), or the name of a recipe of `room`.
        room: the package that the recipes come with.
        example: a field, for the message about a file without any.

    Raises:
        ConfigError: neither a file nor a name (the message suggests the nearest one), or a file
            that cannot be read or holds no fields.
    """
    path, text, names = Path(source), str(source), recipe_names(room)
    try:
        if _is_file(path):
            read = read_json if path.suffix.lower() == ".json" else read_yaml
            content = read(path, what=text)
        elif text in names:
            packaged = resources.files(room) / "recipes" / f"{text}.yaml"
            content = load_yaml(packaged.read_bytes(), what=text)
        else:
            raise ConfigError(_unknown(path, text, names))
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from error
    except ParseError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{source} must hold fields such as `{example}`, not {kind_of(content)}")
    return content


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the text is too long for a file's name, for instance
        return False


def _unknown(path: Path, text: str, names: list[str]) -> str:
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return f"{text}: no such file"
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{text!r} is neither a file nor a recipe{hint} (recipes: {', '.join(names)})"
