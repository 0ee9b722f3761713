"""Duplicates as text and as a page: what counted, the groups, and how their photographs differ.

page = duplicate_sheet(report, library.location)
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pocketclip.errors import count_of
from pocketclip.formats.escaping import escape_controls, name_text
from pocketclip.pages.render import render
from pocketclip.search.contact_sheet import Card, photo_card
from pocketclip.search.duplicates.records import Duplicate, DuplicateGroup, DuplicateReport, Kind
from pocketclip.search.indexing.perceptual_hash import BITS
from pocketclip.search.store.location import Location
from pocketclip.search.thumbnails import thumbnail

MOST_SHOWN = 24
"""Photographs of a group that are shown; JSON lists all."""
_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Section:
    """A kind of duplicates on a page."""

    title: str
    rule: str
    groups: Sequence[tuple[str, Sequence[Card]]]
    rest: str


def title_of(kind: Kind) -> str:
    """Return the heading of a kind."""
    return {"exact": "Exact duplicates", "near": "Near duplicates", "burst": "Bursts"}[kind]


def rule_of(kind: Kind, report: DuplicateReport) -> str:
    """Return what counts as a duplicate of a kind, with its limits."""
    limits = report.limits
    if kind == "exact":
        return "the same bytes"
    if kind == "near":
        return (
            f"perceptual hashes that differ in at most {limits.near_distance} of {BITS} bits "
            "(--near-distance), embeddings with a similarity of at least "
            f"{limits.near_similarity:g} (--near-similarity), not another time of capture, and "
            + (
                f"pixels with a correlation of at least {limits.near_pixels:g} (--near-pixels)"
                if limits.near_pixels > -1
                else "pixels not compared (--near-pixels)"
            )
        )
    return (
        f"at most {limits.burst_seconds:g} s from one to the next (--burst-seconds), one camera, "
        f"and embeddings with a similarity of at least {limits.burst_similarity:g} to the best "
        "(--burst-similarity)"
    )


def remarks_of(report: DuplicateReport) -> list[str]:
    """Return what the reader must know besides the groups, each in a sentence."""
    said = list(report.remarks)
    if not report.searched and not report.outdated:
        said.append("the library has no photographs: add some with `pocketclip index FOLDER`")
    if report.outdated:
        said.append(
            f"{count_of(report.outdated, 'file')} left out: not there now, or changed since "
            "indexing: run `pocketclip index`"
        )
    if "near" in report.kinds and report.blank:
        said.append(
            f"{count_of(report.blank, 'photograph')} blank or nearly so: never a near duplicate"
        )
    if "burst" in report.kinds and report.untimed:
        said.append(
            f"{count_of(report.untimed, 'photograph')} without camera or time of capture: in no "
            "burst"
        )
    return said


def difference_of(kind: Kind, one: Duplicate, best: Duplicate) -> str:
    """Return how a photograph of a group differs from the best one."""
    parts = []
    if one is best:
        return "best"
    if one.linked:
        parts.append("another name of the same file")
    if kind == "burst" and one.facts.taken is not None and best.facts.taken is not None:
        parts.append(f"{one.facts.taken - best.facts.taken:+.3g} s")
    if kind == "near" and one.distance is not None:
        parts.append(count_of(one.distance, "bit"))
    if one.similarity is not None:
        parts.append(f"similarity {one.similarity:.3f}")
    if one.pixels is not None:
        parts.append(f"pixels {one.pixels:.3f}")
    if one.copies:
        parts.append(f"+{count_of(len(one.copies), 'copy', 'copies')}")
    return ", ".join(parts)


def pixels_of(one: Duplicate) -> str:
    """Return width and height."""
    facts = one.facts
    return f"{facts.width} x {facts.height}" if facts.width and facts.height else ""


def size_text(size: int) -> str:
    """Return a number of bytes for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def summary_of(kind: Kind, groups: Sequence[DuplicateGroup]) -> str:
    """Return how many groups there are, and what they take."""
    if not groups:
        return "none"
    photographs = sum(len(group.photographs) for group in groups)
    room = size_text(sum(group.room for group in groups))
    unit = "file" if kind == "exact" else "photograph"
    return (
        f"{count_of(len(groups), 'group')} with {count_of(photographs, unit)}, {room} besides the "
        "best ones"
    )


