"""The page of recipes: every key, its type and its default, from the models that check them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pocketclip.augment import transforms as augment_transforms
from pocketclip.reinforce import recipe as reinforce_recipe
from pocketclip.reinforce.sampling import Sampling
from pocketclip.train import recipe as train_recipe
from reference.markdown import code, plain, table

_INTRODUCTION = """# Recipes

A recipe is a YAML (or JSON) file. The command line sets single keys of one:
`pocketclip train NAME --set optimizer.lr=2e-3`. A key that does not exist is an error, and the
message names the nearest one. `pocketclip train NAME --show` prints a train recipe with every key.

"""
_HEAD = ("key", "type", "default", "meaning")
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """Return the page."""
    return "\n\n".join(
        [
            _INTRODUCTION + "## The train recipe",
            "What `pocketclip train` reads; see [Train](../how-to/training.md).",
            *_sections(train_recipe.Recipe),
            "### The recipes that come with pocketclip",
            _named(),
            "## The reinforce recipe",
            "What `pocketclip reinforce --config` reads; see "
            "[Reinforce a dataset](../how-to/reinforce.md).",
            table(_HEAD, _rows(reinforce_recipe.Recipe)),
            "### sampling",
            "How captions are sampled: a mapping under `sampling`.",
            table(_HEAD, _dataclass_rows(Sampling)),
            "### The reinforce recipes that come with pocketclip",
            "Those of the published sets: `pocketclip reinforce PAIRS --out dr --config NAME`. "
            "Their files say where each value is from.",
            _reinforcing(),
            "## image_augmentation",
            "Both recipes take it, under `image_augmentation` or `data.image_augmentation`. The "
            "transforms are applied in this order, whatever their order in the file. Each also "
            "takes `enable: false`.",
            *_transforms(),
        ]
    )


def _sections(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the table of a model's own keys, then a heading and a table for each section."""
    nested = _nested(model)
    parts = [table(_HEAD, _rows(model, prefix, leave_out=nested))]
    for name, inner in nested.items():
        optional = "" if model.model_fields[name].default is not None else " Absent by default."
        parts += [f"### {prefix}{name}", plain(_first_paragraph(inner)) + optional]
        parts += _sections(inner, f"{prefix}{name}.")
    return parts


def _nested(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def _rows(
    model: type[BaseModel], prefix: str = "", *, leave_out: typing.Container[str] = ()
) -> list[tuple[str, str, str, str]]:
    about = _attribute_docs(model)
    return [
        (code(prefix + name), _field_type(field), _default(field), _meaning(about.get(name, "")))
        for name, field in model.model_fields.items()
        if name not in leave_out
    ]


def _meaning(text: str) -> str:
    """Return a description with the name that YAML has for None."""
    return plain(re.sub(r"\bNone\b", "null", text))


def _field_type(field: Any) -> str:
    bounds = [
        f"{sign} {_number(getattr(rule, name))}"
        for rule in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    kind, null, _ = _type(field.annotation).partition(" or null")
    return " ".join(filter(None, [kind, ", ".join(bounds)])) + null


def _number(value: Any) -> str:
    if isinstance(value, int) and value >= 2**20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _type(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if one is type(None) else _type(one) for one in arguments)
    if origin is typing.Literal:
        return ", ".join(code(one) for one in arguments)
    if origin is tuple and arguments[-1] is not ...:
        return f"{len(arguments)} × {_type(arguments[0])}"
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "boolean"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return code(_written(field.default_factory()))
    if field.default is PydanticUndefined:
        return "required"
    return code(_written(field.default))


def _written(value: Any) -> str:
    """Return a value as YAML has it on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, str) and value and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False).replace('"', "" if _is_simple(value) else '"')


def _is_simple(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple)) and bool(value)


def _attribute_docs(model: type) -> dict[str, str]:
    """Return the text that stands below each attribute of a class and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # a built-in class
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for above, below in itertools.pairwise(body):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[above.target.id] = " ".join(inspect.cleandoc(below.value.value).split())
    return docs


def _first_paragraph(one: type) -> str:
    return " ".join((inspect.getdoc(one) or "").split("\n\n")[0].split())


def _dataclass_rows(one: type) -> list[tuple[str, str, str, str]]:
    hints, about = typing.get_type_hints(one), _attribute_docs(one)
    rows = []
    for field in dataclasses.fields(one):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "required" if default is dataclasses.MISSING else code(_written(default))
        rows.append(
            (code(field.name), _type(hints[field.name]), shown, _meaning(about.get(field.name, "")))
        )
    return rows


def _transforms() -> list[str]:
    parts = []
    for name, kind in augment_transforms.TRANSFORMS.items():
        parts.append(f"### {name}")
        if kind is augment_transforms.Transform:
            parts.append("No settings: `true` or `{}`.")
            continue
        parts.append(plain(inspect.getdoc(kind) or ""))
        hints = typing.get_type_hints(kind, vars(augment_transforms))
        parts.append(
            table(
                _HEAD[:3],
                [
                    (code(field.name), _type(hints[field.name]), _dataclass_default(field))
                    for field in dataclasses.fields(kind)
                ],
            )
        )
    return parts


def _dataclass_default(field: Any) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    if isinstance(value, tuple):
        return code("[" + ", ".join(f"{number:.4g}" for number in value) + "]")
    return code(_written(value))


def _reinforcing() -> str:
    rows = []
    for name in reinforce_recipe.names():
        recipe = reinforce_recipe.load_recipe(name)
        models = (" ".join(map(code, specs)) for specs in (recipe.teachers, recipe.captioners))
        rows.append((code(name), *models, code(recipe.dtype), plain(recipe.about)))
    return table(("name", "teachers", "captioner", "dtype", "what it is"), rows)


def _named() -> str:
    rows = []
    for name in train_recipe.names():
        recipe = train_recipe.load_recipe(name)
        rows.append(
            (
                code(name),
                code(recipe.model.name),
                f"{recipe.steps:,}",
                f"{recipe.batch_size:,}",
                plain(recipe.about),
            )
        )
    return table(("name", "model", "steps", "batch size", "what it is"), rows)
