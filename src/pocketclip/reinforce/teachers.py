"""Teachers: models whose embeddings of images and captions are stored in a reinforced dataset.

    teacher = load_teacher("vit-l14-quickgelu=openai.pt")
    teacher.encode_squares(np.stack([teacher.transform.square(view) for view in views]))

Any model of ours, CLIP and SigLIP models of `transformers`, and open_clip's. Their specs are in
`pocketclip.reinforce.specs`. Source: MobileCLIP (arXiv 2311.17049), section 4.1.

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
from pocketclip.reinforce.protocols import Pixels, Towers
from pocketclip.reinforce.squares import Scaling, SquareTransform
from pocketclip.reinforce.zoo_towers import ZooTowers, geometry, load_model
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Teacher:
    """A model with its preprocessing and tokenizer; satisfies `pocketclip.types.Encoder`.

    Attributes:
        name: a short name for people.
        transform: brings an image to the square that `encode_squares` takes; can be sent to
            other processes, and needs no torch.
        scaling: what happens to the square's values on the device.
        device, dtype: where and in which type the model computes. Scaling, and the normalising
            of embeddings, happen in float32 throughout.
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
        # Few at a time, so that one long caption does not lengthen many; a GPU wants more.
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
        """What SigLIP adds to scaled similarities; 0 for other models."""
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
            wanted = f"uint8 (B, {size}, {size}, 3)"
            raise ValueError(f"{self.name} takes {wanted}, not {squares.dtype} {squares.shape}")
        out = np.empty((len(squares), self.embed_dim), np.float32)
        step = self.towers.image_batch
        with torch.inference_mode():
            for start in range(0, len(squares), step):
                pixels = self._pixels(squares[start : start + step])
                out[start : start + len(pixels)] = _unit(self.towers.encode_pixels(pixels))
        check_lengths(out, name_of, self._fault)
        return out

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Return unit embeddings (B, D) of texts; longer ones than the context are cut.

        Texts of similar length are encoded together: give many at once.

        Raises:
            EmbeddingError: an embedding is not finite, or zero; names the text.
        """
        import torch

        many = list(texts)
        out = np.empty((len(many), self.embed_dim), np.float32)
        if not many:
            return out
        ids, lengths = self.towers.tokenize(many)
        order = np.argsort(lengths, kind="stable") if self.towers.trims else np.arange(len(many))
        with torch.inference_mode():
            for start in range(0, len(many), self.text_batch):
                rows = order[start : start + self.text_batch]
                own = lengths[rows]
                block = ids[rows, : own.max()] if self.towers.trims else ids[rows]
                found = self.towers.encode_ids(
                    torch.from_numpy(block).to(self.device), torch.from_numpy(own).to(self.device)
                )
                out[rows] = _unit(found)
        check_lengths(out, lambda row: text_name(many[row]), self._fault)
        return out

    @property
    def _fault(self) -> str:
        other = "" if self.dtype == "float32" else "; precision float32 may mend it"
        return f"the weights of {self.name}, or its precision ({self.dtype}), are at fault{other}"

    def over_length(self, texts: Sequence[str]) -> list[bool]:
        """Return which texts exceed the context, and are cut by `encode_text`."""
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
) -> Teacher:
    """Load a teacher.

    Args:
        spec: which one, in a form of `pocketclip.reinforce.specs`.
        device: `auto` (a CUDA device if there is one, else the CPU) or torch's name of one.
        precision: the type to compute in; `auto` is bfloat16 where the device has it natively
            (CUDA from Ampere on, CPUs with AVX512-BF16, AMX or ARM's bf16), else float32.
        offline: take nothing from the network.

    Raises:
        ConfigError: the spec, device or precision makes no sense, or the teacher's preprocessing
            file is missing or cannot be followed.
        CheckpointError, HubError, UnknownModelError: the model cannot be had; the message says
            why.
        MissingDependencyError: torch, transformers or open_clip is wanted and not installed.
    """
    where = devices.resolve_device(device)
    dtype = devices.resolve_dtype(precision, where)
    wanted = specs.parse(spec)
    towers: Towers
    if wanted.kind == "transformers":
        from pocketclip.reinforce.hf_towers import transformers_teacher

        towers, transform, scaling = transformers_teacher(
            wanted.target, where, dtype, offline=offline
        )
    elif wanted.kind == "open_clip":
        from pocketclip.reinforce.open_clip_towers import open_clip_teacher

        towers, transform, scaling = open_clip_teacher(wanted.target, where, dtype, offline=offline)
    else:
        model = load_model(wanted, offline=offline)
        towers = ZooTowers(model, where, dtype)
        transform, scaling = geometry(model)
    return Teacher(
        towers, name=wanted.label, transform=transform, scaling=scaling, device=where, dtype=dtype
    )
