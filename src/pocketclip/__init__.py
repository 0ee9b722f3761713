"""From raw image-text pairs to a fast image-text model on a phone or a laptop.

`import pocketclip` is quick and needs no torch; the names below are fetched when first used.

    encoder = pocketclip.load("mobileclip2-s0")
    encoder.classify("photo.jpg", ["a dog", "a cat"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pocketclip.compat import (
        create_model_and_transforms,
        get_tokenizer,
        reparameterize_model,
    )
    from pocketclip.infer.encoder import Encoder, load
    from pocketclip.nn.clip import create_model

_HOMES = {
    "Encoder": "pocketclip.infer.encoder",
    "load": "pocketclip.infer.encoder",
    "create_model": "pocketclip.nn.clip",
    "create_model_and_transforms": "pocketclip.compat",
    "get_tokenizer": "pocketclip.compat",
    "reparameterize_model": "pocketclip.compat",
}
_ROOMS = frozenset(
    {
        *(
            "augment",
            "checkpoint",
            "compat",
            "errors",
            "evaluate",
            "fetch",
            "images",
            "infer",
            "nn",
            "pairs",
        ),
        *("preprocess", "quickstart", "reinforce", "shards", "storage", "tokenizer", "train"),
        *("types", "zoo"),
    }
)

__all__ = [
    "Encoder",
    "__version__",
    "create_model",
    "create_model_and_transforms",
    "get_tokenizer",
    "load",
    "reparameterize_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module 'pocketclip' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES.get(name, f"pocketclip.{name}"))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from pocketclip.errors import MissingDependencyError

        raise MissingDependencyError(
            f"pocketclip.{name} needs torch: pip install 'pocketclip[train]'"
        ) from error
    return module if name in _ROOMS else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
