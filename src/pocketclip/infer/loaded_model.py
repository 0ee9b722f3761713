"""The model behind an `Encoder`: opened from its source, and loaded into a backend.

A bundle's towers are loaded at first use, ahead of it (`preload`), or by the next backend if one
cannot load them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
from typing import TYPE_CHECKING

from pocketclip import devices, zoo
from pocketclip._deprecated import renamed_arguments, renamed_attribute
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.embeddings import check_scale
from pocketclip.errors import BundleError, ChangedBundleError, ConfigError
from pocketclip.infer.backends import (
    BACKENDS,
    Backend,
    BundleBackend,
    TorchBackend,
    select_backends,
)
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.open_model import open_model, refuse_threads, torch_dtype
from pocketclip.infer.text_cache import TextCache

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP
    from pocketclip.preprocess import Preprocess
    from pocketclip.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class LoadedModel:
    """A model in torch or a bundle, with its backend, preprocessing and tokenizer.

    The arguments are those of `pocketclip.infer.encoder.Encoder`.
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
        memory_arena: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        devices.check_threads(threads)
        is_loaded_here = isinstance(source, (str, os.PathLike, ModelSource))
        if isinstance(source, (str, os.PathLike, ModelSource)):
            device = device or "auto"
            source = open_model(
                source, backend=backend, device=device, threads=threads, precision=precision
            )
        self.batch_size = batch_size
        self.threads = threads or devices.cores()
        self.config: zoo.ModelConfig = source.config
        self.bundle = source if isinstance(source, Bundle) else None
        self._space_id = source.space_id if isinstance(source, Bundle) else None
        self._logit_scale = source.logit_scale if isinstance(source, Bundle) else None
        self._fallbacks: list[str] = []  # backends to use if this one cannot load a tower
        self._low_latency_start = low_latency_start
        self._memory_arena = memory_arena
        if isinstance(source, Bundle):
            if device not in (None, "auto", "cpu"):
                raise ConfigError(
                    f"{source.folder} is a bundle, which runs on the CPU: leave out device "
                    f"{device!r}"
                )
            self._fallbacks = select_backends(
                source, backend, precision, low_latency_start=low_latency_start
            )
            self.backend: Backend = self._make_backend(self._fallbacks.pop(0), precision)
        elif backend not in ("auto", "torch"):
            raise BundleError(f"backend {backend!r} runs bundles; a model in torch is run by torch")
        elif precision not in (None, "fp32") and not is_loaded_here:
            raise BundleError(
                f"precision {precision!r} is for bundles and models loaded here: convert the model "
                "with model.to(dtype), or leave the precision out"
            )
        else:
            refuse_threads(threads)
            self.threads = devices.need_torch().get_num_threads()
            if device is not None:
                source = source.to(devices.resolve_device(device))
            self.backend = TorchBackend(source)
            self.convert(precision)
        self.text_cache = TextCache()
        self._backend_lock = threading.Lock()

    # Both are imported late, so that `preload` can load the towers in the meantime.

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

    def convert(self, precision: str | None) -> None:
        """Convert a model in torch that was loaded here to another precision."""
        if precision in (None, "fp32", "float32"):
            return
        dtype = torch_dtype(precision, self.model.logit_scale.device)
        # Both are those of the weights in full precision: compute them before converting.
        self._space_id, self._logit_scale = self.space_id, self.logit_scale
        self.model.to(dtype)

    def _make_backend(self, name: str, precision: str | None) -> BundleBackend:
        assert self.bundle is not None
        return BACKENDS[name](
            self.bundle, self.threads, precision,
            low_latency_start=self._low_latency_start, memory_arena=self._memory_arena,
        )  # fmt: skip

    @property
    def model(self) -> CLIP:
        """The model in torch.

        Raises:
            BundleError: the encoder runs a bundle.
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
    def variant(self) -> str | None:
        """The export of the model that a bundle is, see `Bundle.variant`; None in torch."""
        return None if self.bundle is None else self.bundle.variant

    form = renamed_attribute("form", "variant")

    def preload(self, *towers: str) -> None:
        """Start loading `image`, `text` or both, each in its own thread, and return.

        Errors are raised when the tower is used.
        """
        for tower in towers:
            # Not daemon threads: Python waits for them at exit. A thread stopped within a runtime's
            # code would abort the process.
            threading.Thread(target=self._try_load, args=(tower,)).start()

    def _try_load(self, tower: str) -> None:
        # Any error: while the interpreter shuts down, runtimes cannot even start threads.
        with contextlib.suppress(Exception):
            self.load(tower)

    def load(self, tower: str) -> None:
        """Load the `image` or `text` tower of a bundle now rather than at first use.

        With backend `auto`, the next backend is tried if one cannot load it.

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
                    self._renew(backend, error)  # no backend can load this one
                    continue
                with self._backend_lock:
                    if self.backend is not backend:
                        continue  # another thread replaced it
                    if not self._fallbacks:
                        raise
                    log.warning("%s; trying %s", error, self._fallbacks[0])
                    self.backend = self._make_backend(self._fallbacks.pop(0), backend.precision)

    def _renew(self, damaged: BundleBackend, error: ChangedBundleError) -> None:
        """Replace a damaged bundle of the user's cache by one that is made again, once."""
        with self._backend_lock:
            if self.backend is not damaged:
                return  # another thread did
            bundle = damaged.bundle
            if bundle.renew is None:
                raise error
            log.warning("%s is damaged; it is made again", bundle.folder)
            renewed = bundle.renew()
            if renewed.space_id != bundle.space_id:
                raise BundleError(
                    f"{bundle.folder} was replaced by a model with other embeddings: start again"
                ) from error
            self.bundle = dataclasses.replace(renewed, renew=None)
            self.backend = self._make_backend(damaged.name, damaged.precision)
