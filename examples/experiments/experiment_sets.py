"""The data of the experiments: photographs of groceries and drawn scenes, each reinforced.

Both come in three reinforcements: `given` (the set's own), and `weak` and `strong` augmentation,
which are made here, since stored embeddings belong to their views. The last two have one teacher
each: for the groceries a `grocery-teacher` that is trained here once, for the scenes the two
teachers that ship with the package. Everything is made once and kept in a folder.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import learning_student
from learning_efficiency import prepare
from learning_student import Set, numbered, reinforced_views, whole_images
from pocketclip.augment import DATACOMPDR
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.quickstart.captions import TEMPLATES
from pocketclip.quickstart.collection import Sizes, read_rows, write_collection
from pocketclip.reinforce.job import run as reinforce
from pocketclip.reinforce.recipe import load_recipe
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe as load_train_recipe

WORLDS = ("groceries", "scenes")
VIEWS = 5
"""Views per image, as the groceries' own reinforcement has."""
_WHOLE = {"size": 224, "scale": [0.9, 1.0], "interpolation": "bicubic"}
_MILD = {"size": 64, "scale": [0.65, 1.0], "ratio": [0.85, 1.18], "interpolation": "bicubic"}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "weak": {"random_resized_crop": _WHOLE},
    "strong": DATACOMPDR,
}
"""Weak: nearly the whole image, as CLIP is trained in open_clip; strong: DataCompDR's."""
TEACHER: dict[str, Any] = {
    "data.caption_columns": ["caption", "description"],
    "data.captions": "both",
    "data.where": {"split": "train"},
}
"""Changes to the recipe `grocery-teacher`: it learns the descriptions too, for retrieval."""
SCENES = Sizes()


def load_set(world: str, reinforcement: str, data: Path, out: Path) -> Set:
    """Return a set, made in `out` if it is not there.

    Args:
        world: one of `WORLDS`.
        reinforcement: `given`, `weak` or `strong`.
        data: holds grocery/ and grocery-dr/.
        out: where everything is kept.

    Raises:
        PocketclipError: the data is missing or damaged.
    """
    folder = out / f"{world}-{reinforcement}"
    folder.mkdir(parents=True, exist_ok=True)
    if world == "scenes":
        return _scenes(reinforcement, out / "scenes", folder)
    if reinforcement == "given":
        return prepare(data, folder, _side())
    return _groceries(reinforcement, data, out, folder)


def _side() -> int:
    return int(learning_student.STUDENT["overrides"]["image_size"])


def _groceries(reinforcement: str, data: Path, out: Path, folder: Path) -> Set:
    """Reinforce the training photographs anew: alt-text, catalogue title and description of each.

    The alt-text is the ground-truth caption; title and description take the place of synthetic
    captions.
    """
    pairs = data / "grocery" / "pairs.csv"
    options = PairOptions(
        caption_columns=("alt_text", "caption", "description"), where={"split": "train"}
    )
    teacher = train_teacher(pairs, out / "teacher")
    shards = _reinforce(pairs, options, folder, reinforcement, [str(teacher)])
    rows = read_rows(pairs)
    names = {int(row["class_id"]): row["caption"] for row in rows}
    test = [row for row in rows if row["split"] == "test"]
    described, descriptions = numbered([row["description"] for row in test])
    side = _side()
    return Set(
        **reinforced_views(shards, folder, side),
        classes=[names[number] for number in range(len(names))],
        held_out=whole_images(
            folder / f"test-{side}.npy", [pairs.parent / row["filepath"] for row in test], side
        ),
        labels=np.array([int(row["class_id"]) for row in test]),
        descriptions=descriptions,
        described=described,
        mirrored=False,  # the stored embeddings are of the views as they are
    )


def train_teacher(pairs: Path, folder: Path) -> Path:
    """Train the recipe `grocery-teacher` once; return its checkpoint.

    Raises:
        KeyboardInterrupt: the training was interrupted; it resumes in the next call.
        PocketclipError: as `pocketclip.train.loop.train`.
    """
    model = folder / "model"
    if not (model / "config.json").exists():
        recipe = load_train_recipe("grocery-teacher", {"data.source": str(pairs), **TEACHER})
        print(f"training the teacher, {recipe.steps} steps ...", flush=True)
        summary = train(recipe, folder)
        if summary.interrupted:
            raise KeyboardInterrupt
    return model


def _scenes(reinforcement: str, collection: Path, folder: Path) -> Set:
    """Draw the quickstart's scenes and reinforce them as the quickstart does.

    The evaluation sets are the quickstart's: 24 unseen pairs of colour and shape to classify, and
    scenes with distinct descriptions for retrieval.
    """
    write_collection(collection, SCENES, seed=0)
    options = PairOptions(image_column="image", caption_columns=("alt_text",), shard_size=400)
    shipped = Path(str(resources.files("pocketclip") / "data" / "quickstart"))
    shards = _reinforce(
        collection / "pairs.csv", options, folder, reinforcement,
        [str(shipped / "teacher-a"), str(shipped / "teacher-b")],
        captioners=[f"scenes={shipped / 'captioner'}"],
        captions=2,
        sampling={"method": "nucleus", "top_p": 0.7, "max_length": 30, "min_length": 3},
    )  # fmt: skip
    tables = [collection / "tests" / name / "test.csv" for name in ("unseen", "retrieval")]
    unseen, retrieval = (read_rows(table) for table in tables)
    labels, classes = numbered([row["label"] for row in unseen])
    described, descriptions = numbered([row["caption"] for row in retrieval])
    side = _side()
    images = [
        whole_images(
            folder / f"{table.parent.name}-{side}.npy",
            [table.parent / row["image"] for row in rows],
            side,
        )
        for table, rows in zip(tables, (unseen, retrieval), strict=True)
    ]
    return Set(
        **reinforced_views(shards, folder, side),
        classes=classes,
        held_out=images[0],
        labels=labels,
        templates=TEMPLATES,
        mirrored=False,  # texts tell left from right
        descriptions=descriptions,
        described=described,
        gallery=images[1],
    )


def _reinforce(
    pairs: Path, options: PairOptions, folder: Path, kind: str, teachers: list[str], **fields: Any
) -> Path:
    """Reinforce a table into `folder/shards` unless that is done; return the shards' folder."""
    augmentation = AUGMENTATIONS.get(kind, {"random_resized_crop": _MILD})
    recipe = load_recipe(
        teachers=teachers, augmentations=VIEWS, image_augmentation=augmentation,
        precision="float32", batch_size=64, **fields,
    )  # fmt: skip
    progress = _Progress(folder.name)
    reinforce(
        open_pairs(str(pairs), options), recipe, str(folder / "shards"), workers=1,
        on_start=progress.start, on_pairs=progress.count,
    )  # fmt: skip
    return folder / "shards"


class _Progress:
    """Prints how far a set's reinforcement is; nothing of one that is done."""

    def __init__(self, name: str) -> None:
        self.name, self.done = name, 0

    def start(self, shards: int, finished: int, pairs: int) -> None:
        self.done = pairs
        if finished < shards:
            print(f"reinforcing {self.name} ...", flush=True)

    def count(self, pairs: int, _bad: int) -> None:
        before, self.done = self.done, self.done + pairs
        if self.done // 500 > before // 500:
            print(f"  {self.done} pairs", flush=True)
