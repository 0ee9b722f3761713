from __future__ import annotations

import pytest

from pocketclip import zoo
from pocketclip.errors import ConfigError, UnknownModelError
from pocketclip.preprocess import Preprocess


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("mobileclip_s0", "mobileclip-s0"), ("MobileCLIP2-S0", "mobileclip2-s0"),
     ("mobileclip_blt", "mobileclip-b-lt"), ("MobileCLIP-B-LT", "mobileclip-b-lt"),
     ("MobileCLIP2-L-14", "mobileclip2-l14"), ("ViT-L-14-quickgelu", "vit-l14-quickgelu"),
     ("ViT-B-16", "vit-b16"), ("mobileclip-s4", "mobileclip-s4"), ("TINY", "tiny"),
     ("coca_ViT-B-32", "coca-vit-b32"), ("coca_ViT-L-14", "coca-vit-l14"),
     ("ViT-H-14-378-quickgelu", "vit-h14-378-quickgelu")],
)  # fmt: skip
def test_names_in_any_spelling(spelling, name):
    assert zoo.resolve(spelling) == name
    assert zoo.entry(spelling) is zoo.ZOO[name]


def test_the_teacher_of_39_billion_samples_has_gelu():
    # Its own open_clip_config.json has no quick_gelu, whatever the name suggests.
    assert zoo.resolve("ViT-L-14-39B-quickgelu") == "vit-l14-39b"
    entry = zoo.entry("vit-l14-39b-quickgelu")
    assert entry.hub == ("apple/DFN2B-CLIP-ViT-L-14-39B",)
    assert (entry.config.image.activation, entry.config.text.activation) == ("gelu", "gelu")
    assert zoo.name_of_repository(entry.hub[0]) == "vit-l14-39b"


def test_every_name_of_the_design_is_there():
    v1 = [f"mobileclip-{s}" for s in ("s0", "s1", "s2", "b", "b-lt", "s3", "l14", "s4")]
    v2 = [f"mobileclip2-{s}" for s in ("s0", "s2", "b", "s3", "l14", "s4")]
    assert set(zoo.ZOO) == {*v1, *v2, "vit-b32", "vit-b16", "vit-l14-quickgelu",
                            "vit-l14-39b", "vit-l14", "vit-h14-quickgelu",
                            "vit-h14-378-quickgelu", "tiny", "small", "coca-vit-b32",
                            "coca-vit-l14", "coca-tiny"}  # fmt: skip
    published = [name for name, entry in zoo.ZOO.items() if entry.published]
    assert published == v1 + v2


def test_an_unknown_name_answers_with_the_nearest():
    with pytest.raises(UnknownModelError, match="mobileclip2-s3"):
        zoo.resolve("mobileclip2-s5")
    with pytest.raises(UnknownModelError, match="lists all models"):
        zoo.resolve("zzzz")


@pytest.mark.parametrize("name", [*zoo.ZOO, "coca-dfn2b-docci-context128"])
def test_configurations_survive_json(name):
    import json

    config = zoo.entry(name).config
    assert zoo.from_dict(json.loads(json.dumps(zoo.to_dict(config)))) == config


def test_overrides_reach_any_field():
    config = zoo.ZOO["tiny"].config
    new = zoo.override(
        config, image_size=96, drop_path=0.1, text={"layers": 3, "causal": True}, embed_dim=32,
        **{"image.depths": [1, 1, 1, 1]},
    )  # fmt: skip
    assert (new.image_size, new.image.drop_path, new.embed_dim) == (96, 0.1, 32)
    assert (new.text.layers, new.text.causal, new.text.width) == (3, True, config.text.width)
    assert new.image.depths == (1, 1, 1, 1)
    assert config == zoo.ZOO["tiny"].config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"imagesize": 96}, "did you mean 'image_size'"), ({"text": {"layer": 3}}, "text.layer"),
     ({"text.layers.more": 3}, "no fields"), ({"image.causal": True}, "unknown field")],
)  # fmt: skip
def test_unknown_fields_are_errors(overrides, message):
    with pytest.raises(ConfigError, match=message):
        zoo.override(zoo.ZOO["tiny"].config, **overrides)


