from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketclip import shards
from pocketclip.errors import DataError
from pocketclip.shards import JsonlWriter, ShardWriter
from pocketclip.shards.layout import image_key
from pocketclip.types import Sample
from tests.shards.making import GOLDEN, failure, photo, same, sample, write


def names(path):
    with tarfile.open(path) as archive:
        return archive.getnames()


@pytest.mark.parametrize("dtype", shards.DTYPES)
@pytest.mark.parametrize("source", ["v1_bfloat16.tar", "v2_float32.tar"])
def test_what_was_published_comes_back(tmp_path, dtype, source):
    published = list(shards.read(GOLDEN / source))
    stats = write(tmp_path / "a.tar", published, dtype=dtype, teacher_dims=(768, 768))
    tolerance = {"float32": 0, "float16": 1e-4, "bfloat16": 1e-3, "int8": 1e-3, "int6": 8e-3}[dtype]
    for a, b in zip(published, shards.read(tmp_path / "a.tar"), strict=True):
        assert same(a, b, 0 if "bfloat16" in source and dtype == "bfloat16" else tolerance)
    assert (stats.samples, stats.dtype, stats.dims) == (4, dtype, 1536)


def test_the_published_keys(tmp_path):
    write(tmp_path / "a.tar", [sample(5)], dtype="bfloat16")
    keys = ["jpg", "json", "paug.json", "pth.gz", "syn.json", "txt", "url.txt"]
    assert names(tmp_path / "a.tar") == [f"00000005.{key}" for key in keys]
    png = replace(sample(6), image=photo(kind="PNG"))
    write(tmp_path / "a.tar", [png], dtype="int8", images=True)
    assert names(tmp_path / "a.tar")[0] == "00000006.png"
    assert "00000006.npz" in names(tmp_path / "a.tar")
    write(tmp_path / "a.tar", [png], images=False)
    assert not any(name.endswith("png") for name in names(tmp_path / "a.tar"))


def published_reader(path, rng):
    """Read a shard as the published training code does: members to objects, then these accesses."""
    with tarfile.open(path) as archive:
        loaded = {}
        for member in archive:
            uid, key = member.name.split(".", 1)
            data = archive.extractfile(member).read()
            if key.endswith("json"):
                value = json.loads(data)
            elif key == "npz":
                value = np.load(io.BytesIO(data))
            elif key == "pth.gz":
                value = torch.load(gzip.GzipFile(fileobj=io.BytesIO(data)), weights_only=True)
            else:
                value = data
            loaded.setdefault(uid, {})[key] = value
    for uid, one in loaded.items():
        k = rng.randrange(len(one["paug.json"]["param_aug"]))
        params = one["paug.json"]["param_aug"][k]
        key = rng.choice([key for key in one["syn.json"] if key.startswith("syn_text")])
        i = rng.randrange(len(one["syn.json"][key]))
        embeddings = one["npz"] if "npz" in one else one["pth.gz"]
        text_all = embeddings["text_emb"]
        # More rows than captions means that the synthetic captions' rows follow.
        shared = len(text_all) > 1
        synthetic = text_all[1 + i] if shared else embeddings[f"{key}_emb"][i]
        arrays = (embeddings["image_emb"][k], text_all[0], synthetic)
        floats = [torch.as_tensor(array).float().numpy() for array in arrays]
        yield uid, one["txt"].decode(), k, params, key, i, one["syn.json"][key][i], floats


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["named", "v1"])
def test_the_published_training_reader_reads_it(tmp_path, dtype, layout):
    samples = {f"{i:08d}": sample(i, captions=2 + i % 3) for i in range(20)}
    if layout == "named":
        for one in samples.values():  # what has no place in the published form must not confuse it
            one.captions["text"].append("another ground truth")
            one.embeddings["text_emb"] = np.concatenate([one.embeddings["text_emb"]] * 2)
    write(tmp_path / "a.tar", samples.values(), dtype=dtype, layout=layout)
    seen = list(published_reader(tmp_path / "a.tar", random.Random(0)))
    assert len(seen) == 20
    for uid, text, k, params, key, i, synthetic, (image_row, text_row, synthetic_row) in seen:
        one = samples[uid]
        assert text == one.captions["text"][0]
        assert params == one.param_aug[k]
        assert synthetic == one.captions[key][i]
        for row, array, position in (
            (image_row, one.embeddings["image_emb"], k),
            (text_row, one.embeddings["text_emb"], 0),
            (synthetic_row, one.embeddings[f"{key}_emb"], i),
        ):
            assert np.abs(row - array[position]).max() < 4e-3
    for a, b in zip(shards.read(tmp_path / "a.tar"), samples.values(), strict=True):
        assert same(a, b, 4e-3)


