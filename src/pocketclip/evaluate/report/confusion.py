"""A confusion matrix as a page of its own.

    confusion_page(outcome.confusion, outcome.classes, "small on groceries")

Shapes: C classes; the matrix is (C, C), rows true, columns predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.pages.render import render
from pocketclip.pages.svg import shorten, text_width

_COUNTED = 30  # up to this many classes the cells show their counts
_NAMED = 120  # up to this many the rows and columns have names, and the cells tooltips
_DARK = 0.7  # from this opacity on, text of the other colour is more legible
_CONFUSIONS = 10


def confusion_page(confusion: NDArray[np.int64], classes: Sequence[str], title: str) -> str:
    """Return one self-contained HTML page: the matrix, the worst confusions, recall per class.

    Args:
        confusion: (C, C) counts, true class by predicted class.
        classes: C names.
        title: of the page.

    Raises:
        DataError: the matrix is not (C, C), or holds a negative count.
    """
    matrix, count = np.asarray(confusion), len(classes)
    if matrix.shape != (count, count) or not count:
        raise DataError(f"a confusion matrix of shape {matrix.shape} does not fit {count} classes")
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0:
        raise DataError("a confusion matrix holds counts: whole numbers from 0 on")
    cell = 34.0 if count <= _COUNTED else max(2.0, min(18.0, 840 / count))
    font = 12.0 if count <= _COUNTED else min(11.0, 0.92 * cell)
    names = [shorten(name, font, 15 * font) for name in classes] if count <= _NAMED else []
    left = max((text_width(name, font) for name in [*names, "true \\ predicted"]), default=0) + 10
    sizes = matrix.sum(axis=1)
    shares = matrix / np.maximum(sizes, 1)[:, None]  # of each row; 0 where a class has no sample
    return render(
        "confusion.html",
        "pocketclip.evaluate.report",
        title=title,
        classes=classes,
        names=names,
        cell=cell,
        font=font,
        left=left,
        top=left if names else 4.0,
        total=int(matrix.sum()),
        right=int(np.trace(matrix)),
        empty=int((sizes == 0).sum()),
        cells=[(t, p, int(matrix[t, p]), float(shares[t, p]))
               for t, p in np.argwhere(matrix > 0).tolist()],
        opacity=_opacity,
        dark=_DARK,
        counted=count <= _COUNTED,
        confusions=_confusions(matrix, shares, classes),
        recalls=_recalls(matrix, classes),
    )  # fmt: skip


def _opacity(share: float) -> float:
    # Steeper at the start, so that rare confusions show beside the diagonal.
    return float(round(max(share**0.7, 0.04), 2))


def _confusions(matrix: NDArray[np.int64], shares: NDArray[np.float64],
                classes: Sequence[str]) -> list[list[str]]:  # fmt: skip
    wrong = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    return [
        [classes[t], classes[p], str(wrong[t, p]), f"{100 * shares[t, p]:.1f}"]
        for t, p in (divmod(int(i), len(classes)) for i in order)
        if wrong[t, p] > 0
    ]


def _recalls(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[list[str]]:
    """Return a row per class, the lowest recall first, classes without samples last."""
    sizes, right = matrix.sum(axis=1), np.diagonal(matrix)
    recall = np.where(sizes > 0, right / np.maximum(sizes, 1), np.inf)
    return [
        [classes[i], str(sizes[i]), str(right[i]), f"{100 * recall[i]:.1f}" if sizes[i] else "-"]
        for i in np.argsort(recall, kind="stable").tolist()
    ]
