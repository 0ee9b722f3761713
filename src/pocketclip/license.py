"""The licence of a model's weights: its name, where it stands, its text, and what it allows.

    License(name="apache-2.0", url="https://huggingface.co/owner/name").restricted  # False

Checkpoints and bundles carry it (`licence` in `config.json` and `bundle.json`, and the text as
`LICENCE.txt`), and a model that is made from another one inherits it. Weights that are trained from
scratch have none: their maker knows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip.errors import ConfigError, one_line

FILE = "LICENCE.txt"
"""The file with the text, in a checkpoint and in a bundle."""
MAX_BYTES = 256 << 10
"""Limit on a text; longer ones are not taken for one."""
_MAX_NAME, _MAX_URL = 100, 2000

OPEN = frozenset({
    "0bsd", "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause",
    "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl",
    "ncsa", "odc-by", "ofl-1.1", "openmdw-1.0", "osl-3.0", "pddl", "postgresql", "unlicense",
    "wtfpl", "zlib",
})  # fmt: skip
"""Names, as the hub writes them, of licences that let everybody hand the weights on and use them
for any purpose. `cc` alone is not among them: it does not say which, and some forbid a use."""

# What only one licence begins with, and how long it is at most. A long text of other terms may
# quote a short licence, of a part.
_TEXTS = (
    ("apple-amlr", r"apple machine learning research model", MAX_BYTES),
    ("apache-2.0", r"apache license\W+version 2\.0", 12_500),
    ("mpl-2.0", r"mozilla public license,? version 2\.0", 18_000),
    ("cc0-1.0", r"cc0 1\.0 universal|creative commons zero v?1\.0", 9_000),
    ("cc-by-4.0", r"creative commons attribution 4\.0 international", 20_000),
    ("isc", r"permission to use, copy, modify, and(/or)? distribute this software for any purpose "
            r"with or without fee", 1_500),
    ("mit", r"permission is hereby granted, free of charge, to any person obtaining a copy", 2_500),
    ("bsd-3-clause", r"redistribution and use in source and binary forms.*neither the name", 2_500),
    ("bsd-2-clause", r"redistribution and use in source and binary forms", 2_500),
)  # fmt: skip
_BEGINNING = 500
"""Characters within which a licence says which it is."""
# Such words turn a known licence into another one.
_LIMITS = re.compile(r"non-?\s?commercial|research (purposes|use) only|solely for research")
_FILE_NAME = re.compile(r"licen[sc]e([_-][\w-]+)?(\.(txt|md))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """The licence of a model's weights, as far as it is known.

    Raises:
        ConfigError: the name is not a short text, or the URL no web page.
    """

    name: str | None = None
    """As the hub writes it, such as `mit` or `apple-amlr`; None if it is not known."""
    url: str | None = None
    """The page where it stands, or where the weights are from."""
    text: str | None = field(default=None, repr=False)
    """The whole text; empty if there is one that was not read."""

    def __post_init__(self) -> None:
        """Check what manifests hold: it must be readable again."""
        try:
            check_entry({"name": self.name, "url": self.url})
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def is_known(self) -> bool:
        """Whether it is known which licence the weights have."""
        return self.name is not None or self.text is not None

    @property
    def restricted(self) -> bool:
        """Whether it may forbid to hand the weights on, or some use of them.

        Every known licence does, except those in `OPEN`. Where nothing is known, nothing is said.
        """
        return self.is_known and (self.name or "").lower() not in OPEN

    def __str__(self) -> str:
        """Return name and page, for people to read."""
        name = self.name or ("own terms" if self.text is not None else "not known")
        return name if self.url is None else f"{name}, see {self.url}"


def read_text(path: Path) -> str | None:
    """Return the text of a licence; None if the file is too long, empty or cannot be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError:
        return None
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\0", "")
    return text if is_text(text) else None


def is_text(text: str) -> bool:
    """Return whether a text may be that of a licence: neither empty nor too long."""
    return bool(text.strip()) and len(text.encode("utf-8", "replace")) <= MAX_BYTES


def name_of_text(text: str) -> str | None:
    """Return the name of a licence by its words; None if they are of no well-known one."""
    words = " ".join(text.lower().split())
    for name, pattern, longest in _TEXTS:
        found = re.search(pattern, words)
        if found and found.start() < _BEGINNING and len(words) <= longest:
            return None if name in OPEN and _LIMITS.search(words) else name
    return None


def find_text(folder: Path) -> str | None:
    """Return the text of the licence that lies in a folder of weights; None if there is none."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return None
    chosen = choose_file(names)
    return None if chosen is None else read_text(folder / chosen)


def choose_file(names: list[str]) -> str | None:
    """Return which of a folder's files is the licence of the weights; None if none is.

    One that says that it is of the weights or models comes first: `LICENSE` beside it is of code.
    """
    known = sorted(name for name in names if _FILE_NAME.fullmatch(name))
    of_weights = [name for name in known if re.search("weight|model", name, re.IGNORECASE)]
    plain = [name for name in known if not re.search("[_-]", name)]
    return next(iter((*of_weights, *plain)), None)


def write_entry(license: License, folder: Path) -> dict[str, str] | None:
    """Write the text of a licence into a folder, and return the entry `licence` for its manifest.

    Returns:
        `name`, `url` and `file`, each if known; None where nothing is known.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    entry = {"name": license.name, "url": license.url}
    if license.text:
        (folder / FILE).write_bytes(license.text.encode("utf-8", "replace"))
        entry["file"] = FILE
    return {key: value for key, value in entry.items() if value is not None} or None


def check_entry(raw: object) -> dict[str, str] | None:
    """Return the entry `licence` of a manifest after checking it; None if it has none.

    Raises:
        ValueError: it is damaged.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ValueError("licence is not an object")
    out = {}
    for key, limit in (("name", _MAX_NAME), ("url", _MAX_URL), ("file", len(FILE))):
        value: Any = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= limit or not value.isprintable():
            raise ValueError(f"the {key} of the licence is not a short text")
        out[key] = value
    if not re.match("https?://", out.get("url", "http://")):
        raise ValueError("the url of the licence is no web page")
    if out.get("file", FILE) != FILE:
        raise ValueError(f"the file of the licence is {out['file']!r}, not {FILE}")
    return out


def clean_name(value: object) -> str | None:
    """Return the name of a licence from elsewhere in one short line; None if it is no text."""
    if not isinstance(value, str) or not value.strip():
        return None
    return "".join(filter(str.isprintable, one_line(value, _MAX_NAME))) or None


UNKNOWN = License()
"""Nothing is known."""
