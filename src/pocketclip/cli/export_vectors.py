"""`pocketclip export-vectors`: a library's embeddings for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketclip.cli._options import Json, LibraryOption
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import count_of


def export_vectors(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="The folder; an earlier export in it is replaced."
        ),
    ],
    format: Annotated[
        str,
        typer.Option(help="npy, as clip-retrieval writes it, or parquet: everything in one table."),
    ] = "npy",
    include_absent: Annotated[
        bool, typer.Option("--include-absent", help="Also write files that are not there now.")
    ] = False,
    library: LibraryOption = None,
    json: Json = False,
) -> None:
    """Write the embeddings of a library in the layout of clip-retrieval.

    DIR/img_emb has the embeddings, unit vectors in float16, DIR/metadata the path and the facts of
    the file of each row, and DIR/library.json the model and its embedding space. autofaiss and
    clip-retrieval read that. Files that are not there now are left out and counted.

    \b
    pocketclip export-vectors --out vectors/
    pocketclip export-vectors --out vectors/ --format parquet --library work
    """
    from pocketclip.cli._progress import ConsoleReporter
    from pocketclip.search.library import Library

    reporter = ConsoleReporter()
    try:
        with Library.open(library) as opened:
            report = opened.export_vectors(
                out, format=format, include_absent=include_absent, reporter=reporter
            )
    finally:
        reporter.end()
    if report.remark is not None:
        note(report.remark)
    if json:
        print_json(report.facts())
        return
    say(f"{out}: {count_of(report.rows, 'embedding')} of width {report.embed_dim}")
    left_out = {
        "not there now": report.absent,
        "left out by a rule of indexing": report.excluded,
        "without an embedding": report.without_vector,
    }
    for why, count in left_out.items():
        if count:
            say(f"{count_of(count, 'file')} {why}", dim=True)
