"""One fine-tuning: how it is done, its output folder, and what was found out so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pocketclip.errors import ConfigError
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.finetune import presets
from pocketclip.finetune.own_images import OwnImages
from pocketclip.formats.json_text import read_json
from pocketclip.nn.clip import CLIP
from pocketclip.pipeline_folder import PipelineFolder

DATA, SHARDS, STEPS = "data", "shards", "steps"
log = logging.getLogger(__name__)


LEAST_RETENTION = 0.95
"""With `keep`: the least share of the start's score there."""
LEAST_OWN_RETENTION = 0.9
"""With the package's own pictures, whose score says less is kept than is: see the how-to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to fine-tune; everything here decides the result."""

    preset: str = presets.DEFAULT_PRESET
    """One of `presets.PRESETS`."""
    images: DataOptions = field(default_factory=lambda: DataOptions(split="train"))
    """How the images are read."""
    unlabelled: bool = False
    """Ignore labels and captions."""
    teachers: Sequence[str] = ()
    """Larger models to distil in the place of the start, if they are clearly better, as
    `pocketclip reinforce --teacher` takes them."""
    captioner: str | None = None
    """A model that writes captions for images without texts first, as `pocketclip reinforce
    --captioner` takes it."""
    share: float | None = None
    """The share of the images for validation; None: see `validation_share`."""
    steps: int | None = None
    """Training steps; None: by the number of images, see `presets`."""
    settings: Sequence[str] | Mapping[str, Any] = ()
    """Fields of the train recipe, applied last."""
    rate_trials: bool = True
    """Choose the learning rate by short trainings, see `rates`, unless `settings` has one."""
    seed: int = 0
    self_distillation: bool = True
    """Distil the start's affinities with generic captions."""
    interpolation: bool = True
    """Score the models between start and end too."""
    retain: float | None = None
    """The least retention score of the result, 1 being the start's; None: see `LEAST_RETENTION`."""
    keep: str | None = None
    """An evaluation set that measures what is to be kept; None: the package's own images."""
    views: int = presets.VIEWS
    """Augmented views of each image."""

    @property
    def least_retention(self) -> float:
        """The least retention score of the result."""
        if self.retain is not None:
            return self.retain
        return LEAST_RETENTION if self.keep else LEAST_OWN_RETENTION

    def checked(self) -> Options:
        """Return the options.

        Raises:
            ConfigError: one is out of range.
        """
        if self.preset not in presets.PRESETS:
            raise ConfigError(
                f"there is no preset {self.preset!r}; it is one of {', '.join(presets.PRESETS)}"
            )
        if self.retain is not None and not 0 <= self.retain <= 1:
            raise ConfigError(f"--retain is {self.retain:g}; it must be from 0 to 1")
        if self.steps is not None and self.steps < 2:
            raise ConfigError(f"--steps is {self.steps}; it must be 2 or more")
        if not 1 <= self.views <= 1000:
            raise ConfigError(f"--views is {self.views}; it must be from 1 to 1000")
        return self


def validation_share(samples: int) -> float:
    """Return the share of the images to validate with: a fifth of small sets, else a tenth."""
    return 0.2 if samples < 1000 else 0.1


@dataclass(slots=True, kw_only=True)
class FinetuneRun(PipelineFolder):
    """One fine-tuning: its output folder and its results so far."""

    WORK: ClassVar[str] = "a fine-tuning"
    options: Options = field(default_factory=Options)
    start: CLIP
    own: OwnImages
    offline: bool = False
    teachers: list[str] = field(default_factory=list)
    """The teachers that are distilled in the place of the start; until they are checked, all."""

    @property
    def distils_start(self) -> bool:
        """Whether the start is a stored teacher: a better teacher takes its place."""
        return self.options.self_distillation and not self.teachers

    @property
    def may_distil(self) -> bool:
        """Whether the start or a teacher may be distilled, which takes generic captions."""
        return self.options.self_distillation or bool(self.options.teachers)

    @property
    def metric(self) -> str:
        """The name of the validation score."""
        if self.own.kind == "none":
            return "agreement with the teacher"
        return "zero-shot top-1" if self.own.labels is not None else "retrieval, mean recall@1"

    def warn(self, text: str) -> None:
        """Say something that the report says too."""
        self.result["warnings"].append(text)
        self.reporter.stage(f"note: {text}")

    def recorded(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the JSON value of a step: of an earlier call that finished it, or computed now."""
        path = self.out / STEPS / f"{name}.json"
        if path.is_file():
            try:
                return read_json(path)
            except ValueError:
                log.warning("%s is damaged; the step is repeated", path)
        value = work()
        path.parent.mkdir(exist_ok=True)
        self.write(f"{STEPS}/{name}.json", value)
        return value
