"""Variants of a pair's text, so that a student of few distinct texts learns their words.

    variants("Arla Standard Milk", "shelf/17.jpg")
    # {"caption": "Arla Standard Milk", "prompt": "a photo of Arla Standard Milk.",
    #  "part": "Milk", "part_prompt": "a photo of Standard Milk."}

From 40 distinct texts a text tower learns 40 points. It then knows neither the prompts that
zero-shot classification asks with, nor a single word of a text. Training therefore draws one of the
text itself, the text in a prompt, and some of its words, alone and in a prompt (random deletion of
words: Wei and Zou, arXiv 1901.11196).
"""

from __future__ import annotations

import re

import numpy as np

from pocketclip.pairs.split import draw

COLUMNS = ("caption", "prompt", "part", "part_prompt")
"""The columns of a table of pairs; the first one holds the text as it was found."""
_DETERMINED = re.compile(r"(an?|the|this|my|two|three|some|\d+)\b", re.IGNORECASE)
_PROMPTED = re.compile(r"(an? |the )?(photo|picture|image|drawing)\b", re.IGNORECASE)
_EMPTY = {
    *("", "a", "an", "the", "of", "and", "or", "in", "on", "at", "to", "with", "for", "from", "by"),
    *("is", "are", "this", "that"),
}
"""A part of such words alone would be the same text for photographs of anything."""
_SHORT = 8
"""Up to this number of words each is kept with probability 1/2; of a longer text, 4/5."""


def variants(text: str, name: str) -> dict[str, str]:
    """Return a text and its variants by column.

    Args:
        text: the text as it was found.
        name: the pair's name, which decides what is random.
    """
    digest = draw("variants", f"{name}\0{text}")
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    values = (text, _prompt(text, rng), _part(text, rng), _prompt(_part(text, rng), rng))
    return dict(zip(COLUMNS, values, strict=True))


def _prompt(text: str, rng: np.random.Generator) -> str:
    article = "a " if rng.random() < 0.5 and not _DETERMINED.match(text) else ""
    if _PROMPTED.match(text):
        return text
    return f"a photo of {article}{text.rstrip('. ')}."


def _part(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    share = 0.5 if len(words) <= _SHORT else 0.8
    kept = [w for w, number in zip(words, rng.random(len(words)), strict=True) if number < share]
    if all(_says_nothing(word) for word in kept):
        telling = [word for word in words if not _says_nothing(word)]
        return str(rng.choice(telling or words))
    return " ".join(kept)


def _says_nothing(word: str) -> bool:
    return word.casefold().strip(".,;:!?") in _EMPTY
