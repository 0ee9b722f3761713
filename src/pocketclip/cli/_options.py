"""The options that say where raw pairs are, shared by the verbs that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketclip.errors import ConfigError

if TYPE_CHECKING:
    from pocketclip.pairs import PairOptions

PAIRS_HELP = "Tables, folders, tars, tfrecords, quoted patterns or info.json lists."
IMAGE_HELP = "Column with image paths, URLs or bytes; guessed from common names."
CAPTION_HELP = "Column with captions; again for further ones; guessed from common names."
UID_HELP = "Column with unique names; else the row number."
QUOTES_HELP = "Whether double quotes in a csv or tsv enclose a field."
DELIMITER_HELP = "What separates the columns of a csv or tsv, or `tab`.  [default: recognised]"
PRIVATE_HELP = "Fetch from private addresses too: this machine, a local network."
WHERE_HELP = "Only rows where COLUMN=VALUE; again for further conditions."


def options(
    image_column: str | None,
    caption_column: list[str] | None,
    uid_column: str | None,
    where: list[str] | None,
    shard_size: int,
    quotes: bool = True,
    delimiter: str | None = None,
    allow_private: bool = False,
) -> PairOptions:
    """Return the options of `pocketclip.pairs.open_pairs`.

    Raises:
        ConfigError: a condition is not COLUMN=VALUE, or a delimiter is no single character.
    """
    from pocketclip.pairs import PairOptions
    from pocketclip.storage.http import FetchOptions

    conditions = {}
    for text in where or []:
        column, equals, value = text.partition("=")
        if not equals or not column:
            raise ConfigError(f"--where {text!r}: write COLUMN=VALUE")
        conditions[column] = value
    return PairOptions(
        image_column=image_column,
        caption_columns=tuple(caption_column or ()),
        uid_column=uid_column,
        where=conditions,
        shard_size=shard_size,
        quotes=quotes,
        delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
        fetch=FetchOptions(allow_private=allow_private),
    )
