"""Rates of a GPU and of a CPU core: read from files, or said by the user; none is invented.

A file is the JSON of `benchmarks/gpu.py`, or this:

    {"rates": [{"kind": "teacher_views", "model": "vit-l14", "per_second": 2400,
                "source": "where the number comes from"}]}

A rate of a model holds for models of the same shapes too, biases and positions apart: that of
`vit-l14` for `vit-l14-quickgelu`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip import zoo
from pocketclip.checkpoint.parameters import shapes
from pocketclip.errors import ConfigError, ParseError
from pocketclip.formats.fields import field, items
from pocketclip.formats.json_text import read_json
from pocketclip.plan.numbers import parse_number

KINDS = {
    "teacher_views": "views that one GPU embeds per second, of a teacher",
    "teacher_texts": "captions that one GPU embeds per second, of a teacher",
    "captioner_tokens": "tokens that one GPU writes per second, of a captioner",
    "train_samples": "samples that one GPU trains on per second, of a student",
    "loader_samples": "samples that one CPU core prepares per second, with `data.replay: exact`",
    "loader_samples_device": "the same with `data.replay: device`",
}
"""What a rate is of."""
_OF_CORES = ("loader_samples", "loader_samples_device")
ASSUMED = "assumed (--rate)"
"""The source of `parse_rate`'s rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How much is done per second."""

    kind: str
    """One of `KINDS`."""
    model: str
    """The zoo's name; empty for a CPU core's rates, which are of no model."""
    per_second: float
    source: str
    """Where it comes from, for the plan's lines."""


class Rates:
    """The rates that are known."""

    def __init__(self, known: Sequence[Rate] = ()) -> None:
        self.known = list(known)
        self._used: set[Rate] = set()

    def find(self, kind: str, model: str = "") -> Rate | None:
        """Return the rate of a model, or else of one with the same shapes; None if none is known.

        Of several, the first counts.
        """
        rate = self._find(kind, model)
        if rate is not None:
            self._used.add(rate)
        return rate

    def unused(self) -> list[Rate]:
        """Return the rates of `parse_rate` that nothing asked for; a file may have more."""
        return [one for one in self.known if one.source == ASSUMED and one not in self._used]

    def _find(self, kind: str, model: str) -> Rate | None:
        own = [rate for rate in self.known if rate.kind == kind]
        for rate in own:
            if rate.model == model:
                return rate
        config = zoo.find(model) if model else None
        for rate in own if config is not None else ():
            other = zoo.find(rate.model)
            if config is not None and other is not None and _same(config.config, other.config):
                return rate
        return None


def _same(one: zoo.ModelConfig, other: zoo.ModelConfig) -> bool:
    return one.image_size == other.image_size and _matrices(one) == _matrices(other)


def _matrices(config: zoo.ModelConfig) -> list[tuple[int, ...]]:
    """Return the shapes that decide the time: neither biases nor positions, in no order."""
    left_out = ("bias", "position", "positions")
    found = shapes(config).items()
    return sorted(shape for name, shape in found if name.rpartition(".")[2] not in left_out)


def parse_rate(text: str) -> Rate:
    """Return the rate of `KIND=NUMBER` or `KIND:MODEL=NUMBER`; its source says it was assumed.

    Raises:
        ConfigError: it is not written so, or there is no such kind.
    """
    name, equals, number = text.partition("=")
    kind, _, model = name.partition(":")
    if not equals:
        raise ConfigError(f"--rate {text!r}: write KIND:MODEL=NUMBER, teacher_views:vit-l14=2400")
    _check_kind(kind, f"--rate {name}")
    return _rate(kind, model, parse_number(number, f"--rate {name}"), ASSUMED, f"--rate {name}")


def read_rates(path: str | Path) -> list[Rate]:
    """Return the rates of a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        raw = read_json(path)
        if isinstance(raw, dict) and raw.get("benchmark") == "gpu":
            return list(_of_benchmark(raw, str(path)))
        return [
            _rate(
                field(one, "kind", str, what=what), field(one, "model", str, what=what, default=""),
                field(one, "per_second", float, what=what),
                f"{path}: {field(one, 'source', str, what=what)}", what,
            )
            for number, one in enumerate(items(raw, "rates", dict, what=str(path)))
            for what in [f"{path}: rate {number}"]
        ]  # fmt: skip
    except ParseError as error:
        raise ConfigError(
            f"{error}; --rates takes the JSON of benchmarks/gpu.py, or "
            '{"rates": [{"kind": ..., "model": ..., "per_second": ..., "source": ...}]}'
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _check_kind(kind: str, what: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"{what}: unknown kind {kind!r} (kinds: {', '.join(KINDS)})")


def _rate(kind: str, model: str, per_second: float, source: str, what: str) -> Rate:
    _check_kind(kind, what)
    if bool(model) == (kind in _OF_CORES):
        needs = "is of a CPU core, of no model" if model else f"needs a model, as in {kind}:MODEL"
        raise ConfigError(f"{what}: {kind} {needs}")
    if not per_second > 0:
        raise ConfigError(f"{what}: a rate must be above 0, not {per_second:g}")
    return Rate(kind=kind, model=model, per_second=per_second, source=source)


def _of_benchmark(raw: dict[str, Any], path: str) -> Iterator[Rate]:
    """Yield the rates in the rows of `benchmarks/gpu.py`; compiled training comes first."""
    device = field(raw, "device", str, what=path)
    rows = field(raw, "rows", dict, what=path)
    for name in sorted(rows, key=lambda name: (not name.endswith("/compiled"), name)):
        row = rows[name]
        if not isinstance(row, dict) or "skipped" in row or "failed" in row:
            continue
        what = f"{path}: {name}"
        for kind, model, number in _of_row(name, row, what):
            if number is not None:
                yield _rate(kind, model, number, f"measured: {device}, {name} ({path})", what)


def _of_row(name: str, row: dict[str, Any], what: str) -> Iterator[tuple[str, str, float | None]]:
    kind = name.partition("/")[0]
    if kind == "train":
        yield "train_samples", field(row, "model", str, what=what), _speed(row, "reinforced", what)
    elif kind == "inference" and items(row, "batches", dict, what=what):
        last = row["batches"][-1]
        yield "teacher_texts", field(row, "model", str, what=what), _speed(last, "text", what)
    elif kind == "teacher":
        model = field(row, "teacher", str, what=what).removeprefix("random:")
        yield "teacher_views", model, _speed(row, "teacher", what)
    elif kind == "captioner":
        model = field(row, "captioner", str, what=what)
        yield "captioner_tokens", model, _speed(row, "captioner", what)
    elif kind == "feed":
        exact = name == "feed/exact"
        number = field(row, "loader_samples_per_s_and_core", float, what=what)
        yield "loader_samples" if exact else "loader_samples_device", "", number


def _speed(row: dict[str, Any], variant: str, what: str) -> float | None:
    variants = field(row, "variants", dict, what=what)
    if variant not in variants:
        return None
    return field(variants[variant], "samples_per_s", float, what=f"{what}: {variant}")


def describe_missing(missing: Sequence[str]) -> str:
    """Return what to do about the names of missing rates, as one sentence."""
    example = json.dumps(f"{missing[0]}=NUMBER")
    return f"not known: {', '.join(missing)}; give --rates FILE or --rate {example}"
