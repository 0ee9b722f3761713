"""`pocketclip explain`: where in a photograph a text is found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketclip.cli._options import (
    DEFAULT_MODEL,
    Device,
    Json,
    ModelName,
    ModelOption,
    Offline,
    Revision,
    check_output_file,
)
from pocketclip.cli.output import Column, note, print_json, print_table, say
from pocketclip.errors import PocketclipError, count_of


def explain(
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="A photograph.")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help='What to look for, such as "a dog"; may be repeated.'),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The picture to write: .png, .jpg or .webp."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    model_name: ModelName = None,
    size: Annotated[
        int, typer.Option(help="The longer side of the photograph in the picture, in pixels.")
    ] = 320,
    alpha: Annotated[
        float,
        typer.Option(help="How much the hottest places hide the photograph, 0 to 1."),
    ] = 0.7,
    device: Device = "auto",
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Show where in a photograph the model finds a text.

    The picture shows the photograph and, for each text, what speaks for it rather than for texts
    that fit anything and for the other texts. Every map has its own scale: the printed similarity
    says how well a text fits at all. It needs torch.

    \b
    pocketclip explain photo.jpg --text "a dog" --text "a ball" --out where.png
    pocketclip explain shelf.jpg --text "ripe bananas" --model runs/small --out where.png
    pocketclip explain photo.jpg --text "a dog" --json
    """
    from pocketclip.attribution.explain import SUFFIXES, check_drawing, check_texts
    from pocketclip.attribution.explain import explain as run
    from pocketclip.cli._inputs import text_arguments
    from pocketclip.cli._progress import Notes
    from pocketclip.formats.escaping import name_text

    texts = check_texts(text_arguments(text or [], "--text"))
    if out is None and not json:
        raise PocketclipError("say where the picture goes: --out where.png, or --json for numbers")
    check_output_file("--out", out, SUFFIXES, source=photo)
    check_drawing(size, alpha)
    explanation = run(
        photo, texts, model, model_name=model_name, device=device, offline=offline,
        revision=revision, reporter=Notes(),
    )  # fmt: skip
    for found in explanation:
        if not found.is_found:
            note(f"warning: {found.text!r} fits no better than any text; its map means little")
    if out is not None:
        explanation.save(out, side=size, alpha=alpha)
    if json:
        print_json({"photo": name_text(photo), "picture": None if out is None else str(out),
                    **explanation.facts()})  # fmt: skip
        return
    rows = [
        (f.text, f"{f.similarity:.3f}", f"{f.background:.3f}", "{:.0f}, {:.0f}".format(*f.peak))
        for f in explanation
    ]
    columns = (
        Column("text", folds=True), Column("similarity", right=True),
        Column("of any text", right=True), Column("hottest at x, y", right=True),
    )  # fmt: skip
    print_table(columns, rows)
    say(f"{out}: {count_of(len(rows), 'text')}")
