from __future__ import annotations

import pytest

from pocketclip.parsing import split_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),
        ("\ufeffa\nb", ["a", "b"]),
        ("\ufeff", []),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\nj", ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei", "j"]),
        ("a\rb\nc", ["a\rb", "c"]),
        (" a \n\tb", [" a ", "\tb"]),
    ],
)  # fmt: skip
def test_lines_end_at_newlines_only(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines
