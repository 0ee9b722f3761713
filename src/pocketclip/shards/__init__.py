"""Reinforced shards: written, read, joined and audited.

    from pocketclip import shards

    for sample in shards.read("DataCompDR-12M"):
        ...

Samples are stored in the layout of the published DataCompDR sets, and an `index.json` beside
them says how they were made. `sample` holds the table of members, `codec` the embeddings.
"""

from __future__ import annotations

from pocketclip.shards.audit.inspect import Problem
from pocketclip.shards.audit.ledger import AuditReport
from pocketclip.shards.audit.run import audit
from pocketclip.shards.codec import DTYPES
from pocketclip.shards.index import Index, describe, read_index, write_index
from pocketclip.shards.joining import JoinReport, join
from pocketclip.shards.reader import read, read_shard, shard_paths
from pocketclip.shards.writer import JsonlWriter, ShardStats, ShardWriter

__all__ = [
    "DTYPES",
    "AuditReport",
    "Index",
    "JoinReport",
    "JsonlWriter",
    "Problem",
    "ShardStats",
    "ShardWriter",
    "audit",
    "describe",
    "join",
    "read",
    "read_index",
    "read_shard",
    "shard_paths",
    "write_index",
]
