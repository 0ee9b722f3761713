"""`pocketclip index --check`, `--repair` and `--move-root`: a library's upkeep."""

from __future__ import annotations

import typer

from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import count_of


def check(library: str | None, *, json: bool = False) -> None:
    """Check a library and print what is wrong; exit code 1 if anything is."""
    from pocketclip.search.library import Library

    with Library.open(library) as opened:
        report = opened.check()
        file = opened.location.file
    if json:
        print_json(report.facts())
    else:
        for problem in report.problems:
            say(f"{problem.kind}: {problem.text}")
        unused = f" ({report.unused} that no file has)" if report.unused else ""
        say(
            f"{file}: {count_of(report.roots, 'root')}, {count_of(report.files, 'file')}, "
            f"{count_of(report.contents, 'different photograph')}{unused}, "
            f"{count_of(report.vectors, 'embedding')}: "
            f"{'sound' if report.is_sound else count_of(len(report.problems), 'problem')}"
        )
    if not report.is_sound:
        note("mend it with `pocketclip index --repair`")
        raise typer.Exit(1)


def repair(library: str | None, *, json: bool = False) -> None:
    """Mend a library and print what was done; exit code 1 if something is still wrong."""
    from pocketclip.search.library import Library

    report = Library.repair(library)
    if json:
        print_json(report.facts())
    else:
        for problem in report.problems:
            say(f"{problem.kind}: {problem.text}")
        for path in report.made_private:
            say(f"{path}: closed to other users")
        if report.derived_removed:
            say("what is derived from the library is made anew")
        if report.source == "saved":
            lost = (
                "an unknown number lost"
                if report.lost_vectors is None
                else f"{report.lost_vectors} lost"
            )
            say(
                f"saved {count_of(report.files, 'file')}, "
                f"{count_of(report.contents, 'different photograph')} and "
                f"{count_of(report.vectors, 'embedding')} ({lost}, {report.dropped_vectors} "
                f"unusable); {count_of(report.damaged_pages, 'page')} could not be read"
            )
        elif report.source == "backup":
            say(
                "nothing of it could be read: the backup from before the last change of version is "
                f"in its place, with {count_of(report.files, 'file')} and "
                f"{count_of(report.vectors, 'embedding')}"
            )
        elif not report.problems and not report.made_private:
            say("the library is sound")
        if report.kept is not None:
            say(f"the damaged file is kept: {report.kept}")
        for problem in report.left:
            say(f"still wrong: {problem.kind}: {problem.text}")
        if report.next_step is not None:
            say(f"now {report.next_step}")
    if report.left:
        raise typer.Exit(1)


def move_root(library: str | None, old: str, new: str, *, json: bool = False) -> None:
    """Record a root's new place and print it."""
    from pocketclip.search.library import Library

    with Library.open(library) as opened:
        report = opened.move_root(old, new)
    if json:
        print_json(report.facts())
    else:
        say(f"{report.old} is {report.new} now, with {count_of(report.files, 'file')}")
