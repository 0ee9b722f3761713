"""What the pages share: one self-contained HTML file, light and dark, readable on a phone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Literal

from pocketclip.errors import PocketclipError
from pocketclip.storage.local import write_whole

# The scale of a confusion plot mixes --heat into --cell; black and white text change places
# where they are equally legible (see `confusion`).
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1c2128; --dim: #59636e;
  --rule: #d5dae0; --faint: #eef1f4; --v1: #0a58b5; --v2: #b4470b; --own: #8a1c8f;
  --cell: #ffffff; --heat: #0a3a9e; --low: #000000; --high: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --text: #e6e9ed; --dim: #9ba5b0;
  --rule: #3a424c; --faint: #20252c; --v1: #74b4ff; --v2: #ffa066; --own: #ef9bf2;
  --cell: #14171c; --heat: #8ab4ff; --low: #ffffff; --high: #000000; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1.25rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figcaption { color: var(--dim); font-size: .875rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg text { fill: var(--text); }
.narrow { display: none; }
@media (max-width: 640px) { .wide { display: none; } .narrow { display: block; } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--dim); font-size: .875rem; margin: 0 0 .4rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); }
thead th { border-bottom: 1px solid var(--rule); vertical-align: bottom; }
th:first-child, .names td:nth-child(2), .names th:nth-child(2),
.metrics td:nth-child(2), .metrics th:nth-child(2) { text-align: left; }
tbody th, tfoot th { font-weight: 400; }
tfoot td, tfoot th { border-bottom: 0; }
tfoot tr:first-child > * { border-top: 1px solid var(--rule); }
th:first-child { position: sticky; left: 0; background: var(--page); min-width: 12rem;
  max-width: 16rem; padding-left: 0; overflow-wrap: anywhere; }
thead th + th { max-width: 10rem; overflow-wrap: break-word; }
@media (max-width: 640px) { th:first-child { min-width: 6.5rem; max-width: 9rem; }
  .metrics td:nth-child(2), .metrics th:nth-child(2) { display: none; } }
code { font-size: .9em; }
"""


def document(title: str, body: str) -> str:
    """Return a whole page; `title` is text, `body` is markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        PocketclipError: the folder does not exist.
        OSError: it cannot be written.
    """
    if not path.absolute().parent.is_dir():
        raise PocketclipError(f"{path}: there is no folder {path.absolute().parent}")
    with write_whole(path) as temporary:
        temporary.write_text(page, "utf-8")


def text(value: object) -> str:
    """Return text as markup: escaped, without the characters that no page may hold."""
    kept = (c if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd"
            for c in str(value))  # fmt: skip
    return escape("".join(kept), quote=True)


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: Iterable[Sequence[str]] = (),
    *,
    kind: Literal["", "names", "metrics"] = "",
) -> str:
    """Return a table that scrolls sideways; `caption` and `head` are text, cells are markup.

    The first cell of a row is its header. The second column holds words in the kinds
    `names` and `metrics`; in the latter a phone leaves it out.
    """
    columns = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in head)
    return (
        f'<p class="caption">{text(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{kind}" aria-label="{text(caption)}">\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{_lines(rows)}</tbody>\n<tfoot>\n{_lines(foot)}</tfoot></table></div>"
    )


def _breakable(name: str) -> str:
    # Names of models break at their signs before they break anywhere.
    return "<wbr>".join(text(part) for part in re.split(r"(?<=[-_/])", name))


def _lines(rows: Iterable[Sequence[str]]) -> str:
    return "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )


def width_of(value: str, size: float) -> float:
    """Return about how wide text is in a sans-serif font of `size`, in pixels; rather too wide."""
    ems = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else
              0.86 if c in "MWmw@%" else 0.36 if c in "ijl.,:;'|!() " else 0.64
              for c in value)  # fmt: skip
    return ems * size


def cut(value: str, size: float, width: float) -> str:
    """Return text, shortened with an ellipsis where it would be wider than `width` pixels."""
    if width_of(value, size) <= width:
        return value
    while value and width_of(value + "…", size) > width:
        value = value[:-1]
    return value.rstrip() + "…"