@pytest.mark.parametrize("raw", [{}, {"image": {}}, {"image": {"kind": "mlp"}}, {"image": 3}])
def test_a_malformed_configuration_is_an_error(raw):
    with pytest.raises(ConfigError):
        zoo.from_dict(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [("text.layers", "2"), ("text.width", None), ("text.heads", 3), ("text.activation", "x"),
     ("image.widths", [16, 32]), ("image.widths", [16, 32, 63, 128]), ("image.depths", [1, 1, 0]),
     ("embed_dim", -1), ("embed_dim", 0), ("text", "x"), ("image_size", "x"), ("image_size", True),
     ("preprocess.interpolation", "nearest"), ("preprocess.mean", [0.5]), ("image.head_dim", 7),
     ("preprocess.std", 1)],
)  # fmt: skip
def test_invalid_values(field, value):
    with pytest.raises(ConfigError):
        zoo.override(zoo.ZOO["tiny"].config, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preprocess.std", (0.0, 1.0, 1.0)),
        ("preprocess.std", (1.0, float("nan"), 1.0)),
        ("preprocess.std", (1.0, 1.0, float("inf"))),
        ("preprocess.std", (1.0, 1.0, -0.2)),
        ("preprocess.std", (1e-300, 1.0, 1.0)),
        ("preprocess.mean", (float("nan"), 0.0, 0.0)),
        ("preprocess.mean", (0.0, 0.0, float("-inf"))),
        ("image_size", 10**9),
        pytest.param("image_size", 10**5000, id="thousands of digits"),
        ("image_size", 0),
        ("text.layers", 10**9),
        ("text.width", 1 << 40),
        ("text.mlp_ratio", float("nan")),
        ("text.mlp_ratio", float("inf")),
        pytest.param("text.mlp_ratio", 10**400, id="beyond any float"),
        ("text.mlp_ratio", 0.0),
        ("text.drop_path", float("nan")),
        ("drop_path", -0.5),
        ("image.depths", (1, 10**9, 1, 1)),
        ("image.depths", (1,) * 1000),
        ("image.layer_scale", float("inf")),
        ("embed_dim", 1 << 40),
    ],
)
def test_numbers_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=r"cannot (be|have)") as caught:
        zoo.override(zoo.entry("tiny").config, **{field: value})
    assert len(str(caught.value)) < 200
    assert field.rpartition(".")[2].removeprefix("image_") in str(caught.value)


def test_preprocessing_refuses_invalid_values():
    for options in ({"std": (0.0, 1.0, 1.0)}, {"mean": (float("nan"),) * 3}, {"size": 10**9}):
        config = zoo.PreprocessConfig(**{"size": 64, **options})
        with pytest.raises(ConfigError, match="cannot be"):
            Preprocess(config)


@pytest.mark.parametrize(
    ("text", "ignores"),
    [
        ({"causal": True}, True),
        ({"causal": False}, False),
        ({"causal": True, "repmixer": True}, False),
        ({"repmixer": True}, False),
        ({"causal": True, "class_token": True}, False),
    ],
)
def test_which_texts_ignore_their_padding(text, ignores):
    assert zoo.TextConfig(width=64, layers=2, heads=2, **text).ignores_padding is ignores


@pytest.mark.parametrize(
    ("name", "scale"),
    [("vit-l14", 50), ("ViT-L-14-quickgelu", 70), ("vit_l14_39b_quickgelu", 60),
     ("apple/DFN2B-CLIP-ViT-L-14", 70), ("Apple/dfn2b-clip-vit-l-14-39b", 60),
     ("hf-hub:apple/DFN2B-CLIP-ViT-L-14@main", 70), ("apple/DFN5B-CLIP-ViT-H-14", 90),
     ("apple/DFN5B-CLIP-ViT-H-14-378", 55), ("open_clip:ViT-H-14-quickgelu/dfn5b", 90),
     ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 50),
     ("open_clip:ViT-L-14/datacomp_xl_s13b_b90k", 50),
     ("ViT-L-14/datacomp_xl_s13b_b90k", 50), ("ViT-L-14/openai", None),
     ("ours=apple/DFN2B-CLIP-ViT-L-14", 70),
     ("vit-l14=open_clip:ViT-L-14-quickgelu/dfn2b", 70), ("dfn=vit-l14-39b-quickgelu", 60),
     ("vit-l14-quickgelu=hf-hub:apple/DFN2B-CLIP-ViT-L-14@main", 70),
     ("openai=vit-l14-quickgelu=hf-hub:timm/vit_large_patch14_clip_224.openai", None),
     # Neither are other weights of the same architecture, nor models that the paper did not try.
     ("vit-l14-quickgelu=openai.pt", None), ("random:vit-l14", None), ("vit-b16", None),
     ("open_clip:ViT-L-14/openai", None), ("runs/7", None), ("nothing", None), ("", None)],
)  # fmt: skip
def test_the_published_logit_scale_of_a_teacher(name, scale):
    assert zoo.teacher_logit_scale(name) == scale


