"""The identity of an embedding space.

Embeddings are comparable only within one space: every index, bundle, shard and result carries
its id, and mixing two is refused.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor, nn

from pocketclip import zoo
from pocketclip.tokenizer import Tokenizer

Stamp = tuple[str, str]  # a space id, and the digest of the weights that carry it


def space_id(model: nn.Module, config: zoo.ModelConfig, stamp: Stamp | None) -> Stamp:
    """Return the id of a model's embedding space, and the digest of its weights.

    The id hashes the architecture, the weights, the preprocessing and the tokenizer. A model
    whose weights are still those of `stamp` keeps the stamp's id: so do fused forms, which are
    stamped with the id of the model they were made from.
    """
    digest = weights_digest(model)
    if stamp is not None and stamp[1] == digest:
        return stamp
    parts = [architecture(config), digest, Tokenizer().fingerprint]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return f"space-{name}", digest


def architecture(config: zoo.ModelConfig) -> dict[str, Any]:
    """Return what of a configuration decides the embeddings."""
    out = zoo.to_dict(config)
    del out["name"], out["gradient_checkpointing"]
    for part in ("image", "text"):
        for training_only in ("drop_path", "layer_scale"):
            out[part].pop(training_only, None)
    del out["image"]["head_bias"]  # a zero bias is no bias; another one is in the weights
    # What came later is left out where it is absent, so that older ids stay what they were.
    if out["decoder"] is None:
        del out["decoder"]
    if out["image"].get("pool_queries") is None:
        out["image"].pop("pool_queries", None)
        out["image"].pop("pool_heads", None)
    if not out["text"]["class_token"]:
        del out["text"]["class_token"]
    return out


def weights_digest(model: nn.Module) -> str:
    """Return a hash of the weights, independent of their order and of a bias of zeros.

    A tower that was compiled in its place has the hash of the tower inside.
    """

    def one(item: tuple[str, Tensor]) -> str:
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
        lines = list(pool.map(one, items))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
