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
| `captioners` | short names of MobileCLIP2's captioners, which share one architecture |
| `sparse` | configurations with mixtures of experts in place of MLPs |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pocketclip.errors import UnknownModelError
from pocketclip.zoo.captioners import CAPTIONERS
from pocketclip.zoo.checks import (
    MAX_IMAGE_SIZE,
    changed_fields,
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
    MoEConfig,
    PreprocessConfig,
    TextConfig,
    ViTConfig,
)
from pocketclip.zoo.entries import APPLE_AMLR, PUBLISHED_FIELDS, ZOO, Entry, Published
from pocketclip.zoo.sparse import dense_config, describe, is_sparse, mixtures, sparse_config

__all__ = [
    "APPLE_AMLR",
    "CAPTIONERS",
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_IMAGE_SIZE",
    "PUBLISHED_FIELDS",
    "ZOO",
    "DecoderConfig",
    "Entry",
    "MCiConfig",
    "MoEConfig",
    "ModelConfig",
    "PreprocessConfig",
    "Published",
    "TextConfig",
    "ViTConfig",
    "changed_fields",
    "check_range",
    "checked",
    "dense_config",
    "describe",
    "entries",
    "entry",
    "find",
    "from_dict",
    "is_sparse",
    "mixtures",
    "name_of_open_clip",
    "name_of_repository",
    "override",
    "resolve",
    "sparse_config",
    "teacher_logit_scale",
    "to_dict",
]


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


# Other names that models are known by.
_OTHER_NAMES = {"vit-l14-39b-quickgelu": "vit-l14-39b"}
_SPELLINGS = {_key(name): name for name in (*ZOO, *CAPTIONERS)}
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
    """Return the entry of `name`, a model of the zoo or a captioner in any spelling, or None."""
    spelling = _SPELLINGS.get(_key(name))
    return None if spelling is None else CAPTIONERS.get(spelling) or ZOO[spelling]


def entry(name: str) -> Entry:
    """Return the entry of `name`, a model of the zoo or a captioner in any spelling.

    A captioner's configuration is that of `coca-vit-l14` with its own context, and bears that name.

    Raises:
        UnknownModelError: there is no such model.
    """
    spelling = resolve(name)
    return CAPTIONERS.get(spelling) or ZOO[spelling]


def entries() -> Iterator[tuple[str, Entry]]:
    """Yield the name and the entry of every model of the zoo, then of every captioner."""
    yield from ZOO.items()
    yield from CAPTIONERS.items()


def name_of_repository(repo: str) -> str | None:
    """Return the name of the model whose weights a hub repository holds, or None.

    Args:
        repo: OWNER/NAME, in any case.
    """
    wanted = repo.lower()
    return next((n for n, e in entries() if wanted in (r.lower() for r in e.hub)), None)


def name_of_open_clip(weights: str) -> str | None:
    """Return the name of the model whose weights open_clip calls NAME/TAG, or None.

    Args:
        weights: NAME/TAG in any case, with or without `open_clip:`.
    """
    wanted = weights.removeprefix("open_clip:").lower()
    named = ((n, e.open_clip) for n, e in entries() if e.open_clip is not None)
    return next((n for n, known in named if known.lower() == wanted), None)


def teacher_logit_scale(name: str) -> float | None:
    """Return the logit scale that MobileCLIP2 (Table 3) found best for a published teacher.

    It multiplies the teacher's cosine similarities before the softmax of the distillation loss.
    The paper searched it per teacher, each alone. That of H/14 at 378 pixels is known only from
    reviews and translations of its appendix. It is a fact about published weights, so a weight file
    (`vit-l14-quickgelu=openai.pt`) and random weights have none. The first generation's ensemble
    (OpenAI's ViT-L/14 and DataComp's) used 100 for both; its recipe says so itself.

    Args:
        name: a zoo name in any spelling, a hub id (`apple/DFN2B-CLIP-ViT-L-14`, also with
            `hf-hub:` or `@REVISION`), `open_clip:NAME/TAG`, NAME/TAG as a published set's index
            has it, or any of these as LABEL=MODEL.

    Returns:
        The scale, or None if the model is unknown or the paper does not give one.
    """
    label, equals, rest = name.strip().partition("=")
    if equals and find(label) is None:
        return teacher_logit_scale(rest)
    target = (rest if equals else label).strip()
    weights = name_of_open_clip(target)
    if weights is not None or target.startswith("open_clip:"):
        known = None if weights is None else entry(weights)
    else:
        repository = name_of_repository(target.removeprefix("hf-hub:").partition("@")[0])
        # Behind a model's name, as in vit-l14-quickgelu=openai.pt, no other name is meant.
        known = entry(repository) if repository else None if equals else find(target)
    return None if known is None else known.teacher_logit_scale
