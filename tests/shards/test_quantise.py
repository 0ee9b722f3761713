from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip import shards
from pocketclip.errors import DataError
from pocketclip.shards.quantise import _hadamard, _pack6, _unpack6, is_packed, pack, unpack
from tests.shards.making import SHARED, unit


@pytest.mark.parametrize(("code", "bound"), [("int8", 0.5 / 127), ("int6", 0.1)])
def test_round_trip(code, bound):
    rows = unit(np.random.default_rng(0), 50, (64, 256))
    back = unpack(pack(rows, code, (64, 256)))
    assert back.dtype == np.float32
    # A rounding error is at most half a step, and a step is the largest component over the levels.
    assert np.abs(back - rows).max() <= bound * np.abs(rows).max() * 1.01
    errors = np.linalg.norm((back - rows)[:, :64], axis=1)
    assert errors.max() < (0.01 if code == "int8" else 0.05)


def test_int8_by_hand():
    rows = np.array([[1.27, -0.64, 0.0, 0.01]], np.float32)
    record = pack(rows, "int8")
    assert record["int8.0"].tolist() == [[127, -64, 0, 1]]
    assert record["scale"].tolist() == [[np.float16(0.01)]]


def test_six_bits_take_three_quarters():
    values = np.arange(64)[None, :]
    packed = _pack6(values)
    assert packed.shape == (1, 48)
    # 4, 5, 6 and 7, the first in the lowest bits
    assert packed[0, 3:6].tolist() == [4 | (5 & 3) << 6, 5 >> 2 | (6 & 15) << 4, 6 >> 4 | 7 << 2]
    assert (_unpack6(packed) == values).all()


@pytest.mark.parametrize("width", [4, 12, 96, 256])
def test_the_rotation_is_its_own_inverse(width):
    x = np.random.default_rng(1).standard_normal((3, width)).astype(np.float32)
    assert np.allclose(_hadamard(_hadamard(x)), x, atol=1e-5)
    assert np.allclose(np.linalg.norm(_hadamard(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


def test_the_rotation_is_fixed_for_all_time():
    row = np.zeros((1, 8), np.float32)
    row[0, 3] = 1.0
    assert pack(row, "int6").tobytes().hex() == "ad24b5ad24b5df35"


def test_a_large_component_costs_the_others_nothing():
    rows = unit(np.random.default_rng(2), 20, (256,))
    rows[:, 17] = 1.5  # as the embeddings of real models have one
    plain, rotated = unpack(pack(rows, "int8")), unpack(pack(rows, "int6"))
    assert np.linalg.norm(rotated - rows, axis=1).max() < 0.06
    assert np.linalg.norm(plain - rows, axis=1).max() < 0.06


@pytest.mark.parametrize("code", ["int8", "int6"])
def test_cost_in_bytes(code):
    for dims in ((64,), (256, 256), (768, 768)):
        record = pack(unit(np.random.default_rng(0), 4, dims), code, dims)
        share = record.dtype.itemsize / (2 * sum(dims))
        assert share <= (0.52 if code == "int8" else 0.40)


def test_each_teacher_has_a_scale():
    rows = np.array([[1.0, 0.5, 0.25, 1.0, 100.0, 50.0, 25.0, 1.0]], np.float32)
    back = unpack(pack(rows, "int8", (4, 4)))
    assert np.abs(back[0, :4] - rows[0, :4]).max() < 0.005


@pytest.mark.parametrize("code", ["int8", "int6"])
def test_zeros_and_no_rows(code):
    assert (unpack(pack(np.zeros((3, 8), np.float32), code)) == 0).all()
    assert unpack(pack(np.zeros((0, 8), np.float32), code)).shape == (0, 8)


def test_what_does_not_fit():
    rows = np.ones((1, 6), np.float32)
    with pytest.raises(DataError, match="do not add up to 6"):
        pack(rows, "int8", (4, 4))
    with pytest.raises(DataError, match="multiples of 4"):
        pack(rows, "int6")
    with pytest.raises(DataError, match="normalise them"):
        pack(rows * 1e9, "int8")
    other = np.zeros(2, np.dtype([("a", "i1", (4,)), ("scale", "<f2", (1,))]))
    assert not is_packed(other)
    with pytest.raises(DataError, match="unknown dtype"):
        unpack(other)


def test_numpy_reads_a_record_without_pickles():
    record = pack(unit(np.random.default_rng(0), 3), "int8", (8, 4))
    buffer = io.BytesIO()
    np.save(buffer, record, allow_pickle=False)
    buffer.seek(0)
    assert np.load(buffer)["int8.1"].shape == (3, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 20, 64]), st.floats(1e-3, 1e3))
def test_any_row_comes_back_near(seed, width, size):
    rows = np.random.default_rng(seed).standard_normal((2, width)).astype(np.float32) * size
    for code, bound in (("int8", 0.02), ("int6", 0.08)):
        error = np.linalg.norm(unpack(pack(rows, code)) - rows, axis=1)
        assert (error <= bound * np.linalg.norm(rows, axis=1) + 1e-6).all()


def mean_kl(a, b):
    """Mean KL of the rows' softmaxes, in nats."""
    a, b = (x - x.max(1, keepdims=True) for x in (a, b))
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (a, b))
    return float((np.exp(p) * (p - q)).sum(1).mean())


@pytest.fixture(scope="module")
def grocery():
    """Image and text embeddings (2640, 512) of a real set, in random order."""
    if not (SHARED / "grocery-dr").is_dir():
        pytest.skip("needs ../shared/data/grocery-dr")
    pytest.importorskip("torch", reason="the set's bfloat16 embeddings are read with torch")
    image, text = [], []
    for number, one in enumerate(shards.read(SHARED / "grocery-dr")):
        image.append(one.embeddings["image_emb"][number % 5])
        text.append(one.embeddings["text_emb" if number % 2 else "syn_text_emb"][0])
    order = np.random.default_rng(0).permutation(len(image))
    return np.array(image)[order], np.array(text)[order]


@pytest.mark.parametrize(("code", "bound"), [("int8", 0.001), ("int6", 0.01)])
def test_a_teacher_s_affinities_hardly_move(grocery, code, bound):
    coded = [unpack(pack(x, code, (256, 256))) for x in grocery]
    for teacher in (slice(0, 256), slice(256, 512)):
        moved = []
        for begin in range(0, 2560, 256):
            rows = slice(begin, begin + 256)
            before, after = (
                100 * x[rows, teacher] @ y[rows, teacher].T for x, y in (grocery, coded)
            )
            moved.append((mean_kl(before, after), mean_kl(before.T, after.T)))
        assert max(np.mean(moved, axis=0)) <= bound
