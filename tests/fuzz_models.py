"""What is fuzzed of models: checkpoint folders, weight files, hub folders, bundles, tokenizers.

As `fuzz_kinds`, but a seed and an input are files by name. What checksums protect must embed as
the model that was saved, or be refused; what has none must give finite embeddings.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pocketclip import Encoder, checkpoint, load
from pocketclip.formats.json_text import digest_json
from pocketclip.infer import bundle as bundles
from pocketclip.license import License
from pocketclip.nn.build import random_model
from pocketclip.nn.reparam import fuse
from pocketclip.train import checkpoints
from tests.fuzzing import mutate, put
from tests.golden_weights import randomise
from tests.mutations import change_json, change_zip

CUT = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.width": 32, "text.heads": 2, "text.context_length": 16,
    "text.embedding_buckets": 512, "embed_dim": 16,
}  # fmt: skip

# --- seeds


@functools.cache
def model(seed=0):
    made = random_model("tiny", seed=seed, **CUT)
    randomise(made, seed)
    made.license = License(name="birds", url="https://birds.example", text="For birds only.\n")
    return made.eval()


def _files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def checkpoint_seeds(folder):
    for name, made in (("plain", model()), ("fused", fuse(model()))):
        checkpoint.save(made, folder / name)
    return [_files(folder / "plain"), _files(folder / "fused")]


def _saved(state, legacy=False):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def pt_seeds(folder):
    """The whole of `tiny`, whose name says what it is; see `read_pt`."""
    checkpoint.save(_whole(), folder / "a.pt", "openclip")
    return [{"a.pt": (folder / "a.pt").read_bytes()}]


def packed_seeds(folder):
    state = torch.load(io.BytesIO(pt_seeds(folder)[0]["a.pt"]), weights_only=True)
    return [
        {"a.pt": _saved({"epoch": 3, "state_dict": state, "optimizer": {"lr": [0.1]}})},
        {"a.pt": _saved(state)},
    ]


def legacy_seeds(folder):
    state = torch.load(io.BytesIO(pt_seeds(folder)[0]["a.pt"]), weights_only=True)
    return [{"a.pt": _saved(state, legacy=True)}]


def hub_seeds(folder):
    checkpoint.save(model(), folder / "open_clip_model.safetensors", "openclip")
    data = (folder / "open_clip_model.safetensors").read_bytes()
    about = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": {"image_size": 16}, "text_cfg": {"layers": 1}},
        "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
    }
    return [
        {
            "open_clip_model.safetensors": data,
            "open_clip_config.json": json.dumps(about).encode(),
            "config.json": b'{"architectures": ["CLIPModel"], "model_type": "clip"}',
        },
        {"model.safetensors": data, "config.json": b'{"architecture": "tiny", "num_classes": 0}'},
    ]


def bundle_seeds(folder):
    from pocketclip.export.job import export

    export(model(), folder / "bundle", target="onnx")
    return [_files(folder / "bundle")]


def run_seeds(folder):
    """A run with two checkpoints; the older is what is left when the newer is damaged."""
    optimizer = torch.optim.AdamW(model().parameters())
    for step in (1, 2):
        checkpoints.save(folder / "run", step, model(), {"optimizer": optimizer.state_dict()})
    return [_files(folder / "run")]


def teacher_seeds(folder):
    from tests.reinforce.hf_models import clip

    clip(folder / "teacher")
    return [_files(folder / "teacher")]


# --- mutations


def _one(rng, files, names):
    """Mutate one of the files; JSON mostly by its values."""
    name = rng.choice([n for n in names if n in files])
    data = files[name]
    if name.endswith(".json") and rng.random() < 0.75:
        return {**files, name: change_json(rng, data)}
    if name.endswith(".safetensors") and rng.random() < 0.5:
        return {**files, name: _header(rng, data)}
    return {**files, name: mutate(rng, data, rng.choice(list(files.values())))}


def _header(rng, data):
    """Change the JSON that a safetensors file begins with, and mostly its length with it."""
    size = int.from_bytes(data[:8], "little")
    header = change_json(rng, data[8 : 8 + size])
    length = len(header) if rng.random() < 0.9 else rng.choice([0, size, 2**40, 2**63])
    return length.to_bytes(8, "little") + header + data[8 + size :]


def any_file(rng, files, other):
    """Mutate a file, exchange it for another seed's, empty it, or leave it out."""
    name = rng.choice(sorted(files))
    match rng.randrange(20):
        case 0:
            return {n: data for n, data in files.items() if n != name}
        case 1:
            return {**files, name: other.get(name, b"")}
        case _:
            return _one(rng, files, sorted(files))


def zip_field(rng, files, _other):
    """Mutate the bytes of an archive, or a field of its headers."""
    [(name, data)] = files.items()
    changed = change_zip(rng, data) if rng.random() < 0.6 else mutate(rng, data, data)
    return {name: changed}


def repacked(rng, files, _other):
    """Mutate what is in an archive: its checksums fit."""
    [(name, data)] = files.items()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        pickled = next(name for name in names if name.endswith("data.pkl"))
        hit = pickled if rng.random() < 0.3 else rng.choice(names)
        for member in names:
            inner = old.read(member)
            if member == hit:
                inner = _numbers(rng, inner) if rng.random() < 0.6 else mutate(rng, inner, data)
            new.writestr(member, inner)
    return {name: buffer.getvalue()}


