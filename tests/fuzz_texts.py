"""What is fuzzed of texts and tables: indexes, results, recipes, evaluation sets, pairs.

As `fuzz_kinds`; a seed of a folder is its files by name.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path

import yaml

from pocketclip import shards
from pocketclip.evaluate.datasets.examples import Example
from pocketclip.evaluate.datasets.find import find, own_task
from pocketclip.evaluate.report import compare, runs
from pocketclip.evaluate.results import read_results, write_results
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import recipe as reinforcing
from pocketclip.shards.index import describe
from pocketclip.train import recipe as training
from pocketclip.train.sources import ShardSource, augmentation_of
from pocketclip.types import Bad
from tests.evaluate.sets import write_folder, write_table
from tests.fuzz_kinds import plain, read_shard, tarred  # noqa: F401  (readers)
from tests.fuzzing import mutate
from tests.mutations import change, change_json, change_lines, dump
from tests.shards.making import CONFIG, GOLDEN, folder, photo, sample

# --- seeds


def _files(place):
    return {
        p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()
    }


def index_seeds(place):
    (place / "set").mkdir()
    folder(place / "set", [[sample(i) for i in range(k, k + 3)] for k in (0, 3)])
    return [_files(place / "set")]


def published_seeds(place):
    files = {n: d for n, d in index_seeds(place)[0].items() if n != "index.json"}
    about = {
        "reinforce": {"image_augmentation": CONFIG},
        "model_name": "one,two", "teacher_dimension": [8, 4], "teacher_logit_scale": [100.0, 50.0],
    }  # fmt: skip
    return [
        {**files, "config.json": json.dumps(about).encode()},
        {**files, "config.json": json.dumps(CONFIG).encode()},
    ]


def published_tar_seeds(_place):
    """Published shards, each with its first sample and a small photograph."""
    out = []
    for path in sorted(GOLDEN.glob("*.tar")):
        buffer = io.BytesIO()
        with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w") as new:
            for number, member in enumerate(old):
                data = old.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    data = photo(number)
                info = tarfile.TarInfo(member.name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
        out.append(buffer.getvalue())
    return out


def results_seeds(_place):
    about = {"model": "tiny", "space_id": "space-1", "samples": 10, "skipped": 0, "kind": "x"}
    ours = [
        {"key": key, "dataset": key, "metrics": {"main_metric": 0.5, "acc5": None}} | more
        for key, more in (("imagenet1k", {"pocketclip": about}), ("own", {"pocketclip": about}))
    ]
    theirs = [
        {"key": "cifar10", "dataset": "CIFAR-10", "metrics": {"acc1": 0.9, "main_metric": 0.9}},
        {"key": "misc/winogavil", "dataset": "W", "metrics": {"main_metric": math.nan}},
    ]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode() for rows in (ours, theirs)]


def training_recipe_seeds(_place):
    whole = [training.dump(training.load_recipe(name)) for name in training.names()[:6]]
    return [text.encode() for text in whole]


def reinforcing_recipe_seeds(_place):
    recipes = [
        {"teachers": ["random:tiny", "random:tiny:1"], "augmentations": 3, "layout": "v1"},
        {
            "teachers": "random:tiny", "captioners": ["a=random:coca-tiny"],
            "captions": 2, "augmentations": 2, "dtype": "int8", "seed": 3, "images": False,
            "sampling": {"temperature": 0.5, "top_k": 5},
            "image_augmentation": {"random_resized_crop": {"size": 8, "scale": [0.1, 1.0]}},
        },
        {"reinforce": {"teachers": ["random:tiny"], "augmentations": 2}},
    ]  # fmt: skip
    return [yaml.safe_dump(recipe).encode() for recipe in recipes]


CLASSES = {"cat": [photo(1), photo(2)], "dog": [photo(3)], "red fox": [photo(4)]}


def class_folder_seeds(place):
    (place / "a").mkdir()
    files = _files(write_folder(place / "a", "set", CLASSES))
    return [
        files,
        {**files, "classnames.txt": b"cat\ndog\nred fox\n",
         "zeroshot_classification_templates.txt": b"a photo of a {c}\n{}\n"},
    ]  # fmt: skip


def evaluation_table_seeds(place):
    images = {f"i/{k}.jpg": photo(k) for k in range(4)}
    labelled = [{"image": f"i/{k}.jpg", "label": ["cat", "dog"][k % 2]} for k in range(4)]
    captioned = [{"image": f"i/{k}.jpg", "captions": [f"a {k}", f"b {k}"]} for k in range(4)]
    negated = [
        {"filename": f"i/{k}.jpg", "caption": "a", "negative_caption": "b"} for k in range(4)
    ]
    out = []
    for number, (rows, suffix) in enumerate(
        [(labelled, ".csv"), (labelled, ".jsonl"), (captioned, ".csv"), (captioned, ".jsonl"),
         (negated, ".json"), (labelled, ".tsv")]
    ):  # fmt: skip
        made = place / f"t{number}"
        write_table(made / f"test{suffix}", rows, images)
        out.append(_files(made))
    return out


ROWS = [
    {"image": f"i/{k}.jpg", "caption": f'a "caption", {k}', "width": k, "uid": f"u{k}"}
    for k in range(4)
]


def pair_table_seeds(place):
    out = []
    for suffix in (".csv", ".tsv", ".jsonl"):
        made = place / suffix.strip(".")
        write_table(made / f"pairs{suffix}", ROWS, {f"i/{k}.jpg": photo(k) for k in range(4)})
        out.append(_files(made))
    return out


def parquet_seeds(_place):
    import pyarrow
    from pyarrow import parquet

    out = []
    for options in ({}, {"compression": "none", "use_dictionary": False}, {"row_group_size": 2}):
        for rows in (
            ROWS,
            [{"bytes": photo(k), "text": ["a", "b"], "n": {"x": k}} for k in (1, 2)],
        ):
            buffer = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
            out.append(buffer.getvalue())
    return out


# --- mutations


def text_of(rng, name, data, other):
    """Mutate a text by its structure, or its bytes."""
    if rng.random() < 0.3:
        return mutate(rng, data, other)
    if name.endswith((".jsonl", ".json")):
        return change_lines(rng, data) if name.endswith("l") else change_json(rng, data)
    return _cells(rng, data, b"\t" if name.endswith(".tsv") else b",")


_CELLS = [
    b"", b'"', b'""', b'"a\nb"', b"\0", b"\xff", b"nan", b"../../../etc/passwd", b"/dev/zero",
    b"file:///dev/stdin", b"ftp://x/y.jpg", b"http://127.0.0.1:1/x.jpg", b"x" * 200_000, b"1e999",
    b"[1, [2]]", b"{c}", b"9" * 5000, "\u2028".encode(), b"\r", b"i/0.jpg",
]  # fmt: skip


def _cells(rng, data, delimiter):
    lines = data.split(b"\n")
    for _ in range(rng.choice([1, 2, 3])):
        at = rng.randrange(len(lines))
        cells = lines[at].split(delimiter)
        match rng.randrange(5):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, rng.choice(lines))
            case 2:
                cells.insert(rng.randrange(len(cells) + 1), rng.choice(_CELLS))
                lines[at] = delimiter.join(cells)
            case _:
                cells[rng.randrange(len(cells))] = rng.choice(_CELLS)
                lines[at] = delimiter.join(cells)
        lines = lines or [b""]
    return b"\n".join(lines)


def one_text(rng, files, other):
    """Mutate a folder's text, or seldom one of its other files, or leave one out."""
    texts = [n for n in files if n.endswith((".json", ".jsonl", ".csv", ".tsv", ".txt"))]
    name = rng.choice(texts if texts and rng.random() < 0.85 else sorted(files))
    data = rng.choice(list(other.values()))
    match rng.randrange(15):
        case 0:
            return {n: d for n, d in files.items() if n != name}
        case 1 if name not in texts:
            return {**files, name: data}
        case _ if name in texts:
            return {**files, name: text_of(rng, name, files[name], data)}
        case _:
            return {**files, name: mutate(rng, files[name], data)}


