"""The user's own pairs before a photograph is read: texts, labels, and which are held out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pocketclip.errors import DataError, count_of
from pocketclip.evaluate.classes import whole_number
from pocketclip.evaluate.datasets.labelled_images import check_classes
from pocketclip.pairs import PairOptions, PairShard
from pocketclip.pairs.base import Draft
from pocketclip.pairs.split import hold_out
from pocketclip.types import Bad, Pair

MIN_PAIRS = 40
_SHARE, _SMALL, _SHARE_OF_SMALL = 0.1, 500, 0.15
"""The share of pairs in each of validation and test; sets below `_SMALL` need a larger one."""
_MOST_HELD_OUT = 1000
"""Pairs in each of validation and test: the standard error of a share is then below 1.6 %."""
_MOST_ABOVE = 1.5
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a pair before its image is read."""

    name: str
    caption: str
    label: str
    """Empty: none, or the photograph has several."""


def with_labels(options: PairOptions, label_column: str | None) -> PairOptions:
    """Return options that keep the label column as metadata."""
    if label_column is None:
        return options
    return replace(options, meta_columns=(*options.meta_columns, label_column))


@dataclass(frozen=True, slots=True)
class Listed:
    """The pairs by what is known before their photographs are read."""

    rows: list[Row]
    parts: dict[str, str]
    """The part of each photograph, by its name: train, validation or test."""
    tasks: list[str]
    """Names of the evaluation sets; the first one decides."""
    bad: list[str]
    """Pairs that cannot be used, with the reasons."""
    several_labels: int = 0
    """Photographs that are listed with different labels: they are learnt from, not scored."""


def list_pairs(shards: Sequence[PairShard], label_column: str | None) -> Listed:
    """Return the pairs and their split, and refuse what nothing can be learnt from.

    Raises:
        DataError: too few pairs, or labels that are refused.
    """
    bad: list[str] = []
    rows = list(_rows(shards, label_column, bad))
    if len(rows) < MIN_PAIRS:
        raise too_few(len(rows), bad)
    if len({row.caption for row in rows}) < 2:
        raise DataError(
            f"all {len(rows):,} pairs have the same text, {rows[0].caption[:60]!r}: nothing can be "
            "learnt from it; choose another --caption-column"
        )
    known = _known_labels(rows)
    several = {name for name, labels in known.items() if len(labels) > 1}
    rows = [replace(row, label=_only(known[row.name])) for row in rows]
    if label_column is not None and several and len({row.label for row in rows} - {""}) < 2:
        raise DataError(
            f"{count_of(len(several), 'photograph')} of {len({row.name for row in rows}):,} are "
            f"listed with different labels in column {label_column!r}, such as {min(several)}, so "
            "no label is known: choose another --label-column, or omit it"
        )
    if label_column is not None:
        _check_labels(label_column, Counter(row.label for row in rows if row.label))
    parts = split_parts(rows)
    tasks = _tasks(rows, label_column)
    held_out = {
        part: [row for row in rows if parts[row.name] == part] for part in ("validation", "test")
    }
    check_held_out(tasks, held_out, label_column)
    return Listed(rows, parts, tasks, bad, len(several))


def _known_labels(rows: Sequence[Row]) -> dict[str, set[str]]:
    """Return the labels of each photograph by its name."""
    known: dict[str, set[str]] = {}
    for row in rows:
        known.setdefault(row.name, set()).update({row.label} - {""})
    return known


def _only(labels: set[str]) -> str:
    return next(iter(labels)) if len(labels) == 1 else ""


def too_few(count: int, bad: Sequence[str]) -> DataError:
    """Return the error of a set with too few pairs."""
    example = f"; the first unreadable one: {bad[0]}" if bad else ""
    return DataError(
        f"{count_of(count, 'pair')} could be read, and a quickstart needs {MIN_PAIRS}{example}"
    )


def _check_labels(column: str, labels: Counter[str]) -> None:
    check_classes(f"column {column!r}", list(labels), list(labels.values()))
    if all(whole_number(label) is not None for label in labels):
        raise DataError(
            f"the labels in column {column!r} are numbers: give a column of names, which prompts "
            "can be made of, with --label-column"
        )


