"""Captioners: models that write synthetic captions, stored beside each pair's own captions.

    captioner = load_captioner("coca-vit-l14", sampling=Sampling(top_p=0.9))
    captioner.caption_squares(squares, uids, count=5, seed=0)  # list of lists of captions

They are CoCa models of the zoo, image-to-text models of `transformers`, or the user's own
(`pocketclip.reinforce.own_models`). A dataset may have several captioners, each with its own key.
Caption k of an image depends only on the image and on (seed, uid, k), not on other images in the
batch, apart from the rounding of matrix products; the user's own answer for that themselves.
Source: MobileCLIP (arXiv 2311.17049), section 3.1; MobileCLIP2 (arXiv 2508.20691), section 3.2.

Shapes: B images, n captions per image, S side of a square in pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices
from pocketclip.errors import ConfigError
from pocketclip.reinforce import specs
from pocketclip.reinforce.coca_captioner import load_coca
from pocketclip.reinforce.hf_captioner import load_transformers
from pocketclip.reinforce.own_models import OwnCaptioner, load_own
from pocketclip.reinforce.prepare import Prepared
from pocketclip.reinforce.protocols import Pixels, Writer
from pocketclip.reinforce.sampling import Sampling, caption_key
from pocketclip.reinforce.teacher_preprocess import SquareTransform
from pocketclip.types import Pair

RETRIES = 3
"""Times that an empty caption is sampled again."""
ROWS = 128
"""Captions that are generated in one batch."""

_NAME = re.compile(r"[a-z0-9_-]+")


class Captioner:
    """A model that writes captions, with its preprocessing.

    Attributes:
        name: distinguishes it from other captioners of the dataset.
        key: the key of its captions in a sample, see `caption_key`.
        identity: everything that affects its captions, apart from image and seed, as JSON types.
        transform: turns an image into the square that `caption_squares` takes.
        dtype: the type that the model computes in.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        name: str,
        facts: Mapping[str, Any],
        sampling: Sampling,
        transform: SquareTransform,
        pixels: Pixels,
    ) -> None:
        self.writer = writer
        self.name = name
        self.key = caption_key(name)
        self.sampling = sampling
        self.transform = transform
        self.dtype = str(pixels.dtype).removeprefix("torch.")
        self.identity: dict[str, Any] = {
            "name": name,
            **facts,
            "precision": self.dtype,
            "sampling": sampling.identity,
        }
        self._pixels = pixels

    def __repr__(self) -> str:
        return f"Captioner({self.name!r}, {self.sampling.method}, {self.dtype})"

    def caption_squares(
        self, squares: NDArray[np.uint8], uids: Sequence[str], count: int, seed: int
    ) -> list[list[str]]:
        """Return B lists of captions of squares (B, S, S, 3) that `transform` made.

        A list may be shorter than `count`: `greedy` gives one caption, beam search at most
        `beams`, and a caption that stays empty after `RETRIES` further samples is left out.

        Args:
            squares: the images.
            uids: the images' uids (B,), which seed the sampling.
            count: captions per image.
            seed: the seed of the job.

        Raises:
            ValueError: the numbers of squares and uids differ.
        """
        if len(squares) != len(uids):
            raise ValueError(f"{len(squares)} squares and {len(uids)} uids")
        number = self.sampling.per_image(count)
        if not number:
            return [[] for _ in uids]
        step = max(1, ROWS // number)
        out: list[list[str]] = []
        for start in range(0, len(uids), step):
            batch = slice(start, start + step)
            out += self._caption(squares[batch], uids[batch], number, seed)
        return out

    def _caption(
        self, squares: NDArray[np.uint8], uids: Sequence[str], number: int, seed: int
    ) -> list[list[str]]:
        import torch

        with torch.inference_mode():
            pixels = self._pixels(squares)
            seeds = [seed_of(seed, uid, k) for uid in uids for k in range(number)]
            trim = self.sampling.trim
            texts = [trim(text) for text in self.writer.write(pixels, number, seeds)]
            for attempt in range(1, RETRIES + 1 if self.sampling.is_random else 0):
                empty = [row for row, text in enumerate(texts) if not text]
                if not empty:
                    break
                images = [row // number for row in empty]
                again = [seed_of(seed, uids[row // number], row % number, attempt) for row in empty]
                for row, text in zip(
                    empty, self.writer.write(pixels[images], 1, again), strict=True
                ):
                    texts[row] = trim(text)
        rows = [texts[start : start + number] for start in range(0, len(texts), number)]
        return [[text for text in row if text] for row in rows]


def caption_pairs(
    captioner: Captioner | OwnCaptioner,
    batch: Sequence[tuple[Pair, Prepared]],
    count: int,
    seed: int,
) -> list[list[str]]:
    """Return the captions of B prepared pairs.

    Args:
        captioner: the captioner.
        batch: pairs, and what `pocketclip.reinforce.prepare` made of their images.
        count: captions per image.
        seed: the seed of the job.

    Raises:
        PocketclipError: see `OwnCaptioner.caption_images`.
    """
    uids = [pair.uid for pair, _ in batch]
    if isinstance(captioner, OwnCaptioner):
        images = [pair.image for pair, _ in batch if pair.image is not None]
        return captioner.caption_images(images, [seed_of(seed, uid, 0) for uid in uids], count)
    squares = np.stack([views.whole[captioner.transform.key] for _, views in batch])
    return captioner.caption_squares(squares, uids, count, seed)


def seed_of(seed: int, uid: str, k: int, attempt: int = 0) -> int:
    """Return the 63-bit seed of caption `k` of an image: a pure function of its arguments."""
    text = f"caption\0{seed}\0{uid}\0{k}\0{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def load_captioner(
    spec: str,
    *,
    name: str | None = None,
    device: str = "auto",
    precision: devices.Precision = "auto",
    offline: bool = False,
    sampling: Sampling | Mapping[str, Any] | None = None,
) -> Captioner | OwnCaptioner:
    """Load a captioner.

    Args:
        spec: the model, see `pocketclip.reinforce.specs`: a CoCa of the zoo, `transformers:` with
            a BLIP, GIT or VisionEncoderDecoder model, or `python:` with a `CaptionModel`.
        name: lower-case letters, digits, - and _, for the key of its captions; None: from the spec.
        device: as `load_teacher`.
        precision: as `load_teacher`.
        offline: use local files and the cache only.
        sampling: how captions are sampled; None: the defaults of `Sampling`. It does not apply to
            the user's own captioners.

    Raises:
        ConfigError: an argument is invalid, or the model cannot write captions.
        CheckpointError, HubError, UnknownModelError, MissingDependencyError: as `load_teacher`.
    """
    if not isinstance(sampling, Sampling):
        sampling = Sampling.from_dict(sampling or {})
    source = specs.parse(spec)
    name = _checked_name(name, source.label)
    if source.kind == "python":
        return OwnCaptioner(load_own(source), name=name, spec=source.text, target=source.target)
    resolved = devices.resolve_device(device)
    dtype = devices.resolve_dtype(precision, resolved)
    if source.kind == "transformers":
        loaded = load_transformers(source, sampling, resolved, dtype, offline)
    else:
        loaded = load_coca(source, sampling, resolved, dtype, offline)
    writer, facts, transform, scaling = loaded
    return Captioner(
        writer,
        name=name,
        facts=facts,
        sampling=writer.sampling,
        transform=transform,
        pixels=Pixels(scaling, resolved, dtype),
    )


def _checked_name(name: str | None, label: str) -> str:
    if name is None:
        return re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-") or "captioner"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a captioner's name may have only lower-case letters, digits, - and _, not {name!r}"
        )
    return name