def lines(rng, data, other):
    return change_lines(rng, data) if rng.random() < 0.7 else mutate(rng, data, other)


def yaml_values(rng, data, other):
    """Mutate the values of a YAML text (as JSON, or as YAML writes them), or its bytes."""
    if rng.random() < 0.3:
        return mutate(rng, data, other)
    value = change(rng, yaml.safe_load(data))
    if rng.random() < 0.5:
        return dump(value, 1)
    try:
        return yaml.safe_dump(value).encode()
    except (ValueError, yaml.YAMLError):
        return dump(value, 1)


# --- readers


UIDS = {f"{k:08d}" for k in range(6)}


def read_index(path):
    """Audit a set, and read it as training does: what it delivers is what was written."""
    found = shards.audit(str(path))
    good = _trained(path)
    if found.clean:
        assert good == UIDS or found.samples == len(good)
    return [found.samples, sum(found.counts.values())]


def _trained(path):
    source = ShardSource(str(path), None)
    uids = set()
    try:
        for number, size in enumerate(source.sizes):
            for index in range(size):
                one = source.read(number, index)
                uids.add(one.uid)
                same = sample(int(one.uid))
                assert set(one.captions) == set(same.captions)
        if source.index is not None:
            augmentation_of(source, path)
    finally:
        source.close()
    return uids


