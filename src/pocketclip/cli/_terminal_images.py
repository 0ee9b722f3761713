"""Thumbnails in a terminal: by the protocols of kitty and iTerm2, elsewhere as half blocks.

    how = detect(sys.stdout)
    if how is not None:
        write_bytes(draw(pictures, ["1", "2"], how, width=80))

A half block is the character `▀`: its colour is one pixel, its background the pixel below.

H W: height and width of a picture in pixels. Sizes of tiles are in cells of the terminal.
"""

from __future__ import annotations

import base64
import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Protocol = Literal["kitty", "iterm2", "24-bit", "256"]
_TILE = (24, 9)  # cells
_GAP = 2  # cells
_CHUNK = 4096  # bytes of base64 per escape sequence, the most that kitty takes
_USUAL_CELL = (8, 16)  # pixels
_LEVELS = np.array([0, 95, 135, 175, 215, 255])  # of the cube of 6 x 6 x 6 colours


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a terminal can draw."""

    protocol: Protocol
    cell: tuple[int, int] = _USUAL_CELL
    """Width and height of a cell in pixels."""


def detect(stream: TextIO, environment: Mapping[str, str] | None = None) -> Terminal | None:
    """Return what the terminal behind a stream can draw; None for nothing.

    NO_COLOR, TERM=dumb and a stream that is no terminal mean nothing. Within tmux and screen,
    which keep the protocols of pictures to themselves, half blocks are drawn.

    Args:
        stream: standard output.
        environment: variables of the environment; by default those of this process.
    """
    known = os.environ if environment is None else environment
    term = known.get("TERM", "")
    if not stream.isatty() or known.get("NO_COLOR") or term in ("", "dumb"):
        return None
    if (getattr(stream, "encoding", "") or "").lower().replace("-", "") != "utf8":
        return None  # it has no half block
    protocol = _protocol(known, term)
    return None if protocol is None else Terminal(protocol, _cell_size(stream))


def _protocol(known: Mapping[str, str], term: str) -> Protocol | None:
    program = known.get("TERM_PROGRAM", "")
    if "TMUX" not in known and not term.startswith(("tmux", "screen")):
        if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in known:
            return "kitty"
        if program == "ghostty" or _number(known.get("KONSOLE_VERSION")) >= 220400:
            return "kitty"
        if program in ("iTerm.app", "WezTerm", "mintty") or known.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    if known.get("COLORTERM", "").lower() in ("truecolor", "24bit") and "screen." not in term:
        return "24-bit"
    if "256color" in term or term in ("xterm-kitty", "xterm-ghostty", "alacritty"):
        return "256"
    return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() else 0


def _cell_size(stream: TextIO) -> tuple[int, int]:
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", answer)
    except (ImportError, OSError, ValueError):
        return _USUAL_CELL
    if not rows or not columns or width < 2 * columns or height < 2 * rows:
        return _USUAL_CELL  # most terminals do not say
    return width // columns, height // rows


def tiles_per_row(width: int) -> int:
    """Return how many pictures stand side by side in a terminal of this width, in cells."""
    return max(1, (width + _GAP) // (_TILE[0] + _GAP))


def draw(
    pictures: Sequence[bytes | None], names: Sequence[str], terminal: Terminal, *, width: int
) -> bytes:
    """Return what to write to show pictures side by side, each above its name.

    Args:
        pictures: encoded images; None leaves the place empty.
        names: plain text below each, of a few characters.
        terminal: see `detect`.
        width: of the terminal, in cells.
    """
    tiles = _TILE if width >= _TILE[0] else (max(4, width), _TILE[1])
    images = [None if data is None else _fitted(data, tiles, terminal) for data in pictures]
    step, out = tiles_per_row(width), []
    for begin in range(0, len(images), step):
        row = images[begin : begin + step]
        labels = (name.center(tiles[0]) for name in names[begin : begin + step])
        if terminal.protocol in ("kitty", "iterm2"):
            out.append(_placed(row, tiles, terminal.protocol))
        else:
            out.append(_blocks(row, tiles, terminal.protocol))
        out.append((" " * _GAP).join(labels).rstrip() + "\n\n")
    return "".join(out).encode()


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A picture with the cells that it takes."""

    image: Image
    data: bytes
    columns: int
    rows: int


