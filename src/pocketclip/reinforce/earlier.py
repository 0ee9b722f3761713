"""The captioners of an earlier run, whose captions the pairs have already.

The index of a reinforced set names its captioners. A second run over them, with teachers, names
them in its own index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pocketclip.pairs import PairShard
from pocketclip.pairs.stored_captions import key_of
from pocketclip.pairs.tables import folder_of
from pocketclip.shards import read_index


def earlier_captioners(shards: Sequence[PairShard]) -> list[dict[str, Any]]:
    """Return what is known of the captioners of `PairOptions.captions_from`, as an index holds it.

    Raises:
        DataError: an index is damaged.
        StorageError: a folder cannot be reached.
    """
    found: dict[str, dict[str, Any]] = {}
    places = {
        (folder_of(shard.origin), shard.options.captions_from)
        for shard in shards
        if shard.options.captions_from
    }
    for folder, wanted in sorted(places):
        index = read_index(folder, others=False)
        for captioner in index.captioners if index is not None else ():
            key = key_of(str(captioner.get("key")), wanted)
            if key is not None:
                found.setdefault(key, {**captioner, "key": key})
    return list(found.values())