def _numbers(rng, data):
    """Return bytes of the same length with other bits, or with NaN or infinity as float32."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 5, 50])):
        place = 4 * rng.randrange(max(1, len(out) // 4))
        if rng.random() < 0.5 and len(out) >= 4:
            out[place : place + 4] = rng.choice(
                [b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f"]
            )
        elif out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def bare(rng, files, _other):
    [(name, data)] = files.items()
    if rng.random() < 0.5:  # within the pickles, before the numbers
        return {name: mutate(rng, data[:20_000], data) + data[20_000:]}
    return {name: mutate(rng, data, data)}


def sealed(rng, files, other):
    """Mutate a bundle's files or manifest, and write hashes that fit."""
    if rng.random() < 0.6:
        raw = json.loads(files["bundle.json"])
        del raw["sha256"]
        try:
            changed = json.loads(change_json(rng, json.dumps(raw)))
            changed["sha256"] = digest_json(changed)
        except (ValueError, TypeError, RecursionError):
            return any_file(rng, files, other)
        return {**files, "bundle.json": json.dumps(changed).encode()}
    changed = _one(rng, files, [n for n in files if n.endswith(".onnx")])
    with tempfile.TemporaryDirectory() as made:
        made = Path(made) / "bundle"
        put(made, changed)
        raw = json.loads(files["bundle.json"])
        for key in ("format", "version", "tokenizer", "sha256"):
            del raw[key]
        bundles.write_manifest(made, raw, raw.pop("files"))
        return _files(made)


# --- readers


@functools.cache
def _whole():
    return random_model("tiny", seed=0)


@functools.cache
def _photo(side):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def embeddings(encoder):
    """Return the embeddings of a photograph and of a text, which are finite."""
    rows = np.concatenate(
        [encoder.encode_image([_photo(24)]), encoder.encode_text(["a red cup on a table"])]
    )
    assert np.isfinite(rows).all()
    assert np.isfinite(encoder.logit_scale)
    return rows


@functools.cache
def _expected(which):
    return embeddings(Encoder(_whole() if which == "whole" else model()))


def warm_up():
    """Compute what is compared to: the limit of memory counts from here."""
    for which in ("whole", "cut"):
        _expected(which)


def _same(rows, which, tolerance=1e-4):
    assert rows.shape == _expected(which).shape, "other embeddings"
    far = np.abs(rows - _expected(which)).max()
    assert far < tolerance, f"other embeddings, by {far}, and no error"


def read_checkpoint(path):
    rows = embeddings(load(path))
    config = json.loads((Path(path) / "config.json").read_bytes())
    if "sha256" in config:  # else it is as earlier versions wrote it
        _same(rows, "cut")
    return "same"


def read_pt(path):
    file = Path(path) / "a.pt"
    rows = embeddings(load(f"tiny={file}"))
    with zipfile.ZipFile(file) as archive:
        if all(record.CRC for record in archive.infolist()):  # 0 is none
            _same(rows, "whole")
    return "same"


def read_weights(path):
    return float(embeddings(load(f"tiny={Path(path) / 'a.pt'}"))[0, 0])


def read_folder(path):
    return float(embeddings(load(path, "tiny"))[0, 0])


def read_bundle(path):
    rows = embeddings(load(path, backend="onnxruntime"))
    _same(rows, "cut", 1e-3)
    return "same"


def read_sealed(path):
    return float(embeddings(load(path, backend="onnxruntime"))[0, 0])


def read_run(path):
    """Read what a resumed run reads: the weights that were saved, or nothing."""
    saved = checkpoints.newest(Path(path))
    if saved is None:
        return None
    made, trainer = checkpoints.load(saved)
    assert list(trainer) == ["optimizer"]
    _same(embeddings(Encoder(made)), "cut")
    return saved.step


def read_teacher(path):
    from pocketclip.reinforce.teachers import load_teacher

    teacher = load_teacher(f"transformers:{path}", device="cpu", precision="float32", offline=True)
    rows = [teacher.encode_image([_photo(24)]), teacher.encode_text(["a red cup on a table"])]
    assert all(np.isfinite(one).all() for one in rows)
    return [list(one.shape) for one in rows]


KINDS = {
    "checkpoints": (checkpoint_seeds, any_file, "", "read_checkpoint", 140),
    "weight files": (pt_seeds, zip_field, "", "read_pt", 60),
    "weight files, sums right": (packed_seeds, repacked, "", "read_weights", 60),
    "weight files of before 1.6": (legacy_seeds, bare, "", "read_weights", 60),
    "runs": (run_seeds, any_file, "", "read_run", 80),
    "teachers": (teacher_seeds, any_file, "", "read_teacher", 60),
    "folders of the hub": (hub_seeds, any_file, "", "read_folder", 80),
    "bundles": (bundle_seeds, any_file, "", "read_bundle", 80),
    "bundles, hashes right": (bundle_seeds, sealed, "", "read_sealed", 80),
}
