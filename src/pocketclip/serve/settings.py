"""What a server is told at its start, and what it accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from pocketclip.errors import ConfigError
from pocketclip.serve.settings_checks import check

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The sizes, counts and times that a server accepts; they bound its memory."""

    body_bytes: int = 32 * MIB
    """Of one request."""
    texts: int = 2048
    """Per request."""
    text_characters: int = 122_880
    """Per text."""
    images: int = 64
    """Per request."""
    image_bytes: int = 20 * MIB
    """Of one image file."""
    image_pixels: int = 100_000_000
    """Of one image; checked before it is decoded."""
    held_bytes: int = 256 * MIB
    """Of all requests that are being received, wait or run."""
    waiting_texts: int = 8192
    """That wait for the text tower. A request that finds none waiting is always accepted."""
    waiting_images: int = 512
    """That wait for the image tower; as for texts."""
    connections: int = 1024
    deadline: float = 60.0
    """Seconds from the end of a request's header to its answer."""
    immich_deadline: float = 280.0
    """As `deadline`, on immich's port. immich sets no time itself; its `fetch` gives up after 300
    seconds without an answer, and immich drops a job that failed."""
    upstream_timeout: float = 240.0
    """Seconds that another service may take for what is passed on to it."""
    upstream_patience: float = 60.0
    """Seconds for which such a service is asked again if it cannot be reached."""
    header_timeout: float = 10.0
    """Seconds for the header of a request."""
    idle_timeout: float = 10.0
    """Seconds without a byte of a request's body, or of an answer that the client takes."""
    body_timeout: float = 30.0
    """Seconds for the whole body of a request."""
    keep_alive: float = 30.0
    """Seconds that a connection may stay open between requests."""
    drain: float = 30.0
    """Seconds that running requests have to finish after SIGTERM."""

    def __post_init__(self) -> None:
        """Check the values."""
        for one in fields(self):
            value = getattr(self, one.name)
            if not value > 0 or not math.isfinite(value):
                raise ConfigError(f"{one.name} is {value}; it must be above 0")
        if self.held_bytes < self.body_bytes:
            raise ConfigError(
                f"held_bytes is {self.held_bytes:,}; it must hold one request of body_bytes, "
                f"{self.body_bytes:,}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where a server listens, whom it answers, and what it offers beside the model.

    Raises:
        ConfigError: values that contradict each other or are not safe: another address than
            loopback needs a key or `no_auth`.
    """

    host: str = "127.0.0.1"
    """An IP address, or a name of this machine."""
    port: int = 8080
    """0: a free one."""
    immich: tuple[str, int] | None = None
    """Address and port of immich's machine-learning service; None: not offered."""
    upstream: str | None = None
    """URL of another such service, which gets the tasks that are not ours: faces, texts in
    pictures."""
    label_sets: Mapping[str, Path] = field(default_factory=dict)
    """Files of `pocketclip fit`, by the name that requests use."""
    api_key: str | None = field(default=None, repr=False)
    """What requests send as `Authorization: Bearer KEY`; at least 16 characters."""
    no_auth: bool = False
    """Answer everybody, on another address than loopback too."""
    allow_hosts: tuple[str, ...] = ()
    """Names in the header `Host` beside localhost and IP addresses."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the server."""
    fetch_from: tuple[str, ...] = ()
    """Hosts that images are fetched from."""
    certificate: Path | None = None
    """For TLS: a PEM file with the chain."""
    private_key: Path | None = None
    """Of the certificate: a PEM file, without a password."""
    backend: str = "auto"
    """The runtime of the bundle, see `pocketclip.infer.encoder.Encoder`."""
    threads: int | None = None
    """CPU threads per call of the model; None for all cores."""
    offline: bool = False
    """Take files of the hub from the local cache only."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)
