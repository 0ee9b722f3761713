"""Draw a contact sheet of a reinforced dataset: originals, replayed augmentations, captions.

A materialised set has no originals; its stored views are drawn.

sheet(samples, augmentation).save("page.png")
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pocketclip.augment import Augmentation
from pocketclip.images import open_image
from pocketclip.types import Sample

_TILE = 160
_GAP = 8
_LINE = 17
_INK, _PALE, _PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)


def sheet(
    samples: Sequence[Sample], augmentation: Augmentation | None, *, views: int = 6
) -> Image.Image:
    """Return a page with a row per sample: image, up to `views` replayed augmentations, captions.

    Raises:
        AugmentationError: stored parameters do not fit the augmentation.
        ImageError: an image cannot be decoded.
    """
    views = (
        min(views, max(len(sample.param_aug or []) for sample in samples)) if augmentation else 0
    )
    views = max(views, 3)  # room for captions
    rows = [_row(sample, augmentation, views) for sample in samples]
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, sum(row.height for row in rows)), _PAPER)
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def _row(sample: Sample, augmentation: Augmentation | None, views: int) -> Image.Image:
    tiles = []
    if sample.image is not None:
        picture = open_image(sample.image)
        tiles.append(picture)
        if augmentation is not None:
            tiles += [
                Image.fromarray(augmentation.apply(picture, augmentation.unpack(packed)))
                for packed in (sample.param_aug or [])[:views]
            ]
    tiles += [open_image(view) for view in (sample.views or ())[:views]]
    width = (views + 1) * (_TILE + _GAP) + _GAP
    lines = _lines(sample, width - 2 * _GAP)
    row = Image.new("RGB", (width, _TILE + 4 * _GAP + _LINE * len(lines)), _PAPER)
    draw = ImageDraw.Draw(row)
    for i, tile in enumerate(tiles):
        shown = _fitted(tile)
        left = _GAP + i * (_TILE + _GAP)
        row.paste(shown, (left + (_TILE - shown.width) // 2, _GAP + (_TILE - shown.height) // 2))
    for i, (text, ink) in enumerate(lines):
        draw.text((_GAP, _TILE + 2 * _GAP + i * _LINE), text, ink, font=_font())
    draw.line((0, row.height - 1, row.width, row.height - 1), _PALE)
    return row


def _fitted(tile: Image.Image) -> Image.Image:
    scale = min(_TILE / tile.width, _TILE / tile.height)
    size = max(1, round(tile.width * scale)), max(1, round(tile.height * scale))
    return tile.resize(size, Image.Resampling.LANCZOS)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _lines(sample: Sample, width: int) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the lines of text under a row, cut to its width, with their colours."""
    out = [(sample.uid, _PALE)]
    for key, texts in sample.captions.items():
        for text in texts:
            out.append((_cut(f"{key}: {' '.join(text.split())}", width), _INK))
    return out


def _cut(text: str, width: int) -> str:
    font = _font()
    if (
        len(text) > width
    ):  # every character is a pixel wide at least, and Pillow refuses very long texts
        text = text[:width] + " ..."
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + " ...") > width:
        text = text[:-1]
    return text + " ..."
