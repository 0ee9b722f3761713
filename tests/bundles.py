"""Bundles for tests: small models, exported once per run for all worker processes."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pocketclip
from pocketclip import checkpoint
from pocketclip.export.job import export
from pocketclip.infer import bundle as bundles
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from tests.golden_weights import randomise

# Every kind of tower, cut to what exports in seconds: hybrid; hybrid with five stages and a mean
# and standard deviation to subtract; ViT with causal text.
_SLIM = {"text.width": 64, "text.heads": 2, "text.embedding_buckets": 2048}
CUTS = {
    "tiny": {},
    "mobileclip-s0": {"image.depths": (1, 2, 1, 1), "image.widths": (32, 64, 128, 256),
                      "text.layers": 1, **_SLIM},
    "mobileclip-s3": {"image.depths": (1, 1, 1, 1, 1), "image.widths": (32, 64, 128, 256, 512),
                      "text.layers": 1, **_SLIM},
    "mobileclip-b": {"image.layers": 2, "image.width": 64, "image.heads": 2, "text.layers": 2,
                     **_SLIM},
}  # fmt: skip


TRAINED = ("teacher-a", "teacher-b")
"""The small trained models of `pocketclip quickstart`: photographs get different embeddings."""


@cache
def model(name: str = "tiny", seed: int = 0) -> CLIP:
    """Return a small model with plausible weights; not to be changed."""
    if name in TRAINED:
        return checkpoint.load(Path(pocketclip.__file__).parent / "data" / "quickstart" / name)
    made = random_model(name, seed=seed, **CUTS[name])
    randomise(made, seed)
    return made.eval()


class Bundles:
    """Makes bundles of small models when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str = "tiny", target: str = "onnx", **options) -> Path:
        """Return the folder of a bundle, not to be changed, see `copy`."""
        title = "_".join([name, target, *(f"{k}-{v}" for k, v in sorted(options.items()))])
        place = self.root / title
        with (self.root / f"{title}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.is_dir():
                export(model(name), place, target=target, **options)
        return place

    def copy(self, to: Path, name: str = "tiny", target: str = "onnx", **options) -> Path:
        """Return a copy to be damaged."""
        return Path(shutil.copytree(self(name, target, **options), to))


def manifest(folder: Path) -> dict:
    return json.loads((folder / bundles.MANIFEST).read_text("utf-8"))


def with_license(folder: Path, to: Path, entry: dict[str, str], text: str = "") -> Path:
    """Return a copy of a bundle whose weights have a licence."""
    copied = Path(shutil.copytree(folder, to))
    if text:
        (copied / "LICENCE.txt").write_text(text, "utf-8")
        entry = entry | {"file": "LICENCE.txt"}
    names = [*manifest(copied)["files"], *(["LICENCE.txt"] if text else [])]
    return rewritten(copied, names=names, licence=entry)


def rewritten(folder: Path, names: Iterable[str] = (), **changes) -> Path:
    """Write a bundle's manifest anew, with the hashes of its files as they are now."""
    raw = manifest(folder)
    names = [name for name in names or raw["files"] if (folder / name).is_file()]
    for key in ("format", "version", "tokenizer", "files", "sha256"):
        del raw[key]
    bundles.write_manifest(folder, raw | changes, names)
    return folder
