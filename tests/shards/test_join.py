from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pocketclip import shards
from pocketclip.pairs import PairOptions
from pocketclip.shards import Index, JsonlWriter, audit, join, read_index, write_index
from pocketclip.shards.joining import UNMATCHED
from pocketclip.storage.http import FetchOptions
from tests.shards.making import SHARED, failure, folder, photo, sample, tar, write

HASTY = FetchOptions(timeout=2, retries=0, allow_private=True)


def bare(number, **changes):
    """A reinforcement as published: no image, no ground truth."""
    one = sample(number, image=False)
    del one.captions["text"]
    return replace(one, **changes)


def table(path, numbers, caption="caption {}"):
    """A table of photographs whose rows are the uids 0, 1, ...; None leaves a row out later."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "pairs.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["filepath", "caption", "split"])
        for number in numbers:
            (path / f"{number}.jpg").write_bytes(photo(number))
            out.writerow([f"{number}.jpg", caption.format(number), "ab"[number % 2]])
    return str(path / "pairs.csv")


def notes(out):
    return [json.loads(line) for line in (Path(out) / UNMATCHED).read_text().splitlines()]


def contents(out):
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_join(tmp_path, dtype):
    numbers = list(range(7))
    dr = folder(tmp_path / "dr", [[bare(n) for n in numbers[:4]], [bare(n) for n in numbers[4:]]])
    out = str(tmp_path / "out")
    report = join(
        str(dr), table(tmp_path / "p", numbers), out, options=PairOptions(shard_size=3), dtype=dtype
    )
    assert (report.samples, report.shards, report.complete) == (7, 3, True)
    samples = list(shards.read(out))
    assert [one.uid for one in samples] == [f"{n:08d}" for n in numbers]
    for one in samples:
        expected = sample(int(one.uid))
        assert one.image == expected.image
        assert one.captions == expected.captions
        assert one.param_aug == expected.param_aug
        assert {key: array.shape for key, array in one.embeddings.items()} == {
            key: array.shape for key, array in expected.embeddings.items()
        }
    index = read_index(out)
    assert index.teacher_dims == (8, 4)
    assert index.augmentation == read_index(str(dr)).augmentation
    assert index.dtypes == [dtype or "float32"]
    assert audit(out).clean
    assert notes(out) == []


@pytest.mark.skipif(not (SHARED / "grocery-dr").is_dir(), reason="needs ../shared/data")
def test_a_real_set(tmp_path):
    options = PairOptions(
        image_column="filepath", caption_columns=("alt_text",), where={"split": "train"}
    )
    source = SHARED / "grocery-dr" / "00000000.tar"
    report = join(
        str(source), str(SHARED / "grocery" / "pairs.csv"), str(tmp_path), options=options
    )
    assert report.samples == 480
    assert report.counts["pair_alone"] == 2640 - 480
    one = next(iter(shards.read(tmp_path)))
    assert one.captions["text"] == ["Galia Melon"]
    assert one.meta["filepath"].endswith("Golden-Delicious_001.jpg")
    index = read_index(str(tmp_path))
    assert index.teacher_dims == (256, 256)
    assert [teacher["logit_scale"] for teacher in index.teachers] == [23.2, 22.7]
    assert audit(str(tmp_path)).clean


def test_an_image_that_is_not_the_one_that_was_embedded_is_left_out(tmp_path):
    # Our own sets hold the image and no hash; 2 has another one, though a hash of its own.
    samples = [sample(n) for n in range(4)]
    samples[2].image = photo(7)
    # 3 was encoded anew by img2dataset, which records the hash of the original.
    samples[3].meta["sha256"] = hashlib.sha256(b"original").hexdigest()
    write(tmp_path / "dr.tar", samples)
    out = str(tmp_path / "out")
    pairs = table(tmp_path / "p", range(4))
    report = join(str(tmp_path / "dr.tar"), pairs, out)
    assert (report.samples, report.counts["bad"]) == (3, 1)
    [note] = [note for note in notes(out) if note["kind"] == "bad"]
    assert note["uid"] == "00000002"
    assert "the reinforced set has another one" in note["reason"]


def test_a_stored_hash_that_is_not_the_images_leaves_it_out(tmp_path):
    right, wrong = bare(0), bare(1)
    right.meta["sha256"] = hashlib.sha256(photo(0)).hexdigest().upper()
    wrong.meta["sha256"] = hashlib.sha256(photo(0)).hexdigest()
    write(tmp_path / "dr.tar", [right, wrong, bare(2)])
    out = str(tmp_path / "out")
    report = join(str(tmp_path / "dr.tar"), table(tmp_path / "p", range(3)), out)
    assert (report.samples, report.counts["bad"]) == (2, 1)
    [note] = notes(out)
    assert note["uid"] == "00000001"
    assert "its SHA-256 differs from the stored one" in note["reason"]


def test_what_has_no_partner_is_named(tmp_path):
    dr = write(tmp_path / "dr.tar", [bare(n) for n in (0, 2, 4, 9)])
    assert dr.samples == 4
    pairs = table(tmp_path / "p", range(6))
    (tmp_path / "p" / "4.jpg").unlink()
    report = join(str(tmp_path / "dr.tar"), pairs, str(tmp_path / "out"))
    assert report.samples == 2
    assert report.counts == {
        "pair_alone": 3,
        "reinforcement_alone": 1,
        "bad": 1,
        "caption_differs": 0,
    }
    assert report.examples["pair_alone"] == ["00000001", "00000003", "00000005"]
    assert [note["uid"] for note in notes(report.out) if note["kind"] == "bad"] == ["00000004"]
    assert notes(report.out)[-1] == {
        "kind": "reinforcement_alone",
        "uid": "00000009",
        "reason": "dr.tar",
    }


def test_it_is_idempotent_and_refuses_another_set(tmp_path):
    write(tmp_path / "dr.tar", [bare(n) for n in range(3)])
    pairs = table(tmp_path / "p", range(4))
    out = str(tmp_path / "out")
    first = join(str(tmp_path / "dr.tar"), pairs, out)
    before = contents(out)
    assert join(str(tmp_path / "dr.tar"), pairs, out) == first
    assert contents(out) == before
    message = failure(join, str(tmp_path / "dr.tar"), pairs, out, dtype="int8")
    assert "a join of other sets or settings: choose another --out" in message
    other = folder(tmp_path / "other", [[sample(0)]])
    message = failure(join, str(tmp_path / "dr.tar"), pairs, str(other))
    assert "holds files that no join wrote" in message
    assert contents(out) == before


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    write(tmp_path / "dr.tar", [bare(n) for n in range(9) if n != 1])
    pairs = table(tmp_path / "p", [*range(8)])
    options = PairOptions(shard_size=2)
    whole = join(str(tmp_path / "dr.tar"), pairs, str(tmp_path / "whole"), options=options)
    out = str(tmp_path / "out")
    done = []

    def stop(count):
        done.append(count)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        join(str(tmp_path / "dr.tar"), pairs, out, options=options, on_progress=stop)
    finished = {name: data for name, data in contents(out).items() if name.endswith(".tar")}
    assert len(finished) == 2
    written = []
    from pocketclip.shards import joining

    real = joining.ShardWriter
    monkeypatch.setattr(
        joining, "ShardWriter", lambda path, **o: (written.append(path), real(path, **o))[1]
    )
    report = join(str(tmp_path / "dr.tar"), pairs, out, options=options)
    assert len(written) == 2
    assert replace(report, out="") == replace(whole, out="")
    ours, theirs = contents(out), contents(tmp_path / "whole")
    assert set(ours) == set(theirs)
    assert all(ours[name] == theirs[name] for name in ours if name != "join.json")


def test_embeddings_are_copied_as_they_are(tmp_path):
    write(tmp_path / "dr.tar", [bare(0), bare(1)], dtype="bfloat16")
    join(str(tmp_path / "dr.tar"), table(tmp_path / "p", range(2)), str(tmp_path / "out"))
    [path] = (tmp_path / "out").glob("*.tar")
    from tests.shards.test_read import _member

    for name in ("00000000.pth.gz", "00000001.pth.gz"):
        assert _member(path, name) == _member(tmp_path / "dr.tar", name)
    assert read_index(str(tmp_path / "out")).dtypes == ["bfloat16"]


def test_pairs_as_tars_and_reinforcements_as_lines(tmp_path):
    with JsonlWriter(str(tmp_path / "dr.jsonl.gz")) as writer:
        for number in (1, 0):
            writer.write(bare(number))
    files = []
    for number in range(2):
        files += [(f"{number:08d}.jpg", photo(number)), (f"{number:08d}.txt", b"a caption")]
    tar(tmp_path / "pairs-0.tar", files)
    report = join(str(tmp_path / "dr.jsonl.gz"), str(tmp_path / "pairs-0.tar"), str(tmp_path / "o"))
    assert report.complete
    samples = list(shards.read(tmp_path / "o"))
    assert [(one.uid, one.captions["text"]) for one in samples] == [
        ("00000000", ["a caption"]),
        ("00000001", ["a caption"]),
    ]
    assert (tmp_path / "o" / "pairs-0.tar").exists()


def test_an_embedded_caption_stays_with_its_embedding(tmp_path):
    write(tmp_path / "dr.tar", [sample(0), sample(1)])
    report = join(
        str(tmp_path / "dr.tar"), table(tmp_path / "p", range(2), "other {}"), str(tmp_path / "out")
    )
    assert report.counts["caption_differs"] == report.samples == 2
    assert (
        "['caption 0'] was embedded, the pair has ['other 0']"
        in report.examples["caption_differs"][0]
    )
    assert next(iter(shards.read(tmp_path / "out"))).captions["text"] == ["caption 0"]


def test_what_does_not_fit_together(tmp_path):
    two = bare(1)
    two.embeddings["text_emb"] = two.embeddings["image_emb"]
    write(tmp_path / "dr.tar", [bare(0), two, bare(2)])
    report = join(str(tmp_path / "dr.tar"), table(tmp_path / "p", range(3)), str(tmp_path / "out"))
    assert report.samples == 2
    assert report.examples["bad"] == ["00000001: text: 2 embeddings for 1 captions"]


def test_duplicate_uids(tmp_path):
    write(tmp_path / "a.tar", [bare(0)])
    write(tmp_path / "b.tar", [bare(0), bare(1)])
    sources = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    report = join(sources, table(tmp_path / "p", range(2)), str(tmp_path / "out"))
    assert report.samples == 2
    assert report.examples["bad"] == ["00000000: b.tar: an earlier reinforcement has this uid"]


def test_a_cut_set_is_refused(tmp_path):
    write(tmp_path / "dr.tar", [bare(n) for n in range(3)])
    data = (tmp_path / "dr.tar").read_bytes()
    (tmp_path / "dr.tar").write_bytes(data[: len(data) // 2])
    pairs = table(tmp_path / "p", range(3))
    assert "dr.tar: " in failure(join, str(tmp_path / "dr.tar"), pairs, str(tmp_path / "out"))


def test_images_are_fetched(tmp_path, web):
    samples = [bare(n, url=f"{web.url}/{n}.jpg") for n in range(9)]
    for number in range(9):
        web.files[f"/{number}.jpg"] = photo(number)
    web.files["/3.jpg"] = b"this is not an image"
    samples[1].url = None
    samples[2].url = f"{web.url}/status/404"
    samples[4].meta["sha256"] = hashlib.sha256(b"another image").hexdigest()
    samples[5].meta["sha256"] = hashlib.sha256(photo(5)).hexdigest()
    samples[8].url = None
    dr = folder(tmp_path / "dr", [samples[:6], samples[6:]])
    report = join(str(dr), None, str(tmp_path / "out"), fetch=HASTY)
    samples = {one.uid: one for one in shards.read(tmp_path / "out")}
    assert sorted(int(uid) for uid in samples) == [0, 5, 6, 7]
    assert report.shards == 2
    for uid, one in samples.items():
        assert one.image == photo(int(uid))
        assert one.meta["sha256"] == hashlib.sha256(one.image).hexdigest()
    reasons = {note["uid"][-1]: note["reason"] for note in notes(report.out)}
    assert set(reasons) == {"1", "2", "3", "4", "8"}
    assert "no URL" in reasons["1"]
    assert "404" in reasons["2"]
    assert "not an image" in reasons["3"]
    assert "has changed since" in reasons["4"]
    asked = web.asked.copy()
    assert join(str(dr), None, str(tmp_path / "out"), fetch=HASTY) == report
    assert web.asked == asked  # nothing was fetched again


@pytest.mark.usefixtures("s3")
def test_an_object_store(tmp_path):
    write("s3://bucket/dr/0.tar", [bare(n) for n in range(3)])
    index = Index()
    index.add([])
    write_index("s3://bucket/empty", index)
    out = "s3://bucket/out"
    report = join("s3://bucket/dr", table(tmp_path / "p", range(3)), out)
    assert report.complete
    assert len(list(shards.read(out))) == 3
    assert join("s3://bucket/dr", table(tmp_path / "p", range(3)), out) == report
    assert audit(out).clean
