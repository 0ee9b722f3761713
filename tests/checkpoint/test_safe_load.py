"""Foreign weight files: what is read is what was written, or it is refused by name."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import resource
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pocketclip import checkpoint
from pocketclip.checkpoint import safe_load as weights
from pocketclip.checkpoint.folder import to_third_party
from pocketclip.checkpoint.safe_load import read_tensors
from pocketclip.errors import CheckpointError
from pocketclip.formats import torch_zip
from pocketclip.nn.build import random_model

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def _state():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(100, 40, generator=generator),
        "a.half": torch.randn(64, generator=generator).half(),
        "a.brain": torch.randn(64, generator=generator).bfloat16(),
        "a.count": torch.tensor(7),
        "a.zeros": torch.zeros(3000),
        "a.none": torch.zeros(0, 4),
        "a.turned": torch.randn(6, 9, generator=generator).T,
    }


def _all(path):
    return {name: _torch(stored) for name, stored in read_tensors(path)[0].items()}


def _torch(stored):
    return torch.from_numpy(stored.read())


def _same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        read = actual[name] if isinstance(actual[name], torch.Tensor) else _torch(actual[name])
        assert torch.equal(read, value.float() if value.is_floating_point() else value), name


def _records(path):
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _rewritten(path, records, method=lambda _name: zipfile.ZIP_STORED, comment=b""):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as out:
        warnings.simplefilter("ignore")  # about names that are there twice
        out.comment = comment
        for name, data in records.items() if isinstance(records, dict) else records:
            out.writestr(name, data, method(name))
    return path


@pytest.fixture
def whole(tmp_path):
    torch.save(_state(), tmp_path / "whole.pt")
    return tmp_path / "whole.pt"


class _Stream(io.RawIOBase):
    """A place that cannot be sought in, for which zipfile writes sizes after the data."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data
        return len(data)


@pytest.mark.parametrize(
    "method",
    [
        lambda _name: zipfile.ZIP_STORED,
        lambda _name: zipfile.ZIP_DEFLATED,
        lambda name: 8 if name.endswith("data/4") else 0,
        lambda name: 8 if name.endswith(("data/0", "data/1")) else 0,
        lambda name: 8 if name.endswith("data.pkl") else 0,
    ],
)
def test_whether_and_which_records_are_deflated_makes_no_difference(tmp_path, whole, method):
    path = _rewritten(tmp_path / "again.pt", _records(whole), method)
    _same(read_tensors(path)[0], _state())


def test_archives_of_other_writers(tmp_path, whole):
    records = _records(whole)
    commented = _rewritten(tmp_path / "comment.pt", records, comment=b"a comment " * 20)
    _same(read_tensors(commented)[0], _state())

    streamed = _Stream()
    with zipfile.ZipFile(streamed, "w") as out:
        for name, data in records.items():
            out.writestr(name, data)
    (tmp_path / "streamed.pt").write_bytes(streamed.data)
    _same(read_tensors(tmp_path / "streamed.pt")[0], _state())

    with zipfile.ZipFile(tmp_path / "long.pt", "w") as out:
        for name, data in records.items():
            with out.open(name, "w", force_zip64=True) as record:
                record.write(data)
    _same(read_tensors(tmp_path / "long.pt")[0], _state())


