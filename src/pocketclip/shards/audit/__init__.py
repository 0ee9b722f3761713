"""Audit a reinforced set: inspect it, write a clean copy, recompute embeddings.

The package shares its name with the function `pocketclip.shards.audit`: import its modules as
`from pocketclip.shards.audit import run`.

| module | holds |
|---|---|
| `run` | `audit`: the whole of it |
| `inspect` | the kinds of problems, and the inspection of one shard |
| `ledger` | the report, and the database of uids and problems |
| `scores` | what the teachers score, by stored embeddings |
| `drift` | stored embeddings against recomputed ones |
| `repair` | the clean copy of a set |
"""
