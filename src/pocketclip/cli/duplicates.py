"""`pocketclip duplicates`: exact and near duplicates and bursts of a library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pocketclip.cli._options import Json, LibraryOption, check_output_file
from pocketclip.cli.output import Column, note, print_json, print_table, say
from pocketclip.errors import count_of

if TYPE_CHECKING:
    from pocketclip.search.duplicates.records import DuplicateReport, Kind


def duplicates(
    kind: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help="What to look for, with commas between: exact (the same bytes), near (one shot at "
            "another size or quality), burst (shots within seconds).",
        ),
    ] = "exact,near,burst",
    in_: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="FOLDER",
            help="Look only at files in this folder of the library; may be repeated.",
        ),
    ] = None,
    near_distance: Annotated[
        int,
        typer.Option(
            min=0, max=12, help="Near: the most bits of 63 in which perceptual hashes differ."
        ),
    ] = 8,
    near_similarity: Annotated[
        float,
        typer.Option(
            min=-1, max=1, help="Near: the least cosine similarity of the embeddings to the best."
        ),
    ] = 0.9,
    near_pixels: Annotated[
        float,
        typer.Option(
            min=-1,
            max=1,
            help="Near: the least correlation of the pixels; -1: do not compare them, which reads "
            "no file.",
        ),
    ] = 0.97,
    burst_seconds: Annotated[
        float,
        typer.Option(min=0, max=3600, help="Burst: the most seconds from one shot to the next."),
    ] = 3.0,
    burst_similarity: Annotated[
        float,
        typer.Option(
            min=-1, max=1, help="Burst: the least cosine similarity of the embeddings to the best."
        ),
    ] = 0.85,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            "-n",
            min=0,
            help="The most groups of a kind in the list and on the page; 0: all.",
        ),
    ] = 50,
    library: LibraryOption = None,
    json: Json = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with thumbnails, complete in itself."),
    ] = None,
) -> None:
    """Find photographs that are there several times; change nothing.

    Three kinds, each by itself: the same bytes; one shot at another size, quality or crop; several
    shots within seconds. Different shots of one scene are no near duplicates: the time that the
    camera noted tells, or else the pixels. The best of each group comes first: most pixels, then
    most bytes, then the oldest file. Turned, mirrored and heavily cropped copies are not found.

    The exit code is 0 also if there are none, and 1 if photographs were left out because their
    files are not there now, changed, or are not encoded yet.

    \b
    pocketclip duplicates
    pocketclip duplicates --in ~/Pictures/phone --html duplicates.html
    pocketclip duplicates --kind exact --json
    pocketclip duplicates --kind near --near-distance 4 --near-similarity 0.95
    """
    from pocketclip.cli._progress import ConsoleReporter
    from pocketclip.search.duplicates.sheet import duplicate_sheet, remarks_of, report_facts
    from pocketclip.search.library import Library
    from pocketclip.search.similar import DuplicateLimits

    if html is not None:
        check_output_file("--html", html, (".html", ".htm"))
    limits = DuplicateLimits(
        near_distance=near_distance, near_similarity=near_similarity,
        near_pixels=near_pixels, burst_seconds=burst_seconds, burst_similarity=burst_similarity,
    )  # fmt: skip
    kinds = cast("list[Kind]", [one.strip() for one in kind.split(",") if one.strip()])
    reporter = ConsoleReporter()
    with Library.open(library) as opened:
        report = opened.duplicates(kinds=kinds, limits=limits, folders=in_ or (), reporter=reporter)
        reporter.end()
        if html is not None:
            from pocketclip.pages.render import write_page

            write_page(html, duplicate_sheet(report, opened.location, top=top or None))
            note(f"{html}: {count_of(len(report.groups), 'group')}")
    if json:
        print_json(report_facts(report))
    else:
        _show(report, top or None)
    for remark in remarks_of(report):
        note(remark)
    if report.outdated or report.remarks:
        raise typer.Exit(1)


def _show(report: DuplicateReport, top: int | None) -> None:
    from pocketclip.formats.escaping import name_text
    from pocketclip.search.duplicates.sheet import (
        MOST_SHOWN,
        difference_of,
        pixels_of,
        rule_of,
        size_text,
        summary_of,
        title_of,
    )

    columns = (
        Column("", right=True), Column("pixels", right=True), Column("size", right=True),
        Column("to the best", folds=True), Column("photograph", folds=True),
    )  # fmt: skip
    for kind in report.kinds:
        groups = report.of_kind(kind)
        say(f"{title_of(kind)}: {summary_of(kind, groups)}")
        say(f"what counts: {rule_of(kind, report)}", dim=True)
        rows = []
        for number, group in enumerate(groups[:top], 1):
            shown, best = group.photographs[:MOST_SHOWN], group.photographs[0]
            rows += [
                (
                    str(number) if one is best else "", pixels_of(one), size_text(one.size),
                    difference_of(kind, one, best), name_text(one.path),
                )
                for one in shown
            ]  # fmt: skip
            rest = len(group.photographs) - len(shown)
            if rest:
                rows.append(("", "", "", "", f"and {rest} more: --json lists all"))
        if rows:
            print_table(columns, rows)
        if len(groups) > len(groups[:top]):
            say(f"and {count_of(len(groups) - len(groups[:top]), 'more group')}: --top 0 shows all")
        say()
    say(f"{count_of(report.searched, 'photograph')} compared, nothing was changed")
