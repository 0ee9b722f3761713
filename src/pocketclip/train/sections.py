"""The sections of a train recipe: every key with its type, its limits, its default and its meaning.

The reference page of recipes is made from the texts below the keys. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pocketclip import zoo
from pocketclip.augment import Augmentation
from pocketclip.errors import AugmentationError
from pocketclip.formats.fields import kind_of

MAX_STEPS = 10**10
MAX_SAMPLES = 2**24
MAX_BLOCKS = 4096
MAX_SIDE = 2**16
_MAX_WORKERS = 1024
_MAX_NUMBER = 1e30
DEFAULT_WARMUP = 1000


CaptionChoice = Literal["both", "mix", "truth", "synthetic", "random"]
"""The values of `data.captions`."""
CaptionKind = Literal["truth", "synthetic", "mix", "random"]
"""What one caption of a sample is."""
ReplayMode = Literal["exact", "fast", "device"]
"""The values of `data.replay`."""


class Section(BaseModel):
    """A section of a recipe. Unknown keys are errors; values are read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _computable(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and abs(number) > _MAX_NUMBER:
                raise ValueError(f"{number:g} is too large to compute with in float32")
        return value


class LoraSection(Section):
    """Train low-rank updates (LoRA, arXiv 2106.09685) of linear layers and 1x1 convolutions only.

    All other weights of both towers are frozen, with their BatchNorm statistics. Saved and scored
    models hold the merged weights.
    """

    rank: int = Field(default=8, ge=1, le=MAX_BLOCKS)
    """The rank of each update; a layer with fewer channels has their number."""
    alpha: float = Field(default=16.0, gt=0)
    """The updates are multiplied by `alpha / rank`."""
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    """The towers that are adapted. The other one is frozen, or trained in part as its
    `model.freeze_image` or `model.freeze_text` says."""

    @field_validator("towers", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("towers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("should name `image`, `text` or both, each once")
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
    freeze_image: int | Literal["head"] | None = None
    """Number of final image-tower blocks to train, plus what follows them; `head` trains only the
    final projection; 0 freezes the whole tower. None: the whole tower is trained."""
    freeze_text: int | Literal["head"] | None = None
    """The same for the text tower."""
    freeze_batch_norm: bool = False
    """Use BatchNorm's running statistics in training too, and leave them unchanged."""
    lora: LoraSection | None = None

    @field_validator("freeze_image", "freeze_text", mode="before")
    @classmethod
    def _blocks_or_head(cls, value: Any) -> Any:
        blocks = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BLOCKS
        if value is None or value == "head" or blocks:
            return value
        raise ValueError(
            f"should be a number of blocks from 0 to {MAX_BLOCKS:,}, or `head`, not {value!r}"
        )

    @field_validator("overrides")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        if any(not isinstance(key, str) for key in value):
            raise ValueError("the names of overrides must be text")
        return value

    def config(self) -> zoo.ModelConfig:
        """Return the model's configuration with the overrides applied.

        Raises:
            UnknownModelError: there is no such model.
            ConfigError: an override does not exist or has a bad value.
        """
        return zoo.override(zoo.entry(self.name).config, **self.overrides)


class DataSection(Section):
    """Where the training samples come from, and which captions and views of each are used."""

    source: str | tuple[str, ...] = ()
    """Reinforced shards, or with `reinforced: false` also raw pairs; local, on an object
    store or on the hub (`hf://datasets/OWNER/NAME`). `--data` sets it."""
    reinforced: bool = True
    """Replay stored augmentations and use stored embeddings."""
    captions: CaptionChoice = "both"
    """The captions of each sample: the ground truth and a synthetic one (`both`), one of the two
    at random (`mix`), or only one kind. `random` is for ablations: a synthetic caption of another
    sample, with its stored embeddings."""
    truth_ratio: float = Field(default=0.5, ge=0, le=1)
    """With `mix`: the probability of the ground truth."""
    caption_pattern: str = ".*"
    """A regular expression that chooses among the keys of synthetic captions."""
    augmentation: Literal["random", "sequential"] = "random"
    """How one of the stored augmentations is chosen: at random, or in turn, epoch by epoch."""
    image_augmentation: dict[str, Any] | None = None
    """With `reinforced: false`: the augmentation to draw anew for each sample."""
    min_image_side: int = Field(default=0, ge=0, le=MAX_SIDE)
    """Leave out images whose shorter side, as stored, has fewer pixels; others of the data replace
    them, and the log counts them. 0: use all. Those left out are not decoded."""
    balance: float = Field(default=0.0, ge=0, le=1)
    """Draw rare classes more often; a class is the samples with one first ground-truth caption. Its
    weight is its number of samples to the power of 1 - `balance`: 0 leaves the frequencies as they
    are, 1 draws all classes equally often. All captions are read first; local data only."""
    replay: ReplayMode = "exact"
    """How augmentations become pixels. `exact`: the workers make the bytes that the teachers saw.
    `fast`: with scaled JPEG decoding and a faster resize; pixels differ by a few levels. `device`:
    the workers only decode and crop, the device does the rest for a whole batch, to the same bytes
    except where a crop has more than twice the student's side. It cannot change on resume."""
    fast: bool = Field(default=False, exclude=True)
    """An earlier name of `replay: fast`."""
    image_column: str | None = None
    """Tables of raw pairs: the column with image paths, URLs or bytes; None: guessed from common
    names."""
    caption_columns: tuple[str, ...] = ()
    """Tables of raw pairs: the first column is the ground truth, the others count as synthetic."""
    where: dict[str, str] = {}
    """Tables of raw pairs: use only rows with these values."""
    workers: int | None = Field(default=None, ge=0, le=_MAX_WORKERS)
    """Number of decoding processes; None: one less than the cores of this process, at least one."""
    cache_dir: str | None = None
    """The folder for local copies of an object store's shards; None:
    `~/.cache/pocketclip/shards`."""

    @model_validator(mode="before")
    @classmethod
    def _fast_is_a_replay(cls, raw: Any) -> Any:
        """Set `fast` and `replay` together if only one is given."""
        if not isinstance(raw, dict) or {"fast", "replay"} <= raw.keys():
            return raw
        if raw.get("fast") is True:
            return {**raw, "replay": "fast"}
        return {**raw, "fast": True} if raw.get("replay") == "fast" else raw

    @model_validator(mode="after")
    def _one_replay(self) -> DataSection:
        if self.fast != (self.replay == "fast"):
            raise ValueError(
                f"`fast` is an earlier name of `replay: fast`: it is {str(self.fast).lower()}, and "
                f"replay is {self.replay}; leave `fast` out"
            )
        return self

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
    """The logit scale of each teacher; None: as recorded in the dataset, else the best published
    one of this teacher (`pocketclip.zoo.teacher_logit_scale`). The log says which are used."""
    teacher_dims: tuple[int, ...] | None = None
    """The embedding width of each teacher; None: as recorded in the dataset."""
    teacher_biases: tuple[float, ...] | None = None
    """With `siglip`: the bias added to each teacher's scaled similarities."""
    teacher_weights: tuple[float, ...] | None = None
    """The weight of each teacher in the mixture that the student learns; they are divided by their
    sum, and a teacher of weight 0 is left out. None: all are equal."""
    same_text: Literal["negative", "positive"] = "negative"
    """What an image and the equal caption of another image are to each other in the contrastive
    term: a negative, as in CLIP, or another positive (UniCL, arXiv 2204.03610). Captions are equal
    if their tokens are. CLIP's loss is the same either way where equal captions have equal
    embeddings, that is without drop path in the text tower; SigLIP's differs."""
    contrastive_captions: Literal["all", "truth", "synthetic"] = "all"
    """The captions that the contrastive term uses, of those that `data.captions` chooses."""
    distill_captions: Literal["all", "truth", "synthetic"] = "all"
    """The captions that the distillation term uses; the others need no stored embeddings."""
    chunk: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    """Number of rows of the similarity matrix to compute at a time, to save memory; None: all."""

    @field_validator("weights")
    @classmethod
    def _sensible(cls, value: tuple[float, float]) -> tuple[float, float]:
        if min(value) < 0:
            raise ValueError("weights must not be negative")
        return value


class MoESection(Section):
    """How the mixtures of experts of a sparse model are trained, see `pocketclip.nn.moe`.

    Sparse models have this section, with these defaults where it is left out; dense ones cannot. A
    mixture whose router is frozen has neither capacity, noise nor losses. The losses are means over
    the mixtures of a tower, and the towers' are added. The defaults are ours: those of CLIP-UP
    (arXiv 2502.00965) could not be read; public code for mixtures of experts uses similar ones.
    """

    capacity_factor: float | None = Field(default=2.0, gt=0)
    """The room of an expert: this many times the tokens that it would get if all experts were
    chosen equally often, in each process and micro-batch. Tokens without room pass by the mixture.
    None: there is room for all (dropless), as always in evaluation."""
    noise: float = Field(default=0.0, ge=0)
    """The standard deviation of the noise that is added to the router's logits. LIMoE (arXiv
    2206.02770) uses 1 / the number of experts, which is 0.125 for 8."""
    balance_weight: float = Field(default=0.01, ge=0)
    """The weight of the load-balance loss (Switch Transformer, arXiv 2101.03961), which is 1 where
    all experts are used equally. All K choices of a token count, padding of texts does not."""
    z_weight: float = Field(default=0.001, ge=0)
    """The weight of the router z-loss (ST-MoE, arXiv 2202.08906), which keeps logits small."""
    local_entropy_weight: float = Field(default=0.0, ge=0)
    """The weight of LIMoE's local entropy loss: the entropy of each token's probabilities."""
    global_entropy_weight: float = Field(default=0.0, ge=0)
    """The weight of LIMoE's global entropy loss: how far the entropy of the mean probabilities is
    below `global_entropy_image` or `global_entropy_text`."""
    global_entropy_image: float | None = Field(default=None, ge=0)
    """The threshold of image towers, in nats; ln(n) asks that at least n experts be used. None:
    0.864 ln(E) of E experts, which is LIMoE's ln(20) for its 32; the scaling is ours."""
    global_entropy_text: float | None = Field(default=None, ge=0)
    """The same of text towers. None: 0.634 ln(E), which is LIMoE's ln(9) for its 32."""


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
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate's factor from each block of a tower to the one before it (BEiT, arXiv
    2106.08254): heads have the whole rate, stem and embeddings the lowest. 1: one rate for all."""


class ScheduleSection(Section):
    """Linear warm-up, then a constant rate, a falling cosine, or first the one, then the other."""

    kind: Literal["cosine", "constant"] = "cosine"
    """The shape of the schedule after the warm-up."""
    warmup: int = Field(default=DEFAULT_WARMUP, ge=0)
    """Number of warm-up steps. If it is not set and the run has at most 1,000 steps: a tenth of
    the steps."""
    constant: int = Field(default=0, ge=0, le=MAX_STEPS)
    """With `cosine`: the number of steps, warm-up included, before the rate begins to fall."""
    min_lr: float = Field(default=0.0, ge=0)
    """With `cosine`: the rate that it falls to. The warm-up begins at zero regardless."""


class CheckpointSection(Section):
    """When checkpoints are written, and which are kept."""

    every_steps: int | None = Field(default=1000, ge=1, le=MAX_STEPS)
    """Steps between checkpoints; None: the number of steps does not matter."""
    every_minutes: float | None = Field(default=30.0, gt=0, le=10**7)
    """Minutes between checkpoints; None: the time does not matter."""
    keep_last: int = Field(default=3, ge=1, le=10**6)
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation score. If not, it is kept until the run
    has ended, as `model/` is made from it (with `evaluation.choose: best`)."""


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
    choose: Literal["best", "last"] = "best"
    """What a finished run hands over: the weights with the best score (the start's among them, if
    `model.init` is set), or the last ones."""
    patience: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """End the run after this many scored checkpoints in a row that are not better than the best
    before them; None: at its last step. The schedule of the learning rate stays the same."""

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return _texts(value)


def caption_kinds(captions: CaptionChoice) -> list[CaptionKind]:
    """Return what each caption of a sample is, for a value of `data.captions`."""
    return ["truth", "synthetic"] if captions == "both" else [captions]


def uses_captions(which: Literal["all", "truth", "synthetic"], kinds: Sequence[str]) -> list[bool]:
    """Return whether a term of the loss uses each caption, for a value of its setting."""
    return [which in ("all", kind) for kind in kinds]


def _texts(value: Any) -> Any:
    """Return the values of `where` as tables hold them: 2020 as text, true in lower case.

    Values that are neither integers nor booleans stay as they are, and are checked as such.
    """
    if not isinstance(value, Mapping):
        return value
    return {k: str(v).lower() if isinstance(v, int) else v for k, v in value.items()}


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "model.lora": LoraSection,
    "data": DataSection,
    "loss": LossSection,
    "moe": MoESection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
    "checkpoint": CheckpointSection,
    "evaluation": EvaluationSection,
}
"""The sections by their dotted key in a recipe."""


def not_a_section(name: str, value: object) -> str:
    """Return what is wrong with a `value` that is given instead of a section."""
    first = next(iter(SECTIONS[name].model_fields))
    return f"should hold fields such as `{first}:`, not {kind_of(value)}"
