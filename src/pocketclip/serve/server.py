"""`serve`: a model behind HTTP, until it is told to end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pocketclip.errors import MissingDependencyError, how_to_install
from pocketclip.serve.settings import ServerSettings

if TYPE_CHECKING:
    from pocketclip.checkpoint.resolve import ModelSource
    from pocketclip.serve.process import Running


def serve(
    model: str | os.PathLike[str] | ModelSource | None = None,
    *,
    library: str | os.PathLike[str] | None = None,
    settings: ServerSettings | None = None,
    on_start: Callable[[Running], Any] | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; what runs is finished then.

    Args:
        model: a bundle, or what is converted to one, with torch and without; None for the model of
            the library.
        library: a library of photographs to search in; see `pocketclip.search.Library.open`.
        settings: addresses, keys and limits.
        on_start: called when the server answers.

    Raises:
        ConfigError: settings that contradict each other or are not safe.
        MissingDependencyError: the extra `serve` is not installed.
        PocketclipError: the model or the library cannot be opened, or they do not fit.
    """
    try:
        from pocketclip.serve.opening import open_services
        from pocketclip.serve.process import run
    except ImportError as error:
        if isinstance(error, MissingDependencyError) or error.name is None:
            raise
        raise MissingDependencyError(
            f"a server needs {error.name}: {how_to_install('serve')}"
        ) from error
    services = open_services(model, library, settings or ServerSettings())
    asyncio.run(run(services, on_start))
