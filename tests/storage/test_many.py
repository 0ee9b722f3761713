"""Many files at once: few requests to a store, and the order of the answers."""

from __future__ import annotations

import fsspec
import pytest

from pocketclip import storage
from pocketclip.errors import StorageError
from pocketclip.pairs import open_pairs

SIZES = {f"raw/{number:05d}.tar": number % 7 for number in range(1200)}


class Counted(fsspec.AbstractFileSystem):
    """A store with one folder, that counts what it is asked for."""

    protocol = "counted"
    asked: list[str] = []  # noqa: RUF012

    def ls(self, path, detail=True, **_):
        self.asked.append("ls")
        if self._strip_protocol(path) != "raw":
            raise FileNotFoundError(path)
        found = [{"name": n, "size": s, "type": "file"} for n, s in SIZES.items()]
        return found if detail else list(SIZES)

    def info(self, path, **_):
        self.asked.append("info")
        name = self._strip_protocol(path)
        if name != "raw" and name not in SIZES:
            raise FileNotFoundError(path)
        kind = "file" if name in SIZES else "directory"
        return {"name": name, "size": SIZES.get(name, 0), "type": kind}


@pytest.fixture(autouse=True)
def counted():
    fsspec.register_implementation("counted", Counted, clobber=True)
    Counted.asked.clear()


@pytest.mark.parametrize("source", ["counted://raw", "counted://raw/{00000..01199}.tar"])
def test_sizes_of_many_shards_come_from_the_listing(source):
    shards = open_pairs(source)
    assert len(shards) == 1200
    assert len(Counted.asked) < 10, Counted.asked
    one = open_pairs("counted://raw/00003.tar")
    assert one[0].fingerprint == shards[3].fingerprint


def test_missing_files_are_told():
    with pytest.raises(StorageError, match=r"01200\.tar: no such"):
        open_pairs("counted://raw/{00000..01200}.tar")


def test_contents_come_in_order(tmp_path):
    paths = []
    for number in range(300):
        (tmp_path / f"{number}.json").write_text(str(number))
        paths.append(str(tmp_path / f"{number}.json"))
    assert list(storage.read_many(paths)) == [str(n).encode() for n in range(300)]
    assert list(storage.read_many([])) == []
    with pytest.raises(StorageError, match="absent"):
        list(storage.read_many([*paths, str(tmp_path / "absent")]))
