from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

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


def test_an_index_with_indented_shards_is_read(tmp_path):
    index = full(tmp_path)
    (tmp_path / "index.json").write_text(
        json.dumps(asdict(index), indent=1)
    )  # as it was written before
    assert read_index(str(tmp_path)) == index


def test_each_shard_is_one_line_of_the_index(tmp_path):
    index = full(tmp_path)
    index.shards = [replace(index.shards[0], name=f"{n:08d}.tar") for n in range(3)]
    write_index(str(tmp_path), index)
    lines = (tmp_path / "index.json").read_text().splitlines()
    assert [json.loads(x.strip(",\n "))["name"] for x in lines if '"sha256"' in x] == [
        "00000000.tar", "00000001.tar", "00000002.tar",
    ]  # fmt: skip
    assert read_index(str(tmp_path)) == index
    index.shards = []
    write_index(str(tmp_path), index)
    assert read_index(str(tmp_path)) == index


def test_the_limits_have_room_for_100_000_shards(tmp_path, monkeypatch):
    index = full(tmp_path)
    columns = [f"syn_text_{n}_emb" for n in range(16)]
    index.shards = [replace(index.shards[0], columns=columns)] * 1000
    monkeypatch.setattr("pocketclip.shards.index._MAX_BYTES", (192 << 20) // 100)
    monkeypatch.setattr("pocketclip.shards.index._MAX_MEMORY", (2 << 30) // 100)
    write_index(str(tmp_path), index)
    assert read_index(str(tmp_path)) == index


def test_names_that_are_not_utf_8_come_back(tmp_path):
    index = Index(teachers=[{"name": os.fsdecode(b"caf\xe9"), "space_id": "space-1"}])
    write_index(str(tmp_path), index)
    assert read_index(str(tmp_path)) == index


def test_no_index(tmp_path):
    assert read_index(str(tmp_path)) is None
    assert describe(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 3}, "has version 3, but this pocketclip reads up to version 2: upgrade"),
        ({"materialised": 7}, "should be an object"),
        ({"materialised": {"encoding": "jpeg"}}, '"size" is missing'),
        ({"materialised": {"size": 0, "encoding": "jpeg"}}, "from 1 to 65,536 pixels"),
        ({"materialised": {"size": 8, "encoding": "jpeg", "x": 1}}, "unknown key 'x'"),
        ({"version": None}, '"version" should be a whole number, not null'),
        ({"version": True}, '"version" should be a whole number, not true'),
        ({"version": 1.5}, '"version" should be a whole number'),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"shards": None}, '"shards" should be a list, not null'),
        ({"shards": 3}, '"shards" should be a list, not the number 3'),
        ({"shards": {}}, '"shards" should be a list, not an object'),
        ({"shards": [3]}, '"shards"[0] should be an object, not the number 3'),
        ({"shards": [{"nme": "x"}]}, "unknown key 'nme'"),
        ({"shards": [{}]}, 'shard 0: "name" is missing'),
        ({"shards": [{"name": 3}]}, 'shard 0: "name" should be text, not the number 3'),
        ({"shards": [{"name": "../x.tar"}]}, "is not the name of a shard"),
        ({"shards": [{"name": ".."}]}, "is not the name of a shard"),
        ({"shards": [{"name": "x.tar", "samples": -1}]}, '"samples" must be a count, not -1'),
        ({"shards": [{"name": "x.tar", "samples": 10**30}]}, "must be a count"),
        ({"shards": [{"name": "x.tar", "samples": "3"}]}, '"samples" should be a whole number'),
        ({"shards": [{"name": "x.tar", "bytes": None}]}, '"bytes" should be a whole number'),
        ({"shards": [{"name": "x.tar", "parts": []}]}, '"parts" should be an object'),
        ({"shards": [{"name": "x.tar", "parts": {"a": "b"}}]}, '"a" should be a whole number'),
        ({"shards": [{"name": "x.tar", "columns": "image"}]}, '"columns" should be a list'),
        ({"shards": [{"name": "x.tar", "columns": [1]}]}, '"columns"[0] should be text'),
        ({"shards": [{"name": "x.tar", "dtype": 8}]}, '"dtype" should be text'),
        ({"shards": [{"name": "x.tar", "sha256": []}]}, '"sha256" should be text'),
        ({"shards": [{"name": "x.tar", "dims": "8"}]}, '"dims" should be a whole number'),
        ({"shards": [{"name": "x.tar", "other": 1}]}, "other"),
        ({"teachers": ["x"]}, '"teachers"[0] should be an object'),
        ({"teachers": [{"embed_dim": "8"}]}, 'teacher 0: "embed_dim" should be a whole number'),
        ({"teachers": [{"embed_dim": -8}]}, '"embed_dim" must be from 1 to 1,048,576, not -8'),
        ({"teachers": [{"embed_dim": 10**12}]}, "not 1000000000000"),
        ({"teachers": [{"logit_scale": []}]}, '"logit_scale" should be a number, not a list'),
        ({"captioners": [{"key": 1}]}, 'captioner 0: "key" should be text'),
        ({"columns": [1]}, '"columns"[0] should be text'),
        ({"columns": {"a": 1}}, '"columns" should be a list, not an object'),
        ({"dtypes": [[]]}, '"dtypes"[0] should be text, not a list'),
        ({"augmentation": []}, '"augmentation" should be an object, not a list'),
        ({"config_hash": 7}, '"config_hash" should be text'),
    ],
)
def test_damage(tmp_path, change, reason):
    write_index(str(tmp_path), full(tmp_path))
    path = tmp_path / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = failure(read_index, str(tmp_path))
    assert reason in message
    assert "index.json" in message


@pytest.mark.parametrize(
    "change",
    [
        *({"teacher_dimension": v} for v in (3, "x", {"a": 1}, ["a"], [[1]], [1.5], [True])),
        {"teacher_dimension": [2**70]},
        *({"teacher_logit_scale": v} for v in (3, "x", ["a"], [[1]], [True], [10**400])),
        {"reinforce": {"image_augmentation": []}},
    ],
)
def test_fields_of_other_types_in_published_configurations(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(change))
    message = failure(describe, str(tmp_path))
    assert "config.json" in message
    assert "\n" not in message


HOSTILE = ['{"a": 1, "a": 2}', '{"version": NaN}', '{"version": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"x"', *HOSTILE])
def test_not_even_json(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    assert "index.json is damaged" in failure(read_index, str(tmp_path))


def test_a_published_configuration(tmp_path):
    config = {
        "model_name": "hf-hub:apple/DFN2B-CLIP-ViT-L-14,ViT-L-14-39B",
        "pretrained": "N/A,dfn2b_s39b",
        "teacher_dimension": [768, 768],
        "teacher_logit_scale": [100.0, 90.0],
        "reinforce": {"image_augmentation": CONFIG},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = describe(str(tmp_path))
    assert index.augmentation == CONFIG
    assert index.teacher_dims == (768, 768)
    assert index.teachers[0]["name"] == "hf-hub:apple/DFN2B-CLIP-ViT-L-14"
    assert index.teachers[1] == {
        "name": "ViT-L-14-39B/dfn2b_s39b",
        "embed_dim": 768,
        "logit_scale": 90.0,
        "space_id": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))  # as the generator leaves it
    assert describe(str(tmp_path)).augmentation == CONFIG
    (tmp_path / "config.json").write_text('{"teacher_dimension": "768"}')
    assert "config.json: not the configuration" in failure(describe, str(tmp_path))
