"""Write the weight files of a golden case, in every form that is published.

    python -m tests.graph.golden_files openclip.MobileCLIP2-S0 FOLDER [--half]

Torch writes them, so that `base_golden`, in an install without torch, reads what torch wrote.
`files.json` beside them says what each file is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pocketclip import zoo
from pocketclip.checkpoint import names as naming
from pocketclip.checkpoint.names import Naming
from tests.golden_values import COCA, TAGS, values

Arrays = Mapping[str, np.ndarray[Any, Any]]
# The image projection's bias, which Apple's naming has no place for.
BIAS = "visual.trunk.head.fc.bias"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tag", choices=[*TAGS, COCA])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", action="store_true")
    arguments = parser.parse_args()
    write_files(arguments.tag, arguments.folder, half=arguments.half)


def write_files(tag: str, folder: Path, *, half: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    native: Naming = "apple" if tag.startswith("apple.") else "openclip"
    forms = {native: values(tag).weights()}
    config = zoo.entry(zoo_name(tag)).config
    other = in_apples_names(forms[native], config) if native == "openclip" else None
    if other is not None:
        forms["apple"] = other
    files = []
    for convention, arrays in forms.items():
        state = {name: torch.from_numpy(value) for name, value in arrays.items()}
        _write(state, folder / f"{convention}.pt")
        _write(state, folder / f"{convention}.safetensors")
        files += [
            {"file": f"{convention}{suffix}", "naming": convention, "dtype": "float32"}
            for suffix in (".pt", ".safetensors")
        ]
    if half:
        for dtype, suffix in ((torch.float16, ".pt"), (torch.bfloat16, ".safetensors")):
            state = {
                name: torch.from_numpy(value).to(dtype if value.dtype == np.float32 else None)
                for name, value in forms[native].items()
            }
            name = f"{str(dtype).removeprefix('torch.')}{suffix}"
            _write(state, folder / name)
            files.append({"file": name, "naming": native, "dtype": name.removesuffix(suffix)})
    facts = {"tag": tag, "files": files}
    (folder / "files.json").write_text(json.dumps(facts), "utf-8")


def zoo_name(tag: str) -> str:
    return "coca-vit-b32" if tag == COCA else TAGS[tag]


def in_apples_names(arrays: Arrays, config: zoo.ModelConfig) -> Arrays | None:
    """Return open_clip's entries in Apple's names, without the bias of the image projection.

    None if Apple's naming does not have such a model, or has it with a padded stem, which changes
    its embeddings.
    """
    config = zoo.override(config, image={"head_bias": False}) if BIAS in arrays else config
    if naming.unsupported_reason(config, "apple") is not None:
        return None
    theirs = naming.map_entries(config, "openclip")
    ours = {name: entry.to_own(arrays[entry.name]) for name, entry in theirs.items()}
    assert arrays.keys() - {entry.name for entry in theirs.values()} <= {BIAS}
    apples = naming.map_entries(config, "apple")
    return {
        entry.name: ours[name].T if entry.transposed else ours[name].reshape(entry.shape)
        for name, entry in apples.items()
    }


def _write(state: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".pt":
        torch.save(state, path)  # transposed tensors keep their strides
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, path)


if __name__ == "__main__":
    main()
