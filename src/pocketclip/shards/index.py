"""`index.json`: the description of a folder of shards, and of how it was made.

    index = read_index("out")
    index.teacher_dims, index.shards[0].sha256

Published sets have a `config.json` with less in it instead; `describe` reads either.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as attribute
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError, ParseError
from pocketclip.formats.fields import field, items, typed
from pocketclip.formats.json_text import load_json
from pocketclip.shards.published import published_facts
from pocketclip.shards.writer import ShardStats

VERSION = 1
MATERIALISED_VERSION = 2
"""Of the index of a materialised set, so that a reader that does not know its views refuses it."""
NAME = "index.json"
PUBLISHED_NAME = "config.json"
_MAX_BYTES = 192 << 20  # enough for some 400,000 shards
_MAX_MEMORY = 2 << 30  # estimated from the text; in fact a third of it
_SHARD_FIELDS = dict.fromkeys(one.name for one in fields(ShardStats))
_MAX_WIDTH = 1 << 20
_MAX_SIDE = 1 << 16
_MAX_COUNT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Materialised:
    """How the views of a materialised set were made."""

    size: int
    """The side of each view, in pixels."""
    encoding: str
    """`jpeg`, or `webp` (lossless)."""
    quality: int | None = None
    """JPEG's, from 1 to 100; None for lossless views."""
    views: int | None = None
    """The most views per sample; None: all that were stored."""
    source: str = ""
    """A hash that identifies the samples of the set that the views were made of."""


@dataclass(slots=True, kw_only=True)
class Index:
    """The description of a folder of shards."""

    version: int = VERSION
    columns: list[str] = attribute(default_factory=list)
    """The columns of any sample: `image`, keys of captions and embeddings, `param_aug`, ..."""
    dtypes: list[str] = attribute(default_factory=list)
    """Stored dtypes of embeddings; one, unless shards of several jobs were combined."""
    teachers: list[dict[str, Any]] = attribute(default_factory=list)
    """In the order of their embeddings: `name`, `embed_dim`, `logit_scale`, `space_id`."""
    captioners: list[dict[str, Any]] = attribute(default_factory=list)
    """`key` of their captions, `name`, and other facts that identify them."""
    augmentation: dict[str, Any] | None = None
    """The configuration of the augmentation, see `pocketclip.augment`."""
    materialised: Materialised | None = None
    """Of a set of rendered views, see `pocketclip.train.materialise`; None for any other set."""
    shards: list[ShardStats] = attribute(default_factory=list)
    config_hash: str | None = None
    """Hash of everything that decides the samples; a job resumes only if it is equal."""

    @property
    def teacher_dims(self) -> tuple[int, ...]:
        """The width of each teacher's embeddings; empty if one is unknown."""
        dims = [teacher.get("embed_dim") for teacher in self.teachers]
        return tuple(d for d in dims if d) if all(dims) else ()

    @property
    def is_captions_only(self) -> bool:
        """Whether its samples have captions, but no embeddings, as a run without teachers does."""
        has_embeddings = any(name.endswith("_emb") for name in self.columns)
        return bool(self.columns) and not self.teachers and not has_embeddings

    @property
    def samples(self) -> int:
        """The number of samples of all shards."""
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
        """Add `shards`, with their columns and dtypes."""
        for shard in shards:
            self.shards.append(shard)
            self.columns = sorted({*self.columns, *shard.columns})
            self.dtypes = sorted({*self.dtypes, *filter(None, shard.dtype.split("+"))})


def how_to_embed(folder: str) -> str:
    """Return the command that stores teachers' embeddings of a set of captions alone."""
    return (
        f"pocketclip reinforce {shlex.quote(folder)} --captions-from 'syn_text*' --teacher MODEL "
        "--out DIR"
    )


def refuse_materialised(folder: str, why: str) -> None:
    """Refuse a folder of rendered views where the images themselves are needed.

    Args:
        folder: any folder; one without an index that can be read passes.
        why: what needs the images, such as `captioning`.

    Raises:
        DataError: the folder is a materialised set.
        StorageError: it cannot be reached.
    """
    try:
        index = read_index(folder, others=False)
    except DataError:
        return  # whoever needs the index says what is wrong with it
    if index is not None and index.materialised is not None:
        raise DataError(
            f"{folder} holds rendered views of {index.materialised.size} pixels in place of its "
            f"images, which {why} needs: give the set that it was made of"
        )


def write_index(folder: str, index: Index) -> None:
    """Write `index.json` into `folder`, whole or not at all.

    Raises:
        StorageError: the folder cannot be written to.
    """
    with storage.write_whole(storage.join(folder, NAME)) as local, local.open("wb") as out:
        for part in _text_of(index):
            out.write(part.encode("utf-8", "backslashreplace"))


