"""`index.json`: what a folder of shards is, and by what it was made.

    index = read_index("out")
    index.teacher_dims, index.shards[0].sha256

Published sets have a `config.json` instead, which says less; `describe` reads either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.writer import ShardStats

VERSION = 1
NAME = "index.json"
PUBLISHED_NAME = "config.json"


@dataclass(slots=True, kw_only=True)
class Index:
    """The description of a folder of shards."""

    version: int = VERSION
    columns: list[str] = field(default_factory=list)
    """What the samples hold: `image`, captions and embeddings by key, `param_aug`, ..."""
    dtypes: list[str] = field(default_factory=list)
    """How embeddings are stored; one, unless shards were put together."""
    teachers: list[dict[str, Any]] = field(default_factory=list)
    """In the order of their parts: `name`, `embed_dim`, `logit_scale`, `space_id`."""
    captioners: list[dict[str, Any]] = field(default_factory=list)
    """`key` (that of their captions), `name`, and whatever else identifies them."""
    augmentation: dict[str, Any] | None = None
    """The configuration that the parameters were drawn by, see `pocketclip.augment`."""
    shards: list[ShardStats] = field(default_factory=list)
    config_hash: str | None = None
    """Of everything that decides the content; a job goes on only where it agrees."""

    @property
    def teacher_dims(self) -> tuple[int, ...]:
        """The width of each teacher's part of an embedding; empty if not known."""
        dims = [teacher.get("embed_dim") for teacher in self.teachers]
        return tuple(d for d in dims if d) if all(dims) else ()

    @property
    def samples(self) -> int:
        """The samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of all shards by part."""
        total: dict[str, int] = {}
        for shard in self.shards:
            for part, count in shard.parts.items():
                total[part] = total.get(part, 0) + count
        return dict(sorted(total.items()))

    def add(self, shards: Iterable[ShardStats]) -> None:
        """Take `shards` in, with their columns and dtypes."""
        for shard in shards:
            self.shards.append(shard)
            self.columns = sorted({*self.columns, *shard.columns})
            self.dtypes = sorted({*self.dtypes, *filter(None, shard.dtype.split("+"))})


def write_index(folder: str, index: Index) -> None:
    """Write `index.json` into `folder`, whole.

    Raises:
        StorageError: the place cannot be written to.
    """
    text = json.dumps(asdict(index), ensure_ascii=False, indent=1, allow_nan=False)
    storage.write_bytes(storage.join(folder, NAME), text.encode() + b"\n")


def read_index(folder: str, *, others: bool = True) -> Index | None:
    """Return the index of `folder`, or None if it has none.

    Args:
        folder: local, or of an object store.
        others: whether an `index.json` that is none of ours, with neither version nor shards,
            is an error too.

    Raises:
        DataError: it is damaged, or of a later version.
        StorageError: the folder cannot be reached.
    """
    path = storage.join(folder, NAME)
    if not storage.exists(path):
        return None
    data = _json(path)
    if not others and "version" not in data and "shards" not in data:
        return None
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise DataError(f"{path}: no version; it is not an index of shards, or is damaged")
    if version > VERSION:
        raise DataError(
            f"{path} is of version {version}, this pocketclip knows {VERSION}; upgrade pocketclip"
        )
    try:
        _check_types(data)
        return Index(**{**data, "shards": [ShardStats(**shard) for shard in data["shards"]]})
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is damaged ({reason}); restore it, or `pocketclip audit --repair` a copy "
            "of the folder without it"
        ) from error


def describe(folder: str) -> Index | None:
    """Return the index of `folder`, or what its published `config.json` says, or None.

    Raises:
        DataError: either is damaged.
    """
    index = read_index(folder, others=False)
    if index is not None:
        return index
    path = storage.join(folder, PUBLISHED_NAME)
    return _published(path) if storage.exists(path) else None


def _published(path: str) -> Index:
    data = _json(path)
    inner = data.get("reinforce", data)
    augmentation = inner.get("image_augmentation") if isinstance(inner, dict) else None
    if augmentation is None and "random_resized_crop" in data:
        augmentation = data  # the generator writes the bare augmentation
    names = str(data.get("model_name", "")).split(",")
    dims = data.get("teacher_dimension") or []
    scales = data.get("teacher_logit_scale") or []
    good = isinstance(dims, list) and all(type(d) is int for d in dims) and isinstance(scales, list)
    if not good or not isinstance(augmentation, (dict, type(None))):
        raise DataError(f"{path}: not the configuration of a reinforced set")
    teachers = [
        {
            "name": names[k] if k < len(names) else "",
            "embed_dim": dims[k] if dims[k] > 0 else None,
            "logit_scale": scales[k] if k < len(scales) else None,
            "space_id": None,
        }
        for k in range(len(dims))
    ]
    return Index(teachers=teachers, augmentation=augmentation)


def _json(path: str) -> dict[str, Any]:
    try:
        data = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} is damaged: JSON of a {type(data).__name__}, not of an object")
    return data


_KINDS: dict[str, tuple[type, ...]] = {
    "columns": (list,),
    "dtypes": (list,),
    "teachers": (list,),
    "captioners": (list,),
    "augmentation": (dict, type(None)),
    "shards": (list,),
    "config_hash": (str, type(None)),
}


def _check_types(data: dict[str, Any]) -> None:
    unknown = set(data) - {f.name for f in fields(Index)}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]}")
    for key, kinds in _KINDS.items():
        if not isinstance(data.get(key), kinds):
            raise ValueError(f"{key} is missing or of a wrong type")
    for teacher in data["teachers"] + data["captioners"] + data["shards"]:
        if not isinstance(teacher, dict):
            raise ValueError("an entry is not an object")
    for shard in data["shards"]:
        name = shard.get("name")
        if not isinstance(name, str) or not name or "/" in name or "\\" in name:
            raise ValueError(f"{name!r} is not the name of a shard")
        numbers = (shard.get("samples", 0), shard.get("bytes", 0))
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"the counts of {name} are no numbers")
        if not isinstance(shard.get("parts", {}), dict):
            raise ValueError(f"the parts of {name} are no object")
