"""The model zoo: the configuration of each named model, and its published figures.

A model is three frozen dataclasses (image tower, text tower, preprocessing) and an embedding
width; a captioner has a fourth, its decoder. Nothing here imports torch; `pocketclip.nn` builds
the towers from these descriptions.

Sources: MobileCLIP (arXiv 2311.17049), sections 3.2 and 3.3 and appendix; MobileCLIP2
(arXiv 2508.20691), section 4 (the five-stage towers); CoCa (arXiv 2205.01917). Parameters,
latency (iPhone 12 Pro Max, ms) and accuracies are the papers' own figures.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pocketclip.errors import ConfigError, UnknownModelError

APPLE_AMLR = "apple-amlr"
"""Apple's licence for models of its research: for research only. The repositories of the first
generation also called it `apple-ascl`."""
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
    """The evaluation transform: shortest side to `size`, centre crop, scale to [0, 1]."""

    size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The papers' figures; parameters in millions after fusing, latency in milliseconds."""

    samples_seen_billion: float
    image_params_million: float
    text_params_million: float
    image_latency_ms: float
    text_latency_ms: float
    imagenet1k: float
    average38: float


PUBLISHED_FIELDS = tuple(f.name for f in dataclasses.fields(Published))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One named model of the zoo."""

    config: ModelConfig
    hub: tuple[str, ...] = ()
    """Interchangeable hub repositories with these weights, preferred first."""
    published: Published | None = None
    note: str = ""
    license: str | None = None
    """The licence of the published weights, as their repositories name it."""
    open_clip: str | None = None
    """The same weights as open_clip names them, NAME/TAG."""
    teacher_logit_scale: float | None = None
    """The logit scale that MobileCLIP2 (Table 3) found best when this model alone is the teacher;
    None: the paper did not try the model."""


_MCI0 = MCiConfig(depths=(2, 6, 10, 2), widths=(64, 128, 256, 512), mlp_ratio=3.0)
_MCI1 = replace(_MCI0, depths=(4, 12, 20, 4))
_MCI2 = replace(_MCI0, depths=(4, 12, 24, 4), widths=(80, 160, 320, 640))
_MCI3 = MCiConfig(
    depths=(2, 12, 24, 4, 2),
    widths=(96, 192, 384, 768, 1536),
    mlp_ratio=4.0,
    attention_stages=2,
    squeeze_excite_stages=0,
    attention_norm="layer",
    stem_scale=False,
)
_MCI4 = replace(_MCI3, depths=(2, 12, 24, 4, 4), widths=(128, 256, 512, 1024, 2048))
_VIT_B16 = ViTConfig(width=768, layers=12, heads=12, patch_size=16, head_bias=False)
_VIT_L14 = ViTConfig(width=1024, layers=24, heads=16, patch_size=14, head_bias=False)
# Apple's code of B pads the stem by one pixel and normalises with epsilon 1e-5; open_clip's
# (through timm) does neither. Each file is computed like the code that its names belong to.
_VIT_B_CONV = replace(_VIT_B16, stem="conv", stem_padding=1, class_position=False, pre_norm=False)

_TEXT = TextConfig(width=512, layers=12, heads=8)
_TEXT_CAUSAL = replace(_TEXT, causal=True)
_TEXT_768 = TextConfig(width=768, layers=12, heads=12)
_MCT = TextConfig(width=512, layers=4, heads=8, repmixer=True)

_PLAIN_256 = PreprocessConfig(size=256)
_PLAIN_224 = PreprocessConfig(size=224)
_CLIP_256 = PreprocessConfig(size=256, mean=CLIP_MEAN, std=CLIP_STD)
_CLIP_224_BICUBIC = PreprocessConfig(
    size=224, interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD
)


def _entry(
    name: str,
    embed_dim: int,
    image: MCiConfig | ViTConfig,
    text: TextConfig,
    preprocess: PreprocessConfig,
    *,
    decoder: DecoderConfig | None = None,
    hub: tuple[str, ...] = (),
    published: tuple[float, float, float, float, float, float, float] | None = None,
    note: str = "",
    license: str | None = None,
    open_clip: str | None = None,
    teacher_logit_scale: float | None = None,
) -> Entry:
    config = ModelConfig(
        name=name,
        embed_dim=embed_dim,
        image=image,
        text=text,
        preprocess=preprocess,
        decoder=decoder,
    )
    facts = None
    if published is not None:
        facts = Published(**dict(zip(PUBLISHED_FIELDS, published, strict=True)))
    if license is None and hub and hub[0].startswith("apple/"):
        license = APPLE_AMLR
    return Entry(
        config=config, hub=hub, published=facts, note=note, license=license, open_clip=open_clip,
        teacher_logit_scale=teacher_logit_scale,
    )  # fmt: skip


def _v1(image: MCiConfig | ViTConfig) -> MCiConfig | ViTConfig:
    # The published code of the first generation projects without a bias.
    return replace(image, head_bias=False)


_B2 = replace(_VIT_B_CONV, stem_padding=0, eps=1e-6, head_bias=True)
_L14 = replace(_VIT_L14, head_bias=True)

# open_clip counts CoCa's 76 caption tokens; the class token has the 77th position.
_TEXT_COCA = replace(_TEXT_CAUSAL, context_length=76, class_token=True)
_COCA_B32 = replace(_VIT_B16, patch_size=32, pool_queries=256)
_COCA_L14 = replace(_VIT_L14, pool_queries=256)

# columns of `published`: samples seen (billions), image and text parameters (millions), image
# and text latency (ms), ImageNet-1k zero-shot top-1, average over 38 tasks
_ENTRIES = (
    _entry("mobileclip-s0", 512, _v1(_MCI0), _MCT, _PLAIN_256,
           hub=("apple/MobileCLIP-S0",),
           published=(13, 11.4, 42.4, 1.5, 1.6, 67.8, 58.1)),
    _entry("mobileclip-s1", 512, _v1(_MCI1), _TEXT, _PLAIN_256,
           hub=("apple/MobileCLIP-S1", "apple/MobileCLIP-S1-OpenCLIP"),
           published=(13, 21.5, 63.4, 2.5, 3.3, 72.6, 61.3)),
    _entry("mobileclip-s2", 512, _v1(_MCI2), _TEXT, _PLAIN_256,
           hub=("apple/MobileCLIP-S2", "apple/MobileCLIP-S2-OpenCLIP"),
           published=(13, 35.7, 63.4, 3.6, 3.3, 74.4, 63.7)),
    _entry("mobileclip-b", 512, _v1(_VIT_B_CONV), _TEXT_CAUSAL, _PLAIN_224,
           hub=("apple/MobileCLIP-B", "apple/MobileCLIP-B-OpenCLIP"),
           published=(13, 86.3, 63.4, 10.4, 3.3, 76.8, 65.2)),
    _entry("mobileclip-b-lt", 512, _v1(_VIT_B_CONV), _TEXT_CAUSAL, _PLAIN_224,
           hub=("apple/MobileCLIP-B-LT", "apple/MobileCLIP-B-LT-OpenCLIP"),
           published=(36, 86.3, 63.4, 10.4, 3.3, 77.2, 65.8)),
    _entry("mobileclip-s3", 768, _MCI3, _TEXT_768, _CLIP_256,
           hub=("apple/MobileCLIP-S3",),
           published=(13, 125.1, 123.6, 8.0, 6.6, 78.3, 66.3)),
    _entry("mobileclip-l14", 768, _L14, _TEXT_768, _CLIP_224_BICUBIC,
           hub=("apple/MobileCLIP-L-14",),
           published=(13, 304.3, 123.6, 57.9, 6.6, 79.5, 66.9)),
    _entry("mobileclip-s4", 768, _MCI4, _TEXT_768, _CLIP_256,
           hub=("apple/MobileCLIP-S4",),
           published=(13, 321.6, 123.6, 19.6, 6.6, 79.4, 68.1)),
    _entry("mobileclip2-s0", 512, _MCI0, _TEXT, _PLAIN_256,
           hub=("apple/MobileCLIP2-S0", "timm/MobileCLIP2-S0-OpenCLIP"),
           published=(13, 11.4, 63.4, 1.5, 3.3, 71.5, 59.7)),
    _entry("mobileclip2-s2", 512, _MCI2, _TEXT, _PLAIN_256,
           hub=("apple/MobileCLIP2-S2", "timm/MobileCLIP2-S2-OpenCLIP"),
           published=(13, 35.7, 63.4, 3.6, 3.3, 77.2, 64.1)),
    _entry("mobileclip2-b", 512, _B2, _TEXT_CAUSAL, _PLAIN_224,
           hub=("apple/MobileCLIP2-B", "timm/MobileCLIP2-B-OpenCLIP"),
           published=(13, 86.3, 63.4, 10.4, 3.3, 79.4, 65.8)),
    _entry("mobileclip2-s3", 768, _MCI3, _TEXT_768, _CLIP_256,
           hub=("apple/MobileCLIP2-S3", "timm/MobileCLIP2-S3-OpenCLIP"),
           published=(13, 125.1, 123.6, 8.0, 6.6, 80.7, 66.8)),
    _entry("mobileclip2-l14", 768, _L14, _TEXT_768, _CLIP_224_BICUBIC,
           hub=("apple/MobileCLIP2-L-14", "timm/MobileCLIP2-L-14-OpenCLIP"),
           published=(13, 304.3, 123.6, 57.9, 6.6, 81.9, 67.8)),
    _entry("mobileclip2-s4", 768, _MCI4, _TEXT_768, _CLIP_256,
           hub=("apple/MobileCLIP2-S4", "timm/MobileCLIP2-S4-OpenCLIP"),
           published=(13, 321.6, 123.6, 19.6, 6.6, 81.9, 67.5)),
    _entry("vit-b32", 512, replace(_VIT_B16, patch_size=32), _TEXT_CAUSAL, _CLIP_224_BICUBIC,
           hub=("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",),
           open_clip="ViT-B-32/datacomp_xl_s13b_b90k",
           note="teacher; CLIP's ViT-B/32 with GELU", license="mit"),
    _entry("vit-b16", 512, _VIT_B16, _TEXT_CAUSAL, _CLIP_224_BICUBIC,
           hub=("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",),
           open_clip="ViT-B-16/datacomp_xl_s13b_b90k",
           note="teacher; CLIP's ViT-B/16 with GELU", license="mit"),
    _entry("vit-l14-quickgelu", 768, replace(_VIT_L14, activation="quick_gelu"),
           replace(_TEXT_768, causal=True, activation="quick_gelu"), _CLIP_224_BICUBIC,
           hub=("apple/DFN2B-CLIP-ViT-L-14",),
           open_clip="ViT-L-14-quickgelu/dfn2b", teacher_logit_scale=70,
           note="teacher; CLIP's ViT-L/14 with QuickGELU (OpenAI, DFN)"),
    _entry("vit-l14", 768, _VIT_L14, replace(_TEXT_768, causal=True), _CLIP_224_BICUBIC,
           hub=("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",),
           open_clip="ViT-L-14/datacomp_xl_s13b_b90k", teacher_logit_scale=50,
           note="teacher; CLIP's ViT-L/14 with GELU (DataComp, LAION)", license="mit"),
    # GELU, unlike DFN's other models: so say the repository's open_clip_config.json and the tables
    # of open_clip and timm, and so did the published generator of DFNDR compute.
    _entry("vit-l14-39b", 768, _VIT_L14, replace(_TEXT_768, causal=True), _CLIP_224_BICUBIC,
           hub=("apple/DFN2B-CLIP-ViT-L-14-39B",),
           open_clip="ViT-L-14/dfn2b_s39b", teacher_logit_scale=60,
           note="teacher; CLIP's ViT-L/14 with GELU (DFN2B, 39 billion samples)"),
    _entry("coca-vit-b32", 512, _COCA_B32, _TEXT_COCA, _CLIP_224_BICUBIC,
           decoder=DecoderConfig(layers=12, heads=8),
           hub=("laion/CoCa-ViT-B-32-laion2B-s13B-b90k",),
           note="captioner; CoCa as open_clip's coca_ViT-B-32", license="mit"),
    _entry("coca-vit-l14", 768, _COCA_L14, replace(_TEXT_COCA, width=768, heads=12),
           _CLIP_224_BICUBIC, decoder=DecoderConfig(layers=12, heads=12),
           hub=("apple/mobileclip2_coca_dfn2b_s13b_mscoco38k_s12m_context77",),
           note="captioner; CoCa as open_clip's coca_ViT-L-14, and MobileCLIP2's captioners"),
    _entry("tiny", 64,
           MCiConfig(depths=(1, 1, 2, 1), widths=(16, 32, 64, 128), mlp_ratio=2.0, layer_scale=0.1),
           TextConfig(width=64, layers=2, heads=2, embedding_buckets=2048),
           PreprocessConfig(size=64), note="for tests and small data; no published weights"),
    _entry("small", 256,
           MCiConfig(depths=(2, 2, 4, 2), widths=(32, 64, 128, 256), mlp_ratio=3.0,
                     layer_scale=0.1),
           TextConfig(width=192, layers=4, heads=6, embedding_buckets=4096),
           PreprocessConfig(size=128), note="for small data; no published weights"),
    _entry("coca-tiny", 128,
           ViTConfig(width=128, layers=3, heads=4, patch_size=8, head_bias=False,
                     pool_queries=17, pool_heads=4),
           TextConfig(width=128, layers=2, heads=4, context_length=76, causal=True,
                      class_token=True, embedding_buckets=2048),
           PreprocessConfig(size=64), decoder=DecoderConfig(layers=2, heads=4),
           note="captioner for tests and small data; no published weights"),
)  # fmt: skip

ZOO: dict[str, Entry] = {entry.config.name: entry for entry in _ENTRIES}


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_OTHER_NAMES = {"vit-l14-39b-quickgelu": "vit-l14-39b"}
_SPELLINGS = {_key(name): name for name in ZOO}
_SPELLINGS |= {_key(other): name for other, name in _OTHER_NAMES.items()}


def resolve(name: str) -> str:
    """Return the canonical spelling of `name`, given in any case and with any separators.

    Raises:
        UnknownModelError: there is no such model; the message names similar ones.
    """
    spelling = _SPELLINGS.get(_key(name))
    if spelling is not None:
        return spelling
    near = difflib.get_close_matches(_key(name), _SPELLINGS, n=3, cutoff=0.5)
    names = dict.fromkeys(_SPELLINGS[key] for key in near)
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    raise UnknownModelError(f"unknown model {name!r}; {hint}`pocketclip models` lists all models")


def find(name: str) -> Entry | None:
    """Return the zoo's entry for `name`, in any spelling, or None."""
    spelling = _SPELLINGS.get(_key(name))
    return None if spelling is None else ZOO[spelling]


