"""Settings for generating captions. Imports no torch, so that recipes can be read without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pocketclip.errors import ConfigError

Method = Literal["nucleus", "top_k", "greedy", "beam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a captioner generates text."""

    method: Method = "nucleus"
    """How the next token is chosen."""
    max_length: int = 77
    """Maximum length in tokens, counting the start and end tokens; a longer text is cut there."""
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

    def checked(self, context_length: int | None = None) -> Settings:
        """Return the settings after checking them, also against a model's context length if given.

        Raises:
            ConfigError: a setting is out of range; the message names it.
        """
        longest = self.max_length if context_length is None else context_length + 1
        rules = (
            (self.method in get_args(Method), f"method is one of {', '.join(get_args(Method))}"),
            (self.max_length >= 3, "max_length is at least 3: start, one id, end"),
            (self.max_length <= longest, f"max_length is at most {longest} for this model"),
            (0 <= self.min_length < self.max_length, "min_length is 0 or more, below max_length"),
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
