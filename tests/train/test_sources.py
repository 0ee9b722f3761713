"""Opening many shards: work that grows with their number, and not faster."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

from pocketclip.pairs import PairOptions
from pocketclip.shards import Index, index, read_index, write_index
from pocketclip.storage import paths
from pocketclip.train.sources import open_source
from tests.train.making_shards import AUGMENTATION, TEACHERS, sample, write_shards


def many(folder, count):
    """Write a shard, `count` links of it, and their index."""
    write_shards(folder, [[sample(number) for number in range(3)]])
    (one,) = read_index(str(folder)).shards
    for number in range(1, count):
        os.link(folder / one.name, folder / f"{number:08d}.tar")
    about = Index(teachers=TEACHERS, augmentation=AUGMENTATION.config)
    about.add(replace(one, name=f"{number:08d}.tar") for number in range(count))
    write_index(str(folder), about)


def opened(folder):
    return open_source(str(folder), reinforced=True, options=PairOptions(), cache_dir=None)


def test_a_folder_is_listed_and_its_index_read_once(tmp_path, monkeypatch):
    many(tmp_path, 40)
    calls = []
    real_walk, real_json = paths.walk_files, index._json
    monkeypatch.setattr(
        paths, "walk_files", lambda *a, **k: calls.append("list") or real_walk(*a, **k)
    )
    monkeypatch.setattr(index, "_json", lambda path: calls.append("index") or real_json(path))
    source = opened(tmp_path)
    assert len(source.sizes) == 40
    assert sorted(calls) == ["index", "list"]
    assert source.read(39, 2).captions == source.read(0, 2).captions
    source.close()


def test_a_worker_process_gets_no_index_of_shards(tmp_path):
    many(tmp_path, 400)
    source = opened(tmp_path)
    assert source.index.shards == []
    assert source.index.teachers == TEACHERS
    per_shard = len(pickle.dumps(source)) / 400
    assert per_shard < 40 + len(source.paths[0])
    assert pickle.loads(pickle.dumps(source)).read(7, 1).uid == source.read(7, 1).uid
    source.close()
