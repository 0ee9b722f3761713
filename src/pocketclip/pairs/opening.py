"""Opens pairs: chooses the reader for each path that the user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.pairs.base import PairOptions, PairShard, clean_uid
from pocketclip.pairs.folders import open_folder
from pocketclip.pairs.parquet import open_parquet
from pocketclip.pairs.records import SUFFIXES as _LINES
from pocketclip.pairs.records import open_records
from pocketclip.pairs.stored_captions import check_wanted
from pocketclip.pairs.tables import open_table
from pocketclip.pairs.tars import open_tar
from pocketclip.pairs.tfrecords import open_tfrecord

_AT_ONCE = 16
_LOOKED_AT = 8
_TARS = (".tar", ".tar.gz", ".tgz")
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_RECORDS = re.compile(r"\.tfrecords?(\.gz)?(-\d+-of-\d+)?$", re.IGNORECASE)


def open_pairs(source: str | Sequence[str], options: PairOptions | None = None) -> list[PairShard]:
    """Return the shards of one or several paths or patterns, in order.

    - `.csv`, `.tsv`, `.jsonl`, `.parquet`: tables; `PairOptions` name the columns.
    - `.tar`, `.tar.gz`: webdataset tars. `.tfrecord`: files of `tf.train.Example`.
    - `.jsonl.gz`, `.jsonl.zst`: shards in jsonl, as `pocketclip reinforce` writes them.
    - A folder: its tars, else its tfrecords, else its jsonl shards, else its parquet files, else
      its images with texts of the same name (`x.jpg`, `x.txt`), recursively. If a folder `00000`
      is next to `00000.parquet`, as img2dataset writes them, the folder's images are read.
    - `{00000..00012}`, `*`, and `.json` lists of paths: see `storage.expand`.

    A single table or folder gives numbered shards, several inputs shards named after their files.
    Rows without a uid get `00000042` or `NAME_00000042` accordingly.

    Args:
        source: the paths or patterns, local or in object stores.
        options: how pairs are read; the defaults guess columns.

    Raises:
        ConfigError, DataError: the options do not fit the input, it has no pairs, or it is a
            materialised set.
        MissingDependencyError: an optional package is needed.
        StorageError: a file is missing or a store cannot be reached.
    """
    options = options or PairOptions()
    check_wanted(options.captions_from)
    sources = (source,) if isinstance(source, str) else tuple(source)
    paths = [file for each in sources for path in storage.expand(each) for file in _inside(path)]
    if not paths:
        raise DataError("no input given; name a table, a folder or tars")
    _refuse_views(paths)
    names, several = _unique_names(paths), len(paths) > 1
    if not several or not any(map(storage.is_remote, paths)):
        opened = (_open(*each, several, options) for each in zip(paths, names, strict=True))
        return list(chain.from_iterable(opened))
    # Each request to a store takes a while.
    tars = [path for path in paths if path.lower().endswith(_TARS)]
    sizes = dict(zip(tars, storage.sizes_of(tars), strict=True))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tasks = [
            pool.submit(_open, path, name, several, options, sizes.get(path))
            for path, name in zip(paths, names, strict=True)
        ]
        try:
            return [shard for task in tasks for shard in task.result()]
        finally:
            pool.shutdown(cancel_futures=True)


def is_pairs(path: str) -> bool:
    """Return whether a path names tables, tars, records or a list of them, not photographs."""
    lowered = path.lower()
    if lowered.endswith((*_TARS, *_LINES, *_TABLES, ".parquet", ".json")) or _RECORDS.search(path):
        return True
    return storage.is_folder(path) and _inside(path) != [path]


def _inside(path: str) -> list[str]:
    """Return the tars, tfrecords or tables in a folder, else the path itself."""
    if path.lower().endswith((*_TARS, *_LINES, *_TABLES, ".parquet")) or not storage.is_folder(
        path
    ):
        return [path]
    files = storage.list_files(path)
    for kind in (_TARS, None, _LINES, (".parquet",)):
        if kind is None:
            matching = [file for file in files if _RECORDS.search(file)]
        else:
            matching = [file for file in files if file.lower().endswith(kind)]
        if matching and not (kind == (".parquet",) and _is_downloaded(path, matching)):
            return matching
    return [path]


def _is_downloaded(path: str, tables: list[str]) -> bool:
    """Return whether a folder is next to a table of the same name.

    img2dataset writes `00000.parquet` with the URLs next to `00000` with images and texts.
    """
    names = {_stem(re.split(r"[/\\]", table)[-1]) for table in tables[:_LOOKED_AT]}
    return any(storage.is_folder(storage.join(path, name)) for name in sorted(names))


def _refuse_views(paths: Sequence[str]) -> None:
    """Refuse the tars of a materialised set, which hold views in place of images."""
    tars = [path.replace("\\", "/") for path in paths if path.lower().endswith(".tar")]
    if not tars:
        return
    from pocketclip.shards.index import refuse_materialised  # slow to import

    for folder in dict.fromkeys(path.rpartition("/")[0] or "." for path in tars):
        refuse_materialised(folder, "reading pairs")


def _open(
    path: str, name: str, several: bool, options: PairOptions, size: int | None = None
) -> Sequence[PairShard]:
    """Return the shards of a path; `size` is that of a tar in bytes, if it is known already."""
    lowered = path.lower()
    if lowered.endswith(_TARS):
        return open_tar(path, name, options, size)
    if _RECORDS.search(path):
        return open_tfrecord(path, name, options, several=several)
    if lowered.endswith(_LINES):
        return open_records(path, name, options)
    if lowered.endswith(_TABLES):
        return open_table(path, name if several else None, options)
    if lowered.endswith(".parquet"):
        return open_parquet(path, name if several else None, options)
    if storage.is_folder(path):
        return open_folder(path, name if several else None, options)
    storage.size(path)  # a missing file gets a better message
    raise DataError(
        f"{path}: unknown format of pairs; give .csv, .tsv, .jsonl, .parquet, .tar, .tfrecord, "
        "a folder, or a .json list of them"
    )


def _unique_names(paths: list[str]) -> list[str]:
    """Return a name per path: the file's, with as many of its folders as make it unique.

    Raises:
        DataError: a path is given twice, or two paths differ only in characters that names lack.
    """
    split = [re.split(r"[/\\]+", path.rstrip("/\\")) for path in paths]
    for depth in range(1, max(map(len, split)) + 1):
        names = [clean_uid("_".join([*parts[-depth:-1], _stem(parts[-1])])) for parts in split]
        if len(set(names)) == len(names):
            return names
    first: dict[str, str] = {}
    for path, name in zip(paths, names, strict=True):
        if name in first:
            raise DataError(
                f"{path}: its shards would have the same names as those of {first[name]}; "
                "give each path once, or rename one"
            )
        first[name] = path
    return names


def _stem(file: str) -> str:
    stem = _RECORDS.sub(r"\2", file)
    for suffix in (*_TARS, *_LINES, *_TABLES, ".parquet"):
        if stem.lower().endswith(suffix):
            return stem[: -len(suffix)]
    return stem
