"""Reinforced shards: written, read, joined and audited.

    from pocketclip import shards

    for sample in shards.read("DataCompDR-12M"):
        ...

Samples are stored in the layout of the published DataCompDR sets; an `index.json` beside them
describes how they were made. Shards on S3 and other stores are written through
`pocketclip.storage`; `pocketclip.augment` replays the stored augmentations.

| module | holds |
|---|---|
| `reader` | `read`: samples of tar and jsonl shards, one at a time |
| `random_access` | any sample of a memory-mapped tar shard |
| `writer` | `ShardWriter`, `JsonlWriter`: one shard, whole or not at all |
| `index` | `index.json`: teachers, captioners, augmentation, shards |
| `layout` | a sample as the members of a tar, and back |
| `codec`, `quantise` | embeddings as bytes, and back; int8 and int6 |
| `tar`, `jsonl` | samples in tar archives; in lines of JSON |
| `torchfile`, `unpickle` | embeddings of torch files and pickles, read without running them |
| `check` | problems of a single sample |
| `joining`, `merging`, `lookup` | `join`: images of one set, reinforcements of another |
| `scratch_database` | SQLite for data that does not fit into memory |
| `sheet` | a picture of samples with their augmentations |
| `audit/` | `audit`: all problems of a set, and a clean copy |
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
