"""The published training's reader of reinforced shards, to compare ours with.

    batches, replay, used = read_published(folder, size=256, batch_size=32, seed=0)

It does per sample what the reference training does (its patch of open_clip, with its packages):
webdataset streams and groups a tar and decodes every member (Pillow decodes the image to RGBA and
converts it to RGB); torchvision replays the augmentation on the Pillow image (and computes its
tables of RandAugment's ranges for each image, as there) and converts to normalised floats;
open_clip's tokenizer encodes the captions; `gzip` and `torch.load`, or `numpy.load`, read the
embeddings. Its shuffling is left out.

Where webdataset or torchvision cannot be imported, `tarfile` and Pillow imitate both, faster than
the original: without the packages' overhead and without RGBA. Without open_clip our tokenizer is
used, which is faster too.

A batch is [float32 (B, 3, S, S), two of int64 (B, 77), three of float32 (B, D)]: normalised
images, the ground-truth and a synthetic caption, and the embeddings of image and captions.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from peers import import_open_clip
from pocketclip import zoo
from pocketclip.augment import pixel_ops
from pocketclip.tokenizer import Tokenizer

Tokenise = Callable[[str], torch.Tensor]
Sample = dict[str, Any]
Replay = Callable[[Image.Image, Any], torch.Tensor]
MEAN = torch.tensor(zoo.CLIP_MEAN).view(3, 1, 1)
STD = torch.tensor(zoo.CLIP_STD).view(3, 1, 1)


def read_published(
    folder: Path, *, size: int, batch_size: int, seed: int, imitated: bool = False
) -> tuple[Iterator[list[Any]], Replay, dict[str, str]]:
    """Return endless batches, the function from RGB to floats, and the packages in use.

    Args:
        folder: shards whose augmentation is a random resized crop and RandAugment.
        size: S.
        batch_size: B.
        seed: chooses views and captions.
        imitated: imitate the packages.
    """
    open_clip = None if imitated else import_open_clip()  # also readies the import of torchvision
    tokenise, tokenizer = _tokenizer(open_clip)
    chance = random.Random(seed)
    try:
        if imitated:
            raise ImportError("an imitation is asked for")
        import torchvision
        import webdataset
    except ImportError as error:
        print(f"the published reader is imitated: {error}", file=sys.stderr)
        replay = _pillow_replay(size)
        batches = _imitated(folder, batch_size, replay, chance, tokenise)
        return batches, replay, {"reader": "tarfile", "replay": "Pillow", "tokenizer": tokenizer}
    used = {
        "reader": f"webdataset {webdataset.__version__}",
        "replay": f"torchvision {torchvision.__version__}",
        "tokenizer": tokenizer,
    }
    replay = _torchvision_replay(size)
    return _original(folder, batch_size, replay, chance, tokenise), replay, used


def _tokenizer(open_clip: Any) -> tuple[Tokenise, str]:
    if open_clip is not None:
        theirs = open_clip.tokenizer.SimpleTokenizer()
        return lambda text: theirs(text)[0], f"open_clip {open_clip.__version__}"
    ours = Tokenizer(warn=False)
    return lambda text: torch.from_numpy(ours(text))[0], "ours"


def _chosen(sample: Sample, replay: Replay, chance: random.Random, tokenise: Tokenise) -> Sample:
    """Return what training takes of a decoded sample."""
    views = sample["paug.json"]["param_aug"]
    number = chance.randrange(len(views))
    image = replay(sample["image"].convert("RGB"), views[number])
    synthetic = sample["syn.json"]["syn_text"]
    other = chance.randrange(len(synthetic))
    stored = sample["npz"] if "npz" in sample else sample["pth.gz"]
    return {
        "image": image,
        "text": tokenise(sample["text"]),
        "syn_text": tokenise(synthetic[other]),
        "image_emb": torch.as_tensor(stored["image_emb"][number]).float(),
        "text_emb": torch.as_tensor(stored["text_emb"][0]).float(),
        "syn_text_emb": torch.as_tensor(stored["syn_text_emb"][other]).float(),
    }


COLUMNS = ("image", "text", "syn_text", "image_emb", "text_emb", "syn_text_emb")


# --- with the packages of the original


def _original(
    folder: Path, batch_size: int, replay: Replay, chance: random.Random, tokenise: Tokenise
) -> Iterator[list[Any]]:
    import webdataset as wds

    pipeline = wds.DataPipeline(
        wds.SimpleShardList([str(path) for path in sorted(folder.glob("*.tar"))]),
        wds.tarfile_to_samples(),
        wds.select(lambda sample: "txt" in sample and "jpg" in sample),
        wds.decode("pilrgba"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map(lambda sample: _chosen(sample, replay, chance, tokenise)),
        wds.to_tuple(*COLUMNS),
        wds.batched(batch_size, partial=False),
    )
    for _ in itertools.count():
        yield from pipeline


def _torchvision_replay(size: int) -> Replay:
    from torchvision.transforms import InterpolationMode, RandAugment
    from torchvision.transforms import functional as F
    from torchvision.transforms.autoaugment import _apply_op

    augment = RandAugment()
    mean, std = list(zoo.CLIP_MEAN), list(zoo.CLIP_STD)

    def replay(image: Image.Image, packed: Any) -> torch.Tensor:
        crop, ops = packed
        image = F.resized_crop(image, *crop, [size, size], InterpolationMode.BICUBIC)
        if ops is not None:
            _, height, width = F.get_dimensions(image)
            # Not used in a replay, but computed by the published one.
            augment._augmentation_space(augment.num_magnitude_bins, (height, width))
        for op, magnitude in ops or ():
            image = _apply_op(
                image, pixel_ops.OP_NAMES[op], magnitude, InterpolationMode.NEAREST, None
            )
        return F.normalize(F.to_tensor(image), mean, std)

    return replay


# --- without them


def _imitated(
    folder: Path, batch_size: int, replay: Replay, chance: random.Random, tokenise: Tokenise
) -> Iterator[list[Any]]:
    rows: list[Sample] = []
    for _ in itertools.count():
        for sample in _streamed(folder):
            rows.append(_chosen(_decoded(sample), replay, chance, tokenise))
            if len(rows) == batch_size:
                yield [torch.stack([row[column] for row in rows]) for column in COLUMNS]
                rows = []


def _streamed(folder: Path) -> Iterator[dict[str, bytes]]:
    """Yield samples as webdataset does: a tar's members in a row, grouped by name."""
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            current: dict[str, bytes] = {}
            before = ""
            for member in archive:
                uid, _, key = member.name.partition(".")
                if uid != before and current:
                    yield current
                    current = {}
                before = uid
                file = archive.extractfile(member)
                assert file is not None
                current[key] = file.read()
            if current:
                yield current