def entry(name: str) -> Entry:
    """Return the zoo's entry for `name`, in any spelling.

    Raises:
        UnknownModelError: there is no such model.
    """
    return ZOO[resolve(name)]


# Published teachers that the zoo does not build yet, by hub id and by open_clip's name.
# The second is of the paper's H/14@384; (r): known from reviews of the paper, not from its text.
_TEACHER_SCALES: dict[str, float] = {
    "apple/dfn5b-clip-vit-h-14": 90,
    "vit-h-14-quickgelu/dfn5b": 90,
    "apple/dfn5b-clip-vit-h-14-378": 55,
    "vit-h-14-378-quickgelu/dfn5b": 55,
}


def teacher_logit_scale(name: str) -> float | None:
    """Return the logit scale that MobileCLIP2 (Table 3) found best for a published teacher.

    It multiplies the teacher's cosine similarities before the softmax of the distillation loss.
    The paper searched it per teacher, each alone. It is a fact about published weights, so a weight
    file (`vit-l14-quickgelu=openai.pt`) and random weights have none. The first generation's
    ensemble (OpenAI's ViT-L/14 and DataComp's) used 100 for both; its recipe says so itself.

    Args:
        name: a zoo name in any spelling, a hub id (`apple/DFN2B-CLIP-ViT-L-14`, also with
            `hf-hub:` or `@REVISION`), `open_clip:NAME/TAG`, or any of these as LABEL=MODEL.

    Returns:
        The scale, or None if the model is unknown or the paper does not give one.
    """
    label, equals, target = name.strip().partition("=")
    if equals and (find(label) is None or target.strip().startswith("open_clip:")):
        return teacher_logit_scale(target)
    target = name.strip().removeprefix("hf-hub:").partition("@")[0]
    known = find(target)
    if known is not None:
        return known.teacher_logit_scale
    wanted = target.removeprefix("open_clip:").lower()
    for other in ZOO.values():
        names = (*other.hub, *([] if other.open_clip is None else [other.open_clip]))
        if wanted in (each.lower() for each in names):
            return other.teacher_logit_scale
    return _TEACHER_SCALES.get(wanted)