def test_files_without_checksums_and_of_the_older_kind(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(_state(), tmp_path / "no-crc.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.save(_state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("no-crc.pt", "old.pt"):
        _same(read_tensors(tmp_path / name)[0], _state())


def test_a_flipped_byte_of_any_record_is_noticed(tmp_path, whole):
    data = whole.read_bytes()
    path = tmp_path / "flipped.pt"
    with zipfile.ZipFile(whole) as opened:
        records = opened.infolist()
    for record in records:
        if not record.file_size:
            continue
        names, extra = struct.unpack_from("<HH", data, record.header_offset + 26)
        offset = record.header_offset + 30 + names + extra + record.file_size // 2
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged: the checksum of .* is wrong"):
            _all(path)


def _pickle_patched(records, old, new):
    (name,) = [name for name in records if name.endswith("/data.pkl")]
    assert records[name].count(old) == 1
    return {**records, name: records[name].replace(old, new)}


def test_a_tensor_longer_than_its_record_is_refused(tmp_path, whole):
    # torch, where it maps, takes the bytes behind the record for the rest of the tensor.
    records = _records(whole)
    longer = _pickle_patched(records, b"M\xa0\x0ftq", b"M\xb0\x0ftq")
    with pytest.raises(CheckpointError, match="16000 bytes, but its tensor 16064"):
        read_tensors(_rewritten(tmp_path / "longer.pt", longer))
    (key,) = [name for name in records if name.endswith("data/0")]
    shorter = {**records, key: records[key][:-8]}
    with pytest.raises(CheckpointError, match="15992 bytes, but its tensor 16000"):
        read_tensors(_rewritten(tmp_path / "shorter.pt", shorter))
    del shorter[key]
    with pytest.raises(CheckpointError, match="data/0 is missing"):
        read_tensors(_rewritten(tmp_path / "missing.pt", shorter))


def _renamed(data, at):
    offset = data.index(b"data/1", at)
    return data[:offset] + b"data/X" + data[offset + 6 :]


def test_archives_that_contradict_themselves_are_refused(tmp_path, whole):
    records, data = _records(whole), whole.read_bytes()
    (first,) = [name for name in records if name.endswith("data/0")]
    directory = data.index(b"PK\1\2")
    cases = {
        "twice": _rewritten(
            tmp_path / "twice.pt", [*records.items(), (first, bytes(16000))]
        ).read_bytes(),
        "case": _rewritten(
            tmp_path / "case.pt", [*records.items(), (first.upper(), bytes(16000))]
        ).read_bytes(),
        "appended": data + data,
        "local name": _renamed(data, 0),
        "directory's name": _renamed(data, directory),
        "lzma": _rewritten(
            tmp_path / "lzma.pt", records, lambda name: 14 if name == first else 0
        ).read_bytes(),
        "cut": data[: directory - 10],
        "no pickle": _rewritten(tmp_path / "other.pt", {"a.txt": b"hello"}).read_bytes(),
    }
    offset = directory + 42
    cases["offset"] = data[:offset] + b"\x40" + data[offset + 1 :]
    encrypted = bytearray(data)
    encrypted[directory + 8] |= 1
    cases["encrypted"] = bytes(encrypted)
    path = tmp_path / "odd.pt"
    for what, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"odd\.pt") as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value), what


def test_a_bomb_is_refused_before_it_unpacks(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(torch_zip, "FREE", 1 << 20)
    records = {**_records(whole), "whole/data/9": bytes(5 << 20)}
    path = _rewritten(tmp_path / "bomb.pt", records, lambda _name: zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="more than 20 times its size"):
        read_tensors(path)


@contextlib.contextmanager
def _limited_memory(more):
    """Let this process take only `more` bytes of address space than it has, where Linux can."""
    if sys.platform != "linux":
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


BYTES = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
_LATIN1 = b"X\x06\x00\x00\x00latin1\x86R0"
MANY = (
    b"\x80\x02c_codecs\nencode\nX\x00\x00\x01\x00" + b"a" * 65536 + b"q\x01" + _LATIN1
    + (b"c_codecs\nencode\nh\x01" + _LATIN1) * 1100 + b"}."
)  # fmt: skip


@pytest.mark.parametrize("program", [BYTES, MANY])
@pytest.mark.parametrize("form", ["archive", "bare"])
def test_a_small_pickle_that_makes_many_bytes_makes_none(tmp_path, program, form):
    path = tmp_path / "x.pt"
    if form == "archive":
        _rewritten(path, {"x/data.pkl": program, "x/version": b"3\n"})
    else:
        path.write_bytes(program)
    with (
        _limited_memory(1 << 26),
        pytest.raises(
            CheckpointError, match=r"not named tensors|not begin as|refused: its pickle is damaged"
        ),
    ):
        read_tensors(path)


def test_bytes_beside_the_weights_are_fine(tmp_path):
    state = {"state_dict": _state(), "note": b"\xff\x00" * 50, "more": bytearray(100)}
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.pt"):
        _same(read_tensors(tmp_path / name)[0], _state())


def test_mutated_archives_give_the_same_tensors_or_an_error(tmp_path, whole):
    data, expected, chance = whole.read_bytes(), _state(), random.Random(0)
    path = tmp_path / "mutated.pt"
    refused = 0
    for _ in range(150):
        mutated = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            mutated[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(mutated[: chance.choice([len(data), chance.randrange(9, len(data))])])
        try:
            actual = _all(path)
        except CheckpointError:
            refused += 1
        else:
            _same(actual, expected)
    assert refused > 100


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "m.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"git-LFS pointer.*git lfs pull"):
        checkpoint.load(tmp_path / name, model="tiny")


def test_a_web_page_is_named(tmp_path):
    (tmp_path / "x.pt").write_text("\n<!DOCTYPE html><html>Not Found</html>")
    with pytest.raises(CheckpointError, match="is a web page"):
        read_tensors(tmp_path / "x.pt")


def test_a_pointer_in_our_own_folder_is_named(tmp_path):
    checkpoint.save(random_model("tiny", seed=0), tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "model" / name).write_text(POINTER)
        with pytest.raises(CheckpointError, match=rf"{name} .*git lfs pull"):
            checkpoint.load(tmp_path / "model")


PLAIN, AVERAGED = {"x.weight": torch.ones(3)}, {"x.weight": torch.zeros(3)}
WRAPPED = {f"module.{name}": value for name, value in PLAIN.items()}


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"model_state_dict": PLAIN, "epoch": 3}, None),
        ({"state_dict": PLAIN, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, None),
        ({"model": {"state_dict": {"module": PLAIN}}}, None),
        ({"module": WRAPPED, "ds_version": "0.16"}, None),
        ({"model_state": WRAPPED}, None),
        ({"model_ema": PLAIN, "decay": 0.9}, "only averaged weights: using 'model_ema'"),
        ({"ema_state_dict": {"n_averaged": torch.tensor(4), **WRAPPED}}, "only averaged"),
        ({"model_ema": {"state_dict": WRAPPED}}, "only averaged"),
        ({"state_dict": PLAIN, "state_dict_ema": AVERAGED}, "using 'state_dict', not"),
        ({"model": PLAIN, "model_ema": AVERAGED, "args": None}, "using 'model', not 'model_ema'"),
    ],
)
def test_training_checkpoints_are_unwrapped(tmp_path, caplog, saved, said):
    torch.save(saved, tmp_path / "x.pt")
    with caplog.at_level(logging.INFO, "pocketclip.checkpoint.safe_load"):
        actual, _ = read_tensors(tmp_path / "x.pt")
    _same(actual, PLAIN)
    assert (said is None and not caplog.records) or said in caplog.text


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"optimizer": {"state": {}}, "epoch": 3}, "no tensors by name .its entries: optimizer, "),
        ({"model_ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}},
         r"\['model_ema'\] holds no tensors by name .its entries: decay, shadow_params"),
        ({}, "no tensors by name .its entries: nothing"),
        (torch.ones(2), "holds a Tensor, not named tensors"),
        ({"a": torch.ones(2).to_sparse()}, "a is a sparse or quantised tensor"),
    ],
)  # fmt: skip
def test_what_holds_no_weights_is_named(tmp_path, saved, message):
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "x.pt")


