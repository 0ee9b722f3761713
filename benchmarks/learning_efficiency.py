"""Measure how many samples a student needs with and without reinforcement, on photographs.

    python benchmarks/learning_efficiency.py --data ../shared/data --out runs/learning

One student is trained from the same initial weights, with samples and views in the same order, on
the 2,640 training photographs of the grocery set: (plain) with CLIP's loss on the noisy alt-texts,
(captions) with the synthetic captions added, (reinforced) distilled from the stored embeddings of
the teachers. Each budget is a separate run with its own learning-rate schedule. The score is the
zero-shot top-1 over the 81 products on the 2,485 test photographs.

Results are appended to `OUT/results.jsonl`; runs that it contains are not repeated. So the
benchmark can be stopped, and after `--prepare` it can run twice at the same time with different
`--seeds` or `--arms`. The last line is JSON.

Sources: MobileCLIP (arXiv 2311.17049), section 5.1 and figure 5; ../shared/data/README.md.

Shapes: N samples, A views of each, S side, B batch, D the teachers' dimensions together.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch

import numpy as np
import torch

from learning_convs import quicken
from learning_report import averages, plot, show, summary
from pocketclip.augment import Augmentation
from pocketclip.evaluate.classifier import build_classifier
from pocketclip.infer.encoder import Encoder
from pocketclip.pairs import PairOptions
from pocketclip.preprocess import Preprocess
from pocketclip.shards import join, read
from pocketclip.shards.index import describe
from pocketclip.storage.local import write_whole
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.loader import Batch
from pocketclip.train.optim import WeightAverage, learning_rate
from pocketclip.train.recipe import Recipe, load_recipe
from pocketclip.train.replay import AugmentationReplay
from pocketclip.train.setup import build_optimizer, freeze_parts, initial_model
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
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"loss.weights": (1.0, 0.0), "data.captions": "truth"},
    "captions": {"loss.weights": (1.0, 0.0), "data.captions": "both"},
    "reinforced": {"loss.weights": (0.0, 1.0), "data.captions": "both"},
}
BUDGETS = (4096, 8192, 10240, 20480, 40960, 81920)
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


def prepare(data: Path, out: Path, size: int, split: str = "test") -> Set:
    """Join photographs and reinforcements, and replay every stored view once, at `size` pixels.

    The score is of the photographs of `split`: `val` to choose settings, `test` for the result.
    """
    pairs = data / "grocery" / "pairs.csv"
    options = PairOptions(caption_columns=("alt_text",), where={"split": "train"})
    join(str(data / "grocery-dr"), str(pairs), str(out / "joined"), options=options)
    about = describe(str(out / "joined"))
    assert about is not None
    assert about.augmentation is not None
    view = AugmentationReplay(Augmentation.from_config(about.augmentation), size)
    samples = list(read(str(out / "joined")))
    with pairs.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    config = load_recipe({**COMMON, "steps": 1, "loss": {"weights": [1, 0]}}).model.config()
    files = [data / "grocery" / row["filepath"] for row in rows if row["split"] == split]
    preprocess = Preprocess(dataclasses.replace(config.preprocess, size=size))

    def replay() -> np.ndarray[Any, Any]:
        return np.stack([[view(s.image or b"", p) for p in s.param_aug or []] for s in samples])

    names = {int(row["class_id"]): row["caption"] for row in rows}
    return Set(
        views=_kept(out / f"views-{size}.npy", replay),
        texts=[[s.captions["text"], s.captions["syn_text"]] for s in samples],
        image=np.stack([s.embeddings["image_emb"] for s in samples]),
        captions=[[s.embeddings["text_emb"], s.embeddings["syn_text_emb"]] for s in samples],
        dims=about.teacher_dims,
        scales=tuple(float(teacher["logit_scale"]) for teacher in about.teachers),
        classes=[names[number] for number in range(len(names))],
        held_out=_kept(
            out / f"{split}-{size}.npy", lambda: np.stack([preprocess.to_uint8(f) for f in files])
        ),
        labels=np.array([int(row["class_id"]) for row in rows if row["split"] == split]),
    )


def _kept(path: Path, make: Any) -> np.ndarray[Any, Any]:
    if not path.exists():
        made = make()
        with write_whole(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, made, allow_pickle=False)
    array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def recipe_of(arm: str, samples: int, seed: int, **changes: Any) -> Recipe:
    """Return the recipe of a run; its schedule ends with its budget. `changes` are of its keys."""
    steps = max(1, samples // int(changes.get("batch_size", COMMON["batch_size"])))
    schedule = {"kind": "cosine", "warmup": int(WARMUP * steps)}
    base = {**COMMON, "steps": steps, "schedule": schedule, "seed": seed}
    return load_recipe(base, {**ARMS[arm], **changes})


def batches(photos: Set, recipe: Recipe, stored: int | None = None) -> Iterator[Batch]:
    """Yield the run's batches: order, views and captions depend on the seed, not on the arm.

    `stored` is how many of the stored views of a sample are used, the first ones; all otherwise.
    """
    rng = np.random.default_rng([recipe.seed, 5])
    tokens = Tokenizer(warn=False)
    context = recipe.model.config().text.context_length
    which = {"truth": (0,), "both": (0, 1), "synthetic": (1,)}[recipe.data.captions]
    count, ahead = len(photos.texts), np.empty(0, np.int64)
    for _ in range(recipe.steps):
        while len(ahead) < recipe.batch_size:
            ahead = np.concatenate([ahead, rng.permutation(count)])
        rows, ahead = ahead[: recipe.batch_size], ahead[recipe.batch_size :]
        views = rng.integers(stored or photos.views.shape[1], size=len(rows))
        flips = (rng.random(len(rows)) < 0.5) & photos.mirrored
        chance = rng.random(len(rows))
        images = np.ascontiguousarray(photos.views[rows, views])  # (B, S, S, 3)
        images[flips] = images[flips, :, ::-1]
        chosen = [
            [(row, key, int(c * len(photos.texts[row][key]))) for row, c in zip(rows, chance)]  # noqa: B905
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

    Args:
        photos: the data.
        recipe: of the run.
        first_scale: the student's logit scale to begin with; CLIP's otherwise.
        first_bias: SigLIP's bias to begin with; the paper's otherwise.
        teacher_factor: times the teachers' own logit scales.
        views: how many of the stored views are used; all otherwise.
    """
    begun = time.process_time()
    model = initial_model(recipe).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = model.config.image_size
    quicken(model.image, torch.zeros(1, 3, size, size))
    if first_scale is not None:
        with torch.no_grad():
            model.logit_scale.fill_(float(np.log(first_scale)))
    if freeze_parts(recipe, model) is not None:
        raise ValueError("this loop has no low-rank updates; leave model.lora out")
    optimizer, logit_bias = build_optimizer(recipe, model)
    if first_bias is not None and logit_bias is not None:
        with torch.no_grad():
            logit_bias.fill_(first_bias)
    for group in optimizer.param_groups:
        group["fused"] = True
    stepper = Stepper(
        model, model, recipe.loss, teacher_dims=photos.dims,
        teacher_scales=[scale * teacher_factor for scale in photos.scales],
        logit_bias=logit_bias, device=torch.device("cpu"), channels_last=True,
    )  # fmt: skip
    average = WeightAverage(model, recipe.ema) if recipe.ema is not None else None
    total = float("nan")
    for step, batch in enumerate(batches(photos, recipe, views)):
        rate = learning_rate(step, recipe.steps, recipe.optimizer.lr, recipe.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        terms = stepper.backward([batch])
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm or 1e9)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(recipe.max_logit_scale)))
        if average is not None:
            average.update(model)
        total = float(sum(terms.values()))
    if average is not None:
        model.load_state_dict(average.state)
    return {
        **scores(photos, Encoder(model)),
        "loss": total,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "cpu_seconds": time.process_time() - begun,
    }


