"""The user's own images, whatever they are given as: labelled, captioned, or without texts.

    own = read_images("shelf/")                                    # one folder per label
    own = read_images("pairs.csv", DataOptions(caption_column="title"))

Image files are not copied and not decoded here: a table or folder is read as paths.

Shapes: N images, L classes.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import DataError, count_of
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.evaluate.datasets.find import find, own_task
from pocketclip.evaluate.datasets.labelled_images import read_labelled
from pocketclip.evaluate.datasets.rows import SUFFIXES as TABLES
from pocketclip.formats.json_text import digest_json
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pairs.base import Draft
from pocketclip.prompts import fill_templates
from pocketclip.storage.photos import find_photographs, is_hidden, is_photograph
from pocketclip.types import Bad, Pair

Kind = Literal["labels", "captions", "none"]
_LOOKED_AT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnImages:
    """Images with the texts that belong to them."""

    source: str
    kind: Kind
    names: list[str]
    """(N,), unique, relative to the folder or table: what the split is made by."""
    images: list[bytes | str]
    """(N,), encoded files or paths."""
    captions: list[list[str]]
    """(N,), each image's own texts; with labels the label in the first prompt."""
    labels: NDArray[np.int64] | None = None
    """(N,), indices of `classes`."""
    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    """The prompts of the validation, with `{c}` or `{}` for the class name."""
    is_shards: bool = False
    """Whether the source is reinforced shards; `images` then has no training images."""
    left_out: list[str] = field(default_factory=list)
    """Why each image that cannot be used was left out."""

    def __len__(self) -> int:
        return len(self.names)


def read_images(
    source: str, options: DataOptions | None = None, *, unlabelled: bool = False
) -> OwnImages:
    """Return the images of a folder by class, a table, a folder with captions, or a plain folder.

    Args:
        source: the folder or table.
        options: columns, conditions, class names and prompts; None: the usual ones.
        unlabelled: ignore labels and captions, and the names of folders.

    Raises:
        DataError: there are no usable images, labels that nothing can be learnt from, or image
            URLs.
        StorageError: the source cannot be read.
    """
    options = options or DataOptions(split="train")
    kind: Kind = "none" if unlabelled else kind_of(source, options)
    if kind == "labels":
        return _labelled(source, options)
    return _captioned(source, options) if kind == "captions" else _unlabelled(source)


def kind_of(source: str, options: DataOptions) -> Kind:
    """Return what texts the images of a source have: labels, captions or none."""
    if options.label_column:
        return "labels"
    if options.caption_column:
        return "captions"
    if not storage.is_remote(source) and Path(source).is_dir():
        kind = _kind_of_folder(Path(source))
        if kind is not None:
            return kind
    elif not source.lower().endswith(TABLES):
        return "captions"  # parquet, tars, tfrecords, patterns
    kind_found = find(own_task(source), source, options).kind
    return "labels" if kind_found == "classification" else "captions"


def _kind_of_folder(folder: Path) -> Kind | None:
    """Return the kind of a folder of image files; None for one with a table or with tars."""
    names = [entry.name for entry in os.scandir(folder) if not is_hidden(entry.name)]
    if any(name.lower().endswith((*TABLES, ".tar")) for name in names):
        return None
    loose = [name for name in names if is_photograph(name)]
    inner = [folder / name for name in sorted(names) if (folder / name).is_dir()]
    if _has_texts(folder) or any(map(_has_texts, inner[:_LOOKED_AT])):
        return "captions"
    if loose and not inner:
        return "none"
    if loose:
        raise DataError(
            f"{folder} has {count_of(len(loose), 'photograph')} beside its folders: put each "
            "photograph into the folder of its label, or pass --unlabelled to learn without labels"
        )
    return "labels"


