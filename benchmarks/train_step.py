"""One step of training: ours beside open_clip's, and reinforced beside plain.

    python benchmarks/train_step.py --model mobileclip2-s0 --batch 16 --rounds 7
    python benchmarks/train_step.py --model mobileclip-b --batch 256 --device cuda

The variants take turns in each round, on the same batch; medians are compared. Reinforced and plain
have the same number of texts: two captions of each image. open_clip is measured if it can be
imported (with the same architecture and its own ClipLoss). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import peers
from pocketclip import devices, zoo
from pocketclip.nn.build import create_model
from pocketclip.nn.clip import CLIP
from pocketclip.train.loader import Batch, normalise
from pocketclip.train.optim import make_optimizer, parameter_groups
from pocketclip.train.sections import LossSection, OptimizerSection
from pocketclip.train.step import Stepper

TEACHERS = (768, 768)


@dataclass(slots=True)
class PeerStep:
    """open_clip's model in training."""

    model: nn.Module
    wrapped: Callable[..., Any]
    """The model as the step calls it."""
    step: Callable[[], None] = lambda: None
    """A whole step: zero, forward, loss, backward, clip, update."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = devices.resolve_device(args.device)
    dtype = devices.resolve_dtype(args.precision, device)
    batch = make_batch(args.model, args.batch)
    variants = {
        "plain": our_step(args.model, (1.0, 0.0), batch, device, dtype),
        "reinforced": our_step(args.model, (0.0, 1.0), batch, device, dtype),
        "reinforced_and_contrastive": our_step(args.model, (0.25, 0.75), batch, device, dtype),
    }
    peer = peer_step(args.model, batch, device, dtype)
    if peer is not None:
        # One text per image, as open_clip trains.
        one = Batch(images=batch.images, captions=batch.captions[:1], uids=batch.uids)
        variants["plain_one_text"] = our_step(args.model, (1.0, 0.0), one, device, dtype)
        variants["open_clip_one_text"] = peer.step
    times = measure(variants, args.rounds, device)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:28} {1000 * value:9.1f} ms  {args.batch / value:8.1f} samples/s")
    result: dict[str, Any] = {
        "benchmark": "train_step",
        "model": args.model,
        "batch": args.batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
        "seconds": {name: round(value, 5) for name, value in median.items()},
        "reinforced_over_plain": ratio(times, "reinforced", "plain"),
        "reinforced_and_contrastive_over_plain": ratio(
            times, "reinforced_and_contrastive", "plain"
        ),
        "open_clip_over_ours": ratio(times, "open_clip_one_text", "plain_one_text")
        if peer
        else None,
    }
    print(json.dumps(result))


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Return the median of the rounds' ratios: a slow round slows both of its variants."""
    pairs = zip(times[one], times[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 4)


def make_batch(name: str, size: int) -> Batch:
    """Return a batch of noise with two captions of typical length, and two teachers' embeddings."""
    model = create_model(name)
    rng = np.random.default_rng(0)
    side, context = model.config.image_size, model.config.text.context_length
    ids = np.zeros((2, size, context), np.int64)
    for row in ids.reshape(-1, context):
        length = int(rng.integers(8, min(30, context)))
        row[:length] = rng.integers(1000, 49000, length)
        row[0], row[length - 1] = 49406, 49407

    def unit(count: int) -> torch.Tensor:
        rows = rng.standard_normal((count, len(TEACHERS), TEACHERS[0])).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        return torch.from_numpy(rows.reshape(count, -1))

    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), np.uint8)),
        captions=[torch.from_numpy(one) for one in ids],
        teacher_image=unit(size),
        teacher_captions=[unit(size), unit(size)],
        uids=[str(i) for i in range(size)],
    )


def our_step(
    name: str,
    weights: tuple[float, float],
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], None]:
    """Return a whole step of ours: zero, forward, loss, backward, clip, update."""
    torch.manual_seed(0)
    model: CLIP = create_model(name).to(device).train()
    optimizer = make_optimizer(parameter_groups(model, 0.2), OptimizerSection())
    stepper = Stepper(
        model, model, LossSection(weights=weights), teacher_dims=TEACHERS,
        teacher_scales=(100.0, 100.0), device=device, dtype=dtype,
    )  # fmt: skip

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        stepper.backward([batch])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def peer_step(
    name: str,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
    compiled: bool = False,
) -> PeerStep | None:
    """Return open_clip's step of the same model, or None where it has none or cannot be had.

    Args:
        name: ours.
        batch: its first captions are used.
        device: where it trains.
        dtype: to compute in, by autocast.
        channels_last: the memory format of images and convolutions.
        compiled: by `torch.compile`, as open_clip's `--torchcompile` does.
    """
    open_clip, known = peers.import_open_clip(), peers.open_clip_name(name)
    if open_clip is None or known is None:
        return None
    from open_clip.loss import ClipLoss

    model = open_clip.create_model(known, output_dict=True).to(device).train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    loss_of = ClipLoss()
    exempt: list[torch.nn.Parameter] = []
    decaying: list[torch.nn.Parameter] = []
    for key, parameter in model.named_parameters():
        (exempt if parameter.ndim < 2 or "bias" in key else decaying).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": 0.2}, {"params": exempt, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    preprocess = zoo.entry(name).config.preprocess
    made = PeerStep(model, torch.compile(model) if compiled else model)

    def step() -> None:
        pixels = normalise(batch.images.to(device), preprocess, memory_format=layout)
        ids = batch.captions[0].to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = made.wrapped(pixels, ids)
            loss = loss_of(out["image_features"], out["text_features"], out["logit_scale"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    made.step = step
    return made


def measure(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    *,
    calls: int = 1,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Return seconds per call, variant and round; the order turns from round to round.

    Args:
        variants: what is timed, by name.
        rounds: each gives one time per variant.
        device: a GPU works on after a call returns, so it is waited for before and after.
        calls: in one round, back to back; their mean is its time.
        warm_up: calls before the first round, which allocate and choose kernels.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warm_up):
            variants[name]()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _wait_for(device)
            begun = time.perf_counter()
            for _ in range(calls):
                variants[name]()
            _wait_for(device)
            times[name].append((time.perf_counter() - begun) / calls)
    return times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
