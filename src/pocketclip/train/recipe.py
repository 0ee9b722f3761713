"""What a training run does, as plain values: a named recipe or a YAML file, with fields on top.

    recipe = load_recipe("mobileclip-b-datacompdr12m", ["data.source=dr12m", "steps=10000"])

Published settings: MobileCLIP (arXiv 2311.17049), section 5 and appendix; MobileCLIP2
(arXiv 2508.20691), section 5 and appendix. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pocketclip import zoo
from pocketclip.augment import Augmentation
from pocketclip.errors import AugmentationError, ConfigError, ParseError, UnknownModelError
from pocketclip.formats.fields import kind_of
from pocketclip.formats.json_text import MAX_DEPTH
from pocketclip.formats.yaml_text import dump_yaml, load_yaml, read_yaml

_MOST_STEPS = 10**10
_MOST_SAMPLES = 2**24
_MOST_WORKERS = 1024
_DEEPEST_KEY = 8

WARMUP = 1000
_LARGEST = 1e30
VOCABULARY = 49_408
"""The tokenizer's ids, the two special ones included."""


class Section(BaseModel):
    """A section of a recipe. Unknown keys are errors; nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _computable(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and abs(number) > _LARGEST:
                raise ValueError(f"{number:g} is beyond what float32 computes with")
        return value


class ModelSection(Section):
    """Which model is trained, and from where."""

    name: str
    """The model's name in the zoo, see `pocketclip models`."""
    overrides: dict[str, Any] = {}
    """Fields of its configuration to change, for example `{image_size: 96}`; see
    `pocketclip.zoo.override`."""
    init: str | None = None
    """The MODEL whose weights the run starts from; None: random weights."""
    freeze_image: int | None = Field(default=None, ge=0, le=4096)
    """Number of final image-tower blocks to train, plus the head; 0 freezes the whole tower.
    None: the whole tower is trained."""
    freeze_text: int | None = Field(default=None, ge=0, le=4096)
    """The same for the text tower."""
    freeze_batch_norm: bool = False
    """Use BatchNorm's running statistics in training too, and leave them unchanged."""

    @field_validator("overrides")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        if any(not isinstance(key, str) for key in value):
            raise ValueError("the names of overrides are text")
        return value

    def config(self) -> zoo.ModelConfig:
        """Return the model's configuration, the overrides on it.

        Raises:
            UnknownModelError: no such model.
            ConfigError: an override that does not exist or makes no sense.
        """
        return zoo.override(zoo.entry(self.name).config, **self.overrides)


