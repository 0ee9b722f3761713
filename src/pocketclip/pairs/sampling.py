"""A sample of the pairs, chosen by their names.

    pairs = sample_pairs(open_pairs("pairs.csv"), 200, purpose="teacher check")

The same names are chosen in every run and on every machine, see `pocketclip.pairs.split`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from pocketclip.errors import ImageError
from pocketclip.images import open_image
from pocketclip.pairs.base import Draft, PairShard, digest_parts
from pocketclip.pairs.loading import completed
from pocketclip.pairs.split import hold_out
from pocketclip.types import Bad, Pair

_LOOKED_AT = 20
"""Pairs with their image that are read for each one that is chosen: the rest of a set of millions
is not read for a sample of hundreds."""
_DRAFT = 0.05
"""What a pair without its image counts, which costs little to read."""


def sample_pairs(
    shards: Sequence[PairShard],
    count: int,
    *,
    purpose: str,
    accept: Callable[[Pair], bool] = lambda _: True,
) -> list[Pair]:
    """Return about `count` pairs with images that can be opened; all, if there are fewer.

    Of a large set only some shards are read, which are chosen by their names too. Only the images
    of the sample are fetched, and those that cannot be opened are left out.

    Args:
        shards: from `open_pairs`.
        count: 1 or more.
        purpose: samples for different purposes are independent of each other.
        accept: which pairs, without their images, can be chosen; by default all.

    Raises:
        DataError, StorageError: as iterating the shards.
    """
    ordered = sorted(shards, key=lambda shard: digest_parts(purpose, shard.name))
    names = list(_names(ordered, _LOOKED_AT * count, accept))
    if len(names) > count:
        texts = [f"{ordered[number].name}/{uid}" for number, uid in names]
        chosen = hold_out(texts, share=count / len(names), purpose=purpose)
        names = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    uids: dict[int, set[str]] = {}
    for number, uid in names:
        uids.setdefault(number, set()).add(uid)
    found = (pair for number in sorted(uids) for pair in _load(ordered[number], uids[number]))
    return list(filter(_can_be_opened, found))


def _names(
    shards: Sequence[PairShard], budget: float, accept: Callable[[Pair], bool]
) -> Iterator[tuple[int, str]]:
    """Yield (number of the shard, uid) until the budget is spent."""
    for number, shard in enumerate(shards):
        seen: set[str] = set()
        for item in shard.drafts():
            if isinstance(item, Bad):
                continue
            pair = item.pair if isinstance(item, Draft) else item
            if pair.uid not in seen and accept(pair):
                seen.add(pair.uid)
                yield number, pair.uid
            budget -= _DRAFT if isinstance(item, Draft) else 1
            if budget <= 0:
                return


def _load(shard: PairShard, uids: set[str]) -> Iterator[Pair]:
    for pair in completed(_among(shard.drafts(), set(uids)), shard.options.fetch):
        if isinstance(pair, Pair):
            yield pair


def _among(items: Iterable[Pair | Bad | Draft], uids: set[str]) -> Iterator[Pair | Bad | Draft]:
    """Yield the items with these uids; the first of several with the same."""
    for item in items:
        uid = item.pair.uid if isinstance(item, Draft) else item.uid
        if not isinstance(item, Bad) and uid in uids:
            uids.remove(uid)
            yield item
            if not uids:
                return


def _can_be_opened(pair: Pair) -> bool:
    if pair.image is None:
        return False
    try:
        open_image(pair.image)
    except ImageError:
        return False
    return True
