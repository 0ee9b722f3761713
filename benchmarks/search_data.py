"""Generated photographs, trees of files and libraries for `benchmarks/search.py`."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketclip.infer.encoder import Encoder
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate
from vector_libraries import generate_vectors

CAMERA_SIZE = 4000, 3000
"""Pixels of the generated photographs: 12 megapixels."""
ORIENTATIONS = 1, 6, 8, 3
"""EXIF orientations, in turn: as held, and turned by a quarter and a half."""
_ORIENTATION, _CAMERA, _TAKEN, _EXIF = 0x0112, 0x0110, 0x9003, 0x8769
_CLUSTERS = 1000
_STEP = 10_000
Rows = list[tuple[Any, ...]]


def copy_photographs(source: Path, folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Copy `count` different JPEGs found below `source` into `folder`; return their paths."""
    found = sorted(source.rglob("*.jpg"))
    chosen = sorted(random.Random(seed).sample(found, min(count, len(found))))
    folder.mkdir(parents=True)
    paths = [folder / f"{number:05}-{path.name}" for number, path in enumerate(chosen)]
    for path, target in zip(chosen, paths, strict=True):
        shutil.copyfile(path, target)
    return paths


def camera_photographs(source: Path, folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write JPEGs of 12 megapixels as phones do: enlarged photographs with noise and EXIF."""
    found = sorted(source.rglob("*.jpg"))
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        with Image.open(found[rng.integers(len(found))]) as image:
            large = image.convert("RGB").resize(CAMERA_SIZE, Image.Resampling.BICUBIC)
        grain = rng.integers(-6, 7, (CAMERA_SIZE[1], CAMERA_SIZE[0], 1), np.int8)
        pixels = np.clip(np.asarray(large, np.int16) + grain, 0, 255).astype(np.uint8)
        exif = Image.Exif()
        exif[_ORIENTATION] = ORIENTATIONS[number % len(ORIENTATIONS)]
        exif[_CAMERA] = "Generated"
        exif.get_ifd(_EXIF)[_TAKEN] = f"2026:{1 + number % 12:02}:15 12:00:00"
        paths.append(folder / f"IMG_{number:05}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=88, exif=exif)
    return paths


def tree_of_files(folder: Path, count: int) -> None:
    """Write `count` files of a few different bytes each, named as photographs, 500 to a folder.

    They are no images: a library that has rows for them all has nothing to read.
    """
    for start in range(0, count, 500):
        below = folder / f"{start // 500:05}"
        below.mkdir(parents=True)
        for number in range(start, min(start + 500, count)):
            (below / f"IMG_{number:07}.jpg").write_bytes(b"%08d" % number)


def tree_of_links(folder: Path, count: int) -> None:
    """Make a tree as that of `tree_of_files`, of hard links to few files: names cost little."""
    target = folder / "0"
    for number, (name, *_) in enumerate(_names(count)):
        path = folder / os.fsdecode(name)
        if number % 500 == 0:
            path.parent.mkdir(parents=True)
        if number % 50_000 == 0:  # file systems limit the links to a file
            target = path
            path.write_bytes(b"%08d" % number)
        else:
            path.hardlink_to(target)


def write_library(
    file: Path,
    count: int,
    encoder: Encoder | None = None,
    *,
    root: Path = Path("/generated"),
    as_on_disk: bool = False,
    seed: int = 0,
) -> None:
    """Write a library of generated vectors: clustered, of unit length, one file each.

    Args:
        file: the library's file, which must not exist.
        count: the number of photographs.
        encoder: the model whose space the vectors are said to be of, loaded from a bundle; None
            for a space of 512 dimensions that no model has.
        root: the folder of the photographs, which need not exist.
        as_on_disk: record the `count` files that are there, with the digests of their bytes; else
            the files of `tree_of_links`.
        seed: of the vectors.
    """
    dim = encoder.embed_dim if encoder is not None else 512
    place = root
    files = _tree(place) if as_on_disk else _names(count)
    vectors = iter(generate_vectors(count, dim, seed=seed, clusters=_CLUSTERS))
    database = Database.create(locate(file))
    with database.writing() as connection:
        with database.transaction():
            database.set_fact("space_id", encoder.space_id if encoder is not None else "generated")
            database.set_fact("embed_dim", dim)
            if encoder is not None:
                assert encoder.bundle is not None
                database.set_fact("model", encoder.config.name)
                database.set_fact("model_source", str(Path(encoder.bundle.folder).resolve()))
            connection.execute("INSERT INTO encoders VALUES (1, 'generated')")
            connection.execute(
                "INSERT INTO roots (id, path) VALUES (1, ?)", (os.fsencode(place.resolve()),)
            )
        for start in range(0, count, _STEP):
            contents: Rows = []
            rows: Rows = []
            for number in range(start, min(start + _STEP, count)):
                path, size, mtime, digest = next(files)
                row = number + 1
                taken = 1.5e9 + number * 60.0
                contents.append(
                    (
                        row,
                        digest,
                        size,
                        next(vectors).tobytes(),
                        4000,
                        3000,
                        taken,
                        f"camera {row % 5}",
                    )
                )
                rows.append((path, size, mtime, row))
            with database.transaction():
                connection.executemany(
                    "INSERT INTO contents (id, digest, size, vector, width, height, taken, camera, "
                    "encoder, format, orientation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 'JPEG', 1)",
                    contents,
                )
                connection.executemany(
                    "INSERT INTO files (root, path, size, mtime_ns, content) "
                    "VALUES (1, ?, ?, ?, ?)",
                    rows,
                )
    database.close()


def _names(count: int) -> Iterator[tuple[bytes, int, int, bytes]]:
    for number in range(count):
        name = b"%05d/IMG_%07d.jpg" % (number // 500, number)
        yield name, 8, 1_500_000_000_000_000_000 + number, _digest(name)


def _tree(root: Path) -> Iterator[tuple[bytes, int, int, bytes]]:
    for folder, below, names in os.walk(os.fsencode(root)):
        below.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118
            known = os.stat(path)  # noqa: PTH116
            yield (
                os.path.relpath(path, os.fsencode(root)), known.st_size, known.st_mtime_ns,
                _digest(Path(os.fsdecode(path)).read_bytes()),
            )  # fmt: skip


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