def _rows(shards: Sequence[PairShard], label_column: str | None, bad: list[str]) -> Iterator[Row]:
    """Yield what is known of each pair; pairs without texts or names of images go to `bad`."""
    for shard in shards:
        for item in shard.drafts():
            if isinstance(item, Bad):
                bad.append(f"{item.uid}: {item.reason}")
                continue
            pair = item.pair if isinstance(item, Draft) else item
            label = pair.meta.get(label_column) if label_column is not None else None
            text = "" if label is None else str(label).strip()
            yield Row(name_of(shard, pair), pair.captions["text"][0], text)


def name_of(shard: PairShard, pair: Pair) -> str:
    """Return the name of a pair's photograph, which decides the part that it belongs to."""
    # Rows of one photograph have one name: it is either learnt from or held out.
    return str(pair.meta.get("filepath") or f"{shard.name}/{pair.uid}")


def name_sides(rows: Sequence[Row]) -> bool:
    """Return whether texts say left or right, so that a mirrored photograph contradicts them."""
    return sum(bool(_SIDES.search(row.caption)) for row in rows) > len(rows) / 100


_NAMED = 0.05
"""A label is named by its texts if this share of them holds its words."""


def unnamed_labels(rows: Sequence[Row]) -> list[str]:
    """Return the labels whose words the texts of their own photographs hardly ever hold.

    A student that learns from the texts alone cannot know these words.
    """
    count: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for row in rows:
        if row.label:
            text = row.caption.casefold()
            words = re.findall(r"\w+", row.label.casefold())
            count[row.label] += 1
            named[row.label] += all(_stem(word) in text for word in words)
    return sorted(label for label, all_ in count.items() if named[label] < _NAMED * all_)


def _stem(word: str) -> str:
    """Return a word without an s at its end, so that a plural finds its singular."""
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _tasks(rows: Sequence[Row], label_column: str | None) -> list[str]:
    """Return the names of the evaluation sets; the first one decides."""
    distinct = len({row.caption for row in rows})
    partners = "texts" if 2 <= distinct <= len(rows) / 2 else "retrieval"
    return [partners] if label_column is None else ["labels", partners]


def split_parts(rows: Sequence[Row]) -> dict[str, str]:
    """Return each photograph's part by its name: train, validation or test."""
    labels: dict[str, str] = {}
    for row in rows:
        labels.setdefault(row.name, row.label)
    names = list(labels)
    parts = dict.fromkeys(names, "train")
    wanted = _SHARE if len(names) >= _SMALL else _SHARE_OF_SMALL
    count = min(wanted * len(names), _MOST_HELD_OUT)
    for purpose in ("test", "validation"):
        left = [name for name in names if parts[name] == "train"]
        found = _held_out(left, [labels[name] for name in left], count, purpose)
        parts |= dict.fromkeys(found, purpose)
    return parts


def _held_out(names: Sequence[str], labels: Sequence[str], count: float, purpose: str) -> list[str]:
    """Return about `count` names to hold out, in proportion to the labels."""
    chosen = hold_out(names, labels, share=count / len(names), purpose=purpose)
    found = [name for name, out in zip(names, chosen, strict=True) if out]
    # One of each label at least: of many rare labels that would be a large part of all.
    if len(found) > _MOST_ABOVE * count:
        some = hold_out(found, share=count / len(found), purpose=purpose)
        found = [name for name, out in zip(found, some, strict=True) if out]
    return found


def check_held_out(
    tasks: Sequence[str], held_out: Mapping[str, Sequence[Row]], label_column: str | None
) -> None:
    """Refuse sets that could not tell students apart."""
    for rows in held_out.values():
        if "labels" in tasks and len({row.label for row in rows if row.label}) < 2:
            raise DataError(
                f"almost every label in {label_column!r} has a single photograph, so none can be "
                "held out: choose another --label-column, or omit it"
            )
        if len(rows) < 2:
            raise DataError("too few photographs could be read to hold some out: give more pairs")
