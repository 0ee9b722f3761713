"""A search's result as JSON values, without a path of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketclip.formats.escaping import name_text
from pocketclip.search.contact_sheet import shown_facts
from pocketclip.search.indexing.roots import Root, known_roots
from pocketclip.search.library import Library
from pocketclip.search.records import Hit, SearchResult

MOST_SIMILAR = 50
"""Near duplicates that are listed of a hit."""


def search_facts(library: Library, result: SearchResult) -> dict[str, Any]:
    """Return a result as `search_schema.SearchAnswer` has it."""
    roots = known_roots(library.database)
    return {
        "fits": result.fits,
        "reason": result.reason,
        "lead": result.lead,
        "searched": result.searched,
        "removed": dict(result.removed),
        "gone": result.gone,
        "below_score": result.below_score,
        "away": len(result.away),
        "unencoded": result.unencoded,
        "library": library.location.name,
        "model": library.database.fact("model"),
        "space_id": library.database.fact("space_id"),
        "hits": [_hit_facts(hit, roots) for hit in result.hits],
    }


def name_facts(hit: Hit, roots: Sequence[Root]) -> dict[str, Any]:
    """Return the id of a hit and its name below its root, which is named by its last part."""
    root, name = relative_name(hit.path, roots)
    return {"id": hit.content, "name": name, "root": root}


def relative_name(path: Path, roots: Sequence[Root]) -> tuple[str, str]:
    """Return the name of a file's root, and the file's path below it, with slashes."""
    inside = [root for root in roots if path.is_relative_to(root.path)]
    if not inside:  # the root was moved or forgotten since
        return "", name_text(path.name)
    root = max(inside, key=lambda one: len(os.fsencode(one.path)))
    return name_text(root.path.name), name_text(path.relative_to(root.path))


def _hit_facts(hit: Hit, roots: Sequence[Root]) -> dict[str, Any]:
    return {
        **name_facts(hit, roots),
        "score": hit.score,
        **shown_facts(hit),
        "format": hit.facts.format,
        "bytes": hit.size,
        "changed": not hit.current,
        "copies": len(hit.copies),
        "similar": [
            {**name_facts(one, roots), "score": one.score} for one in hit.similar[:MOST_SIMILAR]
        ],
        "similar_photos": len(hit.similar),
        "photo": f"/photos/{hit.content}",
        "thumbnail": f"/thumbnails/{hit.content}",
    }
