"""Settings for generating captions. Imports no torch, so that recipes can be read without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from pocketclip.errors import ConfigError

Method = Literal["nucleus", "top_k", "greedy", "beam"]
_LENGTH = 77
_S = TypeVar("_S", bound="Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a captioner generates text."""

    method: Method = "nucleus"
    """How the next token is chosen."""
    max_length: int | None = None
    """Maximum length in tokens, counting the start and end tokens; a longer text is cut there.
    None: the whole context of a CoCa (77 for most, up to 256), and 77 for captioners of
    transformers."""
    min_length: int = 5
    """Minimum length in tokens, counting the start token; the end token cannot be sampled
    earlier."""
    temperature: float = 1.0
    """Divides the logits, before the nucleus or the top k are taken."""
    top_p: float = 0.9
    """Nucleus: sample from the smallest set of tokens that together have this probability."""
    top_k: int = 50
    """Top-k: sample from this number of most probable tokens."""
    repetition_penalty: float = 1.0
    """The logit of a token that already occurs is divided by this if positive, else multiplied."""
    beams: int = 6
    """Beam: number of beams."""
    length_penalty: float = 1.0
    """Beam: a text's log-probability is divided by its length in tokens to this power."""

    @property
    def longest(self) -> int:
        """`max_length` as a number; 77 where it is None and no model has said its context."""
        return _LENGTH if self.max_length is None else self.max_length

    def checked(self: _S, context_length: int | None = None) -> _S:
        """Return the settings after checking them, for a model if its context length is given.

        Args:
            context_length: the model's; None: any model. Where it is given, `max_length` of the
                result is a number.

        Raises:
            ConfigError: a setting is out of range; the message names it.
        """
        if context_length is not None and self.max_length is None:
            return replace(self, max_length=context_length + 1).checked(context_length)
        unknown = self.max_length is None
        most = self.longest if context_length is None else context_length + 1
        rules = (
            (self.method in get_args(Method), f"method is one of {', '.join(get_args(Method))}"),
            (self.longest >= 3, "max_length is at least 3: start, one id, end"),
            (self.longest <= most, f"max_length is at most {most} for this model"),
            (
                self.min_length >= 0 and (unknown or self.min_length < self.longest),
                "min_length is 0 or more, below max_length",
            ),
            (self.temperature > 0, "temperature is above 0 (for the most probable: 'greedy')"),
            (0 < self.top_p <= 1, "top_p is above 0 and at most 1"),
            (self.top_k >= 1, "top_k is at least 1"),
            (self.beams >= 1, "beams is at least 1"),
            (self.repetition_penalty > 0, "repetition_penalty is above 0"),
            (self.length_penalty >= 0, "length_penalty is 0 or more"),
        )
        for fine, rule in rules:
            if not fine:
                raise ConfigError(f"{rule}, not {getattr(self, rule.split()[0])!r}")
        return self
