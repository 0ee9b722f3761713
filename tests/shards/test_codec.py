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
    assert "not floats" in failure(codec.decode, "npz", npz(a=np.arange(3)))
    assert "not floats" in failure(codec.decode, "npz", npz(a=np.array(["x"])))
    assert "nothing of it was run" in failure(
        codec.decode, "pth.gz", pth({"a": Evil(tmp_path / "ran")})
    )
    assert "not a tensor of floats" in failure(codec.decode, "pth.gz", pth({"a": "x"}))
    assert "not a tensor of floats" in failure(codec.decode, "pth.gz", pth({"a": torch.arange(3)}))
    assert "not of named tensors" in failure(codec.decode, "pth.gz", pth([torch.ones(2)]))
    bare = gzip.compress(pickle.dumps(Evil(tmp_path / "ran")))
    assert "nothing of it was run" in failure(codec.decode, "pth.gz", bare)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_cut_anywhere(dtype):
    member, data = codec.encode(ARRAYS, dtype)
    for end in range(0, len(data), max(1, len(data) // 40)):
        failure(codec.decode, member, data[:end])


def test_flipped_bits_are_noticed_or_harmless():
    member, data = codec.encode(ARRAYS, "float32")
    for place in range(0, len(data), 7):
        broken = bytearray(data)
        broken[place] ^= 255
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
    assert "is refused" in failure(codec.decode, "pth.gz", pth({"a": wide}))


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
    assert 'pip install "pocketclip[train]"' in message
    assert codec.decode(*codec.encode(ARRAYS, "int8"))


def test_the_package_imports_no_torch():
    code = (
        "import sys; import pocketclip.shards\n"
        "found = {'torch', 'fsspec', 'zstandard', 'httpx', 'pyarrow'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