def _has_texts(folder: Path) -> bool:
    """Return whether a photograph of the folder has a text file of the same name."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return False
    stems = {Path(name).stem for name in names if name.lower().endswith(".txt")}
    return any(is_photograph(name) and Path(name).stem in stems for name in names)


def _labelled(source: str, options: DataOptions) -> OwnImages:
    read = read_labelled(source, options)
    texts = fill_templates(read.classes, read.templates[:1])
    return OwnImages(
        source=source,
        kind="labels",
        names=read.names,
        images=read.images,
        captions=[[" ".join(texts[label].split())] for label in read.labels],
        labels=read.labels,
        classes=read.classes,
        templates=read.templates,
        left_out=read.left_out,
    )


def _captioned(source: str, options: DataOptions) -> OwnImages:
    columns = (options.caption_column,) if options.caption_column else ()
    pairs = PairOptions(
        image_column=options.image_column, caption_columns=columns, where=dict(options.where)
    )
    images: dict[str, bytes | str] = {}
    captions: dict[str, list[str]] = {}
    left_out: list[str] = []
    for item in _items(source, pairs):
        if isinstance(item, Bad):
            left_out.append(f"{item.uid}: {item.reason}")
            continue
        image: bytes | str | None = item.source if isinstance(item, Draft) else item.image
        pair = item.pair if isinstance(item, Draft) else item
        texts = [" ".join(text.split()) for text in pair.captions.get("text", [])]
        if image is None or not any(texts):
            left_out.append(f"{pair.uid}: {'no image' if image is None else 'empty caption'}")
            continue
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise DataError(
                f"{source}: {image} is a URL, and fine-tuning reads image files only: download "
                "the images first"
            )
        name = _relative(image, source) if isinstance(image, str) else pair.uid
        images.setdefault(name, image)
        own = captions.setdefault(name, [])
        own += [text for text in texts if text and text not in own]
    if len(images) < 2:
        example = f"; the first one left out: {left_out[0]}" if left_out else ""
        raise DataError(f"{source}: {count_of(len(images), 'image')} with a caption{example}")
    read = OwnImages(
        source=source,
        kind="captions",
        names=list(images),
        images=list(images.values()),
        captions=list(captions.values()),
        left_out=left_out,
    )
    return with_repeated_captions(read)


def _items(source: str, options: PairOptions) -> Iterator[Pair | Bad | Draft]:
    for shard in open_pairs(source, options):
        yield from shard.drafts()


def with_repeated_captions(read: OwnImages) -> OwnImages:
    """Return captions that repeat as classes of their own, named by the whole text.

    Retrieval would count an image's caption as wrong where an equal one of another image is found.
    """
    first = [texts[0] for texts in read.captions]
    counts = Counter(first)
    if len(counts) < 2 or 2 * len(counts) > len(first):
        return read
    classes = sorted(counts)
    number = {text: position for position, text in enumerate(classes)}
    return replace(
        read,
        captions=[[text] for text in first],
        labels=np.array([number[text] for text in first], np.int64),
        classes=classes,
        templates=["{}"],
    )


def digest(own: OwnImages) -> str:
    """Return a hash that changes when images, texts, labels or prompts do."""
    texts = [[n, t] for n, t in zip(own.names, own.captions, strict=True)]
    labels = None if own.labels is None else own.labels.tolist()
    files = [] if own.is_shards else [_version_of(image) for image in own.images]
    return digest_json([texts, labels, own.classes, own.templates, files])


def _version_of(image: bytes | str) -> list[int]:
    """Return numbers that change when an image does, without reading a file."""
    if isinstance(image, bytes):
        return [len(image), zlib.crc32(image)]
    try:
        facts = Path(image).stat()
    except (OSError, ValueError):  # in an object store, or missing, which is found out later
        return []
    return [facts.st_size, facts.st_mtime_ns]


def only(own: OwnImages, chosen: NDArray[np.bool_]) -> OwnImages:
    """Return the chosen ones (N,) of some images."""
    numbers = np.flatnonzero(chosen)
    return replace(
        own,
        names=[own.names[i] for i in numbers],
        images=[own.images[i] for i in numbers],
        captions=[own.captions[i] for i in numbers],
        labels=None if own.labels is None else own.labels[numbers],
    )


def _unlabelled(source: str) -> OwnImages:
    if storage.is_remote(source) or not Path(source).is_dir():
        raise DataError(f"{source}: images without texts are read from a folder only: give theirs")
    paths = find_photographs([source]).paths
    images: list[bytes | str] = [str(path.absolute()) for path in paths]
    return OwnImages(
        source=source,
        kind="none",
        names=[_relative(str(path), source) for path in images],
        images=images,
        captions=[[] for _ in paths],
    )


def _relative(path: str, source: str) -> str:
    """Return an image's path relative to its folder or table: moving both changes nothing."""
    folder = source if storage.is_remote(source) or Path(source).is_dir() else ""
    root = folder or (str(Path(source).parent) if not storage.is_remote(source) else source)
    if storage.is_remote(path):
        return path
    absolute = os.path.abspath(path)  # noqa: PTH100 - links stay links
    base = os.path.abspath(root)  # noqa: PTH100
    inside = absolute.startswith(f"{base}{os.sep}")
    return absolute[len(base) + 1 :].replace(os.sep, "/") if inside else absolute
