"""Archives, records and images that are made to loop, to fill the memory, or to break a parser."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pocketclip import images, shards
from pocketclip.errors import DataError, ImageError
from pocketclip.evaluate.datasets.webdataset import _metadata, _samples
from pocketclip.formats import tar as tarfiles
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions, open_pairs, tfrecords
from pocketclip.shards import codec
from pocketclip.shards import jsonl as foreign
from pocketclip.shards.audit.inspect import Rules, inspect
from pocketclip.shards.random_access import MappedShard
from pocketclip.shards.tar import ending, entry, groups, members
from pocketclip.types import Bad
from tests.fuzz_kinds import example, frame
from tests.fuzzing import Child
from tests.shards.making import failure, folder, photo, sample, tar, write

GOOD = [("0.jpg", photo(0)), ("0.txt", b"zero")]
LAST = [("2.jpg", photo(2)), ("2.txt", b"two")]


def resealed(header):
    """Return a header with the right checksum."""
    header = bytearray(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_size(field, name="1.jpg", kind=b"0"):
    """Return a header whose size is the bytes `field`."""
    header = bytearray(entry(name, b"")[:512])
    header[124 : 124 + len(field)] = field
    header[156:157] = kind
    return resealed(header)


def pax(records):
    data = records + bytes(-len(records) % 512)
    return with_size(b"%011o\0" % len(records), kind=b"x") + data


def record(key, value):
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def archive(*files, after=b""):
    data = b"".join(entry(name, content) for name, content in files) + after
    return data + ending(len(data))


def pairs_of(path, **options):
    return [pair for shard in open_pairs(str(path), PairOptions(**options)) for pair in shard]


SIZES = {
    "negative": with_size(b"-0000001000\0"),
    "minus zero": with_size(b"-0000000000\0"),
    "underscores": with_size(b"0_0_0_0_0_1\0"),
    "base 256, 2^80": with_size(b"\x80" + (1 << 80).to_bytes(11, "big")),
    "base 256, negative": with_size(b"\xff" * 12),
    "base 256, -512": with_size((-512).to_bytes(12, "big", signed=True)),
    "base 256, 2^63 - 1": with_size(b"\x80" + ((1 << 63) - 1).to_bytes(11, "big")),
    "pax of many digits": pax(record(b"size", b"9" * 5000)) + with_size(b"00000000000\0"),
    "pax negative": pax(record(b"size", b"-1024")) + with_size(b"00000000000\0"),
    "a long name of gigabytes": with_size(b"\x80" + (5 << 30).to_bytes(11, "big"), kind=b"L"),
    "pax of gigabytes": with_size(b"\x80" + (5 << 30).to_bytes(11, "big"), kind=b"x"),
    "a record of length 0": pax(b"0 size=1\n") + with_size(b"00000000000\0"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_no_file_has(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(archive(*GOOD, after=SIZES[kind]))
    *good, bad = pairs_of(path)
    assert isinstance(bad, Bad)
    assert bad.uid == "a"
    # Where the name that follows cannot be read, it may be one more file of the same sample.
    named = b"1.jpg" in SIZES[kind][:512] and SIZES[kind][156:157] == b"0"
    assert [(pair.uid, pair.image) for pair in good] == [("0", photo(0))] * named
    assert named or "the last sample, 0, is incomplete" in bad.reason
    for reader in (shards.read, lambda path: _samples([str(path)], "retrieval", 0)):
        samples = iter(reader(path))
        assert len([next(samples) for _ in range(named)]) == named
        assert "a.tar: " in failure(next, samples, kind=DataError)
    assert "a.tar: " in failure(MappedShard, path, kind=DataError)
    samples = inspect(str(path), Rules(decode_images=False))
    assert (samples.stats.samples, [p.kind for p in samples.problems]) == (named, ["tar"])


def test_numbers_of_headers():
    assert tarfiles.read_number(b"0000012345\0 ") == 0o12345
    assert tarfiles.read_number(b"   12345 \0  ") == 0o12345
    assert tarfiles.read_number(bytes(12)) == 0
    assert tarfiles.read_number(b"\x80" + (9 << 30).to_bytes(11, "big")) == 9 << 30
    for field in (
        b"-1",
        b"+1",
        b"8",
        b"1_0",
        b"0o7",
        b"\xff" * 12,
        b"\x80\xff" + bytes(10),
        b"0x1",
    ):
        with pytest.raises(ValueError, match="number"):
            tarfiles.read_number(field)


def sparse(size):
    """Return what GNU tar writes for a file that is one hole."""
    header = bytearray(with_size(b"00000000000\0", kind=b"S"))
    header[257:265] = b"ustar  \0"
    header[386:410] = b"%011o\0%011o\0" % (size, 0)
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    return resealed(header)


SPARSE = {
    "GNU": sparse((8 << 30) - 1),
    "pax": pax(
        record(b"GNU.sparse.major", b"1")
        + record(b"GNU.sparse.name", b"1.jpg")
        + record(b"GNU.sparse.realsize", b"8589934592")
    )
    + entry("GNUSparseFile.0/x", b"1\n0\n8589934592\n" + bytes(512)),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_files_are_bad_samples_and_the_others_are_read(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(archive(*GOOD, after=SPARSE[kind] + archive(("1.txt", b"one"), *LAST)))
    first, bad, last = pairs_of(path)
    assert (first.uid, bad.uid, last.uid) == ("0", "1", "2")
    assert "sparse" in bad.reason
    report = inspect(str(path), Rules())
    assert (report.stats.samples, [p.kind for p in report.problems]) == (3, ["unreadable"])
    with MappedShard(path) as mapped:
        assert mapped[0][1]["txt"] == b"zero"
        assert "sparse" in failure(mapped.read, 1, kind=DataError)
        assert mapped[2][1]["txt"] == b"two"


def test_a_member_beyond_the_limit_is_a_bad_sample(tmp_path, monkeypatch):
    for module in (tarfiles, shards.tar, shards.random_access):
        monkeypatch.setattr(module, "MAX_MEMBER", 10_000)
    path = tmp_path / "a.tar"
    large = [("1.jpg", photo(1) + bytes(10_000)), ("1.txt", b"one")]
    several = [("3.jpg", photo(1)), ("3.json", b" " * 9_000), ("3.npz", bytes(9_000))]
    tar(path, [*GOOD, *large, *LAST, *several])
    first, bad, last, *_ = pairs_of(path)
    assert (first.uid, bad.uid, last.uid) == ("0", "1", "2")
    assert "more than the limit of 10,000" in bad.reason
    report = inspect(str(path), Rules())
    assert [(p.kind, p.position) for p in report.problems] == [("unreadable", 1), ("unreadable", 3)]
    with MappedShard(path) as mapped:
        assert "more than the limit" in failure(mapped.read, 1, kind=DataError)
        assert "more than the limit" in failure(mapped.read, 3, kind=DataError)
        assert mapped.read(3, ("npz",))[1]["jpg"] == photo(1)


def test_concatenated_tars(tmp_path):
    path = tmp_path / "a.tar"
    whole = archive(*GOOD) + bytes(10240) + archive(("1.jpg", photo(1)), ("1.txt", b"one"))
    path.write_bytes(whole + archive(*LAST))
    assert [pair.uid for pair in pairs_of(path)] == ["0", "1", "2"]
    assert [one.uid for one in shards.read(path)] == ["0", "1", "2"]
    assert [e.captions for e in _samples([str(path)], "retrieval", 0)] == [
        ("zero",),
        ("one",),
        ("two",),
    ]
    with MappedShard(path) as mapped:
        assert [mapped[i][1]["txt"] for i in range(len(mapped))] == [b"zero", b"one", b"two"]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole) + gzip.compress(archive(*LAST)))
    assert [pair.uid for pair in pairs_of(tmp_path / "a.tar.gz")] == ["0", "1", "2"]
    path.write_bytes(whole[: 1500 - 10240])  # the second is cut
    assert [isinstance(pair, Bad) for pair in pairs_of(path)][-1]
    assert pairs_of(path)[0].uid == "0"


@pytest.mark.parametrize("data", [bytes(10240), archive(("README", b"nothing")), b""])
def test_an_archive_without_samples_is_an_error(tmp_path, data):
    home = folder(tmp_path / "set", [[sample(1)]], index=False)
    path = tmp_path / "empty.tar"
    path.write_bytes(data)
    [bad] = pairs_of(path)
    assert isinstance(bad, Bad)
    assert "no samples" in bad.reason or "empty" in bad.reason
    for function in (
        lambda: list(shards.read(path)),
        lambda: MappedShard(path),
        lambda: list(_samples([str(path)], "retrieval", 0)),
        lambda: shards.join(str(path), f"{home}/*.tar", str(tmp_path / "out")),
    ):
        assert "empty.tar: " in failure(function, kind=DataError)
    (home / "1.tar").write_bytes(data)
    assert shards.audit(str(home)).counts.get("tar") == 1
    if data:
        report = shards.join(str(home), f"{home}/00000000.tar", str(tmp_path / "joined"))
        assert (report.samples, report.counts["bad"]) == (1, 1)


def test_shards_of_ours_that_are_empty_are_known_to_be(tmp_path):
    home = folder(tmp_path / "set", [[sample(1)], []])
    assert shards.audit(str(home)).clean
    assert shards.join(str(home), f"{home}/00000000.tar", str(tmp_path / "joined")).complete


def test_a_set_of_empty_shards_is_nothing_to_audit(tmp_path):
    home = folder(tmp_path / "set", [[], []])
    with pytest.raises(DataError, match="no samples in 2 shards"):
        shards.audit(str(home))


# --- keys


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.b.JPG", "a.b", "jpg"),
        ("IMG_2023.01.00_1.txt", "IMG_2023.01.00_1", "txt"),
        ("a.syn.json", "a", "syn.json"),
        ("a.1.SYN.json", "a.1", "syn.json"),
        ("a.b.pth.gz", "a.b", "pth.gz"),
        ("a.b.npy.gz", "a.b", "npy.gz"),
        ("a.url.txt", "a", "url.txt"),
        ("v1.0/cat/a.b.jpg", "v1.0/cat/a.b", "jpg"),
        ("./a.jpg", "a", "jpg"),
        ("./x/./a.jpg", "x/a", "jpg"),
        ("/x//a.jpg", "x/a", "jpg"),
        ("a.left.jpg", "a", "left.jpg"),
        ("syn.json", "syn", "json"),
        (".syn.json", "", ""),
        ("._a.jpg", "", ""),
        ("README", "", ""),
        ("__MACOSX/a.jpg", "", ""),
        ("a.", "a", ""),
        ("a..jpg", "a.", "jpg"),
        ("." * 1000 + "a", "", ""),
    ],
)
def test_names(name, key, suffix):
    assert tarfiles.split_name(name, frozenset({"left.jpg"})) == (key, suffix)


def test_keys_with_dots_and_folders(tmp_path):
    names = ["IMG_2023.01.00_1", "IMG_2023.01.01_1", "cat/000", "dog/000", "cat/v.2", "a"]
    files = [(f"{n}.{e}", photo(i) if e == "jpg" else b"text") for i, n in enumerate(names)
             for e in ("jpg", "txt")]  # fmt: skip
    uids = ["IMG_2023_01_00_1", "IMG_2023_01_01_1", "cat_000", "dog_000", "cat_v_2", "a"]
    path = tar(tmp_path / "a.tar", files)
    assert [(pair.uid, pair.image) for pair in pairs_of(path)] == [
        (uid, photo(i)) for i, uid in enumerate(uids)
    ]
    assert [one.uid for one in shards.read(path)] == uids
    assert shards.audit(str(tmp_path)).clean
    with MappedShard(path) as mapped:
        assert [mapped[i][0] for i in range(len(mapped))] == uids
        assert mapped[3][1] == {"jpg": photo(3), "txt": b"text"}


def test_more_files_of_one_sample():
    names = ["0.depth.png", "0.jpg", "0.txt", "0.mask.png", "1.jpg", "1.left.jpg", "1.left.txt"]
    names += ["1.2.jpg", "x.right.jpg"]
    data = archive(*((name, name.encode()) for name in names))
    actual = [(g.uid, list(g.members)) for g in groups(members(io.BytesIO(data), "x"))]
    assert actual == [
        ("0", ["depth.png", "jpg", "txt", "mask.png"]),
        ("1", ["jpg"]),
        ("1_left", ["jpg", "txt"]),
        ("1_2", ["jpg"]),
        ("x_right", ["jpg"]),
    ]


def test_a_column_of_uids_in_a_tar(tmp_path):
    files = []
    for i, facts in enumerate([{"uid": "ab.c"}, {"uid": 7}, {}, {"uid": None}, {"uid": [1]}]):
        files += [
            (f"{i}.jpg", photo(i)),
            (f"{i}.txt", b"t"),
            (f"{i}.json", json.dumps(facts).encode()),
        ]
    files += [("5.jpg", photo()), ("5.txt", b"t"), ("5.uid", b"member\n")]
    path = tar(tmp_path / "a.tar", files)
    actual = pairs_of(path, uid_column="uid")
    assert [(p.uid, isinstance(p, Bad)) for p in actual] == [
        ("ab_c", False),
        ("7", False),
        ("2", True),
        ("3", True),
        ("4", True),
        ("member", False),
    ]
    write(tmp_path / "dr.tar", [sample(1)])
    (one,) = shards.read(tmp_path / "dr.tar")
    facts = json.dumps({"uid": one.uid}).encode()
    tar(tmp_path / "b.tar", [("x.jpg", photo(1)), ("x.txt", b"caption 1"), ("x.json", facts)])
    report = shards.join(str(tmp_path / "dr.tar"), str(tmp_path / "b.tar"), str(tmp_path / "out"),
                         options=PairOptions(uid_column="uid"))  # fmt: skip
    assert (report.samples, report.complete) == (1, True)


# --- join


@pytest.mark.parametrize("where", ["reinforced", "pair"])
def test_join_leaves_out_another_image(tmp_path, where):
    hashes = [hashlib.sha256(photo(i)).hexdigest() for i in range(4)]
    stored = [sample(i) for i in range(4)]
    files = []
    for i, one in enumerate(stored):
        facts = {"sha256": hashes[i].upper() if i == 0 else hashes[i]}
        if where == "reinforced":
            one.meta = facts
        one.image = None
        one.captions["text"] = ["a"]
        told = facts if where == "pair" else {}
        if i == 3:  # as img2dataset writes what it encodes anew
            told = {**facts, "original_width": 9, "original_height": 9}
        image = photo(9) if i in (1, 3) else photo(i)
        files += [(f"{one.uid}.jpg", image), (f"{one.uid}.txt", b"a")]
        files += [(f"{one.uid}.json", json.dumps(told).encode())]
    write(tmp_path / "dr.tar", stored)
    tar(tmp_path / "pairs.tar", files)
    report = shards.join(
        str(tmp_path / "dr.tar"), str(tmp_path / "pairs.tar"), str(tmp_path / "out")
    )
    assert (report.samples, report.counts["bad"], report.complete) == (3, 1, False)
    [text] = report.examples["bad"]
    assert text.startswith("00000001: ")
    assert "SHA-256" in text


# --- records and lines


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("0a0a0a08 08ffffffff0f 1200".replace(" ", "")),  # a name that is a number
        example()[:0] + b"\x0a\x04\x0a\x02\x10\x05",  # a value that is a number
        b"\x08\x05",  # features that are a number
        b"\x0a\x02\x08\x05",
        b"\x0a\x0b\x0a\x09\x0a\x01a\x12\x04\x0a\x02\x08\x05",  # bytes that are a number
        b"\x0a\x0b\x0a\x09\x0a\x01a\x12\x04\x12\x02\x08\x05",  # floats that are a number
        b"\xff" * 30,
    ],
)
def test_features_of_a_wrong_type(data):
    with pytest.raises((ValueError, IndexError)):
        tfrecords.parse_example(data)
    assert "not a tf.train.Example" in str(tfrecords._row(data))


def test_records_of_too_many_values(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "MAX_VALUES", 1000)
    path = tmp_path / "a.tfrecord"
    many = example(b"x" * 10, b"\x01" * 10)
    numbers = struct.pack("<2000f", *range(2000))
    head = b"\x0a\x01s\x12" + _length(numbers, 2)
    entry_ = b"\x0a" + _varint(len(head)) + head
    path.write_bytes(frame(many) + frame(b"\x0a" + _varint(len(entry_)) + entry_))
    good, bad = pairs_of(path)
    assert (good.uid, isinstance(bad, Bad)) == ("00000000", True)
    assert "more than 1,000 values" in bad.reason


def _varint(value):
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def _length(data, number):
    """Return a list of packed numbers, its length before it."""
    packed = b"\x0a" + _varint(len(data)) + data
    listed = bytes([number << 3 | 2]) + _varint(len(packed)) + packed
    return _varint(len(listed)) + listed


def test_a_record_beyond_the_limit_is_bad_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "MAX_RECORD", 5_000)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(
        frame(example(photo())) + frame(example(bytes(6_000))) + frame(example(photo()))
    )
    assert [isinstance(pair, Bad) for pair in pairs_of(path)] == [False, True, False]
    path.write_bytes(b"")
    [bad] = pairs_of(path)
    assert "empty" in bad.reason


def test_json_that_expands(tmp_path):
    for text in (b"[" + b"{}," * 5_000_000 + b"{}]", b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"):
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"x":' + text + b"}\n", 1))
        assert "a.jsonl.gz: line 1" in failure(list, shards.read(path), kind=DataError)
        tar(tmp_path / "a.tar", [*GOOD, ("0.syn.json", b'{"a":' + text + b"}")])
        assert "a.tar: 0.syn.json" in failure(list, shards.read(tmp_path / "a.tar"), kind=DataError)
        tar(tmp_path / "a.tar", [*GOOD, ("0.json", b'{"a":' + text + b"}"), *LAST])
        bad, good = pairs_of(tmp_path / "a.tar")
        assert isinstance(bad, Bad)
        assert good.uid == "2"


def test_a_line_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "MAX_LINE", 1000)
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "' + b"x" * 2000 + b'"}\n')
    assert "longer than the limit" in failure(
        list, shards.read(tmp_path / "a.jsonl"), kind=DataError
    )


# --- embeddings


def npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1e999,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 9_000 + b"1,)}",
    b"-" * 9_000,
    b"(" * 4_000 + b")" * 4_000,
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5_000 + b",)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
    b"{'descr': 3, 'fortran_order': False, 'shape': (1,)}",
    b"{'descr': [[1]], 'fortran_order': False, 'shape': (1,)}",
    b"{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999,)}",
    b"[]",
    b"{'descr': '<f4'}",
    b"1**99999999",
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_arrays(header):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("image_emb.npy", npy(header))
    assert "image_emb " in failure(codec.decode, "npz", buffer.getvalue(), kind=DataError)
    assert "x: invalid metadata in its .npy file" in failure(
        _metadata, npy(header), "x", kind=DataError
    )


def test_zips_that_expand(monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as out:
        out.writestr("a.npy", bytes(1 << 20))
    assert "never writes" in failure(codec.decode, "npz", buffer.getvalue(), kind=DataError)
    monkeypatch.setattr(codec, "MAX_ENTRIES", 10)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for i in range(11):
            out.writestr(f"{i}.npy", b"")
    assert "more than 10 entries" in failure(codec.decode, "npz", buffer.getvalue(), kind=DataError)


def test_gzip_is_unpacked_once(monkeypatch):
    made = []
    unpacker = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda **o: made.append(1) or unpacker(**o))
    data = gzip.compress(bytes(2 << 20))
    assert "unpacks to more than" in failure(codec.gunzip, data, 1 << 20, kind=DataError)
    assert len(made) == 1
    assert codec.gunzip(gzip.compress(b"a") + gzip.compress(b"b") + bytes(8)) == b"ab"
    for bad in (data[:-1], data + b"x", b"", b"BZ" + bz2.compress(b"")):
        failure(codec.gunzip, bad, kind=DataError)


def test_quantised_floats_have_room_too(monkeypatch):
    data = codec.encode({"a_emb": np.ones((64, 64), np.float32)}, "int8")[1]
    assert codec.decode("npz", data)[0]["a_emb"].shape == (64, 64)
    monkeypatch.setattr(codec, "MAX_BYTES", 64 * 64 * 4 - 1)
    assert "of floats" in failure(codec.decode, "npz", data, kind=DataError)


# --- images


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "bad",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
        chunk(b"prVt", b"x" * 3_000_000),
        *[chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"x" * 900_000)) * 80],
    ],
)
def test_a_png_with_large_texts_is_read(bad, place):
    data = encoded(COLOURS, "PNG")
    cut = 33 if place == "before" else len(data) - 12
    opened = open_image(data[:cut] + bad + data[cut:])
    assert opened.tobytes() == COLOURS.tobytes()


def test_the_orientation_of_a_png_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = COLOURS.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert open_image(encoded(COLOURS, "PNG", exif=exif)).tobytes() == turned
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    assert open_image(encoded(COLOURS, "PNG", pnginfo=text)).tobytes() == turned


def tags(count, size, place=8):
    """Return a TIFF whose tags all point at the same bytes."""
    entries = b"".join(struct.pack("<HHLL", 40000 + k, 1, size, 8) for k in range(count))
    return b"II*\0" + struct.pack("<LH", place, count) + entries + bytes(4)


def test_tags_that_point_at_the_same_bytes():
    message = failure(open_image, tags(20_000, 200_000) + bytes(100), kind=ImageError)
    assert "its tags take 4,000,000,000 bytes" in message
    exif = b"Exif\0\0" + tags(3_000, 60_000)
    jpeg = encoded(COLOURS, "JPEG")
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    assert open_image(jpeg[:2] + segment + jpeg[2:]).tobytes() == open_image(jpeg).tobytes()
    png = encoded(COLOURS, "PNG")
    data = png[:33] + chunk(b"eXIf", tags(20_000, 200_000)) + png[33:]
    assert open_image(data).tobytes() == COLOURS.tobytes()


def test_comments_of_a_gif():
    data = encoded(COLOURS.quantize(8), "GIF")
    place = 13 + 3 * (2 << (data[10] & 7))
    comment = b"!\xfe" + (b"\xff" + b"x" * 255) * 2_000 + b"\0"
    noisy = data[:place] + comment * 20 + data[place:]
    assert open_image(noisy).tobytes() == open_image(data).tobytes()


@pytest.mark.parametrize(
    ("image", "kind", "options", "bytes_per_pixel"),
    [
        (COLOURS, "JPEG", {}, 4),
        (COLOURS, "JPEG", {"progressive": True, "subsampling": 0}, 10),
        (COLOURS.convert("CMYK"), "JPEG", {}, 8),
        (COLOURS.convert("RGBA"), "PNG", {}, 8),
        (COLOURS.convert("L"), "PNG", {}, 5),
        (Image.new("I;16", (14, 9)), "PNG", {}, 6),
        (COLOURS, "WEBP", {}, 16),
        (COLOURS, "JPEG2000", {}, 20),
    ],
)
def test_images_are_refused_by_what_they_would_take(
    monkeypatch, image, kind, options, bytes_per_pixel
):
    data = encoded(image, kind, **options)
    monkeypatch.setattr(images, "MAX_MEMORY", 14 * 9 * bytes_per_pixel - 1)
    assert "reduce its size" in failure(open_image, data, kind=ImageError)
    monkeypatch.setattr(images, "MAX_MEMORY", 14 * 9 * (bytes_per_pixel + 2.5))
    assert open_image(data).size == (14, 9)


def test_bands_give_what_the_whole_does(monkeypatch):
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 65536, (37, 23), dtype=np.uint16)
    pictures = [
        Image.fromarray(whole),
        Image.fromarray(whole.astype(np.int32) * 2 - 9),
        Image.fromarray(whole.astype(np.float32) / 65535),
        Image.fromarray(whole.astype(np.float32) / 257),
    ]
    expected = [open_image(picture).tobytes() for picture in pictures]
    for pixels in (5, 23, 50):
        monkeypatch.setattr(images, "_BAND", pixels)
        assert [open_image(picture).tobytes() for picture in pictures] == expected


def test_files_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE", 500)
    path = tmp_path / "a.webp"
    path.write_bytes(encoded(COLOURS, "WEBP", lossless=True) + bytes(500))
    assert "a.webp: the file has" in failure(open_image, path, kind=ImageError)
    assert open_image(encoded(COLOURS, "PNG")).size == (14, 9)


# --- memory, measured


def _packed_zeros(path):
    """Write a tar.gz of 13 MB in which a member has 3 GB of zeros."""
    block = gzip.compress(bytes(1 << 24), 9)
    header = with_size(b"\x80" + (3 << 30).to_bytes(11, "big"))
    path.write_bytes(
        gzip.compress(archive(*GOOD) + header)
        + block * 192
        + gzip.compress(archive(("1.txt", b"one"), *LAST))
    )


def _grey(path, dtype, size=(12000, 11000), kind="TIFF"):
    Image.fromarray(np.zeros(size[::-1], dtype)).save(path, kind, compression="tiff_adobe_deflate")


def _lines(path):
    line = b"[" + b"{}," * 21_000_000 + b"{}]\n"
    path.write_bytes(gzip.compress(line, 1))


def _record(path):
    path.write_bytes(frame(bytes.fromhex("0a0a0a0808ffffffff0f1200")))


def _big_record(path):
    path.write_bytes(frame(example(bytes([1]) * (255 << 20))))


def _many_values(path):
    numbers = bytes(200 << 20)
    head = b"\x0a\x01s\x12" + _length(numbers, 2)
    entry_ = b"\x0a" + _varint(len(head)) + head
    path.write_bytes(frame(b"\x0a" + _varint(len(entry_)) + entry_))


def _captions(path):
    tar(path, [*GOOD, ("0.syn.json", b'{"a":[' + b"{}," * 60_000_000 + b"{}]}")])


def _pth(path):
    path.write_bytes(gzip.compress(bytes(1 << 26), 9) * 16)


HEAVY = {
    "packed zeros": (_packed_zeros, "a.tar.gz", "read_pairs", [2, 1]),
    "16-bit": (lambda path: _grey(path, np.uint16), "a.tif", "read_image", [12000, 11000]),
    "floats": (lambda path: _grey(path, np.float32, (10000, 9000)), "f.tif", "read_image",
               [10000, 9000]),
    "floats beyond": (lambda path: _grey(path, np.float32, (13000, 11000)), "g.tif",
                      "read_image", None),
    "lines": (_lines, "a.jsonl.gz", "read_lines", None),
    "26 bytes": (_record, "a.tfrecord", "read_pairs", [0, 1]),
    "a record of 255 MiB": (_big_record, "b.tfrecord", "read_pairs", [1, 0]),
    "many values": (_many_values, "c.tfrecord", "read_pairs", [0, 1]),
    "captions": (_captions, "a.tar", "read_shard", [1, 1]),
    "pth.gz": (_pth, "a.pth.gz", "read_pth", None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_nothing_takes_more_than_a_gigabyte(tmp_path):
    child = Child("tests.fuzz_kinds")
    try:
        for name, (make, file, reader, expected) in HEAVY.items():
            path = Path(tmp_path / file)
            make(path)
            outcome, details = child.outcome(reader, path)
            path.unlink()
            if expected is None:
                assert outcome == "refused", (name, outcome, details)
            else:
                assert (outcome, details) == ("ok", expected), (name, outcome, details)
    finally:
        child.close()


def test_tarfile_agrees(tmp_path):
    """What the standard library reads of good archives, this reader does too."""
    files = [("d/" * 60 + "a.b.jpg", b"deep"), ("größe.txt", b"x" * 513), ("x" * 300 + ".txt", b"")]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tar(tmp_path / "a.tar", files, format=form)
        with path.open("rb") as stream:
            assert [(m.name, m.data) for m in members(stream, "a")] == files
