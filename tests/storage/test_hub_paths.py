"""hf:// paths: read from a hub on 127.0.0.1 through huggingface_hub's file system."""

from __future__ import annotations

import multiprocessing
import sys
import time
import types

import pytest

from pocketclip import storage
from pocketclip.errors import StorageError
from pocketclip.storage import hub_settings, hub_store, retries
from pocketclip.storage.hub_store import parse
from pocketclip.storage.stores import NotThereError
from tests.hub_uploads import Account

SET = "hf://datasets/owner/set"
FILES = {
    "README.md": b"a set",
    "shards/00000000.tar": bytes(range(256)) * 50,
    "shards/00000001.tar": b"1" * 1024,
    "shards/.hidden.tar": b"h",
    "shards/deep/index.json": b'{"a": 1}',
    "empty.txt": b"",
}


@pytest.fixture
def owned(hub, monkeypatch):
    """The hub with a dataset; waiting takes no time."""
    waits = []
    monkeypatch.setattr(retries, "time", types.SimpleNamespace(sleep=waits.append))
    hub_store._file_systems.clear()
    hub_store._commits.clear()
    hub.repos["datasets/owner/set"] = dict(FILES)
    hub.waits = waits
    return hub


def _asked(hub, what):
    return [request.path for request in hub.requests if what in request.path]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("datasets/o/n/a/b.tar", ("dataset", "o/n", "main", "a/b.tar")),
        ("datasets/o/n", ("dataset", "o/n", "main", "")),
        ("o/n/x.csv", ("model", "o/n", "main", "x.csv")),
        ("datasets/o/n@v1/x", ("dataset", "o/n", "v1", "x")),
        ("datasets/o/n@refs/pr/3/x/y", ("dataset", "o/n", "refs/pr/3", "x/y")),
        ("datasets/o/n@refs/convert/parquet/x", ("dataset", "o/n", "refs/convert/parquet", "x")),
        ("datasets/o/n@a%2Fb/x", ("dataset", "o/n", "a/b", "x")),
    ],
)
def test_a_path_names_repository_revision_and_file(path, expected):
    parts = parse(f"hf://{path}")
    assert (parts.kind, parts.repo, parts.revision, parts.inner) == expected


@pytest.mark.parametrize(
    "path", ["datasets/imagenet", "datasets", "", "buckets/o/b/x", "datasets/o/n@/x",
             "datasets/o/n/../x", "datasets/o/n@a b/x", "datasets/o*/n/x"]
)  # fmt: skip
def test_what_is_no_path_on_the_hub_is_refused_without_a_request(path, owned):
    for function in (storage.read_bytes, storage.is_folder, storage.list_files):
        with pytest.raises(StorageError, match=r"hf://"):
            function(f"hf://{path}")
    assert not owned.requests


def test_a_repository_is_named_as_it_was_written():
    with pytest.raises(StorageError, match="'imagenet' is not a repository"):
        parse("hf://datasets/imagenet")


@pytest.mark.usefixtures("owned")
def test_files_are_read_listed_and_matched():
    assert storage.read_bytes(f"{SET}/shards/00000000.tar") == FILES["shards/00000000.tar"]
    assert storage.read_bytes(f"{SET}/empty.txt") == b""
    with storage.open_read(f"{SET}/shards/00000000.tar") as stream:
        stream.seek(1000)
        assert stream.read(3) == FILES["shards/00000000.tar"][1000:1003]
        stream.seek(-2, 2)
        assert stream.read() == b"\xfe\xff"
    assert storage.exists(f"{SET}/README.md")
    assert not storage.exists(f"{SET}/nothing")
    assert storage.is_folder(SET)
    assert storage.is_folder(f"{SET}/shards/deep")
    assert not storage.is_folder(f"{SET}/README.md")
    assert storage.size(f"{SET}/shards/00000001.tar") == 1024
    tars = [f"{SET}/shards/0000000{number}.tar" for number in range(2)]
    assert storage.list_files(f"{SET}/shards") == tars
    assert storage.list_files(SET, recursive=True) == sorted(
        f"{SET}/{name}" for name in FILES if ".hidden" not in name
    )
    assert storage.list_files(f"{SET}/nothing") == []
    assert storage.expand(f"{SET}/shards/*.tar") == tars
    assert storage.expand(f"{SET}@main/**/*.json") == [f"{SET}@main/shards/deep/index.json"]
    assert storage.expand(f"{SET}/shards/{{00000000..00000001}}.tar") == tars
    with pytest.raises(NotThereError, match="no such file or folder in http://"):
        storage.read_bytes(f"{SET}/nothing")
    with pytest.raises(StorageError, match="nothing matches"):
        storage.expand(f"{SET}/*.parquet")