def test_a_model_from_a_deflated_training_checkpoint(tmp_path):
    model = random_model("tiny", seed=0)
    state = to_third_party(model, "openclip")
    torch.save({"model_state_dict": {f"module.{n}": v for n, v in state.items()}},
               tmp_path / "whole.pt")  # fmt: skip
    odd = _rewritten(
        tmp_path / "x.pt",
        _records(tmp_path / "whole.pt"),
        lambda name: 8 if name.endswith(("3", "7")) else 0,
    )
    loaded, expected = (checkpoint.load(path, "tiny") for path in (odd, tmp_path / "whole.pt"))
    _same(loaded.state_dict(), expected.state_dict())
    assert torch.equal(loaded.image.head.weight, model.image.head.weight)


def test_whole_numbers_are_no_weights(tmp_path):
    state = to_third_party(random_model("tiny", seed=0), "openclip")
    for value in (torch.tensor(2), torch.tensor(2.0 + 1j)):
        save_file({**state, "logit_scale": value}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"logit_scale has type \w+, not float32"):
            checkpoint.load(tmp_path / "x.safetensors", model="tiny")


def test_the_head_of_a_file_is_enough():
    assert len(POINTER) - 20 <= weights._HEAD


@pytest.mark.parametrize("length", [b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 5 + b"\0" * 3])
def test_a_bare_pickle_takes_no_more_memory_than_it_has_bytes(tmp_path, length):
    path = tmp_path / "a.pt"
    path.write_bytes(b"\x80\x02" + length + bytes(1000))  # a text of 2 GB, or of 1 TB
    with _limited_memory(1 << 26), pytest.raises(CheckpointError) as caught:
        weights.read_tensors(path)
    assert "MemoryError" not in str(caught.value)


def test_older_files_whose_tensors_are_longer_than_they_are(tmp_path):
    path = tmp_path / "a.pt"
    state = {"a": torch.arange(5.0), "b": torch.ones(3, 2)[1:]}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    read, _ = weights.read_tensors(path)
    _same(read, state)
    torch.save({"a": torch.zeros(1 << 14)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="its tensors are longer"):
        weights.read_tensors(path)
