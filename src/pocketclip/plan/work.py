"""The lines of a plan: what a reinforcement and a training store, compute, read and cost.

Every line says what it rests on. A line whose rate is not known has no amount, and the plan lists
what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pocketclip import zoo
from pocketclip.checkpoint.parameters import shapes
from pocketclip.errors import ConfigError
from pocketclip.formats.recipe_files import read_recipe
from pocketclip.plan.rates import Rate, Rates
from pocketclip.plan.sizes import (
    IMAGE_RANGE,
    MAX_WIDTH,
    Sizes,
    measure_dataset,
    measure_recipe,
)
from pocketclip.reinforce import recipe as reinforcing
from pocketclip.reinforce.sampling import Sampling
from pocketclip.train import recipe as training
from pocketclip.train.order import WINDOW
from pocketclip.train.shard_cache import CACHE_BYTES

Topic = Literal["storage", "reinforce", "train", "network", "cost"]
_HOUR = 3600.0
_NOT_KNOWN = "a rate is missing, see above"
_CONTEXT = 77  # tokens of a captioner that is not in the zoo
_OFFSET = 8  # bytes of a sample in a scan file, see `pocketclip.shards.random_access`
_WEIGHT, _MOMENTS = 4, 8  # bytes per parameter: float32, and AdamW's two averages


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """What is planned: one of the two at least."""

    reinforce: reinforcing.Recipe | None = None
    train: training.Recipe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices in any currency; None: lines of cost are left out."""

    gpu_hour: float | None = None
    storage: float | None = None
    """Of a GB for a month."""
    egress: float | None = None
    """Of a GB that is read from the store."""

    def __post_init__(self) -> None:
        for name in ("gpu_hour", "storage", "egress"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"the price {name} must be a finite number from 0, not {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large, and how fast."""

    pairs: int
    shard_size: int = 10_000
    gpus: int = 8
    """GPUs that train together."""
    gpus_per_machine: int = 8
    days: float | None = None
    """The deadline of each of the two; None: numbers of actors are left out."""
    like: str | None = None
    """A reinforced dataset whose bytes per sample are taken; None: those of the recipe."""
    image_bytes: int | None = None
    teacher_dims: tuple[int, ...] | None = None
    """The width of each teacher's embeddings; None: the zoo's."""
    materialised_bytes: int | None = None
    """Bytes of a stored view of `pocketclip materialise`; None: no such copy."""

    def __post_init__(self) -> None:
        if self.days is not None and not 0 < self.days < math.inf:
            raise ConfigError(f"the number of days must be finite and above 0, not {self.days:g}")
        # Samples of these sizes are made, to be measured.
        least, most = IMAGE_RANGE
        if self.image_bytes is not None and not least <= self.image_bytes <= most:
            raise ConfigError(
                f"an image has from {least} to {most:,} bytes, not {self.image_bytes:,}"
            )
        for width in self.teacher_dims or ():
            if not 1 <= width <= MAX_WIDTH:
                raise ConfigError(
                    f"the width of a teacher's embeddings is from 1 to {MAX_WIDTH:,}, not {width:,}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of a plan."""

    topic: Topic
    name: str
    amount: float | None
    """None: a rate is missing."""
    unit: str
    assumption: str
    """What it rests on."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """All lines, and what was not known."""

    pairs: int
    lines: list[Line] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Rates that lines need and that are not known: `KIND:MODEL`."""
    left_out: list[str] = field(default_factory=list)
    """What is not planned at all, and why."""

    def amount(self, name: str) -> float | None:
        """Return the amount of the line of this name; None if it has none, or is not there."""
        return next((line.amount for line in self.lines if line.name == name), None)

    def add(self, topic: Topic, name: str, amount: float | None, unit: str, why: str) -> None:
        """Add a line."""
        self.lines.append(Line(topic=topic, name=name, amount=amount, unit=unit, assumption=why))

    def add_hours(
        self, topic: Topic, name: str, work: float, rates: Rates, kind: str, model: str, why: str
    ) -> float | None:
        """Add a line of GPU hours for `work` units of a rate, and return them."""
        rate = rates.find(kind, model)
        if rate is None:
            wanted = f"{kind}:{model}"
            if wanted not in self.missing:
                self.missing.append(wanted)
            self.add(topic, name, None, "GPU hours", f"{why}; no rate {wanted}")
            return None
        hours = work / rate.per_second / _HOUR
        self.add(topic, name, hours, "GPU hours", f"{why} at {_shown(rate)}")
        return hours


def _shown(rate: Rate) -> str:
    of = f" of {rate.model}" if rate.model else ""
    return f"{rate.per_second:,.5g}/s{of}, {rate.source}"


def load_recipes(
    source: str | Path, *, reinforce: str | None = None, settings: Sequence[str] = ()
) -> Recipes:
    """Return the recipes that a plan is of.

    Args:
        source: a train recipe or a reinforce recipe: a name or a file, which is a train recipe if
            it has `model:`.
        reinforce: with a train recipe: how its data are reinforced. None: the recipe that is named
            as `data.source` is, if there is one.
        settings: changes of a train recipe, `key=value`.

    Raises:
        ConfigError: a recipe is neither, or is not valid.
    """
    names = (reinforcing.names(), training.names())
    text = str(source)
    if text in names[0] and not Path(source).is_file():
        kind = "reinforce"
    elif text in names[1] and not Path(source).is_file():
        kind = "train"
    elif Path(source).is_file():
        fields = read_recipe(source, "pocketclip.train", example="model:")
        kind = "train" if "model" in fields else "reinforce"
    else:
        raise ConfigError(
            f"{text!r} is neither a file nor a recipe (reinforce: {', '.join(names[0])}; train: "
            f"{', '.join(names[1])})"
        )
    if kind == "reinforce":
        if reinforce is not None or settings:
            option = "--reinforce" if reinforce is not None else "--set"
            raise ConfigError(f"{option} goes with a train recipe; {text} is a reinforce recipe")
        return Recipes(reinforce=reinforcing.load_recipe(source))
    recipe = training.load_recipe(source, settings)
    if reinforce is None and recipe.data.reinforced and isinstance(recipe.data.source, str):
        named = recipe.data.source.rstrip("/").rpartition("/")[2].lower()
        reinforce = named if named in names[0] else None
    made = None if reinforce is None else reinforcing.load_recipe(reinforce)
    return Recipes(reinforce=made, train=recipe)


def make_plan(recipes: Recipes, scale: Scale, rates: Rates, prices: Prices | None = None) -> Plan:
    """Return the plan of a reinforcement, a training, or both.

    Raises:
        ConfigError: a teacher's width is not known.
        DataError: `scale.like` holds no shards.
        MissingDependencyError: embeddings are stored in bfloat16, and torch is not installed.
    """
    plan = Plan(pairs=scale.pairs)
    sizes = _sizes(recipes, scale)
    shards = math.ceil(scale.pairs / scale.shard_size)
    if sizes is None:
        plan.left_out.append(
            "storage and network: name the reinforce recipe (--reinforce), or a dataset (--like)"
        )
    else:
        _add_storage(plan, recipes, scale, sizes, shards)
    if recipes.train is not None:
        _add_checkpoints(plan, recipes.train)
    if recipes.reinforce is not None:
        _add_reinforcing(plan, recipes.reinforce, scale, rates)
    elif recipes.train is not None and recipes.train.data.reinforced:
        plan.left_out.append("reinforcement: no --reinforce RECIPE")
    if recipes.train is not None:
        _add_training(plan, recipes.train, scale, rates, sizes, shards)
    _add_costs(plan, prices or Prices())
    return plan


def teacher_models(recipe: reinforcing.Recipe) -> list[str]:
    """Return the zoo's name of each teacher, or the spec itself if it names no model of the zoo."""
    return [_zoo_name(spec) for spec in recipe.teachers]


def _zoo_name(spec: str) -> str:
    for part in spec.split("="):
        name = part.removeprefix("random:").partition(":")[0]
        if zoo.find(name) is not None:
            return zoo.resolve(name)
    return spec


def _sizes(recipes: Recipes, scale: Scale) -> Sizes | None:
    if scale.like is not None:
        return measure_dataset(scale.like)[0]
    recipe = recipes.reinforce
    if recipe is None:
        return None
    models = teacher_models(recipe)
    dims = scale.teacher_dims
    if dims is None:
        unknown = [model for model in models if zoo.find(model) is None]
        if unknown:
            raise ConfigError(
                f"{unknown[0]}: the width of its embeddings is not known without loading it: give "
                "--teacher-dims, one number for each teacher"
            )
        dims = tuple(zoo.entry(model).config.embed_dim for model in models)
    if len(dims) != len(models):
        raise ConfigError(f"--teacher-dims has {len(dims)} numbers for {len(models)} teachers")
    return measure_recipe(recipe, dims, scale.image_bytes)


def _add_storage(plan: Plan, recipes: Recipes, scale: Scale, sizes: Sizes, shards: int) -> None:
    pairs, train = scale.pairs, recipes.train
    for part, count in sizes.parts.items():
        why = f"{count:,.0f} bytes per sample: {sizes.sources[part]}"
        plan.add("storage", part, count * pairs, "bytes", why)
    plan.add("storage", "all shards", sizes.sample * pairs, "bytes",
             f"{sizes.sample:,.0f} bytes per sample; {shards:,} shards of {scale.shard_size:,}, "
             f"each {sizes.sample * scale.shard_size / 1e6:,.0f} MB")  # fmt: skip
    plan.add("storage", "index.json", sizes.index * shards, "bytes",
             f"{sizes.index} bytes per shard, written as the index is")  # fmt: skip
    plan.add("storage", "reports", sizes.report * shards, "bytes",
             f"{shards:,} files of {sizes.report} bytes beside the shards")  # fmt: skip
    if scale.materialised_bytes is not None:
        views = recipes.reinforce.augmentations if recipes.reinforce else 1
        plan.add("storage", "materialised copy", scale.materialised_bytes * views * pairs, "bytes",
                 f"{views} views of {scale.materialised_bytes:,} bytes (--view-bytes)")  # fmt: skip
    if train is not None:
        machines = math.ceil(scale.gpus / scale.gpus_per_machine)
        seen = min(pairs, train.steps * train.batch_size // machines)
        plan.add("storage", "scan files, per machine", float(_OFFSET * seen), "bytes",
                 f"{_OFFSET} bytes per sample that a machine reads, in its temporary folder (all, "
                 "in a long run)")  # fmt: skip
        ranks = min(scale.gpus, scale.gpus_per_machine)
        window = ranks * (WINDOW + scale.shard_size) * sizes.sample
        much = "more than" if window > CACHE_BYTES else "within"
        plan.add("storage", "copies of shards, per machine", window, "bytes",
                 f"for shards in a store: the shards of a window of {WINDOW:,} samples for each of "
                 f"{ranks} ranks; {much} the limit of the cache, {CACHE_BYTES >> 30} GiB"
                 + ("; shards would be fetched several times: keep them on a disk of the machine"
                    if window > CACHE_BYTES else ""))  # fmt: skip


def _add_reinforcing(plan: Plan, recipe: reinforcing.Recipe, scale: Scale, rates: Rates) -> None:
    pairs, hours = scale.pairs, list[float | None]()
    limit = Sampling.from_dict(recipe.sampling).max_length
    for captioner in map(_zoo_name, recipe.captioners):
        known = zoo.find(captioner)
        context = known.config.text.context_length if known is not None else _CONTEXT
        length = context if limit is None else limit
        tokens = pairs * recipe.captions * length
        why = f"{recipe.captions} captions of {length} tokens, the longest possible"
        hours.append(
            plan.add_hours("reinforce", f"captions by {captioner}", tokens, rates,
                           "captioner_tokens", captioner, why)
        )  # fmt: skip
    texts = 1 + recipe.captions * len(recipe.captioners)
    for position, teacher in enumerate(teacher_models(recipe), 1):
        label = f"{teacher} (teacher {position})"
        hours.append(
            plan.add_hours("reinforce", f"views by {label}", pairs * recipe.augmentations, rates,
                           "teacher_views", teacher, f"{recipe.augmentations} views per pair")
        )  # fmt: skip
        hours.append(
            plan.add_hours("reinforce", f"texts by {label}", pairs * texts, rates,
                           "teacher_texts", teacher, f"{texts} captions per pair")
        )  # fmt: skip
    _add_sum(plan, "reinforce", "reinforcement", hours, scale, "actors")


def _add_sum(
    plan: Plan, topic: Topic, name: str, hours: Sequence[float | None], scale: Scale, what: str
) -> None:
    known = [value for value in hours if value is not None]
    total = sum(known) if len(known) == len(hours) else None
    why = "the sum: the GPU is never waited for" if total is not None else _NOT_KNOWN
    plan.add(topic, f"{name}, all", total, "GPU hours", why)
    if scale.days is not None:
        count = None if total is None else float(math.ceil(total / 24 / scale.days))
        plan.add(topic, f"{what} for {scale.days:g} days", count, what,
                 "one GPU each, all day, no failures")  # fmt: skip


def _add_training(
    plan: Plan, recipe: training.Recipe, scale: Scale, rates: Rates, sizes: Sizes | None,
    shards: int,
) -> None:  # fmt: skip
    model = zoo.resolve(recipe.model.name)
    seen = recipe.steps * recipe.batch_size
    epochs = seen / scale.pairs
    plan.add("train", "samples seen", float(seen), "samples",
             f"{recipe.steps:,} steps of {recipe.batch_size:,}: {epochs:,.3g} epochs")  # fmt: skip
    hours = plan.add_hours("train", f"training of {model}", seen, rates, "train_samples", model,
                           f"{seen:,} samples")  # fmt: skip
    _add_sum(plan, "train", "training", [hours], scale, "GPUs")
    days = None if hours is None else hours / scale.gpus / 24
    plan.add("train", f"days on {scale.gpus} GPUs", days, "days",
             "as fast together as alone: no time for communication")  # fmt: skip
    rate = rates.find("train_samples", model)
    speed = None if rate is None else rate.per_second * scale.gpus
    kind = "loader_samples_device" if recipe.data.replay == "device" else "loader_samples"
    loading = rates.find(kind)
    if loading is None:
        plan.missing.append(kind)
    cores = None if speed is None or loading is None else speed / loading.per_second
    why = f"no rate {kind}" if loading is None else f"{_shown(loading)}, per core"
    if speed is None:
        why += f"; no rate train_samples:{model}"
    plan.add("train", f"cores to load for {scale.gpus} GPUs", cores, "cores", why)
    if sizes is None:
        return
    epoch = sizes.sample * scale.pairs
    plan.add("network", "read per epoch", epoch, "bytes",
             f"each rank fetches its {shards:,} / ranks shards whole")  # fmt: skip
    plan.add("network", "read in the run", epoch * epochs, "bytes",
             f"{epochs:,.3g} epochs; copies are not kept from one epoch to the next")  # fmt: skip
    wanted = None if speed is None else speed * sizes.sample
    plan.add("network", f"for {scale.gpus} GPUs", wanted, "bytes/s",
             f"no rate train_samples:{model}" if rate is None or speed is None
             else f"{speed:,.0f} samples/s of {sizes.sample:,.0f} bytes")  # fmt: skip


def _add_checkpoints(plan: Plan, recipe: training.Recipe) -> None:
    count = sum(math.prod(shape) for shape in shapes(recipe.model.config()).values())
    per = _WEIGHT + _MOMENTS + (_WEIGHT if recipe.ema is not None else 0)
    kept = recipe.checkpoint.keep_last + recipe.checkpoint.keep_best
    average = ", average" if recipe.ema is not None else ""
    plan.add("storage", "checkpoints", float(count * per * kept), "bytes",
             f"{kept} kept, of {count / 1e6:,.1f} M parameters and {per} bytes each (weights, two "
             f"moments{average}); the samples do not count")  # fmt: skip


def _add_costs(plan: Plan, prices: Prices) -> None:
    costs = list(_costs(plan, prices))
    for name, amount, why in costs:
        plan.add("cost", name, amount, "", why)
    without = [name for name, price in (("--gpu-price", prices.gpu_hour),
               ("--storage-price", prices.storage), ("--egress-price", prices.egress))
               if price is None]  # fmt: skip
    if without:
        plan.left_out.append(f"cost of {', '.join(without)}: no price is given, and none assumed")


def _costs(plan: Plan, prices: Prices) -> Iterator[tuple[str, float | None, str]]:
    def times(name: str, price: float, per: float, why: str) -> Iterator[Any]:
        if any(line.name == name for line in plan.lines):
            amount = plan.amount(name)
            cost = None if amount is None else amount / per * price
            yield (
                f"cost of {name}",
                cost,
                why if cost is not None else _NOT_KNOWN,
            )

    if prices.gpu_hour is not None:
        for name in ("reinforcement, all", "training, all"):
            yield from times(name, prices.gpu_hour, 1, f"{prices.gpu_hour:g} per GPU hour")
    if prices.storage is not None:
        why = f"{prices.storage:g} per GB and month"
        yield from times("all shards", prices.storage, 1e9, f"one month, {why}")
    if prices.egress is not None:
        why = f"{prices.egress:g} per GB"
        yield from times("read in the run", prices.egress, 1e9, why)
