"""`serve`: a model behind HTTP, until it is told to end."""

from __future__ import annotations

import os

from pocketclip.serve.settings import ServerSettings


def serve(
    model: str | os.PathLike[str] | None = None,
    *,
    library: str | os.PathLike[str] | None = None,
    settings: ServerSettings | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; what runs is finished then.

    Args:
        model: a bundle, or what is converted to one, see `pocketclip.load`; None for the model of
            the library.
        library: a library of photographs to search in; see `pocketclip.search.Library.open`.
        settings: addresses, keys and limits.

    Raises:
        ConfigError: settings that contradict each other or are not safe.
        MissingDependencyError: the extra `serve` is not installed.
        PocketclipError: the model or the library cannot be opened, or they do not fit.
    """
    import asyncio

    import uvicorn

    from pocketclip.infer.encoder import load
    from pocketclip.search.library import Library
    from pocketclip.serve.app import create_app
    from pocketclip.serve.engine import Engine
    from pocketclip.serve.services import Services

    settings = settings or ServerSettings()
    opened = None if library is None else Library.open(library)
    if model is not None:
        encoder = load(model)
    else:
        assert opened is not None
        encoder = opened.encoder(offline=False)
    services = Services(
        engine=Engine(encoder, settings.limits), settings=settings, library=opened, is_ready=True
    )
    config = uvicorn.Config(create_app(services), host=settings.host, port=settings.port)
    asyncio.run(uvicorn.Server(config).serve())
