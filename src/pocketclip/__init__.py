"""From raw image-text pairs to a fast image-text model on a phone or a laptop.

`import pocketclip` is fast and does not import torch; the public names and the modules of the
package are imported on first use.

    encoder = pocketclip.load("mobileclip2-s0")
    encoder.classify("photo.jpg", ["a dog", "a cat"])
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from pocketclip import _deprecated
from pocketclip._version import __version__

if TYPE_CHECKING:
    # What type checkers and editors see. To them, `import x as x` means that x is public.
    # isort: off
    from pocketclip import (
        attribution as attribution,
        augment as augment,
        caption_settings as caption_settings,
        checkpoint as checkpoint,
        cli as cli,
        cluster as cluster,
        compat as compat,
        devices as devices,
        embed as embed,
        embedding_space as embedding_space,
        embeddings as embeddings,
        errors as errors,
        evaluate as evaluate,
        export as export,
        feature_maps as feature_maps,
        finetune as finetune,
        fit as fit,
        formats as formats,
        graph as graph,
        images as images,
        infer as infer,
        label_set as label_set,
        license as license,
        nn as nn,
        pages as pages,
        pairs as pairs,
        pipeline_folder as pipeline_folder,
        plan as plan,
        preprocess as preprocess,
        progress as progress,
        prompts as prompts,
        publish as publish,
        quickstart as quickstart,
        reinforce as reinforce,
        search as search,
        serve as serve,
        shards as shards,
        storage as storage,
        sweep_scales as sweep_scales,
        teacher_score as teacher_score,
        tokenizer as tokenizer,
        train as train,
        types as types,
        upcycling as upcycling,
        web as web,
        worker_pool as worker_pool,
        zoo as zoo,
    )

    # isort: on
    from pocketclip.attribution.explain import explain
    from pocketclip.compat import (
        create_model_and_transforms,
        get_tokenizer,
        reparameterize_model,
    )
    from pocketclip.export.pull import pull
    from pocketclip.infer.encoder import Encoder, load
    from pocketclip.nn.build import create_model

_HOMES = {
    "Encoder": "pocketclip.infer.encoder",
    "explain": "pocketclip.attribution.explain",
    "load": "pocketclip.infer.encoder",
    "pull": "pocketclip.export.pull",
    "create_model": "pocketclip.nn.build",
    "create_model_and_transforms": "pocketclip.compat",
    "get_tokenizer": "pocketclip.compat",
    "reparameterize_model": "pocketclip.compat",
}
_deprecated.install()
# Module names from the file names: `pkgutil` would take longer than the remaining import.
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
    "explain",
    "get_tokenizer",
    "load",
    "pull",
    "reparameterize_model",
]


def __getattr__(name: str) -> Any:
    if name in _deprecated.MOVED:
        return importlib.import_module(f"pocketclip.{name}")  # warns
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module 'pocketclip' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES.get(name, f"pocketclip.{name}"))
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "pydantic"):  # what the base install lacks of `train`
            raise
        from pocketclip.errors import MissingDependencyError, how_to_install

        raise MissingDependencyError(
            f"pocketclip.{name} needs {error.name}: {how_to_install('train')}"
        ) from error
    return module if name in _ROOMS else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
