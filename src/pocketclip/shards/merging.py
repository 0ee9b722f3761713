"""One pair and one reinforcement become one sample; images come by URL."""

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


_ORIGINAL = {"original_width", "original_height"}  # what img2dataset says of what it fetched


@dataclass(slots=True)
class Ready:
    """What is to be written of a match."""

    sample: Sample
    dtype: str
    packed: tuple[str, bytes] | None
    """The embeddings' member, if it can be copied as it is."""
    caption_differs: str = ""
    """Why the pair's caption was not taken."""


def merge(
    pair: Pair, reinforced: Sample, parts: Mapping[str, bytes], dtype: str, *, keep: bool
) -> Ready:
    """Return the sample of a pair and its reinforcement.

    Images and ground-truth captions are the pair's, if it has them. But an embedded caption
    stays with its embedding: if the reinforced set has its own text and the pair's differs, the
    former is kept, and the result says so.

    Args:
        pair: with an image, unless the reinforced sample has it.
        reinforced: what was found under its uid.
        parts: the members that `reinforced` was parsed from.
        dtype: of its embeddings.
        keep: whether its embeddings may be copied as they are.

    Raises:
        DataError: there is no image, it is not the one that was embedded, or captions and
            embeddings do not fit.
    """
    image = pair.image if pair.image is not None else reinforced.image
    if image is None:
        raise DataError("neither the pair nor the reinforcement has an image")
    _check_image(image, pair, reinforced)
    captions = {**reinforced.captions, **pair.captions}
    differs = ""
    for key, own in reinforced.captions.items():
        if f"{key}_emb" in reinforced.embeddings and captions[key] != own:
            captions[key] = own
            differs = f"{key}: embedded was {own[:1]}, the pair has {pair.captions[key][:1]}"
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
    member = next((key for key in MEMBERS if key in parts), None)
    # Further ground truths need members of their own, which the other set may not have made.
    copied = keep and member is not None and len(captions.get("text", [])) < 2
    packed = (member, parts[member]) if copied and member is not None else None
    return Ready(sample, dtype, packed, differs)


def _check_image(image: bytes, pair: Pair, reinforced: Sample) -> None:
    """Refuse an image that is not the one that was embedded, as far as anything tells.

    The reinforced set's own image tells; else the SHA-256 in either's metadata.
    """
    if image == reinforced.image:
        return
    told = _sha256(reinforced.meta), _sha256(pair.meta)
    if reinforced.image is not None and not told[0]:
        raise DataError(
            "the image is not the one that was embedded: the reinforced set has another one"
        )
    expected = told[0] or told[1]
    if not expected or hashlib.sha256(image).hexdigest() == expected:
        return
    # img2dataset stores an image resized and encoded anew, beside the hash of what it fetched.
    if told[1] == expected and pair.meta.keys() >= _ORIGINAL:
        return
    raise DataError(
        "the image is not the one that was embedded: its SHA-256 is not the stored one "
        f"({expected[:12]}...)"
    )


def _sha256(meta: Mapping[str, Any]) -> str:
    """Return the hash in a sample's metadata, or nothing where there is none."""
    value = meta.get("sha256")
    found = isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value.strip())
    return str(value).strip().lower() if found else ""


class FetchShard:
    """The pairs of a reinforced shard, their images fetched by URL."""

    def __init__(self, path: str, options: FetchOptions) -> None:
        self.path = path
        self.options = options
        name = name_of(path)
        self.name = name.partition(".")[0]
        self.fingerprint = f"fetched:{name}:{storage.size(path)}"
        if options.allow_private:  # a set that was fetched without is not complete
            self.fingerprint += ":private"

    def __iter__(self) -> Iterator[Pair | Bad]:
        """Yield a pair, or why there is none, for each sample, in order."""
        from pocketclip.storage.http import fetch_many

        waiting: deque[tuple[str, str | None, str]] = deque()

        def urls() -> Iterator[tuple[str, str]]:
            for sample in read_shard(self.path):
                waiting.append((sample.uid, sample.url, _sha256(sample.meta)))
                if sample.url:
                    yield sample.uid, sample.url

        for _, result in fetch_many(urls(), self.options):
            yield from _without_url(waiting)
            uid, url, expected = waiting.popleft()
            yield _fetched(uid, url, expected, result)
        yield from _without_url(waiting)


def _without_url(waiting: deque[tuple[str, str | None, str]]) -> Iterator[Bad]:
    while waiting and not waiting[0][1]:
        yield Bad(uid=waiting.popleft()[0], reason="has no URL to fetch its image by")


def _fetched(uid: str, url: str | None, expected: str, result: bytes | str) -> Pair | Bad:
    if isinstance(result, str):
        return Bad(uid=uid, reason=result)
    if image_key(result) is None:
        return Bad(uid=uid, reason=f"{url}: what came is not an image")
    digest = hashlib.sha256(result).hexdigest()
    if expected and expected != digest:
        reason = f"{url}: the image has changed since it was embedded (its SHA-256 differs)"
        return Bad(uid=uid, reason=reason)
    return Pair(uid=uid, image=result, url=url, meta={"sha256": digest})
