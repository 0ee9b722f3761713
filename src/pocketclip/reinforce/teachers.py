"""Teachers: models whose embeddings of images and captions are stored in a reinforced dataset.

    teacher = load_teacher("vit-l14-quickgelu=openai.pt")
    teacher.encode_squares(np.stack([teacher.transform.square(view) for view in views]))

They are models of the zoo, CLIP and SigLIP models of `transformers`, models of open_clip, and the
user's own encoders (`pocketclip.reinforce.own_models`). `pocketclip.reinforce.specs` describes
their specs. Source: MobileCLIP (arXiv 2311.17049), section 4.1.

Shapes: B batch, T tokens, S side of a square in pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices
from pocketclip.embeddings import check_lengths, check_scale, image_name, text_name
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
                out[start : start + len(pixels)] = _unit(self.towers.encode_pixels(pixels))
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
        out = np.empty((len(texts), self.embed_dim), np.float32)
        if not texts:
            return out
        trims = self.towers.trims
        ids, lengths = self.towers.tokenize(texts)
        order = np.argsort(lengths, kind="stable") if trims else np.arange(len(texts))
        with torch.inference_mode():
            for start in range(0, len(texts), self.text_batch):
                rows = order[start : start + self.text_batch]
                batch_ids = ids[rows, : lengths[rows].max()] if trims else ids[rows]
                embeddings = self.towers.encode_ids(
                    torch.from_numpy(batch_ids).to(self.device),
                    torch.from_numpy(lengths[rows]).to(self.device),
                )
                out[rows] = _unit(embeddings)
        check_lengths(out, lambda row: text_name(texts[row]), self._fault)
        return out

    @property
    def _fault(self) -> str:
        hint = "" if self.dtype == "float32" else "; try precision float32"
        return f"the weights of {self.name}, or its precision ({self.dtype}), are at fault{hint}"

    def over_length(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it exceeds the context; `encode_text` truncates those."""
        limit = self.towers.context_length
        return [self.towers.count_tokens(text) > limit for text in texts]


def _unit(embeddings: Tensor) -> Embeddings:
    import torch.nn.functional as F

    out: Embeddings = F.normalize(embeddings.float(), dim=-1).cpu().numpy()
    return out


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