# Short names of fields that most recipes set.
_ALIASES = {"image_size": "preprocess.size", "drop_path": "image.drop_path"}


def override(config: ModelConfig, **overrides: Any) -> ModelConfig:
    """Return `config` with fields replaced.

    Nested fields are given as a mapping (`text={"layers": 6}`) or by a dotted name
    (`**{"text.layers": 6}`). `image_size` and `drop_path` are short for `preprocess.size` and
    `image.drop_path`.

    Raises:
        ConfigError: a key is not a field (the message lists the fields), or a value is not allowed.
    """
    for key, value in overrides.items():
        config = _set(config, _ALIASES.get(key, key).split("."), value, key)
    return checked(config)


def _set(node: Any, path: list[str], value: Any, key: str) -> Any:
    head, inner_path = path[0], path[1:]
    fields = {f.name for f in dataclasses.fields(node)}
    if head not in fields:
        known = sorted(fields | (set(_ALIASES) if isinstance(node, ModelConfig) else set()))
        near = difflib.get_close_matches(head, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown field {key!r}{hint} (fields: {', '.join(known)})")
    old = getattr(node, head)
    if inner_path:
        if not dataclasses.is_dataclass(old):
            raise ConfigError(f"{key!r}: {head!r} has no fields")
        value = _set(old, inner_path, value, key)
    elif dataclasses.is_dataclass(old) and isinstance(value, Mapping):
        for name, inner in value.items():
            old = _set(old, [str(name)], inner, f"{key}.{name}")
        value = old
    elif isinstance(value, list):
        value = tuple(value)
    return replace(node, **{head: value})


_IMAGE_KINDS: dict[str, type[MCiConfig] | type[ViTConfig]] = {"mci": MCiConfig, "vit": ViTConfig}


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return `config` as plain JSON types; `from_dict` is its inverse."""
    out = dataclasses.asdict(config)
    kinds = {cls: kind for kind, cls in _IMAGE_KINDS.items()}
    out["image"] = {"kind": kinds[type(config.image)], **out["image"]}
    return out


def from_dict(raw: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that `to_dict` has written.

    Raises:
        ConfigError: a field is unknown or missing, or its value is not allowed.
    """
    try:
        image = dict(raw["image"])
        kind = image.pop("kind")
        sections = {
            "image": _build(_IMAGE_KINDS[kind], image, "image"),
            "text": _build(TextConfig, raw["text"], "text"),
            "preprocess": _build(PreprocessConfig, raw["preprocess"], "preprocess"),
        }
        if raw.get("decoder") is not None:
            sections["decoder"] = _build(DecoderConfig, raw["decoder"], "decoder")
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"configuration lacks or misnames a section: {error}") from error
    return checked(_build(ModelConfig, {**raw, **sections}, "model"))


