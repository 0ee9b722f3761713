"""The certificate that a server shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The certificate that a server shows."""

    fingerprint: str | None
    """Its SHA-256, as browsers show it: pairs of hexadecimal digits with colons between. None for a
    file in an unusual form."""
    file: Path
    """In PEM."""
    is_own: bool = False
    """Whether the server made it, so that browsers warn of it."""
    change: str | None = None
    """Why the server has just replaced its own one; None if it has not."""


def fingerprint_of(der: bytes) -> str:
    """Return the SHA-256 of a certificate in DER, as browsers show it."""
    return hashlib.sha256(der).digest().hex(":").upper()