SCRIPT = """
import sys
from tests.shards.making import sample, write
for dtype in ("float32", "bfloat16", "int8", "int6"):
    write(sys.argv[1] + "/" + dtype + ".tar", [sample(i) for i in range(3)], dtype=dtype)
"""


def test_the_same_bytes_at_any_time_for_anyone(tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "1", "USER": "another", "TZ": "UTC+3"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, env=environment)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 4
    for path in paths:
        write(tmp_path / "here.tar", [sample(i) for i in range(3)], dtype=path.stem)
        assert path.read_bytes() == (tmp_path / "here.tar").read_bytes()


def test_statistics(tmp_path):
    stats = write(tmp_path / "a.tar", [sample(i) for i in range(3)], dtype="int8")
    data = (tmp_path / "a.tar").read_bytes()
    assert stats.bytes == len(data) == sum(stats.parts.values())
    assert stats.sha256 == hashlib.sha256(data).hexdigest()
    assert set(stats.parts) == {"image", "captions", "augmentations", "embeddings", "meta", "tar"}
    assert stats.parts["image"] == sum(len(sample(i).image) for i in range(3))
    assert stats.columns == sorted(
        {"image", "text", "syn_text", "param_aug", "url", "meta"}
        | {"image_emb", "text_emb", "syn_text_emb"}
    )


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(b"what was there")

    def run():
        with ShardWriter(str(path), dtype="float32") as writer:
            writer.write(sample(0))
            raise kind

    with pytest.raises(kind):
        run()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
    assert path.read_bytes() == b"what was there"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    monkeypatch.setattr("pocketclip.shards.writer.ending", _full)
    with pytest.raises(Exception, match="the disk is full"):
        write(path, [sample(0)])
    assert list(tmp_path.iterdir()) == []


def _full(_size):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def changed(number=1, **changes):
    return replace(sample(number), **changes)


def with_embedding(key, array, number=1):
    one = sample(number)
    one.embeddings[key] = np.asarray(array, np.float32)
    return one


