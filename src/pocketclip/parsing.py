"""Text from elsewhere, read with limits: lines, JSON and YAML.

split_lines("a\\r\\nb\\n") == ["a", "b"]
"""

from __future__ import annotations


def split_lines(text: str) -> list[str]:
    """Return the lines of `text`, without their ends, a leading BOM, and an empty last line.

    A line ends at LF or CR LF and nowhere else; `str.splitlines` also splits at form feeds,
    U+0085, U+2028 and others, which stand within captions.
    """
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if not lines[-1]:
        lines.pop()
    return lines
