from __future__ import annotations

import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pocketclip.errors import DataError
from pocketclip.shards import codec, torchfile
from pocketclip.shards.random_access import MappedShard
from tests.shards.making import GOLDEN

RNG = np.random.default_rng(0)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tensor(rows, width=6, dtype=torch.bfloat16):
    return torch.from_numpy(RNG.standard_normal((rows, width)).astype(np.float32)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_reads_what_torch_reads(dtype):
    for rows in (1, 5, 1):  # the layout of the third is the first's
        value = {"image_emb": tensor(rows, dtype=dtype), "text_emb": tensor(2, dtype=dtype)}
        data = saved(value)
        arrays, right = torchfile.read(data), codec._decode_torch(torch, data)
        assert arrays is not None
        assert list(arrays) == list(right)
        for key, (array, kind) in arrays.items():
            assert kind == right[key][1] == str(dtype).removeprefix("torch.")
            assert array.dtype == np.float32
            assert np.array_equal(array, right[key][0])
            array[:] = 0  # its own, and may be written to


def test_it_reads_the_reference_writers_files():
    with MappedShard(GOLDEN / "v1_bfloat16.tar") as shard:
        assert len(shard) == 4
        for index in range(4):
            data = codec.gunzip(shard[index][1]["pth.gz"])
            arrays, right = torchfile.read(data), codec._decode_torch(torch, data)
            assert arrays is not None
            assert all(np.array_equal(arrays[key][0], right[key][0]) for key in right)


def test_views_of_one_storage():
    whole = tensor(6)
    arrays = torchfile.read(saved({"a_emb": whole[:2], "b_emb": whole[2:]}))
    assert arrays is not None
    assert np.array_equal(arrays["b_emb"][0], whole[2:].float().numpy())


@pytest.mark.parametrize(
    "value",
    [
        {"a_emb": tensor(4).T},
        {"a_emb": tensor(4)[:, :2]},
        {"a_emb": tensor(4)[0]},
        {"a_emb": tensor(4, dtype=torch.float16)},
        {"a_emb": [tensor(1)[0], tensor(1)[0]]},
        {"a_emb": tensor(2), "note": "text"},
        [tensor(2)],
    ],
)
def test_anything_else_is_left_to_torch(value):
    assert torchfile.read(saved(value)) is None


def test_decoding_goes_either_way():
    value = {"a_emb": tensor(3), "b_emb": [tensor(1)[0], tensor(1)[0]]}
    arrays, _ = codec.decode("pth.gz", gzip.compress(saved(value)))
    assert np.array_equal(arrays["a_emb"], value["a_emb"].float().numpy())
    assert arrays["b_emb"].shape == (2, 6)


def test_a_file_that_is_cut_or_changed_anywhere_is_no_crash():
    data = saved({"a_emb": tensor(3)})
    for end in range(0, len(data), 7):
        assert torchfile.read(data[:end]) is None
    for offset in range(0, len(data), 3):
        changed = bytearray(data)
        changed[offset] ^= 0xFF
        arrays = torchfile.read(bytes(changed))
        assert arrays is None or all(array.ndim == 2 for array, _ in arrays.values())


class Evil:
    def __reduce__(self):
        return pytest.fail, ("it was run",)


def test_nothing_of_an_untrusted_pickle_is_run():
    source = saved({"a_emb": tensor(3)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.namelist():
            evil = pickle.dumps({"a_emb": Evil()}, 2)
            new.writestr(entry, evil if entry.endswith("data.pkl") else old.read(entry))
    assert torchfile.read(buffer.getvalue()) is None
    with pytest.raises(DataError, match="none of it was run"):
        codec.decode("pth.gz", gzip.compress(buffer.getvalue()))


def test_many_views_of_few_bytes_are_left_to_torch_which_refuses_them(monkeypatch):
    whole = tensor(100)
    data = saved({f"{i}_emb": whole[:] for i in range(10)})
    assert torchfile.read(data) is not None
    monkeypatch.setattr(torchfile, "MAX_BYTES", 10 * 600 * 4 - 1)
    assert torchfile.read(data) is None
