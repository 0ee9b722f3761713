"""What a few photographs of one's own are worth: zero-shot, `fit`, `finetune`, from scratch.

    python benchmarks/finetune.py --data ../shared/data --out runs/finetune

A stand-in for a published model learns 61 of the 81 products of the grocery set by reinforced
training, and never sees the other 20: a fixed list of products with at least 25 training
photographs, every third of those in the order of the alphabet. The 20 are one's own images, with
5, 20 or all training photographs each. Scores are zero-shot top-1, or top-1 of the head that `fit`
makes:

- new: the test photographs of the 20 products, among these 20 names;
- old: the test photographs of the other 61, among those 61 names. What a fine-tuned model keeps of
  the start's score there is what it did not forget.

No arm sees test photographs, and none but those with `+keep` sees old products (their validation
photographs, to choose between start and end). Results are appended to
`OUT/results.jsonl`; arms that it contains are not repeated, so the benchmark can be stopped and
started again. The last line is JSON.

Sources: FLYP (arXiv 2212.00638) and WiSE-FT (arXiv 2109.01903) for the comparison of new and old.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch

import learning_student
from learning_student import TEMPLATES
from pocketclip import checkpoint
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.evaluate.labelled import top1
from pocketclip.finetune import Options, finetune
from pocketclip.fit import fit_labels
from pocketclip.infer.encoder import Encoder
from pocketclip.pages.svg import Chart, Mark, Series, svg_file
from pocketclip.pairs import PairOptions
from pocketclip.shards import join
from pocketclip.storage.local import write_whole
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe

OVERRIDES = {**learning_student.STUDENT["overrides"], "image.widths": [32, 128, 256]}
COMMON: dict[str, Any] = {
    **learning_student.COMMON, "model": {"name": "small", "overrides": OVERRIDES},
}  # fmt: skip
START_STEPS = 1800
SCRATCH = 25_600
"""Samples that the arm `scratch` sees."""
ARMS = ["fit", "scratch", "head", "last-n", "lora", "full"]


@dataclass(frozen=True, slots=True)
class Photo:
    """A row of the grocery table."""

    uid: str
    path: Path
    split: str
    product: str
    name: str
    alt_text: str


class Groceries:
    """The tables of the benchmark, written into `out/tables`.

    Args:
        data: the folder with `grocery` and `grocery-dr`.
        out: the benchmark's folder.
    """

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data.resolve(), out
        (out / "tables").mkdir(parents=True, exist_ok=True)

    @cached_property
    def photos(self) -> list[Photo]:
        """All photographs, in the table's order."""
        folder = self.data / "grocery"
        with (folder / "pairs.csv").open(encoding="utf-8", newline="") as stream:
            return [
                Photo(f"{number:08d}", folder / row["filepath"], row["split"],
                      row["class_name"], row["caption"], row["alt_text"])
                for number, row in enumerate(csv.DictReader(stream))
            ]  # fmt: skip

    @cached_property
    def new(self) -> list[str]:
        """The 20 products that the start never sees."""
        count = Counter(photo.product for photo in self.photos if photo.split == "train")
        return sorted(name for name, number in count.items() if number >= 25)[1::3][:20]

    def own(self, size: int | None, seed: int) -> Path:
        """Return the table of one's own images: `size` of each product, drawn with `seed`."""
        chosen: list[Photo] = []
        for product in self.new:
            photos = [p for p in self.photos if p.product == product and p.split == "train"]
            draw = random.Random(f"{seed} {product}")
            chosen += photos if size is None else draw.sample(photos, size)
        return self._table(f"own-{size or 'all'}-{seed}", chosen)

    def test(self, *, new: bool) -> Path:
        """Return the table of the test photographs of the new or of the old products."""
        photos = [p for p in self.photos if p.split == "test" and (p.product in self.new) == new]
        return self._table(f"test-{'new' if new else 'old'}", photos)

    def keep(self) -> Path:
        """Return the validation photographs of the old products, for `--keep`."""
        photos = [p for p in self.photos if p.split == "val" and p.product not in self.new]
        return self._table("keep", photos)

    def _table(self, name: str, photos: list[Photo]) -> Path:
        path = self.out / "tables" / f"{name}.csv"
        write_csv(path, ["image", "label"], [[str(photo.path), photo.name] for photo in photos])
        return path

    def start(self, steps: int = START_STEPS) -> Path:
        """Return the stand-in of a published model; trained now if it is not there."""
        run = self.out / "start"
        if (run / "model").is_dir():
            return run / "model"
        table = self.out / "tables" / "old-train.csv"
        with (
            write_whole(table) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as f,
        ):
            writer = csv.writer(f)
            writer.writerow(["uid", "image", "alt_text"])
            for photo in self.photos:
                if photo.split == "train" and photo.product not in self.new:
                    writer.writerow([photo.uid, photo.path, photo.alt_text])
        options = PairOptions(uid_column="uid", image_column="image", caption_columns=("alt_text",))
        join(str(self.data / "grocery-dr"), str(table), str(self.out / "old"), options=options)
        recipe = load_recipe({
            **COMMON, "data": {"source": str(self.out / "old"), "captions": "both", "workers": 1},
            "loss": {"weights": [0.0, 1.0]}, "schedule": {"kind": "cosine", "warmup": steps // 12},
            "steps": steps,
        })  # fmt: skip
        train(recipe, run)
        return run / "model"


def write_csv(path: Path, head: list[str], rows: list[list[str]]) -> None:
    """Write a table whole."""
    with (
        write_whole(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as out,
    ):
        writer = csv.writer(out)
        writer.writerow(head)
        writer.writerows(rows)


class Bench:
    """Runs the arms that are not in the results file yet.

    Args:
        groceries: the tables.
        out: the benchmark's folder.
    """

    def __init__(self, groceries: Groceries, out: Path) -> None:
        self.groceries, self.out = groceries, out
        self.results = out / "results.jsonl"
        self.start = groceries.start()
        tests = {"new": groceries.test(new=True), "old": groceries.test(new=False)}
        self.measure = {
            name: top1(str(table), label_column="label", templates=TEMPLATES)
            for name, table in tests.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the results so far."""
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text("utf-8").splitlines()]

    def run(self, arm: str, size: int | None, seed: int) -> None:
        """Run an arm and append its result, unless it is there."""
        key = {"arm": arm, "size": size, "seed": seed}
        if any({k: row[k] for k in key} == key for row in self.rows()):
            return
        began, cpu = time.monotonic(), time.process_time()
        if arm == "zero-shot":
            result = self._score(self.start)
        elif arm == "fit":
            result = self._fit(self.groceries.own(size, seed))
        elif arm == "scratch":
            result = self._scratch(self.groceries.own(size, seed), size, seed)
        else:
            result = self._finetune(arm, self.groceries.own(size, seed), size, seed)
        result |= {
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        with self.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(key | result) + "\n")
        print(json.dumps(key | result), flush=True)

    def _score(self, model: Path) -> dict[str, Any]:
        encoder = Encoder(checkpoint.load(model, fuse=True))
        return {name: round(measure(encoder), 2) for name, measure in self.measure.items()}

    def _fit(self, table: Path) -> dict[str, Any]:
        encoder = Encoder(checkpoint.load(self.start, fuse=True))
        options = DataOptions(split="train", label_column="label", templates=TEMPLATES)
        fitted = fit_labels(encoder, str(table), options)
        labels = fitted.label_set
        with self.groceries.test(new=True).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        probabilities = labels.probabilities(encoder.encode_image([row["image"] for row in rows]))
        predicted = [labels.labels[k] for k in probabilities.argmax(1)]
        hits = [one == row["label"] for one, row in zip(predicted, rows, strict=True)]
        return {
            "new": round(100 * statistics.mean(hits), 2),
            "method": fitted.facts["method"],
            "images": sum(fitted.facts["photographs"]),
        }

    def _scratch(self, table: Path, size: int | None, seed: int) -> dict[str, Any]:
        """Train the start's architecture from random weights, as often as `plain` training needs.

        Its samples are those of `SCRATCH`, several times what `finetune` sees.
        """
        with table.open(encoding="utf-8") as stream:
            images = sum(1 for _ in stream) - 1
        batch = 32 if images < 256 else 64
        steps = SCRATCH // batch
        crop = {"size": 64, "scale": [0.5, 1.0], "interpolation": "bicubic"}
        recipe = load_recipe({
            **COMMON, "batch_size": batch, "steps": steps, "seed": seed,
            "data": {
                "source": str(table), "reinforced": False, "captions": "truth", "workers": 1,
                "image_column": "image", "caption_columns": ["label"],
                "image_augmentation": {
                    "random_resized_crop": crop, "random_horizontal_flip": {"p": 0.5},
                },
            },
            "loss": {"weights": [1.0, 0.0]},
            "schedule": {"kind": "cosine", "warmup": steps // 10},
        })  # fmt: skip
        summary = train(recipe, self.out / "runs" / f"scratch-{size or 'all'}-{seed}")
        assert summary.model is not None
        scores = self._score(summary.model)
        return {"new": scores["new"], "samples": summary.samples, "images": images}

    def _finetune(self, arm: str, table: Path, size: int | None, seed: int) -> dict[str, Any]:
        """Fine-tune; `arm` is a preset, with `+keep` or `-distil` for what is varied."""
        preset = arm.split("+")[0].removesuffix("-distil")
        folder = self.out / "runs" / f"{arm}-{size or 'all'}-{seed}"
        images = DataOptions(split="train", label_column="label", templates=TEMPLATES)
        options = Options(
            preset=preset,
            images=images,
            seed=seed,
            rate_trials=False,  # the preset's rate, the same for all
            self_distillation="-distil" not in arm,
            keep=str(self.groceries.keep()) if "+keep" in arm else None,
        )
        result = finetune(str(self.start), str(table), folder, options, workers=1)
        end = self._score(folder / "runs" / preset / "model")
        chosen = self._score(folder / "model")
        training = result["training"]
        return {
            **chosen,
            "end": end,
            "a": result["chosen"]["a"],
            "line": result["line"],
            "samples": training["steps_done"] * training["batch_size"],
            "images": result["counts"]["train"] + result["counts"]["validation"],
            "step_seconds": result["seconds"],
        }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means, lowest and highest over seeds, one line per arm and size."""
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["size"]), []).append(row)
    start = next(row for row in rows if row["arm"] == "zero-shot")
    out = []
    for (arm, size), group in groups.items():
        line: dict[str, Any] = {"arm": arm, "size": size, "seeds": len(group)}
        line["new"] = _spread([row["new"] for row in group])
        if "end" in group[0]:
            line |= {
                "end_new": _spread([row["end"]["new"] for row in group]),
                "end_old_kept": _spread([100 * row["end"]["old"] / start["old"] for row in group]),
                "a": [row["a"] for row in group],
            }
        if "old" in group[0]:
            line["old"] = _spread([row["old"] for row in group])
            line["old_kept"] = _spread([100 * row["old"] / start["old"] for row in group])
        if "samples" in group[0]:
            line["samples"] = round(statistics.mean(row["samples"] for row in group))
        line["seconds"] = round(statistics.median(row["seconds"] for row in group))
        line["cpu_seconds"] = round(statistics.median(row["cpu_seconds"] for row in group))
        out.append(line)
    return out


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.mean(values), 1),
        "low": round(min(values), 1),
        "high": round(max(values), 1),
    }


