"""Tiny models of `transformers` with random weights, saved as their folders are."""

from __future__ import annotations

import json

import pytest

transformers = pytest.importorskip("transformers", reason="the extra `teachers` is not installed")

WORDS = ["a", "photo", "of", "the", "cat", "dog", "red", "cup", "on", "table", "words", "here"]
BOS, EOS, PAD, UNK = 0, 1, 2, 3


def tokenizer(folder, length):
    """Save a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {w: i for i, w in enumerate(["<bos>", "<eos>", "<pad>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    ).save_pretrained(folder)
    return len(vocabulary)


def processor(folder, **facts):
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def _text(length, **facts):
    return {
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": length,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        **facts,
    }


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 32,
}


def clip(folder):
    import torch

    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=_text(12), vision_config=VISION, projection_dim=24, logit_scale_init_value=3.0
    )
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():  # what is initialised tells texts hardly apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer(folder, 12)
    processor(
        folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=32
    )


def siglip(folder, kind="Siglip"):
    import torch

    torch.manual_seed(0)
    text = _text(9, projection_size=32)
    config_class = getattr(transformers, f"{kind}Config")
    vision = VISION | ({"num_patches": 16} if kind == "Siglip2" else {})
    if kind == "Siglip2":
        del vision["image_size"]
    model = getattr(transformers, f"{kind}Model")(
        config_class(text_config=text, vision_config=vision)
    )
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-5.0)
    model.save_pretrained(folder)
    tokenizer(folder, 9)
    if kind == "Siglip2":
        processor(
            folder, image_processor_type="Siglip2ImageProcessor", patch_size=8, max_num_patches=16
        )
    else:
        processor(
            folder, image_processor_type="SiglipImageProcessor", size={"height": 32, "width": 32}
        )


def _no_special(bias):
    """Keep a random model from writing what no trained one would."""
    bias.data[[BOS, PAD, UNK]] = -100.0


def blip(folder):
    import torch

    torch.manual_seed(0)
    text = _text(40, encoder_hidden_size=32, projection_dim=32, sep_token_id=EOS)
    config = transformers.BlipConfig(text_config=text, vision_config=VISION)
    model = transformers.BlipForConditionalGeneration(config)
    _no_special(model.text_decoder.cls.predictions.bias)
    model.save_pretrained(folder)
    tokenizer(folder, 40)
    processor(folder, image_processor_type="BlipImageProcessor", size={"height": 32, "width": 32})


def encoder_decoder(folder):
    import torch

    torch.manual_seed(0)
    decoder = transformers.GPT2Config(
        vocab_size=4 + len(WORDS), n_positions=40, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=BOS, eos_token_id=EOS, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    model = transformers.VisionEncoderDecoderModel(config)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id = BOS, EOS
        settings.pad_token_id = PAD
    model.generation_config.suppress_tokens = [BOS, PAD, UNK]
    model.save_pretrained(folder)
    tokenizer(folder, 40)
    processor(folder, feature_extractor_type="ViTFeatureExtractor", size=32)


def git(folder):
    import torch

    torch.manual_seed(0)
    config = transformers.GitConfig(vision_config=VISION, **_text(40))
    model = transformers.GitForCausalLM(config)
    _no_special(model.output.bias)
    model.save_pretrained(folder)
    tokenizer(folder, 40)
    processor(
        folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=32
    )
