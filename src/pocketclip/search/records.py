"""What indexing, searching and the rest of a library give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pocketclip.formats.escaping import name_text


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    """What the header of a photograph says; None where it says nothing."""

    width: int | None = None
    """Pixels of the upright image."""
    height: int | None = None
    format: str | None = None
    """`JPEG`, `HEIF`, ..."""
    orientation: int | None = None
    """The EXIF tag, 1 to 8."""
    taken: float | None = None
    """Seconds from 1970 to what the camera's clock showed, read as if it were UTC."""
    taken_offset: int | None = None
    """Minutes that the clock was ahead of UTC."""
    camera: str | None = None
    latitude: float | None = None
    """Degrees; north is positive."""
    longitude: float | None = None
    """Degrees; east is positive."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A photograph that a search found."""

    path: Path
    score: float
    """Cosine similarity to the query."""
    content: int
    """Id of the content, the same for all copies."""
    digest: bytes
    """Hash of the whole file, see `pocketclip.search.store.database`."""
    facts: PhotoFacts
    size: int
    """Bytes."""
    date: float | None = None
    """Seconds from 1970 to what a clock showed when the photograph was taken, read as if it were
    UTC; without a capture time, the time of the file, on a clock here."""
    date_from: Literal["camera", "file"] | None = None
    """What `date` comes from."""
    current: bool = True
    """Whether the file has the size and time that it had when it was indexed."""
    copies: tuple[Path, ...] = ()
    """Other files with the same bytes."""
    similar: tuple[Hit, ...] = ()
    """Near duplicates, which are not listed themselves; the best one is this hit."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to a search."""

    hits: tuple[Hit, ...]
    fits: bool | None
    """Whether the best hit stands out from what the query gives for any photograph; None if that
    cannot be said, as for a query without text or a small library."""
    reason: str
    """Why, in one sentence for people."""
    searched: int
    """The number of photographs that the filters left."""
    lead: float | None = None
    """Logits by which the best hits are above those of unrelated texts, see
    `pocketclip.search.background`; None where that is not judged."""
    gone: int = 0
    """The number of better hits that are left out because their file is not there now."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """If nothing is left to search in: how many photographs each filter removed."""
    below_score: bool = False
    """Whether the least score left hits out."""
    away: tuple[Path, ...] = ()
    """Roots that are not there now, whose photographs are left out."""
    unencoded: int = 0
    """Photographs of the library that have no embedding yet, so are not searched: `--rebuild` was
    interrupted, or goes on."""
    following: tuple[tuple[int, float], ...] = ()
    """Ids of the contents that come after the hits, in their order, each with its score; as many as
    were asked for. Near duplicates are left out, and files looked for, among the first 2,000 or so.
    """


@dataclass(slots=True)
class IndexReport:
    """What one run of indexing did; files, unless it says photographs."""

    encoded: int = 0
    """Photographs that went through the image tower."""
    copied: int = 0
    """New files with known bytes: copies."""
    moved: int = 0
    """Known bytes at a new path, gone from the old one."""
    changed: int = 0
    """Known paths with new bytes."""
    touched: int = 0
    """Known paths with a new time and the same bytes."""
    thumbnails: int = 0
    """Thumbnails that were made."""
    unchanged: int = 0
    absent: int = 0
    """Files that are not there now; what is known of them is kept."""
    vanished: int = 0
    """Files that the run before still found, and this one did not; moved ones included."""
    returned: int = 0
    """Files that had been absent or left out."""
    excluded: int = 0
    """Known files that a rule leaves out since this run; what is known of them is kept."""
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """Files that this run could not read, with the reason."""
    known_unreadable: int = 0
    """Unreadable files of earlier runs, unchanged since, that were not tried again."""
    unsupported: dict[str, int] = field(default_factory=dict)
    """Files in formats that need an extra: how many, by the message that names it. They are tried
    again once it is installed."""
    unlisted: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that could not be listed, with the reason; what is known of their files is kept."""
    missing_roots: list[tuple[Path, str]] = field(default_factory=list)
    """Roots that are not there, with the reason; what is known of their files is kept."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files that are no photographs, hidden, excluded, ...: how many of each kind."""
    examples: dict[str, Path] = field(default_factory=dict)
    """One that was passed over of each kind."""
    gone: int = 0
    """Files that went away between the listing and their turn."""
    interrupted: bool = False
    """Whether the run was stopped; everything that was encoded is kept."""
    seconds: float = 0.0
    """How long the run took."""

    @property
    def has_news(self) -> bool:
        """Whether anything is different from the run before, or was left out."""
        return self.is_incomplete or any(
            (self.encoded, self.copied, self.moved, self.changed, self.touched, self.vanished,
             self.returned, self.excluded)
        )  # fmt: skip

    @property
    def found_nothing(self) -> bool:
        """Whether the roots hold no photograph, and never held one."""
        return not (
            self.has_news or self.unchanged or self.absent or self.known_unreadable or self.gone
            or self.interrupted
        )  # fmt: skip

    @property
    def is_incomplete(self) -> bool:
        """Whether something was left out that could be mended, or come back."""
        return bool(self.unreadable or self.unsupported or self.unlisted or self.missing_roots)

    def facts(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        facts: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, list):
                value = [{"path": name_text(path), "reason": reason} for path, reason in value]
            elif name == "examples":
                value = {kind: name_text(path) for kind, path in value.items()}
            facts[name] = value
        return facts

    def add(self, other: IndexReport) -> None:
        """Add the counts and files of another report."""
        for name in self.__slots__:
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, dict):
                for kind, value in theirs.items():
                    known = kind in ours and isinstance(value, int)
                    ours[kind] = ours[kind] + value if known else ours.get(kind, value)
            elif isinstance(ours, bool):
                setattr(self, name, ours or theirs)
            else:
                setattr(self, name, ours + theirs)
