"""Training: losses, batches from reinforced shards, one loop, and the published recipes.

    from pocketclip.train import load_recipe, train

    summary = train(load_recipe("grocery-small", ["data.source=dr"]), "runs/small")

Names are loaded when they are first used: recipes do not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketclip.train.loop import Summary, train
    from pocketclip.train.recipe import Recipe, load_recipe

_HOMES = {"Summary": "loop", "train": "loop", "Recipe": "recipe", "load_recipe": "recipe"}

__all__ = ["Recipe", "Summary", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pocketclip.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pocketclip.train.{_HOMES[name]}"), name)