@pytest.mark.parametrize(
    ("weights", "name"),
    [("open_clip:ViT-L-14/dfn2b_s39b", "vit-l14-39b"),
     ("vit-h-14-quickgelu/DFN5B", "vit-h14-quickgelu"),
     ("", None), ("open_clip:", None), ("ViT-L-14", None)],
)  # fmt: skip
def test_the_name_of_open_clips_weights(weights, name):
    assert zoo.name_of_open_clip(weights) == name


# What follows apple/mobileclip2_coca_dfn2b_s13b_, as the release lists the captioners.
RELEASED = [
    "context77", "dci-complete_s12m_context77", "dci-complete_s12m_context128",
    "dci-complete_s12m_context256", "dci-extended_s12m_context77", "dci-extended_s12m_context128",
    "dci-extended_s12m_context256", "dci-short_s12m_context77", "dci-short_s12m_context128",
    "dci-short_s12m_context256", "docci_s12m_context77", "docci_s12m_context128",
    "docci_s12m_context256", "recap-coco-30k_s12m_context77", "recap-coco-30k_s12m_context128",
    "recap-coco-30k_s12m_context256", "mscoco38k_s12m_context77", "gbc1m-short_context77",
    "gbc1m-long_context256", "gbc10m-long_context256", "gbc10m-short-relation_context256",
]  # fmt: skip


def test_every_released_captioner_has_a_name():
    apples = {n: e for n, e in zoo.CAPTIONERS.items() if e.hub[0].startswith("apple/")}
    prefix = "apple/mobileclip2_coca_dfn2b_s13b_"
    assert {entry.hub[0] for entry in apples.values()} == {prefix + name for name in RELEASED}
    assert len(apples) == len(RELEASED) == 21
    for name, entry in apples.items():
        released = entry.hub[0].removeprefix(prefix)
        assert name == f"coca-dfn2b-{released.replace('_s12m', '').replace('_', '-')}"
        assert entry.config.text.context_length + 1 == int(name.rpartition("context")[2])
        assert entry.license == zoo.APPLE_AMLR


def test_a_captioner_is_an_architecture_with_a_context():
    entry = zoo.entry("CoCa_DFN2B_docci_context256")
    base = zoo.entry("coca-vit-l14").config
    assert entry.config == zoo.override(base, **{"text.context_length": 255})
    assert entry.config.name == "coca-vit-l14"
    assert zoo.name_of_repository(entry.hub[0]) == "coca-dfn2b-docci-context256"
    with pytest.raises(UnknownModelError, match="coca-dfn2b-docci-context256"):
        zoo.resolve("coca-dfn2b-docci-context255")


def test_the_resize_is_written_where_it_is_not_the_usual_one():
    plain, squashed = (zoo.entry(n).config for n in ("vit-l14", "vit-h14-378-quickgelu"))
    assert "resize" not in zoo.to_dict(plain)["preprocess"]  # earlier versions read it
    assert zoo.to_dict(squashed)["preprocess"]["resize"] == "squash"
    with pytest.raises(ConfigError, match=r"preprocess\.resize cannot be 'longest'"):
        zoo.override(plain, **{"preprocess.resize": "longest"})


def test_a_sparse_model_is_not_called_as_the_dense_one():
    dense = zoo.entry("vit-b16").config
    assert zoo.describe(dense) == "vit-b16"
    assert zoo.describe(zoo.sparse_config(dense)) == "vit-b16, sparse (2 of 8 experts)"
    text = zoo.sparse_config(dense, experts=4, top_k=1, towers=("text",))
    assert zoo.describe(text) == "vit-b16, sparse (text: 1 of 4 experts)"


@pytest.mark.parametrize("layers", [[1.5], [True], 5, None, ["x"]])
def test_blocks_are_whole_numbers(layers):
    with pytest.raises(ConfigError, match="every-N, last-N or numbers"):
        zoo.sparse_config(zoo.entry("vit-b16").config, layers=layers)
