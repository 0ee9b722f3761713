"""`pocketclip index`: bring a library up to date with folders of photographs."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    Backend,
    Device,
    Json,
    LibraryOption,
    ModelName,
    Offline,
    Revision,
    Threads,
)
from pocketclip.cli.output import print_json
from pocketclip.errors import ConfigError
from pocketclip.formats.escaping import name_text

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.library import Library
    from pocketclip.search.records import IndexReport


def index(
    roots: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ROOT", help="Folders of photographs.  [default: all that the library knows]"
        ),
    ] = None,
    library: LibraryOption = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave out files and folders, as in a .gitignore; kept for later runs; may be "
            'repeated. "" removes the earlier ones.',
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try unreadable files again that have not changed.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Encode all photographs again, with --model by another model; what is known of "
            "the files is kept.",
        ),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Decode large JPEGs in full: the embeddings of `pocketclip embed` to the bit, "
            "several times slower.",
        ),
    ] = False,
    thumbnails: Annotated[
        bool,
        typer.Option(
            "--thumbnails/--no-thumbnails",
            help="Make thumbnails of new photographs; else they are made when they are first "
            "shown.",
        ),
    ] = True,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on indexing what changes, until Ctrl-C; at once with the extra `search`, else "
            "every minute.",
        ),
    ] = False,
    status: Annotated[
        bool,
        typer.Option("--status", help="Show what the library has and what changed; write nothing."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check the library's file; change nothing.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend the library's file; keep the damaged one.")
    ] = False,
    move_root: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="OLD NEW", help="Record that a root was moved, or is mounted elsewhere."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{MODEL_HELP}  [default: the library's; for a new one {DEFAULT_MODEL}]",
        ),
    ] = None,
    model_name: ModelName = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Bring a library up to date with folders of photographs, for `pocketclip search`.

    Only what is new is encoded: moved, renamed and copied files are recognised by their bytes, and
    files of the same size and time are not even read. Every 32 photographs or 5 seconds are
    committed. Ctrl-C loses nothing; run it again to go on. Nothing is ever deleted: a file that is
    gone is kept as absent until `pocketclip forget`.

    Hidden files, and what .pocketclipignore files, .nomedia and --exclude name, are left out. HEIC
    needs the extra `heic`. A large JPEG is decoded at a fraction of its size, which changes its
    embedding less than saving it again (--exact).

    A file that cannot be read is named, and not tried again until it changes (--retry). If
    something was left out, the exit code is 1.

    \b
    pocketclip index ~/Pictures
    pocketclip index
    pocketclip index --status
    pocketclip index ~/Pictures /media/nas/photos --exclude "*/cache/" --library family
    pocketclip index --rebuild --model mobileclip2-s2
    pocketclip index --move-root /media/old/photos /media/new/photos
    """
    modes = {
        "--watch": watch, "--status": status, "--check": check, "--repair": repair,
        "--move-root": move_root,
    }  # fmt: skip
    mode = _only([name for name, given in modes.items() if given], roots or [])
    from pocketclip.cli import _upkeep

    if mode == "--status":
        _show_status(library, roots or [], json=json)
    elif mode == "--check":
        _upkeep.check(library, json=json)
    elif mode == "--repair":
        _upkeep.repair(library, json=json)
    elif move_root is not None:
        _upkeep.move_root(library, *move_root, json=json)
    else:
        options = {"offline": offline, "backend": backend, "device": device, "threads": threads}
        _run(
            library, roots or [], (model, model_name, revision), options, json=json,
            watch=watch, exclude=exclude or [], retry=retry, rebuild=rebuild, exact=exact,
            thumbnails=thumbnails,
        )  # fmt: skip


def _only(modes: list[str], roots: list[str]) -> str | None:
    """Return what is done instead of indexing; None for indexing."""
    if len(modes) > 1:
        raise ConfigError(f"{modes[0]} and {modes[1]} cannot be combined: run one after the other")
    if modes and modes[0] not in ("--watch", "--status") and roots:
        raise ConfigError(f"{modes[0]} concerns the whole library: leave out {roots[0]}")
    return modes[0] if modes else None


def _run(
    library: str | None,
    roots: list[str],
    model: tuple[str | None, str | None, str | None],
    options: dict[str, Any],
    *,
    json: bool,
    watch: bool,
    **what: Any,
) -> None:
    """Index, and print what was done.

    Args:
        library: its name or file.
        roots: folders.
        model: what `_model` takes.
        options: of loading the model.
        json: print JSON.
        watch: go on until interrupted.
        what: options of `Library.index`.
    """
    from pocketclip.cli._index_output import IndexProgress, print_report
    from pocketclip.search.library import Library

    is_first = True

    def show(report: IndexReport) -> None:
        nonlocal is_first
        if not (is_first or report.has_news or report.interrupted):
            return  # of watching
        is_first = False
        if json:
            print_json({"library": name_text(opened.location.file), **report.facts()})
        else:
            print_report(report, opened.location.name)

    with (
        _interrupt_at_termination(),
        Library.open(library, create=True) as opened,
        IndexProgress() as reporter,
    ):
        load, name = _model(opened, *model, **options)
        what |= {"model": name, "encoder": load, "reporter": reporter}
        try:
            if watch:
                opened.watch(roots, on_report=show, **what)
                return
            report = opened.index(roots, **what)
        except KeyboardInterrupt:
            if watch:
                sys.exit(130)
            raise
    show(report)
    if report.interrupted:
        sys.exit(130)  # typer's own exit would add that nothing was left
    if report.is_incomplete:
        raise typer.Exit(1)


def _model(
    library: Library,
    model: str | None,
    model_name: str | None,
    revision: str | None,
    **options: Any,
) -> tuple[Any, str | None]:
    """Return a function that loads the model, and its lasting name if it is to be recorded."""
    from pocketclip.cli._inputs import load_encoder
    from pocketclip.cli._progress import Notes
    from pocketclip.search.model import lasting_name

    if model is None and library.has_model():
        if model_name is not None or revision is not None:
            raise ConfigError("--model-name and --revision go with --model")
        return functools.partial(library.encoder, reporter=Notes(), **options), None
    model = model or DEFAULT_MODEL

    @functools.cache  # with --watch it is asked for again
    def load() -> Encoder:
        return load_encoder(model, model_name, revision=revision, **options)

    return load, lasting_name(model, model_name, revision)


def _show_status(library: str | None, roots: list[str], *, json: bool) -> None:
    from pocketclip.cli._index_output import print_status
    from pocketclip.search.indexing.status import read_status
    from pocketclip.search.store.database import Database
    from pocketclip.search.store.location import locate

    database = Database.open(locate(library))
    try:
        status = read_status(database, roots)
    finally:
        database.close()
    if json:
        print_json(status.facts())
    else:
        print_status(status)


@contextlib.contextmanager
def _interrupt_at_termination() -> Iterator[None]:
    """End as Ctrl-C does, with everything committed, when the process is told to terminate.

    A signal that is ignored stays so: under nohup the process outlives its terminal.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
