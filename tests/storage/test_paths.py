from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketclip import storage
from pocketclip.errors import MissingDependencyError, StorageError
from pocketclip.storage import stores
from tests.s3_server import S3Server, Wire


def failure(function, *args: object) -> str:
    """Call what has to fail, and return the message."""
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        function(*args)
    assert time.monotonic() - started < 30  # a limit for the hung, not a measurement
    message = str(caught.value)
    assert "\n" not in message
    return message


def names_in(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(params=["local", "s3", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder: on the disk, in a bucket, and in fsspec's own memory."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/base"
    if request.param == "memory":
        from fsspec.implementations.memory import MemoryFileSystem

        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        return "memory://base"
    return str(tmp_path / "base")


# --- wherever it is


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://bucket/x", True),
        ("gs://bucket/x", True),
        ("https://host/x", True),
        ("file:///x", False),
        ("/x/s3://y", False),
        ("C:\\x", False),
        ("x.tar", False),
    ],
)
def test_is_remote(path: str, remote: bool) -> None:
    assert storage.is_remote(path) is remote


def test_join() -> None:
    assert storage.join("s3://b/x/", "y", "z.tar") == "s3://b/x/y/z.tar"
    assert storage.join("x", "y", "z.tar") == str(Path("x", "y", "z.tar"))


def test_write_then_read(base: str) -> None:
    path = storage.join(base, "deep", "a.bin")
    assert not storage.exists(path)
    storage.write_bytes(path, b"old")
    storage.write_bytes(path, b"0123456789")
    assert storage.exists(path)
    assert storage.size(path) == 10
    assert storage.read_bytes(path) == b"0123456789"
    assert storage.is_folder(base)
    assert not storage.is_folder(path)
    with storage.open_read(path) as stream:
        assert stream.read(3) == b"012"
        assert stream.seek(-2, 2) == 8
        assert stream.read() == b"89"
        assert stream.seek(4) == 4
        assert stream.read(1) == b"4"
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)
    assert "no such" in failure(storage.read_bytes, path)
    assert path in failure(storage.open_read, path)
    assert path in failure(storage.size, path)


def test_listing(base: str) -> None:
    assert storage.list_files(base) == []
    for name in ("b.tar", "a.TAR", ".a.tar.tmp", "c.json", "sub/d.tar", ".hidden/e.tar"):
        storage.write_bytes(storage.join(base, *name.split("/")), name.encode())
    names = [path.removeprefix(base)[1:] for path in storage.list_files(base)]
    assert names == ["a.TAR", "b.tar", "c.json"]
    assert storage.list_files(base, (".tar",))[1] == storage.join(base, "b.tar")
    deep = [p.removeprefix(base)[1:] for p in storage.list_files(base, (".tar",), recursive=True)]
    assert deep == ["a.TAR", "b.tar", str(Path("sub/d.tar"))]
    assert storage.list_sizes(base, (".json",)) == [(storage.join(base, "c.json"), 6)]


def test_a_failed_block_leaves_the_old_file(base: str) -> None:
    path = storage.join(base, "a")
    storage.write_bytes(path, b"old")

    def write() -> None:
        with storage.write_whole(path) as local:
            local.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert storage.read_bytes(path) == b"old"
    assert storage.list_files(base) == [path]
    if not storage.is_remote(base):
        assert names_in(base) == ["a"]


# --- patterns and lists


@pytest.mark.parametrize(
    ("pattern", "spelt"),
    [
        ("s3://b/{00008..00010}.tar", ["00008", "00009", "00010"]),
        ("s3://b/{8..10}.tar", ["8", "9", "10"]),
        ("s3://b/{2..0}.tar", ["2", "1", "0"]),
        ("s3://b/{x,y}{0..1}.tar", ["x0", "x1", "y0", "y1"]),
        ("s3://b/{x}.tar", ["{x}"]),
    ],
)
def test_braces(pattern: str, spelt: list[str]) -> None:
    assert storage.expand(pattern) == [f"s3://b/{name}.tar" for name in spelt]