def scores(photos: Set, encoder: Encoder) -> dict[str, float]:
    """Return zero-shot top-1 of the held-out photographs in percent, and their mean 1 / rank."""
    classifier = build_classifier(encoder, photos.classes, photos.templates)  # (C, E)
    ranks: list[int] = []
    for begin in range(0, len(photos.held_out), 256):
        pixels = photos.held_out[begin : begin + 256].transpose(0, 3, 1, 2) / np.float32(255)
        with torch.inference_mode():
            rows = encoder.model.encode_image(pixels.astype(np.float32), normalize=True).numpy()
        similar = rows @ classifier.T  # (b, C)
        right = similar[np.arange(len(rows)), photos.labels[begin : begin + 256]]
        ranks += (similar >= right[:, None]).sum(1).tolist()
    positions = np.array(ranks)
    return {"top1": 100 * float((positions == 1).mean()), "mrr": float((1 / positions).mean())}


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds grocery/ and grocery-dr/")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE",
        help="of the recipe, as in model.overrides.image.widths=[32,128,256]; runs so changed are "
        "kept and shown apart",
    )  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="only make the views")
    parser.add_argument("--plot", type=Path, help="write an SVG")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.jsonl"
    changes = {key: json.loads(value) for key, _, value in (s.partition("=") for s in args.set)}
    size = recipe_of("plain", 1, 0, **changes).model.config().image_size
    photos = prepare(args.data, args.out, size)
    if args.prepare:
        return
    runs = [(b, s, a) for b in sorted(args.budgets) for s in args.seeds for a in args.arms]
    for budget, seed, arm in runs:
        recipe = recipe_of(arm, budget, seed, **changes)
        done = {record["recipe"] for record in results(file)}
        if identity(recipe) in done:
            continue
        print(f"{arm}, {budget} samples, seed {seed} ...", flush=True)
        result = run(photos, recipe)
        record = {"arm": arm, "samples": budget, "seed": seed, "recipe": identity(recipe), **result}
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"  top-1 {result['top1']:.2f} %, {result['cpu_seconds']:.0f} s", flush=True)
    table = averages(
        ARMS,
        [
            record
            for record in results(file)
            if record["recipe"]
            == identity(recipe_of(record["arm"], record["samples"], record["seed"], **changes))
        ],
    )
    show(table)
    if args.plot:
        with write_whole(args.plot) as temporary:
            temporary.write_text(plot(table), "utf-8")
    print(json.dumps(summary(table)))


if __name__ == "__main__":
    main()
