"""The configuration of a model: plain frozen dataclasses that determine its results.

Sources: MobileCLIP (arXiv 2311.17049), sections 3.2 and 3.3; MobileCLIP2 (arXiv 2508.20691),
section 4 (the five-stage towers); CoCa (arXiv 2205.01917).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class MCiConfig:
    """A convolution-attention image tower of the FastViT kind (MobileCLIP, section 3.2)."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mlp_ratio: float
    attention_stages: int = 1
    """Number of final stages that mix tokens by attention; the others use RepMixer."""
    squeeze_excite_stages: int = 2
    """Number of final down-samplings with squeeze-and-excitation."""
    attention_norm: Literal["batch", "layer"] = "batch"
    stem_scale: bool = True
    """Whether the stem's convolutions have a 1x1 scale branch."""
    head_dim: int = 32
    head_bias: bool = True
    layer_scale: float = 1e-5
    drop_path: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """Mixtures of experts in place of some blocks' MLPs, see `pocketclip.nn.moe`.

    `pocketclip upcycle` makes such a model of a dense one (CLIP-UP, arXiv 2502.00965). How experts
    are trained is not part of it: the recipe's section `moe` says that.
    """

    blocks: tuple[int, ...]
    """The transformer blocks of the tower, from 0, whose MLP is a mixture."""
    experts: int = 8
    """Number of experts, each as large as the dense MLP."""
    top_k: int = 2
    """Number of experts that process a token. With one, its weight is always 1, so that the task
    does not train the router: only the losses of the routers do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig:
    """A vision transformer image tower (Dosovitskiy et al., arXiv 2010.11929)."""

    width: int
    layers: int
    heads: int
    patch_size: int
    stem: Literal["patch", "conv"] = "patch"
    """One patch convolution, or MobileCLIP-B's three convolutions of stride 4, 2 and 2."""
    stem_padding: int = 0
    """Zero padding of the convolutional stem's first layer, in pixels."""
    class_position: bool = True
    """Whether the class token has its own position embedding."""
    pre_norm: bool = True
    eps: float = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    head_bias: bool = True
    pool_queries: int | None = None
    """Number of learned queries for attention pooling instead of the class token (CoCa): the first
    gives the embedding, the others the image tokens for a caption decoder."""
    pool_heads: int = 8
    drop_path: float = 0.0
    moe: MoEConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """A transformer text tower; with `repmixer`, MCt (MobileCLIP, section 3.3)."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    context_length: int = 77
    """Number of token ids, including the start and end tokens."""
    vocab_size: int = 49408
    causal: bool = False
    class_token: bool = False
    """Whether a learned token at an extra position after the text gives the embedding (CoCa)."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    repmixer: bool = False
    """One RepMixer block over the token axis before the transformer layers and one after."""
    embedding_buckets: int | None = None
    """Compose token i's embedding as `remainder[i % n] + quotient[i // n]` (arXiv 1909.02107)
    instead of storing one row per token; keeps the smallest models small."""
    drop_path: float = 0.0
    moe: MoEConfig | None = None
    """Blocks are counted without the RepMixer blocks."""

    @property
    def ignores_padding(self) -> bool:
        """Whether padding cannot change an embedding, and may be left out.

        True for causal towers without RepMixer, whose convolutions see following tokens, and
        without a class token, which comes after the padding.
        """
        return self.causal and not self.repmixer and not self.class_token


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A caption decoder (CoCa, arXiv 2205.01917), as wide as the text tower.

    A layer is a causal block over the text tokens and a block with cross-attention to the image.
    """

    layers: int
    heads: int
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "quick_gelu"] = "gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig:
    """The evaluation transform: resize, centre crop, scale to [0, 1], normalise."""

    size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resize: Literal["shortest", "squash"] = "shortest"
    """Resize the shortest side to `size` and crop the centre; or both sides, whatever the aspect
    (DFN5B's models)."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that determines a model's results, except its weights."""

    name: str
    embed_dim: int
    image: MCiConfig | ViTConfig
    text: TextConfig
    preprocess: PreprocessConfig
    decoder: DecoderConfig | None = None
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, for less memory and about a third more time."""

    @property
    def is_captioner(self) -> bool:
        """Whether the model writes captions."""
        return self.decoder is not None

    @property
    def image_size(self) -> int:
        """Side of the square input of the image tower, in pixels."""
        return self.preprocess.size
