"""The size of a model from its configuration alone, without torch: parameters and operations.

    size = measure(zoo.entry("mobileclip2-s0").config)
    size.params_million, size.gflop     # 74.8, 10.7
    forward_operations(zoo.entry("vit-b16").config, tokens=18).gflop    # 34.6

Both are counted after re-parameterisation, as the published parameters are (`forward_operations`
also before it, as in training). The rule of `measure`
is that of open_clip's table of models, so that the figures compare: two operations for each
multiply-accumulate of a convolution, a linear layer, or the two products of attention, for one
image of the model's size and one text of the whole context; nothing else counts. Every token goes
through every block, and in a mixture of experts through its router and K experts. By the same rule
`forward_operations` counts what our encoders compute, which leave out what cannot change an
embedding. `tests/checkpoint/test_operations.py` compares with open_clip's figures and torch's
counter.

Shapes: N positions or tokens, C channels, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pocketclip import zoo
from pocketclip.checkpoint.parameters import Shape, describe
from pocketclip.zoo.sparse import TowerName

_TOWERS: tuple[TowerName, ...] = ("image", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters and operations of both towers; a caption decoder does not count."""

    image_params: int
    text_params: int
    image_active_params: int
    """Those that one token uses: of each mixture's E experts only K. All, if there is none."""
    text_active_params: int
    image_operations: int
    """Floating-point operations for one image."""
    text_operations: int
    """Floating-point operations for one text."""

    @property
    def params_million(self) -> float:
        """Millions of parameters of both towers."""
        return (self.image_params + self.text_params) / 1e6

    @property
    def active_params_million(self) -> float:
        """Millions of parameters of both towers that one token uses."""
        return (self.image_active_params + self.text_active_params) / 1e6

    @property
    def gflop(self) -> float:
        """Billions of operations for one image and one text."""
        return (self.image_operations + self.text_operations) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOperations:
    """Floating-point operations of an encoder's forward pass."""

    image: int
    """For one image."""
    text: int
    """For one text of `tokens` tokens."""
    tokens: int
    """Tokens that the text tower computes: its context, where padding is computed too."""

    @property
    def gflop(self) -> float:
        """Billions of operations for one image and one text."""
        return (self.image + self.text) / 1e9


def measure(config: zoo.ModelConfig) -> ModelSize:
    """Return the size of a model with this configuration, fused."""
    params, active = {"image": 0, "text": 0}, {"image": 0, "text": 0}
    for tower, path, shape in _entries(config):
        count = math.prod(shape)
        params[tower] += count
        active[tower] += _active(config, tower, count) if _is_stacked(path, shape) else count
    operations = _operations(config, config.text.context_length, forward=False)
    return ModelSize(
        image_params=params["image"],
        text_params=params["text"],
        image_active_params=active["image"],
        text_active_params=active["text"],
        image_operations=operations["image"],
        text_operations=operations["text"],
    )


def forward_operations(
    config: zoo.ModelConfig, *, tokens: int, fused: bool = True
) -> ForwardOperations:
    """Return the operations of an encoder's forward pass.

    The last MLP of a transformer runs on the pooled token only, an attentional pooling has the
    query of the embedding only, and padding is left out of texts where it cannot change an
    embedding (`TextConfig.ignores_padding`).

    Args:
        config: the model's configuration.
        tokens: the number of the text's tokens, start and end included.
        fused: after re-parameterisation; without it, each branch counts, as in training.
    """
    context = config.text.context_length
    tokens = min(tokens, context) if config.text.ignores_padding else context
    operations = _operations(config, tokens, forward=True, fused=fused)
    return ForwardOperations(image=operations["image"], text=operations["text"], tokens=tokens)


