"""The captioners of an earlier run, whose captions the pairs have already.

The index of a reinforced set names its captioners, and so does the file beside a table of captions.
A second run over them, with teachers, names them in its own index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pocketclip.pairs import PairShard
from pocketclip.pairs.stored_captions import key_of
from pocketclip.pairs.tables import folder_of
from pocketclip.reinforce.caption_rows import SUFFIXES
from pocketclip.reinforce.caption_table import read_about
from pocketclip.shards import read_index


def earlier_captioners(shards: Sequence[PairShard]) -> list[dict[str, Any]]:
    """Return what is known of the captioners of `PairOptions.captions_from`, as an index holds it.

    Raises:
        DataError: an index is damaged.
        StorageError: a folder cannot be reached.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted: dict[str, tuple[str, ...]] = {}
    for shard in shards:
        if shard.options.captions_from:
            is_table = shard.origin.lower().endswith(SUFFIXES)
            place = shard.origin if is_table else folder_of(shard.origin)
            wanted[place] = shard.options.captions_from
    for place, texts in sorted(wanted.items()):
        for captioner in _captioners_of(place):
            key = key_of(str(captioner.get("key")), texts)
            if key is not None:
                found.setdefault(key, {**captioner, "key": key})
    return list(found.values())


def _captioners_of(place: str) -> list[dict[str, Any]]:
    if place.lower().endswith(SUFFIXES):
        about = read_about(place)
        captioner = None if about is None else about["settings"].get("captioner")
        return [captioner] if isinstance(captioner, dict) else []
    index = read_index(place, others=False)
    return [] if index is None else index.captioners
