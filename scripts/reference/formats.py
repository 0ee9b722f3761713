"""The page of file formats, from the JSON schemas beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference.markdown import code, plain, table

SCHEMAS = Path(__file__).parents[2] / "docs/reference/schemas"
ORDER = ("bundle", "checkpoint", "index", "report", "teacher_check", "captions", "result", "log",
         "labels", "models", "presets")  # fmt: skip
_INTRODUCTION = """# File formats

Each format has a JSON schema (draft 2020-12), to check files of your own against. The tests check
that the files which pocketclip writes fit them. `…` stands for any name, `[]` for each item of a
list. A key that is not required may be absent.

What is not JSON: shards are tar files in the layout of the published DataCompDR sets
([Reinforce a dataset](../how-to/reinforce.md#the-dataset)), or with rendered views in place of the
images ([Train on rendered views](../how-to/materialise.md)); weights are `.safetensors`; embeddings
are `.npy` or `.parquet` ([Output](../how-to/output.md#embeddings-in-files)).
"""
_DEEPEST = 4


def page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for name in ORDER:
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))
        parts.append(f"## {schema['title']} {{ #{name} }}")
        parts.append(
            f"{plain(schema['description'])} "
            f"Schema: [{name}.schema.json](schemas/{name}.schema.json)."
        )
        parts.append(table(("key", "type", "required", "meaning"), _rows(schema)))
        for kind in schema.get("anyOf", ()):
            parts.append(f"A record of the kind *{kind['title']}*:")
            parts.append(table(("key", "type", "required", "meaning"), _rows(kind)))
    return "\n\n".join(parts)


def _rows(schema: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", ())
    for name, inner in schema.get("properties", {}).items():
        key = prefix + name
        needed = "yes" if name in required else ""
        yield code(key), _type(inner), needed, plain(inner.get("description", ""))
        if depth < _DEEPEST:
            yield from _rows(inner, f"{key}.", depth + 1)
            yield from _rows(_dict(inner.get("items")), f"{key}[].", depth + 1)
            yield from _rows(_dict(inner.get("additionalProperties")), f"{key}.….", depth + 1)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _type(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    kinds = schema.get("type", "object")
    shown = [kinds] if isinstance(kinds, str) else kinds
    if shown[0] == "array":
        items = _dict(schema.get("items")).get("type", "")
        inner = items if isinstance(items, str) else " or ".join(items)
        return " or ".join([f"list of {inner}", *shown[1:]])
    return " or ".join(shown)
