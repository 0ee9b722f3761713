"""Find an evaluation set by its task's name and open it, whatever its format.

    for example in find(find_task("cifar10"), "s3://bucket/sets"):
        example.image, example.label

A set is read one example at a time, and each iteration starts anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from pocketclip import storage
from pocketclip.evaluate.datasets.examples import (
    DataOptions,
    Example,
    NoSetError,
    Puzzle,
    TaskData,
)
from pocketclip.evaluate.datasets.folders import open_folders, subfolders
from pocketclip.evaluate.datasets.rows import SUFFIXES
from pocketclip.evaluate.datasets.tables import open_table
from pocketclip.evaluate.datasets.webdataset import open_webdataset
from pocketclip.evaluate.tasks import TASKS, Task
from pocketclip.formats.escaping import escape_surrogates
from pocketclip.shards.index import refuse_materialised

_TABLE_STEMS = ("data",)
# Names of the sets that clip-benchmark publishes.
_OTHER_NAMES = {
    "retrieval/flickr_1k_test_image_text_retrieval": ("wds_flickr30k", "flickr30k"),
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": ("wds_mscoco_captions", "mscoco"),
}


def find(task: Task, root: str, options: DataOptions | None = None) -> TaskData:
    """Return a task's set.

    For the key `vtab/cifar100` and the split `test`, these paths below `root` are tried in turn:
    the folders `wds_vtab-cifar100_test` (DataComp's name), `wds_vtab-cifar100`, `vtab/cifar100`,
    `vtab-cifar100` and `cifar100`, each as a webdataset, a folder with a table (`test` or `data`),
    or folders by class; then the tables `vtab-cifar100` and `cifar100` (.csv, .tsv, .jsonl,
    .json). Last, `root` itself, if the task is the user's own or `root` has one of those names.
    If `root` is a table, it is the set.

    Raises:
        NoSetError: no set was found; the message lists the paths.
        DataError: the set is damaged.
        StorageError: a path cannot be read.
    """
    options = options or DataOptions()
    if root.lower().endswith(SUFFIXES) and _is_file(root):
        return open_table(root, task, options)
    folders, tables = _candidates(task.key, root, options.split)
    for folder in folders:
        data = _open_folder(folder, task, options)
        if data is not None:
            return data
    for table in tables:
        if _is_file(table):
            return open_table(table, task, options)
    name = root.rstrip("/").rpartition("/")[2]
    if task.key not in TASKS or name in {folder.rpartition("/")[2] for folder in folders}:
        data = _open_folder(root, task, options)
        if data is not None:
            return data
        folders.append(root)
    if storage.is_folder(root):
        refuse_materialised(root, "an evaluation")
    notes = [f"{f} exists but holds none of these{_holds(f)}" for f in folders if subfolders(f)]
    raise NoSetError(
        f"no data for {task.key}: looked for {', '.join(folders)} (as a webdataset, a table or "
        f"folders by class, with the split {options.split!r}) and for "
        f"{'; '.join([', '.join(tables), *notes])}"
    )


def own_task(root: str) -> Task:
    """Return the task for the user's own set at `root`.

    It is named after the folder, as on disk (also for `.`), or after the table without its suffix.
    Its key never equals that of a published task: a set called `cifar10` becomes `own/cifar10`.
    """
    if storage.is_remote(root):
        name = root.rstrip("/").rpartition("/")[2]
    else:
        name = Path(os.path.abspath(storage.absolute(root))).name  # noqa: PTH100
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), "")
    if suffix and (storage.is_remote(root) or not storage.is_folder(root)):
        name = name[: -len(suffix)]
    name = escape_surrogates(name) or "data"
    return Task(key=f"own/{name}" if name in TASKS else name, dataset=name)


def _holds(folder: str) -> str:
    names = subfolders(folder)
    return f" (only the folders {', '.join(names[:5])}{', ...' * (len(names) > 5)})"


def _is_file(path: str) -> bool:
    return storage.exists(path) and not storage.is_folder(path)


def _candidates(key: str, root: str, split: str) -> tuple[list[str], list[str]]:
    flat, last = key.replace("/", "-"), key.rpartition("/")[2]
    names = dict.fromkeys(
        [
            *(f"wds_{flat}_{split}", f"wds_{flat}_test", f"wds_{flat}", key, flat, last),
            *_OTHER_NAMES.get(key, ()),
        ]
    )
    stems = dict.fromkeys((flat, last))
    if last.startswith("sugarcrepe_"):  # its own files are named so
        stems[f"sugarcrepe/{last.removeprefix('sugarcrepe_')}"] = None
    folders = [storage.join(root, *name.split("/")) for name in names]
    tables = [storage.join(root, f"{stem}{suffix}") for stem in stems for suffix in SUFFIXES]
    return folders, tables


def _open_folder(folder: str, task: Task, options: DataOptions) -> TaskData | None:
    if not storage.is_remote(folder) and not storage.is_folder(folder):
        return None
    data = open_webdataset(folder, task, options)
    if data is not None:
        return data
    for stem in (options.split, *_TABLE_STEMS):
        for suffix in SUFFIXES:
            table = storage.join(folder, f"{stem}{suffix}")
            if _is_file(table):
                return open_table(table, task, options)
    if task.kind not in (None, "classification"):
        return None
    return open_folders(folder, options)


__all__ = ["DataOptions", "Example", "NoSetError", "Puzzle", "TaskData", "find", "own_task"]
