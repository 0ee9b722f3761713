"""What is known of sets on the Hugging Face hub that say it nowhere beside their shards.

The facts are those of the reference's configuration and training script of DataCompDR (MobileCLIP,
Vasu et al., CVPR 2024, section 4): the augmentation that the stored parameters were drawn from, and
the two teachers, in the order of their embeddings.
"""

from __future__ import annotations

from typing import Any

from pocketclip.augment import DATACOMPDR
from pocketclip.errors import StorageError
from pocketclip.storage.hub_store import is_hub, parse

_DATACOMPDR = frozenset({
    "apple/datacompdr-12m", "apple/datacompdr-12m-bf16", "apple/datacompdr-1b"
})  # fmt: skip


def published_facts(folder: str) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Return teachers and augmentation of a published set; None if `folder` is of none.

    Args:
        folder: `hf://datasets/OWNER/NAME`, or a folder below.
    """
    if not is_hub(folder):
        return None
    try:
        parts = parse(folder)
    except StorageError:
        return None
    if parts.kind != "dataset" or parts.repo.lower() not in _DATACOMPDR:
        return None
    teachers = [
        {
            "name": f"open_clip:ViT-L-14/{tag}",
            "embed_dim": 768,
            "logit_scale": 100.0,
            "space_id": None,
        }
        for tag in ("openai", "datacomp_xl_s13b_b90k")
    ]
    return teachers, dict(DATACOMPDR)
