"""The identity of an embedding space.

Embeddings are comparable within one space only. Every index, bundle, shard and result carries the
id of its space, and mixing two is refused.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from pocketclip import zoo
from pocketclip.formats.json_text import digest_json
from pocketclip.tokenizer import Tokenizer
from pocketclip.types import Arrays

_MAX_READERS = 8  # each holds one array


class SpaceIdentity(NamedTuple):
    """The id of an embedding space, and the digest of the weights that have it."""

    space_id: str
    weights_digest: str


def identify(
    config: zoo.ModelConfig, weights_digest: str, known: SpaceIdentity | None = None
) -> SpaceIdentity:
    """Return the identity of a model's embedding space.

    The id hashes the architecture, the weights, the preprocessing and the tokenizer. Fused models
    keep the id of the model that they were made from: it is recorded in `known`.

    Args:
        config: the model's configuration.
        weights_digest: the result of `digest_weights`.
        known: an identity recorded earlier; returned if its digest is that of the weights.
    """
    if known is not None and known.weights_digest == weights_digest:
        return known
    parts = [embedding_fields(config), weights_digest, Tokenizer().fingerprint]
    return SpaceIdentity(f"space-{digest_json(parts)[:16]}", weights_digest)


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


def digest_weights(weights: Arrays) -> str:
    """Return a hash of a model's weights, given by our parameter names.

    It depends neither on the order of the weights, nor on the type of float that they are stored
    in, nor on an all-zero bias of the image head. Several arrays are read at the same time, each
    of them once.
    """

    def describe(name: str) -> str | None:
        array = np.asarray(weights[name], np.float32, order="C")
        if name == "image.head.bias" and not array.any():
            return None
        return f"{name} {array.shape} {hashlib.sha256(array.data).hexdigest()}"

    names = sorted(name for name in weights if not name.endswith("num_batches_tracked"))
    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as pool:
        lines = [line for line in pool.map(describe, names) if line is not None]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
