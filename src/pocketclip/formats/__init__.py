"""Files and text from elsewhere, read with limits and without running anything in them.

| module | reads |
|---|---|
| `lines` | lines of text |
| `json_text`, `yaml_text` | JSON and YAML documents |
| `fields` | fields of a loaded document, with their types checked |
| `tar` | tar archives |
| `npy` | numpy's arrays |
| `torch_file` | what `torch.save` writes; `torch_zip` its archives, `torch_pickle` its pickles |
| `safetensors_file` | the headers of `.safetensors` files |
| `stored_tensor` | the numbers of one tensor in a file |
| `image_metadata` | the metadata of an image file, without oversized parts |
| `lfs` | git-LFS pointers, which stand in for a file that was not downloaded |
| `escaping` | names, labels and captions, made safe to show and store |

The functions that read text can be imported from here too.
"""

from __future__ import annotations

from pocketclip.errors import one_line
from pocketclip.formats.fields import field, items, kind_of, reason_of, typed
from pocketclip.formats.json_text import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_MEMORY,
    digest_json,
    load_json,
    read_json,
    read_json_lines,
)
from pocketclip.formats.lines import MAX_LINES_MEMORY, load_lines, split_lines
from pocketclip.formats.yaml_text import (
    MAX_YAML_BYTES,
    MAX_YAML_NODES,
    dump_yaml,
    load_yaml,
    read_yaml,
)

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_LINES_MEMORY",
    "MAX_MEMORY",
    "MAX_YAML_BYTES",
    "MAX_YAML_NODES",
    "digest_json",
    "dump_yaml",
    "field",
    "items",
    "kind_of",
    "load_json",
    "load_lines",
    "load_yaml",
    "one_line",
    "read_json",
    "read_json_lines",
    "read_yaml",
    "reason_of",
    "split_lines",
    "typed",
]
