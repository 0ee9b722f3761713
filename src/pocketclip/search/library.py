"""`Library`: an index of one's own photographs, and search in it.

library = Library.open(create=True)
library.index(["~/Pictures"], model="mobileclip2-s0")
library.search("red car in the snow").hits[0].path
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pocketclip.errors import LibraryError, QueryError
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.search.arguments import listed
from pocketclip.search.indexing.roots import check_folder
from pocketclip.search.model import (
    DEFAULT_MODEL,
    check_not_empty,
    check_space,
    lasting_name,
    load_recorded,
    resolve_lasting,
)
from pocketclip.search.records import IndexReport, SearchResult
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import Location, is_unused, locate, refuse_network

if TYPE_CHECKING:
    from pocketclip.images import ImageSource
    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.duplicates.records import DuplicateReport, Kind
    from pocketclip.search.filters import Filters, Present
    from pocketclip.search.indexing.run import Model
    from pocketclip.search.indexing.status import Status
    from pocketclip.search.query import Part
    from pocketclip.search.similar import DuplicateLimits
    from pocketclip.search.upkeep.check import CheckReport
    from pocketclip.search.upkeep.forget import ForgetReport
    from pocketclip.search.upkeep.move_root import MoveReport
    from pocketclip.search.upkeep.repair import RepairReport
    from pocketclip.search.vectors.export import ExportReport
    from pocketclip.search.vectors.matrix import Matrix
    from pocketclip.types import Embeddings


_MANY = 1000  # photographs of a run, to which a second or two for later searches are nothing


class Library:
    """A library of photographs; several threads may search it.

    It holds vectors of one embedding space. A text or photograph that is searched for goes through
    the model that the library was made with, which is loaded at the first use.
    """

    def __init__(self, database: Database | Location) -> None:
        self._database = database
        self._encoder: Encoder | None = None
        self._matrix: Matrix | None = None
        self._present: Present | None = None
        self._guard = threading.RLock()

    @classmethod
    def open(
        cls, library: str | os.PathLike[str] | None = None, *, create: bool = False
    ) -> Library:
        """Open a library.

        Args:
            library: see `pocketclip.search.store.location.locate`; None for `photos`.
            create: make one if there is none, when it is first used: a model that cannot be loaded
                leaves no empty library.

        Raises:
            LibraryError: there is none, it is damaged, of a newer version, or on a network file
                system.
        """
        location = locate(library)
        if create and is_unused(location):
            refuse_network(location)
            return cls(location)
        return cls(Database.open(location))

    @property
    def database(self) -> Database:
        """Its file."""
        with self._guard:
            if isinstance(self._database, Location):
                self._database = Database.create(self._database)
            return self._database

    @property
    def location(self) -> Location:
        """Where its files are."""
        held = self._database
        return held if isinstance(held, Location) else held.location

    def index(
        self,
        roots: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        *,
        model: str | os.PathLike[str] | None = None,
        encoder: Encoder | Callable[[], Encoder] | None = None,
        exclude: str | Sequence[str] = (),
        retry: bool = False,
        rebuild: bool = False,
        exact: bool = False,
        thumbnails: bool = True,
        reporter: ProgressReporter | Callable[[str], None] | None = None,
    ) -> IndexReport:
        """Bring the library up to date with folders of photographs.

        Only what is new is encoded: files of the same size and time are not read, and moved,
        renamed and copied ones are recognised by their bytes. Every batch is committed, so a killed
        run loses at most 64 photographs; one that is interrupted (KeyboardInterrupt) loses none,
        and returns its report. Nothing is deleted.

        Args:
            roots: folders; none for all that the library knows.
            model: as for `pocketclip.load`; None for the model of the library, or for
                `mobileclip2-s0` if it is new. Another model of the same embedding space, such as an
                int8 bundle, becomes the library's.
            encoder: the model, loaded, or a function that loads it when there is something to
                encode. `model` then says only how to load it the next time.
            exclude: patterns of files and folders to leave out, as in `.gitignore`; they are kept
                for the root.
            retry: try unreadable files again that have not changed.
            rebuild: encode all photographs again, with another model if one is given. What is known
                of the files is kept. If it is interrupted, the next run continues.
            exact: decode large JPEGs in full, for the embeddings of `Encoder.encode_image` to the
                bit (before they are stored as float16). Else those with over 4 times the pixels per
                side that the model sees are decoded at a half, a quarter or an eighth: several
                times faster, and the cosine to the exact embedding is 0.9999 or more.
            thumbnails: make the thumbnails of new photographs from the decoded pixels. Without,
                they are made when they are first shown.
            reporter: receives the stages and the progress.

        Raises:
            LibraryError: another process writes; the model has another embedding space, and
                `rebuild` is false (nothing is written then); a root is not there and not known, or
                none is given and none is known; the disk is full (what was committed is kept).
            PocketclipError: the model cannot be loaded, see `pocketclip.load`.
        """
        from pocketclip.search.background import store_neutral
        from pocketclip.search.indexing import run as indexing
        from pocketclip.search.vectors.matrix import prepare_matrix

        roots, exclude = listed(roots), listed(exclude)
        begun = time.monotonic()
        if not (roots or self._has_roots()):
            raise LibraryError(
                f"the library {self.location.name} has no folders yet: give one, as in `pocketclip "
                "index ~/Pictures`"
            )
        for root in roots if isinstance(self._database, Location) else ():
            check_folder(root)  # before a model is fetched, and a library created, for nothing
        chosen = self._model(model, encoder)
        report = indexing.run(
            self.database, roots, chosen, exclude=exclude, retry=retry, rebuild=rebuild,
            exact=exact, thumbnails=thumbnails, reporter=as_reporter(reporter),
        )  # fmt: skip
        if not callable(chosen.encoder):
            self._encoder = chosen.encoder
        if not report.interrupted:
            if self._encoder is not None and report.encoded >= _MANY:
                store_neutral(self.database, self._encoder)
            with contextlib.suppress(LibraryError):  # the next search says what is wrong
                prepare_matrix(self.database)
        report.seconds = time.monotonic() - begun
        return report

    def watch(
        self,
        roots: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        *,
        on_report: Callable[[IndexReport], object] = lambda _report: None,
        reporter: ProgressReporter | Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
        encoder: Encoder | Callable[[], Encoder] | None = None,
        exact: bool = False,
        thumbnails: bool = True,
        **options: Any,
    ) -> None:
        """Index folders, and again whenever something changes in them, until interrupted.

        With the extra `search`, the system reports changes; without it, and on network file
        systems, the folders are listed every minute. A root may vanish and come back. While another
        process writes, it waits. See `pocketclip.search.indexing.watch`.

        Args:
            roots: as for `index`.
            on_report: called with the report of each run.
            reporter: receives the stages, the progress, and remarks.
            stop: ends it when set.
            encoder: as for `index`.
            exact: as for `index`.
            thumbnails: as for `index`.
            options: others of `index`, for the first run.

        Raises:
            KeyboardInterrupt: it was interrupted; all that was encoded is kept.
            PocketclipError: the first run failed, see `index`.
        """
        from pocketclip.search.indexing.roots import known_roots
        from pocketclip.search.indexing.watch import is_left_out, watch

        same: dict[str, Any] = {
            "encoder": encoder, "reporter": as_reporter(reporter), "exact": exact,
            "thumbnails": thumbnails,
        }  # fmt: skip
        report = self.index(roots, **same, **options)
        on_report(report)

        def run(folders: list[Path]) -> None:
            report = self.index(folders, **same)
            on_report(report)
            if report.interrupted:
                raise KeyboardInterrupt

        if report.interrupted:
            raise KeyboardInterrupt
        database = self.database
        given = [Path(os.path.realpath(Path(root).expanduser())) for root in listed(roots)]
        watch(
            given or [root.path for root in known_roots(database)],
            run,
            skip=functools.partial(is_left_out, database),
            remark=same["reporter"].remark,
            stop=stop,
        )

    def status(self, roots: Sequence[str | os.PathLike[str]] = ()) -> Status:
        """Return what the library has, and what indexing would find; nothing is written.

        Args:
            roots: folders, known or not; none for all that the library knows.

        Raises:
            LibraryError: a folder is not there and not known.
        """
        from pocketclip.search.indexing.status import read_status

        return read_status(self.database, listed(roots))

    def _has_roots(self) -> bool:
        from pocketclip.search.indexing.roots import known_roots

        return isinstance(self._database, Database) and bool(known_roots(self._database))

    def has_model(self) -> bool:
        """Return whether the library has the embeddings of a model, or is to have them."""
        is_missing = isinstance(self._database, Location)
        return not is_missing and self.database.fact("space_id") is not None

    def _model(
        self, model: str | os.PathLike[str] | None, encoder: Encoder | Callable[[], Encoder] | None
    ) -> Model:
        """Return the model of a run of indexing; it is loaded now, unless it is the library's."""
        from pocketclip.search.indexing.run import Model

        is_new = not self.has_model()
        if encoder is None and model is None and not is_new:
            return Model(functools.partial(self.encoder, offline=False))
        if model is None and encoder is None:
            model = DEFAULT_MODEL
        name = None if model is None else lasting_name(model)
        if encoder is None:
            from pocketclip.infer.encoder import load

            assert name is not None
            encoder = load(resolve_lasting(name))
        elif callable(encoder) and (is_new or model is not None):
            encoder = encoder()
        return Model(encoder, name)

    def encoder(self, *, offline: bool = True, **options: Any) -> Encoder:
        """Return the model that the library was made with; it is loaded at the first call.

        Args:
            offline: take files of the hub from the local cache only.
            options: others of `pocketclip.load`, for the first call; `low_latency_start=True` for
                a process that ends after one search.

        Raises:
            LibraryError: the library has no model yet; the model cannot be loaded, or has another
                embedding space now.
        """
        with self._guard:
            if self._encoder is None or self._encoder.space_id != self.database.fact("space_id"):
                self._encoder = load_recorded(self.database, offline=offline, **options)
            return self._encoder

    def matrix(self) -> Matrix:
        """Return the vectors of all photographs as they are now; see `matrix.open_matrix`."""
        from pocketclip.search.vectors.matrix import open_matrix

        database = self.database
        with self._guard:
            self._matrix = open_matrix(database, last=self._matrix)
            return self._matrix

    def search(
        self,
        query: str | Sequence[Part] | None = None,
        *,
        image: ImageSource | None = None,
        like: str | os.PathLike[str] | Iterable[ImageSource] = (),
        unlike: str | os.PathLike[str] | Iterable[ImageSource] = (),
        literal: bool = False,
        filters: Filters | None = None,
        top: int = 20,
        min_score: float | None = None,
        encoder: Encoder | None = None,
        neutral: Embeddings | None = None,
        following: int = 0,
    ) -> SearchResult:
        """Return the photographs that fit a query best; the same ones in the same order every time.

        Args:
            query: texts and photographs with weights and signs, such as
                `"2:beach + sunset - people"`, see `pocketclip.search.query`; or its parts.
            image: a photograph that others should be like: a path, bytes, an image or an array.
            like: more of them.
            unlike: photographs that others should not be like.
            literal: take `query` as one text, whatever signs are in it.
            filters: which photographs to search in; they apply before the ranking.
            top: the number of hits. Files with the same bytes are one hit, and so are near
                duplicates, see `Hit.copies` and `Hit.similar`.
            min_score: the least cosine similarity of a hit.
            encoder: the model, if it is loaded already.
            neutral: what `pocketclip.search.background.load_neutral` returned for the model, if it
                is known already. With it, and with parts that have their vectors, the model is not
                run.
            following: how many photographs to name by their ids after the hits, for a list that
                goes on, see `SearchResult.following`.

        Raises:
            QueryError: the query or a filter cannot be understood.
            ImageError: a photograph of the query cannot be opened.
            LibraryError: the library has no photographs, or the model cannot be loaded or has
                another embedding space.
        """
        from pocketclip.search.filters import Filters, Present
        from pocketclip.search.query import make_parts
        from pocketclip.search.searching import search

        if top < 1:
            raise QueryError(f"top must be at least 1, not {top}")
        if min_score is not None and math.isnan(min_score):
            raise QueryError("min_score is not a number")
        self._present = self._present or Present()
        parts = make_parts(query, image=image, like=like, unlike=unlike, literal=literal)
        check_not_empty(self.database)
        if encoder is not None:
            check_space(self.database, encoder)
        return search(
            self.database, parts, filters or Filters(), encoder=encoder or self.encoder(),
            matrix=self.matrix, top=top, min_score=min_score, present=self._present,
            neutral=neutral, following=following,
        )  # fmt: skip

    def duplicates(
        self,
        *,
        kinds: Sequence[Kind] = ("exact", "near", "burst"),
        limits: DuplicateLimits | None = None,
        folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        reporter: ProgressReporter | Callable[[str], None] | None = None,
    ) -> DuplicateReport:
        """Return exact duplicates, near duplicates and bursts; nothing is changed.

        Args:
            kinds: what to look for.
            limits: what counts as a near duplicate and as a burst; None for the defaults of
                `pocketclip.search.similar.DuplicateLimits`.
            folders: look only at files in these.
            reporter: receives the stages and the progress.

        Raises:
            ConfigError, QueryError, LibraryError: see
                `pocketclip.search.duplicates.find.find_duplicates`.
        """
        from pocketclip.search.duplicates.find import find_duplicates
        from pocketclip.search.similar import DEFAULT_LIMITS

        return find_duplicates(
            self.database, kinds=kinds, limits=limits or DEFAULT_LIMITS,
            folders=listed(folders),
            matrix=self.matrix() if {"near", "burst"} & set(kinds) else None, reporter=reporter,
        )  # fmt: skip

    def forget(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        *,
        roots: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        absent: bool = False,
        unreadable: bool = False,
        unused: bool = False,
        dry_run: bool = False,
    ) -> ForgetReport:
        """Forget files, and what is known of their contents; see `upkeep.forget.forget`.

        Raises:
            LibraryError: nothing was given, or something unknown; or another process writes.
        """
        from pocketclip.search.upkeep.forget import forget

        return forget(
            self.database, listed(paths), roots=listed(roots), absent=absent, unreadable=unreadable,
            unused=unused, dry_run=dry_run,
        )  # fmt: skip

    def check(self) -> CheckReport:
        """Check the library, which reads all of its file; see `upkeep.check.check`."""
        from pocketclip.search.upkeep.check import check

        return check(self.database)

    @staticmethod
    def repair(library: str | os.PathLike[str] | None = None) -> RepairReport:
        """Mend a library that is damaged, and need not open; see `upkeep.repair.repair`.

        Args:
            library: as for `open`. No process may have it open, this one included.

        Raises:
            LibraryError: nothing can be saved and there is no backup; it is of a newer version, or
                in use. Nothing was changed.
        """
        from pocketclip.search.upkeep.repair import repair

        return repair(locate(library))

    def move_root(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> MoveReport:
        """Record that a root is at another place now; see `upkeep.move_root.move_root`.

        Raises:
            LibraryError: `old` is no root, or `new` is not there, has none of its files, or
                overlaps with another root; or another process writes.
        """
        from pocketclip.search.upkeep.move_root import move_root

        return move_root(self.database, old, new)

    def export_vectors(
        self,
        out: str | os.PathLike[str],
        *,
        format: str = "npy",
        include_absent: bool = False,
        reporter: ProgressReporter | Callable[[str], None] | None = None,
    ) -> ExportReport:
        """Write the vectors for other programs, in clip-retrieval's layout.

        Arguments and errors: see `pocketclip.search.vectors.export.export_vectors`.
        """
        from pocketclip.search.vectors.export import export_vectors

        return export_vectors(
            self.database, out, format=format, include_absent=include_absent, reporter=reporter
        )

    def close(self) -> None:
        """Close its file."""
        if isinstance(self._database, Database):
            self._database.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
