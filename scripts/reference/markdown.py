"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; bars within cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code(text: object) -> str:
    """Return `text` as inline code, or nothing for an empty text."""
    return f"`{text}`" if str(text) else ""


def plain(text: str) -> str:
    """Return a help text so that Markdown shows it as it is, its `code` apart."""
    pieces = text.split("`")
    for i in range(0, len(pieces), 2):
        for sign in "*_<[":
            pieces[i] = pieces[i].replace(sign, "\\" + sign)
    return "`".join(pieces)
