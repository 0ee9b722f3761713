"""The rows of `gpu.py` about inference: towers beside timm's, a teacher, a captioner.

Shapes: B images or texts, S side, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import peers
from gpu_bench import Bench, Variant, lowest_cosine
from gpu_rows_train import first_batch, opened, recipe_of
from pocketclip.checkpoint.operations import forward_operations
from pocketclip.nn.build import create_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.coca import CoCa
from pocketclip.nn.reparam import fuse
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.recipe import load_recipe
from pocketclip.train.loader import normalise
from random_weights import give_statistics

# timm's name of each image tower
PEERS = {
    "mobileclip-s0": "fastvit_mci0",
    "mobileclip2-s0": "fastvit_mci0",
    "mobileclip2-s2": "fastvit_mci2",
    "mobileclip2-s4": "fastvit_mci4",
    "mobileclip-b": "vit_base_mci_224",
    "vit-l14": "vit_large_patch14_clip_224",
}


def make_model(bench: Bench, name: str) -> tuple[CLIP, Tensor, Tensor]:
    """Return a fused model with random weights in float32, pixels and ids, all on the device."""
    torch.manual_seed(0)
    with bench.device:  # initialised there
        model = create_model(name, **bench.overrides)
    with opened(bench, recipe_of(bench, name, "plain", batch_size=32)) as (_, loader):
        batch = first_batch(bench, loader)
    pixels = normalise(batch.images, model.config.preprocess)
    give_statistics(model, pixels, batch.captions[0])
    return fuse(model).requires_grad_(False), pixels, batch.captions[0]


def peer_tower(name: str, width: int) -> nn.Module | None:
    """Return timm's image tower of our model, fused, or None where it is not to be had."""
    timm = peers.import_timm()
    if timm is None or name not in PEERS:
        return None
    from timm.utils import reparameterize_model

    tower = timm.create_model(PEERS[name], num_classes=width).eval()
    return reparameterize_model(tower).requires_grad_(False)


def tower_variant(
    bench: Bench,
    tower: nn.Module,
    inputs: Tensor,
    layout: torch.memory_format,
    flops: float,
    *,
    compiled: bool,
) -> Variant:
    """Return a tower in `dtype`, run once.

    Args:
        bench: the machine.
        tower: in float32, on the device; unchanged.
        inputs: B of them, in float32 (pixels) or integers (ids).
        layout: the memory format of pixels and convolutions.
        flops: of one input.
        compiled: by `torch.compile`.
    """
    expected = tower(inputs)
    low: nn.Module = copy.deepcopy(tower).to(bench.dtype).to(memory_format=layout)  # type: ignore[call-overload]
    if inputs.is_floating_point():
        inputs = inputs.to(bench.dtype).contiguous(memory_format=layout)
    call: Callable[[Tensor], Tensor] = torch.compile(low) if compiled else low
    return Variant(
        run=lambda: call(inputs),
        samples=len(inputs),
        flops=flops * len(inputs),
        cosine=lowest_cosine([call(inputs)], [expected]),
    )


