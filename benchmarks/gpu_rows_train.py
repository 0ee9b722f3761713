"""The rows of `gpu.py` about training: the step beside open_clip's, waiting, resuming.

Shapes: B batch, D embedding, T tokens.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import train_step
from gpu_bench import Bench, Variant, lowest_cosine
from pocketclip import checkpoint
from pocketclip.checkpoint.operations import forward_operations
from pocketclip.train.checkpoints import checkpoint_dir
from pocketclip.train.distributed import World
from pocketclip.train.initial_model import initial_model
from pocketclip.train.loader import Batch, Loader
from pocketclip.train.loop import train
from pocketclip.train.recipe import Recipe, load_recipe
from pocketclip.train.run import MODEL_DIR, Run
from pocketclip.train.setup import (
    build_run,
    check_batch_size,
    open_loader,
    uses_channels_last,
)
from pocketclip.train.watchdog import joined

BACKWARD = 3  # a step does the operations of the forward pass, and twice as many backwards
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {"data.captions": "truth", "loss.weights": [1.0, 0.0]},
    "reinforced": {
        "data.captions": "both",
        "loss.weights": [0.0, 1.0],
        "loss.teacher_scales": [100.0, 100.0],
    },
}
ALL_TOKENS = "plain, all tokens"


def recipe_of(bench: Bench, name: str, loss: str, **settings: Any) -> Recipe:
    """Return the recipe of a variant, as a user would write it."""
    layout = bench.layout(name)
    fields: dict[str, Any] = {
        "model.name": name,
        "model.overrides": bench.overrides,
        "data.source": str(bench.shards),
        "data.workers": 0,
        "batch_size": bench.batch,
        "steps": 10_000,
        "precision": str(bench.dtype).removeprefix("torch."),
        "channels_last": layout == torch.channels_last,
        "checkpoint.every_steps": None,
        "checkpoint.every_minutes": None,
        "tensorboard": False,
        **LOSSES[loss],
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    # A model and steps are what a recipe cannot do without.
    return load_recipe(
        {"model": {"name": name}, "steps": 10_000, "batch_size": bench.batch}, fields
    )


@contextlib.contextmanager
def opened(bench: Bench, recipe: Recipe) -> Iterator[tuple[World, Loader]]:
    """Open a recipe's data as `train` does."""
    with (
        joined(str(bench.device)) as world,
        open_loader(recipe, world, check_batch_size(recipe, world), None) as loader,
    ):
        yield world, loader


def first_batch(bench: Bench, loader: Loader) -> Batch:
    """Return a loader's first batch, on the device."""
    with contextlib.closing(loader.batches()) as batches:
        return next(batches).to(bench.device)


@contextlib.contextmanager
def ready(bench: Bench, recipe: Recipe) -> Iterator[tuple[Run, Batch]]:
    """Build a run as `train` does, with its first batch on the device."""
    with opened(bench, recipe) as (world, loader):
        run = build_run(
            recipe, bench.folder, world, model=initial_model(recipe), loader=loader,
            teachers=(), step=0, trainer_state={},
        )  # fmt: skip
        yield run, first_batch(bench, loader)


def take_step(run: Run, batch: Batch) -> None:
    """Take a whole step, as the loop does: zero, forward, loss, backward, clip, update."""
    run.optimizer.zero_grad(set_to_none=True)
    run.update_weights(run.stepper.backward([batch]))


class Recorder(nn.Module):
    """Calls a model, and keeps the inputs and embeddings of the last call."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = [model]  # no submodule: its parameters are the model's own
        self.inputs: tuple[Tensor, ...] = ()
        self.embeddings: list[Tensor] = []

    def forward(self, *inputs: Tensor) -> Any:
        """Call the model."""
        out = self.model[0](*inputs)
        self.inputs, self.embeddings = inputs, embeddings_of(out)
        return out


def embeddings_of(output: Any) -> list[Tensor]:
    """Return the embeddings of images and texts in the output of our model, or open_clip's."""
    if isinstance(output, dict):
        output = (output["image_features"], output["text_features"])
    return [part.detach().float() for part in output[:2]]


def float32_cosine(recorder: Recorder, reference: nn.Module) -> float:
    """Return the lowest cosine of what was recorded to `reference` in float32.

    Args:
        recorder: of a model in training, whose BatchNorm took its statistics from the batch.
        reference: the model as it was before the step, in training mode.
    """
    with torch.no_grad():
        expected = embeddings_of(reference(*recorder.inputs))
    return lowest_cosine(recorder.embeddings, expected)


def our_variant(
    bench: Bench, stack: contextlib.ExitStack, recipe: Recipe, *, all_tokens: bool = False
) -> Variant:
    """Return our training step, taken once; with `all_tokens` it computes padding too."""
    run, batch = stack.enter_context(ready(bench, recipe))
    if all_tokens:
        run.stepper.text_multiple = 0
    reference = copy.deepcopy(run.model)
    wrapped = run.stepper.wrapped
    recorder = run.stepper.wrapped = Recorder(wrapped)
    take_step(run, batch)
    run.stepper.wrapped = wrapped
    tokens = recorder.inputs[1].shape[1]
    operations = forward_operations(run.model.config, tokens=tokens, fused=False)
    texts = len(batch.captions)
    flops = BACKWARD * len(batch.uids) * (operations.image + texts * operations.text)
    return Variant(
        run=lambda: take_step(run, batch),
        samples=len(batch.uids),
        flops=float(flops),
        cosine=float32_cosine(recorder, reference),
        facts={"captions": texts, "tokens": tokens},
    )


