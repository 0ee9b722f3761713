"""`serve`: a model behind HTTP, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pocketclip.errors import MissingDependencyError, how_to_install
from pocketclip.serve.settings import ServerSettings

if TYPE_CHECKING:
    from pocketclip.checkpoint.resolve import ModelSource
    from pocketclip.serve.process.lifecycle import Ended, Running

AT_ONCE = "at once"
"""What `KeyboardInterrupt` says after a second SIGINT."""


def serve(
    model: str | os.PathLike[str] | ModelSource | None = None,
    *,
    library: str | os.PathLike[str] | None = None,
    settings: ServerSettings | None = None,
    on_start: Callable[[Running], Any] | None = None,
    log: bool = True,
) -> None:
    """Answer requests until SIGTERM or SIGINT; what runs is finished then.

    SIGHUP reads the model at its place again, and the certificate: what is damaged, or of another
    embedding space than the library or a label set, is refused, and the old one stays. A
    certificate of the server's own (`ServerSettings.tls`) is made anew if it must be. Signals are
    handled only in the main thread.

    Args:
        model: a bundle, or what is converted to one, with torch and without; None for the model of
            the library.
        library: a library of photographs to search in; see `pocketclip.search.Library.open`.
        settings: addresses, keys and limits.
        on_start: called when the server answers.
        log: write the log, as JSON lines, to standard error; see
            `pocketclip.serve.monitoring.logs`.

    Raises:
        ConfigError: settings that contradict each other or are not safe, an address that cannot be
            used, or weights whose licence may forbid to serve them there.
        KeyboardInterrupt: it was ended by SIGINT; with `AT_ONCE` by a second one, and the model may
            still be computing in a thread.
        MissingDependencyError: the extra `serve` is not installed.
        PocketclipError: the model or the library cannot be opened, or they do not fit.
    """
    try:
        from pocketclip.serve.inputs.upstream import Upstream
        from pocketclip.serve.monitoring.logs import logging_to
        from pocketclip.serve.process.allocator import give_back_large_blocks
        from pocketclip.serve.process.lifecycle import bind_all, run
        from pocketclip.serve.process.opening import check_license, model_source, open_services
        from pocketclip.serve.process.tls import open_tls
    except ImportError as error:
        if isinstance(error, MissingDependencyError) or error.name is None:
            raise
        raise MissingDependencyError(
            f"a server needs {error.name}: {how_to_install('serve')}"
        ) from error
    settings = settings or ServerSettings()
    give_back_large_blocks()
    if model is not None and settings.is_reachable:
        check_license(model_source(model, None), settings)
    # What can be wrong with the settings comes first: a model may take minutes to fetch.
    sockets = bind_all(settings)
    with contextlib.ExitStack() as stack:
        stack.callback(sockets.close)
        tls = open_tls(settings)
        if settings.upstream is not None:
            Upstream(settings.upstream)
        services = open_services(model, library, settings)
        if services.library is not None:
            stack.callback(services.library.close)
        source = model_source(model, services.library)
        if log:
            stack.enter_context(logging_to())
        ended = _run(run(
            services, on_start, source=source, sockets=sockets, tls=tls, handle_signals=True
        ))  # fmt: skip
    if ended.signal == signal.SIGINT:
        raise KeyboardInterrupt(*([AT_ONCE] if ended.at_once else []))


def _run(main: Coroutine[Any, Any, Ended]) -> Ended:
    """Run on uvloop, which is faster, if it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