@torch.no_grad()
def measure_inference(
    bench: Bench,
    name: str,
    batches: tuple[int, ...],
    *,
    compiled: bool = False,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Return the figures of both towers at each batch; the image tower beside timm's.

    Args:
        bench: the machine.
        name: the model.
        batches: B of each measurement.
        compiled: compile the towers, timm's as well, instead of running them eagerly.
        seconds: that compiling one takes, by estimate.
    """
    if compiled and bench.compiler_problem:
        return {"skipped": f"the compiler cannot run: {bench.compiler_problem}"}
    model, pixels, ids = make_model(bench, name)
    layout = bench.layout(name)
    tokens = ids.shape[1]
    operations = forward_operations(model.config, tokens=tokens)
    peer = peer_tower(name, model.config.embed_dim)
    if peer is not None:
        peer = peer.to(bench.device)
    results = []
    for batch in batches:
        image, text = (rows.repeat(-(-batch // len(rows)), *[1] * (rows.ndim - 1))[:batch]
                       for rows in (pixels, ids))  # fmt: skip

        def make(
            tower: nn.Module | None, inputs: Tensor, flops: int, kind: torch.memory_format = layout
        ) -> Callable[[], Variant | None]:
            if tower is None:
                return lambda: None
            return lambda: tower_variant(bench, tower, inputs, kind, flops, compiled=compiled)

        made, left_out = bench.build(
            {
                "image": make(model.image, image, operations.image),
                "timm": make(peer, image, operations.image),
                "text": make(model.text, text, operations.text, torch.contiguous_format),
            },
            seconds,
        )
        calls = max(2, 64 // batch)
        results.append(
            {"batch": batch, **bench.time(made, base="timm", calls=calls), "left_out": left_out}
        )
        for each in results[-1:]:
            each["ratios"].pop("text over timm", None)
    return {
        "model": name,
        "timm": PEERS.get(name),
        "memory_format": "channels_last" if layout == torch.channels_last else "contiguous",
        "compiled": compiled,
        "tokens": tokens,
        "batches": results,
    }


def measure_teacher(bench: Bench, spec: str, views: int) -> dict[str, Any]:
    """Return the views per second of a teacher, from 8-bit squares to embeddings in numpy.

    Args:
        bench: the machine.
        spec: the teacher.
        views: per call.
    """
    made = {}
    for precision in (str(bench.dtype).removeprefix("torch."), "float32"):
        recipe = load_recipe(
            teachers=[spec], augmentations=1, device=str(bench.device), precision=precision
        )
        made[precision] = Engine(recipe).teachers[0]
    teacher, exact = made.values() if len(made) > 1 else list(made.values()) * 2
    side = teacher.transform.square(np.zeros((64, 64, 3), np.uint8)).shape[0]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (views, 8, 8, 3), np.uint8)
    squares = coarse.repeat(-(-side // 8), 1).repeat(-(-side // 8), 2)[:, :side, :side].copy()
    rows = [torch.from_numpy(one.encode_squares(squares[:32])) for one in (teacher, exact)]
    cosine = lowest_cosine(rows[:1], rows[1:])
    variant = Variant(lambda: teacher.encode_squares(squares), views, cosine=cosine)
    return {"teacher": spec, "views": views, **bench.time({"teacher": variant}, calls=1)}


@torch.no_grad()
def measure_captioner(
    bench: Bench, name: str, images: int, per_image: int, length: int
) -> dict[str, Any]:
    """Return the tokens per second of a captioner with random weights, by nucleus sampling.

    Args:
        bench: the machine.
        name: the captioner.
        images: B.
        per_image: captions of each.
        length: tokens of each caption; random weights hardly ever end one before.
    """
    torch.manual_seed(0)
    with bench.device:
        model = create_model(name).eval().requires_grad_(False)
    assert isinstance(model, CoCa)
    side = model.config.image_size
    pixels = torch.rand(images, 3, side, side, device=bench.device)
    ids = torch.randint(1, 49_000, (images, length), device=bench.device)
    expected = model(pixels, ids).logits
    model = model.to(bench.dtype)
    logits = model(pixels.to(bench.dtype), ids).logits
    assert logits is not None
    assert expected is not None
    cosine = lowest_cosine([logits.float().flatten(0, 1)], [expected.flatten(0, 1)])
    seeds = range(images * per_image)

    def write() -> list[list[int]]:
        return model.generate(
            pixels, captions_per_image=per_image, seeds=seeds, max_length=length,
            min_length=length - 1,
        )  # fmt: skip

    tokens = sum(len(caption) for caption in write())
    variant = Variant(write, tokens, cosine=cosine)
    return {
        "captioner": name,
        "images": images,
        "captions_per_image": per_image,
        "tokens_per_call": tokens,
        "unit": "tokens",
        **bench.time({"captioner": variant}, calls=1),
    }
