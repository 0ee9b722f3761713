"""The feature maps of an image tower as an ONNX graph of several outputs, for images of any size.

    write_features(weights, config, Path("features.onnx"))

The graph has the maps of `pocketclip.feature_maps` and the tokens as outputs by name, and computes
what `features` and `tokens` of the towers in torch do.

Shapes: B batch, C channels, H W height width, N tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pocketclip import zoo
from pocketclip.feature_maps import TOKENS, feature_maps, token_width, total_stride
from pocketclip.graph import convolution, image, layers
from pocketclip.graph.ports import describe_port
from pocketclip.graph.tower import Tower
from pocketclip.graph.transformer import run_blocks
from pocketclip.graph.writer import GraphWriter, StoredArrays
from pocketclip.types import Arrays


def write_features(
    weights: Arrays,
    config: zoo.ModelConfig,
    path: Path,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    stored: StoredArrays | None = None,
) -> dict[str, Any]:
    """Write the graph and, beside it, the weights that no other file in the folder holds.

    The input is `pixels`, float32 (B, 3, H, W), preprocessed.

    Args:
        weights: of the model under our names, fused or not.
        config: of the model.
        path: the file to write.
        precision: as in `pocketclip.graph.build.write_tower`.
        stored: the arrays of the image tower, which lies in the same folder.

    Returns:
        The entry `features` in `bundle.json`.

    Raises:
        ExportError, KeyError, OSError: as in `pocketclip.graph.build.write_tower`.
    """
    graph = GraphWriter(path, "image_features", half=precision == "fp16", stored=stored)
    is_mci = isinstance(config.image, zoo.MCiConfig)
    try:
        tower = Tower(graph=graph, weights=weights, fused=True)
        pixels = graph.input("pixels", np.float32, ["batch", 3, "height", "width"])
        names = _mci(tower, pixels, config) if is_mci else _vit(tower, pixels, config)
        maps = feature_maps(config.image)
        outputs = []
        for about in maps:
            axes = [f"{about.name}_height", f"{about.name}_width"]
            graph.output(about.name, names[about.name], ["batch", about.channels, *axes])
            shape = [None, about.channels, None, None]
            outputs.append({**describe_port(about.name, "float32", shape), "stride": about.stride})
        graph.output(TOKENS, names[TOKENS], ["batch", "tokens", token_width(config)])
        tokens = describe_port(TOKENS, "float32", [None, None, token_width(config)])
        graph.save()
    finally:
        graph.close()
    return {
        "file": path.name,
        "input": describe_port("pixels", "float32", [None, 3, None, None]),
        "maps": outputs,
        "tokens": tokens,
        "multiple_of": 1 if is_mci else total_stride(config.image),
    }


def _mci(tower: Tower, x: str, config: zoo.ModelConfig) -> dict[str, str]:
    assert isinstance(config.image, zoo.MCiConfig)
    width = config.image.widths[-1]
    maps = [*image.mci_maps(tower, x, config.image)]
    names = {m.name: maps[m.index] for m in feature_maps(config.image)}
    x = convolution.rep_conv(tower, maps[-1], "image.expand", groups=width)
    shape = tower.graph.constant([0, 2 * width, -1])
    x = tower.graph.node("Reshape", [x, shape], "image/flat")
    return {**names, TOKENS: tower.graph.node("Transpose", [x], "image/tokens", perm=[0, 2, 1])}


def _vit(tower: Tower, x: str, config: zoo.ModelConfig) -> dict[str, str]:
    assert isinstance(config.image, zoo.ViTConfig)
    graph, vit = tower.graph, config.image
    patches = image.vit_stem(tower, x, vit)
    shape = graph.node("Shape", [patches], "image/shape")
    x, blocks = image.vit_states(tower, patches, vit, shape), image.vit_blocks(vit)
    chosen = {m.index: m.name for m in feature_maps(vit)}
    names = {}
    for index, path in enumerate(blocks.paths):
        x = run_blocks(tower, x, replace(blocks, paths=(path,)))
        if index in chosen:
            rows = graph.node(
                "Transpose", [_without_class(tower, x)], f"{path}/channels", perm=[0, 2, 1]
            )
            names[chosen[index]] = graph.node("Reshape", [rows, shape], f"{path}/map")
    if vit.pool_queries is None:
        x = _without_class(tower, x)
    else:
        queries = slice(1, None)
        x = image.attention_pool(tower, x, config.embed_dim, vit.pool_heads, queries)
    norm = layers.layer_norm(graph, x, "image.norm", tower.affine("image.norm"), vit.eps)
    return {**names, TOKENS: norm}


def _without_class(tower: Tower, x: str) -> str:
    graph = tower.graph
    first, last, axis = (graph.constant([i]) for i in (1, 2**31 - 1, 1))
    return graph.node("Slice", [x, first, last, axis], f"{x}/patches")
