"""Lines of text from elsewhere, read within a limit of memory.

captions = split_lines(text)
names = load_lines(data, what="names.txt")
"""

from __future__ import annotations

import json

from pocketclip.errors import ParseError

MAX_LINES_MEMORY = 1 << 30
"""Largest list of lines, in bytes of memory as estimated from its text."""


def split_lines(text: str) -> list[str]:
    """Return the lines of `text` without line ends, a leading BOM or an empty last line.

    Lines end at LF or CR LF only. `str.splitlines` also splits at form feeds, U+0085, U+2028 and
    others, which occur within captions.
    """
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if not lines[-1]:
        lines.pop()
    return lines


def load_lines(
    data: bytes, *, what: str = "the text", max_memory: int = MAX_LINES_MEMORY
) -> list[str]:
    """Return the lines of UTF-8 text as `split_lines` does, within a memory limit.

    Args:
        data: the text.
        what: the name of the text in error messages.
        max_memory: largest memory in bytes that the lines, and splitting them, may take.

    Raises:
        ParseError: the text is not UTF-8 or holds too many lines.
    """
    # Bytes, decoded text and lines are all in memory at once; each line is an object of its own.
    if 3 * len(data) + 64 * data.count(b"\n") > max_memory:
        raise ParseError(f"{what} holds too many lines; split it into smaller files")
    try:
        return split_lines(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ParseError(f"{what} is not UTF-8 text (byte {error.start})") from error


def decode(data: bytes, what: str) -> str:
    """Return UTF-8, UTF-16 or UTF-32 text as str; errors begin with `what`."""
    encoding = json.detect_encoding(data)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and not encoding.startswith("utf-32"):
        encoding = "utf-16"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ParseError(
            f"{what} is not {encoding.upper().removesuffix('-SIG')} text (byte {error.start + 1})"
        ) from None
