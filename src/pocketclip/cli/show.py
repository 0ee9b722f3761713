"""`pocketclip show`: a picture of some samples of a reinforced dataset."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from pocketclip.cli.output import say
from pocketclip.errors import DataError, PocketclipError


def show(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A reinforced dataset.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png or .jpg file to write.")],
    samples: Annotated[int, typer.Option(min=1, max=200, help="How many to show.")] = 6,
    views: Annotated[int, typer.Option(min=0, max=50, help="Augmentations per sample.")] = 6,
) -> None:
    """Draw samples: the original, its replayed augmentations and every caption.

    \b
    pocketclip show dr --out page.png
    pocketclip show s3://me/dr --out page.jpg --samples 20
    """
    from pocketclip import shards, storage
    from pocketclip.augment import Augmentation
    from pocketclip.shards.sheet import sheet

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise PocketclipError(f"{out}: write to a .png or .jpg file")
    found = list(itertools.islice(shards.read(folder), samples))
    if not found:
        raise DataError(f"{folder} holds no samples")
    index = shards.read_index(folder)
    config = index.augmentation if index is not None else None
    page = sheet(found, Augmentation.from_config(config) if config else None, views=views)
    with storage.write_whole(str(out)) as temporary:
        page.save(temporary, "PNG" if out.suffix.lower() == ".png" else "JPEG")
    say(f"{out}: {len(found)} samples")
