"""The user's images as tables of paths: what is trained on, and the validation set.

DATA/train.csv                   image, caption, generic_1, ...: pairs for `pocketclip reinforce`
     validation/test.csv         image and label, or caption: a set for `pocketclip eval`
     validation/classnames.txt, validation/zeroshot_classification_templates.txt
     images/                     only images that are not files: those of tars

The tables name the user's image files, which stay where they are.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import CLASSES, TEMPLATES
from pocketclip.finetune.generic import training_captions
from pocketclip.finetune.own_images import OwnImages
from pocketclip.storage.local import write_whole

TRAIN, VALIDATION, IMAGES = "train.csv", "validation", "images"
GENERIC = 4
"""Generic captions of each image."""


def generic_columns() -> tuple[str, ...]:
    """Return the columns of the generic captions."""
    return tuple(f"generic_{number}" for number in range(1, GENERIC + 1))


def generic_captions(own: OwnImages, rows: int, seed: int) -> list[list[str]]:
    """Return generic captions for each of a number of rows, all used equally often.

    None of them contains one of the user's labels as a word: what is learnt about those would be
    held back.

    Raises:
        DataError: the labels leave too few.
    """
    words = [re.escape(name.strip().casefold()) for name in own.classes if name.strip()]
    avoided = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None
    texts = [
        text for text in training_captions() if not (avoided and avoided.search(text.casefold()))
    ]
    if len(texts) < GENERIC:
        raise DataError(
            f"the labels name nearly all of the {len(training_captions())} generic captions: "
            "pass --no-self-distillation, without --teacher"
        )
    rng = np.random.default_rng(seed)
    drawn: list[str] = []
    while len(drawn) < rows * GENERIC:
        drawn += [texts[number] for number in rng.permutation(len(texts))]
    return [drawn[row * GENERIC : (row + 1) * GENERIC] for row in range(rows)]


def write_tables(
    folder: Path,
    own: OwnImages,
    held_out: NDArray[np.bool_],
    seed: int,
    said: Mapping[str, int] | None = None,
    *,
    generic: bool = True,
    unreadable: Collection[str] = (),
) -> int:
    """Write the tables of the training and validation images; return the number of training rows.

    An image with several captions has a row for each. Reinforced shards get no training table.

    Args:
        folder: gets the tables.
        own: the images.
        held_out: (N,), whether each is for validation.
        seed: of the choice of generic captions.
        said: for images without texts: which of `training_captions()` a teacher chose for each
            validation image, by its name; -1 for one that could not be read.
        generic: give each training row generic captions.
        unreadable: names of validation images to leave out.

    Raises:
        DataError: a file name that no table can hold, or see `generic_captions`.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [int(i) for i in np.flatnonzero(held_out) if own.names[i] not in unreadable]
    _write_validation(folder, own, np.array(shown, np.int64), said or {})
    if own.is_shards:
        return int((~held_out).sum())
    rows = [
        [_path(folder, own, int(i)), text]
        for i in np.flatnonzero(~held_out)
        for text in own.captions[i] or [""]
    ]
    columns = generic_columns() if generic else ()
    texts = generic_captions(own, len(rows), seed) if generic else [[]] * len(rows)
    _write(
        folder / TRAIN,
        ("image", "caption", *columns),
        [row + more for row, more in zip(rows, texts, strict=True)],
    )
    return len(rows)


def _write_validation(
    folder: Path, own: OwnImages, chosen: NDArray[np.int64], said: Mapping[str, int]
) -> None:
    target = folder / VALIDATION
    target.mkdir(exist_ok=True)
    paths = [_path(folder, own, int(i)) for i in chosen]
    if own.labels is None and own.kind != "none":
        captions = [
            [path, text] for path, i in zip(paths, chosen, strict=True) for text in own.captions[i]
        ]
        _write(target / "test.csv", ("image", "caption"), captions)
        return
    # Numbers, so that a class may have any name.
    if own.labels is not None:
        labels, classes = own.labels[chosen].tolist(), own.classes
    else:
        labels, classes = [said[own.names[i]] for i in chosen], list(training_captions())
    rows = [[path, str(n)] for path, n in zip(paths, labels, strict=True) if n >= 0]
    names = [f"{number}\t{' '.join(name.split())}" for number, name in enumerate(classes)]
    _lines(target / CLASSES, names)
    _lines(target / TEMPLATES, own.templates or ["{}"])
    _write(target / "test.csv", ("image", "label"), rows)


def _path(folder: Path, own: OwnImages, number: int) -> str:
    """Return an image's absolute path; the bytes of one that is not a file are written first."""
    image = own.images[number]
    if isinstance(image, str):
        path = image if storage.is_remote(image) else os.path.abspath(image)  # noqa: PTH100
    else:
        target = folder / IMAGES / f"{number:08d}.img"
        if not target.is_file():
            target.parent.mkdir(exist_ok=True)
            with write_whole(target) as temporary:
                temporary.write_bytes(image)
        path = str(target.absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path!r}: rename the file: its name is not UTF-8") from None
    return path


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(head)
        writer.writerows(rows)


def _lines(path: Path, lines: Sequence[str]) -> None:
    with write_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")
