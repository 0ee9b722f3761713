"""How `pocketclip search` shows what it found: table, JSON, paths, thumbnails, page, viewer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip.cli import output
from pocketclip.cli.output import Bold, Column, note, print_json, print_table, say
from pocketclip.errors import PocketclipError, count_of
from pocketclip.formats.escaping import name_text
from pocketclip.search.contact_sheet import date_text, shown_facts
from pocketclip.search.library import Library
from pocketclip.search.query import Part
from pocketclip.search.records import Hit, SearchResult

_ROWS_OF_PREVIEW = 2
_MOST_OPENED = 10
_SECONDS_TO_FAIL = 0.5
_FILTERS = {
    "absent": "are not there any more", "away": "are in folders that are not there now",
    "in": "are in other folders", "since": "are older", "until": "are newer",
    "camera": "are of other cameras, or name none",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """A result, and how it was asked for."""

    library: Library
    result: SearchResult
    title: str
    has_min_score: bool

    @property
    def fits_not(self) -> bool:
        """Whether nothing fits, and the user set no limit to decide that."""
        return self.result.fits is False and not self.has_min_score

    @property
    def fitting(self) -> Sequence[Hit]:
        """The hits, unless nothing fits."""
        return () if self.fits_not else self.result.hits

    def remarks(self) -> list[str]:
        """Return what the user must know besides the hits, each in a sentence."""
        result, said = self.result, []
        if result.removed:
            said.append(result.reason)
            said += [
                f"{count_of(count, 'photograph')} {_FILTERS[name]}"
                for name, count in result.removed.items()
                if count
            ]
        elif not result.hits:
            below = "reaches --min-score" if result.below_score else "that was indexed is there now"
            said.append(f"no photograph {below}")
        elif self.fits_not:
            said.append(f"{result.reason}; these are the closest")
        if result.gone:
            said.append(
                f"{count_of(result.gone, 'better photograph')} left out, as the file is not there "
                "now: `pocketclip index` looks for it"
            )
        said += [f"{path} is not there now: its photographs are left out" for path in result.away]
        if result.unencoded:
            said.append(
                f"{count_of(result.unencoded, 'photograph')} of the library not searched, as not "
                "encoded yet: run `pocketclip index`, or wait for the one that runs"
            )
        return said


def print_hits(shown: Shown, preview: bool | None) -> None:
    """Print thumbnails where the terminal has any, and a table.

    Args:
        shown: the result.
        preview: all thumbnails, none, or None for the first ones.
    """
    hits = shown.result.hits
    if preview is not False:
        _print_thumbnails(shown, everything=bool(preview))
    if hits:
        columns = (
            Column("", right=True), Column("score", right=True), Column("taken"),
            Column("photograph", folds=True), Column("", dim=True),
        )  # fmt: skip
        rows = [
            (str(number), f"{hit.score:.3f}", date_text(hit), _bold(hit, number), _more(hit))
            for number, hit in enumerate(hits, 1)
        ]
        used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        print_table([columns[i] for i in used], [[row[i] for i in used] for row in rows])
    for remark in shown.remarks():
        note(remark)


def _bold(hit: Hit, number: int) -> str:
    name = name_text(hit.path)
    return Bold(name) if number == 1 else name


def _more(hit: Hit) -> str:
    parts = [
        f"+{len(hit.similar)} similar" if hit.similar else "",
        f"+{count_of(len(hit.copies), 'copy', 'copies')}" if hit.copies else "",
        "" if hit.current else "changed since",
    ]
    return ", ".join(part for part in parts if part)


def _print_thumbnails(shown: Shown, *, everything: bool) -> None:
    from pocketclip.cli._terminal_images import detect, draw, tiles_per_row

    terminal = detect(sys.stdout)
    if terminal is None:
        if everything:
            note("--preview: this terminal shows no pictures; write a page with --html FILE")
        return
    from pocketclip.search.thumbnails import thumbnails

    width = output.width_of(sys.stdout)
    hits = shown.result.hits
    if not everything:
        hits = hits[: _ROWS_OF_PREVIEW * tiles_per_row(width)]
    pictures = thumbnails(shown.library.location, hits)
    if any(pictures):
        names = [str(number) for number in range(1, len(hits) + 1)]
        output.write_bytes(draw(pictures, names, terminal, width=width))


def print_paths(shown: Shown, *, null: bool) -> None:
    """Print the paths of what fits: their bytes for a pipe or file, escaped for a terminal."""
    if null:
        names = [os.fsencode(hit.path) for hit in shown.fitting]
        output.write_bytes(b"".join(name + b"\0" for name in names))
    elif output.on_terminal():
        for hit in shown.fitting:
            say(name_text(hit.path))
    else:
        with_breaks = [hit.path for hit in shown.fitting if "\n" in str(hit.path)]
        if with_breaks:
            note(f"warning: {with_breaks[0]} has a line break in its name: use -0")
        output.write_bytes(b"".join(os.fsencode(hit.path) + b"\n" for hit in shown.fitting))
    if shown.fits_not and shown.result.hits:
        note(f"{shown.result.reason}; to have the closest ones all the same, give --min-score -1")
    else:
        for remark in shown.remarks():
            note(remark)


def print_result(shown: Shown, parts: Sequence[Part]) -> None:
    """Print the result as JSON."""
    result, database = shown.result, shown.library.database
    print_json(
        {
            "query": shown.title,
            "parts": [
                {
                    "weight": part.weight,
                    **({"text": part.text} if part.text is not None else {}),
                    **({"photo": name_text(part.photo)} if isinstance(part.photo, Path) else {}),
                }
                for part in parts
            ],
            "library": name_text(shown.library.location.file),
            "model": database.fact("model"),
            "space_id": database.fact("space_id"),
            "fits": result.fits,
            "reason": result.reason,
            "lead": result.lead,
            "searched": result.searched,
            "gone": result.gone,
            "removed": dict(result.removed),
            "unencoded": result.unencoded,
            "away": [name_text(path) for path in result.away],
            "hits": [_hit_facts(hit) for hit in result.hits],
        }
    )
    for remark in shown.remarks():
        note(remark)


def _hit_facts(hit: Hit) -> dict[str, Any]:
    return {
        "path": name_text(hit.path),
        "score": hit.score,
        **shown_facts(hit),
        "latitude": hit.facts.latitude,
        "longitude": hit.facts.longitude,
        "bytes": hit.size,
        "digest": hit.digest.hex(),
        "changed": not hit.current,
        "copies": [name_text(path) for path in hit.copies],
        "similar": [{"path": name_text(one.path), "score": one.score} for one in hit.similar],
    }


def write_sheet(shown: Shown, file: Path, reading: str | None) -> None:
    """Write the page of `--html`."""
    from pocketclip.pages.render import write_page
    from pocketclip.search.contact_sheet import contact_sheet
    from pocketclip.search.thumbnails import thumbnails

    hits, result = shown.result.hits, shown.result
    found = count_of(len(hits), "photograph")
    about = [
        *([f"Searched for: {reading}"] if reading else []),
        f"{found} of {result.searched:,} in the library {shown.library.location.name}.",
    ]
    pictures = thumbnails(shown.library.location, hits)
    page = contact_sheet(result, pictures, title=shown.title, about=about, remarks=shown.remarks())
    write_page(file, page)
    note(f"{file}: {found}")


def open_results(shown: Shown, html: Path | None) -> None:
    """Open the page, or the photographs that fit, in the system's viewer.

    Raises:
        PocketclipError: there is none.
    """
    files = [html.absolute()] if html is not None else [hit.path for hit in shown.fitting]
    if not files:
        return
    if len(files) > _MOST_OPENED:
        note(f"the first {_MOST_OPENED} of {len(files)} are opened: --html FILE --open shows all")
        files = files[:_MOST_OPENED]
    # All paths are absolute, so none can be taken for an option.
    if sys.platform == "darwin":
        commands = [["open", *map(os.fspath, files)]]
    else:
        commands = [["xdg-open", os.fspath(file)] for file in files]
    for command in commands:
        try:
            # A viewer may run as long as its window, so only a quick failure is noticed.
            viewer = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise PocketclipError(
                f"--open needs the command {command[0]}, which is not here: use --html FILE"
            ) from error
        with contextlib.suppress(subprocess.TimeoutExpired):
            if viewer.wait(_SECONDS_TO_FAIL):
                raise PocketclipError(f"--open: {command[0]} could not open {files[0]}")
