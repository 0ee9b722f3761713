"""Files, here and on object stores: read, listed, fetched, and written whole or not at all.

    from pocketclip import storage

    data = storage.read_bytes("s3://bucket/out/00000000.tar")

| module | holds |
|---|---|
| `paths` | one set of functions for local paths and object stores; all of them are here too |
| `stores` | object stores through fsspec: clients, files, errors |
| `s3_file_system`, `retries` | repeating requests that failed for a moment |
| `hub_store` | `hf://` paths: the Hugging Face hub's files, only read |
| `hub_file_system`, `hub_snapshot` | their file systems: of the hub, and of its cache |
| `hub_settings` | the hub's address, cache and names |
| `local` | local files and folders, written whole |
| `temporary`, `atomic_swap`, `locks` | temporary folders, swapped folders and locks, for `local` |
| `many` | many files at once: their contents, their sizes |
| `user_cache`, `user_data` | the user's cache and data: where they are |
| `private` | files and folders that only the user may read |
| `photos` | which files are photographs, and the walk through folders |
| `http`, `network` | fetching images from the web; refusing private addresses |
"""

from __future__ import annotations

from pocketclip.storage.many import map_many, read_many, sizes_of
from pocketclip.storage.paths import (
    MAX_BYTES,
    absolute,
    exists,
    expand,
    is_absolute,
    is_folder,
    is_remote,
    join,
    list_files,
    list_sizes,
    open_read,
    read_bytes,
    remove,
    remove_abandoned,
    size,
    version,
    write_bytes,
    write_whole,
)

__all__ = [
    "MAX_BYTES",
    "absolute",
    "exists",
    "expand",
    "is_absolute",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "list_sizes",
    "map_many",
    "open_read",
    "read_bytes",
    "read_many",
    "remove",
    "remove_abandoned",
    "size",
    "sizes_of",
    "version",
    "write_bytes",
    "write_whole",
]
