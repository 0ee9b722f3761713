from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import tracemalloc

import numpy as np
import pytest
import zstandard

from pocketclip import shards
from pocketclip.shards.layout import image_key
from tests.shards.making import GOLDEN, SHARED, failure, folder, photo, same, sample, tar, write


def only(path):
    [sample] = shards.read(path)
    return sample


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_published_v1():
    samples = list(shards.read(GOLDEN / "v1_bfloat16.tar"))
    assert [one.uid for one in samples] == [f"{i:08d}" for i in range(4)]
    first = samples[0]
    assert first.captions["text"] == ["Eileen Collins, NASA astronaut"]
    assert len(first.captions["syn_text"]) == 3
    shapes = {key: array.shape for key, array in first.embeddings.items()}
    assert shapes == {"image_emb": (4, 1536), "text_emb": (1, 1536), "syn_text_emb": (3, 1536)}
    assert all(array.dtype == np.float32 for array in first.embeddings.values())
    assert len(first.param_aug) == 4
    assert first.param_aug[0][0] == [131, 43, 347, 461]
    assert first.url == "https://example.com/astronaut.jpg"
    assert first.meta == {"width": 512, "height": 512}
    assert image_key(first.image) == "jpg"


def test_published_v1_is_separated_at_the_right_row():
    import torch

    with gzip.open(io.BytesIO(_member(GOLDEN / "v1_bfloat16.tar", "00000000.pth.gz"))) as handle:
        stored = (
            torch.load(io.BytesIO(handle.read()), weights_only=True)["text_emb"].float().numpy()
        )
    first = next(iter(shards.read(GOLDEN / "v1_bfloat16.tar")))
    assert (first.embeddings["text_emb"] == stored[:1]).all()
    assert (first.embeddings["syn_text_emb"] == stored[1:]).all()


def _member(path, name):
    import tarfile

    with tarfile.open(path) as archive:
        return archive.extractfile(name).read()


def test_published_v2():
    samples = list(shards.read(GOLDEN / "v2_float32.tar"))
    assert len(samples) == 4
    for one in samples:
        assert set(one.captions) == {"text", "syn_text", "syn_text_docci"}
        for key, texts in one.captions.items():
            assert one.embeddings[f"{key}_emb"].shape == (len(texts), 1536)
    stored = np.load(io.BytesIO(_member(GOLDEN / "v2_float32.tar", "00000001.npz")))
    assert all((samples[1].embeddings[key] == stored[key]).all() for key in stored)


@pytest.mark.skipif(not (SHARED / "grocery-dr").is_dir(), reason="needs ../shared/data/grocery-dr")
def test_a_set_without_images_and_captions():
    one = next(iter(shards.read(SHARED / "grocery-dr")))
    assert (one.image, "text" in one.captions) == (None, False)
    assert one.embeddings["text_emb"].shape == (1, 512)
    assert len(one.captions["syn_text"]) == len(one.embeddings["syn_text_emb"]) == 5


