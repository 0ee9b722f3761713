"""Make the small teachers and the captioner that ship with the package, from nothing.

    python -m pocketclip.quickstart.make --out models

They learn from scenes of a split of their own with right captions, drawn anew by this script; the
pairs of `UNSEEN` are not among them. The seeds are fixed. The result is three checkpoint folders
in half precision. The students' loop (`pocketclip.train`) is not used here: it reads reinforced
shards, and a captioner has a third output.

Shapes: B batch, S side in pixels, T tokens, V vocabulary, U ids that occur in captions.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketclip import checkpoint
from pocketclip.checkpoint.folder import own_files
from pocketclip.nn import reparam
from pocketclip.nn.build import create_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.coca import CoCa
from pocketclip.quickstart.captions import TEMPLATES, class_name, full_caption
from pocketclip.quickstart.chance import Chance
from pocketclip.quickstart.describing import Narrow, described, readers, spread_queries
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.lessons import CONTEXT, SEED, SIDE, Lessons, draw_lessons
from pocketclip.quickstart.scenes import UNSEEN, draw_scene
from pocketclip.storage.local import write_whole_folder
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.loss import captioning_loss, contrastive_loss

_TEXT = {"width": 96, "layers": 2, "heads": 3, "context_length": CONTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A part of the training, with a fresh optimiser and a high rate."""

    steps: int
    scenes: int = 16000
    """The first so many."""
    captioning: float = 0.0
    """Of a captioner: the weight of its captioning loss, beside the contrastive one's 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one of the models is made."""

    base: str
    overrides: dict[str, Any]
    rounds: tuple[Round, ...]
    lr: float
    batch: int = 128
    describing: tuple[Round, ...] = ()
    """Of a captioner: the last rounds, see `pocketclip.quickstart.describing`."""


PLANS = {
    "teacher-a": Plan(
        base="tiny",
        overrides={
            "embed_dim": 96,
            "image": {"depths": (1, 1, 2, 1), "widths": (24, 48, 96, 192)},
            "text": {**_TEXT, "embedding_buckets": 512},
        },
        rounds=(Round(steps=700),),
        lr=2e-3,
    ),
    "teacher-b": Plan(
        base="tiny",
        overrides={
            "embed_dim": 96,
            "image": {"depths": (1, 2, 2, 1), "widths": (16, 32, 64, 128)},
            "text": {**_TEXT, "embedding_buckets": 512, "causal": True},
        },
        rounds=(Round(steps=500),),
        lr=2.5e-3,
    ),
    "captioner": Plan(
        base="coca-tiny",
        overrides={
            "embed_dim": 40,
            "image": {"width": 96, "layers": 3, "heads": 3, "pool_queries": 17, "pool_heads": 4},
            "text": {"width": 40, "heads": 4, "context_length": CONTEXT, "embedding_buckets": 512},
            "decoder": {"layers": 2, "heads": 4},
        },
        rounds=(
            Round(steps=2000, captioning=2.0),
            Round(steps=900, scenes=10000, captioning=5.0),
        ),
        describing=(Round(steps=1200, scenes=8000),),
        lr=2e-3,
    ),
}


def make(name: str, lessons: Lessons) -> tuple[CLIP, dict[str, Any]]:
    """Train the model called `name`; return it with what it reaches on unseen scenes."""
    plan = PLANS[name]
    torch.manual_seed(SEED + list(PLANS).index(name))
    model = create_model(plan.base, **plan.overrides).train()
    narrow = Narrow(model, lessons.ids) if isinstance(model, CoCa) else None
    begun = time.monotonic()

    @torch.no_grad()
    def after() -> None:
        model.logit_scale.clamp_(max=math.log(100))
        if narrow is not None:
            narrow.hold()

    for number, part in enumerate(plan.rounds):
        generator = torch.Generator().manual_seed(SEED + number)
        if narrow is not None:
            narrow.weight = part.captioning
        batches = lessons.first(part.scenes).batches(part.steps, plan.batch, generator)
        losses = (_loss(model, narrow, *batch) for batch in batches)
        learn(list(model.parameters()), losses, part.steps, plan.lr, after)
    for number, part in enumerate(plan.describing):
        assert isinstance(model, CoCa)
        assert narrow is not None
        if not number:
            spread_queries(model, torch.Generator().manual_seed(SEED))
        generator = torch.Generator().manual_seed(SEED + len(plan.rounds) + number)
        some = lessons.first(part.scenes)
        reading = described(model, narrow, some, part.steps, plan.batch, generator)
        learn(readers(model), reading, part.steps, 3e-3, after)
    if narrow is not None:
        narrow.widen()
    model.eval()
    return model, {"seconds": round(time.monotonic() - begun), **score(model)}


