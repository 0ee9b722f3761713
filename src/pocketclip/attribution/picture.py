"""A photograph with the heat of several texts, drawn: panels, their texts, a legend.

The colours are those of inferno (Stéfan van der Walt and Nathaniel Smith, CC0), whose lightness
grows steadily: they can be read in grey and by colour-blind people. The photograph below is grey,
so that its own colours are not taken for heat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketclip.formats.escaping import escape_controls

SIDE = 320
"""The longer side of a panel in pixels, by default."""
_INFERNO = np.array(
    [(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51),
     (249, 140, 10), (249, 201, 50), (252, 255, 164)],
    np.float32,
)  # fmt: skip
_GAP, _COLUMNS = 12, 4
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (95, 95, 95)
_FONT, _LINE = 14, 18
_LINES = 2  # of a panel's text

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Panel = tuple[str, str, NDArray[np.float32]]
"""A text, what is said of it, and its grid (h, w)."""


def draw(
    photo: Image.Image,
    panels: Sequence[Panel],
    box: tuple[float, float, float, float],
    *,
    side: int,
    alpha: float,
) -> Image.Image:
    """Return the picture: the photograph, then one panel per text, row by row.

    Args:
        photo: upright.
        panels: at least one.
        box: what the model sees: left, top, right, bottom in pixels of the photograph.
        side: the longer side of a panel.
        alpha: how much the hottest places hide the photograph, 0 to 1.
    """
    scale = side / max(photo.size)
    width, height = (max(1, round(n * scale)) for n in photo.size)
    small = photo.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    seen = tuple(round(edge * scale) for edge in box)
    seen = (seen[0], seen[1], max(seen[2], seen[0] + 1), max(seen[3], seen[1] + 1))
    cell = max(width, 230)
    columns = min(_COLUMNS, len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    step_x, step_y = cell + _GAP, height + (_LINES + 1) * _LINE + _GAP
    page = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP + _LINE + 6), _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    left = (cell - width) // 2
    cells = [("the photograph", "", small)]
    for text, about, grid in panels:
        picture = _heated(small, grid, seen, alpha)
        cells.append((escape_controls(text), about, picture))
    for number, (title, below, picture) in enumerate(cells):
        row, column = divmod(number, columns)
        x, y = _GAP + column * step_x, _GAP + row * step_y
        page.paste(picture, (x + left, y))
        lines = _wrapped(pen, title, font, cell)
        for line, words in enumerate(lines):
            pen.text((x, y + height + 3 + line * _LINE), words, _INK, font)
        pen.text((x, y + height + 3 + len(lines) * _LINE), below, _FAINT, font)
    _legend(page, pen, font, rows * step_y + _GAP, cropped=seen != (0, 0, width, height))
    return page


def enlarge(grid: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a grid at another size (width, height), interpolated."""
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))


def _heated(
    photo: Image.Image, grid: NDArray[np.float32], seen: tuple[int, ...], alpha: float
) -> Image.Image:
    """Return the grey photograph with a grid's heat over what the model sees; the rest is faint."""
    left, top, right, bottom = seen
    grey = np.asarray(photo.convert("L"), np.float32)
    out = np.repeat((200 + 0.2 * grey)[..., None], 3, axis=2)  # not seen
    size = right - left, bottom - top
    strength = np.clip(enlarge(grid, size), 0, None)
    strength = strength / max(float(strength.max()), 1e-12)
    inside = grey[top:bottom, left:right]
    strength = strength[: inside.shape[0], : inside.shape[1]]
    cover = (alpha * np.sqrt(strength))[..., None]
    under = (0.75 * inside)[..., None]
    out[top:bottom, left:right] = under * (1 - cover) + _colours(strength) * cover
    return Image.fromarray(np.clip(out + 0.5, 0, 255).astype(np.uint8))


def _colours(strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return colours (..., 3) of strengths 0 to 1."""
    steps = np.linspace(0, 1, len(_INFERNO))
    bands = [np.interp(strength, steps, _INFERNO[:, band]) for band in range(3)]
    return np.stack(bands, axis=-1).astype(np.float32)


def _wrapped(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> list[str]:
    """Return a text in at most `_LINES` lines of a width in pixels; the last one may be cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:_LINES]
    if len(lines) > _LINES:
        shown[-1] += " ..."
    for number, line in enumerate(shown):
        cut = line
        while len(cut) > 1 and pen.textlength(cut, font) > width:
            cut = cut.removesuffix("...")[:-1] + "..."
        shown[number] = cut
    return shown


def _legend(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: Font,
    y: int,
    *,
    cropped: bool,
) -> None:
    """Draw what the colours mean."""
    x = _GAP
    pen.text((x, y), "less", _FAINT, font)
    x += round(pen.textlength("less ", font))
    bar = np.tile(_colours(np.linspace(0, 1, 120, dtype=np.float32)), (12, 1, 1))
    page.paste(Image.fromarray(bar.astype(np.uint8)), (x, y + 3))
    words = "more, within each panel"
    if cropped:
        words += "; faint: not seen by the model"
    pen.text((x + 126, y), words, _FAINT, font)
