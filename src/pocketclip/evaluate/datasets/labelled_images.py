"""A user's labelled photographs, read whole: names, images, labels, classes.

    photographs = read_labelled("shelf/")            # one folder per label
    photographs = read_labelled("pairs.csv", DataOptions(label_column="product", split="train"))

Labels that would teach nothing, or something wrong, are refused here for all that learn from
labels.

Shapes: N photographs, L classes.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError, count_of
from pocketclip.evaluate.datasets.examples import DataOptions, Example
from pocketclip.evaluate.datasets.find import find, own_task
from pocketclip.evaluate.datasets.folders import subfolders
from pocketclip.evaluate.datasets.rows import SUFFIXES

log = logging.getLogger(__name__)
_MANY = 30
"""From this number of classes on, labels that hardly repeat are taken for captions."""
_LONG = 80
"""A label of more characters is taken for a caption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Photographs with one label each."""

    source: str
    names: list[str]
    """Unique, relative to the folder or table: what a split is made by. A photograph that is
    listed twice occurs once."""
    images: list[bytes | str]
    """Encoded files or paths."""
    labels: NDArray[np.int64]
    """(N,), indices of `classes`."""
    classes: list[str]
    """L class names; some may have no photograph."""
    templates: list[str]
    """The set's prompts, with `{c}` or `{}` for the class name."""
    left_out: list[str] = field(default_factory=list)
    """Why each photograph that has several labels was left out."""

    def __len__(self) -> int:
        return len(self.names)

    def counts(self) -> NDArray[np.int64]:
        """Return the number of photographs per class (L,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)


def read_labelled(source: str, options: DataOptions | None = None) -> LabelledImages:
    """Return the labelled photographs of a folder by class, a table, or a webdataset.

    Args:
        source: a folder with one sub-folder per label (or `train/LABEL/`), or a table.
        options: columns, conditions and names; None: the usual ones, of the split `train`.

    Raises:
        DataError: there are no labels, `check_classes` refuses them, or columns or conditions are
            given for a folder.
        StorageError: the source cannot be read.
    """
    options = options or DataOptions(split="train")
    data = find(own_task(source), source, options)
    if data.kind != "classification" or data.classes is None:
        raise DataError(
            f"{source} has no labels: give a folder with one sub-folder per label, or name the "
            "table's column of labels with --label-column"
        )
    by_folder = not data.path.lower().endswith(SUFFIXES)
    if by_folder and (options.where or options.label_column or options.image_column):
        raise DataError(
            f"{source} is a folder with one sub-folder per label: --where, --label-column and "
            "--image-column choose rows and columns of a table; leave them out"
        )
    examples: dict[str, Example] = {}
    twice: set[str] = set()
    for example in data:
        if not isinstance(example, Example) or example.label is None:
            continue
        name = _relative(example, data.path)
        if examples.setdefault(name, example).label != example.label:
            twice.add(name)
    for name in twice:
        del examples[name]
    if twice:
        log.warning(
            "%s: left out since they have several labels: %s, %s%s",
            source, count_of(len(twice), "photograph"), min(twice), ", ..." * (len(twice) > 1),
        )  # fmt: skip
    read = LabelledImages(
        source=source,
        names=list(examples),
        images=[example.image for example in examples.values()],
        labels=np.array([example.label for example in examples.values()], np.int64),
        classes=data.classes,
        templates=list(data.templates or ()),
        left_out=[f"{name}: has several labels" for name in sorted(twice)],
    )
    if by_folder:
        _warn_of_empty(data.path, read.names)
    check_classes(source, read.classes, read.counts().tolist(), deliberate=by_folder)
    return read


def _warn_of_empty(path: str, names: Sequence[str]) -> None:
    """Log the class folders that hold no photograph."""
    used = {name.partition("/")[0] for name in names}
    folders = subfolders(path)
    empty = [folder for folder in folders if folder not in used]
    if empty and len(empty) < len(folders):  # a webdataset may have folders for other things
        log.warning(
            "%s: left out since they hold no photograph: %s, %s%s", path,
            count_of(len(empty), "folder"), ", ".join(empty[:3]), ", ..." * (len(empty) > 3),
        )  # fmt: skip


def _relative(example: Example, root: str) -> str:
    """Return a photograph's name within the set; the same photograph has the same name."""
    if not isinstance(example.image, str):
        return example.name
    path = example.image.replace("\\", "/")
    for base in (root, root.rpartition("/")[0]):
        start = f"{base.rstrip('/')}/" if base else ""
        if start and path.startswith(start):
            return path[len(start) :]
    return path.removeprefix("./")  # of a table in the current folder


def check_classes(
    source: str, classes: Sequence[str], counts: Sequence[int], *, deliberate: bool = False
) -> None:
    """Refuse labels that nothing can be learnt from.

    Args:
        source: for the message.
        classes: the class names.
        counts: photographs per class.
        deliberate: the classes are folders, which nobody makes by mistake: they may have one
            photograph each.

    Raises:
        DataError: fewer than two classes have photographs; two labels differ in case, spaces or
            Unicode form only; or the labels are captions or names of single photographs.
    """
    present = {name: count for name, count in zip(classes, counts, strict=True) if count}
    if len(present) < 2:
        only = next(iter(present), None)
        raise DataError(
            f"{source}: {'no label has' if only is None else f'only one label, {only!r}, has'} "
            "photographs; at least two labels are needed to tell them apart"
        )
    first: dict[str, str] = {}
    for name in present:
        same = first.setdefault(_folded(name), name)
        if same != name:
            raise DataError(
                f"{source}: the labels {same!r} ({present[same]} photographs) and {name!r} "
                f"({present[name]}) differ in case, spaces or Unicode form only: give them one "
                "spelling, or they are learnt as two classes"
            )
    longest = max(present, key=len)
    total = sum(present.values())
    single = Counter(present.values())[1]
    hardly_repeat = len(present) >= _MANY and 2 * single > len(present) and 2 * len(present) > total
    hardly_repeat = hardly_repeat and not deliberate
    if hardly_repeat or len(longest) > _LONG:
        what = (
            f"{len(present):,} distinct labels for {total:,} photographs"
            if hardly_repeat
            else f"the label {longest[:60] + '...'!r} has {len(longest)} characters"
        )
        raise DataError(
            f"{source}: {what}: this looks like a column of captions or names, not of labels; "
            "choose another --label-column (captions: --caption-column)"
        )


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
