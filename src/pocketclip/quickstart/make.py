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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketclip import checkpoint
from pocketclip.files import write_whole_folder
from pocketclip.nn import reparam
from pocketclip.nn.clip import CLIP, create_model
from pocketclip.nn.coca import CoCa
from pocketclip.quickstart.captions import TEMPLATES, class_name, full_caption, right_caption
from pocketclip.quickstart.chance import Chance
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.scenes import UNSEEN, draw_scene
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.loss import captioning_loss, contrastive_loss

SEED = 2311
SIDE, DRAWN = 64, 80
CAPTIONS = 6
"""Right captions of a scene, one of which is drawn each time it is seen."""
CONTEXT = 32

_TEXT = {"width": 96, "layers": 2, "heads": 3, "context_length": CONTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one of the models is made."""

    base: str
    overrides: dict[str, Any]
    rounds: tuple[int, ...]
    """Steps; each round begins with a fresh optimiser and a high rate."""
    lr: float
    batch: int = 128


PLANS = {
    "teacher-a": Plan(
        base="tiny",
        overrides={
            "embed_dim": 96,
            "image": {"depths": (1, 1, 2, 1), "widths": (24, 48, 96, 192)},
            "text": {**_TEXT, "embedding_buckets": 512},
        },
        rounds=(700,),
        lr=2e-3,
    ),
    "teacher-b": Plan(
        base="tiny",
        overrides={
            "embed_dim": 96,
            "image": {"depths": (1, 2, 2, 1), "widths": (16, 32, 64, 128)},
            "text": {**_TEXT, "embedding_buckets": 512, "causal": True},
        },
        rounds=(500,),
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
        rounds=(2000, 1500),
        lr=2e-3,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What the models learn from."""

    images: Tensor
    """uint8 (N, 3, DRAWN, DRAWN)."""
    ids: Tensor
    """int64 (N, CAPTIONS, T)."""

    def batches(
        self, steps: int, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels (B, 3, S, S) of random crops, and ids (B, T) of one caption each."""
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(self.images), generator=generator)
            rows, order = order[:size], order[size:]
            which = torch.randint(CAPTIONS, (len(rows),), generator=generator)
            yield crop(self.images[rows], generator), self.ids[rows, which]


def draw_lessons(count: int) -> Lessons:
    """Draw `count` scenes and their captions."""
    images = np.empty((count, 3, DRAWN, DRAWN), np.uint8)
    texts: list[str] = []
    for index in range(count):
        scene = draw_scene("teaching", seed=SEED, index=index)
        pixels = render(scene, side=DRAWN, chance=Chance(SEED, 3, index))
        images[index] = pixels.transpose(2, 0, 1)
        texts += [
            right_caption("teaching", seed=SEED, index=index, draw=k) for k in range(CAPTIONS)
        ]
    ids = torch.from_numpy(Tokenizer()(texts, CONTEXT))
    return Lessons(images=torch.from_numpy(images), ids=ids.reshape(count, CAPTIONS, -1))


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random part of each image, 65 to 100 % of its area, as pixels (B, 3, S, S)."""
    count = len(images)
    area = 0.65 + 0.35 * torch.rand(count, 1, generator=generator)
    aspect = (0.3 * (torch.rand(count, 1, generator=generator) - 0.5)).exp()
    part = (area.sqrt() * torch.cat([aspect, 1 / aspect], 1)).clamp(max=1)  # (B, 2)
    shift = (1 - part) * (2 * torch.rand(count, 2, generator=generator) - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = part[:, 0], part[:, 1], shift
    grid = F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)


def make(name: str, lessons: Lessons) -> tuple[CLIP, dict[str, Any]]:
    """Train the model called `name`; return it with what it reaches on unseen scenes."""
    plan = PLANS[name]
    torch.manual_seed(SEED + list(PLANS).index(name))
    model = create_model(plan.base, **plan.overrides).train()
    narrow = Narrow(model, lessons.ids) if isinstance(model, CoCa) else None
    begun = time.monotonic()
    for number, steps in enumerate(plan.rounds):
        generator = torch.Generator().manual_seed(SEED + number)
        learn(model, narrow, lessons.batches(steps, plan.batch, generator), steps, plan.lr)
    if narrow is not None:
        narrow.widen()
    model.eval()
    return model, {"seconds": round(time.monotonic() - begun), **score(model)}


def learn(
    model: CLIP,
    narrow: Narrow | None,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
) -> None:
    """Train for one round: AdamW, a short warm-up and a cosine to zero."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    begun = time.monotonic()
    for step, (pixels, ids) in enumerate(batches):
        warm = min(1.0, (step + 1) / 60)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = _loss(model, narrow, pixels, ids)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            if narrow is not None:
                narrow.hold()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"step {step} loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s", flush=True
            )


def _loss(model: CLIP, narrow: Narrow | None, pixels: Tensor, ids: Tensor) -> Tensor:
    longest = int((ids != 0).sum(1).max())
    ids = ids[:, :longest]  # padding changes nothing
    if narrow is None:
        image, text, scale = model(pixels, ids)
        return contrastive_loss(image, text, scale)
    out = model(pixels, ids)
    labels = narrow.labels(ids)
    return contrastive_loss(out.image, out.text, out.logit_scale) + 2 * captioning_loss(
        out.logits[:, :-1], labels[:, 1:]
    )


class Narrow:
    """A captioner's last layer, narrowed to the ids that occur, while it learns.

    The vocabulary has 49,408 ids, of which scenes need about a hundred; logits for all would be
    nearly all of the work. One feature before the layer is held at 1, so that afterwards the rows
    of all other ids can be the same: -30 for that feature and 0 else.
    """

    def __init__(self, model: CoCa, ids: Tensor) -> None:
        self.model = model
        self.used = torch.unique(ids)
        self.used = self.used[self.used != 0]
        self.place = torch.zeros(model.config.text.vocab_size, dtype=torch.int64)
        self.place[self.used] = torch.arange(1, len(self.used) + 1)  # 0 is padding here too
        width = model.config.text.width
        model.decoder.head = nn.Linear(width, len(self.used) + 1, bias=False)
        nn.init.normal_(model.decoder.head.weight, std=width**-0.5)
        self.hold()

    def labels(self, ids: Tensor) -> Tensor:
        """Return ids (B, T) as the narrow layer counts them."""
        return self.place[ids]

    @torch.no_grad()
    def hold(self) -> None:
        """Keep the last feature at 1."""
        self.model.decoder.norm.weight[-1] = 0
        self.model.decoder.norm.bias[-1] = 1

    @torch.no_grad()
    def widen(self) -> None:
        """Give the captioner a layer for the whole vocabulary."""
        old = self.model.decoder.head.weight
        new = nn.Linear(old.shape[1], len(self.place), bias=False)
        new.weight.zero_()
        new.weight[:, -1] = -30
        new.weight[self.used] = old[1:]
        self.model.decoder.head = new


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
    with write_whole_folder(folder) as target:
        save_file({n: state[n] for n in full}, target / checkpoint.WEIGHTS, {"format": "pt"})
        (target / checkpoint.CONFIG).write_text(config, "utf-8")


def main() -> None:
    """Make all three, or those that are named."""
    parser = argparse.ArgumentParser(description="Make the models that ship with the package.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--only", choices=list(PLANS), action="append")
    options = parser.parse_args()
    lessons = draw_lessons(options.scenes)
    for name in options.only or PLANS:
        model, facts = make(name, lessons)
        save_half(model, options.out / name)
        size = sum(path.stat().st_size for path in (options.out / name).iterdir())
        print(json.dumps({"model": name, **facts, "bytes": size}), flush=True)


if __name__ == "__main__":
    main()