def peer_variant(bench: Bench, recipe: Recipe) -> Variant | None:
    """Return open_clip's training step of the same model, taken once; None: there is none."""
    with opened(bench, recipe) as (_, loader):
        batch = first_batch(bench, loader)
    peer = train_step.peer_step(
        recipe.model.name, batch, bench.device, bench.dtype,
        channels_last=uses_channels_last(recipe, bench.device), compiled=recipe.compile,
    )  # fmt: skip
    if peer is None:
        return None
    reference = copy.deepcopy(peer.model)
    wrapped = peer.wrapped
    recorder = peer.wrapped = Recorder(wrapped)
    peer.step()
    peer.wrapped = wrapped
    tokens = recorder.inputs[1].shape[1]
    operations = forward_operations(recipe.model.config(), tokens=tokens, fused=False)
    flops = BACKWARD * len(batch.uids) * (operations.image + operations.text)
    return Variant(
        run=peer.step,
        samples=len(batch.uids),
        flops=float(flops),
        cosine=float32_cosine(recorder, reference),
        facts={"captions": 1, "tokens": tokens},
    )


def measure_step(
    bench: Bench, name: str, *, compiled: bool, seconds: float = 0.0
) -> dict[str, Any]:
    """Return the figures of a training step, beside open_clip's and reinforced beside plain.

    Args:
        bench: the machine.
        name: the model.
        compiled: compile all of them with `torch.compile`.
        seconds: that compiling one takes, by estimate.
    """
    if compiled and bench.compiler_problem:
        return {"skipped": f"the compiler cannot run: {bench.compiler_problem}"}
    recipes = {loss: recipe_of(bench, name, loss, compile=compiled) for loss in LOSSES}
    plain = recipes["plain"]
    with contextlib.ExitStack() as stack:
        made, left_out = bench.build(
            {
                "plain": lambda: our_variant(bench, stack, plain),
                # open_clip computes all tokens, and the benchmark's captions are short.
                ALL_TOKENS: lambda: our_variant(bench, stack, plain, all_tokens=True),
                "open_clip": lambda: peer_variant(bench, plain),
                "reinforced": lambda: our_variant(bench, stack, recipes["reinforced"]),
            },
            seconds,
        )
        figures = bench.time(made, base="open_clip")
        if "plain" in made and "reinforced" in made:
            rates = {key: figures["variants"][key]["samples_per_s"] for key in recipes}
            ratio = round(rates["reinforced"] / rates["plain"], 3)
            figures["ratios"]["reinforced over plain"] = ratio
    return {
        "model": name,
        "batch": plain.batch_size,
        "memory_format": (
            "channels_last" if uses_channels_last(plain, bench.device) else "contiguous"
        ),
        "compiled": compiled,
        **figures,
        "left_out": left_out,
    }


class _ReadCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a value of a tensor is read back as a Python number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def count_synchronisations(bench: Bench, name: str, steps: int) -> dict[str, Any]:
    """Return how often steps wait for the device, by torch's own warnings.

    A CPU has none to wait for: the reads of single values are counted, the optimiser's own of its
    counters among them.
    """
    with ready(bench, recipe_of(bench, name, "reinforced")) as (run, batch):
        take_step(run, batch)  # the first one makes buffers
        if not bench.on_cuda:
            with _ReadCounter() as counter:
                for _ in range(steps):
                    take_step(run, batch)
            return {"model": name, "steps": steps, "reads_of_values": counter.count}
        torch.cuda.synchronize(bench.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(steps):
                    take_step(run, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchronizing" in str(warning.message)]
    return {
        "model": name,
        "steps": steps,
        "synchronisations": len(found),
        "where": sorted({f"{Path(one.filename).name}:{one.lineno}" for one in found}),
    }


def compare_resumed(bench: Bench, name: str, steps: int, *, deterministic: bool) -> dict[str, Any]:
    """Return how far the weights of a run that was resumed are from those of one that was not."""
    if deterministic and "deterministic" not in Recipe.model_fields:
        return {"skipped": "recipes have no key `deterministic`"}
    settings = {"deterministic": True} if deterministic else {}
    half = steps // 2
    recipe = recipe_of(
        bench, name, "reinforced", steps=steps, checkpoint__every_steps=half, log_every=steps,
        checkpoint__keep_last=3, **settings,
    )  # fmt: skip
    folder = bench.folder / f"resumed-{deterministic}"
    device = str(bench.device)
    train(recipe, folder / "whole", device=device)
    middle = checkpoint_dir(folder / "whole", half)
    train(recipe, folder / "again", device=device, resume=str(middle))
    one, other = (
        checkpoint.load(folder / run / MODEL_DIR).state_dict() for run in ("whole", "again")
    )
    differences = [float((one[key].double() - other[key].double()).abs().max()) for key in one]
    return {
        "model": name,
        "steps": steps,
        "resumed_after": half,
        "largest_difference": max(differences),
        "bit_equal": all(torch.equal(value, other[key]) for key, value in one.items()),
    }
