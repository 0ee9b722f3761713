"""The named models: configurations, repositories of their weights, and published figures.

Sources: MobileCLIP (arXiv 2311.17049), sections 3.2 and 3.3 and appendix; MobileCLIP2
(arXiv 2508.20691), section 4 (the five-stage towers) and Table 3 (the teachers' logit scales).
Parameters, latency (iPhone 12 Pro Max, ms) and accuracies are the papers' own figures.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from pocketclip.zoo.configs import (
    CLIP_MEAN,
    CLIP_STD,
    DecoderConfig,
    MCiConfig,
    ModelConfig,
    PreprocessConfig,
    TextConfig,
    ViTConfig,
)

APPLE_AMLR = "apple-amlr"
"""Apple's licence for models of its research: for research only. The repositories of the first
generation also called it `apple-ascl`."""


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
_VIT_H14 = ViTConfig(width=1280, layers=32, heads=16, patch_size=14, head_bias=False,
                     activation="quick_gelu")  # fmt: skip
# Apple's code of B pads the stem by one pixel and normalises with epsilon 1e-5; open_clip's
# (through timm) does neither. Each file is computed like the code that its names belong to.
_VIT_B_CONV = replace(_VIT_B16, stem="conv", stem_padding=1, class_position=False, pre_norm=False)

_TEXT = TextConfig(width=512, layers=12, heads=8)
_TEXT_CAUSAL = replace(_TEXT, causal=True)
_TEXT_768 = TextConfig(width=768, layers=12, heads=12)
_TEXT_1024 = TextConfig(width=1024, layers=24, heads=16, causal=True, activation="quick_gelu")
_MCT = TextConfig(width=512, layers=4, heads=8, repmixer=True)

_PLAIN_256 = PreprocessConfig(size=256)
_PLAIN_224 = PreprocessConfig(size=224)
_CLIP_256 = PreprocessConfig(size=256, mean=CLIP_MEAN, std=CLIP_STD)
_CLIP_224_BICUBIC = PreprocessConfig(
    size=224, interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD
)
_CLIP_224_SQUASHED = replace(_CLIP_224_BICUBIC, resize="squash")


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
    _entry("vit-h14-quickgelu", 1024, _VIT_H14, _TEXT_1024, _CLIP_224_SQUASHED,
           hub=("apple/DFN5B-CLIP-ViT-H-14",),
           open_clip="ViT-H-14-quickgelu/dfn5b", teacher_logit_scale=90,
           note="teacher; CLIP's ViT-H/14 with QuickGELU (DFN5B)"),
    # 55 is of the model that the paper calls H/14@384; (r): known from reviews of the paper.
    _entry("vit-h14-378-quickgelu", 1024, _VIT_H14, _TEXT_1024,
           replace(_CLIP_224_SQUASHED, size=378),
           hub=("apple/DFN5B-CLIP-ViT-H-14-378",),
           open_clip="ViT-H-14-378-quickgelu/dfn5b", teacher_logit_scale=55,
           note="teacher; CLIP's ViT-H/14 with QuickGELU at 378 pixels (DFN5B)"),
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