def _decoded(sample: dict[str, bytes]) -> Sample:
    out: Sample = {
        "image": Image.open(io.BytesIO(sample["jpg"])),
        "text": sample["txt"].decode(),
        "paug.json": json.loads(sample["paug.json"]),
        "syn.json": json.loads(sample["syn.json"]),
    }
    if "npz" in sample:
        with np.load(io.BytesIO(sample["npz"])) as arrays:
            out["npz"] = {key: arrays[key] for key in arrays}
    else:
        with gzip.GzipFile(fileobj=io.BytesIO(sample["pth.gz"])) as stream:
            out["pth.gz"] = torch.load(io.BytesIO(stream.read()), weights_only=True)
    return out


def _pillow_replay(size: int) -> Replay:
    def replay(image: Image.Image, packed: Any) -> torch.Tensor:
        (top, left, height, width), ops = packed
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        for op, magnitude in ops or ():
            image = _operated(image, op, magnitude)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (pixels - MEAN) / STD

    return replay


def _operated(image: Image.Image, op: int, magnitude: float) -> Image.Image:
    """Apply an operation of RandAugment as torchvision does to a Pillow image."""
    name = pixel_ops.OP_NAMES[op]
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        enhanced: Image.Image = getattr(ImageEnhance, name)(image).enhance(1.0 + magnitude)
        return enhanced
    if name == "Posterize":
        return ImageOps.posterize(image, int(magnitude))
    if name == "Solarize":
        threshold: Any = magnitude  # with fractions, though Pillow's annotation knows none
        return ImageOps.solarize(image, threshold)
    return pixel_ops.apply_op(image, op, magnitude)
