"""The state, the photographs and the duplicates of a library as JSON values, without paths."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketclip.formats.escaping import name_text
from pocketclip.search.contact_sheet import clock_time
from pocketclip.search.indexing.activity import Activity, read_activity
from pocketclip.search.indexing.roots import Root, known_roots
from pocketclip.search.overview import Overviews, read_choices, read_overview, unreadable_files
from pocketclip.search.ranking import look_up_photos
from pocketclip.serve.errors import without_paths
from pocketclip.serve.photos.duplicate_jobs import DuplicateJob, version_of
from pocketclip.serve.photos.duplicates_schema import MOST_OF_GROUP
from pocketclip.serve.photos.library_schema import MOST_UNREADABLE
from pocketclip.serve.photos.search_answer import photo_facts, relative_name

if TYPE_CHECKING:
    from pocketclip.search.duplicates.records import Duplicate, DuplicateGroup, Kind
    from pocketclip.search.library import Library

_MOST_COPIES = 20


def library_facts(library: Library, overviews: Overviews) -> dict[str, Any]:
    """Return what a library has, as `library_schema.LibraryAnswer` has it."""
    found = overviews(library.database)
    run = read_activity(library.location)
    return {
        "name": library.location.name,
        "model": found.model,
        "space_id": found.space_id,
        "files": found.files,
        "photos": found.contents,
        "encoded": found.vectors,
        "unencoded": found.to_encode,
        "unreadable": found.unreadable,
        "roots": [
            {"name": name_text(root.path.name), "files": root.files, "away": root.away}
            for root in found.roots
        ],
        "run": None if run is None else _run_facts(run),
    }


def _run_facts(run: Activity) -> dict[str, Any]:
    left = None
    if run.outcome == "running" and run.rate and run.total:
        left = max(0, run.total - run.done) / run.rate
    return {
        **{name: getattr(run, name) for name in ("outcome", "done", "total", "encoded", "failed")},
        "stage": without_paths(run.stage),
        "rate": run.rate,
        "seconds_left": left,
        "started": _moment(run.started),
        "updated": _moment(run.updated),
    }


def _moment(seconds: float) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):  # the file was written to by somebody else
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def unreadable_facts(library: Library) -> dict[str, Any]:
    """Return the files that could not be read, as `library_schema.UnreadableAnswer` has them."""
    roots = known_roots(library.database)
    files = []
    for path, reason in unreadable_files(library.database, MOST_UNREADABLE):
        root, name = relative_name(path, roots)
        files.append({"name": name, "root": root, "reason": without_paths(reason)})
    return {"files": files, "total": read_overview(library.database).unreadable}


def choice_facts(library: Library) -> dict[str, Any]:
    """Return what filters may be, as `library_schema.ChoicesAnswer` has it."""
    found = read_choices(library.database)
    return {
        "folders": [{"name": name, "files": files} for name, files in found.folders],
        "more_folders": found.more_folders,
        "cameras": [{"name": name, "files": files} for name, files in found.cameras],
        "years": [{"name": str(year), "files": files} for year, files in found.years],
    }


def described_photos(library: Library, ids: Sequence[int]) -> dict[str, Any]:
    """Return what is known of photographs, as `library_schema.FactsAnswer` has it."""
    roots = known_roots(library.database)
    photos = []
    for hit in look_up_photos(library.database, ids):
        others = [relative_name(path, roots) for path in hit.copies[:_MOST_COPIES]]
        photos.append(
            {
                **photo_facts(hit, roots),
                "other_files": [{"name": name, "root": root} for root, name in others],
            }
        )
    return {"photos": photos}


def duplicate_facts(
    library: Library, job: DuplicateJob, kind: Kind, offset: int, top: int
) -> dict[str, Any]:
    """Return a page of duplicates, as `duplicates_schema.DuplicatesAnswer` has it.

    Args:
        library: whose.
        job: the search.
        kind: of the groups.
        offset: groups that are passed over.
        top: the number of groups.
    """
    report = job.report
    answer: dict[str, Any] = {
        "report": job.id, "state": "running" if report is None else "ready", "stage": job.text,
        "done": job.done, "total": job.total, "outdated": False,
        "limits": dataclasses.asdict(job.limits), "searched": 0, "blank": 0, "untimed": 0,
        "remarks": [], "counts": None, "groups": [],
    }  # fmt: skip
    if report is None:
        return answer
    roots = known_roots(library.database)
    groups = report.of_kind(kind)
    return answer | {
        "outdated": version_of(library) != job.version,
        "limits": dataclasses.asdict(report.limits),
        "searched": report.searched,
        "blank": report.blank,
        "untimed": report.untimed,
        "remarks": [without_paths(remark) for remark in report.remarks],
        "counts": {name: len(report.of_kind(name)) for name in ("exact", "near", "burst")},
        "groups": [_group_facts(group, roots) for group in groups[offset : offset + top]],
    }


def _group_facts(group: DuplicateGroup, roots: Sequence[Root]) -> dict[str, Any]:
    return {
        "kind": group.kind,
        "room": group.room,
        "photos": [_duplicate(one, roots) for one in group.photographs[:MOST_OF_GROUP]],
        "total": len(group.photographs),
    }


def _duplicate(one: Duplicate, roots: Sequence[Root]) -> dict[str, Any]:
    root, name = relative_name(one.path, roots)
    taken = one.facts.taken
    return {
        "id": one.content,
        "name": name,
        "root": root,
        "bytes": one.size,
        "width": one.facts.width,
        "height": one.facts.height,
        "time": None if taken is None else clock_time(taken).isoformat(timespec="seconds"),
        "distance": one.distance,
        "similarity": one.similarity,
        "pixels": one.pixels,
        "copies": len(one.copies),
        "linked": one.linked,
    }
