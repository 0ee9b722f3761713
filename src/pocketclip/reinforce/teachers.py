"""Teachers: models whose embeddings of images and captions are stored in a reinforced dataset.

    teacher = load_teacher("vit-l14-quickgelu=openai.pt")
    teacher.encode_squares(np.stack([teacher.transform.square(view) for view in views]))

They are models of the zoo, CLIP and SigLIP models of `transformers`, models of open_clip, and the
user's own encoders (`pocketclip.reinforce.own_models`). `pocketclip.reinforce.specs` describes
their specs. Source: MobileCLIP (arXiv 2311.17049), section 4.1.

Shapes: B batch, T tokens, S side of a square in pixels, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices
from pocketclip.embeddings import MIN_LENGTH, check_lengths, check_scale, image_name, text_name
from pocketclip.images import ImageSource
from pocketclip.reinforce import specs
from pocketclip.reinforce.own_models import OwnTeacher, load_own
from pocketclip.reinforce.protocols import Pixels, Towers
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform
from pocketclip.reinforce.zoo_towers import ZooTowers, geometry, load_model
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Teacher:
    """A model with its preprocessing and tokenizer; satisfies `pocketclip.types.Encoder`.

    Attributes:
        name: a short name for display.
        transform: turns an image into the square that `encode_squares` takes; it can be sent to
            other processes, and needs no torch.
        scaling: the scaling of the square's values, applied on the device.
        device, dtype: where and in which type the model computes. Scaling and the normalisation
            of embeddings are always computed in float32.
        text_batch: captions per forward pass.
    """

    def __init__(
        self,
        towers: Towers,
        *,
        name: str,
        transform: SquareTransform,
        scaling: Scaling,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        check_scale(towers.logit_scale)
        self.towers = towers
        self.name = name
        self.transform = transform
        self.scaling = scaling
        self.device = device
        self.dtype = str(dtype).removeprefix("torch.")
        # Small on a CPU: all captions of a batch are padded to the longest. A GPU needs more.
        self.text_batch = 16 if device.type == "cpu" else 256
        self._pixels = Pixels(scaling, device, dtype)

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, {self.embed_dim}, {self.dtype}, {self.device})"

    @property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        return self.towers.embed_dim

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities before a softmax (or SigLIP's sigmoid)."""
        return self.towers.logit_scale

    @property
    def logit_bias(self) -> float:
        """The bias that SigLIP adds to scaled similarities; 0 for other models."""
        return self.towers.logit_bias

    @property
    def space_id(self) -> str:
        """The identity of the embedding space."""
        return self.towers.space_id

    def encode_image(self, images: Sequence[ImageSource]) -> Embeddings:
        """Return unit embeddings (B, D) of images: paths, bytes, PIL images or arrays.

        Raises:
            ImageError: an image cannot be opened.
            EmbeddingError: an embedding is not finite, or zero; names the image.
        """
        size = self.transform.size
        squares = np.empty((len(images), size, size, 3), np.uint8)
        for row, image in zip(squares, images, strict=True):
            row[:] = self.transform.square(image)
        return self.encode_squares(squares, lambda row: image_name(images[row], row))

    def encode_squares(
        self,
        squares: NDArray[np.uint8],
        name_of: Callable[[int], str] = lambda row: image_name(None, row),
    ) -> Embeddings:
        """Return unit embeddings (B, D) of squares (B, S, S, 3) that `transform` made.

        Raises:
            EmbeddingError: an embedding is not finite, or zero; `name_of` names the square.
        """
        import torch

        size = self.transform.size
        if squares.dtype != np.uint8 or squares.shape[1:] != (size, size, 3):
            expected = f"uint8 (B, {size}, {size}, 3)"
            raise ValueError(f"{self.name} takes {expected}, not {squares.dtype} {squares.shape}")
        out = np.empty((len(squares), self.embed_dim), np.float32)
        step = self.towers.image_batch
        with torch.inference_mode():
            for start in range(0, len(squares), step):
                pixels = self._pixels(squares[start : start + step])
                unit = _unit(self.towers.encode_pixels(pixels))
                out[start : start + len(pixels)] = unit.cpu().numpy()
        check_lengths(out, name_of, self._fault)
        return out

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Return unit embeddings (B, D) of texts; those longer than the context are truncated.

        Texts of similar length are encoded together, so one call with many texts is fastest.

        Raises:
            EmbeddingError: an embedding is not finite, or zero; names the text.
        """
        import torch

        texts = list(texts)
        if not texts:
            return np.empty((0, self.embed_dim), np.float32)
        with torch.inference_mode():
            out: Embeddings = self._embed_texts(texts).cpu().numpy()
        check_lengths(out, lambda row: text_name(texts[row]), self._fault)
        return out

    def encode_image_tensors(self, images: Tensor) -> Tensor:
        """Return what `encode_image` does, on the teacher's device, of uint8 images (B, 3, H, W).

        An embedding that is not finite, or is zero, is NaN. Images of the transform's size stay on
        the device; others are resized on the CPU.
        """
        import torch

        size, step = self.transform.size, self.towers.image_batch
        if images.shape[2:] != (size, size) or self.transform.edge != size:
            views = images.permute(0, 2, 3, 1).cpu().numpy()
            squares = np.stack([self.transform.square(view) for view in views])
            images = _on_device(squares, self.device).permute(0, 3, 1, 2)
        with torch.no_grad():  # not inference mode, whose tensors no graph can hold
            parts = [
                _unit(self.towers.encode_pixels(self._pixels.scale(images[start : start + step])))
                for start in range(0, len(images), step)
            ]
            return _without_useless(torch.cat(parts))

    def encode_text_tensors(self, texts: Sequence[str]) -> Tensor:
        """Return what `encode_text` does, on the teacher's device.

        An embedding that is not finite, or is zero, is NaN.
        """
        import torch

        with torch.no_grad():
            return _without_useless(self._embed_texts(list(texts)))

    def _embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit embeddings (B, D) of one or more texts; texts of similar length together."""
        import torch

        trims = self.towers.trims
        ids, lengths = self.towers.tokenize(texts)
        order = np.argsort(lengths, kind="stable") if trims else np.arange(len(texts))
        parts = []
        for start in range(0, len(texts), self.text_batch):
            rows = order[start : start + self.text_batch]
            batch_ids = ids[rows, : lengths[rows].max()] if trims else ids[rows]
            on_device = (_on_device(array, self.device) for array in (batch_ids, lengths[rows]))
            parts.append(_unit(self.towers.encode_ids(*on_device)))
        return torch.cat(parts)[_on_device(np.argsort(order), self.device)]

    @property
    def _fault(self) -> str:
        hint = "" if self.dtype == "float32" else "; try precision float32"
        return f"the weights of {self.name}, or its precision ({self.dtype}), are at fault{hint}"

    def over_length(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it exceeds the context; `encode_text` truncates those."""
        limit = self.towers.context_length
        return [self.towers.count_tokens(text) > limit for text in texts]


def _unit(embeddings: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.normalize(embeddings.float(), dim=-1)


def _without_useless(unit: Tensor) -> Tensor:
    """Return unit embeddings (B, D) with NaN in place of rows that `check_lengths` refuses."""
    lengths = unit.norm(dim=-1, keepdim=True)
    return unit.masked_fill(~(lengths >= MIN_LENGTH), math.nan)


def _on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; the host does not wait for a GPU to copy it."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    tensor = tensor.pin_memory() if device.type == "cuda" else tensor
    return tensor.to(device, non_blocking=True)


def load_teacher(
    spec: str,
    *,
    device: str = "auto",
    precision: devices.Precision = "auto",
    offline: bool = False,
) -> Teacher | OwnTeacher:
    """Load a teacher.

    Args:
        spec: the model, see `pocketclip.reinforce.specs`.
        device: `auto` (a CUDA device if there is one, else the CPU), or torch's name of a device.
        precision: the type to compute in; `auto` is bfloat16 where the device has it natively
            (CUDA from Ampere on, CPUs with AVX512-BF16, AMX or ARM's bf16), else float32.
        offline: use local files and the cache only.

    Raises:
        ConfigError: the spec, device or precision is invalid, the teacher's preprocessing file is
            missing or not supported, or the user's own module does not make an encoder.
        CheckpointError, HubError, UnknownModelError: the model cannot be loaded; the message says
            why.
        MissingDependencyError: torch, transformers or open_clip is needed and not installed.
    """
    source = specs.parse(spec)
    if source.kind == "python":
        return OwnTeacher(load_own(source), name=source.label, spec=source.text)
    resolved = devices.resolve_device(device)
    dtype = devices.resolve_dtype(precision, resolved)
    towers: Towers
    if source.kind == "transformers":
        from pocketclip.reinforce.hf_towers import transformers_teacher

        towers, transform, scaling = transformers_teacher(
            source.target, resolved, dtype, offline=offline
        )
    elif source.kind == "open_clip":
        from pocketclip.reinforce.open_clip_towers import open_clip_teacher

        towers, transform, scaling = open_clip_teacher(
            source.target, resolved, dtype, offline=offline
        )
    else:
        model = load_model(source, offline=offline)
        towers = ZooTowers(model, resolved, dtype)
        transform, scaling = geometry(model)
    return Teacher(
        towers,
        name=source.label,
        transform=transform,
        scaling=scaling,
        device=resolved,
        dtype=dtype,
    )
