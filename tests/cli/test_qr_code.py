"""A link as a QR code: what stands on the terminal, read back module by module."""

from __future__ import annotations

import re

import pytest
import segno

from pocketclip.cli._qr_code import draw_qr_code

LINK = "https://192.168.178.100:8443/#token=Yaz8GxEbuu9kn2NjtLcU8tV2-aLP8CBDqBv-FmNHCBo"
UPPER, LOWER = " ▄▀█", " ▀▄█"  # the module is light in the first two


class Stream:
    encoding = "utf-8"

    def __init__(self, *, terminal: bool = True) -> None:
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        raise OSError


def modules(drawn: bytes) -> list[list[bool]]:
    """Return which modules are drawn, row by row."""
    rows = []
    for line in drawn.decode().splitlines():
        blocks = re.sub(r"\x1b\[[0-9;]*m", "", line)
        rows += [[UPPER.index(one) > 1 for one in blocks], [LOWER.index(one) > 1 for one in blocks]]
    return rows


def expected() -> list[list[bool]]:
    code = segno.make(LINK, error="l", micro=False)
    return [list(map(bool, row)) for row in code.matrix_iter(border=4)]


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({"TERM": "xterm-256color"}, "\x1b[38;5;16;48;5;231m"),
        ({"TERM": "xterm-kitty"}, "\x1b[38;5;16;48;5;231m"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "\x1b[38;5;16;48;5;231m"),
        ({"TERM": "linux"}, "\x1b[0;30;47m"),
    ],
)
def test_it_is_black_on_white_with_a_quiet_zone(environment, colours, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    drawn = draw_qr_code(LINK, Stream(), environment)
    rows = modules(drawn)
    assert rows[: len(rows) - 1] == expected()
    assert not any(rows[-1])
    for line in drawn.decode().splitlines():
        assert line.startswith(colours)
        assert line.endswith("\x1b[0m")


def test_without_colours_the_light_modules_are_drawn(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    drawn = draw_qr_code(LINK, Stream(), {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert b"\x1b" not in drawn
    rows = modules(drawn)
    assert [[not one for one in row] for row in rows][: len(rows) - 1] == expected()


def test_where_it_cannot_be_seen_there_is_none(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert draw_qr_code(LINK, Stream(terminal=False), {"TERM": "xterm"}) == b""
    assert draw_qr_code(LINK, Stream(), {"TERM": "dumb"}) == b""
    latin = Stream()
    latin.encoding = "latin-1"
    assert draw_qr_code(LINK, latin, {"TERM": "xterm"}) == b""
    monkeypatch.setenv("COLUMNS", "40")
    assert b"too narrow" in draw_qr_code(LINK, Stream(), {"TERM": "xterm"})
