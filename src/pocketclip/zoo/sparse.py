"""Configurations with mixtures of experts in place of some MLPs.

    sparse_config(entry("vit-b16").config, layers="last-6", towers=("image",))

The defaults (8 experts, 2 per token, every other block of both towers, never the first) are ours:
only the abstract of CLIP-UP (arXiv 2502.00965) could be read. Its 30 % of the operations of a dense
L/14 need half of the blocks at 2 experts per token. Sparse upcycling (arXiv 2212.05055, appendix B)
found the first block to be problematic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pocketclip.errors import ConfigError
from pocketclip.zoo.checks import checked
from pocketclip.zoo.configs import MCiConfig, ModelConfig, MoEConfig

TowerName = Literal["image", "text"]


def is_sparse(config: ModelConfig) -> bool:
    """Return whether a tower has mixtures of experts."""
    return dense_config(config) != config


def dense_config(config: ModelConfig) -> ModelConfig:
    """Return the configuration with MLPs in place of mixtures of experts."""
    image = config.image
    if not isinstance(image, MCiConfig):
        image = replace(image, moe=None)
    return replace(config, image=image, text=replace(config.text, moe=None))


def mixtures(config: ModelConfig) -> dict[TowerName, MoEConfig | None]:
    """Return each tower's mixtures of experts; None for a dense tower."""
    image = None if isinstance(config.image, MCiConfig) else config.image.moe
    return {"image": image, "text": config.text.moe}


def describe(config: ModelConfig) -> str:
    """Return a model's name for people, and what makes it sparse if it is.

    A sparse model keeps the name of the dense one that it was made from, which would pass it off as
    that model.
    """
    parts = [
        (tower, f"{moe.top_k} of {moe.experts} experts")
        for tower, moe in mixtures(config).items()
        if moe is not None
    ]
    if not parts:
        return config.name
    kinds = dict.fromkeys(kind for _, kind in parts)
    if len(parts) == 2 and len(kinds) == 1:
        return f"{config.name}, sparse ({parts[0][1]})"
    return f"{config.name}, sparse ({'; '.join(f'{tower}: {kind}' for tower, kind in parts)})"


def sparse_config(
    config: ModelConfig,
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: str | Sequence[int] = "every-2",
    towers: Sequence[TowerName] = ("image", "text"),
) -> ModelConfig:
    """Return the configuration of the sparse model that a dense one becomes.

    An MCi image tower stays dense, since it has no transformer blocks: its MLPs contain
    convolutions over neighbouring positions.

    Args:
        config: of a dense model.
        experts: number of experts per mixture, 2 or more, each as large as the dense MLP.
        top_k: number of experts that process a token.
        layers: the blocks of each tower to change: `every-N` is each N-th, and never the first;
            `last-N` are the last ones; or their numbers, from 0, as a sequence or as `1,3,5`.
        towers: `image`, `text` or both.

    Raises:
        ConfigError: the model is sparse already, a tower has no such blocks or no transformer
            blocks at all, or `top_k` is more than `experts`.
    """
    if is_sparse(config):
        raise ConfigError(
            f"{config.name} has mixtures of experts already; give the dense model, or train this "
            "one as it is"
        )
    if experts < 2:
        raise ConfigError(f"experts must be 2 or more, not {experts}: one MLP is the dense model")
    if not towers or not set(towers) <= {"image", "text"}:
        raise ConfigError(f"towers must be `image`, `text` or both, not {list(towers)}")
    image, text = config.image, config.text
    if "image" in towers:
        if not isinstance(image, MCiConfig):
            blocks = _choose_blocks(layers, image.layers, "image")
            image = replace(image, moe=MoEConfig(blocks=blocks, experts=experts, top_k=top_k))
        elif "text" not in towers:
            raise ConfigError(
                f"the image tower of {config.name} is convolutional (MCi) and has no transformer "
                "blocks that could become mixtures; choose the text tower, or a model with a "
                "vision transformer"
            )
    if "text" in towers:
        blocks = _choose_blocks(layers, text.layers, "text")
        text = replace(text, moe=MoEConfig(blocks=blocks, experts=experts, top_k=top_k))
    return checked(replace(config, image=image, text=text))


def _choose_blocks(layers: str | Sequence[int], count: int, tower: TowerName) -> tuple[int, ...]:
    """Return the numbers of the blocks that `layers` names in a tower of `count` blocks."""
    has = f"the {tower} tower has {count} transformer block{'' if count == 1 else 's'}"
    blocks: Sequence[int]
    rule, _, number = layers.partition("-") if isinstance(layers, str) else ("", "", "")
    if rule in ("every", "last") and re.fullmatch("[1-9][0-9]{0,5}", number):
        step = int(number)
        blocks = range(max(step - 1, 1), count, step)
        if rule == "last":
            blocks = range(count - step, count)
            if step >= count:
                raise ConfigError(
                    f"layers {layers}: {has}, and the first stays dense; choose last-{count - 1} "
                    "or fewer, or name the blocks one by one"
                    if count > 1
                    else f"layers {layers}: {has}, and the first stays dense; choose the other "
                    "tower only, or name block 0"
                )
        if not blocks:
            raise ConfigError(
                f"layers {layers} names no block: {has}, and the first stays dense; choose another "
                "rule, the other tower only, or name the blocks one by one"
            )
        return tuple(blocks)
    try:
        blocks = [
            _number(one) for one in (layers.split(",") if isinstance(layers, str) else layers)
        ]
    except (TypeError, ValueError):
        raise ConfigError(
            f"layers must be every-N, last-N or numbers such as 1,3,5, not {layers!r}"
        ) from None
    wrong = [block for block in blocks if not 0 <= block < count]
    if wrong:
        raise ConfigError(f"there is no block {wrong[0]}: {has}, 0 to {count - 1}")
    if not blocks:
        raise ConfigError("layers names no block")
    return tuple(sorted(set(blocks)))


def _number(value: object) -> int:
    """Return the number of a block.

    Raises:
        TypeError: it is neither an integer nor a text.
        ValueError: the text is not an integer's, in the digits 0 to 9.
    """
    if isinstance(value, str):
        if not re.fullmatch(r"\s*-?[0-9]+\s*", value):
            raise ValueError
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value