def test_globs(base: str) -> None:
    for name in ("1.tar", "0.tar", "0.txt", ".2.tar"):
        storage.write_bytes(storage.join(base, name), b"")
    expected = [storage.join(base, "0.tar"), storage.join(base, "1.tar")]
    assert storage.expand(storage.join(base, "*.tar")) == expected
    assert storage.expand(storage.join(base, "{0..1}.tar")) == expected
    assert "matches" in failure(storage.expand, storage.join(base, "*.csv"))


def test_an_existing_file_is_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "a[1]{0..3}.tar"
    path.write_bytes(b"")
    assert storage.expand(str(path)) == [str(path)]


@pytest.mark.parametrize(
    "listing",
    [
        ["0.tar", "x/1.tar"],
        {"shards": ["0.tar", "x/1.tar"], "version": 1},
        {"files": [{"path": "0.tar"}, {"name": "x/1.tar"}]},
        {"shardlist": [{"url": "0.tar", "nsamples": 3}, {"url": "x/1.tar", "nsamples": 3}]},
        {"lengths": {"0.tar": 3, "x/1.tar": 3}, "config": {"workers": 4}},
        {"urls": ["0.tar", "x/{1..1}.tar"]},
    ],
)
def test_lists(base: str, listing: object) -> None:
    path = storage.join(base, "info.json")
    storage.write_bytes(path, json.dumps(listing).encode())
    assert storage.expand(path) == [storage.join(base, "0.tar"), storage.join(base, "x", "1.tar")]


def test_lists_of_whole_paths(tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text('["s3://b/0.tar", "/data/1.tar"]', "utf-8")
    assert storage.expand(str(path)) == ["s3://b/0.tar", "/data/1.tar"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "[1]", '{"shards": [{}]}', '"x"'])
def test_bad_lists(tmp_path: Path, text: str) -> None:
    path = tmp_path / "info.json"
    path.write_text(text, "utf-8")
    assert "list" in failure(storage.expand, str(path))


# --- what goes wrong


def test_a_full_disk(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = storage.join(base, "a")
    storage.write_bytes(path, b"old")

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert failure(storage.write_bytes, path, b"new") == (
        f"{path}: cannot write: the disk is full; free some space and run the command again"
    )
    assert storage.read_bytes(path) == b"old"
    assert storage.list_files(base) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    def write() -> None:
        with storage.write_whole(str(tmp_path / "a")) as local:
            local.symlink_to("/dev/full")
            with local.open("wb") as stream:
                stream.write(b"x")

    assert "the disk is full" in failure(write)
    assert names_in(tmp_path) == []


def test_errors_of_the_block_are_not_ours(tmp_path: Path) -> None:
    def write() -> None:
        with storage.write_whole(str(tmp_path / "a")):
            (tmp_path / "elsewhere").read_bytes()

    with pytest.raises(FileNotFoundError):
        write()


def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "cannot write" in failure(storage.write_bytes, str(tmp_path / "file" / "a"), b"")
    (tmp_path / "folder").mkdir()
    assert "cannot write" in failure(storage.write_bytes, str(tmp_path / "folder"), b"")
    assert "cannot read" in failure(storage.read_bytes, str(tmp_path / "folder"))
    assert names_in(tmp_path) == ["file", "folder"]


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_and_a_missing_object_differ() -> None:
    assert "no such object" in failure(storage.read_bytes, "s3://bucket/a")
    for function in (storage.read_bytes, storage.open_read, storage.list_files, storage.size):
        assert "there is no bucket 'nowhere'" in failure(function, "s3://nowhere/a")
    assert "there is no bucket 'nowhere'" in failure(storage.write_bytes, "s3://nowhere/a", b"")


@pytest.mark.usefixtures("s3")
def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials" in failure(storage.read_bytes, "s3://bucket/a")


def test_access_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def denied(*_args: object, **_kwargs: object) -> bytes:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", denied)
    assert "access denied" in failure(storage.read_bytes, "memory://a")


@pytest.mark.usefixtures("s3")
def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for function in (storage.read_bytes, storage.exists, storage.list_files):
        message = failure(function, "s3://bucket/a")
        assert message.startswith("s3://bucket/a: the store cannot be reached")
        assert "AWS_ENDPOINT_URL" in message


def test_a_store_that_goes_away_while_it_is_read(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    s3.put("bucket/a", bytes(4 << 20))
    with Wire(s3.port) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
        stream = storage.open_read("s3://bucket/a")
        stream.read(10)
    with stream:
        assert failure(stream.read).startswith("s3://bucket/a: ")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[reinforce\]"):
        storage.read_bytes("s3://bucket/a")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match="pip install gcsfs"):
        storage.read_bytes("gs://bucket/a")
    assert "cannot set up what://" in failure(storage.read_bytes, "what://bucket/a")


# --- several processes, and killed ones

WRITE = (
    "import sys; from pocketclip import storage; "
    "storage.write_bytes(sys.argv[1], sys.argv[2].encode() * int(sys.argv[3]))"
)


def writer(path: str, letter: str, count: int, **environ: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITE, path, letter, str(count)]
    source = str(Path(storage.__file__).parents[2])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source, **environ})


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        pytest.param(8 << 20, 4 << 20, id="one put", marks=pytest.mark.slow),
        pytest.param(40 << 20, 20 << 20, id="parts"),
    ],
)
def test_a_killed_upload_leaves_no_half_object(s3: S3Server, size: int, sent: int) -> None:
    s3.put("bucket/old", b"old")
    for path in ("bucket/new", "bucket/old"):
        with Wire(s3.port, limit=sent) as wire:
            process = writer(f"s3://{path}", "x", size, AWS_ENDPOINT_URL=wire.url)
            try:
                assert wire.stalled.wait(30)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
    time.sleep(0.1)  # the server has noticed by now
    assert s3.keys("bucket") == ["old"]
    assert storage.list_files("s3://bucket") == ["s3://bucket/old"]
    assert s3.get("bucket/old") == b"old"
    storage.write_bytes("s3://bucket/new", b"again")
    assert s3.get("bucket/new") == b"again"