def _fitted(data: bytes, tiles: tuple[int, int], terminal: Terminal) -> _Fitted:
    from pocketclip.images import open_image

    image = open_image(data)
    cell_width, cell_height = terminal.cell
    if terminal.protocol not in ("kitty", "iterm2"):
        cell_width, cell_height = 1, 2
    scale = min(tiles[0] * cell_width / image.width, tiles[1] * cell_height / image.height)
    columns = max(1, min(tiles[0], round(image.width * scale / cell_width)))
    rows = max(1, min(tiles[1], round(image.height * scale / cell_height)))
    return _Fitted(image, data, columns, rows)


def _placed(row: Sequence[_Fitted | None], tiles: tuple[int, int], protocol: Protocol) -> str:
    """Return a row of pictures by a protocol; the cursor ends in the line below."""
    # Room first: what scrolls while pictures are placed would end at the wrong place.
    out = ["\n" * tiles[1], f"\x1b[{tiles[1]}A"]
    for position, one in enumerate(row):
        if one is None:
            continue
        column = position * (tiles[0] + _GAP) + (tiles[0] - one.columns) // 2
        out.append("\r" + (f"\x1b[{column}C" if column else ""))
        if protocol == "kitty":
            out += _kitty(one)
        else:
            text = base64.b64encode(one.data).decode()
            # The cursor is saved and restored: terminals differ in where they leave it.
            out.append(
                f"\x1b7\x1b]1337;File=inline=1;size={len(one.data)};width={one.columns};"
                f"height={one.rows};preserveAspectRatio=1:{text}\a\x1b8"
            )
    return "".join([*out, f"\r\x1b[{tiles[1]}B"])


def _kitty(one: _Fitted) -> Iterator[str]:
    stream = io.BytesIO()
    one.image.save(stream, "PNG", compress_level=1)
    text = base64.b64encode(stream.getvalue()).decode()
    # C=1: the cursor stays; q=2: the terminal does not answer.
    first = f"a=T,f=100,q=2,C=1,c={one.columns},r={one.rows},"
    for begin in range(0, len(text), _CHUNK):
        more = int(begin + _CHUNK < len(text))
        yield f"\x1b_G{first if not begin else ''}m={more};{text[begin : begin + _CHUNK]}\x1b\\"


def _blocks(row: Sequence[_Fitted | None], tiles: tuple[int, int], protocol: Protocol) -> str:
    """Return a row of pictures as half blocks."""
    columns = [_block_lines(one, tiles, protocol) for one in row]
    lines = ["".join((" " * _GAP).join(column[y] for column in columns)) for y in range(tiles[1])]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _block_lines(one: _Fitted | None, tiles: tuple[int, int], protocol: Protocol) -> list[str]:
    empty = " " * tiles[0]
    if one is None:
        return [empty] * tiles[1]
    from PIL import Image

    small = one.image.resize((one.columns, 2 * one.rows), Image.Resampling.BOX)
    pixels = np.asarray(small)
    left = (tiles[0] - one.columns) // 2
    right = tiles[0] - one.columns - left
    lines = []
    for y in range(one.rows):
        cells, last = [], ""
        for upper, lower in zip(pixels[2 * y], pixels[2 * y + 1], strict=True):
            colour = f"\x1b[38;{_colour(upper, protocol)};48;{_colour(lower, protocol)}m"
            cells.append(("" if colour == last else colour) + "▀")
            last = colour
        lines.append(" " * left + "".join(cells) + "\x1b[0m" + " " * right)
    above = (tiles[1] - one.rows) // 2
    return [empty] * above + lines + [empty] * (tiles[1] - one.rows - above)


def _colour(pixel: NDArray[np.uint8], protocol: Protocol) -> str:
    red, green, blue = pixel.tolist()
    if protocol == "24-bit":
        return f"2;{red};{green};{blue}"
    levels = np.abs(pixel[:, None].astype(int) - _LEVELS).argmin(1)
    grey = min(max(round((red + green + blue) / 30 - 0.8), 0), 23)
    cube, shade = _LEVELS[levels], np.full(3, 8 + 10 * grey)
    is_grey = _distance(shade, pixel) < _distance(cube, pixel)
    return f"5;{232 + grey if is_grey else 16 + int(levels @ (36, 6, 1))}"


def _distance(colour: NDArray[np.int64], pixel: NDArray[np.uint8]) -> int:
    return int(((colour - pixel.astype(int)) ** 2).sum())
