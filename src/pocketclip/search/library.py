"""`Library`: an index of one's own photographs, and search in it.

library = Library.open(create=True)
library.index(["~/Pictures"], model="mobileclip2-s0")
library.search("red car in the snow").hits[0].path
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from pocketclip.search.database import Database
from pocketclip.search.location import Location, locate

if TYPE_CHECKING:
    from pocketclip.search.forget import ForgetReport


class Library:
    """A library of photographs; several threads may search it.

    It holds vectors of one embedding space. A text or photograph that is searched for goes through
    the model that the library was made with, which is loaded at the first use.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(
        cls, library: str | os.PathLike[str] | None = None, *, create: bool = False
    ) -> Library:
        """Open a library.

        Args:
            library: see `pocketclip.search.location.locate`; None for `photos`.
            create: make an empty one if there is none.

        Raises:
            LibraryError: there is none, it is damaged, of a newer version, or on a network file
                system.
        """
        location = locate(library)
        return cls(Database.create(location) if create else Database.open(location))

    @property
    def location(self) -> Location:
        """Where its files are."""
        return self.database.location

    def forget(
        self,
        paths: Iterable[str | os.PathLike[str]] = (),
        *,
        roots: Iterable[str | os.PathLike[str]] = (),
        absent: bool = False,
        unreadable: bool = False,
        unused: bool = False,
        dry_run: bool = False,
    ) -> ForgetReport:
        """Forget files, and what is known of their contents; see `pocketclip.search.forget.forget`.

        Raises:
            LibraryError: nothing was given, or something unknown; or another process writes.
        """
        from pocketclip.search.forget import forget

        return forget(
            self.database, paths, roots=roots, absent=absent, unreadable=unreadable,
            unused=unused, dry_run=dry_run,
        )  # fmt: skip

    def close(self) -> None:
        """Close its file."""
        self.database.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
