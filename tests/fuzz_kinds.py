"""What is fuzzed: for each kind good files, how they are mutated, and how one is read.

A reader returns facts about a right result or counts bad samples; what cannot be read raises a
PocketclipError. `KINDS` has an entry per kind: a maker of seeds, a function that mutates one, the
name of the reader, and how many inputs are made.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pocketclip import shards
from pocketclip.errors import DataError
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pairs.crc32c import masked_crc32c
from pocketclip.search.indexing.perceptual_hash import perceptual_hash
from pocketclip.search.indexing.photo_facts import read_photo_facts
from pocketclip.shards import codec
from pocketclip.shards.audit.inspect import Rules, inspect
from pocketclip.shards.layout import parse
from pocketclip.shards.random_access import MappedShard
from pocketclip.types import Bad
from tests.fuzzing import mutate
from tests.search import exif_bytes
from tests.search.exif_bytes import MAKE, ORIENTATION, SHORT, TAKEN, place, text
from tests.shards.making import photo, sample, write

# --- seeds


def image_seeds(_folder):
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    grey = rng.integers(0, 65536, (40, 60), dtype=np.uint16)
    turned = {ORIENTATION: (SHORT, b"\0\6"), MAKE: text("A")}
    where = place([(52, 1), (31, 1)], [(13, 1), (24, 1)])
    exif = exif_bytes.exif(turned, {TAKEN: text("2024:05:01 10:11:12")}, where)
    kinds = [
        (colours, "JPEG", {"exif": exif}),
        (colours, "JPEG", {"progressive": True}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "PNG", {"exif": exif}),
        (colours.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(grey), "PNG", {}),
        (colours, "GIF", {"save_all": True, "append_images": [colours.rotate(90)]}),
        (colours, "WEBP", {"exif": exif}),
        (colours, "TIFF", {"compression": "tiff_lzw", "tiffinfo": {ORIENTATION: 6}}),
        (Image.fromarray(grey.astype(np.float32)), "TIFF", {}),
        (colours, "BMP", {}),
        (colours, "PPM", {}),
        (colours, "ICO", {}),
    ]
    out = []
    for image, kind, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        out.append(buffer.getvalue())
    return out


def _tar(files, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pair_tar_seeds(_folder):
    files = []
    for i in range(3):
        name = f"set.{i}/{'long' * 40 if i == 2 else 'a'}.{i}"
        files += [(f"{name}.jpg", photo(i)), (f"{name}.txt", b"a caption")]
        files += [(f"{name}.json", json.dumps({"uid": f"u{i}", "sha256": "x"}).encode())]
    plain = [_tar(files, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    return [*plain, plain[0] + plain[1], _tar([(f"s{i}.cls", b"1") for i in range(3)], 0)]


def shard_seeds(folder):
    out = []
    for dtype in ("float32", "int8", "bfloat16"):
        path = Path(folder) / f"{dtype}.tar"
        write(path, [sample(i) for i in range(3)], dtype=dtype, teacher_dims=(8, 4))
        out.append(path.read_bytes())
    return out


def _varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def frame(data):
    """Return a record of a tfrecord file."""
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack(
        "<I", masked_crc32c(data)
    )  # fmt: skip


def example(image=b"", text=b"a caption"):
    """Return a serialised tf.train.Example."""
    entries = b""
    numbers = _field(2, _field(1, struct.pack("<2f", 1, 2)))
    for name, values in (
        (b"image", _field(1, _field(1, image))),
        (b"text", _field(1, _field(1, text))),
        (b"width", _field(3, _field(1, _varint(12)))),
        (b"score", numbers),
    ):
        entries += _field(1, _field(1, name) + _field(2, values))
    return _field(1, entries)


def tfrecord_seeds(_folder):
    return [example(photo()), example(photo(3), b"\xf0\x9f\x98\x80")]


def npz_seeds(_folder):
    arrays = {"image_emb": np.ones((3, 8), np.float32), "text_emb": np.ones((1, 8), np.float32)}
    return [codec.encode(arrays, dtype)[1] for dtype in ("float32", "float16", "int8", "int6")]


def pth_seeds(_folder):
    arrays = {"image_emb": np.ones((3, 8), np.float32), "text_emb": np.ones((1, 8), np.float32)}
    return [gzip.decompress(codec.encode(arrays, "bfloat16")[1])]


def jsonl_seeds(folder):
    path = Path(folder) / "a.jsonl"
    with shards.JsonlWriter(str(path)) as writer:
        for i in range(3):
            writer.write(sample(i))
    line = {"uid": "x", "image": base64.b64encode(photo()).decode(), "text_emb": [[0.5] * 8]}
    return [path.read_bytes(), json.dumps(line).encode() + b"\n"]


# --- mutations


def plain(rng, data, other):
    return mutate(rng, data, other)


def gzipped(rng, data, other):
    """Mutate what is packed, or seldom the packed bytes, whose checksum tells."""
    if rng.random() < 0.7:
        return gzip.compress(mutate(rng, data, other), 1, mtime=0)
    return mutate(rng, gzip.compress(data, 1, mtime=0), other)


def tarred(rng, data, other):
    """Mutate, and mostly make the headers' checksums right again."""
    out = bytearray(mutate(rng, data, other))
    if rng.random() < 0.3:
        place = 512 * rng.randrange(max(1, len(out) // 512))
        field = rng.choice([(0, 100), (124, 136), (124, 136), (156, 157), (345, 500)])
        values = [b"-0000001000\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"S"]
        value = rng.choice(values)[: field[1] - field[0]]
        out[place + field[0] : place + field[0] + len(value)] = value
    if rng.random() < 0.8:
        for place in range(0, len(out) - 511, 512):
            if out[place + 257 : place + 262] == b"ustar":
                out[place + 148 : place + 156] = b" " * 8
                out[place + 148 : place + 156] = b"%06o\0 " % sum(out[place : place + 512])
    return bytes(out)


def framed(rng, data, other):
    """Mutate a record, and frame it well or seldom badly."""
    if rng.random() < 0.8:
        return frame(data) + frame(mutate(rng, data, other)) + frame(data)
    return mutate(rng, frame(data) + frame(data), other)


def zipped(rng, data, other, kinds=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
    """Mutate the members of a zip before they are packed, or seldom the whole."""
    if rng.random() < 0.3:
        return mutate(rng, data, other)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            kind = rng.choice(kinds)
            inner = old.read(name)
            new.writestr(name, mutate(rng, inner, other) if rng.random() < 0.6 else inner, kind)
    return buffer.getvalue()


def zipped_and_gzipped(rng, data, other):
    return gzip.compress(zipped(rng, data, other, (zipfile.ZIP_STORED,)), 1, mtime=0)


# --- readers


def warm_up():
    """Import what is imported late: the limit of memory counts from here."""
    import torch  # noqa: F401

    for data in image_seeds(""):
        open_image(data)
    codec.decode("pth.gz", gzip.compress(pth_seeds("")[0]))


def read_image(path):
    found = []
    image = open_image(path, on_header=lambda header: found.append(read_photo_facts(header)))
    assert image.mode == "RGB"
    assert min(image.size) > 0
    assert (found[0].width, found[0].height) == image.size
    assert perceptual_hash(image) is None or perceptual_hash(image) < 1 << 63
    return list(image.size)


def read_pairs(path, **options):
    counts = [0, 0]
    for shard in open_pairs(path, PairOptions(**options)):
        for pair in shard:
            counts[isinstance(pair, Bad)] += 1
            assert pair.uid
    assert sum(counts)  # nothing is passed over in silence
    return counts


def read_shard(path):
    found = inspect(path, Rules())
    if not found.problems:
        assert all(np.isfinite(a).all() for s in shards.read(path) for a in s.embeddings.values())
    return [found.stats.samples, len(found.problems)]


def read_mapped(path):
    counts = [0, 0]
    with MappedShard(Path(path)) as mapped:
        for index in range(len(mapped)):
            try:
                uid, parts = mapped[index]
                parse(parts, uid)
                counts[0] += 1
            except DataError:
                counts[1] += 1
    assert sum(counts)
    return counts


def read_evaluation(path):
    from pocketclip.evaluate.datasets.webdataset import _samples

    return sum(1 for _ in _samples([path], "retrieval", 3))


def read_npz(path):
    return list(codec.decode("npz", Path(path).read_bytes())[0])


def read_pth(path):
    return list(codec.decode("pth.gz", Path(path).read_bytes())[0])


def read_lines(path):
    return sum(1 for _ in shards.read(path))


# Kind: (seeds, mutation, suffix, reader, inputs).
KINDS = {
    "images": (image_seeds, plain, ".img", "read_image", 260),
    "pairs in tars": (pair_tar_seeds, tarred, ".tar", "read_pairs", 140),
    "pairs in packed tars": (pair_tar_seeds, gzipped, ".tar.gz", "read_pairs", 60),
    "shards": (shard_seeds, tarred, ".tar", "read_shard", 120),
    "mapped shards": (shard_seeds, tarred, ".tar", "read_mapped", 100),
    "sets in tars": (pair_tar_seeds, tarred, ".tar", "read_evaluation", 60),
    "tfrecords": (tfrecord_seeds, framed, ".tfrecord", "read_pairs", 100),
    "npz": (npz_seeds, zipped, ".npz", "read_npz", 80),
    "pth.gz": (pth_seeds, zipped_and_gzipped, ".pth.gz", "read_pth", 60),
    "lines": (jsonl_seeds, gzipped, ".jsonl.gz", "read_lines", 60),
}