def _text_of(index: Index) -> Iterator[str]:
    """Yield the parts of the JSON text: indented, but each shard on one line.

    Python's encoder is ten times slower with indentation, which counts with 100,000 shards.
    """
    dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    about = asdict(replace(index, shards=[]))
    if index.materialised is None:
        del about["materialised"]
    else:
        about["version"] = MATERIALISED_VERSION
    for position, (key, value) in enumerate(about.items()):
        yield f'{"," if position else "{"}\n "{key}": '
        if key != "shards":
            indented = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
            yield indented.replace("\n", "\n ")
            continue
        yield "["
        for number, shard in enumerate(index.shards):
            facts = {name: getattr(shard, name) for name in _SHARD_FIELDS}
            yield f"{',' if number else ''}\n  {dump(facts)}"
        yield "\n ]" if index.shards else "]"
    yield "\n}\n"


def read_index(folder: str, *, others: bool = True) -> Index | None:
    """Return the index of `folder`, or None if it has none.

    Args:
        folder: a local folder, or one of an object store.
        others: whether an `index.json` of another program, with neither version nor shards, is an
            error; otherwise it counts as none.

    Raises:
        DataError: the index is damaged, or of a later version.
        StorageError: the folder cannot be reached.
    """
    path = storage.join(folder, NAME)
    if not storage.exists(path):
        return None
    data = _json(path)
    if not others and "version" not in data and "shards" not in data:
        return None
    missing = [name for name in ("version", "shards") if name not in data]
    if missing:
        raise DataError(
            f'{path} is not an index of shards ("{missing[0]}" is missing): restore the index, or '
            "move this file away"
        )
    try:
        version = field(data, "version", int, what=path)
        if version > MATERIALISED_VERSION:
            raise DataError(
                f"{path} has version {version}, but this pocketclip reads up to version "
                f"{MATERIALISED_VERSION}: upgrade pocketclip"
            )
        return _index_of(data, path)
    except ParseError as error:
        raise DataError(
            f"{error}; the index is damaged: restore it, or `pocketclip audit --repair` a copy "
            "of the folder without it"
        ) from error


def describe(folder: str) -> Index | None:
    """Return the index of `folder`, or one made of its published `config.json`, or None.

    For a published set on the hub that has neither, what is known of it, see `published`.

    Raises:
        DataError: the file is damaged.
    """
    return read_index(folder, others=False) or describe_published(folder)


def describe_published(folder: str) -> Index | None:
    """Return what `describe` does of a folder that has no `index.json`.

    Raises:
        DataError: the file is damaged.
    """
    path = storage.join(folder, PUBLISHED_NAME)
    if storage.exists(path):
        return _published(path)
    known = published_facts(folder)
    return None if known is None else Index(teachers=known[0], augmentation=known[1])


def _index_of(data: dict[str, Any], path: str) -> Index:
    unknown = set(data) - {f.name for f in fields(Index)}
    if unknown:
        raise ParseError(f"{path}: unknown key {sorted(unknown)[0]!r}")
    return Index(
        version=field(data, "version", int, what=path),
        columns=items(data, "columns", str, what=path),
        dtypes=items(data, "dtypes", str, what=path),
        teachers=[
            _teacher_of(teacher, f"{path}: teacher {k}")
            for k, teacher in enumerate(items(data, "teachers", dict, what=path))
        ],
        captioners=[
            _captioner_of(captioner, f"{path}: captioner {k}")
            for k, captioner in enumerate(items(data, "captioners", dict, what=path))
        ],
        augmentation=field(data, "augmentation", dict, what=path, default=None),
        materialised=_materialised_of(data.get("materialised"), f"{path}: materialised"),
        shards=_shards_of(items(data, "shards", dict, what=path), path),
        config_hash=field(data, "config_hash", str, what=path, default=None),
    )


def _teacher_of(data: dict[str, Any], what: str) -> dict[str, Any]:
    field(data, "name", str, what=what, default=None)
    field(data, "space_id", str, what=what, default=None)
    field(data, "logit_scale", float, what=what, default=None)
    width = field(data, "embed_dim", int, what=what, default=None)
    if width is not None and not 0 <= width <= _MAX_WIDTH:
        raise ParseError(f'{what}: "embed_dim" must be from 1 to {_MAX_WIDTH:,}, not {width}')
    return data


def _captioner_of(data: dict[str, Any], what: str) -> dict[str, Any]:
    field(data, "key", str, what=what, default=None)
    field(data, "name", str, what=what, default=None)
    return data


