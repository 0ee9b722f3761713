"""Models of others with published results: SigLIP, DFN, OpenAI's, DataComp's, MetaCLIP and more.

    rival = find_rival("siglip-so400m-14")      # ViT-SO400M-14-SigLIP/webli
    rival.results["imagenet1k"], rival.params_million, rival.gflop

`data/published/rivals.csv` holds 121 models of open_clip: the main metric of each of DataComp's
38 tasks, parameters and operations, as in open_clip's table of results. A name is open_clip's:
architecture, a slash, and the tag of the weights.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pocketclip import zoo
from pocketclip.errors import UnknownModelError
from pocketclip.evaluate.tasks import DATACOMP38, published_rows

Family = Literal["openai", "datacomp", "dfn", "siglip", "metaclip", "other"]

FAMILIES: Mapping[Family, str] = {
    "openai": "OpenAI", "datacomp": "DataComp", "dfn": "DFN", "siglip": "SigLIP",
    "metaclip": "MetaCLIP", "other": "others of open_clip",
}  # fmt: skip
"""The names of the families, for people."""

SHOWN = (
    "ViT-B-32/openai", "ViT-B-16/openai", "ViT-L-14/openai", "ViT-L-14-336/openai",
    "ViT-B-32/datacomp_xl_s13b_b90k", "ViT-B-16/datacomp_xl_s13b_b90k",
    "ViT-L-14/datacomp_xl_s13b_b90k",
    "ViT-B-16/dfn2b", "ViT-L-14-quickgelu/dfn2b", "ViT-H-14-quickgelu/dfn5b",
    "ViT-B-16-SigLIP/webli", "ViT-B-16-SigLIP-512/webli", "ViT-L-16-SigLIP-256/webli",
    "ViT-SO400M-14-SigLIP/webli", "ViT-SO400M-14-SigLIP-384/webli",
    "ViT-B-32-quickgelu/metaclip_fullcc", "ViT-B-16-quickgelu/metaclip_fullcc",
    "ViT-L-14-quickgelu/metaclip_fullcc", "ViT-H-14-quickgelu/metaclip_fullcc",
)  # fmt: skip
"""The rivals that a plot shows beside MobileCLIP: of each family one per size, and one or two of
SigLIP's at a higher resolution."""

_SLOWER = {
    "ViT-B-16/openai": (4.8, "mobileclip-s0"),
    "ViT-B-16-SigLIP/webli": (2.3, "mobileclip-s2"),
    "ViT-L-14-quickgelu/dfn2b": (2.5, "mobileclip2-s4"),
}
# How many times slower each is, image and text on the same phone, by the comparisons published
# with MobileCLIP and MobileCLIP2.

_OTHER_HUB = {
    "apple/DFN2B-CLIP-ViT-B-16": "ViT-B-16/dfn2b",
    "laion/CoCa-ViT-B-32-laion2B-s13B-b90k": "coca_ViT-B-32/laion2b_s13b_b90k",
}
# Repositories with the weights of a rival, beside those that the zoo names.


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One model of open_clip's table."""

    name: str
    """open_clip's architecture and tag of the weights, such as `ViT-B-16/openai`."""
    params_million: float
    """Parameters in millions."""
    gflop: float
    """Billions of operations for one image and one text; two per multiply-accumulate."""
    results: Mapping[str, float]
    """The main metric of each of DataComp's 38 tasks, as a fraction."""

    @property
    def family(self) -> Family:
        """Who trained it, or on what; CLIPA and others on DataComp's data count as others."""
        model, _, tag = self.name.partition("/")
        if model.startswith("ViT-") and "SigLIP" in model:
            return "siglip"
        plain = model.startswith(("ViT-", "RN")) and "CLIPA" not in model
        for family in ("openai", "dfn", "metaclip", "datacomp"):
            if plain and tag.startswith(family):
                return family
        return "other"

    @property
    def label(self) -> str:
        """Its architecture in short, for a plot that names the family: `L/14@336`."""
        model = self.name.partition("/")[0].removesuffix("-quickgelu").replace("-SigLIP", "")
        parts = re.fullmatch(r"ViT-(\w+)-(\d+)(?:-(\d{3}))?", model)
        if parts is None:
            return model
        size, patch, pixels = parts.groups()
        return f"{size}/{patch}" + (f"@{pixels}" if pixels else "")

    @property
    def derived_latency(self) -> tuple[float, str] | None:
        """Milliseconds for an image and a text on the phone of the published latencies, and how.

        Only three are known, and only as a ratio with one decimal to one of the zoo's models, so
        to two percent; None for the others.
        """
        if self.name not in _SLOWER:
            return None
        times, name = _SLOWER[self.name]
        facts = zoo.entry(name).published
        assert facts is not None
        ms = times * (facts.image_latency_ms + facts.text_latency_ms)
        return ms, f"derived: published as {times} times that of {name}"


