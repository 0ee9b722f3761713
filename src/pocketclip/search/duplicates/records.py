"""What a search for duplicates gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pocketclip.search.records import PhotoFacts
from pocketclip.search.similar import DuplicateLimits

Kind: TypeAlias = Literal["exact", "near", "burst"]
KINDS: tuple[Kind, ...] = ("exact", "near", "burst")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A photograph of a group."""

    path: Path
    content: int
    """Id of the content, the same for all copies."""
    digest: bytes
    """Hash of the whole file, see `pocketclip.search.store.database`."""
    size: int
    """Bytes."""
    facts: PhotoFacts
    modified: float
    """When the file was changed, in seconds since 1970."""
    distance: int | None = None
    """Bits in which its perceptual hash differs from the best one's; None for exact duplicates,
    and where one has no hash."""
    similarity: float | None = None
    """Cosine similarity to the best one; None for exact duplicates."""
    pixels: float | None = None
    """Correlation of its pixels with the best one's; None where they were not compared."""
    copies: tuple[Path, ...] = ()
    """Other files with the same bytes; none for exact duplicates, which are listed themselves."""
    linked: bool = False
    """Whether it is another name of a file that is listed before it (a hard link): it takes no
    room of its own."""


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Photographs that are duplicates of the first one, or a burst with it."""

    kind: Kind
    photographs: tuple[Duplicate, ...]
    """The best one first: most pixels, then most bytes, then the oldest file. Of a burst, the
    others follow in the order of time."""

    @property
    def room(self) -> int:
        """The bytes of all but the best one."""
        return sum(one.size for one in self.photographs[1:] if not one.linked)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """The duplicates of a library. Nothing was changed."""

    kinds: tuple[Kind, ...]
    """What was looked for."""
    limits: DuplicateLimits
    """What counted; `near_distance` is smaller than what was asked for if `remarks` say so."""
    groups: tuple[DuplicateGroup, ...]
    """By kind; within it, the one that takes most room first; bursts by time."""
    searched: int
    """The number of different photographs that were compared."""
    blank: int
    """Those without a perceptual hash, which cannot be near duplicates."""
    untimed: int
    """Those whose camera or its time is unknown, which cannot be in a burst."""
    outdated: int
    """Files that are left out: they are not there now, or changed since they were indexed."""
    remarks: tuple[str, ...] = ()
    """What the reader must know."""

    def of_kind(self, kind: Kind) -> list[DuplicateGroup]:
        """Return the groups of one kind."""
        return [group for group in self.groups if group.kind == kind]
