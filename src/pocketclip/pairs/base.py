"""What all forms of pairs share: options, shards, columns, names."""

from __future__ import annotations

import abc
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketclip.errors import ConfigError, DataError
from pocketclip.storage import photos
from pocketclip.storage.http import FetchOptions
from pocketclip.types import Bad, Pair

IMAGE_SUFFIXES = (*photos.IMAGE_EXTENSIONS, "img")
MAX_TEXT = 1 << 24
"""No caption, and no JSON of a sample, may have more bytes: 16 MiB."""
# Guessed in this order of classes: what is at hand comes before what has to be fetched.
_HELD = (
    *("filepath", "image", "image_path", "img", "img_path", "path", "file", "file_path"),
    *("filename", "file_name", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes"),
    *("image/encoded", "image_raw", "image_base64"),
)
_URLS = ("url", "image_url", "img_url", "image_link", "image/url")
_CAPTIONS = (
    *("caption", "captions", "text", "txt", "title", "alt_text", "alt", "sentence"),
    *("image/caption", "image/text"),
)
_LONGEST_UID = 160
_WHOLE = re.compile(r"^(-?[0-9]+)\.0+$")
_LARGEST_SHARD = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are read. What is None or empty is guessed, or does not apply.

    In tars a column is a member's extension (`jpg`, `txt`) or a key of the member `json`; in
    tfrecords it is a feature.
    """

    image_column: str | None = None
    """Paths (relative to the table's folder), URLs, bytes, or base64."""
    caption_columns: tuple[str, ...] = ()
    """The first becomes the key `text`; a further one COLUMN becomes `text_COLUMN`."""
    uid_column: str | None = None
    """Default: the row's number in its file, from 0, before `where`, in eight digits."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Only rows with these values count, see `matches`; the others are not even Bad."""
    meta_columns: tuple[str, ...] = ()
    """Further columns to carry along in `Pair.meta`."""
    shard_size: int = 1000
    """Pairs per shard of a table or folder; a tar or a tfrecord file is one shard."""
    delimiter: str | None = None
    """Of a csv or tsv. Default: the one of tab, comma, semicolon and `|` that separates the columns
    of its first line."""
    columns: tuple[str, ...] = ()
    """The names of a csv's or tsv's columns, if its first line does not give them."""
    quotes: bool = True
    """Whether double quotes in a csv or tsv enclose a field; False takes them as they are."""
    fetch: FetchOptions = field(default_factory=FetchOptions)
    fetch_missing: bool = False
    """Whether samples of tars without an image are fetched by their URL; tables always are."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ConfigError(f"pairs: shard_size is {self.shard_size}; 1 is the least")
        if self.shard_size > _LARGEST_SHARD:
            raise ConfigError(
                f"pairs: shard_size is {self.shard_size:,}; {_LARGEST_SHARD:,} is the most"
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ConfigError(
                f"pairs: delimiter is {self.delimiter!r}; it is one character, and no quote"
            )
        for name in ("caption_columns", "meta_columns", "columns"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"pairs: {name} is a str; give a tuple of names")

    def identity(self) -> str:
        """Return what of the options decides the content of a shard, as JSON."""
        taken: list[Any] = [
            self.image_column,
            self.caption_columns,
            self.uid_column,
            dict(self.where),
        ]
        taken += [self.meta_columns, self.delimiter, self.columns, self.quotes]
        private = ["private"] if self.fetch.allow_private else []
        return json.dumps([*taken, self.fetch_missing, *private], sort_keys=True, default=str)


@dataclass
class Draft:
    """A pair whose image is still to be read or fetched."""

    pair: Pair
    source: str
    """A path, or an http(s) URL."""


@dataclass(frozen=True, kw_only=True)
class PairShard(abc.ABC):
    """A part of the pairs, without the pairs: iterating it reads them, in a fixed order.

    Raises:
        DataError: iterating it, the file is no longer what it was when it was opened.
        StorageError: iterating it, a store cannot be reached.
    """

    name: str
    """Unique among the shards that were opened together; has no dot and no slash."""
    fingerprint: str
    """Changes when what decides its pairs does: the rows of a table, the name and size of a tar.

    Images that a table only names do not enter.
    """
    size: int | None
    """Number of pairs, bad ones too, where that is known before it is read."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Pair | Bad]: ...

    @abc.abstractmethod
    def _drafts(self) -> Iterator[Pair | Bad | Draft]: ...

    def drafts(self) -> Iterator[Pair | Bad | Draft]:
        """Yield what iterating does, but with images that are elsewhere not read: as drafts."""
        return self._drafts()


def digest_parts(*parts: str | bytes) -> str:
    """Return a SHA-256 of `parts` and where they end."""
    total = hashlib.sha256()
    for part in parts:
        # File names may be any bytes.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def clean_uid(text: str) -> str:
    """Return `text` as a uid: letters, digits, `_` and `-`; anything else becomes `_`.

    A long one is cut and ends in a hash. Two texts can become the same uid: readers report the
    second.
    """
    uid = re.sub(r"[^\w\-]", "_", text.strip())
    if len(uid.encode()) > _LONGEST_UID:
        uid = f"{uid.encode()[:100].decode(errors='ignore')}_{digest_parts(text)[:16]}"
    return uid


@dataclass(frozen=True)
class Columns:
    """The columns that are read, by what they hold."""

    image: str
    captions: tuple[str, ...]
    url: str | None


def choose_columns(names: Iterable[str], options: PairOptions, path: str) -> Columns:
    """Return which of the columns `names` hold what: as `options` say, or by common names.

    Raises:
        DataError: a column of the options is not there, or a guess finds none or several.
    """
    there = list(names)
    asked = [options.image_column, *options.caption_columns, options.uid_column]
    for name in [*asked, *options.where, *options.meta_columns]:
        if name is not None and name not in there:
            raise DataError(f"{path}: there is no column {name!r}; there are: {_listed(there)}")
    image = options.image_column
    if image is None:
        held = _among(there, _HELD)
        image = _only(held or _among(there, _URLS), there, path, "image", "--image-column")
    captions = options.caption_columns
    if not captions:
        found = _among(there, _CAPTIONS)
        captions = (_only(found, there, path, "caption", "--caption-column"),)
    urls = [name for name in _among(there, _URLS) if name != image]
    return Columns(image, tuple(captions), urls[0] if len(urls) == 1 else None)


def count_known(names: Iterable[str], options: PairOptions) -> int:
    """Return how many of the columns `names` are asked for in `options` or have common names."""
    asked = {options.image_column, *options.caption_columns, options.uid_column}
    asked |= {*options.where, *options.meta_columns}
    common = {*_HELD, *_URLS, *_CAPTIONS}
    return sum(name in asked or name.strip().lower() in common for name in names)


def _among(names: list[str], known: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.strip().lower() in known]


def _only(found: list[str], there: list[str], path: str, what: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    state = f"several columns could hold the {what}s" if found else f"no {what} column"
    hint = ", or say how columns are separated with --delimiter" if len(there) == 1 else ""
    raise DataError(f"{path}: {state}; choose with {option} among: {_listed(found or there)}{hint}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown}, ... ({len(names)})" if len(names) > 20 else shown or "none"


def caption_key(column: str, position: int) -> str:
    """Return the key of the captions of the column at `position` among the caption columns."""
    return "text" if position == 0 else f"text_{clean_uid(column)}"


def collect_captions(values: Iterable[tuple[str, Any]]) -> dict[str, list[str]] | None:
    """Return the captions by key of (column, value) pairs; None if the first has none.

    A value is a text or a list of texts; numbers count as text. Empty ones, NaN, true and false,
    objects and bytes that are not UTF-8 are left out, and so is a further column that has nothing
    else.
    """
    captions: dict[str, list[str]] = {}
    for position, (column, value) in enumerate(values):
        several = value if isinstance(value, (list, tuple)) else [value]
        texts = [text for text in map(caption_text, several) if text]
        if texts:
            captions[caption_key(column, position)] = texts
        elif position == 0:
            return None
    return captions or None


def caption_text(value: object) -> str:
    """Return the caption that a cell holds, or an empty text if it holds none."""
    if isinstance(value, bytes):  # a binary column
        try:
            return value.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            return ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return cell_text(value).strip() if isinstance(value, str) or number else ""


def as_text(value: object) -> str:
    """Return `value` as it is compared in `where`: true and false in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cell_text(value: object) -> str:
    """Return a cell as text: as `as_text` does, but 3.0 as `3`, and NaN as nothing.

    A table with an empty cell among its whole numbers is read as floats by many tools, and the
    empty one as NaN.
    """
    if not isinstance(value, float):
        return as_text(value)
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)


def is_empty(value: object) -> bool:
    """Return whether a cell holds nothing: null, an empty text, or NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def matches(value: object, wanted: object) -> bool:
    """Return whether a cell has a value that `where` asks for.

    They are compared as text; `3` and `3.0` are one number, and a cell of nothing is empty text.
    """
    return _compared(value) == _compared(wanted)


def _compared(value: object) -> str:
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
        return None  # JSON has no such number
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
