"""Train recipes: what a run does, as plain values, checked before anything is loaded.

    recipe = load_recipe("mobileclip-b-datacompdr12m", ["data.source=dr12m", "steps=10000"])

Published settings: MobileCLIP (arXiv 2311.17049), section 5 and appendix; MobileCLIP2
(arXiv 2508.20691), section 5 and appendix. The keys are described in `sections`. No torch is
imported here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from pocketclip import zoo
from pocketclip.errors import ConfigError, UnknownModelError
from pocketclip.formats.fields import kind_of
from pocketclip.formats.recipe_files import read_recipe, recipe_names
from pocketclip.formats.yaml_text import dump_yaml
from pocketclip.train.recipe_settings import (
    apply_by_model,
    parse_settings,
    plain_copy,
    with_field,
)
from pocketclip.train.sections import (
    DEFAULT_WARMUP,
    MAX_SAMPLES,
    MAX_STEPS,
    SECTIONS,
    CheckpointSection,
    DataSection,
    EvaluationSection,
    LoraSection,
    LossSection,
    ModelSection,
    MoESection,
    OptimizerSection,
    ScheduleSection,
    Section,
    caption_kinds,
    not_a_section,
    uses_captions,
)

VOCABULARY = 49_408
"""Number of token ids of the tokenizer, including the two special ones."""


class Recipe(Section):
    """Everything that affects what a run computes."""

    about: str = ""
    """A description, for readers."""
    model: ModelSection
    data: DataSection = DataSection()
    teachers: tuple[str, ...] = ()
    """Live teachers, as `pocketclip reinforce --teacher` takes them, for data without stored
    embeddings (online distillation)."""
    loss: LossSection = LossSection()
    moe: MoESection | None = Field(default=None, validate_default=True)
    """Of a sparse model, with its defaults if it is not set; None for a dense one."""
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Number of optimizer steps of the run."""
    batch_size: int = Field(ge=1, le=MAX_SAMPLES)
    """Samples per step, over all processes together."""
    accumulate: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    """Micro-batches per step and process; the loss is computed over the whole batch."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every random choice."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype to compute in; `auto` is bfloat16 where the device supports it natively."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    compile: bool = False
    """Use `torch.compile`."""
    deterministic: bool = False
    """Use deterministic algorithms only, which are slower: on one GPU, a resumed run then ends with
    the same bits. On CPUs it does anyway."""
    sync_batch_norm: bool = True
    """With several processes: BatchNorm takes its statistics over all of them."""
    channels_last: bool | Literal["auto"] = "auto"
    """Use the channels-last memory format for images and convolutions; `auto` does on CUDA, if the
    image tower is convolutional."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the moving average of the weights; None: no average is kept."""
    max_logit_scale: float = Field(default=100.0, gt=0)
    """The upper limit of the student's logit scale."""
    checkpoint: CheckpointSection = CheckpointSection()
    log_every: int = Field(default=50, ge=1, le=MAX_STEPS)
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

    @field_validator("channels_last", mode="before")
    @classmethod
    def _auto_or_bool(cls, value: Any) -> Any:
        if value not in ("auto", "true", "false", True, False):
            raise ValueError(f"should be auto, true or false, not {value!r}")
        return value

    @field_validator("moe")
    @classmethod
    def _of_sparse_model(cls, value: MoESection | None, info: ValidationInfo) -> MoESection | None:
        model: ModelSection | None = info.data.get("model")
        if model is None:  # it has a problem of its own
            return value
        if not zoo.is_sparse(model.config()):
            if value is None:
                return None
            raise ValueError(
                f"{model.name} as configured is dense, without mixtures of experts; leave `moe` "
                "out, or make the model sparse: model.overrides.image.moe={blocks: [1, 3, 5]}"
            )
        return value or MoESection()

    @model_validator(mode="before")
    @classmethod
    def _short_run(cls, raw: Any) -> Any:
        """Give a run of at most 1,000 steps a warm-up that fits, if the recipe sets none."""
        steps = raw.get("steps") if isinstance(raw, dict) else None
        if not isinstance(steps, int) or steps > DEFAULT_WARMUP:
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
            *_routing_problems(self, model),
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
        yield "teachers: live teachers are used only if the second of loss.weights is above 0"
    if recipe.teachers and data.reinforced:
        yield "teachers: reinforced data stores its teachers' embeddings; use one or the other"
    if captioning != model.is_captioner:
        yield (
            f"loss.kind: {model.name} {'is' if model.is_captioner else 'is not'} a captioner; "
            "`captioning` is for captioners, and captioners need it"
        )
    if captioning and distils:
        yield "loss.weights: a captioner cannot be distilled; the second must be 0"
    if captioning and data.captions in ("both", "random"):
        yield (
            "data.captions: a captioner learns one caption of each image at a time, its own; set "
            "data.captions to truth, synthetic or mix"
        )
    yield from _caption_problems(recipe)
    if loss.weights == (0.0, 0.0) and not (captioning and loss.captioning_weight > 0):
        yield "loss.weights: both are 0, so nothing would be learnt"
    if loss.weights != (0.0, 0.0) and recipe.batch_size < 2:
        yield "batch_size: a contrastive loss compares samples; it must be 2 or more"
    dims, scales = loss.teacher_dims or (), loss.teacher_scales or ()
    if any(dim < 1 for dim in dims):
        yield f"loss.teacher_dims: a dimension must be 1 or more, not {min(dims)}"
    if any(not scale > 0 for scale in scales):
        yield f"loss.teacher_scales: a scale must be above 0, not {min(scales)}"
    weights = loss.teacher_weights or ()
    if weights and (min(weights) < 0 or not any(weights)):
        yield "loss.teacher_weights: weights must be 0 or more, and one of them above 0"
    lists = (dims, scales, loss.teacher_biases or (), weights)
    counts = {len(numbers) for numbers in lists if numbers}
    if distils and len(counts) > 1:
        yield (
            "loss: teacher_dims, teacher_scales, teacher_biases and teacher_weights need one "
            f"number per teacher; they have {' and '.join(map(str, sorted(counts)))}"
        )


