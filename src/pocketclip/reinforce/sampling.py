"""How captions are sampled, as a reinforce recipe says it; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketclip.caption_settings import Settings
from pocketclip.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(Settings):
    """How captions are drawn, as a recipe says it."""

    def __post_init__(self) -> None:
        for name in ("top_k", "beams", "max_length", "min_length"):
            if type(getattr(self, name)) is not int:
                raise ConfigError(
                    f"sampling: {name} is a whole number, not {getattr(self, name)!r}"
                )
        try:
            self.checked()
        except ConfigError as error:
            raise ConfigError(f"sampling: {error}") from error

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Sampling:
        """Return the sampling that a recipe describes.

        Raises:
            ConfigError: a field that does not exist, or a value that makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in raw if key not in known]
        if unknown:
            raise ConfigError(
                f"sampling: unknown field {unknown[0]!r} (fields: {', '.join(known)})"
            )
        try:
            return cls(**raw)
        except TypeError as error:  # a text where a number belongs
            raise ConfigError(f"sampling: {error}") from error

    def per_image(self, count: int) -> int:
        """Return how many captions this gives of an image if `count` are wanted."""
        if self.method == "greedy":
            return min(count, 1)
        return min(count, self.beams) if self.method == "beam" else count

    @property
    def draws(self) -> bool:
        """Whether chance plays a part."""
        return self.method in ("nucleus", "top_k")