@functools.cache
def rivals() -> Mapping[str, Rival]:
    """Return the models by name, in the order of open_clip's table, the best average first."""
    found = (
        Rival(
            name=row["model"],
            params_million=float(row["params_million"]),
            gflop=float(row["gflop"]),
            results={key: float(row[key]) for key in DATACOMP38},
        )
        for row in published_rows("rivals.csv")
    )
    return {rival.name: rival for rival in found}


def find_rival(name: str) -> Rival | None:
    """Return the rival that a name means, or None if no name is like it.

    A name in any letter case and with any signs, its parts in any order; parts may be missing if
    the rest is enough: `siglip-so400m-14`, `openai ViT-L/14@336px`, `vit-b16-datacomp-xl`. Of
    several that fit, the one with the fewest other words in its architecture is meant:
    `siglip-so400m-14` is not the one for 384 pixels. The name or hub repository of a zoo model
    means the rival with the same weights, or none.

    Raises:
        UnknownModelError: several fit equally; the message lists them.
    """
    entry = zoo.find(name)
    for repository in (name, *(entry.hub if entry else ())):
        if repository in _of_hub():
            return rivals()[_of_hub()[repository]]
    if entry is not None:
        return None  # the zoo's model has other weights than any rival of a similar name
    exact = [rival for rival in rivals().values() if _key(rival.name) == _key(name)]
    if exact:
        return exact[0]
    words = _words(name)
    fits = {n: rest for n in rivals() if words and (rest := _others(words, n)) is not None}
    least = min(fits.values(), default=None)
    nearest = [n for n, rest in fits.items() if rest == least]
    if len(nearest) > 1:
        some = ", ".join(nearest[:6]) + (f" and {len(nearest) - 6} more" if nearest[6:] else "")
        raise UnknownModelError(f"{name!r} may mean {some}: give one of these names")
    return rivals()[nearest[0]] if nearest else None


def similar_rivals(name: str, count: int = 3) -> list[str]:
    """Return the names that are most like a name which none fits: in spelling, else in words."""
    keys = {_key(n): n for n in reversed([*rivals()])}
    near = difflib.get_close_matches(_key(name), keys, n=count, cutoff=0.6)
    if near:
        return [keys[key] for key in near]
    words = [word for word in _words(name) if len(word) > 1]
    shared = {
        rival: sum(_others([word], rival) is not None for word in words) for rival in rivals()
    }
    most = max(shared.values())
    return [n for n, number in shared.items() if number == most][:count] if most else []


def zoo_name(rival: Rival) -> str | None:
    """Return the zoo's name of a rival that is in the zoo too, with the same weights."""
    for name, entry in zoo.entries():
        if any(_of_hub().get(repository) == rival.name for repository in entry.hub):
            return name
    return None


@functools.cache
def _of_hub() -> Mapping[str, str]:
    """Return the rival with the weights of each hub repository, where there is one."""
    known = {repository: entry.open_clip for _, entry in zoo.entries() for repository in entry.hub
             if entry.open_clip in rivals()}  # fmt: skip
    return _OTHER_HUB | {repository: name for repository, name in known.items() if name}


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_SYNONYMS = {"base": "b", "large": "l", "huge": "h", "dfn": "dfn2b|dfn5b"} | dict.fromkeys(
    ("clip", "224", "google", "apple"), ""
)  # fmt: skip


def _words(name: str) -> list[str]:
    """Return the words of a name, in lower case; the words of transformers' names as open_clip's.

    Signs are between words, and the words `patch14` and `336px` say `14` and `336`.
    """
    words = (re.sub(r"^patch(?=\d)|(?<=\d)px$", "", w) for w in re.split(r"[\W_]+", name.lower()))
    return [word for w in words if (word := _SYNONYMS.get(w, w))]


def _others(words: Iterable[str], name: str) -> tuple[int, int] | None:
    """Return how many other words the architecture and the tag of a rival have.

    None if it lacks one of the words. A word may be several of the name's together (`vitb16`), and
    one of letters alone may be the beginning of one of the tag (`laion`).
    """
    model, _, tag = name.partition("/")
    architecture, weights = _words(model), _words(tag)
    left = [*architecture, *weights]
    for word in words:
        span = _find(word, left, weights)
        if span is None:
            return None
        del left[span]
    kept = sum(1 for word in left if word in architecture and word != "vit")
    return kept, len(left) - kept - left.count("vit")


def _find(word: str, left: list[str], weights: list[str]) -> slice | None:
    for size in (1, 2, 3):
        for start in range(len(left) - size + 1):
            if "".join(left[start : start + size]) in word.split("|"):
                return slice(start, start + size)
    if len(word) > 2 and word.isalpha():
        for at, other in enumerate(left):
            if other in weights and other.startswith(word):
                return slice(at, at + 1)
    return None
