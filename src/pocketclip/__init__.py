"""From raw image-text pairs to a fast image-text model on a phone or a laptop.

`import pocketclip` is quick and needs no torch; the names below and all modules of the package are
fetched when first used.

    encoder = pocketclip.load("mobileclip2-s0")
    encoder.classify("photo.jpg", ["a dog", "a cat"])
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    # What type checkers and editors see. To them, `import x as x` means that x is public.
    # isort: off
    from pocketclip import (
        archive as archive,
        augment as augment,
        augment_config as augment_config,
        augment_params as augment_params,
        checkpoint as checkpoint,
        cli as cli,
        compat as compat,
        devices as devices,
        embeddings as embeddings,
        errors as errors,
        escaping as escaping,
        evaluate as evaluate,
        exchange as exchange,
        export as export,
        fetch as fetch,
        files as files,
        generation as generation,
        hub as hub,
        image_metadata as image_metadata,
        images as images,
        infer as infer,
        locks as locks,
        naming as naming,
        network as network,
        nn as nn,
        npyfile as npyfile,
        pairs as pairs,
        parsing as parsing,
        photos as photos,
        pixel_ops as pixel_ops,
        preprocess as preprocess,
        prompts as prompts,
        quickstart as quickstart,
        reinforce as reinforce,
        resolve as resolve,
        shards as shards,
        storage as storage,
        stores as stores,
        tarfiles as tarfiles,
        temporary as temporary,
        tokenizer as tokenizer,
        train as train,
        types as types,
        weights as weights,
        zoo as zoo,
    )

    # isort: on
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
# The modules, by the names of their files: `pkgutil` takes longer than all else here.
_ROOMS = frozenset(
    name.removesuffix(".py")
    for name in os.listdir(__path__[0])  # noqa: PTH208
    if name[0] not in "_." and name.removesuffix(".py").isidentifier() and name != "data"
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
