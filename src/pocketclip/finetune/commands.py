"""The commands that a fine-tuning says to go on with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketclip.finetune import presets
from pocketclip.finetune.finetune_run import DATA
from pocketclip.finetune.tables import VALIDATION
from pocketclip.pipeline_folder import MODEL

_COLUMNS = ("images.image_column", "images.label_column", "images.caption_column")
_VALUES = {
    **{name: name.removeprefix("images.").replace("_", "-") for name in _COLUMNS},
    "images.classes_file": "classes-file", "images.templates": "template", "teachers": "teacher",
    "captioner": "captioner", "share": "validation", "retain": "retain", "keep": "keep",
}  # fmt: skip
"""Settings that are options with a value, or with several."""


def next_commands(result: Mapping[str, Any]) -> list[str]:
    """Return commands to go on with: score, export, and if the start itself won, two other ways."""
    out = Path(result["out"])
    model, data = shlex.quote(str(out / MODEL)), shlex.quote(str(out / DATA / VALIDATION))
    commands = [f"pocketclip eval {model} --data {data}"]
    if not result["exports"]:
        bundle = shlex.quote(str(out / "onnx"))
        commands.append(f"pocketclip export {model} --format onnx --out {bundle}")
    if result["candidates"][0]["chosen"]:
        settings = result["settings"]
        start, source = shlex.quote(result["model"]), shlex.quote(result["data"])
        slower = f"optimizer.lr={result['training']['lr'] / 3:.1g}"
        options = "".join(f" {option}" for option in _options(settings, slower))
        commands.append(
            f"pocketclip finetune {start} --data {source}{options} --out "
            f"{shlex.quote(str(out) + '-slower')}"
        )
        column = settings["images.label_column"]
        others = [name for name in settings if name.startswith("images.") and settings[name]]
        if result["task"] == "labels" and set(others) <= {"images.label_column", "images.split"}:
            by = f" --label-column {shlex.quote(column)}" if column else ""
            commands.append(f"pocketclip fit {source}{by} --model {start} --out labels.json")
    return commands


def _options(settings: Mapping[str, Any], last: str) -> Iterator[str]:
    """Yield the options of the same fine-tuning with another field of the train recipe."""
    for name, option in _VALUES.items():
        value = settings[name]
        for one in value if isinstance(value, (list, tuple)) else [value] * (value is not None):
            yield f"--{option} {shlex.quote(str(one))}"
    for column, value in settings["images.where"]:
        yield f"--where {shlex.quote(f'{column}={value}')}"
    if settings["unlabelled"]:
        yield "--unlabelled"
    yield f"--preset {settings['preset']}"
    for name, usual in (("steps", None), ("views", presets.VIEWS), ("seed", 0)):
        if settings[name] != usual:
            yield f"--{name} {settings[name]}"
    for name in ("rate_trials", "self_distillation", "interpolation"):
        if not settings[name]:
            yield f"--no-{name.replace('_', '-')}"
    changed = [
        f"{name}={json.dumps(value)}"
        for name, value in settings["settings"].items()
        if name != "optimizer.lr"
    ]
    for field in (*changed, last):
        yield f"--set {shlex.quote(field)}"
