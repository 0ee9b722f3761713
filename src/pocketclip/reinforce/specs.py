"""How teachers and captioners are named on a command line.

mobileclip2-s0                        a zoo name, a checkpoint folder, a file or a hub id
vit-l14-quickgelu=openai.pt           a bare file, and the zoo model whose weights it holds
random:tiny:3                         random weights from seed 3, for trying things out
transformers:google/siglip-base-patch16-224
open_clip:ViT-L-14/datacomp_xl_s13b_b90k
datacomp=open_clip:ViT-L-14/datacomp_xl_s13b_b90k        any of these with a name of its own
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pocketclip import zoo
from pocketclip.errors import ConfigError

Kind = Literal["model", "random", "transformers", "open_clip"]

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A model as somebody asked for it."""

    kind: Kind
    target: str
    """A path, a zoo name or a hub id; with `random` the zoo name, with `open_clip` NAME/TAG."""
    model: str | None = None
    """The zoo name of a file that does not say itself which model it holds."""
    seed: int = 0
    label: str = ""
    """A short name for people; carries no folder."""


def parse(text: str) -> Spec:
    """Return what `text` asks for; the forms are in the module's docstring.

    Raises:
        ConfigError: `text` is in none of the forms.
        UnknownModelError: `random:` and no such model.
    """
    text = text.strip()
    if not text:
        raise ConfigError("no model given: a zoo name, a checkpoint or a hub id is wanted")
    if Path(text).exists():
        return Spec(kind="model", target=text, label=_stem(text))
    kind, colon, rest = text.partition(":")
    if colon and kind == "random":
        return _random(text, rest)
    if colon and kind in ("transformers", "open_clip"):
        if not rest:
            raise ConfigError(f"{text!r} does not say which model; {_FORMS[kind]}")
        label = _stem(rest) if Path(rest).exists() else rest.replace("//", "/")
        return Spec(kind=kind, target=rest, label=label)  # type: ignore[arg-type]
    name, equals, rest = text.partition("=")
    if not equals:
        return Spec(kind="model", target=text, label=text if not _is_path(text) else _stem(text))
    if not rest or not _LABEL.fullmatch(name):
        raise ConfigError(f"{text!r} is neither a model nor NAME=MODEL")
    # A model's name before a bare file says which model it holds; else it is only a label.
    if zoo.find(name) is not None and rest.partition(":")[0] not in ("random", *_FORMS):
        model = zoo.resolve(name)
        return Spec(kind="model", target=rest, model=model, label=f"{model}={_stem(rest)}")
    return replace(parse(rest), label=name)


_FORMS = {
    "transformers": "the form is transformers:ID or transformers:FOLDER",
    "open_clip": "the form is open_clip:NAME/PRETRAINED",
}


def _random(text: str, rest: str) -> Spec:
    name, _, seed = rest.partition(":")
    if not name or (seed and not seed.isdecimal()):
        raise ConfigError(f"{text!r}: the form is random:MODEL or random:MODEL:SEED")
    name, number = zoo.resolve(name), int(seed or 0)
    return Spec(kind="random", target=name, seed=number, label=f"random-{name}-{number}")


def _is_path(text: str) -> bool:
    return Path(text).suffix.lower() in (".pt", ".pth", ".bin", ".safetensors")


def _stem(path: str) -> str:
    # A folder may have a dot in its name, as in "clip-0.5".
    return Path(path).stem if _is_path(path) else Path(path).resolve().name
