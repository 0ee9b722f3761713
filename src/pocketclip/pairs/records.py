"""Pairs from compressed jsonl shards: one shard per file, with the images in base64.

`pocketclip reinforce --format jsonl` and the published generator write them. An uncompressed
`.jsonl` is a table, see `pocketclip.pairs.tables`. Reinforcements are ignored, but for the captions
of `PairOptions.captions_from`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.pairs.base import (
    Draft,
    PairOptions,
    cell_text,
    clean_uid,
    collect_captions,
    digest_parts,
    is_empty,
    matches,
)
from pocketclip.pairs.loading import FileShard, is_url, with_bytes
from pocketclip.pairs.stored_captions import add_own, add_stored, choose_keys, key_of
from pocketclip.types import Bad, Pair, Sample

SUFFIXES = (".jsonl.gz", ".jsonl.zst", ".jsonl.zstd")


@dataclass(frozen=True, kw_only=True)
class LinesShard(FileShard):
    """A file. If it is damaged, its complete pairs come first, then a Bad with the shard's name."""

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        from pocketclip.shards.jsonl import read_lines  # slow to import, and seldom needed

        seen: set[str] = set()
        with storage.open_read(self.path) as stream:
            try:
                for sample in read_lines(stream, self.path):
                    if all(matches(sample.meta.get(k), v) for k, v in self.options.where.items()):
                        yield self._draft(sample, seen)
            except DataError as error:
                yield Bad(uid=self.name, reason=str(error))

    def _draft(self, sample: Sample, seen: set[str]) -> Pair | Bad | Draft:
        options, uid = self.options, clean_uid(sample.uid)
        if options.uid_column is not None:
            value = sample.meta.get(options.uid_column)
            if is_empty(value):
                return Bad(uid=uid, reason=f"no uid: there is no {options.uid_column}")
            uid = clean_uid(cell_text(value))
        if uid in seen:
            return Bad(uid=uid, reason=f"duplicate uid {uid}: an earlier line has the same uid")
        seen.add(uid)
        record = {**sample.meta, **sample.captions}
        columns = options.caption_columns or ("text",)
        captions = collect_captions((name, record.get(name)) for name in columns)
        if captions is None and not options.needs_captions:
            captions = {}
        if captions is None:
            return Bad(uid=uid, reason=f"no caption: there is no {columns[0]}")
        if options.captions_from:
            if not options.caption_columns:
                add_own(captions, sample.captions)
            wanted = options.captions_from
            extra = {key: value for key, value in sample.meta.items() if key_of(key, wanted)}
            others = {k: v for k, v in {**extra, **sample.captions}.items() if k != "text"}
            try:
                chosen = choose_keys(others, wanted, "the line")
                chosen = {name: key for name, key in chosen.items() if key not in captions}
                add_stored(captions, chosen, others)
            except DataError as error:
                return Bad(uid=uid, reason=str(error))
        pair = Pair(uid=uid, image=None, captions=captions, url=sample.url, meta=sample.meta)
        if sample.image is not None:
            return with_bytes(pair, sample.image)
        if pair.url is None or not is_url(pair.url):
            return Bad(uid=uid, reason="no image")
        if not options.fetch_missing:
            return Bad(uid=uid, reason="no image, only a URL; fetching is off")
        return Draft(pair, pair.url)


def open_records(path: str, name: str, options: PairOptions) -> list[LinesShard]:
    """Return the single shard of a compressed jsonl file, in a list.

    Raises:
        DataError: the options name a column of images, which such a file has none of.
        StorageError: the file is missing, or the store cannot be reached.
    """
    if options.image_column not in (None, "image"):
        raise DataError(f"{path}: the images of jsonl shards are under image, in base64")
    size = storage.size(path)
    base = path.replace("\\", "/").rpartition("/")[2]
    fingerprint = digest_parts(base, str(size), options.identity())
    return [LinesShard(name=name, fingerprint=fingerprint, size=None, path=path, options=options)]
