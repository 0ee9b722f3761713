"""Pages from templates: self-contained HTML and SVG, light and dark, readable on a phone."""

from __future__ import annotations

import base64
import functools
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketclip.errors import PocketclipError
from pocketclip.storage.local import write_whole

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_PACKAGE = "pocketclip.pages"


def render(template: str, package: str = _PACKAGE, **values: Any) -> str:
    """Fill a template; all values are escaped unless they are `markupsafe.Markup`.

    Args:
        template: file name in the `templates` folder of `package`, or in this package's.
        package: where to look first.
        **values: a template that uses any other name fails.
    """
    return _environment(package).get_template(template).render(values) + "\n"


def element(tag: str, text: str) -> Markup:
    """Return an element that holds text, for a cell of a table."""
    from markupsafe import Markup

    return Markup("<{0}>{1}</{0}>").format(Markup(tag), _printable(text))


def data_uri(data: bytes) -> str:
    """Return an encoded image (PNG, WebP or JPEG) as the source of an <img>."""
    kind = "png" if data[:4] == b"\x89PNG" else "webp" if data[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        PocketclipError: the folder does not exist.
        OSError: the file cannot be written.
    """
    if not path.absolute().parent.is_dir():
        raise PocketclipError(f"{path}: there is no folder {path.absolute().parent}")
    with write_whole(path) as temporary:
        temporary.write_text(page, "utf-8")


@functools.cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(_PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _printable(value: Any) -> Any:
    """Shorten floats, and replace the characters that no page may hold."""
    if isinstance(value, float):
        return f"{value:.7g}"
    if hasattr(value, "__html__"):
        return value
    return "".join(c if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd"
                   for c in str(value))  # fmt: skip


def _breakable(name: str) -> Markup:
    """Let the name of a model break after its signs before it breaks anywhere."""
    from markupsafe import Markup

    return Markup("<wbr>").join(_printable(part) for part in re.split(r"(?<=[-_/])", name))
