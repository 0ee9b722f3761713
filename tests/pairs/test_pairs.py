from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, MissingDependencyError, StorageError
from pocketclip.pairs import PairOptions, PairShard, open_pairs
from pocketclip.pairs.crc32c import crc32c, crc32c_numpy, masked_crc32c
from pocketclip.pairs.duplicates import SeenUids
from pocketclip.storage.http import FetchOptions
from pocketclip.types import Bad, Pair
from tests.image_server import ImageServer
from tests.s3_server import S3Server

SHARED = Path(__file__).parents[3] / "shared"
HASTY = FetchOptions(timeout=1.5, total_timeout=5.0, retries=0, backoff=0.01, allow_private=True)
JPEG = b"\xff\xd8\xff\xe0\x00 a photograph"


def read(source: str | Path | list[str], **options: Any) -> list[Pair | Bad]:
    """Return all pairs, as another process would get them."""
    named = str(source) if isinstance(source, Path) else source
    shards = pickle.loads(pickle.dumps(open_pairs(named, PairOptions(**options))))
    return [pair for shard in shards for pair in shard]


def brief(pairs: list[Pair | Bad]) -> dict[str, Any]:
    """Return the image of each good pair, and the reason of each bad one."""
    assert len({pair.uid for pair in pairs if isinstance(pair, Pair)}) == len(
        [pair for pair in pairs if isinstance(pair, Pair)]
    )
    return {p.uid: p.image if isinstance(p, Pair) else p.reason for p in pairs}


