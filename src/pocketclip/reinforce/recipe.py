"""The reinforce recipe: plain values from a YAML file, the command line, or both.

    recipe = load_recipe("recipe.yaml", teachers=["vit-b16"], augmentations=10)
    recipe = load_recipe("datacompdr-12m", augmentations=5)

The published sets' recipes come with the package, see `names`. Source: MobileCLIP
(arXiv 2311.17049), section 4.1 and appendix; MobileCLIP2 (arXiv 2508.20691), section 3;
`DATACOMPDR` is the augmentation of both generations' sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pocketclip.augment import DATACOMPDR, Augmentation
from pocketclip.errors import AugmentationError, ConfigError
from pocketclip.formats.json_text import digest_json
from pocketclip.formats.recipe_files import read_recipe, recipe_names
from pocketclip.reinforce.sampling import Sampling
from pocketclip.shards import DTYPES


class Recipe(BaseModel):
    """Everything that affects a reinforced dataset, apart from the pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    about: str = ""
    """One line on what it is; it affects nothing."""
    teachers: tuple[str, ...] = ()
    """The teachers, each MODEL or LABEL=MODEL; their embeddings are concatenated in this order.
    Without one, captions alone are stored: no augmentations and no embeddings."""
    captioners: tuple[str, ...] = ()
    """The captioners, each MODEL or LABEL=MODEL; captions are stored under `syn_text_LABEL`, or
    under `syn_text` itself with that label."""
    augmentations: int = Field(default=10, ge=0, le=1000)
    """Number of augmented views per image."""
    captions: int = Field(default=5, ge=1, le=1000)
    """Number of synthetic captions per image and captioner."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The seed of every random choice."""
    image_augmentation: dict[str, Any] = Field(default_factory=lambda: dict(DATACOMPDR))
    """The augmentation that views are drawn from; the default is DataCompDR's."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """How captions are sampled, see `pocketclip.reinforce.sampling.Sampling`."""
    dtype: str = "bfloat16"
    """How embeddings are stored: float32, float16, bfloat16, int8 or int6."""
    layout: Literal["named", "v1"] = "named"
    """The layout of samples: `named` gives each captioner's captions their own embeddings; `v1`
    is that of the first published sets, with one captioner."""
    format: Literal["tar", "jsonl"] = "tar"
    """The file format of shards."""
    images: bool = True
    """Store the images too; without them the set is as small as the published sets."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype to compute in; `auto` is bfloat16 where the device supports it natively."""
    device: str = "auto"
    """Where the models compute: cpu, cuda, cuda:1, mps or auto."""
    batch_size: int = Field(default=16, ge=1, le=2**20)
    """Number of pairs given to the models at a time; a model may split them further."""
    offline: bool = False
    """Use weights from the local cache only."""

    @field_validator("teachers", "captioners", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"must be one of {', '.join(DTYPES)}, not {value}")
        return value

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            Sampling.from_dict(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("image_augmentation")
    @classmethod
    def _check_augmentation(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            Augmentation.from_config(value)
        except AugmentationError as error:
            raise ValueError(str(error)) from error
        return value


def names() -> list[str]:
    """Return the names of the recipes that come with the package: those of published sets."""
    return recipe_names("pocketclip.reinforce")


def load_recipe(path: str | Path | None = None, **overrides: Any) -> Recipe:
    """Return a recipe; `overrides` that are not None replace its fields.

    Args:
        path: a YAML or JSON file, or the name of a recipe that comes with the package (`names`);
            an existing file comes first. None: all fields are overrides.
        **overrides: fields of `Recipe`.

    Raises:
        ConfigError: there is no such file or recipe, it cannot be read, or a field is unknown,
            missing or invalid.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = read_recipe(path, "pocketclip.reinforce", example="teachers:")
    raw |= {key: value for key, value in overrides.items() if value is not None}
    if "reinforce" in raw:  # the published configurations nest it
        nested = raw.pop("reinforce")
        if not isinstance(nested, Mapping):
            raise ConfigError(f"{path}: 'reinforce' must hold fields, not {nested!r}")
        raw = {**nested, **raw}
    if not raw.get("teachers") and not raw.get("captioners"):
        raise ConfigError(
            "no teacher: pass --teacher NAME, or set `teachers:` in the recipe; for captions alone "
            "pass --captioner NAME"
        )
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(Recipe.model_fields)
        reason = (
            f"unknown field (fields: {known})"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        is_override = overrides.get(str(first["loc"][0])) is not None
        where = f"{path}: " if path is not None and not is_override else ""
        raise ConfigError(f"{where}{field}: {reason}") from error


def digest(facts: Mapping[str, Any]) -> str:
    """Return the hash of a job's JSON facts that shards and the index carry."""
    return digest_json(facts)[:16]