def duplicate_sheet(report: DuplicateReport, location: Location, *, top: int | None = None) -> str:
    """Return the page: self-contained, with thumbnails, light and dark.

    Args:
        report: what was found.
        location: of the library, where thumbnails are kept.
        top: the most groups of a kind; None for all.
    """
    shown = [group for kind in report.kinds for group in report.of_kind(kind)[:top]]
    wanted = {one.digest: one.path for group in shown for one in group.photographs[:MOST_SHOWN]}
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(lambda one: thumbnail(location, one[1], one[0]), wanted.items())
        pictures = dict(zip(wanted, made, strict=True))
    sections = []
    for kind in report.kinds:
        groups = report.of_kind(kind)
        rest = len(groups) - len(groups[:top])
        sections.append(
            _Section(
                title=f"{title_of(kind)}: {summary_of(kind, groups)}",
                rule=rule_of(kind, report),
                groups=[
                    (_heading(number, group), _cards(group, pictures))
                    for number, group in enumerate(groups[:top], 1)
                ],
                rest=f"and {count_of(rest, 'more group')}" if rest else "",
            )
        )
    return render(
        "duplicates.html",
        "pocketclip.search",
        title=f"Duplicates in the library {escape_controls(location.name)}",
        about=f"{count_of(report.searched, 'photograph')} compared. Nothing was changed.",
        remarks=remarks_of(report),
        sections=sections,
    )


def _heading(number: int, group: DuplicateGroup) -> str:
    more = len(group.photographs) - MOST_SHOWN
    count = count_of(len(group.photographs), "file" if group.kind == "exact" else "photograph")
    hidden = f", the first {MOST_SHOWN} of which are shown" if more > 0 else ""
    return f"{number}. {count}{hidden}, {size_text(group.room)} besides the best"


def _cards(group: DuplicateGroup, pictures: dict[bytes, bytes | None]) -> list[Card]:
    best, cards = group.photographs[0], []
    for one in group.photographs[:MOST_SHOWN]:
        lines = [
            difference_of(group.kind, one, best),
            ", ".join(text for text in (pixels_of(one), size_text(one.size)) if text),
            _time(one),
            one.facts.camera or "",
        ]
        more = []
        if one.copies:
            title = count_of(len(one.copies), "copy", "copies")
            more.append((title, [photo_card(path, None) for path in one.copies]))
        cards.append(
            photo_card(one.path, pictures[one.digest], [line for line in lines if line], more)
        )
    return cards


def _time(one: Duplicate) -> str:
    if one.facts.taken is None:
        return ""
    clock = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=one.facts.taken)
    return clock.strftime("%Y-%m-%d %H:%M:%S")


def report_facts(report: DuplicateReport) -> dict[str, object]:
    """Return the report as plain JSON types; paths as `pocketclip.formats.escaping.name_text`."""
    limits = report.limits
    return {
        "kinds": list(report.kinds),
        "limits": {
            "near_distance": limits.near_distance,
            "near_similarity": limits.near_similarity,
            "near_pixels": limits.near_pixels,
            "burst_seconds": limits.burst_seconds,
            "burst_similarity": limits.burst_similarity,
        },
        "searched": report.searched,
        "blank": report.blank,
        "untimed": report.untimed,
        "outdated": report.outdated,
        "remarks": list(report.remarks),
        **{
            kind: [
                {
                    "bytes_besides_best": group.room,
                    "photographs": [
                        _photo_facts(one, best=place == 0)
                        for place, one in enumerate(group.photographs)
                    ],
                }
                for group in report.of_kind(kind)
            ]
            for kind in report.kinds
        },
    }


def _photo_facts(one: Duplicate, *, best: bool) -> dict[str, object]:
    facts = one.facts
    return {
        "path": name_text(one.path),
        "best": best,
        "bytes": one.size,
        "width": facts.width,
        "height": facts.height,
        "camera": facts.camera,
        "time": None if facts.taken is None else _time(one).replace(" ", "T"),
        "modified": one.modified,
        "digest": one.digest.hex(),
        "distance": one.distance,
        "similarity": None if one.similarity is None else round(one.similarity, 4),
        "pixels": None if one.pixels is None else round(one.pixels, 4),
        "linked": one.linked,
        "copies": [name_text(path) for path in one.copies],
    }
