"""The user's own pairs, copied into the quickstart's layout: a table and evaluation sets.

    FOLDER/pairs.csv                    image, caption and its variants: training
           tests/validation-TASK/test.csv                    chooses among students and checkpoints
                 TASK/test.csv                               the reported figures
           pairs.json                   the numbers; written last

TASK is `labels` (image, label) with a label column; `texts` (image, label: the text itself) where
texts repeat so much that finding the one right partner means nothing; else `retrieval`
(image, caption). With labels there are two: `labels`, and `retrieval` or `texts`.

Photographs are decoded once and stored at a reduced size, as training decodes each many times.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketclip import devices
from pocketclip.errors import ImageError
from pocketclip.evaluate.datasets.examples import CLASSES, TEMPLATES
from pocketclip.formats.json_text import read_json
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions, PairShard
from pocketclip.pairs.base import Draft
from pocketclip.pairs.loading import completed
from pocketclip.quickstart.collection import PAIRS, TESTS, VALIDATION
from pocketclip.quickstart.listing import (
    MIN_PAIRS,
    Listed,
    Row,
    check_held_out,
    name_of,
    name_sides,
    too_few,
    unnamed_labels,
)
from pocketclip.quickstart.text_variants import COLUMNS, variants
from pocketclip.storage.local import write_whole
from pocketclip.types import Bad, Pair

FACTS = "pairs.json"
SIDE = 128
"""The shortest side of a stored photograph in pixels: twice the student's."""
_QUALITY = 92
_MOST_TEXTS = 2000
"""Distinct texts among which the right one is to be found."""
_TIMED = 64
"""Photographs after which the rate of copying is judged."""
_LEAST_PAIRS = 500
"""Training pairs that are copied however long it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySettings:
    """How `copy_pairs` copies."""

    label_column: str | None = None
    side: int = SIDE
    """The shortest side of a stored photograph in pixels; smaller ones stay as they are."""
    most: int | None = None
    """The most training pairs; None: all."""
    seconds: float | None = None
    """The time to copy them in; None: any."""


def copy_pairs(
    folder: Path,
    shards: Sequence[PairShard],
    listed: Listed,
    options: PairOptions,
    settings: CopySettings,
    advance: Callable[[int, int], None],
) -> dict[str, Any]:
    """Copy the readable pairs into `folder`, some as evaluation sets; return their numbers.

    Args:
        folder: gets the files that the module names; one with `pairs.json` stays as it is.
        shards: the user's pairs.
        listed: the same, from `list_pairs`.
        options: how to fetch images.
        settings: sizes and limits.
        advance: called with the numbers of copied pairs and of pairs in all.

    Raises:
        DataError: too few readable photographs.
    """
    if (folder / FACTS).is_file():
        facts: dict[str, Any] = read_json(folder / FACTS)
        return facts
    rows, tasks, bad = listed.rows, listed.tasks, list(listed.bad)
    copier = _Copier(folder, settings, rows, listed.parts, advance)
    kept = copier.copy(shards, options, bad)
    if len(kept["train"]) + len(kept["validation"]) + len(kept["test"]) < MIN_PAIRS:
        raise too_few(sum(map(len, kept.values())), bad)
    copies = copier.drop_copies(kept)
    read = {part: [row for row, _ in kept[part]] for part in ("validation", "test")}
    check_held_out(tasks, read, settings.label_column)
    _write_sets(folder, tasks, kept)
    # In a random order, so that the first pairs are a sample of all.
    _write_training(folder / PAIRS, sorted(kept["train"], key=lambda item: copier.order(item[0])))
    labelled = settings.label_column is not None
    facts = {
        **{part: len(found) for part, found in kept.items()},
        "unreadable": len(bad),
        "reasons": bad[:10],
        "left_out": copier.left_out,
        "copies": copies,
        "unlabelled": sum(not row.label for row in rows) if labelled else 0,
        "several_labels": listed.several_labels,
        "labels": len({row.label for row in rows if row.label}),
        "unnamed": unnamed_labels([row for row, _ in kept["train"]]),
        "texts": len({row.caption for row, _ in kept["train"]}),
        "tasks": tasks,
        "sides": name_sides(rows),
        "side": settings.side,
    }
    with write_whole(folder / FACTS) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return facts


class _Copier:
    """Reads, reduces and stores photographs; the training ones in a random, stable order."""

    def __init__(
        self,
        folder: Path,
        settings: CopySettings,
        rows: Sequence[Row],
        parts: dict[str, str],
        advance: Callable[[int, int], None],
    ) -> None:
        self.folder, self.settings, self.parts, self.advance = folder, settings, parts, advance
        names = [name for name, part in parts.items() if part == "train"]
        order = np.random.default_rng(0).permutation(len(names))  # of names in the order of rows
        self.rank = {names[position]: rank for rank, position in enumerate(order.tolist())}
        self.limit = len(names) if settings.most is None else min(settings.most, len(names))
        self.held_out = len(parts) - len(names)
        self.left_out = 0
        self.total = len(rows)
        self.labels = {row.name: row.label for row in rows}
        self.digests: dict[str, bytes] = {}

    def order(self, row: Row) -> int:
        """Return the place of a training pair in the random order."""
        return self.rank[row.name]

    def copy(
        self, shards: Sequence[PairShard], options: PairOptions, bad: list[str]
    ) -> dict[str, list[tuple[Row, str]]]:
        """Store the photographs; return rows and file names by part."""
        images = self.folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        kept: dict[str, list[tuple[Row, str]]] = {"train": [], "validation": [], "test": []}
        done, began = 0, time.monotonic()
        for row, reduced in self._reduced(shards, options, bad):
            done += 1
            self.advance(done, self.total - self.left_out)
            if done == _TIMED:
                self._limit_to_time((time.monotonic() - began) / done)
            if isinstance(reduced, str):
                bad.append(f"{row.name}: {reduced}")
                continue
            name = f"images/{sum(map(len, kept.values())):08d}{reduced[1]}"
            (self.folder / name).write_bytes(reduced[0])
            self.digests[name] = hashlib.sha256(reduced[0]).digest()
            kept[self.parts[row.name]].append((row, name))
        return kept

    def drop_copies(self, kept: dict[str, list[tuple[Row, str]]]) -> int:
        """Drop copies under other names of photographs that are held out; return their number.

        The test keeps what it has, the validation what is not in the test.
        """
        dropped = 0
        seen: set[bytes] = set()
        for part in ("test", "validation", "train"):
            new = [item for item in kept[part] if self.digests[item[1]] not in seen]
            for _, name in set(kept[part]) - set(new):
                (self.folder / name).unlink()
                dropped += 1
            kept[part] = new
            seen |= {self.digests[name] for _, name in new}
        return dropped

    def _limit_to_time(self, seconds: float) -> None:
        """Lower the number of training pairs to what the time allows at this rate."""
        if self.settings.seconds is not None:
            affordable = int(self.settings.seconds / seconds) - self.held_out
            self.limit = min(self.limit, max(affordable, _LEAST_PAIRS))

    def _reduced(
        self, shards: Sequence[PairShard], options: PairOptions, bad: list[str]
    ) -> Iterator[tuple[Row, tuple[bytes, str] | str]]:
        """Yield rows with their reduced photographs, or why they cannot be read."""
        cores = devices.cores()
        waiting: deque[tuple[Row, Future[tuple[bytes, str] | str]]] = deque()
        with ThreadPoolExecutor(cores) as pool:  # Pillow decodes and resizes without the GIL
            for row, pair in self._wanted(shards, options):
                if isinstance(pair, Bad) or pair.image is None:
                    reason = pair.reason if isinstance(pair, Bad) else "no image"
                    bad.append(f"{row.name}: {reason}")
                    continue
                waiting.append((row, pool.submit(_reduce, pair.image, self.settings.side)))
                if len(waiting) > 4 * cores:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for row, future in waiting:
                yield row, future.result()

    def _wanted(
        self, shards: Sequence[PairShard], options: PairOptions
    ) -> Iterator[tuple[Row, Pair | Bad]]:
        for shard in shards:
            taken: deque[Row] = deque()

            def drafts(shard: PairShard = shard, taken: deque[Row] = taken) -> Iterator[Any]:
                for item in shard.drafts():
                    if isinstance(item, Bad):
                        continue  # counted when the rows were listed
                    pair = item.pair if isinstance(item, Draft) else item
                    name = name_of(shard, pair)
                    if self.rank.get(name, -1) >= self.limit:
                        self.left_out += 1
                        continue
                    taken.append(Row(name, pair.captions["text"][0], self.labels[name]))
                    yield item

            for pair in completed(drafts(), options.fetch):
                yield taken.popleft(), pair


def _reduce(data: bytes, side: int) -> tuple[bytes, str] | str:
    """Return a photograph with its shortest side at most `side`, and a suffix; or why not."""
    try:
        image = open_image(data, least_side=side)
    except ImageError as error:
        return str(error)
    scale = side / min(image.size)
    if scale >= 0.8 and data[:3] == b"\xff\xd8\xff" and len(data) < 3 * side * side:
        return data, ".jpg"
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "jpeg", quality=_QUALITY)
    return out.getvalue(), ".jpg"


def _write_sets(folder: Path, tasks: Sequence[str], kept: dict[str, list[tuple[Row, str]]]) -> None:
    """Write the evaluation sets of `tasks`, for validation and for the test."""
    labels = sorted({row.label for rows in kept.values() for row, _ in rows if row.label})
    texts = sorted({one_text(row.caption) for rows in kept.values() for row, _ in rows})
    for part, prefix in (("validation", VALIDATION), ("test", "")):
        for task in tasks:
            home = folder / TESTS / f"{prefix}{task}"
            home.mkdir(parents=True, exist_ok=True)
            rows = kept[part]
            if task == "labels":
                rows = [(row, name) for row, name in rows if row.label]
                _write_lines(home / CLASSES, labels)
                _write_rows(home / "test.csv", rows, "label", lambda row: row.label)
            elif task == "texts":
                _write_lines(home / TEMPLATES, ["{c}"])
                if len(texts) <= _MOST_TEXTS:  # else the set's own texts are the classes
                    _write_lines(home / CLASSES, texts)
                _write_rows(home / "test.csv", rows, "label", lambda row: one_text(row.caption))
            else:
                _write_rows(home / "test.csv", rows, "caption", lambda row: row.caption)


def one_text(caption: str) -> str:
    """Return a caption as one line, as lists of class names hold it."""
    return " ".join(caption.split())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with write_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _write_rows(
    table: Path, rows: Sequence[tuple[Row, str]], column: str, value: Callable[[Row], str]
) -> None:
    """Write a table of images, which lie in the quickstart's data folder, with one more column."""
    _write_csv(table, ["image", column], ([f"../../{name}", value(row)] for row, name in rows))


def _write_training(table: Path, rows: Sequence[tuple[Row, str]]) -> None:
    lines = ([name, *variants(row.caption, row.name).values()] for row, name in rows)
    _write_csv(table, ["image", *COLUMNS], lines)


def _write_csv(table: Path, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    with write_whole(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(lines)
