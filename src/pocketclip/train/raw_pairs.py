"""Raw pairs for plain training: texts and paths are read once, images when a batch needs them.

Texts and paths go into a temporary file that the worker processes map, so memory holds 8 bytes
per pair.
"""

from __future__ import annotations

import json
import mmap
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import DataError, StorageError
from pocketclip.pairs import PairOptions, PairShard, open_pairs
from pocketclip.pairs.base import Draft, digest_parts
from pocketclip.pairs.loading import is_url
from pocketclip.shards.index import Index
from pocketclip.storage.stores import NotThereError
from pocketclip.storage.temporary import TemporaryFolder
from pocketclip.types import Bad, Sample

_MAX_REASONS = 3  # in an error message


class PairSource:
    """Raw pairs of tables and folders.

    Attributes:
        sizes: the number of usable pairs, as one shard.
        identity: a hash that changes when the rows do.
        bad: the number of rows that cannot be used.
        index: None; raw pairs have no index.

    Raises:
        DataError: there are no usable pairs, or the images are URLs or stored in the table.
        StorageError: they cannot be reached.
    """

    index: Index | None = None

    def __init__(self, source: str | Sequence[str], options: PairOptions) -> None:
        shards = open_pairs(source, options)
        self.bad, self._reasons = 0, list[str]()
        folder = TemporaryFolder.scratch("pairs")
        self._path = folder.path / "pairs.jsonl"
        self._tidy = weakref.finalize(self, folder.remove)
        self._map: mmap.mmap | None = None
        offsets = [0]
        try:
            with self._path.open("wb") as out:
                for record in self._records(shards, source):
                    out.write(record)
                    offsets.append(out.tell())
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written ({error.strerror or error})"
            ) from error
        self._offsets: NDArray[np.int64] = np.array(offsets, np.int64)
        self.sizes = [len(offsets) - 1]
        if not self.sizes[0]:
            why = f"; the first: {'; '.join(self._reasons)}" if self.bad else ""
            raise DataError(f"{source}: no usable pairs ({self.bad} unusable{why})")
        names = (text for shard in shards for text in (shard.name, shard.fingerprint))
        self.identity = digest_parts(*names)[:16]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None, "_tidy": None}

    def _records(self, shards: Sequence[PairShard], source: str | Sequence[str]) -> Iterator[bytes]:
        for shard in shards:
            for draft in shard.drafts():
                if isinstance(draft, Bad):
                    self.bad += 1
                    if len(self._reasons) < _MAX_REASONS:
                        self._reasons.append(f"{draft.uid}: {draft.reason}")
                elif not isinstance(draft, Draft):
                    raise DataError(
                        f"{source}: the images are stored in the table ({draft.uid}); plain "
                        "training reads tables of paths, folders and tars; `pocketclip reinforce` "
                        "writes such tars"
                    )
                elif is_url(draft.source):
                    raise DataError(
                        f"{source}: {draft.pair.uid} has a URL as its image; training does not "
                        "fetch from the web; `pocketclip reinforce` stores the images in shards"
                    )
                else:
                    row = [draft.pair.uid, draft.source, draft.pair.captions]
                    yield json.dumps(row).encode()

    def read(self, shard: int, index: int) -> Sample:
        """Return a pair without its image; `url` holds the image's path."""
        del shard
        if self._map is None:
            with self._path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        uid, path, captions = json.loads(self._map[begin:end])
        return Sample(uid=uid, url=path, captions=captions)

    def read_captions(self, shard: int, index: int) -> Sample:
        """Return a pair with its captions."""
        return self.read(shard, index)

    def first_caption(self, shard: int, index: int) -> str | None:
        """Return a pair's first ground-truth caption, or None."""
        truth = self.read(shard, index).captions.get("text")
        return truth[0] if truth else None

    def image(self, sample: Sample) -> bytes:
        """Return the sample's encoded image.

        Raises:
            DataError: the file cannot be read.
            StorageError: the store cannot be reached, which affects all samples.
        """
        assert sample.url is not None
        try:
            return storage.read_bytes(sample.url, regular=True)
        except StorageError as error:
            if storage.is_remote(sample.url) and not isinstance(error, NotThereError):
                raise
            raise DataError(str(error)) from error

    def close(self) -> None:
        """Close the temporary file and remove it."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._tidy is not None:
            self._tidy()
