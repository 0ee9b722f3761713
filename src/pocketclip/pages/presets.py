"""The presets of the pages: lists of labels whose prompts are embedded ahead.

    prompts = preset_prompts()           # ["A photo of pen", ...]
    encode_presets(space_id, prompts, embeddings)

The texts are in one file, `app/labels/presets.json`, which the pages read too. A prompt is looked
up by its text, so any list whose prompts are all there needs no text tower.

Shapes: P prompts, D embedding.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from pocketclip.formats.escaping import dump_json
from pocketclip.prompts import fill_templates
from pocketclip.types import Embeddings

VERSION = 1


@functools.cache
def preset_prompts() -> tuple[str, ...]:
    """Return every prompt of the presets, and what "none of these" is compared with."""
    place = resources.files("pocketclip.web").joinpath("app/labels/presets.json")
    raw = json.loads(place.read_text("utf-8"))
    prompts = [text for one in raw["presets"] for text in prompts_of(one)]
    return tuple(dict.fromkeys([*prompts, *raw.get("background", [])]))


def prompts_of(preset: dict[str, Any]) -> list[str]:
    """Return the prompts of a list of labels, as the pages make them; see `label_list.js`.

    Args:
        preset: `labels`, and either `templates`, or `prefix` and `suffix`.
    """
    labels, templates = preset["labels"], preset["templates"]
    if not labels:
        return []
    if templates:
        return fill_templates(labels, templates)
    parts = ((preset["prefix"], label, preset["suffix"]) for label in labels)
    return [" ".join(filter(None, one)) for one in parts]


def encode_presets(space_id: str, prompts: Sequence[str], embeddings: Embeddings) -> bytes:
    """Return the file with embeddings of prompts.

    They are float32: exact, 2 kB a prompt at D 512, and `new Float32Array(buffer)` in a page.

    Args:
        space_id: the embedding space.
        prompts: P of them.
        embeddings: (P, D), of unit length.
    """
    rows = np.ascontiguousarray(embeddings, "<f4")
    if rows.ndim != 2 or len(rows) != len(prompts):
        raise ValueError(f"embeddings {rows.shape} for {len(prompts)} prompts")
    about = {
        "version": VERSION, "space_id": space_id, "embed_dim": rows.shape[1], "dtype": "float32",
        "prompts": list(prompts), "embeddings": base64.b64encode(rows.tobytes()).decode("ascii"),
    }  # fmt: skip
    return dump_json(about).encode()