def failure(source: str | Path | list[str], **options: Any) -> str:
    with pytest.raises((DataError, StorageError)) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def texts(pairs: list[Pair | Bad]) -> list[str]:
    return [p.captions["text"][0] if isinstance(p, Pair) else p.reason for p in pairs]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with `0.jpg` to `9.jpg`, and one that is empty."""
    for index in range(10):
        (tmp_path / f"{index}.jpg").write_bytes(JPEG + b"%d" % index)
    (tmp_path / "zero.jpg").write_bytes(b"")
    return tmp_path


# --- tables


def test_csv(photos: Path) -> None:
    table = photos / "pairs.csv"
    table.write_bytes(
        b"\xef\xbb\xbffilepath,caption,note\r\n"
        b'0.jpg,"one\r\ntwo, ""three""",x\r\n'
        b"\r\n"
        b"zero.jpg,nothing,x\r\n"
        b"missing.jpg,gone,x\r\n"
        b"1.jpg,  ,x\r\n"
        b"2.jpg,too,many,x\r\n"
        b",no image,x\r\n"
        b"3.jpg,\xc3\xa9nd,x"
    )
    pairs = read(table, meta_columns=("note",))
    assert brief(pairs) == {
        "00000000": JPEG + b"0",
        "00000001": "the image is empty (0 bytes)",
        "00000002": f"{photos / 'missing.jpg'}: no such file or folder; check the path",
        "00000003": "empty caption",
        "00000004": "the row has 4 columns, not 3",
        "00000005": "no image",
        "00000006": JPEG + b"3",
    }
    first, last = pairs[0], pairs[-1]
    assert isinstance(first, Pair)
    assert isinstance(last, Pair)
    assert first.captions == {"text": ['one\r\ntwo, "three"']}
    assert first.meta == {"note": "x", "filepath": "0.jpg"}
    assert last.captions == {"text": ["énd"]}


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("shard_size", [1, 3, 4, 100])
def test_shards_of_a_table(photos: Path, form: str, shard_size: int) -> None:
    rows = [
        {"image": f"{i}.jpg", "text": f'a "{i}",\tb\nc', "split": "ab"[i % 3 == 0]}
        for i in range(10)
    ]
    table = photos / f"pairs.{form}"
    write_table(table, rows)
    every = PairOptions(shard_size=shard_size)
    shards = open_pairs(str(table), every)
    assert [shard.size for shard in shards] == [
        min(shard_size, 10 - start) for start in range(0, 10, shard_size)
    ]
    assert [shard.name for shard in shards] == [f"{i:08d}" for i in range(len(shards))]
    assert len({shard.fingerprint for shard in shards}) == len(shards)
    pairs = [pair for shard in shards for pair in shard]
    assert brief(pairs) == {f"{i:08d}": JPEG + b"%d" % i for i in range(10)}
    assert texts(pairs) == [row["text"] for row in rows]
    assert [len(list(shard)) for shard in shards] == [shard.size for shard in shards]

    some = open_pairs(str(table), PairOptions(shard_size=shard_size, where={"split": "b"}))
    assert [pair.uid for shard in some for pair in shard] == [f"{i:08d}" for i in (0, 3, 6, 9)]
    assert sum(shard.size or 0 for shard in some) == 4
    assert max(shard.size or 0 for shard in some) <= shard_size
    assert "no row has the values that `where` requires" in failure(table, where={"split": "c"})


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        import csv

        with path.open("w", encoding="utf-8", newline="") as stream:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_fingerprint_follows_the_rows(photos: Path, form: str) -> None:
    def fingerprints(last: str, **options: Any) -> list[str]:
        rows = [{"image": f"{i}.jpg", "text": "same", "x": "y"} for i in range(5)]
        write_table(photos / f"pairs.{form}", [*rows, {"image": "5.jpg", "text": last, "x": "y"}])
        shards = open_pairs(str(photos / f"pairs.{form}"), PairOptions(shard_size=3, **options))
        return [shard.fingerprint for shard in shards]

    before = fingerprints("one")
    assert fingerprints("one") == before
    after = fingerprints("two")
    assert after[1] != before[1]
    if form != "parquet":  # there the footer counts, which all shards share
        assert after[0] == before[0]
    for options in ({"caption_columns": ("x",)}, {"where": {"x": "y"}}, {"uid_column": "text"}):
        assert not set(fingerprints("one", **options)) & set(before)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_that_changed_is_refused(photos: Path, form: str) -> None:
    table = photos / f"pairs.{form}"
    write_table(table, [{"image": "0.jpg", "text": "a"}] * 3)
    [shard] = open_pairs(str(table))
    write_table(table, [{"image": "0.jpg", "text": "a"}] * 4)
    with pytest.raises(DataError, match="has changed"):
        list(shard)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_uid_column(photos: Path, form: str) -> None:
    uids = ["a", "b.c/d", "a", "", "b_c_d", "x" * 300, "a"]
    rows = [{"image": f"{i}.jpg", "text": f"{i}", "key": uid} for i, uid in enumerate(uids)]
    write_table(photos / f"pairs.{form}", rows)
    for shard_size in (1, 2, 100):
        pairs = read(photos / f"pairs.{form}", uid_column="key", shard_size=shard_size)
        assert [pair.uid for pair in pairs][:5] == ["a", "b_c_d", "a", "00000003", "b_c_d"]
        assert [pair.reason for pair in pairs if isinstance(pair, Bad)] == [
            "duplicate uid a: pair 0 of the table has the same uid",
            "no uid",
            "duplicate uid b_c_d: pair 1 of the table has the same uid",
            "duplicate uid a: pair 0 of the table has the same uid",
        ]
        assert len(pairs[5].uid) < 200


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 9))
def test_twins_are_what_a_set_finds(uids: list[int], shard_size: int) -> None:
    seen, first, expected = SeenUids(), dict[int, int](), set()
    for place, uid in enumerate(uids):
        seen.add(str(uid))
        if first.setdefault(uid, place) != place:
            expected.add((place, first[uid]))
    found = seen.twins(shard_size)
    got = {(s * shard_size + index, one) for s, pairs in found.items() for index, one in pairs}
    assert got == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("filepath,caption,alt_text", "--caption-column among: caption, alt_text"),
        ("image,file,caption", "--image-column among: image, file"),
        (
            "filepath,label",
            "no caption column; choose with --caption-column among: filepath, label",
        ),
        ("a,caption", "no image column; choose with --image-column among: a, caption"),
        ("caption,caption,url", "two columns are named 'caption'"),
    ],
)
def test_columns_that_cannot_be_guessed(tmp_path: Path, header: str, message: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(f"{header}\n{','.join('x' * (header.count(',') + 1))}\n", "utf-8")
    assert message in failure(table)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_that_are_missing(photos: Path, form: str) -> None:
    table = photos / f"pairs.{form}"
    write_table(table, [{"image": "0.jpg", "text": "a"}])
    named = {"image_column": "x", "caption_columns": ("x",), "uid_column": "x"}
    for name, value in {**named, "where": {"x": 1}, "meta_columns": ("x",)}.items():
        assert "there is no column 'x'; the columns are: image, text" in failure(
            table, **{name: value}
        )


def test_guessed_columns(photos: Path) -> None:
    write_table(photos / "a.jsonl", [{"URL": "http://h/x", "Image_Path": "0.jpg", "TEXT": "a"}])
    [pair] = read(photos / "a.jsonl")
    assert isinstance(pair, Pair)
    assert (pair.image, pair.url) == (JPEG + b"0", "http://h/x")


def test_several_caption_columns(photos: Path) -> None:
    rows = [
        {"image": "0.jpg", "caption": ["a", " ", "b"], "alt.text": "c"},
        {"image": "1.jpg", "caption": "d", "alt.text": None},
        {"image": "2.jpg", "caption": [], "alt.text": "e"},
    ]
    write_table(photos / "a.jsonl", rows)
    first, second, third = read(photos / "a.jsonl", caption_columns=("caption", "alt.text"))
    assert isinstance(first, Pair)
    assert isinstance(second, Pair)
    assert first.captions == {"text": ["a", "b"], "text_alt_text": ["c"]}
    assert second.captions == {"text": ["d"]}
    assert third == Bad(uid="00000002", reason="empty caption")


def test_a_table_without_header_or_quotes(photos: Path) -> None:
    table = photos / "pairs.tsv"
    table.write_text('a 5" disk\t0.jpg\n"odd\t1.jpg\n', "utf-8")
    pairs = read(table, columns=("caption", "image"), quotes=False)
    assert texts(pairs) == ['a 5" disk', '"odd']
    assert "line 2" in failure(table, columns=("caption", "image"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"image,text\n", "no rows"),
        (b"image,text\n0.jpg,caf\xe9\n", "line 2 is not UTF-8"),
        ("image,text\n0.jpg,a\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"image,text\n", mtime=0), "compressed"),
        (b'image,text\n0.jpg,"open\n1.jpg,a\n', "--no-quotes"),
    ],
)
def test_csvs_that_cannot_be_read(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(data)
    assert message in failure(tmp_path / "pairs.csv")


def test_bad_lines_of_jsonl(photos: Path) -> None:
    table = photos / "pairs.jsonl"
    good = '{"image": "0.jpg", "text": "a"}\n'
    table.write_text(good + "{\n\n[1]\n" + '{"image": 7, "text": "a"}\n' + good, "utf-8")
    pairs = read(table)
    reasons = [pair.reason[:24] if isinstance(pair, Bad) else "" for pair in pairs]
    assert reasons == ["", "the line is not JSON: Ex", "the line is not a JSON o", *reasons[3:]]
    assert reasons[3:] == ["the image is of type int", ""]


def test_images_within_tables(photos: Path) -> None:
    packed = base64.b64encode(JPEG * 40).decode()
    write_table(
        photos / "a.jsonl",
        [
            {"image": packed, "text": "a"},
            {"image": f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}", "text": "b"},
            {"image": str(photos / "0.jpg"), "text": "c"},
            {"image": "data:image/jpeg;base64,", "text": "d"},
        ],
    )
    assert list(brief(read(photos / "a.jsonl")).values()) == [
        JPEG * 40,
        JPEG,
        JPEG + b"0",
        "the image is empty (0 bytes)",
    ]
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": JPEG, "path": None}, "text": ["a", "b"]},
        {"image": {"bytes": None, "path": "1.jpg"}, "text": ["c"]},
        {"image": {"bytes": b"", "path": None}, "text": ["c"]},
        {"image": None, "text": ["c"]},
    ]
    write_table(photos / "a.parquet", rows)
    pairs = read(photos / "a.parquet")
    assert list(brief(pairs).values()) == [JPEG, JPEG + b"1", "no image", "no image"]
    assert isinstance(pairs[0], Pair)
    assert pairs[0].captions == {"text": ["a", "b"]}


def test_parquet_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "a.parquet"
    table.write_bytes(b"PAR1 and then nothing")
    assert "not a parquet file" in failure(table)
    write_table(table, [{"image": "a", "text": "b"}] * 9)
    data = bytearray(table.read_bytes())
    data[4:60] = bytes(56)
    table.write_bytes(data)
    assert failure(table).startswith(f"{table}: cannot be read as parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[parquet\]"):
        open_pairs(str(table))


def test_urls(photos: Path, web: ImageServer) -> None:
    web.files["/good.jpg"] = JPEG
    paths = ["/good.jpg", "/status/404", "/slow/9", "/page", "/good.jpg"]
    rows = [{"image": web.url + path, "text": path} for path in paths]
    rows.insert(1, {"image": "0.jpg", "text": "local"})
    rows.insert(3, {"image": "1.jpg", "text": " "})
    write_table(photos / "a.csv", rows)
    pairs = read(photos / "a.csv", fetch=HASTY)
    assert brief(pairs) == {
        "00000000": JPEG,
        "00000001": JPEG + b"0",
        "00000002": f"cannot fetch {web.url}/status/404: status 404",
        "00000003": "empty caption",
        "00000004": f"cannot fetch {web.url}/slow/9: no answer within 1.5 s",
        "00000005": f"cannot fetch {web.url}/page: a web page or XML, not an image",
        "00000006": JPEG,
    }
    assert isinstance(pairs[0], Pair)
    assert pairs[0].url == web.url + "/good.jpg"
    assert pairs[0].meta == {"sha256": hashlib.sha256(JPEG).hexdigest()}


# --- folders


def test_folder(tmp_path: Path) -> None:
    files = {
        "a.jpg": JPEG,
        "a.txt": b"\xef\xbb\xbfan a\n",
        "b.PNG": JPEG + b"b",
        "b.txt": b"a b",
        "c/d.e.jpeg": JPEG + b"c",
        "c/d.e.txt": b"a c",
        "c_d/e.jpg": JPEG,
        "c_d/e.txt": b"the same uid",
        "f.jpg": JPEG,
        "g.txt": b"alone",
        "h.jpg": JPEG,
        "h.txt": b" \n",
        "i.jpg": b"",
        "i.txt": b"i",
        "j.jpg": JPEG,
        "j.txt": b"\xe9",
        "notes.md": b"x",
        ".hidden.jpg": b"x",
    }
    for name, data in files.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pairs = read(tmp_path / "set", shard_size=3)
    assert [pair.uid for pair in pairs] == ["a", "b", "c_d_e", "c_d_e", *"fghij"]
    good = [pair for pair in pairs if isinstance(pair, Pair)]
    assert [pair.captions["text"] for pair in good] == [["an a"], ["a b"], ["a c"]]
    assert [pair.meta["filepath"] for pair in good] == ["a.jpg", "b.PNG", "c/d.e.jpeg"]
    assert [pair.reason for pair in pairs if isinstance(pair, Bad)] == [
        "duplicate uid c_d_e: c/d.e.jpeg has the same uid",
        "there is no text for f.jpg",
        "there is no image for g.txt",
        "empty caption",
        "the image is empty (0 bytes)",
        "j.txt is not UTF-8",
    ]
    before = [shard.fingerprint for shard in open_pairs(str(tmp_path / "set"))]
    (tmp_path / "set" / "a.txt").write_bytes(b"an A")
    assert [shard.fingerprint for shard in open_pairs(str(tmp_path / "set"))] != before


def test_a_folder_named_by_a_dot(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "0.txt").write_text("zero", "utf-8")
    monkeypatch.chdir(photos)
    assert [p.uid for p in read(".") if isinstance(p, Pair)] == ["0"]


def test_folders_without_pairs(photos: Path) -> None:
    assert "give the path of its file" in failure(photos)
    assert "no such file" in failure(photos / "nowhere")


# --- tars


def tar_of(members: dict[str, bytes], *, packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue()) if packed else buffer.getvalue()


MEMBERS = {
    "0.jpg": JPEG + b"0",
    "0.txt": b"zero",
    "0.json": b'{"width": 3, "url": "http://h/0"}',
    "0.syn.json": b'{"syn_text": ["other"]}',
    "0.pth.gz": bytes(2000),
    "x/1.PNG": JPEG + b"1",
    "x/1.json": b'{"caption": "one", "alt": "uno"}',
    "2.jpg": b"",
    "2.txt": b"two",
    "3.txt": b"three",
    "3.url.txt": b"http://h/3\n",
    "4.jpg": JPEG,
    "5.jpg": JPEG,
    "5.txt": b"",
    "6.jpg": JPEG,
    "6.txt": b"six",
    "6.json": b"{",
    "y/0.jpg": JPEG,
    "y/0.txt": b"zero again",
    "7.jpg": JPEG,
    "7.png": JPEG,
    "7.txt": b"seven",
    "8.jpg": JPEG,
    "8.txt": b"eight",
}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_tar(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(tar_of(MEMBERS, packed=not name.endswith("tar")))
    [shard] = open_pairs(str(tmp_path / name))
    assert (shard.name, shard.size) == ("a", None)
    pairs = read(tmp_path / name)
    assert [(p.uid, p.image if isinstance(p, Pair) else p.reason) for p in pairs] == [
        ("0", JPEG + b"0"),
        ("x_1", JPEG + b"1"),
        ("2", "the image is empty (0 bytes)"),
        ("3", "no image, only a URL; fetching is off"),
        ("4", "no caption: there is no txt"),
        ("5", "empty caption"),
        ("6", pairs[6].reason if isinstance(pairs[6], Bad) else ""),
        ("y_0", JPEG),
        ("7", "several images (jpg, png): choose an --image-column"),
        ("8", JPEG),
    ]
    assert "json cannot be read" in str(pairs[6])
    assert isinstance(pairs[0], Pair)
    assert pairs[0].captions == {"text": ["zero"]}
    assert pairs[0].meta == {"width": 3, "url": "http://h/0"}
    assert pairs[0].url == "http://h/0"
    assert texts(pairs)[1] == "one"
    [only] = [p for p in read(tmp_path / name, caption_columns=("alt",)) if isinstance(p, Pair)]
    assert only.captions == {"text": ["uno"]}
    assert [p.uid for p in read(tmp_path / name, where={"width": 3})] == ["0", "6"]
    assert "7" in [p.uid for p in read(tmp_path / name, image_column="png") if isinstance(p, Pair)]


def test_fetching_what_a_tar_lacks(tmp_path: Path, web: ImageServer) -> None:
    web.files["/0.jpg"] = JPEG
    members = {"0.txt": b"a", "0.url.txt": f"{web.url}/0.jpg".encode()}
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    [pair] = read(tmp_path / "a.tar", fetch_missing=True, fetch=HASTY)
    assert isinstance(pair, Pair)
    assert (pair.image, pair.meta["sha256"]) == (JPEG, hashlib.sha256(JPEG).hexdigest())


def cuts() -> list[int]:
    return [*range(1, 512, 101), 512, 600, 1024, 1500, *range(2048, 6144, 256), 6144, 6300]


@pytest.mark.parametrize("packed", [False, True])
def test_tars_cut_anywhere(tmp_path: Path, packed: bool) -> None:
    members = {f"{i}.{end}": b"%d" % i * 300 for i in range(3) for end in ("jpg", "txt")}
    whole = tar_of(members, packed=packed)
    blocks = 1024  # header and 300 bytes
    for cut in cuts() if not packed else range(1, len(whole) - 8, 7):
        path = tmp_path / "a.tar"
        path.write_bytes(whole[:cut])
        *good, bad = read(path)
        if packed and isinstance(bad, Pair):
            assert len(good) == 2  # only zeros behind the end are lacking
            continue
        assert isinstance(bad, Bad)
        assert bad.uid == "a"
        assert bad.reason.startswith(f"{path}: ")
        assert all(isinstance(pair, Pair) for pair in good)
        if not packed:
            # A sample is known to be whole once the next one's header is there.
            assert len(good) == min(2, max(0, (cut - 512) // (2 * blocks)))
            if cut >= 512:
                assert f"truncated at byte {cut:,}" in bad.reason
    path.write_bytes(whole)
    assert [pair.uid for pair in read(path)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"x" * 600, "not a tar"), (b"\x1f\x8bxx", "")]
)
def test_files_that_are_not_tars(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    [bad] = read(tmp_path / "a.tar")
    assert isinstance(bad, Bad)
    assert reason in bad.reason


def test_a_damaged_tar(tmp_path: Path) -> None:
    data = bytearray(tar_of({f"{i}.{end}": JPEG for i in range(3) for end in ("jpg", "txt")}))
    data[4 * 1024 + 100 : 4 * 1024 + 200] = b"?" * 100
    (tmp_path / "a.tar").write_bytes(data)
    *good, bad = read(tmp_path / "a.tar", caption_columns=("jpg",), image_column="txt")
    assert isinstance(bad, Bad)
    assert "damaged at byte 4,096" in bad.reason
    assert len(good) == 1


def test_where_tars_are_found(tmp_path: Path) -> None:
    for index in range(3):
        members = {f"{index}.jpg": JPEG, f"{index}.txt": b"a"}
        (tmp_path / f"{index:05d}.tar").write_bytes(tar_of(members))
    (tmp_path / "index.json").write_text('{"version": 1}', "utf-8")
    (tmp_path / "info.json").write_text('{"shards": ["{00000..00002}.tar"]}', "utf-8")
    for source in ("", "*.tar", "{00000..00002}.tar", "info.json"):
        shards = open_pairs(str(tmp_path / source) if source else str(tmp_path))
        assert [shard.name for shard in shards] == ["00000", "00001", "00002"]
        assert len({shard.fingerprint for shard in shards}) == 3
    assert "no such file" in failure(tmp_path / "{00000..00003}.tar")
    twice = [str(tmp_path / "00000.tar"), str(tmp_path)]
    assert "same names" in failure(twice)


def test_the_same_name_in_two_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(tar_of({"0.jpg": JPEG, "0.txt": b"a"}))
    shards = open_pairs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [shard.name for shard in shards] == ["a_0", "b_0"]


def test_several_tables_have_different_uids(photos: Path) -> None:
    for name in "ab":
        write_table(photos / f"{name}.csv", [{"image": "0.jpg", "text": name}])
    pairs = read(str(photos / "*.csv"))
    assert [pair.uid for pair in pairs] == ["a_00000000", "b_00000000"]
    names = [shard.name for shard in open_pairs(str(photos / "{a,b}.csv"))]
    assert names == ["a_00000000", "b_00000000"]


# --- tfrecords


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(**features: Any) -> bytes:
    """Return a serialised tf.train.Example, made from the format's description."""
    entries = b""
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, int) for v in values):
            kind, items = 3, field(1, b"".join(map(varint, values)))
        elif all(isinstance(v, float) for v in values):
            kind, items = 2, field(1, struct.pack(f"<{len(values)}f", *values))
        else:
            encoded = [v.encode() if isinstance(v, str) else v for v in values]
            kind, items = 1, b"".join(field(1, v) for v in encoded)
        key = field(1, name.replace("__", "/").encode())
        entries += field(1, key + field(2, field(kind, items)))
    return field(1, entries)


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checks) + data + next(checks)


