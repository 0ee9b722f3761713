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
        "following": [{"id": content, "score": score} for content, score in result.following],
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


def photo_facts(hit: Hit, roots: Sequence[Root]) -> dict[str, Any]:
    """Return what is known of a photograph as `search_schema.IndexedPhoto` has it."""
    return {
        **name_facts(hit, roots),
        **shown_facts(hit),
        "format": hit.facts.format,
        "bytes": hit.size,
        "changed": not hit.current,
        "copies": len(hit.copies),
        "photo": f"/photos/{hit.content}",
        "thumbnail": f"/thumbnails/{hit.content}",
    }


def _hit_facts(hit: Hit, roots: Sequence[Root]) -> dict[str, Any]:
    return {
        **photo_facts(hit, roots),
        "score": hit.score,
        "similar": [
            {**name_facts(one, roots), "score": one.score} for one in hit.similar[:MOST_SIMILAR]
        ],
        "similar_photos": len(hit.similar),
    }
