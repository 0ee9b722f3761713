"""`pocketclip forget`: remove photographs from a library, never from the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import Json, LibraryOption
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import count_of

if TYPE_CHECKING:
    from pocketclip.search.upkeep.forget import ForgetReport

_SHOWN = 50  # paths


def forget(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Files, or folders within a root; they need not be there."
        ),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="A whole root, which is not indexed any more; may be repeated."
        ),
    ] = None,
    absent: Annotated[
        bool,
        typer.Option("--absent", help="All files that indexing found gone."),
    ] = False,
    unreadable: Annotated[
        bool, typer.Option("--unreadable", help="All files that could not be read or decoded.")
    ] = False,
    unused: Annotated[
        bool,
        typer.Option(
            "--unused",
            help="What no file has any more, such as earlier versions of edited photographs; this "
            "goes with everything else, too.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be forgotten; change nothing.")
    ] = False,
    library: LibraryOption = None,
    json: Json = False,
) -> None:
    """Remove photographs from a library; the files themselves stay.

    Indexing never deletes what it knows of a file that is gone, so that a moved file, or a drive
    that comes back, needs no encoding. This verb does: the paths, the embeddings unless another
    file has the same bytes, and the thumbnails, overwritten on the disk. A file that is still in a
    root is added again by the next `pocketclip index`, unless --exclude or a .pocketclipignore
    leaves it out.

    \b
    pocketclip forget ~/Pictures/scans/passport.jpg
    pocketclip forget --absent --dry-run
    pocketclip forget --root /media/old-drive
    pocketclip forget --absent --library work
    """
    from pocketclip.search.library import Library

    with Library.open(library) as opened:
        report = opened.forget(
            paths or [],
            roots=root or [],
            absent=absent,
            unreadable=unreadable,
            unused=unused,
            dry_run=dry_run,
        )
    if json:
        print_json(report.facts())
    else:
        _show(report)
    for text in report.left:
        note(f"warning: {text}")
    if report.left:
        raise typer.Exit(1)


def _show(report: ForgetReport) -> None:
    for path in report.files[:_SHOWN]:
        say(str(path))
    if len(report.files) > _SHOWN:
        say(f"and {count_of(len(report.files) - _SHOWN, 'more file')}: --json lists all")
    for path in report.roots:
        say(f"{path} is not indexed any more")
    verb = "would forget" if report.dry_run else "forgot"
    contents = count_of(report.contents, "different photograph")
    if report.unused:
        contents += f" ({report.unused} that no file had any more)"
    say(
        f"{verb} {count_of(len(report.files), 'file')}, {contents}, "
        f"{count_of(report.vectors, 'embedding')}"
    )
    for path, count in report.kept.items():
        note(f"{path} is not there now: its {count_of(count, 'absent file')} stay")
    there = len(report.still_there)
    if there and not report.dry_run:
        note(
            f"{there} of these {'is' if there == 1 else 'are'} still in a root: the next "
            "`pocketclip index` adds them again, unless --exclude or a .pocketclipignore leaves "
            "them out"
        )