def test_tfrecords(tmp_path: Path) -> None:
    rows = [
        example(image__encoded=JPEG, caption="né", width=-3, score=[0.5, 1.5], key="a"),
        example(image__encoded=JPEG + b"1", caption=["one", "uno"], width=5, key="b"),
        example(image__encoded=b"", caption="two", key="a"),
        example(image__encoded=JPEG, caption="", key="c"),
        b"\xff\xff",
        example(image__encoded=JPEG, caption="five", key="d"),
    ]
    for name, pack in (("a.tfrecord", bytes), ("b.tfrecords.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b"".join(map(frame, rows))))
        pairs = read(path, meta_columns=("width", "score"))
        assert brief(pairs) == {
            "00000000": JPEG,
            "00000001": JPEG + b"1",
            "00000002": "no image",
            "00000003": "empty caption",
            "00000004": pairs[4].reason if isinstance(pairs[4], Bad) else "",
            "00000005": JPEG,
        }
        assert isinstance(pairs[0], Pair)
        assert isinstance(pairs[1], Pair)
        assert pairs[0].captions == {"text": ["né"]}
        assert pairs[0].meta == {"width": -3, "score": [0.5, 1.5]}
        assert pairs[1].captions == {"text": ["one", "uno"]}
        reasons = {p.uid: p.reason for p in read(path, uid_column="key") if isinstance(p, Bad)}
        assert reasons["a"].startswith("duplicate uid a")
        assert [p.uid for p in read(path, where={"width": 5}) if isinstance(p, Pair)] == [
            "00000001"
        ]
    assert "there is no column 'x'" in failure(path, image_column="x")


def test_tfrecords_cut_and_damaged(tmp_path: Path) -> None:
    frames = [frame(example(image=JPEG, text=f"{i}")) for i in range(3)]
    whole, ends = b"".join(frames), [len(frames[0]) * (i + 1) for i in range(3)]
    path = tmp_path / "train.tfrecord-00000-of-00002"
    for cut in range(1, len(whole), 5):
        path.write_bytes(whole[:cut])
        pairs = read(path)
        good = [pair for pair in pairs if isinstance(pair, Pair)]
        assert len(good) == sum(end <= cut for end in ends)
        if cut not in ends:
            assert pairs[-1] == Bad(
                uid="train-00000-of-00002", reason=f"{path}: the file is truncated at byte {cut:,}"
            )
    for place, reason in ((0, "not a tfrecord file"), (ends[0] + 20, "in the record at byte")):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        bad = read(path)[-1]
        assert isinstance(bad, Bad)
        assert reason in bad.reason


@pytest.mark.parametrize("function", [crc32c, crc32c_numpy])
def test_crc32c(function: Callable[[bytes], int]) -> None:
    # RFC 3720, B.4.
    assert function(bytes(32)) == 0x8A9136AA
    assert function(b"\xff" * 32) == 0x62A8AB43
    assert function(bytes(range(32))) == 0x46DD794E
    assert function(b"123456789") == 0xE3069283


@given(st.binary(max_size=50), st.integers(1000, 5000))
def test_crc32c_of_long_data(seed: bytes, length: int) -> None:
    data = (seed + b"\x01") * (length // (len(seed) + 1) + 1)
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c_numpy(data) == crc ^ 0xFFFFFFFF


@given(st.binary(max_size=5000))
def test_google_crc32c_agrees(data: bytes) -> None:
    google_crc32c = pytest.importorskip("google_crc32c")
    assert crc32c(memoryview(data)) == crc32c_numpy(data) == google_crc32c.value(data)


# --- object stores, processes, real data


def test_everything_from_a_store(s3: S3Server, photos: Path) -> None:
    write_table(photos / "a.csv", [{"image": f"{i}.jpg", "text": f"{i}"} for i in (*range(10), 99)])
    write_table(photos / "a.parquet", [{"image": f"{i}.jpg", "text": f"{i}"} for i in range(3)])
    for name in ("a.csv", "a.parquet", *(f"{i}.jpg" for i in range(10))):
        s3.put(f"bucket/set/{name}", (photos / name).read_bytes())
    s3.put("bucket/set/0.txt", b"zero")
    s3.put("bucket/tars/0.tar", tar_of(MEMBERS))
    s3.put("bucket/tars/1.tar", tar_of(MEMBERS)[:2000])
    pairs = read("s3://bucket/set/a.csv", shard_size=4)
    expected: dict[str, Any] = {f"{i:08d}": JPEG + b"%d" % i for i in range(10)}
    missing = "s3://bucket/set/99.jpg: no such object; check the path"
    assert brief(pairs) == {**expected, "00000010": missing}
    assert len(read("s3://bucket/set/a.parquet")) == 3
    assert len([p for p in read("s3://bucket/tars") if isinstance(p, Pair)]) == 4
    assert [shard.name for shard in open_pairs("s3://bucket/tars/{0..1}.tar")] == ["0", "1"]
    storage.remove("s3://bucket/set/a.parquet")
    assert [p.uid for p in read("s3://bucket/set") if isinstance(p, Pair)] == ["0"]
    assert "no bucket 'nowhere'" in failure("s3://nowhere/a.csv")
    assert "no such object" in failure("s3://bucket/tars/{0..2}.tar")


def test_a_store_that_goes_away_is_no_bad_pair(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketclip.storage.s3_file_system import PatientS3

    s3.put("bucket/a.csv", b"image,text\n0.jpg,a\n")
    [shard] = open_pairs("s3://bucket/a.csv")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    PatientS3.clear_instance_cache()
    with pytest.raises(StorageError, match="cannot be reached"):
        list(shard)


def _uids(shard: PairShard) -> list[str]:
    return [pair.uid for pair in shard]


def test_a_spawned_process_reads_the_same(photos: Path) -> None:
    write_table(photos / "a.csv", [{"image": f"{i}.jpg", "text": f"{i}"} for i in range(10)])
    shards = open_pairs(str(photos / "a.csv"), PairOptions(shard_size=5))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map_async(_uids, shards).get(30) == [_uids(shard) for shard in shards]


@pytest.mark.parametrize(
    "options", [{"shard_size": 0}, {"delimiter": "::"}, {"caption_columns": "text"}]
)
def test_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PairOptions(**options)


def test_unknown_formats(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"")
    assert "unknown format of pairs" in failure(tmp_path / "a.xlsx")
    assert "no such file" in failure(tmp_path / "a.csv")
    assert "no input given" in failure([])


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
def test_the_grocery_photographs() -> None:
    options = {"caption_columns": ("alt_text", "caption"), "where": {"split": "train"}}
    pairs = read(SHARED / "data" / "grocery" / "pairs.csv", **options)
    assert len(pairs) == 2640
    assert all(isinstance(pair, Pair) for pair in pairs)
    rows = (SHARED / "data" / "grocery" / "pairs.csv").read_text("utf-8").splitlines()[1:]
    last = pairs[-1]
    assert isinstance(last, Pair)
    assert rows[int(last.uid)].startswith(last.meta["filepath"])


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
def test_published_shards_are_pairs() -> None:
    pairs = read(SHARED / "golden" / "shards")
    assert len(pairs) >= 8
    for pair in pairs:
        assert isinstance(pair, Pair)
        assert set(pair.captions) == {"text"}
        assert pair.url


# What is no caption, and what separates columns: tables as people have them.


def test_cells_that_are_not_text(photos: Path) -> None:
    cells = [
        "NaN",
        "null",
        "7",
        '["a", "b"]',
        '{"a": 1}',
        "true",
        '"nan"',
        "3.0",
        "[NaN, null]",
        "[]",
    ]
    lines = [f'{{"image": "0.jpg", "caption": {cell}}}\n' for cell in cells]
    lines += ['{"image": NaN, "caption": "x"}\n', '{"image": true, "caption": "x"}\n']
    (photos / "a.jsonl").write_text("".join(lines))
    found = brief(read(photos / "a.jsonl"))
    good = [uid for uid, what in found.items() if isinstance(what, bytes)]
    assert [int(uid) for uid in good] == [2, 3, 6, 7]
    assert found["00000000"] == "empty caption"
    assert found["00000004"] == "the caption is an object, not text"
    assert found["00000005"] == "the caption is true, not text"
    assert found["00000010"] == "no image"
    pairs = {p.uid: p for p in read(photos / "a.jsonl") if isinstance(p, Pair)}
    assert pairs["00000007"].captions == {"text": ["3"]}
    assert pairs["00000006"].captions == {"text": ["nan"]}  # a text of a table is a text


def test_parquet_of_floats_and_bytes(photos: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    columns = {
        "image": ["0.jpg"] * 4,
        "caption": pa.array([b"caf\xc3\xa9", b"\xff\xfe", b"", None]),
        "number": [1.0, float("nan"), 2.5, None],
    }
    parquet.write_table(pa.table(columns), photos / "a.parquet")
    pairs = read(photos / "a.parquet", uid_column="number", meta_columns=("number",))
    assert isinstance(pairs[0], Pair)
    assert (pairs[0].uid, pairs[0].captions) == ("1", {"text": ["caf\u00e9"]})
    assert [pair.reason for pair in pairs[1:] if isinstance(pair, Bad)] == [
        "no uid", "the caption is a bytes, not text", "no uid"]  # fmt: skip
    [only] = read(photos / "a.parquet", where={"number": "1"})
    assert isinstance(only, Pair)
    json.dumps([pair.meta for pair in pairs if isinstance(pair, Pair)], allow_nan=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image;caption\n0.jpg;hi, you\n"),
        ("a.csv", "image\tcaption\n0.jpg\thi, you\n"),
        ("a.csv", 'image|caption\n0.jpg|"hi, you"\n'),
        ("a.csv", 'image,caption\n0.jpg,"hi, you"\n'),
        ("a.tsv", 'image,caption\n0.jpg,"hi, you"\n'),
        ("a.tsv", "image\tcaption\n0.jpg\thi, you\n"),
        ("a.csv", 'image,"caption;text|title"\n0.jpg,"hi, you"\n'),
        ("a.csv", "sep=;\r\nimage;caption\r\n0.jpg;hi, you\r\n"),
        ("a.csv", "\ufeffimage;caption\n0.jpg;hi, you\n"),
        ("a.csv", 'image;"caption"\n0.jpg;"hi, you"\n'),
        ("a.csv", "title\tfilepath\nhi, you\t0.jpg\n"),
    ],
)
def test_delimiters_are_recognised(photos: Path, name: str, text: str) -> None:
    (photos / name).write_text(text, "utf-8", newline="")
    column = ("caption;text|title",) if "title" in text and "filepath" not in text else ()
    [pair] = read(photos / name, caption_columns=column)
    assert isinstance(pair, Pair)
    assert pair.captions["text"] == ["hi, you"]


def test_requested_delimiters(photos: Path) -> None:
    (photos / "a.csv").write_text("image:caption\n0.jpg:hi\n")
    assert "--delimiter" in failure(photos / "a.csv")
    [pair] = read(photos / "a.csv", delimiter=":")
    assert isinstance(pair, Pair)
    (photos / "b.csv").write_text("0.jpg;hi\n1.jpg;you\n")
    pairs = read(photos / "b.csv", columns=("image", "caption"))
    assert [pair.captions for pair in pairs if isinstance(pair, Pair)] == [
        {"text": ["hi"]}, {"text": ["you"]}]  # fmt: skip


def test_lines_end_at_newlines(photos: Path) -> None:
    caption = "one\u2028still one\x85\x0cone\x1cone"
    (photos / "a.csv").write_text(f"image,caption\n0.jpg,{caption}\n", "utf-8", newline="")
    (photos / "a.jsonl").write_text(
        json.dumps({"image": "0.jpg", "caption": caption}, ensure_ascii=False) + "\n", "utf-8"
    )
    for name in ("a.csv", "a.jsonl"):
        [pair] = read(photos / name)
        assert isinstance(pair, Pair)
        assert pair.captions == {"text": [caption]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("image,caption\n0.jpg,caf\u00e9\n".encode("cp1252"), "line 2 is not UTF-8"),
        ("image\tcaption\n0.jpg\tcaf\u00e9\n".encode("utf-16"), "is UTF-16"),
        ("image,caption\n0.jpg,caf\u00e9\n".encode("utf-16-le"), "is UTF-16"),
        (b"image,caption\n" + b"0.jpg," + b"a" * (1 << 26), "longer than"),
        (b'image,caption\n0.jpg,"never closed\n' + b"1.jpg,b\n" * 20, "--no-quotes"),
    ],
)
def test_tables_of_other_text(photos: Path, data: bytes, reason: str) -> None:
    (photos / "a.csv").write_bytes(data)
    assert reason in failure(photos / "a.csv")


def test_rows_that_are_hostile(photos: Path) -> None:
    lines = [
        b'{"image": "0.jpg", "caption": "good"}',
        b'{"a":' * 50_000,
        b'{"image": "0.jpg", "caption": "cut \\ud83d"}',
        b'{"image": "0.jpg", "caption": "a", "caption": "b"}',
        b'{"image": "0.jpg", "caption": ' + b"9" * 5_000 + b"}",
        b"[" + b"{}," * 2_000_000 + b"{}]",
        b"\0",
    ]
    (photos / "a.jsonl").write_bytes(b"\n".join(lines))
    found = list(brief(read(photos / "a.jsonl")).values())
    assert found[0] == JPEG + b"0"
    reasons = [
        "levels deep",
        "half of a surrogate pair",
        "twice",
        "too large",
        "too many values",
        "JSON",
    ]
    assert len(found) == 1 + len(reasons)
    for what, reason in zip(found[1:], reasons, strict=True):
        assert reason in str(what)


def test_nul_in_a_csv_is_a_bad_row(photos: Path) -> None:
    (photos / "a.csv").write_bytes(b"image,caption\n0.jpg,a\0b\n1.jpg,c\n")
    assert list(brief(read(photos / "a.csv")).values()) == ["the row holds NUL bytes", JPEG + b"1"]


# Where images may be.


def test_other_schemes_are_bad_pairs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")

    def dialled(path: str) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(storage.paths, "connect", dialled)
    places = ["ftp://host/a.jpg", "zip://a.jpg::/etc/passwd", "memory://a/b.jpg", "sftp://h/a"]
    places += [
        "github://a:b@/c.jpg",
        "FTP://host/a.jpg",
        "s3://a/b::http://127.0.0.1/",
        "gopher://x",
    ]
    places += ["smb://h/a", "dask://a", "reference://a", "ssh://h/a"]
    write_table(photos / "a.csv", [{"image": p, "text": "x"} for p in [*places, "0.jpg"]])
    found = list(brief(read(photos / "a.csv")).values())
    assert found[-1] == JPEG + b"0"
    for place, what in zip(places, found, strict=False):
        assert str(what).startswith(place)
        assert "not read" in str(what)


def test_file_urls(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    folder.mkdir()
    for name in ("a b.jpg", "100%.jpg", "caf\u00e9.jpg", "x%20y.jpg"):
        (folder / name).write_bytes(JPEG)
    base = "file://" + str(folder).replace(" ", "%20")
    rows = [f"{base}/a%20b.jpg", f"file://{folder}/a b.jpg", f"{base}/caf%C3%A9.jpg"]
    rows += [base.replace("file://", "FILE://LOCALHOST") + "/100%25.jpg", f"file:{folder}/100%.jpg"]
    rows += [f"file://{folder}/x%20y.jpg", f"{base}/x%2520y.jpg"]
    write_table(folder / "a.csv", [{"image": row, "text": "x"} for row in rows])
    for table in (str(folder / "a.csv"), f"{base}/a.csv"):
        assert list(brief(read(table)).values()) == [JPEG] * len(rows)
    (tmp_path / "list.json").write_text(json.dumps([f"{base}/a.csv"]))
    assert len(read(tmp_path / "list.json")) == len(rows)


def test_what_is_no_file_is_a_bad_pair(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketclip.pairs import loading

    monkeypatch.setattr(loading, "_LARGEST_IMAGE", 1_000)
    os.mkfifo(photos / "pipe.jpg")
    (photos / "large.jpg").write_bytes(bytes(1_001))
    (photos / "folder.jpg").mkdir()
    names = ["pipe.jpg", "/dev/zero", "large.jpg", "folder.jpg"]
    write_table(photos / "a.csv", [{"image": name, "text": "x"} for name in names])
    found = list(brief(read(photos / "a.csv")).values())
    for what, reason in zip(found, ["a pipe", "a device", "larger", "directory"], strict=True):
        assert reason in str(what)


def test_private_urls_are_bad_pairs(photos: Path, web: ImageServer) -> None:
    web.files["/good.jpg"] = JPEG
    rows = [{"image": f"{web.url}/good.jpg", "text": "a"}, {"image": "0.jpg", "text": "b"}]
    write_table(photos / "a.csv", rows)
    bad, good = brief(read(photos / "a.csv")).values()
    assert good == JPEG + b"0"
    assert "--allow-private" in str(bad)
    assert not web.asked


def test_the_images_of_img2dataset(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = tmp_path / "files"
    (folder / "00000").mkdir(parents=True)
    for number in range(2):
        (folder / "00000" / f"00000000{number}.jpg").write_bytes(JPEG)
        (folder / "00000" / f"00000000{number}.txt").write_text(f"caption {number}")
        (folder / "00000" / f"00000000{number}.json").write_text("{}")
    urls = {"url": ["http://127.0.0.1:9/a.jpg"] * 2, "caption": ["a", "b"]}
    parquet.write_table(pa.table(urls), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    assert brief(read(folder)) == {"00000_000000000": JPEG, "00000_000000001": JPEG}
    assert len(read(folder / "00000")) == 2
    assert len(open_pairs(str(folder / "00000.parquet"))) == 1  # by its own name, the table


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tar"])
def test_where_knows_numbers(photos: Path, name: str) -> None:
    """3.0 is 3, as pandas writes whole numbers of a column that has empty cells."""
    values = [3, 3.0, "3.0", None, "None", 30]
    image = (photos / "0.jpg").read_bytes()
    rows = [{"image": "0.jpg", "caption": str(i), "n": n} for i, n in enumerate(values)]
    if name == "a.tar":
        files = [
            (f"{i}.{suffix}", data)
            for i, row in enumerate(rows)
            for suffix, data in (("jpg", image), ("json", json.dumps(row).encode()))
        ]
        with tarfile.open(photos / name, "w") as tar:
            for path, data in files:
                facts = tarfile.TarInfo(path)
                facts.size = len(data)
                tar.addfile(facts, io.BytesIO(data))
    elif name == "a.jsonl":
        (photos / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [f"0.jpg,{i},{'' if n is None else n}" for i, n in enumerate(values)]
        (photos / name).write_text("\n".join(["image,caption,n", *lines]) + "\n")

    def taken(wanted: object) -> list[str]:
        pairs = read(photos / name, where={"n": wanted})
        return [pair.captions["text"][0] for pair in pairs if isinstance(pair, Pair)]

    for wanted in (3, "3", "3.0", 3.0):
        assert taken(wanted) == ["0", "1", "2"]
    assert taken("") == ["3"]
    assert taken("None") == ["4"]


def test_a_caption_file_that_is_too_large_is_one_bad_pair(photos: Path) -> None:
    (photos / "set").mkdir()
    for stem in ("a", "b"):
        (photos / "set" / f"{stem}.jpg").write_bytes((photos / "0.jpg").read_bytes())
    (photos / "set" / "a.txt").write_text("a dog")
    with (photos / "set" / "b.txt").open("wb") as stream:
        stream.truncate(6 << 30)  # takes no room on the disk
    good, bad = read(photos / "set")
    assert isinstance(good, Pair)
    assert isinstance(bad, Bad)
    assert bad.reason == "b.txt is larger than 16,777,216 bytes"
