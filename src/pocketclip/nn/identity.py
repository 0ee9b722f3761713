"""The identity of an embedding space.

Embeddings are comparable within one space only. Every index, bundle, shard and result carries the
id of its space, and mixing two is refused.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from torch import Tensor, nn

from pocketclip import zoo
from pocketclip.formats.json_text import digest_json
from pocketclip.tokenizer import Tokenizer


class SpaceIdentity(NamedTuple):
    """The id of an embedding space, and the digest of the weights that have it."""

    space_id: str
    weights_digest: str


def identify_space(
    model: nn.Module, config: zoo.ModelConfig, known: SpaceIdentity | None
) -> SpaceIdentity:
    """Return the identity of a model's embedding space.

    The id hashes the architecture, the weights, the preprocessing and the tokenizer. Fused models
    keep the id of the model that they were made from: it is recorded in `known`.

    Args:
        model: all of its weights are hashed.
        config: its configuration.
        known: an identity recorded earlier; returned if its digest is that of the weights.
    """
    digest = weights_digest(model)
    if known is not None and known.weights_digest == digest:
        return known
    parts = [embedding_fields(config), digest, Tokenizer().fingerprint]
    return SpaceIdentity(f"space-{digest_json(parts)[:16]}", digest)


def embedding_fields(config: zoo.ModelConfig) -> dict[str, Any]:
    """Return the configuration fields that affect embeddings."""
    out = zoo.to_dict(config)
    del out["name"], out["gradient_checkpointing"]
    for tower in ("image", "text"):
        for training_only in ("drop_path", "layer_scale"):
            out[tower].pop(training_only, None)
    # A zero bias equals no bias, and any other bias is among the hashed weights.
    del out["image"]["head_bias"]
    # Fields added later are omitted where unset, so that earlier ids stay the same.
    if out["decoder"] is None:
        del out["decoder"]
    if out["image"].get("pool_queries") is None:
        out["image"].pop("pool_queries", None)
        out["image"].pop("pool_heads", None)
    if not out["text"]["class_token"]:
        del out["text"]["class_token"]
    return out


def weights_digest(model: nn.Module) -> str:
    """Return a hash of the weights.

    It does not depend on the order of the weights, on an all-zero bias of the image head, or on
    whether `torch.compile` wrapped a tower.
    """

    def describe(item: tuple[str, Tensor]) -> str:
        name, value = item
        array = value.detach().float().contiguous().cpu().numpy()
        return f"{name} {array.shape} {hashlib.sha256(array.data).hexdigest()}"

    state = {name.replace("_orig_mod.", ""): v for name, v in model.state_dict().items()}
    items = [
        (name, value)
        for name, value in sorted(state.items())
        if not name.endswith("num_batches_tracked")
        and not (name == "image.head.bias" and not value.any())
    ]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        lines = list(pool.map(describe, items))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
