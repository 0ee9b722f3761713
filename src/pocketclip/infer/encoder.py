"""The friendly `Encoder`: photographs and texts in, embeddings and labels out.

    encoder = Encoder("phone/")  # a bundle; needs no torch
    encoder.classify("photo.jpg", ["a dog", "a cat"])

Shapes: B batch, L labels, T tokens, D embedding.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices, zoo
from pocketclip._deprecated import renamed_arguments
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.embeddings import (
    check_finite,
    check_scale,
    image_name,
    text_name,
    unit_length,
)
from pocketclip.errors import (
    BundleError,
    ChangedBundleError,
    ConfigError,
    ImageError,
    PocketclipError,
)
from pocketclip.infer.backends import BACKENDS, Backend, BundleBackend, TorchBackend, candidates
from pocketclip.infer.bundle import Bundle, read
from pocketclip.prompts import fill_templates
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    import torch

    from pocketclip.nn.clip import CLIP
    from pocketclip.preprocess import Preprocess
    from pocketclip.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CACHED_TEXTS = 1 << 16
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


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
) -> Encoder:
    """Load a model for use.

    Args:
        path_or_name: whatever `pocketclip.checkpoint.resolve` takes for a model: a bundle, a
            training run, a checkpoint folder, a weight file, a folder from the hub, a zoo name, a
            hub id, or `random:NAME` for random weights.
        model: the zoo name of a weight file that does not say itself which model it holds.
        fuse: fold the training branches: the same embeddings, faster.
        offline: take hub files from the local cache only.
        revision: of a repository on the hub: a branch, a tag or a commit; None for `main`.
        backend: what runs it: `auto`, `torch`, `onnxruntime` or `openvino`, see `Encoder`.
        device: where a model in torch computes: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; see
            `pocketclip.devices.resolve_device`.
        threads: how many threads of the processor a bundle uses; None for all cores.
        batch_size: how many images or texts go through the model at a time.
        precision: what a model in torch computes in: `fp32` (None is the same), `bf16`, `fp16` or
            `auto`, see `pocketclip.devices.resolve_dtype`; of a bundle see `Encoder`.
        low_latency_start: see `Encoder`.

    Raises:
        ConfigError: an argument that does not go with this kind of model.
        MissingDependencyError: torch, or what runs the bundle, is not installed.
        PocketclipError: the model cannot be had; the message says why.
    """
    opened = _open(
        path_or_name, model, fuse, offline, revision, backend=backend, device=device,
        threads=threads, precision=precision,
    )  # fmt: skip
    if isinstance(opened, Bundle):
        return Encoder(
            opened, backend, device=device, threads=threads, batch_size=batch_size,
            precision=precision, low_latency_start=low_latency_start,
        )  # fmt: skip
    encoder = Encoder(opened, device=device, batch_size=batch_size)
    encoder._compute_in(precision)
    return encoder


def _open(
    source: str | os.PathLike[str] | ModelSource,
    model: str | None = None,
    fuse: bool = True,
    offline: bool = False,
    revision: str | None = None,
    *,
    backend: str,
    device: str,
    threads: int | None,
    precision: str | None,
) -> CLIP | Bundle:
    """Return the model or bundle that `load` is to use; what cannot go together ends it first."""
    if not isinstance(source, ModelSource):
        source = resolve_model(source, revision=revision)
    if source.kind == "bundle":
        return _read_bundle(source, model)
    if backend not in ("auto", "torch"):
        raise BundleError(
            f"backend {backend!r} runs bundles, and {source.text} is none: make one with "
            f"`pocketclip export {source.text} --format openvino --out DIR`"
        )
    _check_threads(threads)
    from pocketclip import checkpoint

    _dtype(precision, devices.resolve_device(device))
    return checkpoint.load(source, model, fuse, offline=offline)


def _read_bundle(source: ModelSource, model: str | None) -> Bundle:
    assert source.path is not None
    if source.note:
        log.warning("%s", source.note)
    bundle = read(source.path)
    wanted = source.model if model is None else zoo.resolve(model)
    if wanted not in (None, bundle.config.name):
        raise BundleError(f"{source.path} holds {bundle.config.name}, not {wanted}")
    return bundle


def _check_threads(threads: int | None) -> None:
    """Refuse `threads` for a model in torch.

    Raises:
        ConfigError: it is given.
    """
    if threads is not None:
        raise ConfigError(
            "threads is for bundles; for a model in torch call torch.set_num_threads(N), which "
            "holds for the whole process"
        )


class Encoder:
    """A model with its preprocessing and tokenizer; satisfies `pocketclip.types.Encoder`.

    May be used from several threads at once. A bundle's embeddings of texts are remembered (the
    weights of a model in torch may change meanwhile).

    Args:
        source: a model in torch, which is put into evaluation mode; a `Bundle`; or what `load`
            takes for a model, which is then loaded as `load` does.
        backend: what runs a bundle: `openvino`, `onnxruntime`, or `auto` for the fastest that is
            installed and passed when the bundle was verified; the next is taken if it cannot load
            the model. A model in torch is run by `torch`.
        device: where a model in torch computes, and is moved to; None for where it is, and for
            `auto` where it is loaded here.
        threads: how many threads of the processor a bundle uses; None for all cores. For a model
            in torch it is an error: `torch.set_num_threads` holds for the whole process.
        batch_size: how many images or texts go through the model at a time.
        precision: what OpenVINO computes in, `fp32` or `bf16`, which leaves no other backend; None
            for the bundle's own. A model in torch is brought into it, see `load`; None leaves it.
        low_latency_start: choose the bundle's backend that starts soonest, and shorten its start
            at the cost of slower texts: for a process that ends after a few inputs.

    Raises:
        BundleError: the bundle is damaged, or nothing here can run it.
        ConfigError: an argument that does not go with this kind of model.
        MissingDependencyError: what could run it is not installed.
        PocketclipError: `source` is a name or path, and cannot be loaded; the message says why.
    """

    @renamed_arguments(brief="low_latency_start")
    def __init__(
        self,
        source: CLIP | Bundle | ModelSource | str | os.PathLike[str],
        backend: str = "auto",
        *,
        device: str | None = None,
        threads: int | None = None,
        batch_size: int = 32,
        precision: str | None = None,
        low_latency_start: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        devices.check_threads(threads)
        is_loaded_here = isinstance(source, (str, os.PathLike, ModelSource))
        if isinstance(source, (str, os.PathLike, ModelSource)):
            device = device or "auto"
            source = _open(
                source, backend=backend, device=device, threads=threads, precision=precision
            )
        self.batch_size = batch_size
        self.threads = threads or devices.cores()
        self.config: zoo.ModelConfig = source.config
        self.bundle = source if isinstance(source, Bundle) else None
        self._space_id = source.space_id if isinstance(source, Bundle) else None
        self._logit_scale = source.logit_scale if isinstance(source, Bundle) else None
        self._names: list[str] = []
        self._low_latency_start = low_latency_start
        if isinstance(source, Bundle):
            if device not in (None, "auto", "cpu"):
                raise ConfigError(
                    f"{source.folder} is a bundle, which runs on the processor: leave device "
                    f"{device!r} out"
                )
            self._names = _backends(source, backend, precision, low_latency_start=low_latency_start)
            self.backend: Backend = self._made(self._names.pop(0), precision)
        elif backend not in ("auto", "torch"):
            raise BundleError(f"backend {backend!r} runs bundles; a model in torch is run by torch")
        elif precision not in (None, "fp32") and not is_loaded_here:
            raise BundleError(
                f"precision {precision!r} is for bundles; a model in torch has its own"
            )
        else:
            _check_threads(threads)
            self.threads = devices.need_torch().get_num_threads()
            self.backend = TorchBackend(source if device is None else _moved(source, device))
            self._compute_in(precision)
        self._cache: OrderedDict[str, Embeddings] = OrderedDict()
        self._caching, self._changing = threading.Lock(), threading.Lock()

    # Both are imported late: meanwhile threads can load the towers, see `preload`.

    @functools.cached_property
    def preprocess(self) -> Preprocess:
        """The evaluation transform."""
        from pocketclip.preprocess import Preprocess

        return Preprocess(self.config.preprocess)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        from pocketclip.tokenizer import Tokenizer

        return Tokenizer()

    def _compute_in(self, precision: str | None) -> None:
        """Bring a model in torch that was loaded here into another precision."""
        if precision in (None, "fp32", "float32"):
            return
        dtype = _dtype(precision, self.model.logit_scale.device)
        # Both are of the weights in full precision.
        self._space_id, self._logit_scale = self.space_id, self.logit_scale
        self.model.to(dtype)

    def _made(self, name: str, precision: str | None) -> BundleBackend:
        assert self.bundle is not None
        return BACKENDS[name](
            self.bundle, self.threads, precision, low_latency_start=self._low_latency_start
        )

    @property
    def model(self) -> CLIP:
        """The model in torch.

        Raises:
            BundleError: this is a bundle.
        """
        if not isinstance(self.backend, TorchBackend):
            raise BundleError("a bundle has no model in torch")
        return self.backend.model

    @property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        return self.config.embed_dim

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities before a softmax.

        Raises:
            EmbeddingError: it is not finite.
        """
        if self._logit_scale is not None:
            return self._logit_scale
        return check_scale(float(self.model.logit_scale.detach().float().exp()))

    @property
    def space_id(self) -> str:
        """The identity of the embedding space."""
        if self._space_id is None:
            self._space_id = self.model.space_id
        return self._space_id

    @property
    def form(self) -> str | None:
        """Which export of the model a bundle is; None for the model itself."""
        return None if self.bundle is None else self.bundle.form

    def preload(self, *towers: str) -> None:
        """Begin to load `image`, `text` or both, each in a thread of its own, and return.

        What goes wrong shows when the tower is used.
        """
        for tower in towers:
            # Python waits for them at its end: one that it left in the middle of a runtime's code
            # would abort the process.
            threading.Thread(target=self._try_load, args=(tower,)).start()

    def _try_load(self, tower: str) -> None:
        # Whatever it is: when the process ends meanwhile, even threads are refused.
        with contextlib.suppress(Exception):
            self.load(tower)

    def load(self, tower: str) -> None:
        """Load `image` or `text` of a bundle now rather than at first use.

        With `auto`, the next backend is tried if one cannot load it.

        Raises:
            BundleError: the bundle was changed, or cannot be loaded.
        """
        while isinstance(self.backend, BundleBackend):
            backend = self.backend
            try:
                backend.load(tower)
                return
            except BundleError as error:
                if isinstance(error, ChangedBundleError):
                    raise  # to every backend alike
                with self._changing:
                    if self.backend is not backend:
                        continue  # another thread was faster
                    if not self._names:
                        raise
                    log.warning("%s; trying %s", error, self._names[0])
                    self.backend = self._made(self._names.pop(0), backend.precision)

    def encode_image(self, images: Any, *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of images.

        Args:
            images: one image or a sequence of them; each a path, bytes, a PIL image or an
                array (H, W), (H, W, 3) or (H, W, 4); or one array (B, H, W, 3).
            normalize: scale the embeddings to unit length.

        Raises:
            ImageError: an image cannot be opened.
            EmbeddingError: an embedding is not finite, or zero where it is to be normalised; names
                the image.
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

        Images are named by their position. Those of the next batch are decoded meanwhile.

        Raises:
            EmbeddingError: as in `encode_image`.
        """
        at_once = self._at_once()
        images = list(images)
        ahead: deque[Future[Any]] = deque()
        submitted = 0
        # Decoding releases the interpreter lock, so it overlaps with the model.
        with ThreadPoolExecutor(max_workers=self._decoders()) as pool:
            for start in range(0, len(images), self.batch_size):
                good: list[int] = []
                bad: list[tuple[int, ImageError]] = []
                parts = [np.empty((0, self.embed_dim), np.float32)]
                waiting: list[NDArray[Any]] = []
                end = min(start + self.batch_size, len(images))
                for position in range(start, end):
                    while submitted < min(position + 2 * self.batch_size, len(images)):
                        ahead.append(pool.submit(self.prepare, images[submitted]))
                        submitted += 1
                    try:
                        waiting.append(ahead.popleft().result())
                        good.append(position)
                    except ImageError as error:
                        bad.append((position, error))
                    if waiting and (len(waiting) == at_once or position == end - 1):
                        places = good[-len(waiting) :]
                        names = [image_name(images[place], place) for place in places]
                        parts.append(self._encode_prepared(waiting, normalize, names.__getitem__))
                        waiting = []
                yield good, np.concatenate(parts), bad

    def _at_once(self) -> int:
        """Return how many images go through the tower in one go.

        On a processor few: what a layer leaves should still be in the cache when the next one reads
        it. One of 256 x 256 pixels was fastest, and so are about as many pixels in smaller ones.
        """
        if self.bundle is None:
            return self.batch_size
        return max(1, min(self.batch_size, 256 * 256 // self.config.image_size**2))

    def _decoders(self) -> int:
        """Return how many threads decode; a bundle's tower needs the cores itself."""
        cores = devices.cores()
        return cores if self.bundle is None else max(1, cores // 2)

    def prepare(self, image: Any) -> NDArray[Any]:
        """Return what the image tower takes, of one image.

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
        """Return embeddings (B, D) of what `prepare` made of images.

        A bundle takes them in parts of at most as many as `encode_stream` gives it, since memory
        and time grow with what goes through its tower in one go; a model in torch takes all of one
        size together.

        Raises:
            EmbeddingError: as in `encode_image`; images are named by their position.
        """
        return self._encode_prepared(inputs, normalize, _name_by_position)

    def _encode_prepared(
        self, inputs: Sequence[NDArray[Any]], normalize: bool, name_of: Callable[[int], str]
    ) -> Embeddings:
        self.load("image")
        step = len(inputs) if self.bundle is None else self._at_once()
        parts = []
        for _, same in itertools.groupby(inputs, key=np.shape):
            alike = list(same)
            for start in range(0, len(alike), step):
                found = self.backend.image(np.stack(alike[start : start + step]))
                parts.append(np.asarray(found, np.float32))
        return _checked(np.concatenate(parts), normalize, name_of)

    def encode_pixels(self, pixels: NDArray[Any], *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of what the image tower takes, in one go.

        That is (B, 3, S, S) as `preprocess` makes it, but for bundles that say otherwise in
        `bundle.image_input`.

        Raises:
            EmbeddingError: as in `encode_image`; images are named by their position.
        """
        self.load("image")
        return _checked(self.backend.image(pixels), normalize, _name_by_position)

    def encode_text(self, texts: str | Sequence[str], *, normalize: bool = True) -> Embeddings:
        """Return embeddings (B, D) of texts; a bundle's are remembered.

        Args:
            texts: one text or a sequence of them; longer ones than the model's context are cut,
                with a warning.
            normalize: scale the embeddings to unit length.

        Raises:
            EmbeddingError: an embedding is not finite, or zero where it is to be normalised; names
                the text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        with self._caching:
            known = {text: self._cache[text] for text in texts if text in self._cache}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known |= dict(zip(missing, self._encode_text(missing), strict=True))
            if self.bundle is not None:
                with self._caching:
                    # Copies, for a row would keep all those in memory that it came with.
                    self._cache.update((text, known[text].copy()) for text in missing)
                    while len(self._cache) > CACHED_TEXTS:
                        self._cache.popitem(last=False)
        if not texts:
            return np.empty((0, self.embed_dim), np.float32)
        out = np.stack([known[text] for text in texts])
        return _checked(out, normalize, lambda row: text_name(texts[row]))

    def _encode_text(self, texts: list[str]) -> Embeddings:
        """Return embeddings (B, D), as the tower gives them."""
        ids = self.tokenizer(texts, self.config.text.context_length)
        self.load("text")
        out = np.empty((len(ids), self.embed_dim), np.float32)
        # Where padding changes nothing, leaving it out is exact, and short texts among themselves
        # are a fraction of the work.
        trims = self.config.text.ignores_padding
        lengths = ids.argmax(1) + 1 if trims else np.full(len(ids), ids.shape[1])
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(ids), self.batch_size):
            rows = order[start : start + self.batch_size]
            out[rows] = self.backend.text(ids[rows, : lengths[rows[-1]]])
        return check_finite(out, lambda row: text_name(texts[row]))

    def classifier(
        self, labels: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> Embeddings:
        """Return one unit embedding (L, D) per label: the mean over the templates (CLIP, 3.1.4).

        Args:
            labels: what to tell apart.
            templates: prompts with `{}` or `{c}` where the label goes.

        Raises:
            EmbeddingError: as in `encode_text`.
            PocketclipError: no label, a label twice, no template, or one without `{}`.
        """
        if isinstance(labels, str):
            raise PocketclipError(f"labels is the text {labels!r}: give a list of labels")
        labels = list(labels)
        templates = [templates] if isinstance(templates, str) else list(templates)
        if not labels:
            raise PocketclipError("no labels: give at least one")
        doubled = sorted(label for label, count in Counter(labels).items() if count > 1)
        if doubled:
            raise PocketclipError(f"label {doubled[0]!r} is given twice")
        prompts = fill_templates(labels, templates)
        embedded = self.encode_text(prompts).reshape(len(labels), len(templates), -1).mean(1)
        return unit_length(embedded, lambda row: text_name(labels[row]))

    def classify(
        self, images: Any, labels: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> list[dict[str, float]]:
        """Return, per image, each label's probability, the most probable first.

        Args:
            images: one image or a sequence of them, as `encode_image` takes them.
            labels: what to tell apart.
            templates: prompts with `{}` or `{c}` where the label goes; their embeddings are
                averaged.

        Raises:
            ImageError: an image cannot be opened.
            EmbeddingError: as in `encode_image` and `encode_text`.
            PocketclipError: labels or templates that do not make sense.
        """
        classifier = self.classifier(labels, templates)
        return self.rank(self.encode_image(images), classifier, labels)

    def rank(
        self, images: Embeddings, classifier: Embeddings, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        """Return, per image embedding (B, D), each label's probability, the highest first.

        Raises:
            EmbeddingError: an embedding is not finite.
        """
        images = check_finite(images, _name_by_position)
        classifier = check_finite(classifier, lambda row: text_name(labels[row]))
        logits = self.logit_scale * images.astype(np.float64) @ classifier.T.astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = odds / odds.sum(axis=1, keepdims=True)  # (B, L)
        order = np.argsort(-shares, axis=1, kind="stable")
        return [
            {labels[i]: float(row[i]) for i in best}
            for row, best in zip(shares, order, strict=True)
        ]


def _name_by_position(row: int) -> str:
    return image_name(None, row)


def _checked(rows: Embeddings, normalize: bool, name_of: Callable[[int], str]) -> Embeddings:
    return unit_length(rows, name_of) if normalize else check_finite(rows, name_of)


def _backends(
    bundle: Bundle, backend: str, precision: str | None, *, low_latency_start: bool
) -> list[str]:
    """Return the names of what can run a bundle here in a precision, the preferred one first."""
    if precision not in (None, "fp32", "bf16"):
        raise BundleError(f"precision is fp32 or bf16, not {precision!r}")
    names = candidates(bundle, backend, low_latency_start=low_latency_start)
    if precision == "bf16":
        names = [name for name in names if name == "openvino"]
        if not names:
            raise BundleError(
                f"{bundle.folder}: of what could run it here only OpenVINO computes in bf16: pip "
                "install 'pocketclip[openvino]', or leave the precision out"
            )
    return names


def _dtype(precision: str | None, device: torch.device) -> torch.dtype:
    wanted = precision or "fp32"
    return devices.resolve_dtype(_PRECISIONS.get(wanted, wanted), device)


def _moved(model: CLIP, device: str) -> CLIP:
    return model.to(devices.resolve_device(device))
