"""The friendly `Encoder`: photographs and texts in, embeddings and labels out.

Shapes: B batch, L labels, D embedding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketclip import zoo
from pocketclip.errors import ImageError, PocketclipError
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

log = logging.getLogger(__name__)


def load(
    path_or_name: str | os.PathLike[str],
    model: str | None = None,
    *,
    fuse: bool = True,
    offline: bool = False,
) -> Encoder:
    """Load a model for use.

    Args:
        path_or_name: a checkpoint folder, a weight file, a zoo name or a hub id, as
            `pocketclip.checkpoint.load` takes them. `tiny` and `small`, which have no published
            weights, are made with random ones, and a warning is logged.
        model: the zoo name of a weight file that does not say itself which model it holds.
        fuse: fold the training branches: the same embeddings, faster.
        offline: take hub files from the local cache only.

    Raises:
        MissingDependencyError: torch is not installed.
        PocketclipError: the model cannot be had; the message says why.
    """
    from pocketclip import checkpoint
    from pocketclip.nn.clip import random_model
    from pocketclip.nn.reparam import fuse as fold

    text = os.fspath(path_or_name)
    is_checkpoint = Path(text).is_file() or (Path(text) / checkpoint.CONFIG).is_file()
    entry = None if is_checkpoint else zoo.find(text)
    if entry is not None and not entry.hub:
        log.warning(
            "%s has no published weights: they are random here, and so are the results; train "
            "it, or choose a published model (`pocketclip models`)",
            entry.config.name,
        )
        loaded = random_model(entry.config.name, seed=0)
        return Encoder(fold(loaded) if fuse else loaded)
    return Encoder(checkpoint.load(path_or_name, model, fuse, offline=offline))


class Encoder:
    """A model with its preprocessing and tokenizer; satisfies `pocketclip.types.Encoder`.

    Args:
        model: the model, fused or not; put into evaluation mode.
        batch_size: how many images or texts go through the model at a time.
    """

    def __init__(self, model: CLIP, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.model = model.eval()
        self.batch_size = batch_size
        self.preprocess = Preprocess(model.config.preprocess)
        self.tokenizer = Tokenizer()
        self._space_id: str | None = None

    @property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        return self.model.config.embed_dim

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities before a softmax."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def space_id(self) -> str:
        """The identity of the embedding space."""
        if self._space_id is None:
            self._space_id = self.model.space_id
        return self._space_id

    def encode_image(self, images: Any, *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of images.

        Args:
            images: one image or a sequence of them; each a path, bytes, a PIL image or an
                array (H, W), (H, W, 3) or (H, W, 4); or one array (B, H, W, 3).
            normalize: scale the embeddings to unit length.

        Raises:
            ImageError: an image cannot be opened.
        """
        stacked = isinstance(images, np.ndarray) and images.ndim == 4
        many = list(images) if stacked or isinstance(images, (list, tuple)) else [images]
        out = np.empty((len(many), self.embed_dim), np.float32)
        for good, embeddings, bad in self.encode_stream(many, normalize=normalize):
            if bad:
                raise bad[0][1]
            out[good] = embeddings
        return out

    def encode_stream(
        self, images: Sequence[Any], *, normalize: bool = True
    ) -> Iterator[tuple[list[int], Embeddings, list[tuple[int, ImageError]]]]:
        """Yield, per batch, which images were read, their embeddings, and which failed and why.

        Images are named by their position. The next batch is decoded while this one is encoded.
        """
        size = self.batch_size
        empty = np.empty((0, self.embed_dim), np.float32)
        # Decoding releases the interpreter lock, so it overlaps with the model.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            pending: list[Future[Any]] = []
            for start in range(0, len(images) + size, size):
                chunk = images[start : start + size]
                following = [pool.submit(self.preprocess, image) for image in chunk]
                pixels, good, bad = [], [], []
                for position, future in enumerate(pending, start - size):
                    try:
                        pixels.append(future.result())
                        good.append(position)
                    except ImageError as error:
                        bad.append((position, error))
                if pending:
                    found = (
                        self.encode_pixels(np.stack(pixels), normalize=normalize) if good else empty
                    )
                    yield good, found, bad
                pending = following

    def encode_pixels(self, pixels: Embeddings, *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of pixels (B, 3, S, S) that `preprocess` made, in one go."""
        import torch

        weight = self.model.logit_scale
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(weight.device, weight.dtype)
            found = self.model.encode_image(batch, normalize=normalize)
        embeddings: Embeddings = found.float().cpu().numpy()
        return embeddings

    def encode_text(self, texts: str | Sequence[str], *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of texts.

        Args:
            texts: one text or a sequence of them; longer ones than the model's context are cut,
                with a warning.
            normalize: scale the embeddings to unit length.
        """
        import torch

        ids = self.tokenizer(texts, self.model.config.text.context_length)
        out = np.empty((len(ids), self.embed_dim), np.float32)
        for start in range(0, len(ids), self.batch_size):
            chunk = torch.from_numpy(ids[start : start + self.batch_size])
            chunk = chunk.to(self.model.logit_scale.device)
            with torch.inference_mode():
                found = self.model.encode_text(chunk, normalize=normalize)
            out[start : start + len(chunk)] = found.float().cpu().numpy()
        return out

    def classifier(
        self, labels: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> Embeddings:
        """Return one unit embedding (L, D) per label: the mean over the templates (CLIP, 3.1.4).

        Args:
            labels: what to tell apart.
            templates: prompts with `{}` where the label goes.

        Raises:
            PocketclipError: no label, a label twice, or a template without `{}`.
        """
        if isinstance(labels, str):
            raise PocketclipError(f"labels is the text {labels!r}: give a list of labels")
        labels = list(labels)
        templates = [templates] if isinstance(templates, str) else list(templates)
        if not labels:
            raise PocketclipError("no labels: give at least one")
        doubled = sorted({label for label in labels if labels.count(label) > 1})
        if doubled:
            raise PocketclipError(f"label {doubled[0]!r} is given twice")
        wrong = [t for t in templates if t.count("{}") != 1]
        if wrong or not templates:
            raise PocketclipError(f"template {(wrong or [''])[0]!r} needs one {{}} for the label")
        prompts = [t.replace("{}", label) for label in labels for t in templates]
        embedded = self.encode_text(prompts).reshape(len(labels), len(templates), -1).mean(1)
        unit: Embeddings = embedded / np.linalg.norm(embedded, axis=-1, keepdims=True)
        return unit

    def classify(
        self, images: Any, labels: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> list[dict[str, float]]:
        """Return, per image, each label's probability, the most probable first.

        Args:
            images: one image or a sequence of them, as `encode_image` takes them.
            labels: what to tell apart.
            templates: prompts with `{}` where the label goes; their embeddings are averaged.

        Raises:
            ImageError: an image cannot be opened.
            PocketclipError: labels or templates that do not make sense.
        """
        classifier = self.classifier(labels, templates)
        return self.rank(self.encode_image(images), classifier, labels)

    def rank(
        self, images: Embeddings, classifier: Embeddings, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        """Return, per image embedding (B, D), each label's probability, the highest first."""
        logits = self.logit_scale * images.astype(np.float64) @ classifier.T.astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = odds / odds.sum(axis=1, keepdims=True)  # (B, L)
        order = np.argsort(-shares, axis=1, kind="stable")
        return [
            {labels[i]: float(row[i]) for i in best}
            for row, best in zip(shares, order, strict=True)
        ]
