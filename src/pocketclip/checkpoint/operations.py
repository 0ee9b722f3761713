"""The size of a model from its configuration alone, without torch: parameters and operations.

    size = measure(zoo.entry("mobileclip2-s0").config)
    size.params_million, size.gflop     # 74.8, 8.9

Both are counted after re-parameterisation, as the published parameters are. The rule for
operations is that of open_clip's table of models, so that the figures compare: two for each
multiply-accumulate of a convolution, a linear layer, or the two products of attention, for one
image of the model's size and one text of the whole context; nothing else counts. Every token goes
through every block, though an encoder may skip what the last block does with tokens that nobody
reads. `tests/checkpoint/test_operations.py` compares with open_clip's figures and torch's counter.

Shapes: N positions or tokens, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pocketclip import zoo
from pocketclip.checkpoint.parameters import describe


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters and operations of both towers; a caption decoder does not count."""

    image_params: int
    text_params: int
    image_operations: int
    """Floating-point operations for one image."""
    text_operations: int
    """Floating-point operations for one text."""

    @property
    def params_million(self) -> float:
        """Millions of parameters of both towers."""
        return (self.image_params + self.text_params) / 1e6

    @property
    def gflop(self) -> float:
        """Billions of operations for one image and one text."""
        return (self.image_operations + self.text_operations) / 1e9


def measure(config: zoo.ModelConfig) -> ModelSize:
    """Return the size of a model with this configuration, fused."""
    params, products = {"image": 0, "text": 0}, _attention_products(config)
    for path, shape in describe(config, fused=True).walk():
        tower = path.partition(".")[0]
        if tower not in params:
            continue  # the logit scale, a caption decoder
        params[tower] += math.prod(shape)
        if path.endswith(".weight") and len(shape) in (2, 4) and ".embedding." not in path:
            positions = _text_positions if tower == "text" else _image_positions
            products[tower] += math.prod(shape) * positions(config, path)
    return ModelSize(
        image_params=params["image"],
        text_params=params["text"],
        image_operations=2 * products["image"],
        text_operations=2 * products["text"],
    )


def _side(config: zoo.ModelConfig, halvings: int) -> int:
    side = config.image_size
    for _ in range(halvings):
        side = -(-side // 2)  # convolutions of stride 2 with padding round up
    return side


def _image_tokens(config: zoo.ModelConfig) -> int:
    """Return the tokens of a vision transformer, its class token included."""
    assert isinstance(config.image, zoo.ViTConfig)
    return (config.image_size // config.image.patch_size) ** 2 + 1


def _image_positions(config: zoo.ModelConfig, path: str) -> int:
    """Return at how many positions of one image a convolution or linear layer is applied."""
    image, (_, part, *inner) = config.image, path.split(".")
    if part == "head" or "se" in inner:
        return 1
    if isinstance(image, zoo.MCiConfig):
        stages = len(image.depths)
        halvings = {"stem": 1 if inner[0] == "0" else 2, "expand": stages + 1}
        return _side(config, halvings[part] if part in halvings else int(inner[0]) + 2) ** 2
    if part == "stem":
        first = {"0": 4, "2": 8}.get(inner[0], image.patch_size)
        return (config.image_size // first) ** 2
    if part == "pool" and inner[0] in ("q", "proj"):
        return image.pool_queries or 1
    return _image_tokens(config)


def _text_tokens(config: zoo.ModelConfig) -> int:
    return config.text.context_length + (1 if config.text.class_token else 0)


def _text_positions(config: zoo.ModelConfig, path: str) -> int:
    return 1 if path.startswith("text.head.") else _text_tokens(config)


def _attention_products(config: zoo.ModelConfig) -> dict[str, int]:
    """Return the multiply-accumulates of attention: 2 N N C per layer, for scores and sums."""
    image, text = config.image, config.text
    total = {"image": 0, "text": 2 * _text_tokens(config) ** 2 * text.width * text.layers}
    if isinstance(image, zoo.MCiConfig):
        for index in range(len(image.depths) - image.attention_stages, len(image.depths)):
            positions = _side(config, index + 2) ** 2
            total["image"] += 2 * positions**2 * image.widths[index] * image.depths[index]
        return total
    tokens = _image_tokens(config)
    total["image"] = 2 * tokens**2 * image.width * image.layers
    if image.pool_queries is not None:
        total["image"] += 2 * image.pool_queries * tokens * config.embed_dim
    return total