def _caption_problems(recipe: Recipe) -> Iterator[str]:
    loss, kinds = recipe.loss, caption_kinds(recipe.data.captions)
    unused = set(kinds) if any(loss.weights) and loss.kind != "captioning" else set()
    for weight, name in zip(loss.weights, ("contrastive", "distill"), strict=True):
        which = getattr(loss, f"{name}_captions")
        used = uses_captions(which, kinds)
        if weight and not any(used):
            yield (
                f"loss.{name}_captions: `data.captions: {recipe.data.captions}` gives no {which} "
                f"captions of their own; set data.captions to both or {which}"
            )
        unused -= {kind for kind, one in zip(kinds, used, strict=True) if weight and one}
    if len(unused) < len(kinds):
        for kind in unused:
            yield (
                f"data.captions: the loss does not use the {kind} caption of a sample; set "
                f"data.captions to {'truth' if kind == 'synthetic' else 'synthetic'}"
            )


def _data_problems(recipe: Recipe) -> Iterator[str]:
    data, evaluation = recipe.data, recipe.evaluation
    if not isinstance(data.source, str) and not all(data.source):
        yield "data.source: one of the sources is empty"
    # Reinforced shards would ignore these: training would use rows that `where` leaves out.
    ignored = ("where", "image_column", "caption_columns", "image_augmentation")
    used = [name for name in ignored if getattr(data, name)]
    if data.reinforced and used:
        yield (
            f"data.{used[0]}: it is for raw pairs (`data.reinforced: false`); reinforced shards "
            "ignore it"
        )
    if evaluation is None:
        return
    if not evaluation.data.strip():
        yield "evaluation.data: give the evaluation data, as `pocketclip eval --data` takes it"
    if any(not task.strip() for task in evaluation.tasks):
        yield "evaluation.tasks: the name of a task is empty"


def _model_problems(recipe: Recipe, model: zoo.ModelConfig) -> Iterator[str]:
    text = model.text
    if text.context_length < 3:
        yield "model.overrides: text.context_length must be 3 or more (start, text, end)"
    if text.vocab_size < VOCABULARY:
        yield f"model.overrides: text.vocab_size must be the tokenizer's, {VOCABULARY:,}, or more"
    for name, tower in (("image", model.image), ("text", text)):
        if not 0 <= tower.drop_path < 1:
            yield (
                f"model.overrides: {name}.drop_path must be at least 0 and below 1, not "
                f"{tower.drop_path}"
            )
    settings = recipe.model
    if settings.lora is not None:
        yield from _lora_problems(settings, settings.lora, model)
    frozen = settings.freeze_image == 0 and settings.freeze_text == 0
    if frozen and not model.is_captioner:
        yield "model.freeze_image: both towers are frozen, so nothing would be learnt"