def test_v1_without_captions_of_its_own(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    files = [("0.npz", npz(text_emb=rows)), ("0.syn.json", b'{"syn_text": ["a", "b"]}')]
    back = only(tar(tmp_path / "a.tar", files))
    assert back.embeddings["text_emb"].tolist() == rows[:1].tolist()
    assert back.embeddings["syn_text_emb"].tolist() == rows[1:].tolist()
    files[1] = ("0.syn.json", b'{"syn_text": ["a", "b", "c"]}')
    message = failure(only, tar(tmp_path / "a.tar", files))
    assert "a.tar: 0.npz: text_emb has 3 rows, but there are 1 + 3 captions" in message


def of(tmp_path, files):
    sample = only(tar(tmp_path / "a.tar", [(f"0.{key}", data) for key, data in files.items()]))
    return sample, {key: len(array) for key, array in sample.embeddings.items()}


def test_v1_with_more_than_one_key_of_captions(tmp_path):
    captions = {"syn_text": ["a", "b", "c"], "syn_text_docci": ["d", "e"]}
    files = {"txt": b"hi", "syn.json": json.dumps(captions).encode()}
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    counts = {"text_emb": 1, "syn_text_emb": 3}
    one, row_counts = of(tmp_path, {**files, "npz": npz(text_emb=rows)})
    assert row_counts == counts
    assert one.embeddings["syn_text_emb"].tolist() == rows[1:].tolist()
    other = npz(text_emb=rows, syn_text_docci_emb=rows[:2])
    one, row_counts = of(tmp_path, {**files, "npz": other})
    assert row_counts == {**counts, "syn_text_docci_emb": 2}
    assert one.embeddings["syn_text_emb"].tolist() == rows[1:].tolist()
    message = failure(of, tmp_path, {**files, "npz": npz(text_emb=rows[:3])})
    assert "text_emb has 3 rows, but there are 1 + 3 + 2 captions" in message


def test_what_else_syn_json_holds(tmp_path):
    about = {"syn_text": "one", "model": "coca", "scores": [1, 2], "text": ["other"]}
    files = {"txt": b"hi", "syn.json": json.dumps(about).encode()}
    one, row_counts = of(tmp_path, {**files, "npz": npz(text_emb=np.ones((2, 4), "f4"))})
    assert one.captions == {"text": ["hi"], "syn_text": ["one"]}
    assert row_counts == {"text_emb": 1, "syn_text_emb": 1}
    assert one.meta == {"model": "coca", "scores": [1, 2], "text": ["other"]}
    del files["txt"]
    assert of(tmp_path, files)[0].captions["text"] == ["other"]


def test_nulls_are_absent(tmp_path):
    files = {"txt": b"hi", "json": b"null", "paug.json": b'{"param_aug": null}'}
    one, _ = of(tmp_path, files)
    assert (one.meta, one.param_aug) == ({}, None)


@pytest.mark.parametrize("as_text", [False, True])
def test_any_order_of_members_and_param_aug_as_text(tmp_path, as_text):
    params = [[[0, 0, 8, 8], None]]
    value = json.dumps(params) if as_text else params
    files = [
        ("d/7.txt", "größe".encode()),
        ("d/7.paug.json", json.dumps({"param_aug": value}).encode()),
        ("d/7.PNG", photo(kind="PNG")),
        ("d/7.json", b'{"a": NaN}'),
        ("d/7.url.txt", b"https://x/y\n"),
        ("d/7.cls", b"3"),
        ("d/8.webp", photo(kind="WEBP")),
        ("d/9.jpeg", photo()),
    ]
    seven, eight, nine = shards.read(tar(tmp_path / "a.tar", files))
    assert (seven.uid, seven.captions, seven.param_aug) == ("d_7", {"text": ["größe"]}, params)
    assert seven.url == "https://x/y"
    assert [image_key(one.image) for one in (seven, eight, nine)] == ["png", "webp", "jpg"]
    # what other people's metadata have in them can be written again
    write(tmp_path / "b.tar", [seven])
    assert only(tmp_path / "b.tar").meta == {"a": None}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("0.txt", b"\xff\xfe", "not UTF-8"),
        ("0.json", b"{", "not JSON"),
        ("0.json", b"[1]", "not an object"),
        ("0.syn.json", b'{"syn_text": [1]}', "syn_text is not a list of captions"),
        ("0.paug.json", b"{}", "param_aug is missing"),
        ("0.paug.json", b'{"param_aug": "[["}', "not JSON"),
        ("0.npz", b"PK", "damaged npz"),
        ("0.pth.gz", b"\x1f\x8b", "damaged gzip"),
        ("0.pth.gz", gzip.compress(pickle.dumps({"a": print}), mtime=0), "none of it was run"),
        ("0.json", b"[" * 100_000, "nested"),
    ],
)
def test_a_damaged_member_is_named(tmp_path, name, data, reason):
    path = tar(tmp_path / "a.tar", [("good.txt", b"a"), (name, data)])
    samples = shards.read(path)
    assert next(samples).uid == "good"
    message = failure(list, samples)
    assert message.startswith(f"{path}: {name}: ")
    assert reason in message