def learn(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    steps: int,
    lr: float,
    after: Callable[[], None],
) -> None:
    """Train for one round: AdamW, a short warm-up and a cosine to zero."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    begun = time.monotonic()
    for step, loss in enumerate(losses):
        warm = min(1.0, (step + 1) / 60)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - begun
            print(f"step {step} loss {loss.item():.3f}, {seconds:.0f} s", flush=True)


def _loss(model: CLIP, narrow: Narrow | None, pixels: Tensor, ids: Tensor) -> Tensor:
    longest = int((ids != 0).sum(1).max())
    ids = ids[:, :longest]  # padding changes nothing
    if narrow is None:
        image, text, scale = model(pixels, ids)
        return contrastive_loss(image, text, scale)
    out = model(pixels, ids)
    labels = narrow.labels(ids)
    return contrastive_loss(out.image, out.text, out.logit_scale) + narrow.weight * captioning_loss(
        out.logits[:, :-1], labels[:, 1:]
    )


@torch.no_grad()
def score(model: CLIP, count: int = 480) -> dict[str, float]:
    """Return the accuracy on scenes of unseen pairs, among these, and recall on unseen scenes."""
    tokenizer = Tokenizer()
    pairs = sorted(UNSEEN)
    classes = []
    for colour, shape in pairs:
        ids = tokenizer([t.format(class_name(colour, shape)) for t in TEMPLATES], CONTEXT)
        classes.append(F.normalize(model.encode_text(ids, normalize=True).mean(0), dim=0))
    images = model.encode_image(_pixels("unseen", count), normalize=True)
    said = (images @ torch.stack(classes).T).argmax(1)
    right = said == torch.arange(count) % len(pairs)
    scenes = [draw_scene("test", seed=SEED, index=i) for i in range(count)]
    texts = [full_caption(scene) for scene in scenes]
    captions = model.encode_text(tokenizer(texts, CONTEXT), normalize=True)
    found = (model.encode_image(_pixels("test", count), normalize=True) @ captions.T).argmax(1)
    hits = [texts[int(j)] == text for j, text in zip(found, texts, strict=True)]
    return {
        "unseen_top1": round(right.float().mean().item(), 4),
        "text_recall_at_1": round(sum(hits) / count, 4),
    }


def _pixels(split: Any, count: int) -> NDArray[np.float32]:
    drawn = [
        render(draw_scene(split, seed=SEED, index=i), side=SIDE, chance=Chance(SEED, 4, i))
        for i in range(count)
    ]
    return np.stack(drawn).transpose(0, 3, 1, 2).astype(np.float32) / 255


def save_half(model: CLIP, folder: Path) -> None:
    """Write a fused checkpoint folder in half precision; loading makes it float32 again."""
    from safetensors.torch import load_file, save_file

    model = model if model.is_fused else reparam.fuse(model)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    # The identity is that of what will be loaded.
    model.load_state_dict(state)
    checkpoint.save(model, folder)
    config = (folder / checkpoint.CONFIG).read_text("utf-8")
    full = load_file(folder / checkpoint.WEIGHTS)
    with write_whole_folder(folder, own_files) as target:
        save_file({n: state[n] for n in full}, target / checkpoint.WEIGHTS, {"format": "pt"})
        (target / checkpoint.CONFIG).write_text(config, "utf-8")


def main() -> None:
    """Make all three, or those that are named."""
    parser = argparse.ArgumentParser(description="Make the models that ship with the package.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=list(PLANS), action="append")
    options = parser.parse_args()
    lessons = draw_lessons(16000)
    for name in options.only or PLANS:
        model, facts = make(name, lessons)
        save_half(model, options.out / name)
        size = sum(path.stat().st_size for path in (options.out / name).iterdir())
        print(json.dumps({"model": name, **facts, "bytes": size}), flush=True)


if __name__ == "__main__":
    main()