def write_plot(lines: list[dict[str, Any]], path: Path, size: int = 20) -> None:
    """Draw new against old accuracy with `size` images each: trained, and as handed over.

    `alone` stands for a preset without self-distillation.
    """
    marks = []
    for line in lines:
        arm, new = line["arm"], line["new"]["mean"]
        if arm == "zero-shot":
            marks.append(Mark(name=arm, x=100, y=new, label="start", tooltip=f"start: {new} %"))
        elif line["size"] == size and arm in ("fit", "scratch"):
            text = f"{arm}: {new} %"
            marks.append(Mark(name=arm, x=None, y=new, label=text, tooltip=text))
        elif line["size"] == size and "end_new" in line:
            trained = line["end_old_kept"]["mean"], line["end_new"]["mean"]
            series: Series
            for what, (x, y), series in (
                ("trained", trained, "v1"),
                ("handed over", (line["old_kept"]["mean"], new), "v2"),
            ):
                name = arm.replace("-distil", " alone").replace("+", " --")
                text = f"{name} {what}: new {y} %, {x} % of old kept"
                marks.append(
                    Mark(name=f"{arm} {what}", x=x, y=y, series=series, label=name, tooltip=text)
                )
    chart = Chart(
        name="finetune",
        title=f"New products learnt against old ones kept, {size} images each",
        description="; ".join(mark.tooltip for mark in marks),
        x_label="accuracy on old products, % of the start's",
        y_label="zero-shot top-1 on new products, %",
        x_scale="linear",
        marks=marks,
        legend={"v1": "end of training", "v2": "handed over"},
    )
    with write_whole(path) as temporary:
        temporary.write_text(svg_file(chart), "utf-8")


def main() -> None:
    """Run what is missing and print the summary, last as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with grocery")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--sizes", nargs="+", default=["20"], help="images per product, or `all`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="write the picture of the results here")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(Groceries(arguments.data, arguments.out), arguments.out)
    bench.run("zero-shot", None, 0)
    for seed in arguments.seeds:
        for size in arguments.sizes:
            for arm in arguments.arms:
                bench.run(arm, None if size == "all" else int(size), seed)
    lines = summary(bench.rows())
    for line in lines:
        print(json.dumps(line))
    if arguments.plot:
        write_plot(lines, arguments.plot)
    print(json.dumps({"benchmark": "finetune", "results": lines}))


if __name__ == "__main__":
    main()
