"""Latency of models: published, and measured on this machine by `benchmarks/encode.py`.

    measured = read_latency("encode.log").of({"small", "mobileclip2-s0"})
    measured.variant, measured.ms["small"]    # "compiled", 12.3

Published and measured times are from different machines and never share an axis.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pocketclip import storage, zoo
from pocketclip.errors import DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.formats.lines import split_lines

DEVICE = "iPhone 12 Pro Max"
"""The device of the published latency."""
TOWERS = ("image", "text")
# The variants whose two towers are both ours, the faster first.
_VARIANTS = ("compiled", "eager")


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds for one image and one text, all measured in the same variant."""

    variant: str
    threads: int
    ms: dict[str, float]
    """By model."""


@dataclass(frozen=True, slots=True)
class LatencyFile:
    """The output of `benchmarks/encode.py`."""

    path: str
    threads: int
    times: dict[tuple[str, str], dict[str, float]]
    """Milliseconds by variant, by model and tower; batch 1."""

    def of(self, models: Iterable[str]) -> Measured:
        """Return the times of those of `models` that were measured, of one variant for all.

        Raises:
            DataError: none of them was measured, or no variant was measured for all of them.
        """
        names = list(dict.fromkeys(models))
        measured = [m for m in names if all((m, tower) in self.times for tower in TOWERS)]
        if not measured:
            available = ", ".join(dict.fromkeys(model for model, _ in self.times)) or "none"
            raise DataError(
                f"{self.path} has no times of both towers at batch 1 for {', '.join(names)}; "
                f"measured there: {available}. Run benchmarks/encode.py on them"
            )
        for variant in _VARIANTS:
            times = {model: self.total(model, variant) for model in measured}
            ms = {model: time for model, time in times.items() if time is not None}
            if len(ms) == len(measured):
                return Measured(variant, self.threads, ms)
        raise DataError(
            f"{self.path}: {', '.join(measured)} were not all measured compiled, or all eager; "
            "run benchmarks/encode.py on all of them"
        )

    def total(self, model: str, variant: str) -> float | None:
        """Return the milliseconds for one image and one text, or None where one is missing."""
        times = [self.times.get((model, tower), {}).get(variant) for tower in TOWERS]
        known = [ms for ms in times if ms is not None]
        return sum(known) if len(known) == len(TOWERS) else None


def published_ms(name: str) -> float | None:
    """Return the published milliseconds for one image and one text, or None."""
    entry = zoo.find(name)
    if entry is None or entry.published is None:
        return None
    return entry.published.image_latency_ms + entry.published.text_latency_ms


def read_latency(path: str | os.PathLike[str]) -> LatencyFile:
    """Read the output of `benchmarks/encode.py`; its last line or the whole file is JSON.

    Raises:
        DataError: invalid content; the message names the line or the row.
        StorageError: the file cannot be read.
    """
    file = os.fspath(path)
    try:
        text = storage.read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start})") from error
    facts = _json(text, file)
    if not isinstance(facts, dict) or not isinstance(facts.get("rows"), list):
        raise DataError(f'{file}: its JSON has no "rows"; pass the output of benchmarks/encode.py')
    threads = facts.get("threads")
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise DataError(f'{file}: "threads" is {threads!r}, not a number')
    times: dict[tuple[str, str], dict[str, float]] = {}
    for number, row in enumerate(facts["rows"], 1):
        where = f"{file} row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("model"), str):
            raise DataError(f'{where} has no "model"')
        if row.get("tower") not in TOWERS:
            raise DataError(f"{where} ({row['model']}): tower is {row.get('tower')!r}")
        if row.get("batch") != 1:
            continue
        entry = zoo.find(row["model"])
        key = (entry.config.name if entry else row["model"], row["tower"])
        if key in times:
            raise DataError(f"{where}: {key[0]} {key[1]} at batch 1 comes twice: remove one")
        times[key] = _times(row.get("ms"), f"{where} ({key[0]} {key[1]})")
    return LatencyFile(file, threads, times)


def _json(text: str, file: str) -> Any:
    lines = split_lines(text.rstrip())
    if not lines:
        raise DataError(f"{file} is empty; pass the output of benchmarks/encode.py")
    try:
        return load_json(lines[-1], what=f"line {len(lines)}", constants=True)
    except ParseError as error:
        last = error
    try:
        return load_json(text, what="it", constants=True)
    except ParseError:
        raise DataError(f"{file}: {last}; pass the output of benchmarks/encode.py") from last


def _times(timings: object, where: str) -> dict[str, float]:
    if not isinstance(timings, dict) or not timings:
        raise DataError(f'{where} has no "ms"')
    for variant, value in timings.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise DataError(f"{where}: {variant} is {value!r}, not a time in milliseconds")
    return {str(variant): float(value) for variant, value in timings.items()}
