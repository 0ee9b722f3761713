"""The hits of a search as a page: self-contained, with thumbnails, light and dark.

page = contact_sheet(result, thumbnails(library.location, result.hits), title="red car")
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip.errors import count_of
from pocketclip.formats.escaping import escape_controls, name_text
from pocketclip.pages.render import data_uri, render
from pocketclip.search.records import Hit, SearchResult


@dataclass(frozen=True, slots=True)
class Card:
    """A photograph on a page."""

    name: str
    link: str
    """A `file:` address."""
    picture: str | None
    """The thumbnail as a `data:` address."""
    lines: Sequence[str] = ()
    """What is said of it."""
    more: Sequence[tuple[str, Sequence[Card]]] = ()
    """Lists that open, such as copies, each with its title."""


def photo_card(
    path: Path, jpeg: bytes | None, lines: Sequence[str] = (),
    more: Sequence[tuple[str, Sequence[Card]]] = (),
) -> Card:  # fmt: skip
    """Return a card with the name of a file, its folder, and what else is said of it.

    Args:
        path: an absolute path.
        jpeg: its thumbnail.
        lines: what is said of it.
        more: lists that open, each with its title.
    """
    folder = escape_controls(name_text(path.parent))
    return Card(
        name=escape_controls(name_text(path.name)), link=path.as_uri(),
        picture=None if jpeg is None else data_uri(jpeg), lines=[*lines, folder], more=more,
    )  # fmt: skip


def contact_sheet(
    result: SearchResult,
    pictures: Sequence[bytes | None],
    *,
    title: str,
    about: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        result: what was found.
        pictures: the thumbnails of the hits.
        title: the query.
        about: lines below the title.
        remarks: what the reader must know, such as that nothing fits.
    """
    cards = [_hit_card(hit, jpeg) for hit, jpeg in zip(result.hits, pictures, strict=True)]
    return render(
        "contact_sheet.html",
        "pocketclip.search",
        title=escape_controls(title),
        about=about,
        remarks=remarks,
        cards=cards,
    )


def _hit_card(hit: Hit, jpeg: bytes | None) -> Card:
    more = []
    if hit.similar:
        cards = [photo_card(one.path, None, [f"score {one.score:.3f}"]) for one in hit.similar]
        more.append((f"{count_of(len(hit.similar), 'similar photograph')}", cards))
    if hit.copies:
        cards = [photo_card(path, None) for path in hit.copies]
        more.append((count_of(len(hit.copies), "copy", "copies"), cards))
    lines = [line for line in (f"score {hit.score:.3f}", date_text(hit), hit.facts.camera) if line]
    if not hit.current:
        lines.append("changed since it was indexed")
    return photo_card(hit.path, jpeg, lines, more)


def date_text(hit: Hit) -> str:
    """Return when a photograph was taken, and whether that is only the time of its file."""
    if hit.date is None:
        return ""
    day = clock_time(hit.date).strftime("%Y-%m-%d %H:%M")
    return day if hit.date_from == "camera" else f"{day} (file)"


def shown_facts(hit: Hit) -> dict[str, Any]:
    """Return what is known of a photograph as JSON values, without its place on earth or disk."""
    facts = hit.facts
    return {
        "time": None if hit.date is None else clock_time(hit.date).isoformat(timespec="seconds"),
        "time_from": hit.date_from,
        "time_offset_minutes": facts.taken_offset if hit.date_from == "camera" else None,
        "camera": facts.camera,
        "width": facts.width,
        "height": facts.height,
    }


def clock_time(seconds: float) -> datetime.datetime:
    """Return what a clock showed, see `Hit.date`."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
