"""The small student of the learning benchmarks: its data, its training, and its scores.

The views of a reinforced set are decoded once, at the student's size, so that one core trains on
more than a hundred samples per second. The model, the loss and the optimiser are the product's.

Shapes: N samples, A views of each, S side, B batch, D the teachers' dimensions together, M test
images, G images for retrieval, T texts, E embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learning_convs import quicken
from pocketclip.augment import Augmentation
from pocketclip.evaluate.classifier import build_classifier
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.preprocess import Preprocess
from pocketclip.shards import read
from pocketclip.shards.index import describe
from pocketclip.storage.local import write_whole
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.initial_model import initial_model
from pocketclip.train.loader import Batch
from pocketclip.train.optim import WeightAverage, learning_rate
from pocketclip.train.recipe import Recipe, load_recipe
from pocketclip.train.replay import AugmentationReplay
from pocketclip.train.routing import Routing
from pocketclip.train.setup import build_optimizer, freeze_parts
from pocketclip.train.step import Stepper

STUDENT: dict[str, Any] = {
    "name": "small",
    "overrides": {
        "image_size": 64, "embed_dim": 128,
        "image.depths": [1, 1, 1], "image.widths": [16, 64, 128], "image.mlp_ratio": 2.0,
        "image.stem_scale": False,
        "text.width": 64, "text.layers": 1, "text.heads": 2, "text.causal": True,
        "text.embedding_buckets": 2048, "text.context_length": 32,
    },
}  # fmt: skip
COMMON: dict[str, Any] = {
    "model": STUDENT,
    "data": {"source": "joined"},
    "optimizer": {"lr": 3e-3, "weight_decay": 0.1, "beta2": 0.98},
    "batch_size": 64,
    "channels_last": True,
    "precision": "float32",
}
WARMUP = 0.1  # of a run's steps
TEMPLATES = ("{}", "a photo of {}.", "{} in a grocery store.", "a close-up of {} on a shelf.")


@dataclass(slots=True)
class Set:
    """Everything that is read once: views at the student's size, texts, embeddings, the test."""

    views: np.ndarray[Any, np.dtype[np.uint8]]  # (N, A, S, S, 3)
    texts: list[list[list[str]]]  # per sample: [[alt-text], synthetic captions]
    image: np.ndarray[Any, np.dtype[np.float32]]  # (N, A, D)
    captions: list[list[np.ndarray[Any, np.dtype[np.float32]]]]  # parallel to `texts`: (n, D)
    dims: tuple[int, ...]
    scales: tuple[float, ...]
    classes: list[str]
    held_out: np.ndarray[Any, np.dtype[np.uint8]]  # (M, S, S, 3), of the split to be scored
    labels: np.ndarray[Any, np.dtype[np.int64]]  # (M,)
    templates: tuple[str, ...] = TEMPLATES
    mirrored: bool = True  # whether half of the views are; not where texts tell left from right
    descriptions: Sequence[str] = ()  # T different texts, to be found by images and to find them
    described: np.ndarray[Any, np.dtype[np.int64]] | None = None  # (G,): which is each image's own
    gallery: np.ndarray[Any, np.dtype[np.uint8]] | None = None  # (G, S, S, 3); None: `held_out`


def reinforced_views(shards: Path, out: Path, size: int) -> dict[str, Any]:
    """Return what `Set` holds of reinforced shards with images; the views are kept in `out`.

    The texts under `text` come first, those under all other keys together second.
    """
    about = describe(str(shards))
    assert about is not None
    assert about.augmentation is not None
    view = AugmentationReplay(Augmentation.from_config(about.augmentation), size)
    samples = list(read(str(shards)))
    others = [[key for key in s.captions if key != "text"] for s in samples]

    def replay() -> np.ndarray[Any, Any]:
        return np.stack([[view(s.image or b"", p) for p in s.param_aug or []] for s in samples])

    return {
        "views": kept(out / f"views-{size}.npy", replay),
        "texts": [
            [s.captions["text"], [text for key in keys for text in s.captions[key]]]
            for s, keys in zip(samples, others, strict=True)
        ],
        "image": np.stack([s.embeddings["image_emb"] for s in samples]),
        "captions": [
            [
                s.embeddings["text_emb"],
                np.concatenate([s.embeddings[f"{key}_emb"] for key in keys]),
            ]
            for s, keys in zip(samples, others, strict=True)
        ],
        "dims": about.teacher_dims,
        "scales": tuple(float(teacher["logit_scale"]) for teacher in about.teachers),
    }


