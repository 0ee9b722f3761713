from __future__ import annotations

import gzip
import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from pocketclip.errors import MissingDependencyError
from pocketclip.shards import codec
from tests.shards.making import failure, unit

ARRAYS = {"image_emb": unit(np.random.default_rng(0), 3), "text_emb": np.eye(1, 12, dtype="f4")}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def pth(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return gzip.compress(buffer.getvalue())


@pytest.mark.parametrize("dtype", codec.DTYPES)
def test_round_trip_and_same_bytes(dtype):
    member, data = codec.encode(ARRAYS, dtype, (8, 4))
    assert (member, data) == codec.encode({k: v.copy() for k, v in ARRAYS.items()}, dtype, (8, 4))
    back, stored = codec.decode(member, data)
    assert stored == dtype
    assert list(back) == list(ARRAYS)
    tolerance = {"float32": 0, "float16": 5e-4, "bfloat16": 4e-3, "int8": 8e-3, "int6": 5e-2}[dtype]
    for key, array in back.items():
        assert array.dtype == np.float32
        assert np.abs(array - ARRAYS[key]).max() <= tolerance


def test_bfloat16_is_torch_s_rounding():
    back, _ = codec.decode(*codec.encode(ARRAYS, "bfloat16"))
    expected = torch.from_numpy(ARRAYS["image_emb"]).bfloat16().float().numpy()
    assert (back["image_emb"] == expected).all()


def test_other_writers_npz():
    data = npz(a=np.ones((2, 3), np.float64), b=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    back, stored = codec.decode("npz", data)
    assert stored == "float64"
    assert back["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    big = npz(a=np.arange(3, dtype=">f4")[None])
    assert codec.decode("npz", big)[0]["a"].tolist() == [[0, 1, 2]]


def test_what_is_no_array_of_floats(tmp_path):
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    assert "pickle of Python objects, which is never run" in failure(
        codec.decode, "npz", npz(a=evil)
    )
    assert "not floats" in failure(codec.decode, "npz", npz(a_emb=np.arange(3)))
    assert "not floats" in failure(codec.decode, "npz", npz(emb=np.array(["x"])))
    assert "none of it was run" in failure(
        codec.decode, "pth.gz", pth({"a": Evil(tmp_path / "ran")})
    )
    here = torch.ones(2, 3)
    for value in ("x", torch.arange(3), here.to("meta"), here.to_sparse(), [here, here.to("meta")]):
        message = failure(codec.decode, "pth.gz", pth({"image_emb": value}))
        assert "image_emb is not a tensor of floats" in message
    for value in ([[1.0, [2.0]]], [[1.0], [1.0, 2.0]], [torch.ones(2), torch.ones(3)]):
        message = failure(codec.decode, "pth.gz", pth({"image_emb": value}))
        assert "image_emb is not an array of floats" in message
    assert "not named tensors" in failure(codec.decode, "pth.gz", pth([torch.ones(2)]))
    bare = gzip.compress(pickle.dumps(Evil(tmp_path / "ran")))
    assert "none of it was run" in failure(codec.decode, "pth.gz", bare)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_cut_anywhere(dtype):
    member, data = codec.encode(ARRAYS, dtype)
    for end in range(0, len(data), max(1, len(data) // 40)):
        failure(codec.decode, member, data[:end])


def test_flipped_bits_are_noticed_or_harmless():
    member, data = codec.encode(ARRAYS, "float32")
    for offset in range(0, len(data), 7):
        broken = bytearray(data)
        broken[offset] ^= 255
        try:
            back, _ = codec.decode(member, bytes(broken))
        except codec.DataError:
            continue
        assert sum(array.nbytes for array in back.values()) < 1000


def test_bombs(monkeypatch):
    monkeypatch.setattr(codec, "MAX_BYTES", 1 << 20)
    zeros = bytes(2 << 20)
    assert "unpacks to more than" in failure(codec.gunzip, gzip.compress(zeros))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", zeros)
    assert "unpacks to more than" in failure(codec.decode, "npz", buffer.getvalue())
    wide = torch.ones(1).expand(1 << 20, 4)
    assert "unpacks to more than" in failure(codec.decode, "pth.gz", pth({"a": wide}))
    part = wide[: 1 << 15]  # half of what is allowed; views cost nothing in the file
    for value in ({str(k): part for k in range(3)}, {"a": [part] * 3}, {"a": [[0.5] * 999] * 999}):
        assert "unpacks to more than" in failure(codec.decode, "pth.gz", pth(value))


def repacked(data, change):
    """Write a torch file anew; `change` takes the archive, a name and the record's bytes."""
    old = zipfile.ZipFile(io.BytesIO(gzip.decompress(data)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in old.namelist():
            change(archive, name, old.read(name))
    return gzip.compress(buffer.getvalue())


def test_bombs_within_torch_files(monkeypatch):
    good = pth({"a_emb": torch.ones(2, 3)})
    plain = repacked(good, lambda archive, name, data: archive.writestr(name, data))
    assert codec.decode("pth.gz", plain)[0]["a_emb"].shape == (2, 3)

    def deflated(archive, name, data):
        archive.writestr(name, data, zipfile.ZIP_DEFLATED)

    # torch must not see them: it would unpack them at once
    monkeypatch.setattr(torch, "load", None)
    assert "compressed record" in failure(codec.decode, "pth.gz", repacked(good, deflated))

    def larger(archive, name, data):
        deflated(archive, name, data + bytes(2 << 20) * name.endswith("data/0"))

    monkeypatch.setattr(codec, "MAX_BYTES", 1 << 20)
    assert "unpacks to more than" in failure(codec.decode, "pth.gz", repacked(good, larger))


def test_programs_that_make_much_of_little(monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    for name in (b"c_codecs\nencode\n", b"cbuiltins\nbytearray\n"):

        def hungry(archive, path, data, name=name):
            archive.writestr(path, b"\x80\x02" + name + b"." if path.endswith(".pkl") else data)

        data = repacked(pth({"a": torch.ones(1, 2)}), hungry)
        assert "creates bytes" in failure(codec.decode, "pth.gz", data)

    def lists(archive, path, data):  # each byte is an object of 56
        archive.writestr(path, b"]" * (codec.MAX_PICKLE + 1) if path.endswith(".pkl") else data)

    data = repacked(pth({"a": torch.ones(1, 2)}), lists)
    assert "a pickle of more than" in failure(codec.decode, "pth.gz", data)
    data = gzip.compress(b"\x80\x02" + b"]" * codec.MAX_PICKLE)
    assert "old format with more than" in failure(codec.decode, "pth.gz", data)


@pytest.mark.parametrize(
    "rows",
    [
        [torch.ones(3), torch.zeros(3)],
        [torch.ones(3).bfloat16(), torch.zeros(3).bfloat16()],
        [[1.0, 1, 1], (0.0, 0, 0)],
        [torch.ones(1, 3), torch.zeros(1, 3)],
    ],
)
def test_lists_of_rows(rows):
    back, _ = codec.decode("pth.gz", pth({"image_emb": rows, "text_emb": rows[0]}))
    assert back["image_emb"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert back["text_emb"].tolist() == [[1, 1, 1]]
    assert all(array.dtype == np.float32 for array in back.values())


def test_one_row_and_what_is_beside_embeddings():
    one = {"text_emb": np.ones(3, np.float32), "count": np.int64(3), "scale": np.float32(2)}
    torches = {"count": torch.tensor(3), "scale": torch.tensor(2.0), "model": "coca"}
    for member, data in (
        ("npz", npz(**one)),
        ("pth.gz", pth({**torches, "text_emb": torch.ones(3)})),
    ):
        back, dtype = codec.decode(member, data)
        assert (list(back), dtype) == (["text_emb"], "float32")
        assert back["text_emb"].tolist() == [[1, 1, 1]]


def test_a_header_that_lies():
    buffer = io.BytesIO()
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    assert "does not fit" in failure(codec.decode, "npz", buffer.getvalue())


def test_float16_overflow():
    assert "float16 cannot hold" in failure(codec.encode, {"a": np.full((1, 2), 1e6)}, "float16")


def test_unknown_dtype():
    assert "float32, float16, bfloat16" in failure(codec.encode, ARRAYS, "int3")


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = failure(codec.encode, ARRAYS, "bfloat16", kind=MissingDependencyError)
    assert "pip install 'pocketclip[train]'" in message
    assert codec.decode(*codec.encode(ARRAYS, "int8"))


def test_the_package_imports_no_torch():
    code = (
        "import sys; import pocketclip.shards\n"
        "imported = {'torch', 'fsspec', 'zstandard', 'httpx', 'pyarrow'} & set(sys.modules)\n"
        "assert not imported, imported"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
