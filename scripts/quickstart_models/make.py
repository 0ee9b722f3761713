"""Train the small teachers and the captioner that ship with the package, from scratch.

    model, scores = train_model("teacher-a", draw_dataset(16000))

`scripts/make_quickstart_models.py` draws a separate split of scenes with correct captions, without
the pairs of `UNSEEN`, and writes three checkpoint folders in half precision. The seeds are fixed.
It does not use the students' loop (`pocketclip.train`), which reads reinforced shards and knows no
captioning loss.

Shapes: B batch, S side in pixels, T tokens, V vocabulary, U ids that occur in captions.
"""

from __future__ import annotations

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
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import UNSEEN, draw_scene
from pocketclip.storage.local import write_whole_folder
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.losses import captioning_loss, contrastive_loss
from quickstart_models.captioner import (
    NarrowHead,
    decoder_losses,
    decoder_parameters,
    spread_queries,
)
from quickstart_models.dataset import CONTEXT, SEED, SIDE, SceneDataset

_TEXT = {"width": 96, "layers": 2, "heads": 3, "context_length": CONTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A part of the training, with a new optimiser and its own learning rate schedule."""

    steps: int
    scenes: int = 16000
    """Number of scenes, the first ones of the dataset."""
    captioning: float = 0.0
    """Weight of a captioner's captioning loss; the contrastive loss has weight 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The architecture and the training of one model."""

    base: str
    overrides: dict[str, Any]
    rounds: tuple[Round, ...]
    lr: float
    batch: int = 128
    decoder_rounds: tuple[Round, ...] = ()
    """Last rounds of a captioner, see `quickstart_models.captioner.decoder_losses`."""


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
        decoder_rounds=(Round(steps=1200, scenes=8000),),
        lr=2e-3,
    ),
}


def train_model(name: str, dataset: SceneDataset) -> tuple[CLIP, dict[str, Any]]:
    """Train the model called `name`; return it with its scores on unseen scenes."""
    plan = PLANS[name]
    torch.manual_seed(SEED + list(PLANS).index(name))
    model = create_model(plan.base, **plan.overrides).train()
    narrow = NarrowHead(model, dataset.ids) if isinstance(model, CoCa) else None
    start = time.monotonic()

    @torch.no_grad()
    def after_step() -> None:
        model.logit_scale.clamp_(max=math.log(100))
        if narrow is not None:
            narrow.hold()

    for number, stage in enumerate(plan.rounds):
        generator = torch.Generator().manual_seed(SEED + number)
        if narrow is not None:
            narrow.weight = stage.captioning
        batches = dataset.first(stage.scenes).batches(stage.steps, plan.batch, generator)
        losses = (_loss(model, narrow, *batch) for batch in batches)
        train_round(list(model.parameters()), losses, stage.steps, plan.lr, after_step)
    for number, stage in enumerate(plan.decoder_rounds):
        assert isinstance(model, CoCa)
        assert narrow is not None
        if not number:
            spread_queries(model, torch.Generator().manual_seed(SEED))
        generator = torch.Generator().manual_seed(SEED + len(plan.rounds) + number)
        subset = dataset.first(stage.scenes)
        captioning = decoder_losses(model, narrow, subset, stage.steps, plan.batch, generator)
        train_round(decoder_parameters(model), captioning, stage.steps, 3e-3, after_step)
    if narrow is not None:
        narrow.widen()
    model.eval()
    return model, {"seconds": round(time.monotonic() - start), **evaluate(model)}


def train_round(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    steps: int,
    lr: float,
    after_step: Callable[[], None],
) -> None:
    """Train for one round: AdamW, a short warm-up and a cosine to zero."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    start = time.monotonic()
    for step, loss in enumerate(losses):
        warm = min(1.0, (step + 1) / 60)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after_step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            print(f"step {step} loss {loss.item():.3f}, {seconds:.0f} s", flush=True)


def _loss(model: CLIP, narrow: NarrowHead | None, pixels: Tensor, ids: Tensor) -> Tensor:
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
def evaluate(model: CLIP, count: int = 480) -> dict[str, float]:
    """Return the top-1 accuracy among the unseen pairs, and text recall at 1 on new scenes."""
    tokenizer = Tokenizer()
    pairs = sorted(UNSEEN)
    classes = []
    for colour, shape in pairs:
        ids = tokenizer([t.format(class_name(colour, shape)) for t in TEMPLATES], CONTEXT)
        classes.append(F.normalize(model.encode_text(ids, normalize=True).mean(0), dim=0))
    images = model.encode_image(_pixels("unseen", count), normalize=True)
    predicted = (images @ torch.stack(classes).T).argmax(1)
    correct = predicted == torch.arange(count) % len(pairs)
    scenes = [draw_scene("test", seed=SEED, index=i) for i in range(count)]
    texts = [full_caption(scene) for scene in scenes]
    captions = model.encode_text(tokenizer(texts, CONTEXT), normalize=True)
    nearest = (model.encode_image(_pixels("test", count), normalize=True) @ captions.T).argmax(1)
    hits = [texts[int(j)] == text for j, text in zip(nearest, texts, strict=True)]
    return {
        "unseen_top1": round(correct.float().mean().item(), 4),
        "text_recall_at_1": round(sum(hits) / count, 4),
    }


def _pixels(split: Any, count: int) -> NDArray[np.float32]:
    drawn = [
        render(draw_scene(split, seed=SEED, index=i), side=SIDE, rng=ReplayRNG(SEED, 4, i))
        for i in range(count)
    ]
    return np.stack(drawn).transpose(0, 3, 1, 2).astype(np.float32) / 255


def save_half_precision(model: CLIP, folder: Path) -> None:
    """Write a fused checkpoint folder in half precision; loading converts it to float32."""
    from safetensors.torch import load_file, save_file

    model = model if model.is_fused else reparam.fuse(model)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    # The space identity must be that of the weights as they will be loaded.
    model.load_state_dict(state)
    checkpoint.save(model, folder)
    config = (folder / checkpoint.CONFIG).read_text("utf-8")
    full = load_file(folder / checkpoint.WEIGHTS)
    with write_whole_folder(folder, own_files) as target:
        save_file({n: state[n] for n in full}, target / checkpoint.WEIGHTS, {"format": "pt"})
        (target / checkpoint.CONFIG).write_text(config, "utf-8")
