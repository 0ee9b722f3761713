"""A dense model, of any kind of source, made sparse and written as a checkpoint.

    made = upcycle_checkpoint("runs/dense", "runs/sparse", experts=8, top_k=2)
    made.sparse.image.moe.blocks        # (1, 3, 5, 7, 9, 11)
    made.max_abs_error                  # 3e-08, of embeddings of unit length

`pocketclip.nn.upcycle` makes the model, and says where the method is from. Here it is compared with
the dense one before it is written: both must give the same embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint.folder import check_target
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import CheckpointError
from pocketclip.infer.comparison import CAPTIONS, compare, own_photos
from pocketclip.license import License
from pocketclip.nn.clip import CLIP
from pocketclip.nn.upcycle import check_draws, upcycle
from pocketclip.preprocess import Preprocess
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.tokenizer import Tokenizer
from pocketclip.zoo.sparse import TowerName

MAX_ERROR = 1e-5
"""The largest difference between an embedding's components, in float32 and at unit length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcycled:
    """A sparse model that was written."""

    folder: Path
    dense: zoo.ModelConfig
    sparse: zoo.ModelConfig
    space_id: str
    license: License
    """Of the dense model's weights, which stays with them."""
    max_abs_error: float | None
    """The largest difference from the dense model's unit embeddings; None if noise made it another
    model."""


def upcycle_checkpoint(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: str | Sequence[int] = "every-2",
    towers: Sequence[TowerName] = ("image", "text"),
    noise: float = 0.0,
    seed: int = 0,
    model_name: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> Upcycled:
    """Make a dense model sparse, compare it with the dense one, and write it whole or not at all.

    Args:
        model: a MODEL argument, see `pocketclip.checkpoint.resolve`; unfused.
        out: the checkpoint folder, new or empty.
        experts: see `pocketclip.nn.upcycle.upcycle`, as for all settings up to `seed`.
        top_k: number of experts that process a token.
        layers: which blocks become mixtures.
        towers: in which towers.
        noise: added to the experts; above 0 the two models may differ.
        seed: the routers and the noise are drawn from it.
        model_name: the zoo name of a weight file that does not name its model itself.
        revision: of a repository on the hub.
        offline: take hub files from the local cache only.
        reporter: receives what is done; a function receives it as text.

    Raises:
        CheckpointError: a fused model, a folder that is not empty, embeddings that are not
            finite, or a sparse model that gives other embeddings than the dense one.
        ConfigError: settings that do not fit the model, or a sparse one.
        OSError: the disk is full or the folder is not writable.
        PocketclipError: the model cannot be loaded.
    """
    report = as_reporter(reporter).stage
    source, target = resolve_model(model, revision=revision), Path(out)
    check_target(target)
    if source.path is not None and target.resolve() == source.path.resolve():
        raise CheckpointError(f"{out} is the dense model itself; choose another folder")
    if target.is_dir() and any(target.iterdir()):
        # Another checkpoint may be the only one of a long training.
        raise CheckpointError(f"{out} holds a checkpoint already; choose another folder")
    settings: dict[str, Any] = {
        "experts": experts, "top_k": top_k, "layers": layers, "towers": towers,
    }  # fmt: skip
    check_draws(noise, seed)
    if source.model is not None:  # before a download
        zoo.sparse_config(zoo.entry(source.model).config, **settings)
    report(f"loading {source.text}")
    dense = checkpoint.load(source, model_name, offline=offline)
    report("making it sparse")
    sparse = upcycle(dense, noise=noise, seed=seed, **settings)
    report("comparing both")
    error = _largest_difference(dense, sparse)
    if not noise and error > MAX_ERROR:
        raise CheckpointError(
            f"nothing was written: the sparse model's embeddings differ by {error:.1e} from those "
            f"of {source.text}, more than {MAX_ERROR:.0e}; please report it"
        )
    report(f"writing {out}")
    checkpoint.save(sparse, target)
    return Upcycled(
        folder=target,
        dense=dense.config,
        sparse=sparse.config,
        space_id=sparse.space_id,
        license=sparse.license,
        max_abs_error=None if noise else error,
    )


@torch.no_grad()
def _largest_difference(dense: CLIP, sparse: CLIP) -> float:
    """Return the largest difference between the unit embeddings of the package's own examples.

    Raises:
        CheckpointError: an embedding is not finite.
    """
    config = dense.config
    pixels = Preprocess(config.preprocess).batch(own_photos())
    ids = Tokenizer(warn=False)(list(CAPTIONS), config.text.context_length)
    embeddings = []
    for title, model in (("dense", dense), ("sparse", sparse)):
        both = torch.cat([model.encode_image(pixels), model.encode_text(ids)]).numpy()
        if not np.isfinite(both).all():
            hint = "its weights are damaged" if model is dense else "choose less noise"
            raise CheckpointError(
                f"nothing was written: the {title} model's embeddings are not finite; {hint}"
            )
        embeddings.append(both)
    return float(compare(*embeddings)["max_abs_error"])
