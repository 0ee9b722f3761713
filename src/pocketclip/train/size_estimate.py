"""How large a set of shards will be, from a few of its samples, and whether its disk has room."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketclip import storage
from pocketclip.errors import DataError, StorageError, count_of
from pocketclip.shards.tar import Group, groups, members

_PROBED_SHARDS, _PROBED_SAMPLES = 8, 2


@dataclass(slots=True, frozen=True, kw_only=True)
class Estimate:
    """What `materialise` will do, from a few rendered samples."""

    samples: int
    """Of the whole set."""
    bytes_per_sample: float
    bytes: int
    """Of the whole set."""
    free: int | None
    """Free bytes where it is written; None for an object store."""


def estimate_size(
    left: Mapping[str, int],
    samples: int,
    out: str,
    size_of: Callable[[Group, str], int | str],
) -> Estimate:
    """Make a few samples to learn how large the result will be, and whether there is room for it.

    Args:
        left: the shards that are not finished, with their numbers of samples.
        samples: of the whole set.
        out: the folder to be written to.
        size_of: returns the bytes that a sample of a shard will take, or why it cannot be made.

    Raises:
        DataError: none of them can be rendered.
        StorageError: the disk is too small.
    """
    paths = [path for path, size in left.items() if size]
    step = max(1, len(paths) // _PROBED_SHARDS)
    found, problems = list[int](), list[str]()
    for path in paths[::step][:_PROBED_SHARDS]:
        with storage.open_read(path) as stream:
            for group in itertools.islice(groups(members(stream, path)), _PROBED_SAMPLES):
                rendered = size_of(group, path)
                if isinstance(rendered, str):
                    problems.append(f"{group.uid}: {rendered}")
                else:
                    found.append(rendered)
    if paths and not found:
        hint = "; join the images with `pocketclip join` first" * ("no image" in problems[0])
        raise DataError(
            f"none of the {count_of(len(problems), 'sample')} tried can be rendered "
            f"({problems[0]}){hint}"
        )
    each = sum(found) / len(found) if found else 0.0
    _check_room(out, each, list(left.values()))
    return Estimate(
        samples=samples, bytes_per_sample=each, bytes=round(each * samples),
        free=None if storage.is_remote(out) else _free_bytes(out),
    )  # fmt: skip


def _check_room(out: str, each: float, sizes: Sequence[int]) -> None:
    """Check that there is room for samples of `each` bytes in shards of these sizes.

    Raises:
        StorageError: there is not.
    """
    remote = storage.is_remote(out)
    # A shard for a store is made in the temporary folder, and removed when it is sent.
    needed = round(each * (max(sizes, default=0) if remote else sum(sizes)))
    free = _free_bytes(tempfile.gettempdir() if remote else out)
    if needed > free:
        where = f"{tempfile.gettempdir()} (set TMPDIR)" if remote else "its disk"
        raise StorageError(
            f"{out} needs about {needed / 1e9:,.2f} GB ({each / 1e3:,.0f} kB per sample), but "
            f"{where} has {free / 1e9:,.2f} GB free: free some space, choose another --out, or "
            "take fewer --views or a lower --quality"
        )


def _free_bytes(folder: str) -> int:
    """Return the free bytes of a folder's disk; the folder need not exist."""
    path = Path(storage.absolute(folder))
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free
