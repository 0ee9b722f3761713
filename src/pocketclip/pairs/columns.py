"""The columns of a table: which one holds the images, which the captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.pairs.base import PairOptions, listed
from pocketclip.pairs.stored_captions import choose_keys

# Columns that hold images are preferred to columns of URLs, which have to be fetched.
_IMAGES = (
    *("filepath", "image", "image_path", "img", "img_path", "path", "file", "file_path"),
    *("filename", "file_name", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes"),
    *("image/encoded", "image_raw", "image_base64"),
)
_URLS = ("url", "image_url", "img_url", "image_link", "image/url")
_CAPTIONS = (
    *("caption", "captions", "text", "txt", "title", "alt_text", "alt", "sentence"),
    *("image/caption", "image/text"),
)


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read."""

    image: str
    captions: tuple[str, ...]
    url: str | None
    stored: Mapping[str, str] = field(default_factory=dict)
    """Columns of `PairOptions.captions_from`, and the key of each."""


def choose_columns(names: Iterable[str], options: PairOptions, path: str) -> Columns:
    """Choose columns from `names`: those named in `options`, else by common names.

    Raises:
        DataError: a column named in the options does not exist, or a guess finds none or several.
    """
    existing = list(names)
    requested = [options.image_column, *options.caption_columns, options.uid_column]
    for name in [*requested, *options.where, *options.meta_columns]:
        if name is not None and name not in existing:
            raise DataError(
                f"{path}: there is no column {name!r}; the columns are: {listed(existing)}"
            )
    image = options.image_column
    if image is None:
        candidates = _among(existing, _IMAGES) or _among(existing, _URLS)
        if not candidates and "uid" in existing and storage.exists(f"{path}.json"):
            raise DataError(
                f"{path}: a table of captions of images within tars or tables does not say where "
                "the images are: `pocketclip reinforce TARS --captioner MODEL` stores them together"
            )
        image = _only(candidates, existing, path, "image", "--image-column")
    stored = choose_keys(existing, options.captions_from, path)
    captions = options.caption_columns
    if not captions:
        candidates = _among(existing, _CAPTIONS)
        candidates = [name for name in candidates if name not in stored] or candidates
        if not candidates and not options.needs_captions:
            return Columns(image, (), _url_of(existing, image), stored)
        captions = (_only(candidates, existing, path, "caption", "--caption-column"),)
    return Columns(image, tuple(captions), _url_of(existing, image), stored)


def _url_of(existing: list[str], image: str) -> str | None:
    urls = [name for name in _among(existing, _URLS) if name != image]
    return urls[0] if len(urls) == 1 else None


def count_known(names: Iterable[str], options: PairOptions) -> int:
    """Return how many of the columns `names` are named in `options` or have common names."""
    requested = {options.image_column, *options.caption_columns, options.uid_column}
    requested |= {*options.where, *options.meta_columns}
    common = {*_IMAGES, *_URLS, *_CAPTIONS}
    return sum(name in requested or name.strip().lower() in common for name in names)


def _among(names: list[str], known: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.strip().lower() in known]


def _only(candidates: list[str], existing: list[str], path: str, what: str, option: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    state = f"several columns could hold the {what}s" if candidates else f"no {what} column"
    hint = ", or say how columns are separated with --delimiter" if len(existing) == 1 else ""
    names = listed(candidates or existing)
    raise DataError(f"{path}: {state}; choose with {option} among: {names}{hint}")
