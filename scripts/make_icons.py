"""Draw the icon of the web pages: a lens that looks out of a pocket.

    python scripts/make_icons.py

Writes `icon.svg`, and as PNG the sizes that phones ask for, all from the shapes below. A maskable
icon fills its square, since phones cut their own outline out of it; what matters lies within the
circle of 80 % of its width.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[1] / "src" / "pocketclip" / "web" / "icons"
BLUE, WHITE, PALE = "#0a58b5", "#ffffff", "#d3e5fb"
# On a square of 64.
CORNER = 14
LENS = (32.0, 26.0, 12.5, 5.0)  # centre, radius of the ring's middle, its width
PUPIL = 4.0  # radius
POCKET = (13.0, 32.0, 51.0, 54.0, 11.0)  # left, top, right, bottom, radius of the lower corners
SEAM = (17.2, 46.8, 37.5, 1.8, 4.0, 2.4)  # left, right, height, width, dash, gap
MASKABLE_SCALE = 0.82
PNGS = {"icon-180.png": (180, "square"), "icon-192.png": (192, "round"),
        "icon-512.png": (512, "round"), "icon-maskable-512.png": (512, "maskable")}  # fmt: skip
"""By name: width in pixels, and the outline. Apple's has no transparent corners."""
_FINE = 8  # pixels are drawn so much finer, and averaged


def svg() -> str:
    """Return the icon as SVG."""
    x, y, radius, width = LENS
    left, top, right, bottom, corner = POCKET
    begin, end, height, thick, dash, gap = SEAM
    pocket = (
        f"M{left:g} {top:g}H{right:g}V{bottom - corner:g}a{corner:g} {corner:g} 0 0 1-{corner:g} "
        f"{corner:g}H{left + corner:g}a{corner:g} {corner:g} 0 0 1-{corner:g}-{corner:g}z"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
        f'<rect width="64" height="64" rx="{CORNER}" fill="{BLUE}"/>'
        f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="none" stroke="{WHITE}" '
        f'stroke-width="{width:g}"/><circle cx="{x:g}" cy="{y:g}" r="{PUPIL:g}" fill="{WHITE}"/>'
        f'<path d="{pocket}" fill="{PALE}"/><path d="M{begin:g} {height:g}H{end:g}" '
        f'stroke="{BLUE}" stroke-width="{thick:g}" stroke-dasharray="{dash:g} {gap:g}"/></svg>\n'
    )


def png(size: int, outline: str) -> Image.Image:
    """Return the icon as an image of `size` by `size` pixels.

    Args:
        size: its width.
        outline: `round` has transparent corners; `square` and `maskable` fill the square, and what
            is on a maskable one is smaller.
    """
    whole = size * _FINE
    image = Image.new("RGBA", (whole, whole), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    if outline == "round":
        draw.rounded_rectangle((0, 0, whole - 1, whole - 1), CORNER * whole / 64, fill=BLUE)
    else:
        draw.rectangle((0, 0, whole, whole), fill=BLUE)
    scale = whole / 64 * (MASKABLE_SCALE if outline == "maskable" else 1)
    shift = (whole - 64 * scale) / 2

    def at(*values: float) -> list[float]:
        return [shift + value * scale for value in values]

    x, y, radius, width = LENS
    outer, pupil = radius + width / 2, PUPIL
    draw.ellipse(at(x - outer, y - outer, x + outer, y + outer), fill=WHITE)
    inner = radius - width / 2
    draw.ellipse(at(x - inner, y - inner, x + inner, y + inner), fill=BLUE)
    draw.ellipse(at(x - pupil, y - pupil, x + pupil, y + pupil), fill=WHITE)
    left, top, right, bottom, corner = POCKET
    draw.rounded_rectangle(
        at(left, top, right, bottom), corner * scale, fill=PALE, corners=(False, False, True, True)
    )
    begin, end, height, thick, dash, gap = SEAM
    while begin < end - 0.1:
        stop = min(begin + dash, end)
        draw.rectangle(at(begin, height - thick / 2, stop, height + thick / 2), fill=BLUE)
        begin += dash + gap
    return image.resize((size, size), Image.Resampling.BOX)


def main() -> None:
    """Write all forms of the icon."""
    (FOLDER / "icon.svg").write_text(svg(), "utf-8")
    for name, (size, outline) in PNGS.items():
        image = png(size, outline)
        if outline != "round":
            image = image.convert("RGB")
        image.save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