def read_published(path):
    about = describe(str(path))
    assert about is None or all(d > 0 for d in about.teacher_dims)
    return sorted(_trained(path))


def read_results_file(path):
    results = read_results(path)
    for result in results:
        values = [v for v in result.metrics.values() if v is not None]
        assert all(math.isfinite(v) for v in values), values
    copy = Path(path).with_suffix(".copy")
    write_results(str(copy), results)
    assert read_results(copy) == results
    table = compare(runs.gather([str(path), "mobileclip-s0"]))
    json.dumps(table.as_json(), allow_nan=False)
    return len(results)


def read_training_recipe(path):
    recipe = training.load_recipe(Path(path))
    Path(path).with_suffix(".copy.yaml").write_text(training.dump(recipe), "utf-8")
    assert training.load_recipe(Path(path).with_suffix(".copy.yaml")) == recipe
    return recipe.steps


def read_reinforcing_recipe(path):
    recipe = reinforcing.load_recipe(path)
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
    return len(recipe.teachers)


def read_set(path):
    """Read an evaluation set: each label is one of the classes, and each image is there."""
    data = find(own_task(str(path)), str(path))
    count = 0
    for item in data:
        count += 1
        if isinstance(item, Example) and data.kind == "classification":
            assert 0 <= item.label < len(data.classes)
    assert count  # an empty set is an error
    return count


def read_table(path):
    return read_parquet(next((p for p in Path(path).iterdir() if p.is_file()), path))


def read_parquet(path):
    counts = [0, 0]
    for shard in open_pairs(str(path), PairOptions()):
        for pair in shard:
            counts[isinstance(pair, Bad)] += 1
            assert pair.uid
            if not isinstance(pair, Bad):
                assert any(text.strip() for texts in pair.captions.values() for text in texts)
    return counts


KINDS = {
    "indexes": (index_seeds, one_text, "", "read_index", 120),
    "published configurations": (published_seeds, one_text, "", "read_published", 60),
    "published shards": (published_tar_seeds, tarred, ".tar", "read_shard", 60),
    "results": (results_seeds, lines, ".jsonl", "read_results_file", 120),
    "recipes of training": (
        training_recipe_seeds,
        yaml_values,
        ".yaml",
        "read_training_recipe",
        120,
    ),
    "recipes of sets": (
        reinforcing_recipe_seeds,
        yaml_values,
        ".yaml",
        "read_reinforcing_recipe",
        100,
    ),
    "class folders": (class_folder_seeds, one_text, "", "read_set", 60),
    "tables of sets": (evaluation_table_seeds, one_text, "", "read_set", 120),
    "tables of pairs": (pair_table_seeds, one_text, "", "read_table", 120),
    "parquet": (parquet_seeds, plain, ".parquet", "read_parquet", 100),
}