BAD = [
    (sample(0), "another sample has this uid"),
    (changed(uid="a.b"), "a dot, a slash"),
    (changed(uid="a/b"), "a dot, a slash"),
    (changed(uid=""), "the uid '' is empty"),
    (changed(uid="a\nb"), "a character that cannot be printed"),
    (changed(uid="x" * 201), "longer than 200"),
    (changed(image=b""), "the image is empty"),
    (changed(param_aug=[[]]), "image_emb has 2 rows for 1 augmentations"),
    (changed(captions={"text": ["a", "b"]}), "text_emb has 1 rows for 2 captions under text"),
    (
        changed(captions={"text": ["a"], "syn_text": ["b"]}),
        "syn_text_emb has 3 rows for 1 captions",
    ),
    (changed(captions={"text": "a"}), "not a list of texts"),
    (with_embedding("image_emb", np.full((2, 12), np.nan)), "NaN"),
    (with_embedding("image_emb", np.full((2, 12), np.inf)), "NaN"),
    (with_embedding("image_emb", np.ones(12)), "shape"),
    (with_embedding("image_emb", np.ones((2, 13))), "the width"),
    (changed(meta={"a": b"bytes"}), "cannot be written as JSON"),
    (changed(captions={"text": ["\ud800"]}), "surrogates"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
@pytest.mark.parametrize("suffix", [".tar", ".jsonl"])
def test_a_bad_sample_is_refused_and_others_follow(tmp_path, bad, reason, suffix):
    path = str(tmp_path / f"a{suffix}")
    writer = ShardWriter(path, dtype="float32") if suffix == ".tar" else JsonlWriter(path)
    with writer:
        writer.write(sample(0))
        if "surrogates" not in reason or suffix == ".tar":
            message = failure(writer.write, bad)
            assert reason in message
            assert message.startswith((f"{bad.uid}: ", f"{bad.uid!r}: "))
        writer.write(sample(2))
    assert [one.uid for one in shards.read(path)] == ["00000000", "00000002"]
    assert writer.stats.samples == 2


def test_widths_of_teachers(tmp_path):
    with ShardWriter(str(tmp_path / "a.tar"), dtype="float32", teacher_dims=(8, 5)) as writer:
        assert "the width 12, not 13" in failure(writer.write, sample(0))


def test_unknown_settings(tmp_path):
    assert "unknown dtype int4; choose from float32" in failure(ShardWriter, "a.tar", dtype="int4")
    assert "unknown layout" in failure(ShardWriter, "a.tar", layout="v3")
    assert "end the name in" in failure(JsonlWriter, "a.json")
    two = sample(0)
    two.captions["syn_text_b"] = ["x"]
    two.embeddings["syn_text_b_emb"] = two.embeddings["text_emb"]
    with ShardWriter(str(tmp_path / "a.tar"), dtype="float32", layout="v1") as writer:
        assert "layout v1 holds one ground truth" in failure(writer.write, two)


def test_v2_is_another_name(tmp_path):
    write(tmp_path / "a.tar", [sample(1)], layout="v2")
    write(tmp_path / "b.tar", [sample(1)], layout="named")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("writer", [ShardWriter, JsonlWriter])
def test_outside_a_with_block(tmp_path, writer):
    path = str(tmp_path / ("a.tar" if writer is ShardWriter else "a.jsonl"))
    new = writer(path)
    assert "use the writer in a with block" in failure(new.write, sample(0))
    with new:
        new.write(sample(0))
    assert "use the writer in a with block" in failure(new.write, sample(1))


@pytest.mark.parametrize("suffix", [".tar", ".jsonl"])
def test_what_arrays_may_be(tmp_path, suffix):
    one = sample(3)
    bare = Sample(uid=one.uid, captions=one.captions)
    assert bare.image is None
    embeddings = {
        "image_emb": one.embeddings["image_emb"].tolist(),
        "text_emb": torch.from_numpy(one.embeddings["text_emb"]).requires_grad_(),
        "syn_text_emb": torch.zeros(3, 12).bfloat16(),
    }
    numbers = [[np.array([0, 0, 8, 8])], [tuple(np.int64([2, 1, 9, 10]))]]
    path = str(tmp_path / f"a{suffix}")
    for params in (numbers, json.dumps(one.param_aug)):
        options = {"dtype": "float32"} if suffix == ".tar" else {}
        with (ShardWriter if suffix == ".tar" else JsonlWriter)(path, **options) as writer:
            writer.write(replace(bare, embeddings=embeddings, param_aug=params))
            for array in ([["x"]], [[1.0], [1.0, 2.0]], None):
                wrong = replace(bare, uid="1", embeddings={"text_emb": array})
                assert "text_emb" in failure(writer.write, wrong)
            assert "the uid 7 is of type int, not str" in failure(
                writer.write, replace(bare, uid=7)
            )
        [back] = shards.read(path)
        same_embeddings = {**one.embeddings, "syn_text_emb": np.zeros((3, 12), np.float32)}
        expected = replace(bare, param_aug=one.param_aug, embeddings=same_embeddings)
        assert same(back, expected)


def test_several_captioners(tmp_path):
    one = sample(0)
    one.captions["syn_text_b"] = ["x", "y"]
    one.embeddings["syn_text_b_emb"] = one.embeddings["syn_text_emb"][:2]
    one.captions["text_title"] = ["a title without embedding"]
    write(tmp_path / "a.tar", [one])
    assert same(next(iter(shards.read(tmp_path / "a.tar"))), one)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_lines(tmp_path, suffix):
    samples = [sample(i) for i in range(4)]
    samples[1].captions["text"].append("second")
    samples[1].embeddings["text_emb"] = np.repeat(samples[1].embeddings["text_emb"], 2, axis=0)
    for name in ("a", "b"):
        with JsonlWriter(str(tmp_path / f"{name}{suffix}")) as writer:
            for one in samples:
                writer.write(one)
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data == (tmp_path / f"b{suffix}").read_bytes()
    assert writer.stats.bytes == len(data)
    assert writer.stats.sha256 == hashlib.sha256(data).hexdigest()
    back = shards.read(tmp_path / f"a{suffix}")
    assert all(same(a, b) for a, b in zip(back, samples, strict=True))


@pytest.mark.parametrize("suffix", [".tar", ".jsonl.gz", ".jsonl.zst"])
def test_an_error_leaves_no_lines(tmp_path, suffix):
    path = str(tmp_path / f"a{suffix}")

    def run():
        with ShardWriter(path) if suffix == ".tar" else JsonlWriter(path) as writer:
            writer.write(sample(0))
            raise DataError("stop")

    failure(run)
    assert list(tmp_path.iterdir()) == []


def test_images_by_their_first_bytes():
    assert {image_key(photo(kind=kind)) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")} == {
        "jpg",
        "png",
        "webp",
        "gif",
        "bmp",
    }
    assert image_key(b"<html>") is None


@pytest.mark.usefixtures("s3")
def test_an_object_store_gets_a_shard_in_one_put(s3):
    stats = write("s3://bucket/a/b.tar", [sample(0)])
    data = s3.get("bucket/a/b.tar")
    assert hashlib.sha256(data).hexdigest() == stats.sha256

    def run():
        with ShardWriter("s3://bucket/a/c.tar") as writer:
            writer.write(sample(0))
            raise DataError("stop")

    failure(run)
    assert s3.get("bucket/a/c.tar") is None