def test_a_model_repository_and_a_revision(owned):
    owned.repos["owner/model"] = {"pairs.csv": b"a,b\n"}
    commit = owned.commit("owner/model")
    assert storage.read_bytes("hf://owner/model/pairs.csv") == b"a,b\n"
    assert storage.read_bytes(f"hf://owner/model@{commit}/pairs.csv") == b"a,b\n"
    with pytest.raises(StorageError, match="has no revision 'v9'"):
        storage.read_bytes("hf://owner/model@v9/pairs.csv")


def test_what_is_read_belongs_to_one_commit(owned, monkeypatch):
    """Somebody pushes between a listing and the files; later the new commit is seen."""
    path = f"{SET}/shards/00000001.tar"
    before = storage.version(path)
    owned.repos["datasets/owner/set"]["shards/00000001.tar"] = b"2" * 2048
    assert storage.read_bytes(path) == b"1" * 1024
    assert storage.version(path) == before
    now = time.monotonic()
    monkeypatch.setattr(hub_store.time, "monotonic", lambda: now + hub_store.REMEMBER + 1)
    assert storage.size(path) == 2048
    assert storage.version(path) != before


def test_a_large_folder_is_listed_once_and_a_few_files_never(owned):
    owned.page = 100
    files = {f"{number:08}.tar": b"x" * number for number in range(250)}
    owned.repos["datasets/owner/large"] = files
    paths = storage.expand("hf://datasets/owner/large/{00000000..00000249}.tar")
    assert [storage.size(path) for path in paths[:10]] == list(range(10))
    assert not _asked(owned, "/tree/")
    assert [storage.size(path) for path in paths] == list(range(250))
    assert len(_asked(owned, "/paths-info/")) == 16
    assert len(_asked(owned, "/tree/")) == 3  # pages
    assert len(storage.list_sizes("hf://datasets/owner/large")) == 250
    assert storage.read_bytes(paths[7]) == b"x" * 7
    assert len(_asked(owned, "/tree/")) == 3
    assert len(_asked(owned, "/revision/")) == 1


def test_an_overloaded_hub_is_asked_again(owned):
    owned.fail("api", times=2, status=429)
    owned.fail("get", times=2, status=503)
    assert storage.read_bytes(f"{SET}/README.md") == b"a set"
    assert owned.waits == [1.0, 2.0]  # huggingface_hub waits for the file by itself
    owned.fail("api", status=429)
    with pytest.raises(StorageError, match=r"takes no more requests for now .* HF_TOKEN"):
        storage.size(f"{SET}/empty.txt")
    owned.heal()
    assert storage.size(f"{SET}/empty.txt") == 0


def test_an_answer_that_ignores_the_range_is_refused(owned, monkeypatch):
    monkeypatch.setattr(retries, "ATTEMPTS", 1)
    whole = owned._send
    monkeypatch.setattr(owned, "_send", lambda http, body, headers, cut: (
        http.headers.__delitem__("Range"), whole(http, body, headers, cut)
    ))  # fmt: skip
    with storage.open_read(f"{SET}/shards/00000000.tar") as stream:
        stream.seek(5000)
        with pytest.raises(StorageError, match="received 12800 of 7800 bytes from 5000 on"):
            stream.read(3)


