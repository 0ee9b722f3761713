"""What a server is told at its start, and what it accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from pocketclip.errors import ConfigError
from pocketclip.serve.settings_checks import (
    check_address,
    check_host_name,
    check_key,
    check_label_set_name,
    check_origin,
    is_loopback,
)

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
    web_models: tuple[Path, ...] = ()
    """Further ONNX bundles, beside the model, which pages may run themselves."""
    webgpu_runtime: Path | None = None
    """The folder `dist` of the npm package onnxruntime-web: what WebGPU needs in pages."""
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
    tls: bool = False
    """Speak HTTPS with a certificate that the server makes itself and keeps in the user's data; see
    `pocketclip.serve.process.own_certificate`."""
    certificate: Path | None = None
    """For TLS: a PEM file with the chain."""
    private_key: Path | None = None
    """Of the certificate: a PEM file, without a password."""
    accept_license: bool = False
    """Say that the licence of the weights allows to serve them to other machines. Weights that it
    restricts are served on loopback only without it."""
    backend: str = "auto"
    """The runtime of the bundle, see `pocketclip.infer.encoder.Encoder`."""
    threads: int | None = None
    """CPU threads per call of the model; None for all cores."""
    offline: bool = False
    """Take files of the hub from the local cache only."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check the values."""
        check_address("--host", self.host, self.port)
        if self.immich is not None:
            check_address("--immich", *self.immich)
            if self.port and self.immich == (self.host, self.port):
                raise ConfigError(
                    "immich needs a port of its own: give --immich another one than --port"
                )
        elif self.upstream is not None:
            raise ConfigError(
                "--upstream is for immich's requests: give --immich too, or leave it out"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("TLS needs both the certificate and its key: give --cert and --key")
        if self.tls and self.certificate is not None:
            raise ConfigError(
                "choose one of --tls, for a certificate that the server makes itself, and --cert "
                "with --key"
            )
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1")
        self._check_access()
        for name in self.label_sets:
            check_label_set_name(name)
        for origin in self.cors:
            check_origin(origin)
        for host in self.allow_hosts:
            check_host_name(host)

    def _check_access(self) -> None:
        if self.api_key is not None:
            if self.no_auth:
                raise ConfigError("choose one of a key and --no-auth")
            check_key(self.api_key)
        elif not self.no_auth and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines: give a key (--api-key-file or "
                "the variable POCKETCLIP_API_KEY), or say --no-auth if everybody there may use the "
                "server"
            )

    @property
    def is_encrypted(self) -> bool:
        """Whether the server speaks HTTPS; on immich's port it never does."""
        return self.tls or self.certificate is not None

    @property
    def is_reachable(self) -> bool:
        """Whether another machine can reach one of the addresses."""
        hosts = [self.host] if self.immich is None else [self.host, self.immich[0]]
        return not all(map(is_loopback, hosts))

    @property
    def remarks(self) -> list[str]:
        """What its owner should know of the server before it answers."""
        remarks = []
        if self.no_auth:
            remarks.append(
                f"no key: everybody who reaches {self.host} can use the server, with its library"
            )
        is_plain = not self.is_encrypted and not is_loopback(self.host)
        if self.api_key is not None and is_plain:
            remarks.append(
                "the key and all photographs travel unencrypted: give --tls, or --cert and --key, "
                "or put a proxy with TLS before the server"
            )
        if self.immich is not None:
            host = self.immich[0]
            where = "" if is_loopback(host) else f", and everybody who reaches {host} can use it"
            remarks.append(f"immich's port has no key, since immich sends none{where}")
        return remarks
