"""Merge a pair and its reinforcement into one sample; fetch images by URL."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.codec import MEMBERS
from pocketclip.shards.layout import image_key
from pocketclip.shards.reader import name_of, read_shard
from pocketclip.types import Bad, Pair, Sample

if TYPE_CHECKING:
    from pocketclip.storage.http import FetchOptions


_ORIGINAL = {
    "original_width",
    "original_height",
}  # img2dataset's columns for an image that it fetched


@dataclass(slots=True)
class Merged:
    """A pair with its reinforcement, ready to be written."""

    sample: Sample
    dtype: str
    packed: tuple[str, bytes] | None
    """The embeddings' member (key, bytes), if it can be copied unchanged."""
    caption_differs: str = ""
    """Why the pair's caption was not used; empty if it was."""


def merge(
    pair: Pair, reinforced: Sample, members: Mapping[str, bytes], dtype: str, *, keep: bool
) -> Merged:
    """Return the sample of a pair and its reinforcement.

    Images and ground-truth captions are the pair's, if it has them. But a caption stays with its
    embedding: if the reinforced set has a text of its own and the pair's differs, the sample keeps
    the former, and `caption_differs` tells.

    Args:
        pair: has an image, unless the reinforced sample has one.
        reinforced: the sample with the same uid.
        members: the members that `reinforced` was parsed from.
        dtype: the stored dtype of its embeddings.
        keep: whether its embeddings may be copied unchanged.

    Raises:
        DataError: there is no image, it is not the one that was embedded, or numbers of captions
            and embeddings differ.
    """
    image = pair.image if pair.image is not None else reinforced.image
    if image is None:
        raise DataError("neither the pair nor the reinforcement has an image")
    _check_image(image, pair, reinforced)
    captions = {**reinforced.captions, **pair.captions}
    differs = ""
    for key, embedded in reinforced.captions.items():
        if f"{key}_emb" in reinforced.embeddings and captions[key] != embedded:
            captions[key] = embedded
            differs = f"{key}: {embedded[:1]} was embedded, the pair has {pair.captions[key][:1]}"
    for key, texts in captions.items():
        rows = reinforced.embeddings.get(f"{key}_emb")
        if rows is not None and len(rows) != len(texts):
            raise DataError(f"{key}: {len(rows)} embeddings for {len(texts)} captions")
    sample = Sample(
        uid=pair.uid,
        image=image,
        captions=captions,
        url=pair.url if pair.url is not None else reinforced.url,
        meta={**reinforced.meta, **pair.meta},
        param_aug=reinforced.param_aug,
        embeddings=reinforced.embeddings,
    )
    member = next((key for key in MEMBERS if key in members), None)
    # Further ground truths need keys of their own, which the copied member may not have.
    copied = keep and member is not None and len(captions.get("text", [])) < 2
    packed = (member, members[member]) if copied and member is not None else None
    return Merged(sample, dtype, packed, differs)


def _check_image(image: bytes, pair: Pair, reinforced: Sample) -> None:
    """Check that the image is the one that was embedded, as far as that is known.

    It is compared with the reinforced sample's image, or with the SHA-256 in either's metadata.

    Raises:
        DataError: it is another image.
    """
    if image == reinforced.image:
        return
    reinforced_hash, pair_hash = _sha256(reinforced.meta), _sha256(pair.meta)
    if reinforced.image is not None and not reinforced_hash:
        raise DataError(
            "the image is not the one that was embedded: the reinforced set has another one"
        )
    expected = reinforced_hash or pair_hash
    if not expected or hashlib.sha256(image).hexdigest() == expected:
        return
    # img2dataset stores a resized and re-encoded image with the hash of the fetched one.
    if pair_hash == expected and pair.meta.keys() >= _ORIGINAL:
        return
    raise DataError(
        "the image is not the one that was embedded: its SHA-256 differs from the stored one "
        f"({expected[:12]}...)"
    )


def _sha256(meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 in a sample's metadata, or an empty text."""
    value = meta.get("sha256")
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value.strip())
    return str(value).strip().lower() if is_hash else ""


class FetchShard:
    """The pairs of a reinforced shard, with images fetched by URL."""

    def __init__(self, path: str, options: FetchOptions) -> None:
        self.path = path
        self.options = options
        name = name_of(path)
        self.name = name.partition(".")[0]
        self.fingerprint = f"fetched:{name}:{storage.size(path)}"
        if options.allow_private:  # otherwise a join without this option would count as finished
            self.fingerprint += ":private"

    def __iter__(self) -> Iterator[Pair | Bad]:
        """Yield a pair, or the reason why there is none, for each sample, in order."""
        from pocketclip.storage.http import fetch_many

        pending: deque[tuple[str, str | None, str]] = deque()

        def urls() -> Iterator[tuple[str, str]]:
            for sample in read_shard(self.path):
                pending.append((sample.uid, sample.url, _sha256(sample.meta)))
                if sample.url:
                    yield sample.uid, sample.url

        for _, result in fetch_many(urls(), self.options):
            yield from _without_url(pending)
            uid, url, expected = pending.popleft()
            yield _fetched(uid, url, expected, result)
        yield from _without_url(pending)


def _without_url(pending: deque[tuple[str, str | None, str]]) -> Iterator[Bad]:
    while pending and not pending[0][1]:
        yield Bad(uid=pending.popleft()[0], reason="has no URL, so its image cannot be fetched")


def _fetched(uid: str, url: str | None, expected: str, result: bytes | str) -> Pair | Bad:
    if isinstance(result, str):
        return Bad(uid=uid, reason=result)
    if image_key(result) is None:
        return Bad(uid=uid, reason=f"{url}: the response is not an image")
    digest = hashlib.sha256(result).hexdigest()
    if expected and expected != digest:
        reason = f"{url}: the image has changed since it was embedded (its SHA-256 differs)"
        return Bad(uid=uid, reason=reason)
    return Pair(uid=uid, image=result, url=url, meta={"sha256": digest})