def test_who_may_not_read_is_told_what_to_do(owned, monkeypatch):
    with pytest.raises(StorageError, match=r"there is no dataset owner/none .* set HF_TOKEN"):
        storage.is_folder("hf://datasets/owner/none/shards")
    owned.private.add("datasets/owner/set")
    with pytest.raises(StorageError, match=r"no dataset owner/set .* or it is private"):
        storage.read_bytes(f"{SET}/README.md")
    owned.accounts["hf_mine"] = Account("owner", "read")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert storage.read_bytes(f"{SET}/README.md") == b"a set"
    owned.private.clear()
    owned.gated.add("datasets/owner/set")
    monkeypatch.delenv("HF_TOKEN")
    assert storage.exists(f"{SET}/README.md")
    with pytest.raises(StorageError, match="is gated or closed to you: accept the terms"):
        storage.read_bytes(f"{SET}/README.md")


def test_a_hub_that_is_not_there(owned, monkeypatch):
    owned.stop()
    with pytest.raises(StorageError, match=r"cannot read from http://127.* check the network"):
        storage.exists(f"{SET}/README.md")
    monkeypatch.setenv("HF_ENDPOINT", "not an address")
    with pytest.raises(StorageError, match="HF_ENDPOINT is"):
        storage.exists(f"{SET}/README.md")


def test_nothing_is_written_to_the_hub(owned):
    for attempt in (
        lambda: storage.write_bytes(f"{SET}/x", b""),
        lambda: storage.write_whole(f"{SET}/x").__enter__(),
        lambda: storage.remove(f"{SET}/README.md"),
        lambda: storage.remove_abandoned(SET),
    ):
        with pytest.raises(StorageError, match="hf:// is only read: write to a local folder"):
            attempt()
    assert not owned.requests


def test_without_the_network_the_hubs_cache_is_read(owned, monkeypatch, caplog):
    from huggingface_hub import hf_hub_download

    for name in ("shards/00000000.tar", "README.md"):
        hf_hub_download(
            "owner/set", name, repo_type="dataset", endpoint=owned.url,
            cache_dir=hub_settings.cache_dir(),
        )  # fmt: skip
    online = storage.version(f"{SET}/shards/00000000.tar")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(owned.requests)
    assert storage.read_bytes(f"{SET}/shards/00000000.tar") == FILES["shards/00000000.tar"]
    assert storage.version(f"{SET}/shards/00000000.tar") == online
    short = hub_store.connect(SET)[1].partition("@")[2][:8]  # of the commit
    assert storage.read_bytes(f"{SET}@{short}/README.md") == FILES["README.md"]
    with storage.open_read(f"{SET}/shards/00000000.tar") as stream:
        stream.seek(-1, 2)
        assert stream.read() == b"\xff"
    assert storage.list_files(SET, recursive=True) == [
        f"{SET}/README.md", f"{SET}/shards/00000000.tar"
    ]  # fmt: skip
    assert storage.expand(f"{SET}/shards/*.tar") == [f"{SET}/shards/00000000.tar"]
    assert caplog.text.count("the network is off") == 1
    with pytest.raises(NotThereError):
        storage.read_bytes(f"{SET}/shards/00000001.tar")
    with pytest.raises(StorageError, match="hf download other/set --revision main --repo-type"):
        storage.is_folder("hf://datasets/other/set")
    assert len(owned.requests) == asked


def _read(path):
    return storage.read_bytes(path)


@pytest.mark.usefixtures("owned")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_read_too(method):
    """As the workers of a data loader do, after their parent read."""
    if method == "fork" and sys.platform != "linux":
        pytest.skip("forking is for Linux")
    path = f"{SET}/shards/00000001.tar"
    assert _read(path) == FILES["shards/00000001.tar"]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_read, [path, f"{SET}/README.md"]) == [b"1" * 1024, b"a set"]
