"""Small evaluation sets of every form, written into a folder.

    write_wds(root, "vtab/cifar100", [labelled(photo(0), 0)], classes=["apple"])
    write_folder(root, "shelf", {"apple": [photo(0)], "pear": [photo(1)]})
    write_table(root / "shelf.csv", [{"image": "a.jpg", "label": 1}], {"a.jpg": photo(0)})

An example of a webdataset is a mapping from a member's suffix to its bytes.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Example = Mapping[str, bytes]


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a JPEG of smooth noise; `size` is width and height."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return encoded(coarse.resize(size, Image.Resampling.BILINEAR), "JPEG")


def colour_photo(rgb: Sequence[int], size: tuple[int, int] = (16, 16)) -> bytes:
    """Return a PNG of one colour, exactly."""
    return encoded(Image.new("RGB", size, tuple(rgb)), "PNG")


def encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values), allow_pickle=True)  # the tests also want bad ones
    return stream.getvalue()


def suffix_of(image: bytes) -> str:
    return "png" if image.startswith(b"\x89PNG") else "jpg"


def labelled(image: bytes, label: int, metadata: Sequence[int] | None = None) -> dict[str, bytes]:
    """Return an example of a classification set, with metadata or without."""
    example = {suffix_of(image): image, "cls": str(label).encode()}
    return example if metadata is None else {**example, "npy": npy(np.array(metadata, np.int64))}


def captioned(image: bytes, captions: Sequence[str]) -> dict[str, bytes]:
    """Return an example of a retrieval set; of SugarCrepe: the right caption, then the wrong."""
    return {suffix_of(image): image, "txt": "\n".join(captions).encode()}


def write_tar(path: Path, examples: Sequence[tuple[str, Example]]) -> Path:
    """Write examples with their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, example in examples:
            for suffix, data in example.items():
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def write_wds(
    root: Path,
    key: str,
    examples: Sequence[Example],
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    shards: int = 2,
    *,
    split: str = "test",
    dataset_type: str | None = None,
    nshards: bool = True,
) -> Path:
    """Write DataComp's form of a task; return its folder, `wds_KEY_test`."""
    folder = root / f"wds_{key.replace('/', '-')}_test"
    (folder / split).mkdir(parents=True, exist_ok=True)
    named = [(f"s{number:07d}", example) for number, example in enumerate(examples)]
    per_shard = -(-len(named) // shards) or 1
    for shard in range(shards):
        part = named[shard * per_shard : (shard + 1) * per_shard]
        write_tar(folder / split / f"{shard}.tar", part)
    if nshards:
        (folder / split / "nshards.txt").write_text(f"{shards}\n")
    write_lines(folder / "classnames.txt", classes)
    write_lines(folder / "zeroshot_classification_templates.txt", templates)
    write_lines(folder / "dataset_type.txt", dataset_type and [dataset_type])
    return folder


def write_lines(path: Path, lines: Sequence[str] | None) -> None:
    """Write a text file; None: leave it out."""
    if lines:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_folder(
    root: Path, key: str, images: Mapping[str, Sequence[bytes]], split: str | None = "test"
) -> Path:
    """Write images by class, ROOT/KEY/SPLIT/CLASS/0.jpg; return ROOT/KEY."""
    folder = root / key
    for name, several in images.items():
        target = (folder / split if split else folder) / name
        target.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(several):
            (target / f"{number}.{suffix_of(image)}").write_bytes(image)
    return folder


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], images: Mapping[str, bytes] | None = None
) -> Path:
    """Write a .csv, .tsv, .jsonl or .json table, and images beside it; lists become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, image in (images or {}).items():
        target = path.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image)
    if path.suffix == ".json":
        path.write_text(json.dumps({str(i): dict(row) for i, row in enumerate(rows)}))
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return path


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def write_winogavil(
    root: Path,
    puzzles: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    images: Mapping[str, bytes],
) -> Path:
    """Write WinoGAViL's form: ROOT/misc/winogavil/test.csv and images/NAME.jpg beside it.

    Puzzles are (cue, candidates, those of them that are associated); lists as Python writes them,
    as in the published table.
    """
    rows = [
        {"ID": number, "cue": cue, "candidates": str(list(names)), "associations": str(list(right))}
        for number, (cue, names, right) in enumerate(puzzles)
    ]
    path = root / "misc" / "winogavil" / "test.csv"
    return write_table(path, rows, {f"images/{name}.jpg": data for name, data in images.items()})


def write_sugarcrepe(
    root: Path, part: str, entries: Sequence[tuple[str, str, str]], images: Mapping[str, bytes]
) -> Path:
    """Write SugarCrepe's own form: ROOT/sugarcrepe/PART.json and the images in val2017/.

    Entries are (file name, right caption, wrong caption).
    """
    rows = [
        {"filename": name, "caption": right, "negative_caption": wrong}
        for name, right, wrong in entries
    ]
    path = root / "sugarcrepe" / f"{part}.json"
    return write_table(path, rows, {f"val2017/{name}": data for name, data in images.items()})


def upload(server: Any, folder: Path, prefix: str) -> str:
    """Put every file below `folder` into the S3 server; return the folder's address there."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        server.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"s3://{prefix}"
