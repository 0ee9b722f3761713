"""Weight files without torch: what torch and safetensors read, bit by bit, or an error."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from pocketclip.checkpoint.safe_load import read_tensors
from pocketclip.errors import CheckpointError
from pocketclip.formats import safetensors_file, stored_tensor, torch_pickle, torch_zip

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def _expected(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()


def _assert_same(stored, tensor, name):
    actual, right = stored.read(), _expected(tensor)
    assert actual.dtype == right.dtype, name
    assert stored.shape == actual.shape == right.shape, name
    assert stored.is_float == tensor.is_floating_point(), name
    assert stored.dtype == str(tensor.dtype).removeprefix("torch."), name
    assert actual.flags.c_contiguous, name
    assert actual.flags.writeable, name
    if not stored.is_float:
        assert np.array_equal(actual, right), name
        return
    nan = np.isnan(right)
    assert np.array_equal(np.isnan(actual), nan), name
    bits, right_bits = actual.view(np.uint32), right.view(np.uint32)
    assert np.array_equal(bits[~nan], right_bits[~nan]), name  # -0.0 and subnormals too


def _read(path, data):
    path.write_bytes(data)
    return read_tensors(path)[0]


def _saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@st.composite
def _tensors(draw):
    """Tensors of any bits, some of them views of the same storage."""
    out = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        dtype = draw(st.sampled_from(FLOATS + OTHERS))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        count = int(np.prod(shape))
        if dtype == torch.bool:
            whole = torch.from_numpy(rng.integers(0, 2, shape).astype(bool))
        else:
            raw = rng.bytes(max(count, 1) * dtype.itemsize)
            whole = torch.frombuffer(bytearray(raw), dtype=dtype, count=count or -1)[:count]
            whole = whole.reshape(shape)
        out[name] = whole
        if shape and draw(st.booleans()):
            out[f"{name}.turned"] = whole.T if len(shape) == 2 else whole[::2]
            out[f"{name}.part"] = whole[draw(st.integers(0, shape[0])) :]
            out[f"{name}.wide"] = whole[..., :1].expand(*shape[:-1], min(3, 3 * shape[-1]))
    return out


@settings(max_examples=120, deadline=None)
@given(_tensors(), st.booleans(), st.booleans())
def test_it_reads_what_torch_reads(tmp_path_factory, tensors, legacy, ordered):
    path = tmp_path_factory.getbasetemp() / "property.pt"
    value = collections.OrderedDict(tensors) if ordered else tensors
    data = _saved(value, _use_new_zipfile_serialization=not legacy)
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    stored = _read(path, data)
    assert list(stored) == list(loaded)
    for name, tensor in loaded.items():
        _assert_same(stored[name], tensor, name)


@settings(max_examples=60, deadline=None)
@given(_tensors())
def test_it_reads_what_safetensors_reads(tmp_path_factory, tensors):
    path = tmp_path_factory.getbasetemp() / "property.safetensors"
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    stored = _read(path, save_safetensors(tensors, metadata={"a": "b"}))
    assert read_tensors(path)[1] == {"a": "b"}
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        _assert_same(stored[name], tensor, name)


def test_every_half_and_bfloat16_and_what_float64_rounds_to(tmp_path):
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    tie = 1 + 2.0**-24
    doubles = [tie, np.nextafter(tie, 2), -1e300, 3.5e38, 1e-45, 2e-46, -0.0, np.inf, np.nan]
    tensors = {
        "half": bits.view(torch.float16),
        "brain": bits.clone().view(torch.bfloat16),
        "double": torch.tensor(doubles, dtype=torch.float64),
    }
    stored = _read(tmp_path / "a.pt", _saved(tensors))
    for name, tensor in tensors.items():
        _assert_same(stored[name], tensor, name)


def test_tensors_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tensor, "_CHUNK", 16)
    tensors = {"a": torch.randn(7, 9), "b": torch.randn(7, 9).half().T, "c": torch.arange(33)}
    data = _saved(tensors)
    deflated = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for content in (data, deflated.getvalue()):
        for name, stored in _read(tmp_path / "a.pt", content).items():
            _assert_same(stored, tensors[name], name)


def test_parameters_attributes_and_everything_beside_the_weights(tmp_path):
    noted, plain = torch.nn.Parameter(torch.randn(3)), torch.randn(2)
    noted.note, plain.note = "a parameter's", "a tensor's"
    state = collections.OrderedDict(a=torch.nn.Parameter(torch.randn(2, 2)), b=noted, c=plain)
    state._metadata = {"": {"version": 1}}
    counter = collections.Counter("hello")
    beside = {
        "size": torch.Size([1, 2]), "dtype": torch.bfloat16, "device": torch.device("cuda:1"),
        "set": {1, 2}, "counter": counter, "bytes": b"\xff", "array": bytearray(b"\0"), "z": 1 + 2j,
        "none": None, "big": 1 << 100, "layout": torch.sparse_coo,
        "optimizer": {"state": {0: {"step": torch.ones(()), "m": plain.to_sparse()}}},
    }  # fmt: skip
    for form in (True, False):
        saved = _saved({**beside, "state_dict": state}, _use_new_zipfile_serialization=form)
        stored = _read(tmp_path / "a.pt", saved)
        assert list(stored) == ["a", "b", "c"]
        for name, tensor in state.items():
            _assert_same(stored[name], tensor, name)


def _program(data, program, **records):
    """Return an archive of `torch.save` with another pickle, or other records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = program if name.endswith("data.pkl") and program else old.read(name)
            new.writestr(name, records.get(name.rpartition("/")[2], content))
    return buffer.getvalue()