def whole_images(path: Path, files: Sequence[Path], size: int) -> np.ndarray[Any, Any]:
    """Return the images as the evaluation transform makes them at `size`; kept in `path`."""
    config = load_recipe({**COMMON, "steps": 1, "loss": {"weights": [1, 0]}}).model.config()
    preprocess = Preprocess(dataclasses.replace(config.preprocess, size=size))
    return kept(path, lambda: np.stack([preprocess.to_uint8(file) for file in files]))


def numbered(texts: Sequence[str]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """Return the number of each text among the different ones, and these."""
    different = list(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(different)}
    return np.array([number[text] for text in texts], np.int64), different


def kept(path: Path, make: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return the array stored in `path`, made if it is not there."""
    if not path.exists():
        made = make()
        with write_whole(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, made, allow_pickle=False)
    array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def recipe_for(samples: int, seed: int, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run of so many samples; its schedule ends with them.

    `changes` are values by dotted key.
    """
    steps = max(1, samples // int(changes.get("batch_size", COMMON["batch_size"])))
    schedule = {"kind": "cosine", "warmup": int(WARMUP * steps)}
    base = {**COMMON, "steps": steps, "schedule": schedule, "seed": seed}
    return load_recipe(base, changes)


def batches(
    photos: Set, recipe: Recipe, stored: int | None = None, skip: int = 0
) -> Iterator[Batch]:
    """Yield the run's batches: order, views and captions depend on the seed, not on the arm.

    `stored` is how many of the stored views of a sample are used, the first ones; all otherwise.
    `skip` batches are left out, so that a run continues the order of an earlier one.
    """
    rng = np.random.default_rng([recipe.seed, 5])
    others = np.random.default_rng([recipe.seed, 6])  # its own: all arms see the same views
    tokens = Tokenizer(warn=False)
    context = recipe.model.config().text.context_length
    captions: str = recipe.data.captions
    which = {"truth": (0,), "both": (0, 1), "synthetic": (1,), "random": (1,)}[captions]
    count, ahead = len(photos.texts), np.empty(0, np.int64)
    for step in range(skip + recipe.steps):
        while len(ahead) < recipe.batch_size:
            ahead = np.concatenate([ahead, rng.permutation(count)])
        rows, ahead = ahead[: recipe.batch_size], ahead[recipe.batch_size :]
        views = rng.integers(stored or photos.views.shape[1], size=len(rows))
        flips = (rng.random(len(rows)) < 0.5) & photos.mirrored
        chance = rng.random(len(rows))
        if captions == "random":  # those of another sample
            described = (rows + others.integers(1, count, size=len(rows))) % count
        else:
            described = rows
        if step < skip:
            continue
        images = np.ascontiguousarray(photos.views[rows, views])  # (B, S, S, 3)
        images[flips] = images[flips, :, ::-1]
        chosen = [
            [(row, key, int(c * len(photos.texts[row][key]))) for row, c in zip(described, chance)]  # noqa: B905
            for key in which
        ]
        texts = [[photos.texts[row][key][n] for row, key, n in column] for column in chosen]
        yield Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            captions=[torch.from_numpy(tokens(column, context)) for column in texts],
            uids=[],
            texts=texts,
            teacher_image=torch.from_numpy(photos.image[rows, views]),
            teacher_captions=[
                torch.from_numpy(np.stack([photos.captions[r][k][n] for r, k, n in column]))
                for column in chosen
            ],
        )


def run(
    photos: Set, recipe: Recipe, *,
    first_scale: float | None = None, first_bias: float | None = None,
    teacher_factor: float = 1.0, views: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train once; return the scores of `scores`, the last loss, and seconds of the processor.

    The arguments are those of `train_student`.
    """
    begun = time.process_time()
    model, total = train_student(
        photos, recipe, first_scale=first_scale, first_bias=first_bias,
        teacher_factor=teacher_factor, views=views,
    )  # fmt: skip
    return {
        **scores(photos, Encoder(model)),
        "loss": total,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "cpu_seconds": time.process_time() - begun,
    }


def train_student(
    photos: Set, recipe: Recipe, *,
    model: CLIP | None = None, skip: int = 0,
    on_step: Callable[[int, CLIP], None] | None = None,
    first_scale: float | None = None, first_bias: float | None = None,
    teacher_factor: float = 1.0, views: int | None = None,
) -> tuple[CLIP, float]:  # fmt: skip
    """Train once; return the model and the last loss.

    Args:
        photos: the data.
        recipe: of the run.
        model: trained on in place, with a new optimiser; the recipe's initial model otherwise.
        skip: number of batches of the seed's order that an earlier run has seen.
        on_step: called after each step with the number of steps done and the model.
        first_scale: the student's logit scale to begin with; CLIP's otherwise.
        first_bias: SigLIP's bias to begin with; the paper's otherwise.
        teacher_factor: times the teachers' own logit scales.
        views: how many of the stored views are used; all otherwise.
    """
    model = initial_model(recipe) if model is None else model
    if first_scale is not None:
        with torch.no_grad():
            model.logit_scale.fill_(float(np.log(first_scale)))
    training = Training(photos, recipe, model, teacher_factor)
    if first_bias is not None and training.logit_bias is not None:
        with torch.no_grad():
            training.logit_bias.fill_(first_bias)
    average = WeightAverage(model, recipe.ema) if recipe.ema is not None else None
    total = float("nan")
    for step, batch in enumerate(batches(photos, recipe, views, skip)):
        total = training.step(step, batch)
        if average is not None:
            average.update(model)
        if on_step is not None:
            on_step(step + 1, model)
    if average is not None:
        model.load_state_dict(average.state)
    return model, total


class Training:
    """A model with its loss and its optimiser."""

    def __init__(
        self, photos: Set, recipe: Recipe, model: CLIP, teacher_factor: float = 1.0
    ) -> None:
        self.recipe = recipe
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        size = model.config.image_size
        quicken(model.image, torch.zeros(1, 3, size, size))
        if freeze_parts(recipe, model) is not None:
            raise ValueError("this loop has no low-rank updates; leave model.lora out")
        self.optimizer, self.logit_bias = build_optimizer(recipe, model)
        for group in self.optimizer.param_groups:
            group["fused"] = True
        routing = None if recipe.moe is None else Routing(model, recipe.moe, gathered=False)
        self.stepper = Stepper(
            model, model, recipe.loss, routing=routing, teacher_dims=photos.dims,
            teacher_scales=[scale * teacher_factor for scale in photos.scales],
            logit_bias=self.logit_bias, device=torch.device("cpu"), channels_last=True,
        )  # fmt: skip

    def step(self, step: int, batch: Batch) -> float:
        """Train on one batch, with the learning rate of step `step`; return the loss."""
        recipe, model = self.recipe, self.model
        rate = learning_rate(step, recipe.steps, recipe.optimizer.lr, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.stepper.backward([batch])
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm or 1e9)
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(recipe.max_logit_scale)))
        return float(sum(terms.values()))


def scores(photos: Set, encoder: Encoder) -> dict[str, float]:
    """Return zero-shot top-1 of the held-out photographs in percent, and their mean 1 / rank."""
    classifier = build_classifier(encoder, photos.classes, photos.templates)  # (C, E)
    ranks: list[int] = []
    for rows in embedded(photos.held_out, encoder):
        similar = rows @ classifier.T  # (b, C)
        labels = photos.labels[len(ranks) : len(ranks) + len(rows)]
        right = similar[np.arange(len(rows)), labels]
        ranks += (similar >= right[:, None]).sum(1).tolist()
    positions = np.array(ranks)
    return {"top1": 100 * float((positions == 1).mean()), "mrr": float((1 / positions).mean())}


def embedded(
    images: np.ndarray[Any, np.dtype[np.uint8]], encoder: Encoder
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield unit embeddings (b, E) of images (M, S, S, 3), some at a time."""
    for begin in range(0, len(images), 256):
        pixels = images[begin : begin + 256].transpose(0, 3, 1, 2) / np.float32(255)
        with torch.inference_mode():
            rows = encoder.model.encode_image(pixels.astype(np.float32), normalize=True)
        yield rows.numpy()


def identity(recipe: Recipe) -> str:
    """Return a hash of all that decides a run."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def results(path: Path) -> list[dict[str, Any]]:
    """Return what stands in a results file; a last line that was cut off does not count."""
    out = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return out
