"""The drawn dataset: a table of scenes with bad alt-texts, and three evaluation sets.

    FOLDER/pairs.csv               image, alt_text, kind, truth
           images/00000000.jpg
           tests/unseen/test.csv   image, label     colour and shape pairs not in training
                 validation-unseen/test.csv         other scenes of them, to choose a student by
                 retrieval/test.csv image, caption  scenes as in training, each caption once

`truth` and `kind` (the kind of alt-text) are for the report; no training uses them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pocketclip.quickstart.captions import TEMPLATES, alt_text, class_name, full_caption
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import UNSEEN, Scene, Split, draw_scene
from pocketclip.storage.local import write_whole

PAIRS, TESTS = "pairs.csv", "tests"
VALIDATION = "validation-"
"""Before the name of a task: its validation set."""
SIDE = 96
_TEXTURE = 21  # a random stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers of scenes."""

    train: int = 2000
    unseen: int = 480
    validation: int = 240
    retrieval: int = 400

    @property
    def total(self) -> int:
        """All scenes."""
        return self.train + self.unseen + self.validation + self.retrieval

    def scaled(self, scale: float) -> Sizes:
        """Return the sizes times `scale`, with at least 64 training scenes and each unseen pair."""
        return Sizes(
            train=max(64, round(self.train * scale)),
            unseen=max(len(UNSEEN), round(self.unseen * scale)),
            validation=max(len(UNSEEN), round(self.validation * scale)),
            retrieval=max(24, round(self.retrieval * scale)),
        )


def jpeg(split: Split, *, seed: int, index: int) -> bytes:
    """Return scene `index` of a split as a JPEG file."""
    scene = draw_scene(split, seed=seed, index=index)
    pixels = render(scene, side=SIDE, rng=ReplayRNG(seed, _TEXTURE, len(split), index))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg", quality=92)
    return out.getvalue()


def write_collection(
    folder: Path, sizes: Sizes, seed: int, advance: Callable[[int], None] = lambda _count: None
) -> None:
    """Write the dataset into `folder` unless it exists; `pairs.csv`, written last, completes it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    if (folder / PAIRS).is_file():
        return
    unseen, retrieval = folder / TESTS / "unseen", folder / TESTS / "retrieval"
    validation = folder / TESTS / f"{VALIDATION}unseen"
    _write_split(unseen / "test.csv", _unseen(0, sizes.unseen, seed), seed, advance)
    others = _unseen(sizes.unseen, sizes.validation, seed)
    _write_split(validation / "test.csv", others, seed, advance)
    _write_split(retrieval / "test.csv", _retrieval(sizes.retrieval, seed), seed, advance)
    for home in (unseen, validation):
        with write_whole(home / "zeroshot_classification_templates.txt") as temporary:
            temporary.write_text("\n".join(TEMPLATES) + "\n", "utf-8")
    _write_split(folder / PAIRS, _training(sizes.train, seed), seed, advance)


_Row = tuple[Split, int, dict[str, str]]


def _training(count: int, seed: int) -> Iterator[_Row]:
    for index in range(count):
        text, kind = alt_text("train", seed=seed, index=index)
        truth = full_caption(draw_scene("train", seed=seed, index=index))
        yield "train", index, {"alt_text": text, "kind": kind, "truth": truth}


def _unseen(first: int, count: int, seed: int) -> Iterator[_Row]:
    for index in range(first, first + count):
        thing = draw_scene("unseen", seed=seed, index=index).things[0]
        yield "unseen", index, {"label": class_name(thing.colour, thing.shape)}


def _retrieval(count: int, seed: int) -> Iterator[_Row]:
    """Yield scenes with distinct descriptions."""
    seen: set[str] = set()
    index = 0
    while len(seen) < count:
        scene: Scene = draw_scene("test", seed=seed, index=index)
        caption = full_caption(scene)
        if caption not in seen:
            seen.add(caption)
            yield "test", index, {"caption": caption}
        index += 1


def _write_split(
    table: Path, rows: Iterable[_Row], seed: int, advance: Callable[[int], None]
) -> None:
    def files() -> Iterator[tuple[bytes, dict[str, str]]]:
        for split, index, fields in rows:
            yield jpeg(split, seed=seed, index=index), fields

    write_table(table, files(), advance)


def write_table(
    table: Path,
    rows: Iterable[tuple[bytes, dict[str, str]]],
    advance: Callable[[int], None] = lambda _count: None,
) -> int:
    """Write images into a folder beside `table`, then the table; return the number of rows.

    Args:
        table: a csv file; `image` is its first column.
        rows: encoded images with the other columns, equal in all rows.
        advance: called with 1 after each image.
    """
    images = table.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, str]] = []
    for number, (data, fields) in enumerate(rows):
        name = f"images/{number:08d}{_suffix(data)}"
        (table.parent / name).write_bytes(data)
        lines.append({"image": name, **fields})
        advance(1)
    with write_whole(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(lines[0]) if lines else ["image"])
        writer.writeheader()
        writer.writerows(lines)
    return len(lines)


def _suffix(data: bytes) -> str:
    """Return the file suffix of an encoded image; `.img` if the format is unknown."""
    kinds = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif"}
    return next((suffix for head, suffix in kinds.items() if data.startswith(head)), ".img")


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
