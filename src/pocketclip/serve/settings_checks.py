"""Whether settings fit each other and are safe, and how they are written on the command line."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pocketclip.errors import ConfigError

if TYPE_CHECKING:
    from pocketclip.serve.settings import ServerSettings

LEAST_KEY = 16
"""Characters of a key; fewer can be guessed."""
_MOST_KEY = 4096
_MAKE_KEY = "make one with `openssl rand -hex 32`"
_LABEL_SET = re.compile(r"[\w.-]{1,64}")


def check(settings: ServerSettings) -> None:
    """Refuse settings that contradict each other or are not safe.

    Raises:
        ConfigError: the message says which and what to do.
    """
    addresses = [("--host", settings.host, settings.port)]
    if settings.immich is not None:
        addresses.append(("--immich", *settings.immich))
    for option, host, port in addresses:
        if not host or any(letter in host for letter in "[]/ \0"):
            raise ConfigError(f"{option}: {host!r} is no address: give one such as 127.0.0.1 or ::")
        if not 0 <= port <= 65_535:
            raise ConfigError(f"{option}: {port} is no port: give one from 0 to 65535")
    if len(addresses) == 2 and settings.port and settings.immich == (settings.host, settings.port):
        raise ConfigError("immich needs a port of its own: give --immich another one than --port")
    if settings.upstream is not None and settings.immich is None:
        raise ConfigError("--upstream is for immich's requests: give --immich too, or leave it out")
    if (settings.certificate is None) != (settings.private_key is None):
        raise ConfigError("TLS needs both the certificate and its key: give --cert and --key")
    if settings.threads is not None and settings.threads < 1:
        raise ConfigError(f"threads is {settings.threads}; it must be at least 1")
    _check_access(settings)
    for name in settings.label_sets:
        if not _LABEL_SET.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name a label set in requests: give another one with NAME=FILE, "
                "of letters, digits, '.', '_' and '-'"
            )
    for origin in settings.cors:
        _check_origin(origin)
    for host in settings.allow_hosts:
        if not host or any(letter in host for letter in "/ *@,\0") or host.count(":") == 1:
            raise ConfigError(
                f"--allow-host: {host!r} is no name: give it without scheme and port, such as "
                "photos.example.org"
            )


def _check_access(settings: ServerSettings) -> None:
    key = settings.api_key
    if key is not None:
        if settings.no_auth:
            raise ConfigError("choose one of a key and --no-auth")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"the key holds characters that no header can carry or that are easily lost: "
                f"{_MAKE_KEY}"
            )
        if len(key) < LEAST_KEY:
            raise ConfigError(
                f"the key has {len(key)} characters, and fewer than {LEAST_KEY} can be guessed: "
                f"{_MAKE_KEY}"
            )
    elif not settings.no_auth and not is_loopback(settings.host):
        raise ConfigError(
            f"{settings.host} can be reached from other machines: give a key (--api-key-file or "
            "the variable POCKETCLIP_API_KEY), or say --no-auth if everybody there may use the "
            "server"
        )


def _check_origin(origin: str) -> None:
    try:
        parts = urlsplit(origin)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_good = is_good and origin == f"{parts.scheme}://{parts.netloc}" and "@" not in origin
        is_good = is_good and "*" not in origin and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(
            f"--cors: {origin!r} is no origin: give scheme, host and port as browsers do, such as "
            "https://photos.example.org"
        )


def remarks_on(settings: ServerSettings) -> list[str]:
    """Return what its owner should know of a server before it answers."""
    remarks = []
    if settings.no_auth:
        remarks.append(
            f"no key: everybody who reaches {settings.host} can use the server, with its library"
        )
    is_plain = settings.certificate is None and not is_loopback(settings.host)
    if settings.api_key is not None and is_plain:
        remarks.append(
            "the key and all photographs travel unencrypted: give --cert and --key, or put a proxy "
            "with TLS before the server"
        )
    if settings.immich is not None:
        host = settings.immich[0]
        where = "" if is_loopback(host) else f", and everybody who reaches {host} can use it"
        remarks.append(f"immich's port has no key, since immich sends none{where}")
    return remarks


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; of names only `localhost` counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Return host and port of `[HOST:]PORT`; an IPv6 address stands in brackets.

    Args:
        text: the argument.
        option: that it belongs to, for messages.

    Raises:
        ConfigError: it is not of this form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{option}: write an IPv6 address in brackets, such as [::1]:3003")
    if (colon and not host) or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"{option}: {text!r} is not a port, or HOST:PORT such as 127.0.0.1:3003")
    return host or "127.0.0.1", int(port[:6])


def parse_host(text: str) -> str:
    """Return a host without the brackets of an IPv6 address."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def parse_label_sets(texts: list[str]) -> dict[str, Path]:
    """Return files by name, of `[NAME=]FILE`; the name is otherwise the file's, without suffix.

    Raises:
        ConfigError: two have the same name.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or os.path.lexists(text):
            name, file = Path(text).stem, text
        if name in found:
            raise ConfigError(f"two label sets are named {name}: name one with NAME=FILE")
        found[name] = Path(file)
    return found


def read_api_key(path: Path) -> str:
    """Return the key in a file: its only line.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_KEY + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the key in {path}: {error.strerror}") from error
    lines = data.decode("utf-8", "replace").split()
    if len(lines) != 1 or len(data) > _MOST_KEY:
        raise ConfigError(f"{path} does not hold one line with a key: {_MAKE_KEY} > {path}")
    return lines[0]