def _materialised_of(data: Any, what: str) -> Materialised | None:
    if data is None:
        return None
    record = typed(data, dict, what=what)
    unknown = set(record) - {f.name for f in fields(Materialised)}
    if unknown:
        raise ParseError(f"{what}: unknown key {sorted(unknown)[0]!r}")
    size = field(record, "size", int, what=what)
    if not 0 < size <= _MAX_SIDE:
        raise ParseError(f'{what}: "size" must be from 1 to {_MAX_SIDE:,} pixels, not {size}')
    return Materialised(
        size=size,
        encoding=field(record, "encoding", str, what=what),
        quality=field(record, "quality", int, what=what, default=None),
        views=field(record, "views", int, what=what, default=None),
        source=field(record, "source", str, what=what, default=""),
    )


def _shards_of(records: list[dict[str, Any]], path: str) -> list[ShardStats]:
    """Return the shards of an index; `records` is emptied, to free its memory on the way."""
    shards: list[ShardStats] = []
    records.reverse()
    while records:
        data = records.pop()
        if not _is_sound(data):
            _check_shard(data, f"{path}: shard {len(shards)}")
        if "columns" in data:  # the same few names in every shard
            data["columns"] = [sys.intern(name) for name in data["columns"]]
        shards.append(ShardStats(**data))
    return shards


def _is_sound(data: dict[str, Any]) -> bool:
    """Return whether a shard has all fields and every one is fine, which is quickly seen.

    `_check_shard` decides about the others, and says what is wrong with them.
    """
    if data.keys() != _SHARD_FIELDS.keys():
        return False
    name, parts, columns = data["name"], data["parts"], data["columns"]
    if not (type(name) is type(data["sha256"]) is type(data["dtype"]) is str):
        return False
    if type(parts) is not dict or type(columns) is not list or not _is_name(name):
        return False
    counts = [data["samples"], data["bytes"], data["dims"], *parts.values()]
    return all(type(count) is int and 0 <= count <= _MAX_COUNT for count in counts) and all(
        type(column) is str for column in columns
    )


def _is_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\\" not in name and name[0] != "."


def _check_shard(data: dict[str, Any], what: str) -> None:
    unknown = data.keys() - _SHARD_FIELDS.keys()
    if unknown:
        raise ParseError(f"{what}: unknown key {sorted(unknown)[0]!r}")
    name = field(data, "name", str, what=what)
    if not _is_name(name):
        raise ParseError(f"{what}: {name!r} is not the name of a shard")
    counts = {
        key: field(data, key, int, what=what, default=0) for key in ("samples", "bytes", "dims")
    }
    parts = field(data, "parts", dict, what=what, default={})
    counts |= {f"parts.{key}": field(parts, key, int, what=f"{what}: parts") for key in parts}
    for key, count in counts.items():
        if not 0 <= count <= _MAX_COUNT:
            raise ParseError(f'{what}: "{key}" must be a count, not {count}')
    for key in ("sha256", "dtype"):
        field(data, key, str, what=what, default="")
    if "columns" in data:
        items(data, "columns", str, what=what)


def _published(path: str) -> Index:
    data = _json(path)
    inner = data.get("reinforce", data)
    augmentation = inner.get("image_augmentation") if isinstance(inner, dict) else None
    if augmentation is None and "random_resized_crop" in data:
        augmentation = data  # the generator writes the augmentation alone
    names = _published_names(data)
    try:
        dims = [typed(width, int, what="a width") for width in _list(data, "teacher_dimension")]
        scales = [
            None if scale is None else typed(scale, float, what="a scale")
            for scale in _list(data, "teacher_logit_scale")
        ]
        if augmentation is not None:
            typed(augmentation, dict, what="its augmentation")
    except ParseError as error:
        raise DataError(f"{path}: not the configuration of a reinforced set: {error}") from error
    if any(abs(width) > _MAX_WIDTH for width in dims):
        raise DataError(f"{path}: a teacher's width exceeds {_MAX_WIDTH:,}")
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


def _published_names(data: dict[str, Any]) -> list[str]:
    """Return the teachers' names: hub ids, or `NAME/TAG` with the tag of their weights.

    A name alone is one of open_clip's architectures, of which there are several weights.
    """
    tags = str(data.get("pretrained", "")).split(",")
    names = []
    for k, name in enumerate(str(data.get("model_name", "")).split(",")):
        tag = tags[k].strip() if k < len(tags) else ""
        if name and "/" not in name:
            name = f"{name}/{tag}" if tag and tag != "N/A" else f"open_clip:{name}"
        names.append(name)
    return names


def _list(data: dict[str, Any], key: str) -> list[Any]:
    return typed(data.get(key) or [], list, what=key)


def _json(path: str) -> dict[str, Any]:
    try:
        data = load_json(
            storage.read_bytes(path), what="it", max_bytes=_MAX_BYTES, max_memory=_MAX_MEMORY,
            surrogates=True,  # names of files may hold them
        )  # fmt: skip
        return typed(data, dict, what="it")
    except ParseError as error:
        raise DataError(f"{path} is damaged: {error}") from error
