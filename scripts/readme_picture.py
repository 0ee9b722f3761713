"""Draw the README's picture: accuracy of the published models against their published latency.

    python scripts/readme_picture.py

It writes `docs/images/accuracy_latency-light.svg` and `-dark.svg`, from the published figures in
`pocketclip.zoo`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pocketclip import zoo
from pocketclip.evaluate.report.latency import DEVICE
from pocketclip.pages.svg import Chart, Mark, Series, svg_file

FOLDER = Path(__file__).parents[1] / "docs" / "images"
DARK = "@media (prefers-color-scheme: dark)"


def marks() -> list[Mark]:
    """Return one mark per published model, of both generations."""
    result = []
    for name, entry in zoo.ZOO.items():
        facts = entry.published
        if facts is None:
            continue
        series: Series = "v2" if name.startswith("mobileclip2-") else "v1"
        ms = facts.image_latency_ms + facts.text_latency_ms
        top1 = facts.imagenet1k
        label = f"{series} {name.partition('-')[2].upper()}"
        result.append(Mark(name=name, x=ms, y=top1, series=series, label=label,
                           tooltip=f"{name}: {top1} %, {ms:.3g} ms"))  # fmt: skip
    return result


def picture() -> str:
    """Return the SVG, which follows the reader's colour scheme."""
    points = marks()
    return svg_file(
        Chart(
            name="published",
            title="ImageNet zero-shot accuracy against latency, as published",
            description="; ".join(f"{m.name} {m.x:.3g} ms, {m.y} %" for m in points) + ".",
            x_label=f"ms for an image and a text ({DEVICE}, log)",
            y_label="ImageNet zero-shot top-1, %",
            marks=points,
            joined=("v1", "v2"),
            legend={"v1": "MobileCLIP", "v2": "MobileCLIP2"},
        )
    )


def in_scheme(svg: str, scheme: Literal["light", "dark"]) -> str:
    """Return the SVG in one colour scheme, whatever the reader's is."""
    assert svg.count(DARK) == 1
    return svg.replace(DARK, "@media all" if scheme == "dark" else "@media not all")


def main() -> None:
    """Write both files."""
    for scheme in ("light", "dark"):
        path = FOLDER / f"accuracy_latency-{scheme}.svg"
        path.write_text(in_scheme(picture(), scheme), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
