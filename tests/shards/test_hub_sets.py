"""Sets on the hub, read by name: a small one in the layout of the published DataCompDR sets."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pocketclip import shards
from pocketclip.augment import Augmentation, rng_for
from pocketclip.errors import StorageError
from pocketclip.evaluate import DataOptions, own_task, plan
from pocketclip.pairs import open_pairs
from pocketclip.storage import hub_store
from tests.cli.inside import run as run_inside
from tests.shards.making import photo, tar, unit

NAME = "datasets/apple/DataCompDR-12M"
SET = f"hf://{NAME}"
SCRIPT = Path(__file__).parents[2] / "examples" / "datacompdr.sh"
AUGMENTATION = Augmentation.from_config(
    {"random_resized_crop": {"size": 224, "interpolation": "bicubic"}, "rand_augment": {"p": 1.0}}
)


def _uid(number):
    return f"{number:032x}"


def _published(path, numbers):
    """A shard as the published ones are: no image, no caption, no index."""
    files = []
    for number in numbers:
        rng, uid = np.random.default_rng(number), _uid(number)
        drawn = [AUGMENTATION.draw(rng_for(0, uid, i), (80, 60)) for i in range(3)]
        packed = json.dumps([AUGMENTATION.pack(params) for params in drawn])
        arrays = {"image_emb": unit(rng, 3, (768, 768)), "text_emb": unit(rng, 6, (768, 768))}
        buffer = io.BytesIO()
        np.savez(buffer, **{key: value.astype(np.float16) for key, value in arrays.items()})
        texts = {"syn_text": [f"a picture {number} {i}" for i in range(5)]}
        about = {"uid": uid, "sha256": ""}
        files += [
            (f"{uid}.url.txt", b"https://example.com/x.jpg"),
            (f"{uid}.syn.json", json.dumps(texts).encode()),
            (f"{uid}.paug.json", json.dumps({"param_aug": packed}).encode()),
            (f"{uid}.npz", buffer.getvalue()),
            (f"{uid}.json", json.dumps(about).encode()),
        ]
    return tar(path, files).read_bytes()


@pytest.fixture
def published(hub, tmp_path):
    """The hub with the set; returns the user's own images of it."""
    hub_store._file_systems.clear()
    hub_store._commits.clear()
    hub.repos[NAME] = {
        "README.md": b"---\nlicense: apple-amlr\n---\n",
        "00000000.tar": _published(tmp_path / "a", range(8)),
        "00000001.tar": _published(tmp_path / "b", range(8, 16)),
    }
    images = tmp_path / "images"
    images.mkdir()
    for shard in range(2):
        files = []
        for number in range(8 * shard, 8 * shard + 8):
            files += [(f"{_uid(number)}.jpg", photo(number, (80, 60))),
                      (f"{_uid(number)}.txt", f"truth {number}".encode())]  # fmt: skip
        tar(images / f"{shard:08d}.tar", files)
    return images


def test_a_published_set_is_read_and_joined_by_name(published, tmp_path):
    samples = list(shards.read(f"{SET}/{{00000000..00000001}}.tar"))
    assert [sample.uid for sample in samples] == [_uid(number) for number in range(16)]
    assert samples[3].embeddings["image_emb"].shape == (3, 1536)
    assert next(iter(shards.read(f"{SET}@main/*.tar"))).uid == _uid(0)
    report = shards.join(f"{SET}/00000001.tar", str(published / "00000001.tar"), f"{tmp_path}/out")
    assert report.complete
    assert report.samples == 8
    index = shards.read_index(f"{tmp_path}/out")
    assert Augmentation.from_config(index.augmentation).config == AUGMENTATION.config
    assert index.teacher_dims == (768, 768)
    assert [one["name"] for one in index.teachers] == [
        "open_clip:ViT-L-14/openai", "open_clip:ViT-L-14/datacomp_xl_s13b_b90k"
    ]  # fmt: skip
    with pytest.raises(StorageError, match="hf:// is only read"):
        shards.join(SET, str(published), f"{SET}/out")


def test_pairs_and_evaluation_sets_are_read_from_the_hub(hub):
    hub_store._file_systems.clear()
    hub_store._commits.clear()
    hub.repos["datasets/owner/shop"] = {
        "pairs.csv": b"image,caption,label\nimages/a.jpg,red,x\nimages/b.jpg,blue,y\n",
        "images/a.jpg": photo(10), "images/b.jpg": photo(200),
        "test/x/1.jpg": photo(10), "test/y/2.jpg": photo(200),
    }  # fmt: skip
    (shard,) = open_pairs("hf://datasets/owner/shop/pairs.csv")
    assert [pair.image for pair in shard] == [photo(10), photo(200)]
    root = "hf://datasets/owner/shop/test"
    ((_, data),) = plan([own_task(root)], root, DataOptions()).ready
    assert list(data.classes) == ["x", "y"]


@pytest.mark.slow
def test_training_reads_the_hub_and_keeps_what_it_fetched(published, hub, tmp_path):
    pytest.importorskip("torch")
    from pocketclip.train.sources import ShardSource

    shards.join(SET, str(published), f"{tmp_path}/joined")
    joined = {path.name: path for path in (tmp_path / "joined").glob("*.*")}
    hub.repos["datasets/me/joined"] = joined
    recipe = tmp_path / "tiny.yaml"
    cache = tmp_path / "cache"
    recipe.write_text(
        "model: {name: tiny}\ndata: {source: 'hf://datasets/me/joined', workers: 1, "
        f"cache_dir: {cache}}}\nloss: {{weights: [0.0, 1.0]}}\nsteps: 2\nbatch_size: 8\n", "utf-8",
    )  # fmt: skip
    done = run_inside("train", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr

    def fetched():
        return [r for r in hub.requests if "me/joined/resolve/" in r.path and ".tar" in r.path]

    assert len(fetched()) == 2
    source = ShardSource("hf://datasets/me/joined", str(cache))
    assert source.read(1, 7).uid == _uid(15)
    source.close()
    assert len(fetched()) == 2


@pytest.mark.slow
def test_the_example_joins_and_trains_by_name(published, hub, tmp_path):
    pytest.importorskip("torch")
    assert hub.repos
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("model: {name: tiny}\nsteps: 2\nbatch_size: 8\n", "utf-8")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "pocketclip"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pocketclip "$@"\n', "utf-8")
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "RECIPE": str(recipe),
               "SHARDS": "{00000000..00000001}"}  # fmt: skip
    done = subprocess.run(
        ["sh", str(SCRIPT), str(published / "*.tar"), str(tmp_path / "dr")],
        env=environ, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "dr" / "run" / "model" / "model.safetensors").is_file()
