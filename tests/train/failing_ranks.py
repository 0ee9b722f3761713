"""Two real processes of which one fails, for `test_watchdog`; run by multiprocessing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from pocketclip.train import checkpoints, watchdog
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe
from pocketclip.train.run import Run

RANKS = 2
STEPS = 4
MODEL = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
}  # fmt: skip


class _Replaced:
    """Another function in an object's place for a while."""

    def __init__(self, owner, name, function):
        self.owner, self.name, self.function = owner, name, function

    def __enter__(self):
        self.old = getattr(self.owner, self.name)
        setattr(self.owner, self.name, lambda *args: self.function(self.old, *args))

    def __exit__(self, *_):
        setattr(self.owner, self.name, self.old)


def _recipe(shards):
    return load_recipe(
        {
            "model": {"name": "tiny", "overrides": MODEL},
            "data": {"source": shards, "workers": 0},
            "loss": {"weights": [0.5, 0.5]},
            "steps": STEPS,
            "batch_size": 8,
            "precision": "float32",
            "checkpoint": {"every_steps": 2, "every_minutes": None},
            "tensorboard": False,
        }
    )


def _bad_score(_model, step):
    if step == 2:
        raise KeyError("no such column")
    return {"main_metric": 0.5}


def _save(real, run, step, *rest):
    if step == 2:
        raise TypeError("cannot be written")
    return real(run, step, *rest)


def _step(real, self, *rest):
    if self.step == 2:
        raise MemoryError("no memory left\nfor these embeddings")
    return real(self, *rest)


def _stuck(real, self, *rest):
    if self.step == 2:
        time.sleep(600)
    return real(self, *rest)


def _nothing(real, *args):
    return real(*args)


def _case(name, rank, shards):
    """Return what is replaced on this rank, and the recipe."""
    recipe = _recipe(shards)
    if name == "main rank" and rank == 0:
        return _Replaced(checkpoints, "save", _save), recipe
    if name in ("other rank", "stuck") and rank == 1:
        return _Replaced(Run, "update_weights", _step), recipe
    if name == "stuck":
        return _Replaced(Run, "update_weights", _stuck), recipe
    if name == "data" and rank == 1:
        return _Replaced(Run, "update_weights", _nothing), _recipe(f"{shards}/nowhere")
    return _Replaced(Run, "update_weights", _nothing), recipe


CASES = ("evaluation", "main rank", "other rank", "data", "stuck")


def run(rank, ports, shards, folder):
    """Train once per case as rank `rank`; write after each how it ended."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    watchdog.GRACE = 2.0
    outcomes = {}
    for name, port in zip(CASES, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        replaced, recipe = _case(name, rank, shards)
        begun = time.monotonic()
        with replaced:
            try:
                score = _bad_score if name == "evaluation" else None
                done = train(recipe, f"{folder}/{name}", device="cpu", on_checkpoint=score)
                outcomes[name] = {"step": done.step, "failed": done.failed_evaluations}
            except Exception as error:
                outcomes[name] = {"error": type(error).__name__, "text": str(error)}
        outcomes[name]["seconds"] = time.monotonic() - begun
        Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