def _lora_problems(
    settings: ModelSection, lora: LoraSection, model: zoo.ModelConfig
) -> Iterator[str]:
    if model.is_captioner:
        yield f"model.lora: {model.name} is a captioner; low-rank updates are for two towers only"
    if zoo.is_sparse(model):
        yield (
            f"model.lora: {model.name} as configured has mixtures of experts, which low-rank "
            "updates do not adapt; train it in another way (`pocketclip finetune` has other "
            "presets), or adapt the dense model"
        )
    for tower in lora.towers:
        if getattr(settings, f"freeze_{tower}") is not None:
            yield (
                f"model.freeze_{tower}: model.lora adapts the {tower} tower and freezes the rest "
                "of it; leave one of the two out"
            )


def _routing_problems(recipe: Recipe, model: zoo.ModelConfig) -> Iterator[str]:
    for tower, moe in zoo.mixtures(model).items():
        threshold = getattr(recipe.moe, f"global_entropy_{tower}", None)
        if moe is not None and threshold is not None and threshold > math.log(moe.experts):
            yield (
                f"moe.global_entropy_{tower}: {threshold:g} cannot be reached: the entropy of "
                f"{moe.experts} experts is {math.log(moe.experts):.3f} at most"
            )


def _schedule_problems(recipe: Recipe) -> Iterator[str]:
    schedule, steps = recipe.schedule, recipe.steps
    if schedule.warmup >= steps:
        yield (
            f"schedule.warmup: {schedule.warmup} steps of warm-up leave none of {steps} steps at "
            f"the full rate; set schedule.warmup={max(steps // 10, 0)} for instance, or more steps"
        )
    if schedule.constant >= steps:
        yield (
            f"schedule.constant: the rate stays constant for {schedule.constant} steps of "
            f"{steps} and never falls; set fewer, or `schedule.kind: constant`"
        )
    if schedule.min_lr > recipe.optimizer.lr:
        yield (
            f"schedule.min_lr: {schedule.min_lr:g} is above the highest rate, optimizer.lr "
            f"{recipe.optimizer.lr:g}; lower it, or raise optimizer.lr"
        )
    if schedule.min_lr and schedule.kind == "constant":
        yield (
            "schedule.min_lr: with `schedule.kind: constant` the rate never falls, so a lowest "
            "rate does not apply; set schedule.min_lr=0, or `schedule.kind: cosine`"
        )
    if recipe.batch_size % recipe.accumulate:
        yield (
            f"accumulate: a batch of {recipe.batch_size} samples does not divide into "
            f"{recipe.accumulate} micro-batches"
        )


def batch_size_for(samples: int, most: int) -> int:
    """Return a power of 2 from 16 to `most`; an epoch has at least four batches if possible.

    A sample that occurs twice in a batch would be its own negative, and smaller batches have too
    few texts to tell apart.
    """
    size = most
    while size > 16 and 4 * size > samples:
        size //= 2
    return size


def names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return recipe_names("pocketclip.train")


def load_recipe(
    source: str | Path | Mapping[str, Any], settings: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Return a recipe, with `settings` applied last.

    A recipe may hold `by_model`: fields by the name of a model, which apply if that model is the
    one to be trained.

    Args:
        source: the name of a recipe that comes with the package, a YAML file, or the content of
            one.
        settings: `key=value` texts with dotted keys, or values by dotted key.

    Raises:
        ConfigError: there is no such recipe, or a field is unknown, missing or has a bad value.
    """
    raw, where = _read(source)
    changes = parse_settings(settings)
    raw = apply_by_model(raw, changes, where)
    for key, value in changes.items():
        raw = with_field(raw, key, value)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from error
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


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(plain_copy(source)), "recipe"
    return read_recipe(source, "pocketclip.train", example="model:"), str(source)


def _first_problem(error: ValidationError) -> str:
    """Return the first problem, with the nearest field's name if a field is unknown."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        section: Any = SECTIONS.get(".".join(path[:-1]), Recipe)
        known = list(section.model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        message = f"unknown field{hint} (there are {', '.join(known)})"
    elif first["type"] == "model_type":
        message = not_a_section(".".join(path), first["input"])
    elif first["type"] == "string_type":
        message = f"should be text, not {kind_of(first['input'])}; put it in quotes"
    return f"{'.'.join(path)}: {message}" if path else message