class DataSection(Section):
    """Where the samples come from, and which parts of each are used."""

    source: str | tuple[str, ...] = ()
    """Reinforced shards, or with `reinforced: false` also raw pairs; local or on an object
    store. `--data` sets it."""
    reinforced: bool = True
    """Replay stored augmentations and use stored embeddings."""
    captions: Literal["both", "mix", "truth", "synthetic"] = "both"
    """The captions of each sample: the ground truth and a synthetic one (`both`), one of the two
    at random (`mix`), or only one kind."""
    truth_ratio: float = Field(default=0.5, ge=0, le=1)
    """With `mix`: the probability of the ground truth."""
    caption_pattern: str = ".*"
    """A regular expression that chooses among the keys of synthetic captions."""
    augmentation: Literal["random", "sequential"] = "random"
    """How one of the stored augmentations is chosen: at random, or in turn, epoch by epoch."""
    image_augmentation: dict[str, Any] | None = None
    """With `reinforced: false`: the augmentation to draw anew for each sample."""
    fast: bool = False
    """Scaled JPEG decoding and a faster resize; pixels differ by a few levels."""
    image_column: str | None = None
    """Tables of raw pairs: the column with image paths, URLs or bytes; None: guessed from common
    names."""
    caption_columns: tuple[str, ...] = ()
    """Tables of raw pairs: the first column is the ground truth, the others count as synthetic."""
    where: dict[str, str] = {}
    """Tables of raw pairs: use only rows with these values."""
    workers: int | None = Field(default=None, ge=0, le=_MOST_WORKERS)
    """Number of decoding processes; None: one less than the cores of this process, at least one."""
    cache_dir: str | None = None
    """The folder for local copies of an object store's shards; None:
    `~/.cache/pocketclip/shards`."""

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return _texts(value)

    @field_validator("caption_columns", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("image_augmentation")
    @classmethod
    def _drawable(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            if value is not None:
                Augmentation.from_config(value)
        except AugmentationError as error:
            raise ValueError(str(error)) from error
        return value


class LossSection(Section):
    """The terms and their weights."""

    kind: Literal["clip", "siglip", "captioning"] = "clip"
    """CLIP's softmax loss, SigLIP's sigmoid loss, or CoCa's (contrastive and captioning)."""
    weights: tuple[float, float] = (1.0, 0.0)
    """Weights of the contrastive and the distillation term: (1 - lambda, lambda) in the paper."""
    captioning_weight: float = Field(default=2.0, ge=0)
    """With `captioning`: the weight of the next-token loss."""
    teacher_scales: tuple[float, ...] | None = None
    """The logit scale of each teacher; None: as recorded in the dataset."""
    teacher_dims: tuple[int, ...] | None = None
    """The embedding width of each teacher; None: as recorded in the dataset."""
    teacher_biases: tuple[float, ...] | None = None
    """With `siglip`: the bias added to each teacher's scaled similarities."""
    chunk: int | None = Field(default=None, ge=1, le=_MOST_SAMPLES)
    """Number of rows of the similarity matrix to compute at a time, to save memory; None: all."""

    @field_validator("weights")
    @classmethod
    def _sensible(cls, value: tuple[float, float]) -> tuple[float, float]:
        if min(value) < 0:
            raise ValueError("weights are not negative")
        return value


class OptimizerSection(Section):
    """AdamW (arXiv 1711.05101); norms, biases and scales have no weight decay."""

    lr: float = Field(default=1e-3, gt=0)
    """The highest learning rate."""
    weight_decay: float = Field(default=0.2, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the average of the gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the average of the squared gradients."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the denominator for numerical stability."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """The norm to which the whole gradient is clipped; None: no clipping."""


class ScheduleSection(Section):
    """Linear warm-up, then a constant rate, a cosine to zero, or first the one, then the other."""

    kind: Literal["cosine", "constant"] = "cosine"
    """The shape of the schedule after the warm-up."""
    warmup: int = Field(default=WARMUP, ge=0)
    """Number of warm-up steps. If it is not set and the run has at most 1,000 steps: a tenth of
    the steps."""
    constant: int = Field(default=0, ge=0, le=_MOST_STEPS)
    """With `cosine`: the number of steps, warm-up included, before the rate begins to fall."""


class CheckpointSection(Section):
    """When checkpoints are written, and which are kept."""

    every_steps: int | None = Field(default=1000, ge=1, le=_MOST_STEPS)
    """Steps between checkpoints; None: the number of steps does not matter."""
    every_minutes: float | None = Field(default=30.0, gt=0, le=10**7)
    """Minutes between checkpoints; None: the time does not matter."""
    keep_last: int = Field(default=3, ge=1, le=10**6)
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation score."""


class EvaluationSection(Section):
    """What `pocketclip train` scores at each checkpoint, as `pocketclip eval` takes it."""

    data: str
    """The evaluation set, or the folder of sets; as `--data`."""
    tasks: tuple[str, ...] = ()
    """Names of published tasks in `data`; empty: `data` is one set of your own."""
    label_column: str | None = None
    """Tables: the column of labels."""
    caption_column: str | None = None
    """Tables: the column of captions."""
    where: dict[str, str] = {}
    """Tables: use only rows with these values."""
    templates: tuple[str, ...] = ()
    """Prompts, with `{}` for the class name; empty: those of the set, or `a photo of {}.`."""

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return _texts(value)


def _texts(value: Any) -> Any:
    """Return the values of `where` as they stand in a table: 2020 as text, true in small letters.

    Anything but whole numbers and booleans stays what it is, and is checked as that.
    """
    if not isinstance(value, Mapping):
        return value
    return {key: str(one).lower() if isinstance(one, int) else one for key, one in value.items()}


class Recipe(Section):
    """Everything that decides a run."""

    about: str = ""
    """A description, for readers."""
    model: ModelSection
    data: DataSection = DataSection()
    teachers: tuple[str, ...] = ()
    """Live teachers, as `pocketclip reinforce --teacher` takes them, for data without stored
    embeddings (online distillation)."""
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    steps: int = Field(ge=1, le=_MOST_STEPS)
    """Number of optimizer steps of the run."""
    batch_size: int = Field(ge=1, le=_MOST_SAMPLES)
    """Samples per step, over all processes together."""
    accumulate: int = Field(default=1, ge=1, le=_MOST_SAMPLES)
    """Micro-batches per step and process; the loss is computed over the whole batch."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every random choice."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype to compute in; `auto` is bfloat16 where the device supports it natively."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    compile: bool = False
    """Use `torch.compile`."""
    sync_batch_norm: bool = True
    """With several processes: BatchNorm takes its statistics over all of them."""
    channels_last: bool = False
    """Use the channels-last memory format for images and convolutions."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the moving average of the weights; None: no average is kept."""
    max_logit_scale: float = Field(default=100.0, gt=0)
    """The upper limit of the student's logit scale."""
    checkpoint: CheckpointSection = CheckpointSection()
    log_every: int = Field(default=50, ge=1, le=_MOST_STEPS)
    """Steps between records in `log.jsonl`."""
    tensorboard: bool = True
    """Also write TensorBoard files, if TensorBoard is installed."""
    wandb: str | None = None
    """A Weights & Biases project to report to as well."""
    evaluation: EvaluationSection | None = None

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _short_run(cls, raw: Any) -> Any:
        """Give a short run a warm-up that it has room for, where none is given."""
        steps = raw.get("steps") if isinstance(raw, dict) else None
        if not isinstance(steps, int) or steps > WARMUP:
            return raw
        schedule = raw.get("schedule", {})
        if not isinstance(schedule, dict) or "warmup" in schedule:
            return raw
        return {**raw, "schedule": {**schedule, "warmup": steps // 10}}

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        model = self.model.config()
        for problem in (
            *_loss_problems(self, model),
            *_data_problems(self),
            *_model_problems(self, model),
            *_schedule_problems(self),
        ):
            raise ValueError(problem)
        return self


def _loss_problems(recipe: Recipe, model: zoo.ModelConfig) -> Iterator[str]:
    loss, data = recipe.loss, recipe.data
    distils, captioning = loss.weights[1] > 0, loss.kind == "captioning"
    if distils and not data.reinforced and not recipe.teachers:
        yield "loss.weights: distillation needs `data.reinforced: true` or live `teachers:`"
    if recipe.teachers and not distils:
        yield "teachers: they serve only with a second loss.weights above 0"
    if recipe.teachers and data.reinforced:
        yield "teachers: reinforced data has its teachers stored; give one of both"
    if captioning != model.is_captioner:
        yield (
            f"loss.kind: {model.name} {'is' if model.is_captioner else 'is not'} a captioner; "
            "`captioning` goes with captioners and only with them"
        )
    if captioning and distils:
        yield "loss.weights: a captioner is not distilled; the second must be 0"
    if captioning and data.captions == "both":
        yield (
            "data.captions: a captioner learns one caption of each image at a time; set "
            "data.captions to truth, synthetic or mix"
        )
    if loss.weights == (0.0, 0.0) and not (captioning and loss.captioning_weight > 0):
        yield "loss.weights: both are 0, so nothing would be learnt"
    if loss.weights != (0.0, 0.0) and recipe.batch_size < 2:
        yield "batch_size: samples are compared with each other; it must be 2 or more"
    dims, scales = loss.teacher_dims or (), loss.teacher_scales or ()
    if any(dim < 1 for dim in dims):
        yield f"loss.teacher_dims: a width is 1 or more, not {min(dims)}"
    if any(not scale > 0 for scale in scales):
        yield f"loss.teacher_scales: a scale is above 0, not {min(scales)}"
    counts = {len(given) for given in (dims, scales, loss.teacher_biases or ()) if given}
    if distils and len(counts) > 1:
        yield (
            "loss: teacher_dims, teacher_scales and teacher_biases have one number per teacher; "
            f"they have {' and '.join(map(str, sorted(counts)))}"
        )


def _data_problems(recipe: Recipe) -> Iterator[str]:
    data, evaluation = recipe.data, recipe.evaluation
    if not isinstance(data.source, str) and not all(data.source):
        yield "data.source: one of the sources is empty"
    # Reinforced shards would ignore them: rows that were to be left out would be trained on.
    ignored = ("where", "image_column", "caption_columns", "image_augmentation")
    given = [name for name in ignored if getattr(data, name)]
    if data.reinforced and given:
        yield (
            f"data.{given[0]}: it is for raw pairs (`data.reinforced: false`); reinforced data "
            "have it stored"
        )
    if evaluation is None:
        return
    if not evaluation.data.strip():
        yield "evaluation.data: name the data, as `pocketclip eval --data` takes them"
    if any(not task.strip() for task in evaluation.tasks):
        yield "evaluation.tasks: the name of a task is empty"


def _model_problems(recipe: Recipe, model: zoo.ModelConfig) -> Iterator[str]:
    text = model.text
    if text.context_length < 3:
        yield "model.overrides: text.context_length is 3 or more (start, text, end)"
    if text.vocab_size < VOCABULARY:
        yield f"model.overrides: text.vocab_size is {VOCABULARY:,} or more, the tokenizer's ids"
    for where, part in (("image", model.image), ("text", text)):
        if not 0 <= part.drop_path < 1:
            yield f"model.overrides: {where}.drop_path is from 0 to below 1, not {part.drop_path}"
    frozen = recipe.model.freeze_image == 0 and recipe.model.freeze_text == 0
    if frozen and not model.is_captioner:
        yield "model.freeze_image: both towers are frozen whole, so nothing would be learnt"


def _schedule_problems(recipe: Recipe) -> Iterator[str]:
    schedule, steps = recipe.schedule, recipe.steps
    if schedule.warmup >= steps:
        yield (
            f"schedule.warmup: {schedule.warmup} steps of rising rate leave none of {steps} steps "
            f"to train at it; set schedule.warmup={max(steps // 10, 0)} for instance, or more steps"
        )
    if schedule.constant >= steps:
        yield (
            f"schedule.constant: {schedule.constant} of {steps} steps come before the rate falls; "
            "set fewer, or `schedule.kind: constant`"
        )
    if recipe.batch_size % recipe.accumulate:
        yield (
            f"accumulate: {recipe.batch_size} samples do not divide into {recipe.accumulate} "
            "micro-batches"
        )


def names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("pocketclip.train") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(
    source: str | Path | Mapping[str, Any], settings: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Return a recipe with `settings` on top.

    A recipe may have `by_model`, fields by the name of a model, which apply where that model is
    the one trained; `settings` come last.

    Args:
        source: the name of one that comes with the package, a YAML file, or its content.
        settings: `key=value` with dotted keys, or values by dotted key.

    Raises:
        ConfigError: no such recipe, or a field that is unknown, missing or makes no sense.
    """
    raw, where = _read(source)
    changes = _parsed(settings)
    raw = _of_model(raw, changes, where)
    for key, value in changes.items():
        raw = _with(raw, key, value)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first(error)}") from error
    except (UnknownModelError, ConfigError) as error:
        raise ConfigError(f"{where}: model: {error}") from error


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML, every field spelled out; `load_recipe` reads it."""
    return dump_yaml(recipe.model_dump(mode="json"))


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two recipes differ, by dotted name."""
    first, second = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


def _flat(node: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = value
    return out


def _of_model(raw: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `raw` with the fields of its `by_model` that are for the model that is trained."""
    by_model = raw.pop("by_model", {})
    model = changes.get("model", raw.get("model"))
    if model is not None and not isinstance(model, dict):
        raise ConfigError(f"{where}: model: {_no_fields('model', model)}")
    chosen = changes.get("model.name", (model or {}).get("name", ""))
    if not isinstance(by_model, dict) or any(not isinstance(f, dict) for f in by_model.values()):
        raise ConfigError(f"{where}: by_model holds fields by the name of a model")
    for name, fields in by_model.items():
        if _same_model(str(name), str(chosen)):
            raw = _merged(raw, fields)
    return raw


def _no_fields(section: str, value: Any) -> str:
    first = _fields([section])[0]
    return f"should hold fields such as `{first}:`, not {kind_of(value)}"


def _copied(value: Any, depth: int = 0) -> Any:
    """Return a copy of the containers of `value`, as YAML has them.

    Raises:
        ConfigError: they are nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"the recipe is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {key: _copied(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(one, depth + 1) for one in value]
    return value


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long to be one
        return False


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(_copied(source)), "recipe"
    path, text = Path(source), str(source)
    if not _is_file(path) and text not in names():
        if path.suffix.lower() in (".yaml", ".yml", ".json"):
            raise ConfigError(f"{source}: no such file")
        near = difflib.get_close_matches(text, names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{text!r} is neither a file nor a recipe{hint} (recipes: {', '.join(names())})"
        )
    try:
        if _is_file(path):
            found = read_yaml(path, what=text)
        else:
            named = resources.files("pocketclip.train") / "recipes" / f"{text}.yaml"
            found = load_yaml(named.read_bytes(), what=text)
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from error
    except ParseError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{source} must hold fields such as `model:`, not {kind_of(found)}")
    return found, text


def _parsed(settings: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(settings, Mapping):
        return {_key(key): _copied(value) for key, value in settings.items()}
    out: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r} is not key=value, as in optimizer.lr=1e-3")
        try:
            out[_key(key.strip())] = load_yaml(value, what="its value")
        except ParseError as error:
            raise ConfigError(f"--set {text[:80]!r}: {error}") from error
    return out


def _key(key: Any) -> str:
    if not isinstance(key, str) or (key.count(".") > _DEEPEST_KEY and not key.startswith(_WHOLE)):
        raise ConfigError(f"--set {str(key)[:80]}: this is not the name of a field")
    return key


def _same_model(name: str, chosen: str) -> bool:
    try:
        return zoo.resolve(name) == zoo.resolve(chosen)
    except UnknownModelError:
        return False  # the model's own section says so, better


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        out[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return out


_WHOLE = ("model.overrides", "data.image_augmentation", "data.where", "evaluation.where")


def _with(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return `raw` with the field of a dotted name set; a field's own keys may have dots."""
    for whole in _WHOLE:
        if key.startswith(f"{whole}."):
            first, field = whole.split(".")
            inner = _section(_section(raw, first, key), field, key)
            return _merged(raw, {first: {field: {**inner, key[len(whole) + 1 :]: value}}})
    head, dot, rest = key.partition(".")
    if not dot:
        return {**raw, head: value}
    return {**raw, head: _with(dict(_section(raw, head, key)), rest, value)}


def _section(raw: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    section = raw.get(name)
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"--set {key}: {name} has no fields")
    return section or {}


def _first(error: ValidationError) -> str:
    """Return the first thing that is wrong, with the nearest field where one is unknown."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _fields(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{'.'.join(place)}: unknown field{hint} (there are {', '.join(known)})"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = _no_fields(place[0], first["input"])
    elif first["type"] == "string_type":
        message = f"should be text, not {kind_of(first['input'])}; put it in quotes"
    return f"{'.'.join(place)}: {message}" if place else message


def _fields(place: Sequence[str]) -> list[str]:
    sections = {
        "model": ModelSection,
        "data": DataSection,
        "loss": LossSection,
        "optimizer": OptimizerSection,
        "schedule": ScheduleSection,
        "checkpoint": CheckpointSection,
        "evaluation": EvaluationSection,
    }
    section: Any = sections.get(place[0], Recipe) if place else Recipe
    return list(section.model_fields)
