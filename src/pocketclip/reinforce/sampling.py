"""How captions are sampled, as a reinforce recipe says it; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketclip.caption_settings import Settings
from pocketclip.errors import ConfigError


def caption_key(name: str) -> str:
    """Return the key of a captioner's captions in a sample: `syn_text_NAME`.

    The name `syn_text` is the key itself, which DataCompDR's captions have.
    """
    return name if name == "syn_text" else f"syn_text_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(Settings):
    """How captions are sampled, as a reinforce recipe gives it."""

    first_sentence: bool = False
    """Cut each caption at its first full stop, which is left out, as the generator of the published
    sets does (`ml-mobileclip-dr`, with `top_p` 0.9 and `max_length` 30). Any full stop ends it,
    also that of "3.5"."""

    def __post_init__(self) -> None:
        if type(self.first_sentence) is not bool:
            raise ConfigError(
                f"sampling: first_sentence must be true or false, not {self.first_sentence!r}"
            )
        for name in ("top_k", "beams", "max_length", "min_length"):
            value = getattr(self, name)
            if type(value) is not int and not (name == "max_length" and value is None):
                raise ConfigError(f"sampling: {name} must be a whole number, not {value!r}")
        try:
            self.checked()
        except ConfigError as error:
            raise ConfigError(f"sampling: {error}") from error

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Sampling:
        """Return the sampling of a recipe's fields.

        Raises:
            ConfigError: a field is unknown, or a value is invalid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in raw if key not in known]
        if unknown:
            raise ConfigError(
                f"sampling: unknown field {unknown[0]!r} (fields: {', '.join(known)})"
            )
        try:
            return cls(**raw)
        except TypeError as error:  # a text instead of a number
            raise ConfigError(f"sampling: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """What the model needs to know: the fields of `Settings`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the captions, as JSON types.

        Of a loaded captioner, whose `max_length` is a number.
        """
        # Absent if false, so that jobs that were begun before it existed can go on.
        return self.settings | ({"first_sentence": True} if self.first_sentence else {})

    def trim(self, text: str) -> str:
        """Return a caption with single spaces, none at its ends, and cut if that is wanted."""
        if self.first_sentence:
            text = text.partition(".")[0]
        return " ".join(text.split())

    def per_image(self, count: int) -> int:
        """Return the number of captions per image if `count` are requested."""
        if self.method == "greedy":
            return min(count, 1)
        return min(count, self.beams) if self.method == "beam" else count

    @property
    def is_random(self) -> bool:
        """Whether captions depend on a seed."""
        return self.method in ("nucleus", "top_k")
