"""TLS: the certificate that a server shows, given or its own, and how it is read again."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from pathlib import Path

from pocketclip.errors import ConfigError, PocketclipError, one_line
from pocketclip.serve.addresses import machine_addresses
from pocketclip.serve.monitoring.logs import log_event
from pocketclip.serve.process.certificate import Certificate, fingerprint_of
from pocketclip.serve.settings import ServerSettings

_PERIOD = 3600.0  # seconds
_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Tls:
    """What a port needs for TLS.

    Args:
        settings: with `tls`, or with a certificate and its key.

    Attributes:
        context: for new connections; it lasts, and `reload` changes the certificate in it.
        certificate: what it shows.

    Raises:
        ConfigError: the certificate or its key cannot be read, written, or do not fit.
        MissingDependencyError: a certificate of the server's own needs a package.
        StorageError: the user has no folder to keep one in.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.set_alpn_protocols(["http/1.1"])
        self.certificate = self._load()

    def reload(self) -> None:
        """Read the certificate again, for the connections that begin from now on.

        The server's own one is made anew if it must be. The log says if it is another one.

        Raises:
            ConfigError: as at the start; the old one stays.
            StorageError: as at the start.
        """
        before, self.certificate = self.certificate, self._load()
        if self.certificate.fingerprint != before.fingerprint:
            why = f": {self.certificate.change}" if self.certificate.change else ""
            log_event(
                "certificate", f"the server shows another certificate from now on{why}",
                fingerprint=self.certificate.fingerprint,
            )  # fmt: skip

    async def keep(self) -> None:
        """Look each hour whether the server's own certificate still will do; never returns."""
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                self.reload()
            except PocketclipError as error:
                log_event("certificate_failed", f"the certificate stays as it was: {error}",
                          level=logging.ERROR)  # fmt: skip

    def _load(self) -> Certificate:
        settings = self._settings
        if settings.tls:
            from pocketclip.serve.process.own_certificate import keep, needed_names

            names, further = needed_names(settings), machine_addresses()
            return keep(names, self.context.load_cert_chain, further=further)
        assert settings.certificate is not None
        assert settings.private_key is not None
        return _load_given(self.context, settings.certificate, settings.private_key)


def open_tls(settings: ServerSettings) -> Tls | None:
    """Return what TLS needs; None if the server speaks plain HTTP.

    Raises:
        ConfigError: the certificate or its key cannot be read, written, or do not fit.
        MissingDependencyError: a certificate of the server's own needs a package.
        StorageError: the user has no folder to keep one in.
    """
    return Tls(settings) if settings.is_encrypted else None


def _load_given(context: ssl.SSLContext, certificate: Path, key: Path) -> Certificate:
    chain = b""
    for file in (key, certificate):
        try:
            chain = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    try:
        # An encrypted key would make OpenSSL ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{certificate} and {key} are no certificate with its key in PEM, the key without a "
            f"password: {one_line(error)}"
        ) from error
    first = _FIRST.search(chain)
    fingerprint = None
    if first is not None:
        fingerprint = fingerprint_of(ssl.PEM_cert_to_DER_cert(first[0].decode("ascii", "replace")))
    return Certificate(fingerprint=fingerprint, file=certificate)
