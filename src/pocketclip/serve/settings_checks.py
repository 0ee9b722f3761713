"""Checks of single settings, and how settings are written on the command line."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

from pocketclip.errors import ConfigError
from pocketclip.serve.origins import allowed_name, normal_origin

log = logging.getLogger(__name__)

LEAST_KEY = 16
"""Characters of a key; fewer can be guessed."""
_MOST_KEY = 4096
_MAKE_KEY = "make one with `openssl rand -hex 32`"
_LABEL_SET = re.compile(r"[\w.-]{1,64}")


def check_address(option: str, host: str, port: int) -> None:
    """Refuse what no socket can be bound to.

    Args:
        option: that the address belongs to, for messages.
        host: without brackets.
        port: 0 for a free one.

    Raises:
        ConfigError: it is no address.
    """
    if not host or any(letter in host for letter in "[]/ \0"):
        raise ConfigError(f"{option}: {host!r} is no address: give one such as 127.0.0.1 or ::")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"{option}: {port} is no port: give one from 0 to 65535")


def check_key(key: str) -> None:
    """Refuse a key that can be guessed, or that a header cannot carry.

    Raises:
        ConfigError: it is one.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "the key holds blanks, or characters that no header can carry: " + _MAKE_KEY
        )
    if len(key) < LEAST_KEY:
        raise ConfigError(
            f"the key has {len(key)} characters, and fewer than {LEAST_KEY} can be guessed: "
            f"{_MAKE_KEY}"
        )


def check_label_set_name(name: str) -> None:
    """Refuse a name that requests could not write.

    Raises:
        ConfigError: it is one.
    """
    if not _LABEL_SET.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a label set in requests: give another one with NAME=FILE, of "
            "letters, digits, '.', '_' and '-'"
        )


def check_host_name(host: str) -> None:
    """Refuse what is no name in the header `Host`.

    Raises:
        ConfigError: it is none.
    """
    if allowed_name(host) is None or host.count(":") == 1:
        raise ConfigError(
            f"--allow-host: {host!r} is no name: give it without scheme and port, such as "
            "photos.example.org"
        )


def check_origin(origin: str) -> None:
    """Refuse what no browser sends as `Origin`, and patterns.

    Raises:
        ConfigError: it is one.
    """
    try:
        parts = urlsplit(origin)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_good = is_good and origin == f"{parts.scheme}://{parts.netloc}" and "@" not in origin
        is_good = is_good and "*" not in origin and (parts.port or 1) > 0
        is_good = is_good and normal_origin(origin) is not None
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(
            f"--cors: {origin!r} is no origin: give scheme, host and port as browsers do, such as "
            "https://photos.example.org"
        )


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
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"cannot read the key in {path}: {error.strerror}") from error
    lines = data.decode("utf-8", "replace").split()
    if len(lines) != 1 or len(data) > _MOST_KEY:
        raise ConfigError(f"{path} does not hold one line with a key: {_MAKE_KEY} > {path}")
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        log.warning("all users of this machine can read the key in %s: chmod 600 it", path)
    return lines[0]
