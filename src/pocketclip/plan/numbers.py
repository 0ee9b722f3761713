"""Numbers as people write them: 12M, 1.3B, 12_000_000; bytes and money for tables."""

from __future__ import annotations

import math
import re

from pocketclip.errors import ConfigError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER = re.compile(r"(\d[\d_,]*(?:\.\d+)?|\.\d+)\s*([kmbgt]?)", re.IGNORECASE)


def parse_number(text: str, what: str) -> float:
    """Return the number in a text: digits with `_` or `,` between them, and K, M, B (G) or T.

    Raises:
        ConfigError: it is none, or it is not above 0; the message begins with `what`.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{what}: {text!r} is no number; write 12M, 1.3B or 12_000_000")
    value = float(match[1].replace("_", "").replace(",", "")) * _FACTORS[match[2].lower()]
    if not 0 < value <= 1e15:
        raise ConfigError(f"{what}: {text!r} must be above 0 and at most 10^15")
    return value


def parse_count(text: str, what: str) -> int:
    """Return a whole number, written as `parse_number` takes it.

    Raises:
        ConfigError: as `parse_number`; or it is not whole.
    """
    value = parse_number(text, what)
    if abs(value - round(value)) > 1e-6 * value:
        raise ConfigError(f"{what}: {text!r} is {value:g}, not a whole number")
    return round(value)


def show_bytes(count: float) -> str:
    """Return a number of bytes with three digits, in decimal units."""
    return show(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def show(value: float, units: tuple[str, ...]) -> str:
    """Return a value with three digits; each unit is 1,000 of the one before."""
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 and value == round(value) else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f} {units[step]}".rstrip()
