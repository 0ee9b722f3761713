"""Captions that pairs have besides their own: what an earlier captioner wrote about the images.

    PairOptions(captions_from=("syn_text_coca",))  # a key of a reinforced set, or a column
    PairOptions(captions_from=("syn_text_*",))  # all such keys
    PairOptions(captions_from=("coca=captions",))  # the column `captions`, kept as syn_text_coca

They keep their keys, so that the embeddings of teachers can be added to them later, as the
generator of the published sets does it in its second pass (`ml-mobileclip-dr`, `scripts/gen.py`,
`--syn-text-key-regex`).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pocketclip.errors import ConfigError, DataError
from pocketclip.formats.fields import kind_of
from pocketclip.pairs.base import caption_text, clean_uid, listed

_OWN = re.compile(r"text_")
"""Begins the keys of a pair's own further captions in reinforced shards."""
_MORE = "text_more"
"""The key of own captions after the first in reinforced shards."""
_SYNTHETIC = re.compile(r"syn_text|_captions|^text_")  # as `shards.layout.CAPTIONS`
_NAMED = re.compile(r"([a-z0-9_-]+)=(.+)", re.DOTALL)
_PATTERN = re.compile(r"[*?\[]")


def check_wanted(wanted: Sequence[str]) -> None:
    """Check the texts of `PairOptions.captions_from`.

    Raises:
        ConfigError: a text is empty, or gives a name to a pattern.
    """
    for text in wanted:
        named = _NAMED.fullmatch(text)
        if not text.strip() or (named and _PATTERN.search(named[2])):
            raise ConfigError(
                f"captions from {text!r}: give a key such as syn_text_NAME, a pattern such as "
                "'syn_text_*', or NAME=COLUMN"
            )


def choose_keys(names: Iterable[str], wanted: Sequence[str], where: str) -> dict[str, str]:
    """Return the key of captions for each of `names` that is wanted, in the order of `names`.

    A pattern matches only names that keys of captions have (`syn_text_...`, `..._captions`,
    `text_...`). Another name gets the prefix `syn_text_`.

    Args:
        names: keys of a sample, or columns of a table.
        wanted: `PairOptions.captions_from`.
        where: what the names are of, for messages.

    Raises:
        DataError: a name or pattern fits none of the names, or two names would get one key.
    """
    existing = list(names)
    chosen: dict[str, str] = {}
    for text in wanted:
        found = dict(_found(existing, text))
        if not found:
            raise DataError(
                f"{where}: there are no captions under {text!r}; there is: {listed(existing)}"
            )
        chosen |= found
    ordered = {name: chosen[name] for name in existing if name in chosen}
    keys = list(ordered.values())
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{where}: two of the captions would get the key {twice}; give one a NAME=")
    return ordered


def key_of(name: str, wanted: Sequence[str]) -> str | None:
    """Return the key under which captions with this name are kept; None if they are not wanted."""
    for text in wanted:
        for _, key in _found([name], text):
            return key
    return None


def _found(existing: Sequence[str], text: str) -> Iterator[tuple[str, str]]:
    if text in existing:
        yield text, _key_of(text)
        return
    named = _NAMED.fullmatch(text)
    if named and named[2] in existing:
        yield named[2], f"syn_text_{named[1]}"
    elif _PATTERN.search(text):
        for name in existing:
            if _SYNTHETIC.search(name) and fnmatch.fnmatchcase(name, text):
                yield name, _key_of(name)


def _key_of(name: str) -> str:
    name = clean_uid(name)
    return name if _SYNTHETIC.search(name) else f"syn_text_{name}"


def add_own(captions: dict[str, list[str]], record: Mapping[str, Any]) -> None:
    """Add a pair's own further captions, which the JSON of a reinforced sample holds."""
    for key, value in record.items():
        if _OWN.match(key) and isinstance(value, (str, list)):
            texts = _texts(value)
            if key == _MORE:
                captions["text"] = captions.get("text", []) + texts
            elif texts:
                captions[key] = texts


def add_stored(
    captions: dict[str, list[str]], chosen: Mapping[str, str], record: Mapping[str, Any]
) -> None:
    """Add the captions of a record that are wanted to a pair's own; a list may be empty.

    Args:
        captions: by key.
        chosen: from `choose_keys`.
        record: a row, or the JSON of a sample.

    Raises:
        DataError: one is missing, or is no text or list of texts; the message does not say where.
    """
    for name, key in chosen.items():
        value = record.get(name)
        if value is None:
            raise DataError(f"no captions under {name}")
        if not isinstance(value, (str, bytes, list, tuple)):
            raise DataError(f"{name} is {kind_of(value)}, not captions")
        if key in captions:
            raise DataError(f"{name} would get the key {key}, which own captions have")
        captions[key] = _texts(value)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text for text in map(caption_text, values) if text]
