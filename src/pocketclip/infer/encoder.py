"""`Encoder`: photographs and texts in, embeddings and labels out.

    encoder = Encoder("phone/")  # a bundle; needs no torch
    encoder.classify("photo.jpg", ["a dog", "a cat"])

Shapes: B batch, L labels, T tokens, D embedding.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices
from pocketclip._deprecated import renamed_arguments
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.embeddings import (
    check_finite,
    image_name,
    text_name,
    unit_length,
)
from pocketclip.errors import ConfigError, ImageError
from pocketclip.infer.backends import count_tokens, text_batches
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.features import FeatureExtractor, prepare_pixels
from pocketclip.infer.loaded_model import LoadedModel
from pocketclip.infer.open_model import Reporter, open_model
from pocketclip.infer.text_cache import CachedText
from pocketclip.infer.zero_shot import build_classifier, rank_labels
from pocketclip.label_set import LabelSet
from pocketclip.types import Embeddings

log = logging.getLogger(__name__)


@renamed_arguments(brief="low_latency_start")
def load(
    path_or_name: str | os.PathLike[str] | ModelSource,
    model: str | None = None,
    *,
    fuse: bool = True,
    offline: bool = False,
    revision: str | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    precision: str | None = None,
    low_latency_start: bool = False,
    reporter: Reporter = None,
) -> Encoder:
    """Load a model for use.

    Without torch, a published model, a weight file or a checkpoint is converted to a bundle in the
    user's cache at its first use, see `pocketclip.infer.ready`.

    Args:
        path_or_name: a bundle, a training run, a checkpoint folder, a weight file, a folder from
            the hub, a zoo name, a hub id, or `random:NAME` for random weights; see
            `pocketclip.checkpoint.resolve`.
        model: the zoo name of a weight file that does not name its model itself.
        fuse: fold the training branches: the same embeddings, faster.
        offline: take hub files from the local cache only.
        revision: of a repository on the hub: a branch, a tag or a commit; None for `main`.
        backend: `auto`, `torch`, `onnxruntime` or `openvino`, see `Encoder`.
        device: the device of a model in torch: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; see
            `pocketclip.devices.resolve_device`.
        threads: CPU threads per call of a bundle; None for all cores.
        batch_size: number of images or texts per call of the model.
        precision: of a model in torch `fp32` (the default), `bf16`, `fp16` or `auto`, see
            `pocketclip.devices.resolve_dtype`; of a bundle see `Encoder`.
        low_latency_start: see `Encoder`.
        reporter: receives a remark if the model is converted; None: it is logged.

    Raises:
        ConfigError: an argument does not apply to this kind of model.
        MissingDependencyError: torch, or the bundle's runtime, is not installed.
        PocketclipError: the model cannot be loaded; the message says why.
    """
    opened = open_model(
        path_or_name, model, fuse, offline, revision, backend=backend, device=device,
        threads=threads, precision=precision, reporter=reporter,
    )  # fmt: skip
    if isinstance(opened, Bundle):
        return Encoder(
            opened, backend, device=device, threads=threads, batch_size=batch_size,
            precision=precision, low_latency_start=low_latency_start,
        )  # fmt: skip
    encoder = Encoder(opened, device=device, batch_size=batch_size)
    encoder.convert(precision)
    return encoder


class Encoder(LoadedModel):
    """A model with its preprocessing and tokenizer; implements `pocketclip.types.Encoder`.

    Several threads may use one encoder. Text embeddings of a bundle are cached; those of a model
    in torch are not, since its weights may change.

    Args:
        source: a model in torch, which is set to evaluation mode; a `Bundle`; or an argument of
            `load`, which is then loaded as `load` does.
        backend: the runtime of a bundle: `openvino`, `onnxruntime`, or `auto` for the fastest that
            is installed and passed when the bundle was verified; if it cannot load the model, the
            next one is used. A model in torch has `torch`.
        device: the device that a model in torch is moved to; None leaves it where it is, and means
            `auto` for a model that is loaded here.
        threads: CPU threads per call of a bundle; None for all cores. An error for a model in
            torch, whose `torch.set_num_threads` applies to the whole process.
        batch_size: number of images or texts per call of the model.
        precision: for a bundle `fp32` or `bf16`, which OpenVINO computes in (`bf16` excludes other
            backends); None for the bundle's own. A model loaded here is converted, see `load`.
        low_latency_start: choose the bundle's backend that starts soonest, and shorten its start
            at the cost of slower texts: for a process that ends after a few inputs.
        memory_arena: let ONNX Runtime keep the memory of its largest call for the next ones.
            Without it, calls take about 1 % longer: for a process that runs for long.

    Raises:
        BundleError: the bundle is damaged, or no installed backend can run it.
        ConfigError: an argument does not apply to this kind of model.
        MissingDependencyError: the runtime is not installed.
        PocketclipError: `source` cannot be loaded; the message says why.
        ValueError: `batch_size` is below 1.
    """

    def encode_image(self, images: Any, *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of images.

        Args:
            images: one image or a sequence of them; each a path, bytes, a PIL image or an
                array (H, W), (H, W, 3) or (H, W, 4); or one array (B, H, W, 3).
            normalize: scale the embeddings to unit length.

        Raises:
            ImageError: an image cannot be opened.
            EmbeddingError: an embedding is not finite, or is zero and cannot be normalised; the
                message names the image.
        """
        is_batch = isinstance(images, np.ndarray) and images.ndim == 4
        items = list(images) if is_batch or isinstance(images, (list, tuple)) else [images]
        out = np.empty((len(items), self.embed_dim), np.float32)
        for good, embeddings, bad in self.encode_stream(items, normalize=normalize):
            if bad:
                raise bad[0][1]
            out[good] = embeddings
        return out

    def encode_stream(
        self, images: Sequence[Any], *, normalize: bool = True
    ) -> Iterator[tuple[list[int], Embeddings, list[tuple[int, ImageError]]]]:
        """Embed images batch by batch; the next batch is decoded in the meantime.

        Yields:
            The positions of the batch's readable images, their embeddings (B, D), and the other
            positions with their errors.

        Raises:
            EmbeddingError: as in `encode_image`.
        """
        step = self.images_per_call
        images = list(images)
        decoding: deque[Future[Any]] = deque()
        submitted = 0
        # Decoding releases the interpreter lock, so it overlaps with the model.
        with ThreadPoolExecutor(max_workers=self.decoder_threads()) as pool:
            for start in range(0, len(images), self.batch_size):
                good: list[int] = []
                bad: list[tuple[int, ImageError]] = []
                chunks = [np.empty((0, self.embed_dim), np.float32)]
                waiting: list[NDArray[Any]] = []
                end = min(start + self.batch_size, len(images))
                for position in range(start, end):
                    while submitted < min(position + 2 * self.batch_size, len(images)):
                        decoding.append(pool.submit(self.prepare, images[submitted]))
                        submitted += 1
                    try:
                        waiting.append(decoding.popleft().result())
                        good.append(position)
                    except ImageError as error:
                        bad.append((position, error))
                    if waiting and (len(waiting) == step or position == end - 1):
                        names = [image_name(images[row], row) for row in good[-len(waiting) :]]
                        chunks.append(self._encode_prepared(waiting, normalize, names.__getitem__))
                        waiting = []
                yield good, np.concatenate(chunks), bad

    @property
    def images_per_call(self) -> int:
        """The number of images per call of the image tower.

        Small on a CPU: a layer's output should still be in the cache when the next layer reads it.
        One image of 256 x 256 pixels was fastest, or as many pixels in smaller images.
        """
        if self.bundle is None:
            return self.batch_size
        return max(1, min(self.batch_size, 256 * 256 // self.config.image_size**2))

    def decoder_threads(self) -> int:
        """Return how many threads should decode images; a bundle's tower needs cores as well."""
        cores = devices.cores()
        return cores if self.bundle is None else max(1, cores // 2)

    def one_threaded(self) -> Encoder | None:
        """Return this bundle for calls from many threads, each on one core.

        As many calls at a time as there are cores encode more images than all cores on one call
        after the other.

        Returns:
            None if no backend that was chosen, or that `auto` may choose, can do so: only ONNX
            Runtime does.
        """
        name = "onnxruntime"
        if self.bundle is None or name not in (self.backend.name, *self._fallbacks):
            return None
        if self.threads == 1 and self.backend.name == name:
            return self
        return Encoder(
            self.bundle, name, threads=1, batch_size=self.batch_size,
            memory_arena=self._memory_arena,
        )  # fmt: skip

    def prepare(self, image: Any) -> NDArray[Any]:
        """Return the image tower's input for one image: pixels, or a photograph (H, W, 3).

        Raises:
            ImageError: it cannot be opened.
        """
        kind = "preprocessed" if self.bundle is None else self.bundle.image_input
        if kind == "photo":
            from pocketclip.images import open_image

            return np.asarray(open_image(image))
        return self.preprocess(image)

    def encode_prepared(
        self, inputs: Sequence[NDArray[Any]], *, normalize: bool = True
    ) -> Embeddings:
        """Return embeddings (B, D) of inputs that `prepare` returned.

        A model in torch gets all inputs of one size in one call. A bundle gets as many per call as
        in `encode_stream`, since its memory and time grow with the batch.

        Raises:
            EmbeddingError: as in `encode_image`; images are named by their position.
        """
        return self._encode_prepared(inputs, normalize, _name_by_position)

    def _encode_prepared(
        self, inputs: Sequence[NDArray[Any]], normalize: bool, name_of: Callable[[int], str]
    ) -> Embeddings:
        self.load("image")
        step = len(inputs) if self.bundle is None else self.images_per_call
        chunks = []
        for _, group in itertools.groupby(inputs, key=np.shape):
            same_size = list(group)
            for start in range(0, len(same_size), step):
                embeddings = self.backend.image(np.stack(same_size[start : start + step]))
                chunks.append(np.asarray(embeddings, np.float32))
        return _finish(np.concatenate(chunks), normalize, name_of)

    def encode_pixels(self, pixels: NDArray[Any], *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of the image tower's input, in one call.

        Args:
            pixels: (B, 3, S, S) as `preprocess` returns it, or what `bundle.image_input` names.
            normalize: scale the embeddings to unit length.

        Raises:
            EmbeddingError: as in `encode_image`; images are named by their position.
        """
        self.load("image")
        return _finish(self.backend.image(pixels), normalize, _name_by_position)

    def features(
        self, images: Any, *, size: tuple[int, int] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the image tower's feature maps (B, C, H', W') by name, and `tokens` (B, N, C).

        For detection, segmentation and language models: see docs/how-to/features.md. A bundle
        needs `pocketclip export --features`, and runs without torch.

        Args:
            images: as `encode_image` takes them.
            size: height and width that the whole images are resized to; None: the square of the
                evaluation transform, which crops them.

        Raises:
            BundleError: the bundle has no features.
            ConfigError: a size that the tower does not take; that of a vision transformer has
                sides that are multiples of its patch size.
            ImageError: an image cannot be opened.
        """
        is_batch = isinstance(images, np.ndarray) and images.ndim == 4
        items = list(images) if is_batch or isinstance(images, (list, tuple)) else [images]
        return self._extractor(prepare_pixels(self.preprocess, items, size))

    def features_of_pixels(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return what `features` does, for preprocessed pixels (B, 3, H, W) of any size.

        Raises:
            BundleError, ConfigError: as in `features`.
        """
        return self._extractor(pixels)

    @functools.cached_property
    def _extractor(self) -> FeatureExtractor:
        return FeatureExtractor(self.bundle or self.model, self.threads)

    def encode_text(self, texts: str | Sequence[str], *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of texts; those of a bundle are cached.

        Args:
            texts: one text or a sequence of them; texts longer than the model's context are
                truncated, with a warning.
            normalize: scale the embeddings to unit length.

        Raises:
            EmbeddingError: an embedding is not finite, or is zero and cannot be normalised; the
                message names the text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        known = self.text_cache.lookup(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            new = self._encode_text(missing)
            known |= new
            if self.bundle is not None:
                self.text_cache.store(new)
        if not texts:
            return np.empty((0, self.embed_dim), np.float32)
        out = np.stack([known[text].embedding for text in texts])
        return _finish(out, normalize, lambda row: text_name(texts[row]))

    def _encode_text(self, texts: list[str]) -> dict[str, CachedText]:
        """Return embeddings that are not normalised, by text."""
        ids = self.tokenizer(texts, self.config.text.context_length)
        self.load("text")
        out = np.empty((len(ids), self.embed_dim), np.float32)
        trims = self.config.text.ignores_padding
        for rows, batch in text_batches(ids, self.batch_size, ignores_padding=trims):
            out[rows] = self.backend.text(batch)
        check_finite(out, lambda row: text_name(texts[row]))
        lengths = count_tokens(ids).tolist()
        return dict(zip(texts, map(CachedText, out, lengths), strict=True))

    def encode_ids(self, ids: NDArray[np.int64], *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of token ids, in one call; they are not cached.

        Args:
            ids: (B, T) as `tokenizer` returns them, of at most the text tower's context.
            normalize: scale the embeddings to unit length.

        Raises:
            EmbeddingError: as in `encode_text`; texts are named by their position.
        """
        self.load("text")
        if self.config.text.ignores_padding:
            ids = ids[:, : count_tokens(ids).max()]
        return _finish(self.backend.text(ids), normalize, lambda row: f"text {row}")

    def classifier(
        self, labels: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> Embeddings:
        """Return one unit embedding (L, D) per label: the mean over the templates (CLIP, 3.1.4).

        Args:
            labels: the classes.
            templates: prompts with `{}` or `{c}` in place of the label.

        Raises:
            EmbeddingError: as in `encode_text`.
            PocketclipError: no label, a repeated label, no template, or one without `{}`.
        """
        return build_classifier(self.encode_text, labels, templates)

    def classify(
        self,
        images: Any,
        labels: Sequence[str] | LabelSet,
        templates: str | Sequence[str] | None = None,
    ) -> list[dict[str, float]]:
        """Return, per image, each label's probability, the most probable first.

        Args:
            images: one image or a sequence of them, as `encode_image` takes them.
            labels: the classes; or a label set of this model's embedding space, see
                `pocketclip.fit`. `LabelSet.is_none` says whether an image is none of them.
            templates: prompts with `{}` or `{c}` in place of the label; their embeddings are
                averaged. None: the label itself.

        Raises:
            ImageError: an image cannot be opened.
            EmbeddingError: as in `encode_image` and `encode_text`.
            PocketclipError: invalid labels or templates, see `classifier`; or a label set of
                another embedding space, or with templates.
        """
        if isinstance(labels, LabelSet):
            if templates is not None:
                raise ConfigError("a label set needs no templates: leave them out")
            labels.check_space(
                self.space_id, embed_dim=self.embed_dim
            )  # before the images are encoded
            return self.rank(self.encode_image(images), labels)
        classifier = self.classifier(labels, ("{}",) if templates is None else templates)
        return self.rank(self.encode_image(images), classifier, labels)

    def rank(
        self,
        images: Embeddings,
        classifier: Embeddings | LabelSet,
        labels: Sequence[str] | None = None,
        *,
        top: int | None = None,
    ) -> list[dict[str, float]]:
        """Return, per image embedding (B, D), each label's probability, the highest first.

        Args:
            images: (B, D), of unit length.
            classifier: what `classifier` returned; or a label set of this embedding space.
            labels: the labels of the classifier; a label set has its own.
            top: the number of labels to return per image; None for all.

        Raises:
            ConfigError: labels are missing, or given with a label set.
            DataError: a label set of another embedding space.
            EmbeddingError: an embedding is not finite.
        """
        if isinstance(classifier, LabelSet):
            if labels is not None:
                raise ConfigError("a label set has its own labels: leave them out")
            classifier.check_space(self.space_id, embed_dim=self.embed_dim)
            return classifier.rank(images, top)
        if labels is None:
            raise ConfigError("the labels of the classifier are missing")
        return rank_labels(images, classifier, labels, self.logit_scale, top)


def _name_by_position(row: int) -> str:
    return image_name(None, row)


def _finish(rows: Embeddings, normalize: bool, name_of: Callable[[int], str]) -> Embeddings:
    return unit_length(rows, name_of) if normalize else check_finite(rows, name_of)