def test_large_objects_go_up_in_parts(s3: S3Server) -> None:
    data = os.urandom(1 << 20) * 33
    storage.write_bytes("s3://bucket/a", data)
    assert s3.get("bucket/a") == data
    assert s3.unfinished("bucket") == 0


def test_several_processes_write_one_path(base: str) -> None:
    if base.startswith("memory"):
        pytest.skip("other processes have another memory")
    path = storage.join(base, "a")
    processes = [writer(path, letter, 1 << 20) for letter in "xyz"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert storage.read_bytes(path) in [letter * (1 << 20) for letter in (b"x", b"y", b"z")]
    assert storage.list_files(base) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_forked_process_reads_too(s3: S3Server) -> None:
    s3.put("bucket/a", b"abc")
    assert storage.read_bytes("s3://bucket/a") == b"abc"  # starts fsspec's thread here
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply_async(storage.read_bytes, ("s3://bucket/a",)).get(20) == b"abc"


def test_errors_can_be_sent_to_another_process(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(str(tmp_path / "a"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["pipe.csv", "/dev/zero"])
def test_a_pipe_or_device_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(StorageError, match="a pipe, socket or device, not a file"):
        storage.open_read(str(tmp_path / name))


def test_not_more_is_read_than_the_limit(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(storage.MAX_BYTES + 1)
    with pytest.raises(StorageError, match="large: larger than 268,435,456 bytes"):
        storage.read_bytes(str(large))
    large.write_bytes(b"1234")
    assert storage.read_bytes(str(large), max_bytes=4) == b"1234"
    with pytest.raises(StorageError, match="larger than 3 bytes"):
        storage.read_bytes(str(large), max_bytes=3)
    with pytest.raises(StorageError, match="larger than 5 bytes"):
        storage.read_bytes("/dev/zero", max_bytes=5)
    with pytest.raises(StorageError, match="a pipe or a device"):
        storage.read_bytes("/dev/zero", max_bytes=5, regular=True)


def test_an_empty_path_is_no_folder_to_write_to():
    with pytest.raises(StorageError, match="the path is empty"):
        storage.remove_abandoned("")
