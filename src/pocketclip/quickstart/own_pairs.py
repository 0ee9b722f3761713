"""The user's own pairs, copied into the quickstart's layout: a table and evaluation sets.

The held-out pairs depend only on their names, so every run holds out the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketclip.errors import DataError
from pocketclip.pairs import PairOptions, PairShard
from pocketclip.quickstart.collection import PAIRS, TESTS, read_rows, write_table
from pocketclip.types import Bad

_MIN_PAIRS = 40
_HELD_OUT = 10
"""One in `_HELD_OUT` pairs is held out for evaluation."""


def with_labels(options: PairOptions, label_column: str | None) -> PairOptions:
    """Return options that keep the label column as metadata."""
    if label_column is None:
        return options
    return replace(options, meta_columns=(*options.meta_columns, label_column))


def copy_pairs(
    folder: Path,
    shards: Sequence[PairShard],
    label_column: str | None,
    advance: Callable[[int, int], None],
) -> dict[str, Any]:
    """Copy the readable pairs into `folder`, some as evaluation sets; return their numbers.

    Args:
        folder: gets `pairs.csv`, `tests/retrieval` and, with labels, `tests/labels`.
        shards: the user's pairs.
        label_column: a column with class names.
        advance: called with the numbers of copied pairs and of pairs in all.

    Raises:
        DataError: too few readable pairs.
    """
    bad: list[str] = []
    labels: list[str] = []
    counts = {"train": 0, "held_out": 0}
    total = sum(shard.size or 0 for shard in shards)

    def rows(held_out: bool) -> Iterator[tuple[bytes, dict[str, str]]]:
        for number, shard in enumerate(shards):
            for pair in shard:
                if isinstance(pair, Bad):
                    if not held_out:
                        bad.append(f"{pair.uid}: {pair.reason}")
                    continue
                digest = hashlib.sha256(f"{number} {pair.uid}".encode()).digest()
                if (digest[0] % _HELD_OUT == 0) != held_out or pair.image is None:
                    continue
                fields = {"caption": pair.captions["text"][0]}
                if label_column is not None and held_out:
                    labels.append(str(pair.meta.get(label_column) or ""))
                counts["held_out" if held_out else "train"] += 1
                yield pair.image, fields

    done = 0

    def count(copied: int) -> None:
        nonlocal done
        done += copied
        advance(done, max(total, done))

    test = folder / TESTS / "retrieval" / "test.csv"
    write_table(test, rows(True), count)
    if label_column is not None:
        _labelled(test, labels, folder / TESTS / "labels" / "test.csv", label_column)
    write_table(folder / PAIRS, rows(False), count)
    if counts["train"] < _MIN_PAIRS or counts["held_out"] < 2:
        example = f"; the first unreadable one: {bad[0]}" if bad else ""
        raise DataError(
            f"{counts['train'] + counts['held_out']} pairs could be read, and a quickstart needs "
            f"about {_MIN_PAIRS + 10}{example}"
        )
    return {**counts, "unreadable": len(bad), "reasons": bad[:10]}


def _labelled(source: Path, labels: Sequence[str], target: Path, label_column: str) -> None:
    """Write the held-out pairs with a label as a zero-shot classification set."""
    rows = [(r, label) for r, label in zip(read_rows(source), labels, strict=True) if label]
    if len({label for _, label in rows}) < 2:
        raise DataError(
            f"the held-out pairs have fewer than two labels in {label_column!r}: choose another "
            "--label-column, or omit it"
        )
    images = ((source.parent / row["image"]).read_bytes() for row, _ in rows)
    write_table(
        target, ((data, {"label": label}) for data, (_, label) in zip(images, rows, strict=True))
    )