def test_a_cut_shard_gives_what_came_before(tmp_path):
    write(tmp_path / "a.tar", [sample(i) for i in range(3)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    samples = shards.read(tmp_path / "cut.tar")
    assert next(samples).uid == "00000000"
    assert "cut.tar: the tar is truncated" in failure(list, samples)


def record(one, pack):
    return {
        "uid": one.uid,
        "url": one.url,
        "image": base64.b64encode(one.image).decode(),
        "text": one.captions["text"][0],
        "syn_text": one.captions["syn_text"],
        "param_aug": one.param_aug,
        "width": 16,
        **{key: pack(array) for key, array in one.embeddings.items()},
    }


def packed(array):
    data = pickle.dumps(np.array(array, "float32"), protocol=pickle.HIGHEST_PROTOCOL)
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("pack", [packed, np.ndarray.tolist])
def test_what_the_generator_writes(tmp_path, suffix, pack):
    samples = [sample(i) for i in range(3)]
    lines = "".join(json.dumps(record(one, pack)) + "\n" for one in samples).encode()
    squeeze = {".jsonl": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path = tmp_path / f"a{suffix}"
    path.write_bytes(squeeze[path.suffix](lines))
    assert all(same(a, b) for a, b in zip(shards.read(path), samples, strict=True))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "a.jsonl" in failure(list, shards.read(path))


def test_what_else_the_generator_s_records_have(tmp_path):
    rows = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    record = {
        "id": 12,
        "caption": "a",
        "image": "",
        "syn_text": ["b", "c"],
        "image_embedding": [[1.0, 0.0]],
        "text_emb": rows,
        "embarrassing": "not an embedding",
        "similarity": 0.3,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n\n")
    one = only(tmp_path / "a.jsonl")
    assert (one.uid, one.image, one.captions["text"]) == ("12", None, ["a"])
    assert one.embeddings["image_emb"].shape == (1, 2)
    assert one.embeddings["syn_text_emb"].tolist() == np.float32(rows[1:]).tolist()
    assert set(one.meta) == {"embarrassing", "similarity"}


def test_every_name_that_the_generator_gives_embeddings(tmp_path):
    rows = [[1.0, 0.0]]
    record = {
        "uid": 0,
        "id": "not this",
        "text": "a",
        "image_emb{self.tag_suffix}": packed(rows),
        "image_emb2": packed(rows),
        "syn_text_emb2": rows,
        "text_embeddings": packed(rows),
        "myembs": packed(rows),
        "emb_model": "openai",
        "embedder": "openai",
        "embed_dims": [768, 768],
        "members": [1.0],
        "param_aug": None,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    one = only(tmp_path / "a.jsonl")
    assert one.uid == "0"
    expected = {"image_emb", "image_emb2", "syn_text_emb2", "text_emb", "myembs"}
    assert set(one.embeddings) == expected
    assert all(array.tolist() == rows for array in one.embeddings.values())
    assert set(one.meta) == {"id", "emb_model", "embedder", "embed_dims", "members"}


def test_line_numbers_stand_for_missing_uids(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"uid": "", "text": "b"}\n{"id": 0}\n')
    assert [one.uid for one in shards.read(tmp_path / "a.jsonl")] == ["00000000", "00000001", "0"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"uid": "1", "image": "?"}', "image is not base64"),
        ('{"uid": "1", "image": 3}', "not base64 text"),
        ('{"uid": "1", "syn_text": [1]}', "not a list of captions"),
        ('{"uid": "1", "text_emb": "?"}', "not base64"),
        ('{"uid": "1", "text_emb": "AAAA"}', "damaged gzip"),
        ('{"uid": "1", "text_emb": [["a"]]}', "not an array of floats"),
        (
            json.dumps(
                {"text_emb": base64.b64encode(gzip.compress(b"cos\nsystem\n.", mtime=0)).decode()}
            ),
            "os.system",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text('{"uid": "0", "text": "good"}\n' + line + "\n")
    samples = shards.read(tmp_path / "a.jsonl")
    assert next(samples).captions == {"text": ["good"]}
    message = failure(list, samples)
    assert "a.jsonl: line 2: " in message
    assert reason in message


def test_where_shards_may_lie(tmp_path):
    samples = [[sample(0)], [sample(1)], [sample(2)]]
    dataset = folder(tmp_path / "set", samples, index=False)
    (dataset / "00000000.bad.jsonl").write_text('{"uid": "x", "reason": "y"}\n')
    (dataset / "unmatched.jsonl").write_text("{}\n")
    (dataset / "list.json").write_text('["00000002.tar", "00000000.tar"]')

    def uids(source):
        return "".join(one.uid[-1] for one in shards.read(source))

    assert uids(dataset) == uids(str(dataset)) == "012"
    assert uids(f"{dataset}/{{00000001..00000002}}.tar") == "12"
    assert uids(f"{dataset}/*1.tar") == "1"
    assert uids([dataset / "00000002.tar", f"{dataset}/00000000.tar"]) == "20"
    assert uids(dataset / "list.json") == "20"
    assert "no such shard" in failure(uids, tmp_path / "nowhere")
    assert "no shards in this folder" in failure(uids, tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert "is not a shard" in failure(uids, tmp_path / "a.txt")


def test_an_index_says_which_shards_there_are(tmp_path):
    dataset = folder(tmp_path / "set", [[sample(0)], [sample(1)]])
    write(dataset / "00000002.tar", [sample(2)])  # as a job leaves it that is not finished
    assert [one.uid[-1] for one in shards.read(dataset)] == ["0", "1"]
    (dataset / "00000001.tar").unlink()
    assert "index.json lists it" in failure(list, shards.read(dataset))


def test_an_index_of_something_else_is_ignored(tmp_path):
    dataset = folder(tmp_path / "set", [[sample(0)]], index=False)
    (dataset / "index.json").write_text('{"tokens": [1, 2]}')
    assert [one.uid[-1] for one in shards.read(dataset)] == ["0"]
    assert shards.describe(str(dataset)) is None
    assert "not an index of shards" in failure(shards.audit, str(dataset))
    (dataset / "index.json").write_text('{"shards": []}')
    assert "not an index of shards" in failure(list, shards.read(dataset))


@pytest.mark.usefixtures("s3")
def test_an_object_store():
    for number in range(2):
        write(f"s3://bucket/set/{number:08d}.tar", [sample(number)])
    assert [one.uid[-1] for one in shards.read("s3://bucket/set")] == ["0", "1"]
    [one] = shards.read("s3://bucket/set/*1.tar")
    assert same(one, sample(1))


def test_memory_does_not_grow(tmp_path):
    big = photo() + bytes(200_000)
    samples = []
    for number in range(100):
        one = sample(number)
        one.image = big
        samples.append(one)
    write(tmp_path / "a.tar", samples)
    for _ in shards.read(tmp_path / "a.tar"):
        break  # so that caches are full
    tracemalloc.start()
    count = sum(1 for _ in shards.read(tmp_path / "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100
    assert peak < 3_000_000  # of 20 MB


def test_a_sample_with_two_images_gives_the_png_before_the_jpeg(tmp_path):
    jpeg, png = photo(), photo(kind="PNG")
    path = tar(tmp_path / "two.tar", [("a.jpeg", jpeg), ("a.png", png), ("a.txt", b"a cup")])
    assert only(path).image == png