def _build(cls: Any, raw: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise ConfigError(f"unknown field {unknown[0]!r} in the {where} configuration")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"incomplete {where} configuration: {error}") from error


MAX_IMAGE_SIZE = 2048
"""Limit on the side of the input, in pixels."""
_LARGEST = 1 << 20
# Ranges of numbers by the name of their field; the default is integers up to the largest.
# A standard deviation near 0 would make pixels infinite.
_RANGES: dict[str, tuple[float, float]] = {
    "size": (1, MAX_IMAGE_SIZE),
    "mean": (-1e3, 1e3),
    "std": (1e-3, 1e3),
    "layers": (1, 1024),
    "context_length": (1, 8192),
    "depths": (0, 1024),
    "mlp_ratio": (1e-3, 64),
    "layer_scale": (-1e3, 1e3),
    "drop_path": (0, 1),
    "eps": (0, 1),
}
_MAX_STAGES = 16  # stages of a tower
# The only integers that may be zero.
_MAY_BE_ZERO = {"attention_stages", "squeeze_excite_stages", "stem_padding"}


def checked(config: ModelConfig) -> ModelConfig:
    """Return `config` after checking it.

    Raises:
        ConfigError: a value has the wrong type or range, or values contradict each other.
    """
    for where, section in (
        ("", config),
        ("image.", config.image),
        ("text.", config.text),
        ("preprocess.", config.preprocess),
        *([] if config.decoder is None else [("decoder.", config.decoder)]),
    ):
        hints = typing.get_type_hints(type(section))
        for name, hint in hints.items():
            value = getattr(section, name)
            zero = value == 0 and hint is int and name not in _MAY_BE_ZERO
            if zero or not _fits(value, hint):
                raise ConfigError(f"{where}{name} cannot be {_shown(value)}")
            check_range(f"{where}{name}", value)
    image, text = config.image, config.text
    pairs = [("text", text.width, text.heads)]
    if config.decoder is not None:
        pairs.append(("decoder", text.width, config.decoder.heads))
    if isinstance(image, ViTConfig):
        pairs.append(("image", image.width, image.heads))
        if image.pool_queries is not None:
            pairs.append(("image", config.embed_dim, image.pool_heads))
    else:
        if len(image.depths) != len(image.widths):
            raise ConfigError("image.depths and image.widths must be equally long")
        if any(b % a for a, b in zip(image.widths, image.widths[1:], strict=False)):
            raise ConfigError("each of image.widths must be a multiple of the one before")
        count = image.attention_stages
        pairs += [("image", w, w // image.head_dim) for w in image.widths[-count:] if count]
    for where, width, heads in pairs:
        if heads < 1 or width % heads:
            raise ConfigError(f"{where}: a width of {width} cannot be split into {heads} heads")
    _check_captioner(config)
    return config


def check_range(name: str, value: Any) -> None:
    """Check the range of a number or a tuple of numbers; other values pass.

    Args:
        name: the field's name, which may have a prefix: `preprocess.std`.
        value: its value.

    Raises:
        ConfigError: a number is not finite or out of range.
    """
    field = name.rpartition(".")[2]
    low, high = _RANGES.get(field, (-_LARGEST, _LARGEST))
    values = value if isinstance(value, tuple) else (value,)
    if len(values) > _MAX_STAGES:
        raise ConfigError(f"{name} cannot have {len(values)} entries, only up to {_MAX_STAGES}")
    for number in values:
        # Fails for NaN.
        if type(number) in (int, float) and not low <= number <= high:
            raise ConfigError(
                f"{name} cannot be {_shown(value)}: it must be between {low:g} and {high:g}"
            )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number this large"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _check_captioner(config: ModelConfig) -> None:
    text, decoder = config.text, config.decoder
    queries = config.image.pool_queries if isinstance(config.image, ViTConfig) else None
    if queries == 0:
        raise ConfigError("image.pool_queries cannot be 0")
    if text.class_token and (not text.causal or text.repmixer):
        raise ConfigError("text.class_token needs text.causal, and no text.repmixer")
    if decoder is None:
        return
    if not text.class_token or queries is None or queries < 2:
        raise ConfigError("a decoder needs text.class_token and image.pool_queries of 2 or more")
    if config.embed_dim != text.width:
        raise ConfigError(
            f"with a decoder, embed_dim ({config.embed_dim}) must be text.width ({text.width})"
        )


def _fits(value: Any, hint: Any) -> bool:
    """Return whether `value` has the annotated type of a field; integers must not be negative."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return 0 < len(value) == len(inner) and all(
            _fits(v, arg) for v, arg in zip(value, inner, strict=True)
        )
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) < math.inf
    return isinstance(value, hint) and (hint is not int or value >= 0)
