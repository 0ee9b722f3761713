"""How teachers and captioners are named on a command line, and where and how exactly they run.

mobileclip2-s0                        a zoo name, a checkpoint folder, a file or a hub id
vit-l14-quickgelu=openai.pt           a bare file, and the zoo model whose weights it holds
random:tiny:3                         random weights from seed 3, for trying things out
transformers:google/siglip-base-patch16-224
open_clip:ViT-L-14/datacomp_xl_s13b_b90k
datacomp=open_clip:ViT-L-14/datacomp_xl_s13b_b90k        any of these with a name of its own
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketclip import zoo
from pocketclip.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Kind = Literal["model", "random", "transformers", "open_clip"]

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A model as somebody asked for it."""

    kind: Kind
    target: str
    """A path, a zoo name or a hub id; with `random` the zoo name, with `open_clip` NAME/TAG."""
    model: str | None = None
    """The zoo name of a file that does not say itself which model it holds."""
    seed: int = 0
    label: str = ""
    """A short name for people; carries no folder."""


def parse(text: str) -> Spec:
    """Return what `text` asks for; the forms are in the module's docstring.

    Raises:
        ConfigError: `text` is in none of the forms.
        UnknownModelError: `random:` and no such model.
    """
    text = text.strip()
    if not text:
        raise ConfigError("no model given: a zoo name, a checkpoint or a hub id is wanted")
    if Path(text).exists():
        return Spec(kind="model", target=text, label=_stem(text))
    kind, colon, rest = text.partition(":")
    if colon and kind == "random":
        return _random(text, rest)
    if colon and kind in ("transformers", "open_clip"):
        if not rest:
            raise ConfigError(f"{text!r} does not say which model; {_FORMS[kind]}")
        label = _stem(rest) if Path(rest).exists() else rest.replace("//", "/")
        return Spec(kind=kind, target=rest, label=label)  # type: ignore[arg-type]
    name, equals, rest = text.partition("=")
    if not equals:
        return Spec(kind="model", target=text, label=text if not _is_path(text) else _stem(text))
    if not rest or not _LABEL.fullmatch(name):
        raise ConfigError(f"{text!r} is neither a model nor NAME=MODEL")
    # A model's name before a bare file says which model it holds; else it is only a label.
    if zoo.find(name) is not None and rest.partition(":")[0] not in ("random", *_FORMS):
        model = zoo.resolve(name)
        return Spec(kind="model", target=rest, model=model, label=f"{model}={_stem(rest)}")
    return replace(parse(rest), label=name)


_FORMS = {
    "transformers": "the form is transformers:ID or transformers:FOLDER",
    "open_clip": "the form is open_clip:NAME/PRETRAINED",
}


def _random(text: str, rest: str) -> Spec:
    name, _, seed = rest.partition(":")
    if not name or (seed and not seed.isdecimal()):
        raise ConfigError(f"{text!r}: the form is random:MODEL or random:MODEL:SEED")
    name, number = zoo.resolve(name), int(seed or 0)
    return Spec(kind="random", target=name, seed=number, label=f"random-{name}-{number}")


def _is_path(text: str) -> bool:
    return Path(text).suffix.lower() in (".pt", ".pth", ".bin", ".safetensors")


def _stem(path: str) -> str:
    # A folder may have a dot in its name, as in "clip-0.5".
    return Path(path).stem if _is_path(path) else Path(path).resolve().name


def place(device: str) -> torch.device:
    """Return the device of a name; `auto` is a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here.
        MissingDependencyError: torch is not installed.
    """
    torch = need_torch()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"no device {device!r} here ({reason}); try cpu or auto") from error
    return found


def number_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type to compute in; `auto` is bfloat16 where the device has it natively.

    Raises:
        ConfigError: no such precision.
    """
    torch = need_torch()
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    if precision not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"precision is auto, float32, bfloat16 or float16, not {precision!r}")
    return getattr(torch, precision)


def _has_bfloat16(device: torch.device) -> bool:
    torch = need_torch()
    if device.type == "cuda":
        # From Ampere on, and AMD's; before that it is emulated, slowly.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bfloat16()


@functools.lru_cache(maxsize=1)
def _cpu_has_bfloat16() -> bool:
    # torch's own questions differ between versions, and there is none for ARM.
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
    return has_bfloat16_flag(text)


def has_bfloat16_flag(cpuinfo: str) -> bool:
    """Return whether Linux's description of a processor lists bfloat16 arithmetic."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def need_torch() -> Any:
    """Return the module torch.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            'teachers and captioners need torch: pip install "pocketclip[train]"'
        ) from error
    return torch
