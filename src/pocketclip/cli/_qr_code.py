"""A QR code in a terminal, for the camera of a phone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

from pocketclip.cli.output import width_of

_QUIET = 4  # modules around the code, without which readers do not find it
# Black on white, whatever the terminal's own colours are; by the upper and the lower module.
_BLOCKS = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
_PALETTE, _BASIC, _RESET = "\x1b[38;5;16;48;5;231m", "\x1b[0;30;47m", "\x1b[0m"
_TOO_NARROW = "(the window is too narrow for the link's QR code)\n"


def draw_qr_code(text: str, stream: TextIO, environment: Mapping[str, str] | None = None) -> bytes:
    """Return what to write to show a text as a QR code; nothing if the stream cannot show one.

    Two modules stand above each other in a character. With NO_COLOR, light modules are drawn and
    dark ones left out: right on a dark terminal, and inverted on a light one, as most readers
    accept too.

    Args:
        text: what the code says.
        stream: standard output.
        environment: variables of the environment; by default those of this process.
    """
    known = os.environ if environment is None else environment
    term = known.get("TERM", "")
    encoding = (getattr(stream, "encoding", "") or "").lower().replace("-", "")
    if not stream.isatty() or term in ("", "dumb") or encoding != "utf8":
        return b""
    try:
        import segno
    except ImportError:  # an extra installed before it was needed: the link stands above
        return b""
    code = segno.make(text, error="l", boost_error=True, micro=False)
    rows = [list(map(int, row)) for row in code.matrix_iter(border=_QUIET)]
    if len(rows[0]) > width_of(stream):
        return _TOO_NARROW.encode()
    light_drawn = bool(known.get("NO_COLOR"))
    rows += [[0] * len(rows[0])] * (len(rows) % 2)
    if light_drawn:
        rows = [[1 - module for module in row] for row in rows]
    has_palette = "256color" in term or bool(known.get("COLORTERM")) or "kitty" in term
    begin = "" if light_drawn else _PALETTE if has_palette else _BASIC
    end = "" if light_drawn else _RESET
    lines = (
        begin + "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True)) + end + "\n"
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    )
    return "".join(lines).encode()
