"""EXIF as cameras write it, and as they never should: bytes from tags of any type."""

from __future__ import annotations

import struct

ASCII, SHORT, LONG, RATIONAL = 2, 3, 4, 5
MAKE, MODEL, ORIENTATION = 0x010F, 0x0110, 0x0112
TAKEN, DIGITIZED = 0x9003, 0x9004


def text(value):
    return ASCII, value.encode() + b"\0"


def fractions(*pairs):
    return RATIONAL, struct.pack(f">{2 * len(pairs)}L", *(n for pair in pairs for n in pair))


def place(latitude, longitude, signs="NE"):
    """Return the tags of a place in degrees, minutes and seconds, each (n, d)."""
    return {
        1: text(signs[0]), 2: fractions(*latitude), 3: text(signs[1]), 4: fractions(*longitude),
    }  # fmt: skip


def exif(image=None, taken=None, gps=None):
    """Return big-endian EXIF, without "Exif" before it.

    `image`, `taken` and `gps` are the tags of the three directories as {tag: (type, bytes)}.
    """
    sizes = {1: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, 7: 1, 10: 8, 11: 4, 12: 8}
    directories = [dict(image or {}), dict(taken or {}), dict(gps or {})]
    for pointer, directory in zip((0x8769, 0x8825), directories[1:], strict=True):
        if directory:
            directories[0][pointer] = (LONG, b"\0\0\0\0")
    starts, at = [], 8
    for directory in directories:
        starts.append(at)
        at += 6 + 12 * len(directory) if directory else 0
    for pointer, start in zip((0x8769, 0x8825), starts[1:], strict=True):
        if pointer in directories[0]:
            directories[0][pointer] = (LONG, struct.pack(">L", start))
    out, values = b"MM\0*\0\0\0\x08", b""
    for directory in filter(None, directories):
        out += struct.pack(">H", len(directory))
        for tag, (kind, data) in sorted(directory.items()):
            count = len(data) // sizes[kind]
            inline = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(">L", at + len(values))
            values += data if len(data) > 4 else b""
            out += struct.pack(">HHL", tag, kind, count) + inline
        out += b"\0\0\0\0"
    return out + values
