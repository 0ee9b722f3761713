"""infinity-emb, the peer of `pocketclip serve`, with the weights of the server beside it.

    PEER/bin/python benchmarks/serve_peer.py make FOLDER TOKENIZER
    PEER/bin/python benchmarks/serve_peer.py serve FOLDER PORT float32

PEER is an environment with `infinity-emb[server,torch]==0.0.78`, which needs numpy below 2, and
with aiohttp, pillow, timm and torchvision. `make` writes a CLIP ViT-B/16 with random weights twice,
since nothing may be downloaded: `FOLDER/hf` as transformers keeps models, and
`FOLDER/open_clip.safetensors` as open_clip does, which `pocketclip export vit-b16=FILE` reads.
TOKENIZER is the `tokenizer.json` of any bundle. `serve` runs infinity's own command line, without
its reports of usage.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

_libraries: list[Any] = []

BLOCK = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
"""Names within a block: those of transformers, and those of open_clip."""
VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post",
}  # fmt: skip
TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}


def declare_operators() -> None:
    """Declare two operators that torchvision looks for, which the CPU build of torch lacks."""
    torch: Any = importlib.import_module("torch")
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)  # the declarations last as long as this object
    except RuntimeError:
        pass  # a matching torchvision has declared them


def open_clip_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of a `CLIPModel` under open_clip's names."""
    torch: Any = importlib.import_module("torch")
    out = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    for tower, prefix, names in (("vision_model.", "visual.", VISION), ("text_model.", "", TEXT)):
        for theirs, ours in names.items():
            for tail in ("", ".weight", ".bias"):
                if tower + theirs + tail in state:
                    out[prefix + ours + tail] = state[tower + theirs + tail]
        layers = 1 + max(int(key.split(".")[3]) for key in state if key.startswith(tower + "enc"))
        for layer in range(layers):
            block = f"{tower}encoder.layers.{layer}."
            target = f"{prefix}transformer.resblocks.{layer}."
            for tail in (".weight", ".bias"):
                for theirs, ours in BLOCK.items():
                    out[target + ours + tail] = state[block + theirs + tail]
                out[f"{target}attn.in_proj_{tail[1:]}"] = torch.cat(
                    [state[f"{block}self_attn.{part}_proj{tail}"] for part in "qkv"]
                )
    return out


def make(folder: Path, tokenizer: Path) -> None:
    """Write the same random weights for both servers."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    safetensors: Any = importlib.import_module("safetensors.torch")
    torch.manual_seed(0)
    shared = {"hidden_act": "gelu", "projection_dim": 512, "attn_implementation": "sdpa"}
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
            "num_hidden_layers": 12, "eos_token_id": 49407, "bos_token_id": 49406,
            "pad_token_id": 49407, **shared,
        },
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "num_hidden_layers": 12, "patch_size": 16, "image_size": 224, **shared,
        },
        projection_dim=512,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                # As they come, embeddings of different images are almost the same.
                weight.mul_(2.0)
    model.save_pretrained(folder / "hf")
    words = transformers.CLIPTokenizerFast(
        tokenizer_file=str(tokenizer), model_max_length=77, bos_token="<start_of_text>",
        eos_token="<end_of_text>", pad_token="<end_of_text>", unk_token="<end_of_text>",
    )  # fmt: skip
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(), words).save_pretrained(
        folder / "hf"
    )
    shutil.copyfile(tokenizer, folder / "hf" / "tokenizer.json")
    state = {name: value.detach() for name, value in model.state_dict().items()}
    safetensors.save_file(open_clip_names(state), folder / "open_clip.safetensors")


def serve(folder: Path, port: str, dtype: str, *more: str) -> None:
    """Run infinity's command line until it is told to end."""
    sys.argv = [
        "infinity_emb", "v2", "--model-id", str(folder / "hf"), "--served-model-name", "peer",
        "--host", "127.0.0.1", "--port", port, "--engine", "torch", "--device", "cpu",
        "--dtype", dtype, "--url-prefix", "/v1", "--log-level", "warning",
        "--no-model-warmup", *more,  # it takes minutes; the benchmark warms up by itself
    ]  # fmt: skip
    importlib.import_module("infinity_emb.cli").cli()


if __name__ == "__main__":
    # Before infinity and transformers are imported: no reports of usage, nothing from the hub.
    for variable in ("DO_NOT_TRACK", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[variable] = "1"
    declare_operators()
    command, path = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(path, Path(sys.argv[3]))
    else:
        serve(path, *sys.argv[3:])
