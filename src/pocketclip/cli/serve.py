"""`pocketclip serve`: a model, and a library, behind HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli import output
from pocketclip.cli._options import MODEL_HELP, LibraryOption, Threads

if TYPE_CHECKING:
    from pocketclip.serve.process import Running


def serve(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
    library: LibraryOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 for a free one, which is printed.")
    ] = 8080,
    threads: Threads = None,
) -> None:
    """Serve embeddings, classification and search over HTTP.

    \b
    pocketclip serve mobileclip2-s0
    pocketclip serve --library photos
    """
    from pocketclip.serve import ServerSettings
    from pocketclip.serve import serve as run

    run(
        model, library=library, settings=ServerSettings(host=host, port=port, threads=threads),
        on_start=_announce,
    )  # fmt: skip


def _announce(running: Running) -> None:
    output.say(f"listening on {running.urls[0]}")
    output.flush()
