"""Under which licence a model may be published, given those of what it was made from.

Weights that were trained on from others keep the others' licence if that may forbid something or
asks to be kept. Whether the licence of a teacher, a captioner or a data set binds the weights
depends on its words, so the publisher must say that it was read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pocketclip.errors import ConfigError
from pocketclip.infer.license import ACCEPT
from pocketclip.license import OPEN, License

# Names of the hub besides those in `OPEN`: each forbids something, or says nothing.
KNOWN = OPEN | {
    "apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "c-uda", "cc", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "gemma", "gfdl", "h-research", "intel-research",
    "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "ofl-1.1",
    "openrail", "openrail++",
}  # fmt: skip
# They let everybody do everything, but only under the same licence.
_KEPT = re.compile(r"a?gpl|lgpl|cc-by-sa|osl|eupl|gfdl|cdla-sharing")
_CUSTOM = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Something that a model was made from."""

    role: str
    """`start`, `teacher`, `captioner` or `data`."""
    name: str
    """Fit to be published: without folders."""
    license: License
    repo: str | None = None
    """Its repository on the hub."""

    def __str__(self) -> str:
        """Return what it is and under which licence, for people to read."""
        return f"{self.role} {self.name}: {self.license.name or _unnamed(self.license)}"


def _unnamed(license: License) -> str:
    return "own terms" if license.text is not None else "licence not known"


def choose(
    wanted: str | None,
    text: str | None,
    origins: Sequence[Origin],
    *,
    accepted: bool = False,
) -> License:
    """Return the licence to publish a model under.

    Args:
        wanted: the name that the publisher gives; None: that of the start.
        text: the whole text of a licence that the hub does not know.
        origins: what the model was made from.
        accepted: whether the publisher says that the licences of all origins allow it.

    Raises:
        ConfigError: no licence is known, the name is none, or an origin's licence may forbid it.
    """
    start = next((one for one in origins if one.role == "start"), None)
    known = start.license if start is not None and start.license.is_known else None
    chosen = _named(wanted, text) if wanted is not None else known
    if chosen is None:
        raise ConfigError(
            "the licence of this model is not known: say under which licence you publish it, with "
            "--licence (such as apache-2.0, mit or cc-by-4.0; the names are the hub's)"
        )
    same = known is not None and _same(chosen, known)
    if known is not None and not same and (known.restricted or _KEPT.match(known.name or "")):
        raise ConfigError(
            f"the weights were trained from {start.name if start else ''}, whose licence "
            f"{known.name or '(own terms)'} stays with them: they cannot be published as "
            f"{chosen.name}; leave --licence out to keep it"
        )
    doubtful = [one for one in origins if one.license.restricted]
    if doubtful and not accepted:
        listed = "; ".join(map(str, doubtful))
        url = next((one.license.url for one in doubtful if one.license.url), None)
        raise ConfigError(
            f"the model was made from what has a licence that may forbid publishing it ({listed}): "
            f"read it{f' at {url}' if url else ''}, and give {ACCEPT} if it allows that"
        )
    if same and known is not None:
        return replace(known, name=known.name or chosen.name)
    return chosen


def _same(one: License, other: License) -> bool:
    if other.name is None:
        return one is other or (one.text is not None and one.text == other.text)
    return (one.name or "").lower() == other.name.lower()


def _named(wanted: str, text: str | None) -> License:
    name = wanted.strip().lower()
    if name in KNOWN:
        return License(name=name, text=text)
    near = difflib.get_close_matches(name, KNOWN, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    if not _CUSTOM.fullmatch(name) or name in ("other", "unknown", "none"):
        raise ConfigError(
            f"--licence {wanted!r} names no licence{hint or ' (such as apache-2.0 or mit)'}"
        )
    if text is None:
        raise ConfigError(
            f"--licence {name} is no licence that the hub knows{hint or ''}{'' if hint else ';'} "
            "for terms of your own, give their text with --licence-text FILE"
        )
    return License(name=name, text=text)
