"""`pocketclip search`: photographs that fit a text or another photograph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import Json, LibraryOption, check_output_file
from pocketclip.cli.output import note
from pocketclip.errors import PocketclipError, QueryError, count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.library import Library
    from pocketclip.search.query import Part

_SHOWN = 10  # unreadable files


def search(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY]",
            help='What to look for, in quotes: "red car", "beach + sunset - people", '
            '"2:beach + ./sea.jpg". Not needed with --image or --like.',
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Search in this folder. One that is not in the library is indexed first.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="PHOTO", help="A photograph: find others like it."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="PHOTO", help="One more such photograph; may be repeated."),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTO", help="A photograph that others should not be like; may be repeated."
        ),
    ] = None,
    text: Annotated[
        bool,
        typer.Option("--text", help="Take QUERY as one text, with all signs, numbers and quotes."),
    ] = False,
    in_: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="FOLDER",
            help="Search only in this folder of the library: a path, or a path below a root; may "
            "be repeated.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Taken from then on: 2024, 2024-05, 2024-05-01 or 2024-05-01T14:30, by the "
            "camera's clock, or else by the time of the file.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Taken until then, that year, month or day included."),
    ] = None,
    camera: Annotated[
        str | None, typer.Option(metavar="NAME", help="A part of the name of the camera.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", "-n", min=1, max=10_000, help="The number of photographs.")
    ] = 20,
    min_score: Annotated[
        float | None,
        typer.Option(
            help="The least cosine similarity. The usual values depend on the model and on the "
            "query; with this option, whether anything fits is left to you."
        ),
    ] = None,
    library: LibraryOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="The model, if the library's own is elsewhere now, or for a new library.  "
            "[default: the library's]",
        ),
    ] = None,
    json: Json = False,
    paths: Annotated[
        bool,
        typer.Option("--paths", help="Print only paths, one per line; nothing if nothing fits."),
    ] = False,
    null: Annotated[
        bool,
        typer.Option(
            "-0", "--null", help="Print only paths, each followed by a NUL: for xargs -0."
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with thumbnails, complete in itself."),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--open", help="Open the page of --html, or the photographs, in the system's viewer."
        ),
    ] = False,
    preview: Annotated[
        bool | None,
        typer.Option(
            "--preview/--no-preview",
            help="Thumbnails in the terminal: of all photographs, or of none.  "
            "[default: of the first ones]",
        ),
    ] = None,
) -> None:
    """Find photographs by what is on them.

    QUERY is a text, or several texts and photographs with signs between them: `+` adds, `-`
    avoids, both between spaces. A number and a colon before a part is its weight. What begins with
    ./, ../, / or ~/, or ends in .jpg or the like, is a photograph. Everything in double quotes, or
    with --text, is text.

    If nothing fits well, this is said, and the closest photographs are shown as such. The exit code
    is 0 if something fits, 1 if nothing does or the filters left nothing, 2 after an error.

    \b
    pocketclip search "red car in the snow"
    pocketclip search "beach + sunset - people" ~/Pictures/2024
    pocketclip search --image mountain.jpg --since 2023 --camera iphone
    pocketclip search "a dog - ./rex.jpg" --html dogs.html --open
    pocketclip search "receipt" -0 | xargs -0 tar cf receipts.tar
    """
    from pocketclip.search.query import describe_parts, doubtful_sign, make_parts

    if json and (paths or null):
        raise PocketclipError("choose one of --json and --paths")
    if folder is not None and in_:
        raise PocketclipError("choose one of FOLDER and --in")
    check_output_file("--html", html, (".html", ".htm"))
    if query is not None and folder is None and (image or like) and Path(query).is_dir():
        query, folder = None, query
    parts = make_parts(
        query, image=None if image is None else _photo(image), like=map(_photo, like or []),
        unlike=map(_photo, unlike or []), literal=text,
    )  # fmt: skip
    reading = describe_parts(parts)
    if reading:
        note(f"searched for: {reading}")
    doubtful = doubtful_sign(parts)
    if doubtful:
        note(f"{doubtful} is a part of the text; to avoid it, write: - {doubtful[1:]}")
    with _open_library(library, query, folder, model) as opened:
        # The model first: it loads while the rest is imported.
        encoder, parts = _encoder(opened, parts, model)
        from pocketclip.cli import _search_output as output
        from pocketclip.search.filters import Filters

        filters = Filters(
            folders=in_ or ([] if folder is None else [folder]), since=since, until=until,
            camera=camera,
        )  # fmt: skip
        result = opened.search(
            parts, filters=filters, top=top, min_score=min_score, encoder=encoder
        )
        shown = output.Shown(opened, result, _title(query, parts), min_score is not None)
        if json:
            output.print_result(shown, parts)
        elif paths or null:
            output.print_paths(shown, null=null)
        else:
            output.print_hits(shown, preview)
        if html is not None:
            output.write_sheet(shown, html, reading)
        if open_:
            output.open_results(shown, html)
    if not shown.fitting:
        raise typer.Exit(1)


def _photo(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise QueryError(f"there is no photograph {text}")
    return path


def _title(query: str | None, parts: Sequence[Part]) -> str:
    return query if query is not None else " ".join(map(str, parts)).removeprefix("+ ")


def _encoder(library: Library, parts: list[Part], model: str | None) -> tuple[Encoder, list[Part]]:
    """Return the model, which has begun to load the towers that the query needs, and the query."""
    from pocketclip.search.model import check_not_empty

    check_not_empty(library.database)
    if model is None:
        encoder = library.encoder(low_latency_start=True)
    else:
        from pocketclip.cli._inputs import load_encoder

        encoder = load_encoder(model, low_latency_start=True)
    if any(part.text is not None for part in parts):
        encoder.preload("text")
    if any(part.text is None for part in parts):
        from pocketclip.search.searching import with_known_vectors

        parts = with_known_vectors(library.database, parts)
        if any(part.text is None and part.vector is None for part in parts):
            encoder.preload("image")
    return encoder, parts


def _open_library(
    name: str | None, query: str | None, folder: str | None, model: str | None
) -> Library:
    """Open the library; a folder that is not in it is indexed first."""
    from pocketclip.search.indexing.roots import check_folder
    from pocketclip.search.library import Library

    library = Library.open(name, create=folder is not None)
    if folder is None:
        return library
    if _is_known(library, folder):
        return library
    if not Path(folder).expanduser().exists():
        raise QueryError(
            f'there is no folder {folder}; put several words in quotes: "{query} {folder}"'
        )
    check_folder(folder)
    note(f"{folder} is not in the library {library.location.name} yet: it is indexed first")
    _index(library, folder, model)
    if not _is_known(library, folder):
        raise QueryError(f"{folder} holds no photographs")
    return library


def _index(library: Library, folder: str, model: str | None) -> None:
    from pocketclip.cli._index_output import IndexProgress

    with IndexProgress() as reporter:
        report = library.index([folder], model=model, reporter=reporter)
    if report.interrupted:
        raise KeyboardInterrupt
    note(f"encoded {count_of(report.encoded, 'photograph')}")
    for path, reason in report.unreadable[:_SHOWN]:
        note(f"unreadable: {path}: {reason}")
    if len(report.unreadable) > _SHOWN:
        note(f"and {len(report.unreadable) - _SHOWN:,} more: `pocketclip index --status` lists all")
    for message, count in report.unsupported.items():
        note(f"left out: {count_of(count, 'file')}: {message}")


def _is_known(library: Library, folder: str) -> bool:
    """Return whether photographs of a folder are in the library, all of it being in a root."""
    from pocketclip.search.folders import places_of
    from pocketclip.search.indexing.roots import known_roots, place_of
    from pocketclip.search.store.location import is_unused

    if is_unused(library.location):
        return False
    place = Path(os.path.realpath(Path(folder).expanduser()))
    if place_of(known_roots(library.database), place) is None:
        return False
    try:
        return bool(places_of(library.database, folder))
    except QueryError:
        return False
