"""The model zoo: the configuration of each named model, and its published figures.

A model is three frozen dataclasses (image tower, text tower, preprocessing) and an embedding
width; a captioner has a fourth, its decoder. Nothing here imports torch; `pocketclip.nn` builds
the towers from these descriptions.

    config = zoo.override(zoo.entry("mobileclip2-s0").config, image_size=320)

| module | holds |
|---|---|
| `configs` | the dataclasses |
| `checks` | configurations changed, checked, and written as JSON |
| `entries` | the named models, their weights' repositories and published figures |
"""

from __future__ import annotations

import difflib

from pocketclip.errors import UnknownModelError
from pocketclip.zoo.checks import (
    MAX_IMAGE_SIZE,
    check_range,
    checked,
    from_dict,
    override,
    to_dict,
)
from pocketclip.zoo.configs import (
    CLIP_MEAN,
    CLIP_STD,
    DecoderConfig,
    MCiConfig,
    ModelConfig,
    PreprocessConfig,
    TextConfig,
    ViTConfig,
)
from pocketclip.zoo.entries import APPLE_AMLR, PUBLISHED_FIELDS, ZOO, Entry, Published

__all__ = [
    "APPLE_AMLR",
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_IMAGE_SIZE",
    "PUBLISHED_FIELDS",
    "ZOO",
    "DecoderConfig",
    "Entry",
    "MCiConfig",
    "ModelConfig",
    "PreprocessConfig",
    "Published",
    "TextConfig",
    "ViTConfig",
    "check_range",
    "checked",
    "entry",
    "find",
    "from_dict",
    "override",
    "resolve",
    "teacher_logit_scale",
    "to_dict",
]


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_OTHER_NAMES = {"vit-l14-39b-quickgelu": "vit-l14-39b"}
_SPELLINGS = {_key(name): name for name in ZOO}
_SPELLINGS |= {_key(other): name for other, name in _OTHER_NAMES.items()}


def resolve(name: str) -> str:
    """Return the canonical spelling of `name`, given in any case and with any separators.

    Raises:
        UnknownModelError: there is no such model; the message names similar ones.
    """
    spelling = _SPELLINGS.get(_key(name))
    if spelling is not None:
        return spelling
    near = difflib.get_close_matches(_key(name), _SPELLINGS, n=3, cutoff=0.5)
    names = dict.fromkeys(_SPELLINGS[key] for key in near)
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    raise UnknownModelError(f"unknown model {name!r}; {hint}`pocketclip models` lists all models")


def find(name: str) -> Entry | None:
    """Return the zoo's entry for `name`, in any spelling, or None."""
    spelling = _SPELLINGS.get(_key(name))
    return None if spelling is None else ZOO[spelling]


def entry(name: str) -> Entry:
    """Return the zoo's entry for `name`, in any spelling.

    Raises:
        UnknownModelError: there is no such model.
    """
    return ZOO[resolve(name)]


# Published teachers that the zoo does not build yet, by hub id and by open_clip's name.
# The second is of the paper's H/14@384; (r): known from reviews of the paper, not from its text.
_TEACHER_SCALES: dict[str, float] = {
    "apple/dfn5b-clip-vit-h-14": 90,
    "vit-h-14-quickgelu/dfn5b": 90,
    "apple/dfn5b-clip-vit-h-14-378": 55,
    "vit-h-14-378-quickgelu/dfn5b": 55,
}


def teacher_logit_scale(name: str) -> float | None:
    """Return the logit scale that MobileCLIP2 (Table 3) found best for a published teacher.

    It multiplies the teacher's cosine similarities before the softmax of the distillation loss.
    The paper searched it per teacher, each alone. It is a fact about published weights, so a weight
    file (`vit-l14-quickgelu=openai.pt`) and random weights have none. The first generation's
    ensemble (OpenAI's ViT-L/14 and DataComp's) used 100 for both; its recipe says so itself.

    Args:
        name: a zoo name in any spelling, a hub id (`apple/DFN2B-CLIP-ViT-L-14`, also with
            `hf-hub:` or `@REVISION`), `open_clip:NAME/TAG`, or any of these as LABEL=MODEL.

    Returns:
        The scale, or None if the model is unknown or the paper does not give one.
    """
    label, equals, target = name.strip().partition("=")
    if equals and (find(label) is None or target.strip().startswith("open_clip:")):
        return teacher_logit_scale(target)
    target = name.strip().removeprefix("hf-hub:").partition("@")[0]
    known = find(target)
    if known is not None:
        return known.teacher_logit_scale
    wanted = target.removeprefix("open_clip:").lower()
    for other in ZOO.values():
        names = (*other.hub, *([] if other.open_clip is None else [other.open_clip]))
        if wanted in (each.lower() for each in names):
            return other.teacher_logit_scale
    return _TEACHER_SCALES.get(wanted)
