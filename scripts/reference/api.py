"""The pages of the Python API: one per room, with its public names for mkdocstrings."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

ROOMS: dict[str, tuple[str, list[str]]] = {
    # Title, and the names; `ROOM.*` stands for all that `pocketclip.ROOM.__all__` names.
    "pocketclip": ("pocketclip", ["*"]),
    "zoo": ("zoo: models and published facts", ["zoo.*"]),
    "tokenizer": ("tokenizer", ["tokenizer"]),
    "images": ("images and preprocess", ["images", "preprocess"]),
    "augment": ("augment", ["augment.*"]),
    "pairs": ("pairs", ["pairs.*"]),
    "reinforce": (
        "reinforce",
        [
            "reinforce.recipe.Recipe",
            "reinforce.recipe.load_recipe",
            "reinforce.job.run",
            "reinforce.teachers.load_teacher",
            "reinforce.captioners.load_captioner",
            "reinforce.teacher_check",
            "teacher_score",
            "reinforce.own_models.CaptionModel",
        ],
    ),
    "shards": ("shards", ["shards.*"]),
    "train": ("train", ["train.*", "train.losses"]),
    "evaluate": ("evaluate", ["evaluate.*", "evaluate.rivals", "sweep_scales.*"]),
    "fit": ("fit: label sets", ["fit.*"]),
    "attribution": (
        "attribution: where a text is found",
        ["attribution.explain.Explanation", "attribution.explain.FoundText", "feature_maps"],
    ),
    "checkpoint": (
        "checkpoint",
        ["checkpoint.load", "checkpoint.save", "checkpoint.resolve.resolve_model"],
    ),
    "nn": (
        "nn",
        [
            "nn.build",
            "nn.clip.CLIP",
            "nn.mci.MCi",
            "nn.vit.ViT",
            "nn.coca.CoCa",
            "nn.reparam.fuse",
            "nn.cpu_optimize.compile_for_cpu",
        ],
    ),
    "export": ("export", ["export.job.export"]),
    "infer": (
        "infer",
        [
            "infer.bundle.Bundle",
            "infer.bundle.read",
            "infer.vectors",
            "infer.measure.measure",
            "embed.job.Settings",
            "embed.job.run",
            "pairs.photographs.open_image_shards",
        ],
    ),
    "serve": ("serve", ["serve.*"]),
    "storage": ("storage", ["storage.*"]),
    "errors": ("errors, types, devices", ["errors", "types", "devices"]),
}
_NO_MEMBERS = "    options:\n      members: false"
_KEYS = {"pocketclip.train.Recipe", "pocketclip.reinforce.recipe.Recipe"}
"""Recipes, whose fields stand on a page of their own."""


def pages() -> dict[str, str]:
    """Return the pages by the names of their files."""
    made = {f"{room}.md": _page(title, names, room) for room, (title, names) in ROOMS.items()}
    return {"index.md": _index(), **made}


def _index() -> str:
    lines = [
        "# Python API\n",
        "What stands on these pages is public: it changes only as the [versions policy]"
        "(../../versions.md) allows. Everything else is internal.\n",
        "Importing `pocketclip` is quick and needs no torch; a name that needs torch says so when "
        "it is first used.\n",
    ]
    for room, (title, _) in ROOMS.items():
        about = _summary("pocketclip" if room == "pocketclip" else f"pocketclip.{room}")
        lines.append(f"- [{title}]({room}.md): {about}")
    return "\n".join(lines)


def _page(title: str, names: list[str], room: str) -> str:
    module = "pocketclip" if room == "pocketclip" else f"pocketclip.{room}"
    parts = [f"# {title}"]
    if names != [room]:  # else mkdocstrings shows the module's own docstring below
        parts.append(_docstring(module))
    for name in (name for pattern in names for name in _expanded(pattern)):
        parts.append(f"::: {name}" + (f"\n{_NO_MEMBERS}" if name in _KEYS else ""))
        if name in _KEYS:
            parts.append("The fields are described under [Recipes](../recipes.md).")
    return "\n\n".join(part for part in parts if part)


def _expanded(pattern: str) -> list[str]:
    if not pattern.endswith("*"):
        check(f"pocketclip.{pattern}")
        return [f"pocketclip.{pattern}"]
    room = ".".join(filter(None, ["pocketclip", pattern.rstrip("*").rstrip(".")]))
    public = importlib.import_module(room).__all__
    names = [f"{room}.{name}" for name in public if not name.startswith("__")]
    for name in names:
        check(name)
    return names


def check(name: str) -> Any:
    """Return the object of a dotted name; an error says which one is missing."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name != ".".join(parts[:cut]):
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def _docstring(module: str) -> str:
    return inspect.getdoc(importlib.import_module(module)) or ""


def _summary(module: str) -> str:
    return _docstring(module).split("\n\n")[0].replace("\n", " ")
