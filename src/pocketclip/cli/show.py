"""`pocketclip show`: a picture of some samples of a reinforced dataset."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from pocketclip.cli._options import check_output_file
from pocketclip.cli.output import say
from pocketclip.errors import DataError, count_of


def show(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A reinforced dataset; local or in a store.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The image file to write: .png or .jpg.")
    ],
    samples: Annotated[
        int, typer.Option(min=1, max=200, help="The number of samples to show.")
    ] = 6,
    views: Annotated[
        int, typer.Option(min=0, max=50, help="The number of augmented views per sample.")
    ] = 6,
) -> None:
    """Draw samples of a dataset: the original image, replayed augmentations and all captions.

    \b
    pocketclip show dr --out page.png
    pocketclip show s3://me/dr --out page.jpg --samples 20
    """
    from pocketclip import shards, storage
    from pocketclip.augment import Augmentation
    from pocketclip.shards.sheet import sheet

    check_output_file("--out", out, (".png", ".jpg", ".jpeg"), creates_folder=True)
    chosen = list(itertools.islice(shards.read(folder), samples))
    if not chosen:
        raise DataError(f"{folder} holds no samples")
    index = shards.read_index(folder)
    config = index.augmentation if index is not None else None
    page = sheet(chosen, Augmentation.from_config(config) if config else None, views=views)
    with storage.write_whole(str(out)) as temporary:
        page.save(temporary, "PNG" if out.suffix.lower() == ".png" else "JPEG")
    say(f"{out}: {count_of(len(chosen), 'sample')}")