def _operations(
    config: zoo.ModelConfig, context: int, *, forward: bool, fused: bool = True
) -> dict[str, int]:
    """Return each tower's operations for one image, and one text of `context` ids.

    Args:
        config: the model's configuration.
        context: the number of ids; a class token comes on top.
        forward: leave out what our forward pass does not compute.
        fused: as `forward_operations` takes it.
    """
    text_tokens = context + (1 if config.text.class_token else 0)
    queries = getattr(config.image, "pool_queries", None)
    if queries is not None and forward:
        queries = 1
    products = {
        "image": _image_attention(config, queries),
        "text": 2 * text_tokens**2 * config.text.width * config.text.layers,
    }
    for tower, path, shape in _entries(config, fused=fused):
        stacked = _is_stacked(path, shape)
        if not path.endswith(".weight") or not (stacked or len(shape) in (2, 4)):
            continue
        if ".embedding." in path:
            continue  # looked up
        if forward and _runs_after_pooling(config, path):
            positions = 1
        elif tower == "image":
            positions = _image_positions(config, path, queries)
        else:
            positions = 1 if path.startswith("text.head.") else text_tokens
        count = math.prod(shape)
        products[tower] += positions * (_active(config, tower, count) if stacked else count)
    return {tower: 2 * count for tower, count in products.items()}


def _entries(
    config: zoo.ModelConfig, *, fused: bool = True
) -> Iterator[tuple[TowerName, str, Shape]]:
    """Yield the tower, path and shape of each parameter of both towers."""
    tree = describe(config, fused=fused)
    for tower in _TOWERS:
        for path, shape in tree.find(tower).walk(f"{tower}."):
            yield tower, path, shape


def _is_stacked(path: str, shape: Shape) -> bool:
    """Return whether a parameter is one of all experts, with the experts as its first dimension."""
    of_mlp = ".mlp.fc" in path
    return of_mlp and len(shape) == (3 if path.endswith(".weight") else 2)


def _active(config: zoo.ModelConfig, tower: TowerName, count: int) -> int:
    """Return how much of a count over a tower's E experts is of the K that process a token."""
    moe = zoo.mixtures(config)[tower]
    assert moe is not None
    return count // moe.experts * moe.top_k


def _runs_after_pooling(config: zoo.ModelConfig, path: str) -> bool:
    """Return whether a parameter is of a last MLP that runs on the pooled token only."""
    image, text = config.image, config.text
    pools = []
    if isinstance(image, zoo.ViTConfig) and image.pool_queries is None:
        pools.append(f"image.blocks.{image.layers - 1}.mlp.")
    if not text.repmixer:
        pools.append(f"text.blocks.{text.layers - 1}.mlp.")
    return path.startswith(tuple(pools))


def _side(config: zoo.ModelConfig, halvings: int) -> int:
    side = config.image_size
    for _ in range(halvings):
        side = -(-side // 2)  # convolutions of stride 2 with padding round up
    return side


def _image_tokens(config: zoo.ModelConfig) -> int:
    """Return the tokens of a vision transformer, its class token included."""
    assert isinstance(config.image, zoo.ViTConfig)
    return (config.image_size // config.image.patch_size) ** 2 + 1


def _image_positions(config: zoo.ModelConfig, path: str, queries: int | None) -> int:
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
        return queries or 1
    return _image_tokens(config)


def _image_attention(config: zoo.ModelConfig, queries: int | None) -> int:
    """Return the multiply-accumulates of attention: 2 N N C per layer, for scores and sums.

    Args:
        config: the model's configuration.
        queries: of an attentional pooling; None: there is none.
    """
    image = config.image
    if isinstance(image, zoo.MCiConfig):
        total = 0
        for index in range(len(image.depths) - image.attention_stages, len(image.depths)):
            positions = _side(config, index + 2) ** 2
            total += 2 * positions**2 * image.widths[index] * image.depths[index]
        return total
    tokens = _image_tokens(config)
    total = 2 * tokens**2 * image.width * image.layers
    return total + 2 * (queries or 0) * tokens * config.embed_dim
