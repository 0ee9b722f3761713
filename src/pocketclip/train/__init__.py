"""Training: recipes, the loop, losses, and batches from reinforced shards or raw pairs.

    from pocketclip.train import load_recipe, train

    summary = train(load_recipe("grocery-small", ["data.source=dr"]), "runs/small")

| module | holds |
|---|---|
| `loop` | `train`: setup, then the loop over steps |
| `recipe`, `sections`, `recipe_settings` | train recipes, every key of them, `key=value` |
| `setup`, `run` | what a run is built from; its state while it trains |
| `step` | one step's gradients |
| `losses`, `loss_terms`, `loss_inputs` | the losses; their terms; their inputs, checked |
| `teacher_settings` | each teacher's dimension, logit scale and bias |
| `optim` | AdamW's groups, the learning rate, the average of the weights |
| `loader`, `batches` | the stream of batches; how each is put together |
| `batch_types` | what is asked of the loader, and what a batch holds |
| `order` | the order of samples |
| `balance` | an order in which rare classes come more often |
| `replay` | stored augmentations replayed on encoded images |
| `sources`, `shard_cache`, `raw_pairs` | shards, local copies of remote ones, raw pairs |
| `checkpoints`, `save_and_score` | a checkpoint's files; saved and scored in a run |
| `resume` | finds the checkpoint to resume from and restores it |
| `evaluation` | scores checkpoints as `pocketclip eval` does |
| `logs`, `reporting`, `pacing` | log files; what they say; when to save and stop |
| `distributed`, `watchdog` | several processes; they end together |

Names are loaded when they are first used: recipes do not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketclip.train.loop import Summary, train
    from pocketclip.train.recipe import Recipe, load_recipe

_MODULES = {"Summary": "loop", "train": "loop", "Recipe": "recipe", "load_recipe": "recipe"}

__all__ = ["Recipe", "Summary", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pocketclip.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pocketclip.train.{_MODULES[name]}"), name)
