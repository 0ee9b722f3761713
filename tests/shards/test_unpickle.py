from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip.errors import DataError
from pocketclip.shards import unpickle
from pocketclip.shards.unpickle import floats_from_pickle
from tests.shards.making import failure
from tests.shards.test_codec import Evil


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f2", "f8"])
def test_arrays_of_every_protocol(protocol, dtype):
    for array in (
        np.arange(6, dtype=dtype).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=dtype).reshape(2, 3)),
        np.zeros((0, 4), dtype),
    ):
        back = floats_from_pickle(pickle.dumps(array, protocol=protocol))
        assert back.dtype == np.float32
        assert back.shape == array.shape
        assert (back == array).all()


def test_the_older_numpy_s_names():
    data = pickle.dumps(np.ones((1, 2), np.float32), protocol=2)
    for core in (b"numpy._core", b"numpy.core"):
        other = data.replace(b"numpy._core", core).replace(b"numpy.core", core)
        assert floats_from_pickle(other).tolist() == [[1, 1]]


def test_lists():
    assert floats_from_pickle(pickle.dumps([[1.0, 2], (3, 4.5)])).tolist() == [[1, 2], [3, 4.5]]
    assert floats_from_pickle(pickle.dumps([1.0, 2.0])).tolist() == [1, 2]
    assert floats_from_pickle(pickle.dumps([np.float32(1.5)])).tolist() == [1.5]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_does_not_run(tmp_path, protocol):
    data = pickle.dumps(Evil(tmp_path / "ran"), protocol=protocol)
    assert "exec, which no array of floats needs; none of it was run" in failure(
        floats_from_pickle, data
    )
    hidden = np.array([Evil(tmp_path / "ran")], dtype=object)
    failure(floats_from_pickle, pickle.dumps(hidden, protocol=protocol))
    failure(floats_from_pickle, pickle.dumps([1.0, Evil(tmp_path / "ran")], protocol=protocol))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a"]),
        np.array([1, 2]),
        np.array([None]),
        np.ones(2, np.complex64),
        {"a": 1.0},
        "text",
        1.0,
        [["a"]],
        [[1.0], [1.0, 2.0]],
        [[[1.0]]],
        [True],
        [],
        np.random.default_rng(0),
    ],
)
def test_anything_else_is_refused(value):
    if isinstance(value, list) and not value:
        assert floats_from_pickle(pickle.dumps(value)).size == 0
        return
    failure(floats_from_pickle, pickle.dumps(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"cos\nsystem\n(S'echo'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"cnumpy\ndtype\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n)R.",
        b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
        b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b".",  # a bytearray of 4 EiB
        b"\x80\x04r" + b"\xff\xff\xff\x7fN.",  # a memo of two thousand million entries
        b"(l" + b"2a" * 100,
        b"Pelsewhere\n.",
        b"c_codecs\nencode\n(Vx\nVbase64\ntR.",
    ],
)
def test_hostile_programs(data):
    failure(floats_from_pickle, data)


def test_a_list_of_itself_many_times():
    row = [0.0] * 100_000
    assert "unpacks to more than" in failure(floats_from_pickle, pickle.dumps([row] * 10_000))


def test_one_text_encoded_many_times(monkeypatch):
    monkeypatch.setattr(unpickle._Inert, "_remaining", 5_000)
    text = b"X" + (1000).to_bytes(4, "little") + b"x" * 1000 + b"X\x06\0\0\0latin1\x86q\x01"
    head = b"\x80\x02(c_codecs\nencode\nq\x00" + text + b"R"
    assert "lists of bytes" in failure(floats_from_pickle, head + b"h\x00h\x01R" * 4 + b"0t.")
    assert "unpacks to more than" in failure(floats_from_pickle, head + b"h\x00h\x01R" * 5 + b"t.")


def test_a_program_that_is_too_long(monkeypatch):
    data = pickle.dumps([1.0, 2.0])
    monkeypatch.setattr(unpickle, "MAX_PICKLE", len(data) - 1)
    assert "pickle of more than" in failure(floats_from_pickle, data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_damaged_bytes_raise_nothing_else(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(pickle.dumps(np.ones((2, 3), np.float32), protocol=int(rng.integers(0, 6))))
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] = rng.integers(256)
    end = rng.integers(len(data) // 2, len(data) + 1)
    with contextlib.suppress(DataError):
        assert floats_from_pickle(bytes(data[:end])).size < 99
