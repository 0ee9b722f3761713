"""What the routes of a server work with, kept in `app.state.services`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from pocketclip.pages.web_files import WebFiles, web_files
from pocketclip.serve.encoding.engine import Engine
from pocketclip.serve.inputs.fetching import ImageFetcher
from pocketclip.serve.middleware.keys import KeyCheck
from pocketclip.serve.middleware.room import Room
from pocketclip.serve.middleware.sessions import Sessions
from pocketclip.serve.model_offer import ModelOffer, make_offer
from pocketclip.serve.monitoring.exchange import Exchange
from pocketclip.serve.monitoring.metrics import Metrics
from pocketclip.serve.photos.photo_library import PhotoLibrary
from pocketclip.serve.settings import ServerSettings

if TYPE_CHECKING:
    from pocketclip.infer.bundle import Bundle
    from pocketclip.label_set import LabelSet
    from pocketclip.search.library import Library
    from pocketclip.serve.inputs.upstream import Upstream


@dataclass(slots=True, kw_only=True)
class Services:
    """The model, the library and the settings of a server; one per process, for all its ports."""

    engine: Engine
    settings: ServerSettings = field(default_factory=ServerSettings)
    library: Library | None = None
    label_sets: dict[str, LabelSet] = field(default_factory=dict)
    """By the name that requests use."""
    web_bundles: Sequence[Bundle] = ()
    """Further ONNX bundles, beside that of the engine, which pages may run themselves."""
    web: WebFiles = field(default_factory=web_files)
    """The files of the pages."""
    upstream: Upstream | None = None
    """What immich's requests for faces and OCR are passed on to; made by `create_immich_app`."""
    fetcher: ImageFetcher | None = None
    """For images by URL; None: they are refused."""
    photos: PhotoLibrary | None = field(default=None, init=False)
    """The library for requests; None: there is none."""
    is_ready: bool = False
    """Whether both towers have encoded something."""
    is_draining: bool = False
    """Whether the server is ending: what runs is finished, and nothing new is begun."""
    sessions: Sessions = field(default_factory=Sessions)
    """Of browsers; `sessions.new_token()` begins one."""
    keys: KeyCheck = field(init=False)
    """Compares keys with that of the settings."""
    room: Room = field(default_factory=Room)
    """For bodies; kept by `admission`."""
    metrics: Metrics = field(default_factory=Metrics)
    _offer: ModelOffer | None = field(default=None, init=False)
    on_exchange: list[Callable[[Exchange], None]] = field(default_factory=list)
    """Called when a request has ended: the log."""

    @property
    def held_bytes(self) -> int:
        """Of the bodies of all requests that are being received, wait or run."""
        return self.room.held

    @property
    def can_answer(self) -> bool:
        """Whether the server is ready, and not ending."""
        return self.is_ready and not self.is_draining

    def __post_init__(self) -> None:
        """Take the key, allow images by URL if the settings name hosts, and open the library."""
        self.keys = KeyCheck(self.settings.api_key)
        if self.fetcher is None and self.settings.fetch_from:
            self.fetcher = ImageFetcher(self.settings.fetch_from, self.settings.limits)
        if self.library is not None:
            self.photos = PhotoLibrary(
                self.library, self.engine, max_pixels=self.settings.limits.image_pixels
            )

    @property
    def offer(self) -> ModelOffer:
        """What pages may run themselves; made at its first use, and replaced by another one.

        Raises:
            ChangedBundleError: a file of a bundle is missing, or has another size.
        """
        if self._offer is None:
            self._offer = make_offer(self.engine.encoder, self.web_bundles, self.label_sets)
        return self._offer

    @offer.setter
    def offer(self, offer: ModelOffer) -> None:
        self._offer = offer

    async def close(self) -> None:
        """End the engine, the threads of the library, and what connects to others."""
        await self.engine.close()
        if self.photos is not None:
            await asyncio.to_thread(self.photos.close)
        if self.upstream is not None:
            await self.upstream.close()
        if self.fetcher is not None:
            await asyncio.to_thread(self.fetcher.close)


async def services_of(request: HTTPConnection) -> Services:
    """Return the services of the app that a request came to; a FastAPI dependency.

    A plain function would be called in one of 40 threads, at the cost of a switch per request.
    """
    services: Services = request.app.state.services
    return services
