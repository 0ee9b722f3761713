"""Embed replayed images again, and compare with the stored embeddings.

Outdated embeddings, another teacher, a changed image and an augmentation that replays differently
all show as drift.

Shapes: B pairs of a sample and an augmentation, D width, K teachers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.audit.inspect import Problem
from pocketclip.shards.audit.ledger import Drift, Ledger
from pocketclip.shards.jsonl import SUFFIXES as LINES
from pocketclip.shards.reader import name_of, read_shard, sample_of
from pocketclip.shards.tar import groups, members
from pocketclip.shards.writer import ShardStats
from pocketclip.types import Embeddings, Sample

Recompute: TypeAlias = Callable[[list[Sample], list[int]], Embeddings]
"""Maps B samples, and the index of an augmentation of each, to embeddings (B, D)."""
BATCH = 32


def recompute_drift(
    paths: Sequence[str],
    stats: Sequence[ShardStats],
    ledger: Ledger,
    recompute: tuple[int, Recompute],
    teacher_dims: Sequence[int],
    tolerance: float,
    seed: int,
) -> list[Drift]:
    """Compare randomly drawn embeddings, store problems of kind `drift`, and return the figures.

    Drawn samples that have a problem, or neither image nor parameters, are skipped and not
    replaced.

    Raises:
        DataError: the function returns embeddings of another width, or no sample can be replayed.
    """
    count, function = recompute
    totals = np.cumsum([0] + [shard.samples for shard in stats])
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(totals[-1], min(count, int(totals[-1])), replace=False))
    picks = rng.random(len(drawn))  # the augmentation, as a fraction of their number
    rows: list[tuple[str, str, int, int, list[float]]] = []
    batch: list[tuple[str, int, Sample, int]] = []

    def flush() -> None:
        if batch:
            rows.extend(_compare_batch(batch, function, teacher_dims))
            batch.clear()

    for number, path in enumerate(paths):
        inside = (drawn >= totals[number]) & (drawn < totals[number + 1])
        picked = dict(zip((drawn[inside] - totals[number]).tolist(), picks[inside], strict=True))
        bad = {problem.position for problem in ledger.problems_of(name_of(path))}
        for position, sample in _read_at(path, set(picked) - bad):
            stored = sample.embeddings.get("image_emb")
            if stored is None or sample.image is None or not sample.param_aug or not len(stored):
                continue
            choice = int(picked[position] * len(stored))
            batch.append((name_of(path), position, sample, choice))
            if len(batch) == BATCH:
                flush()
    flush()
    return _figures(rows, ledger, tolerance)


def _read_at(path: str, positions: set[int]) -> list[tuple[int, Sample]]:
    if not positions:
        return []
    last, out = max(positions), []
    if path.lower().endswith(LINES):
        for position, sample in enumerate(read_shard(path)):
            if position in positions:
                out.append((position, sample))
            if position == last:
                break
        return out
    with storage.open_read(path) as stream:
        for position, group in enumerate(groups(members(stream, path))):
            if position in positions:
                out.append((position, sample_of(group, path)[0]))
            if position == last:
                break
    return out


def _compare_batch(
    batch: list[tuple[str, int, Sample, int]], function: Recompute, teacher_dims: Sequence[int]
) -> list[tuple[str, str, int, int, list[float]]]:
    samples, indices = [b[2] for b in batch], [b[3] for b in batch]
    stored = np.stack([s.embeddings["image_emb"][k] for s, k in zip(samples, indices, strict=True)])
    computed = np.asarray(function(samples, indices), np.float32)
    if computed.shape != stored.shape:
        raise DataError(
            f"the teachers give embeddings of width {computed.shape[-1]}, the stored ones have "
            f"width {stored.shape[1]}; pass the same teachers in the same order"
        )
    dims = tuple(teacher_dims) or (stored.shape[1],)
    ends = np.cumsum([0, *dims])
    distances = []
    for begin, end in itertools.pairwise(ends):
        a, b = stored[:, begin:end].astype(np.float64), computed[:, begin:end].astype(np.float64)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        distances.append(1 - (a * b).sum(axis=1) / np.maximum(lengths, 1e-12))
    per_row = np.stack(distances, axis=1).tolist()  # (B, K)
    return [
        (file, sample.uid, position, choice, row)
        for (file, position, sample, choice), row in zip(batch, per_row, strict=True)
    ]


def _figures(
    rows: list[tuple[str, str, int, int, list[float]]], ledger: Ledger, tolerance: float
) -> list[Drift]:
    if not rows:
        raise DataError(
            "no embedding could be recomputed: that needs samples with an image, augmentations and "
            "their embeddings (join the images first)"
        )
    distances = np.array([row[-1] for row in rows])
    problems = []
    for file, uid, position, choice, values in rows:
        # Not `>`: NaN counts as drift too.
        far = [k for k, value in enumerate(values) if not value <= tolerance]
        if far:
            figures = ", ".join(f"{values[k]:.4f} for teacher {k}" for k in far)
            reason = f"augmentation {choice} has another embedding: 1 - cosine is {figures}"
            problems.append(Problem("drift", file, uid, reason, position))
    ledger.add(problems)
    return [
        Drift(
            teacher=k,
            compared=len(rows),
            mean=float(distances[:, k].mean()),
            largest=float(distances[:, k].max()),
            uid=rows[int(distances[:, k].argmax())][1],
        )
        for k in range(distances.shape[1])
    ]
