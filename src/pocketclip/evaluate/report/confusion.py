"""A confusion plot as a page of its own.

    confusion_page(outcome.confusion, outcome.classes, "small on groceries")

Shapes: C classes; the matrix is (C, C), rows true, columns predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.evaluate.report.markup import cut, document, table, text, width_of

_COUNTED = 30  # up to so many classes the cells hold their counts
_NAMED = 120  # up to so many the rows and columns bear names
_DARK = 0.7  # from this opacity on, text of the other colour is the more legible
_CONFUSIONS = 10


def confusion_page(confusion: NDArray[np.int64], classes: Sequence[str], title: str) -> str:
    """Return one self-contained HTML page with the plot and what it says in words.

    Args:
        confusion: (C, C) counts, true class by predicted class.
        classes: C names.
        title: of the page.

    Raises:
        DataError: the matrix is not (C, C), or holds a negative count.
    """
    matrix = np.asarray(confusion)
    if matrix.shape != (len(classes), len(classes)) or not len(classes):
        raise DataError(
            f"a confusion matrix of shape {matrix.shape} does not fit {len(classes)} classes"
        )
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0:
        raise DataError("a confusion matrix holds counts: whole numbers from 0 on")
    parts = [
        f"<p>{text(_summary(matrix))}</p>",
        '<figure><div class="scroll" tabindex="0" role="region" aria-label="Confusion plot">',
        _plot(matrix, classes, title),
        f"</div><figcaption>{_scale()}Rows are the true classes, columns the predicted ones; the "
        "colour is a cell's share of its row. The diagonal is what was right.</figcaption>"
        "</figure>",
        "<h2>Most frequent confusions</h2>",
        _confusions(matrix, classes),
        "<h2>Recall per class</h2>",
        _recalls(matrix, classes),
    ]
    return document(title, "\n".join(parts))


def _shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return rows that sum to 1, or to 0 where a class has no sample."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _summary(matrix: NDArray[np.int64]) -> str:
    total, right = int(matrix.sum()), int(np.trace(matrix))
    empty = int((matrix.sum(axis=1) == 0).sum())
    if total == 0:
        return f"There is no sample of any of the {len(matrix)} classes."
    have = "class has" if empty == 1 else "classes have"
    without = f" {empty} {have} no sample." if empty else ""
    return (f"{right} of {total} samples in {len(matrix)} classes were right: "
            f"{100 * right / total:.1f} %.{without}")  # fmt: skip


def _plot(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> str:
    count = len(classes)
    cell = 34.0 if count <= _COUNTED else max(2.0, min(18.0, 840 / count))
    font = 12.0 if count <= _COUNTED else min(11.0, 0.92 * cell)
    names = [cut(name, font, 15 * font) for name in classes] if count <= _NAMED else []
    margin = max((width_of(name, font) for name in [*names, "true \\ predicted"]), default=0) + 10
    head = margin if names else 4.0
    side = cell * count
    width, height = margin + side + 4, head + side + 4
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="cm-t cm-d" '
        f'font-size="{font:.1f}" style="width: {width:.0f}px; max-width: none">',
        f'<title id="cm-t">{text(title)}: confusion matrix</title>',
        '<desc id="cm-d">Rows are true classes, columns predicted classes; the tables below give '
        "recall per class and the most frequent confusions.</desc>",
        f'<rect x="{margin:.1f}" y="{head:.1f}" width="{side:.1f}" height="{side:.1f}" '
        'fill="var(--cell)" stroke="var(--rule)"/>',
    ]
    for i, name in enumerate(names):
        along = head + (i + 0.5) * cell
        parts.append(f'<text x="{margin - 5:.1f}" y="{along + 0.35 * font:.1f}" '
                     f'text-anchor="end">{text(name)}</text>')  # fmt: skip
        across = margin + (i + 0.5) * cell + 0.35 * font
        parts.append(f'<text transform="translate({across:.1f} {head - 5:.1f}) rotate(-90)">'
                     f"{text(name)}</text>")  # fmt: skip
    if names:
        parts.append(f'<text x="{margin - 5:.1f}" y="{head - 5:.1f}" text-anchor="end" '
                     'style="fill: var(--dim)">true \\ predicted</text>')  # fmt: skip
    parts += _cells(matrix, classes, cell, (margin, head))
    return "\n".join([*parts, "</svg>"])


def _cells(
    matrix: NDArray[np.int64], classes: Sequence[str], cell: float, origin: tuple[float, float]
) -> list[str]:
    """Return what is in the cells that are not empty."""
    shares = _shares(matrix)
    parts = []
    for true, predicted in np.argwhere(matrix > 0).tolist():
        share, number = float(shares[true, predicted]), int(matrix[true, predicted])
        x, y = origin[0] + predicted * cell, origin[1] + true * cell
        about = f"{classes[true]}, taken for {classes[predicted]}: {number} ({share:.0%})"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
            f'fill="var(--heat)" fill-opacity="{_opacity(share):.2f}"'
            + (f"><title>{text(about)}</title></rect>" if len(classes) <= _NAMED else "/>")
        )
        if len(classes) <= _COUNTED:
            colour = "--high" if _opacity(share) > _DARK else "--low"
            parts.append(
                f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}" text-anchor="middle" '
                f'pointer-events="none" style="fill: var({colour})">{number}</text>'
            )
    return parts


def _opacity(share: float) -> float:
    # Steeper at the start: what is rare, though wrong, is to be seen beside the diagonal.
    return float(max(share**0.7, 0.04))


def _scale() -> str:
    """Return the key to the colours."""
    parts = [
        '<svg viewBox="0 0 330 34" role="img" font-size="12" style="width: 330px" '
        'aria-label="Scale of the colours, from 1 to 100 per cent of a row">'
    ]
    for step, share in enumerate((0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)):
        x = step * 46 + 1
        parts.append(
            f'<rect x="{x}" y="1" width="46" height="14" fill="var(--heat)" '
            f'fill-opacity="{_opacity(share):.2f}" stroke="var(--rule)"/>'
            f'<text x="{x + 23}" y="29" text-anchor="middle">{share:.0%}</text>'
        )
    return "".join([*parts, "</svg>"])


def _confusions(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [(int(i) // len(classes), int(i) % len(classes)) for i in order]
    shares = _shares(matrix)
    rows = [
        [text(classes[t]), text(classes[p]), str(wrong[t, p]), f"{100 * shares[t, p]:.1f}"]
        for t, p in pairs
        if wrong[t, p] > 0
    ]
    if not rows:
        return "<p>There is none.</p>"
    head = ["true class", "taken for", "samples", "% of the class"]
    return table(f"The {len(rows)} most frequent.", head, rows, kind="names")


def _recalls(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    sizes, right = matrix.sum(axis=1), np.diagonal(matrix)
    recall = np.where(sizes > 0, right / np.maximum(sizes, 1), np.inf)
    rows = []
    for i in np.argsort(recall, kind="stable").tolist():
        share = f"{100 * recall[i]:.1f}" if sizes[i] else "-"
        rows.append([text(classes[i]), str(sizes[i]), str(right[i]), share])
    head = ["class", "samples", "right", "recall, %"]
    return table("The lowest first; a class without samples has none.", head, rows)
