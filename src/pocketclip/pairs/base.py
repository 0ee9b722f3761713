"""What all inputs of pairs share: options, shards, the choice of columns, uids, captions."""

from __future__ import annotations

import abc
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketclip.errors import ConfigError, DataError
from pocketclip.storage import photos
from pocketclip.storage.http import FetchOptions
from pocketclip.types import Bad, Pair

IMAGE_SUFFIXES = (*photos.IMAGE_EXTENSIONS, "img")
MAX_TEXT = 1 << 24
"""Limit on the bytes of a caption, and of a sample's JSON: 16 MiB."""
_LONGEST_UID = 160
_WHOLE = re.compile(r"^(-?[0-9]+)\.0+$")
_LARGEST_SHARD = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are read. Columns that are not named are guessed by common names.

    In tars a column is a member's extension (`jpg`, `txt`) or a key of the `json` member; in
    tfrecords it is a feature.
    """

    image_column: str | None = None
    """Holds paths (relative to the table's folder), URLs, bytes or base64."""
    caption_columns: tuple[str, ...] = ()
    """The first is stored under the key `text`, each further COLUMN under `text_COLUMN`."""
    uid_column: str | None = None
    """Default: the row's number in its file in eight digits, counted from 0 and before `where`."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Only rows with these values are read, see `matches`; the others are skipped silently."""
    meta_columns: tuple[str, ...] = ()
    """Further columns to store in `Pair.meta`."""
    shard_size: int = 1000
    """Pairs per shard of a table or folder; each tar or tfrecord file is one shard."""
    delimiter: str | None = None
    """Separates the columns of a csv or tsv. Default: the one of tab, comma, semicolon
    and `|` that fits the first line."""
    columns: tuple[str, ...] = ()
    """Column names of a csv or tsv without a header line."""
    quotes: bool = True
    """Whether double quotes enclose fields of a csv or tsv; if False they are ordinary text."""
    fetch: FetchOptions = field(default_factory=FetchOptions)
    fetch_missing: bool = False
    """Whether to fetch images that are missing in tars by their URL. Tables always fetch."""
    captions_from: tuple[str, ...] = ()
    """Captions that the pairs have besides their own, each a KEY, a pattern of keys or
    NAME=COLUMN, see `pocketclip.pairs.stored_captions`. They are kept under their keys."""
    needs_captions: bool = True
    """Whether a pair without captions of its own is bad. A folder must have texts in any case."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ConfigError(f"pairs: shard_size is {self.shard_size}; the minimum is 1")
        if self.shard_size > _LARGEST_SHARD:
            raise ConfigError(
                f"pairs: shard_size is {self.shard_size:,}; the maximum is {_LARGEST_SHARD:,}"
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ConfigError(
                f"pairs: delimiter is {self.delimiter!r}; give one character that is not a quote"
            )
        for name in ("caption_columns", "meta_columns", "columns", "captions_from"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"pairs: {name} is one text; give a tuple of names")

    def identity(self) -> str:
        """Return the options that determine the content of a shard, as JSON."""
        settings: list[Any] = [
            self.image_column,
            self.caption_columns,
            self.uid_column,
            dict(self.where),
        ]
        settings += [self.meta_columns, self.delimiter, self.columns, self.quotes]
        settings.append(self.fetch_missing)
        # Later options are absent unless they are used: the fingerprints of earlier jobs stay.
        settings += ["private"] if self.fetch.allow_private else []
        settings += [{"captions_from": self.captions_from}] if self.captions_from else []
        settings += [] if self.needs_captions else ["no captions"]
        return json.dumps(settings, sort_keys=True, default=str)


@dataclass
class Draft:
    """A pair whose image has not been read or fetched yet."""

    pair: Pair
    source: str
    """A path, or an http(s) URL."""


@dataclass(frozen=True, kw_only=True)
class PairShard(abc.ABC):
    """Some of the pairs: iterating the shard reads them, in a fixed order.

    Raises:
        DataError: while iterating, the file has changed since it was opened.
        StorageError: while iterating, a store cannot be reached.
    """

    name: str
    """Unique among the shards opened together; without dots and slashes."""
    fingerprint: str
    """Changes with the source of its pairs: the rows of a table, the name and size of a tar.

    Images that a table only names are not part of it.
    """
    size: int | None
    """Number of pairs, including bad ones, if known before reading."""
    options: PairOptions
    """How it is read."""

    @property
    @abc.abstractmethod
    def origin(self) -> str:
        """The file or folder that it reads."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Pair | Bad]: ...

    @abc.abstractmethod
    def _drafts(self) -> Iterator[Pair | Bad | Draft]: ...

    def drafts(self) -> Iterator[Pair | Bad | Draft]:
        """Yield the same pairs, but a draft for each image that is not in the shard itself."""
        return self._drafts()


def check_shard_names(shards: Sequence[PairShard], verb: str) -> None:
    """Check that no two shards have the same name; `verb` is what is done with them.

    Raises:
        DataError: two have.
    """
    for name, count in Counter(shard.name for shard in shards).items():
        if count > 1:
            raise DataError(f"two input shards are named {name}: {verb} their folders one by one")


def digest_parts(*parts: str | bytes) -> str:
    """Return the hex SHA-256 of `parts`; moving a boundary between two parts changes it."""
    total = hashlib.sha256()
    for part in parts:
        # File names may be any bytes, hence surrogates.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def clean_uid(text: str) -> str:
    """Return `text` as a uid: letters, digits, `_` and `-`; anything else becomes `_`.

    A long text is cut and ends in a hash. Two texts can become the same uid: readers report the
    second as a duplicate.
    """
    uid = re.sub(r"[^\w\-]", "_", text.strip())
    if len(uid.encode()) > _LONGEST_UID:
        uid = f"{uid.encode()[:100].decode(errors='ignore')}_{digest_parts(text)[:16]}"
    return uid


def listed(names: list[str]) -> str:
    """Return names for a message, cut after twenty."""
    shown = ", ".join(names[:20])
    return f"{shown}, ... ({len(names)})" if len(names) > 20 else shown or "none"


def caption_key(column: str, position: int) -> str:
    """Return the caption key for the caption column at `position`."""
    return "text" if position == 0 else f"text_{clean_uid(column)}"


def collect_captions(values: Iterable[tuple[str, Any]]) -> dict[str, list[str]] | None:
    """Return captions by key from (column, value) pairs; None if the first column has none.

    A value is a text or a list of texts; numbers count as text. Empty texts, NaN, booleans,
    objects and bytes that are not UTF-8 are left out, and so are further columns without captions.
    """
    captions: dict[str, list[str]] = {}
    for position, (column, value) in enumerate(values):
        values_ = value if isinstance(value, (list, tuple)) else [value]
        texts = [text for text in map(caption_text, values_) if text]
        if texts:
            captions[caption_key(column, position)] = texts
        elif position == 0:
            return None
    return captions or None


def caption_text(value: object) -> str:
    """Return the caption in a cell, or an empty text if it has none."""
    if isinstance(value, bytes):  # a binary column
        try:
            return value.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            return ""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return cell_text(value).strip() if isinstance(value, str) or is_number else ""


def as_text(value: object) -> str:
    """Return `value` as text; booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cell_text(value: object) -> str:
    """Return a cell as text: like `as_text`, but 3.0 as `3` and NaN as an empty text.

    Many tools read a column of integers with an empty cell as floats, and the empty cell as NaN.
    """
    if not isinstance(value, float):
        return as_text(value)
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)


def is_empty(value: object) -> bool:
    """Return whether a cell is null, an empty text or NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def matches(value: object, required: object) -> bool:
    """Return whether a cell has the value required by `where`.

    Values are compared as text; `3` equals `3.0`, and an empty cell equals an empty text.
    """
    return _comparable(value) == _comparable(required)


def _comparable(value: object) -> str:
    text = "" if value is None else cell_text(value)
    return _WHOLE.sub(r"\1", text)


def plain(value: Any) -> Any:
    """Return `value` as plain JSON types."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # not a JSON number
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