def test_numbers_of_big_endian_machines(tmp_path):
    tensors = {"a": torch.randn(5), "b": torch.randn(4).bfloat16(), "c": torch.arange(3)}
    swapped = [value.view(torch.uint8).numpy() for value in tensors.values()]
    swapped = [b.reshape(-1, size)[:, ::-1].tobytes() for b, size in zip(swapped, (4, 2, 8))]  # noqa: B905
    numbers = {str(key): content for key, content in enumerate(swapped)}
    data = _program(_saved(tensors), b"", byteorder=b"big", **numbers)
    for name, stored in _read(tmp_path / "a.pt", data).items():
        _assert_same(stored, tensors[name], name)
    with pytest.raises(CheckpointError, match="its byte order is unknown"):
        _read(tmp_path / "a.pt", _program(data, b"", byteorder=b"middle"))


def test_entries_as_python_2_wrote_them(tmp_path):
    data = _saved({"a": torch.arange(3.0)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        program = archive.read("archive/data.pkl")
    head, tensor = program[:2], program[program.index(b"ctorch._utils") : -2]
    pairs = head + b"ccollections\nOrderedDict\n]](U\x01a" + tensor + b"ea\x85R."
    (stored,) = _read(tmp_path / "a.pt", _program(data, pairs)).values()
    assert stored.read().tolist() == [0, 1, 2]


class _Calls:
    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (_Calls(os.system, "true"), "posix.system"),
        (_Calls(eval, "1"), "builtins.eval"),
        (_Calls(torch.load, "x"), "torch.serialization.load"),
        (_Calls(torch.hub.load, "x", "y"), "torch.hub.load"),
        (collections.defaultdict(list), "collections.defaultdict"),
        (np.float32(1), "numpy._core.multiarray.scalar"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("form", [True, False])
@pytest.mark.skipif(os.name == "nt", reason="the module of system has another name")
def test_anything_that_would_run_is_refused_by_name(tmp_path, value, name, form):
    data = _saved({"state_dict": {"a": torch.ones(1)}, "x": value},
                  _use_new_zipfile_serialization=form)  # fmt: skip
    name = name.replace("_core", (pickle.dumps(value)[:60].count(b"_core") and "_core") or "core")
    with pytest.raises(CheckpointError, match=rf"holds {name} and not only tensors; none of it"):
        _read(tmp_path / "a.pt", data)


_STORAGE = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"


def _view(storage=_STORAGE, offset=b"K\0", shape=b"K\x04\x85", stride=b"K\x01\x85", more=b""):
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return b"U\x01a" + call + storage + offset + shape + stride + b"\x89}" + more + b"tRs"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (_view(offset=b"K\x01"), "5 numbers of its 4"),
        (_view(stride=b"K\x02\x85"), "7 numbers of its 4"),
        (_view(offset=b"J\xff\xff\xff\xff"), "sizes that are no counts"),
        (_view(stride=b"J\xff\xff\xff\xff\x85"), "sizes that are no counts"),
        (_view(shape=b"K\x02K\x02\x86"), "2 sides and 1 strides"),
        (_view(shape=b"G" + bytes(8) + b"\x85"), "sizes that are no counts"),
        (_view(shape=b"J\xff\xff\xff\x7f\x85", stride=b"K\0\x85"), "more than 20 times its size"),
        (_view(more=b"}U\x03neg\x88s"), "a is a negated tensor"),
        (_view() + _view(_STORAGE.replace(b"K\x04", b"K\x03")), "a storage in two ways"),
        (_view() + _view(_STORAGE.replace(b"Float", b"Int")), "a storage in two ways"),
        (_view(_STORAGE.replace(b"\x010", b"\x017")), "its record archive/data/7 is missing"),
        (_view(_STORAGE.replace(b"K\x04", b"K\x05")), "has 16 bytes, but its tensor 20"),
        (_view(_STORAGE.replace(b"tQ", b"(U\x01xK\x01K\x01ttQ")), "archive/data/0 is missing"),
        (_view(_STORAGE.replace(b"storage", b"modules")), "its pickle is damaged"),
        (b"U\x01aX\xff\xff\xff\x7fabc", "its pickle ends too soon"),
        (b"U\x01aX\x01\0\0\0\xffs", "a text that is not UTF-8"),
        (b"h\x07", "contradicts itself"),
        (b")q\x00" + b"h\0h\0\x86q\0" * 60 + b"Ns", "refused: its pickle is damaged"),
        (b"".join(b"\x8a\x09" + (i * (2**61 - 1)).to_bytes(9, "little") + b"Ns"
                  for i in range(1, 2000)), "too many keys that are no texts"),
        (_view(_STORAGE.replace(b"\x010", b"\x03\x1b\n7")), r"data/\\x1b 7 is missing"),
        (b"U\x02\x1bbNs", r"no tensors by name .its entries: \\x1bb"),
        (b"\x95" + bytes(8), "refused: its pickle is damaged"),
        (b"(" * 300, "larger than any weight file needs"),
    ],
)  # fmt: skip
def test_pickles_that_contradict_their_file_or_take_too_much(
    tmp_path, monkeypatch, program, message
):
    if len(program) == 300:
        monkeypatch.setattr(torch_pickle, "MAX_STEPS", 200)
    data = _program(_saved({"a": torch.arange(4.0)}), b"\x80\x02}" + program + b".")
    with pytest.raises(CheckpointError, match=message) as caught:
        _read(tmp_path / "a.pt", data)
    assert "\n" not in str(caught.value)


def test_views_of_deflated_records_that_would_be_inflated_again_and_again(tmp_path, monkeypatch):
    whole = torch.zeros(1000)
    data = _saved({str(i): whole[i : i + 1] for i in range(300)})
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert len(_read(tmp_path / "a.pt", buffer.getvalue())) == 300
    monkeypatch.setattr(stored_tensor, "FREE", 0)
    assert len(_read(tmp_path / "a.pt", data)) == 300
    with pytest.raises(CheckpointError, match="more than 20 times its size"):
        _read(tmp_path / "a.pt", buffer.getvalue())


def test_limits_on_records_and_tensors(tmp_path, monkeypatch):
    data = _saved({"a": torch.zeros(1), "b": torch.zeros(1)})
    monkeypatch.setattr(stored_tensor, "MAX_TENSORS", 1)
    with pytest.raises(CheckpointError, match="more than 1 tensors"):
        _read(tmp_path / "a.pt", data)
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY", 100)
    with pytest.raises(CheckpointError, match="its directory is larger"):
        _read(tmp_path / "a.pt", data)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.pt"
    stored = _read(path, _saved({"a": torch.zeros(4)}))["a"]
    assert stored.read().tolist() == [0, 0, 0, 0]
    path.write_bytes(_saved({"a": torch.ones(4), "b": torch.ones(4)}))
    with pytest.raises(CheckpointError, match=r"a\.pt was changed while it was read"):
        stored.read()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a\.pt: cannot be read"):
        stored.read()


def _safetensors(header, body=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _facts(begin=0, end=16, dtype="F32", shape=(4,), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_safetensors({"a": _facts()}, bytes(15)), "take 16 bytes of 15"),
        (_safetensors({"a": _facts()}, bytes(17)), "take 16 bytes of 17"),
        (_safetensors({"a": _facts(), "b": _facts()}), "b does not begin where"),
        (_safetensors({"a": _facts(0, 8, shape=[2]), "b": _facts(12, 16, shape=[1])}), "b does"),
        (_safetensors({"a": _facts(4, 16, shape=[3])}), "a does not begin where"),
        (_safetensors({"a": _facts(16, 0)}), "the offsets of a are 16 and 0"),
        (_safetensors({"a": _facts(0.0, 16)}), "the offsets of a are 0.0 and 16"),
        (_safetensors({"a": _facts(-16, 16)}), "the offsets of a are -16 and 16"),
        (_safetensors({"a": _facts(shape=[5])}), "5 numbers of its 4"),
        (_safetensors({"a": _facts(shape=[3])}), "has 16 bytes, but its shape is"),
        (_safetensors({"a": _facts(shape=[-4])}), "a size that is no count"),
        (_safetensors({"a": _facts(shape=[2**40, 2**40, 0])}), "has 16 bytes, but its shape is"),
        (_safetensors({"a": _facts(shape=[True, 4])}), "a size that is no count"),
        (_safetensors({"a": _facts(shape="4")}), "the shape of a is no list"),
        (_safetensors({"a": _facts(dtype="F8_E4M3")}), "a has the unknown type 'F8_E4M3'"),
        (_safetensors({"a": _facts(dtype=["F32"])}), "damaged: "),
        (_safetensors({"a": {"dtype": "F32", "shape": [4]}}), "a tensor has no 'data_offsets'"),
        (_safetensors({"a": None}), "damaged: "),
        (_safetensors({"__metadata__": {"a": 1}, "a": _facts()}), "its metadata are not texts"),
        (_safetensors(b'{"a": 1, "a": 2}'), "its header"),
        (_safetensors(b'{"a": NaN}'), "its header"),
        (_safetensors(b'{"a": ' + b"[" * 10**5), "its header"),
        (_safetensors({"a": _facts()}, length=2**63), "."),
        (_safetensors({"a": _facts()}, length=10**6), "its header has 1000000 bytes"),
        (b"\1\2\3", "."),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        _read(tmp_path / "a.safetensors", data)
    assert "\n" not in str(caught.value)


def test_a_long_header_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_HEADER", 50)
    with pytest.raises(CheckpointError, match="its header has 62 bytes"):
        _read(tmp_path / "a.safetensors", _safetensors({"a": _facts()}))
