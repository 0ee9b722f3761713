"""One tower of a model, written as ONNX from its configuration and its weights.

    write_tower(weights, config, "image", Path("image.onnx"))

Shapes: B batch, H W height and width of a photograph, S side, T tokens, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from pocketclip import zoo
from pocketclip.graph import layers
from pocketclip.graph.image import image_tower
from pocketclip.graph.ports import Kind, Port, tower_facts
from pocketclip.graph.preprocessing import resize_and_crop
from pocketclip.graph.text import text_tower
from pocketclip.graph.tower import Tower
from pocketclip.graph.writer import GraphWriter, StoredArrays
from pocketclip.types import Arrays

Pixels = Literal["preprocessed", "levels", "photo"]


def write_tower(
    weights: Arrays,
    config: zoo.ModelConfig,
    kind: Kind,
    path: Path,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    fuse: bool = True,
    pixels: Pixels = "preprocessed",
    normalize: bool = False,
    stored: StoredArrays | None = None,
) -> dict[str, Any]:
    """Write one tower and, beside it, its weights in `path`.data.

    The folder should be one that nothing reads yet (`pocketclip.storage.local.write_whole_folder`):
    an interruption leaves a part of the files.

    Args:
        weights: of the model under our names, fused or not; a mapping that reads at each access
            keeps one array in memory at a time.
        config: of the model.
        kind: which tower.
        path: the file to write.
        precision: `fp16` stores large weights in half the space, and computes in float32.
        fuse: fold branches, BatchNorm, layer scales and the input's scaling into the weights;
            otherwise each is computed by nodes of its own, as in training.
        pixels: the image tower's input: `preprocessed`, float32 (B, 3, S, S) as
            `pocketclip.preprocess` returns it; `levels` 0 to 255, float32 (B, 3, S, S); or `photo`,
            uint8 (B, H, W, 3) of any size, which the graph resizes and crops.
        normalize: return unit embeddings.
        stored: receives where the arrays are, for another graph in the same folder.

    Returns:
        The tower's entry in `bundle.json`.

    Raises:
        ExportError: a weight is not finite, or too large for float16.
        KeyError: the weights do not fit the configuration.
        OSError: the disk is full or the folder is not writable.
    """
    graph = GraphWriter(path, f"{kind}_tower", half=precision == "fp16", stored=stored)
    try:
        tower = Tower(graph=graph, weights=weights, fused=fuse)
        if kind == "image":
            shape: list[int | str] = ["batch", 3, config.image_size, config.image_size]
            dtype, name = "float32", "pixels"
            if pixels == "photo":
                shape, dtype, name = ["batch", "height", "width", 3], "uint8", "photo"
            x = graph.input(name, np.dtype(dtype), shape)
            if pixels == "photo":
                x = resize_and_crop(graph, x, config.preprocess)
            x = image_tower(tower, x, config, levels=pixels != "preprocessed")
        else:
            length = config.text.context_length
            shape = ["batch", "tokens" if config.text.ignores_padding else length]
            dtype, name = "int64", "ids"
            x = text_tower(tower, graph.input(name, np.dtype(dtype), shape), config.text)
        if normalize:
            x = layers.unit_length(graph, x, f"{kind}/unit")
        output = f"{kind}_features"
        graph.output(output, x, ["batch", config.embed_dim])
        graph.save()
    finally:
        graph.close()
    free = [None if isinstance(size, str) else size for size in shape]
    return tower_facts(
        path.name,
        Port(name, dtype, free),
        Port(output, "float32", [None, config.embed_dim]),
        dynamic_batch=True,
    )
