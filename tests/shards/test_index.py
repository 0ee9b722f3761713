from __future__ import annotations

import json

import pytest

from pocketclip.shards import Index, describe, read_index, write_index
from tests.shards.making import CONFIG, TEACHERS, failure, sample, write


def full(tmp_path):
    index = Index(
        teachers=TEACHERS,
        captioners=[{"key": "syn_text", "name": "coca-tiny"}],
        augmentation=CONFIG,
        config_hash="abc",
    )
    index.add([write(tmp_path / f"{i}.tar", [sample(i)], dtype="int8") for i in range(2)])
    return index


def test_round_trip(tmp_path):
    index = full(tmp_path)
    write_index(str(tmp_path), index)
    assert read_index(str(tmp_path)) == index == describe(str(tmp_path))
    assert index.teacher_dims == (8, 4)
    assert index.samples == 2
    assert index.dtypes == ["int8"]
    assert "image_emb" in index.columns
    assert sum(index.parts.values()) == sum(shard.bytes for shard in index.shards)
    data = json.loads((tmp_path / "index.json").read_text())
    assert data["version"] == 1
    assert set(data["shards"][0]) >= {"name", "samples", "bytes", "sha256", "parts"}
    assert set(data["teachers"][0]) == {"name", "embed_dim", "logit_scale", "space_id"}


def test_no_index(tmp_path):
    assert read_index(str(tmp_path)) is None
    assert describe(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "is of version 2, this pocketclip knows 1; upgrade"),
        ({"version": None}, "no version"),
        ({"version": True}, "no version"),
        ({"surprise": 1}, "unknown key surprise"),
        ({"shards": None}, "shards is missing or of a wrong type"),
        ({"shards": [{"nme": "x"}]}, "is not the name of a shard"),
        ({"shards": [{"name": "../x.tar"}]}, "is not the name of a shard"),
        ({"shards": [{"name": "x.tar", "samples": -1}]}, "the counts of x.tar"),
        ({"shards": [{"name": "x.tar", "other": 1}]}, "other"),
        ({"teachers": ["x"]}, "an entry is not an object"),
        ({"augmentation": []}, "augmentation is missing or of a wrong type"),
    ],
)
def test_damage(tmp_path, change, reason):
    write_index(str(tmp_path), full(tmp_path))
    path = tmp_path / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = failure(read_index, str(tmp_path))
    assert reason in message
    assert "index.json" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"x"'])
def test_not_even_json(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    assert "index.json is damaged" in failure(read_index, str(tmp_path))


def test_a_published_configuration(tmp_path):
    config = {
        "model_name": "ViT-L-14,ViT-L-14-39B",
        "teacher_dimension": [768, 768],
        "teacher_logit_scale": [100.0, 90.0],
        "reinforce": {"image_augmentation": CONFIG},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = describe(str(tmp_path))
    assert index.augmentation == CONFIG
    assert index.teacher_dims == (768, 768)
    assert index.teachers[1] == {
        "name": "ViT-L-14-39B",
        "embed_dim": 768,
        "logit_scale": 90.0,
        "space_id": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))  # as the generator leaves it
    assert describe(str(tmp_path)).augmentation == CONFIG
    (tmp_path / "config.json").write_text('{"teacher_dimension": "768"}')
    assert "config.json: not the configuration" in failure(describe, str(tmp_path))
