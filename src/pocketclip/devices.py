"""Devices and dtypes: resolves names such as `auto` for this machine."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketclip.errors import ConfigError, MissingDependencyError, first_line, how_to_install

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]
MAX_THREADS = 1024
"""Limit on threads: more can exhaust the machine, and no processor has so many cores."""

# Dense products of matrices in 16 bits (summed in 32) and in TF32, in 10^12 operations per second:
# NVIDIA's data sheets of each, without sparsity; for GeForce its whitepapers on Ampere GA102 and
# Ada, appendix A. Cards that run at other clocks (laptops, slices of a GPU) do not match.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    (r"H200 NVL", 835.5, 417.5),
    (r"H200", 989.5, 494.5),
    (r"H100 NVL", 835.5, 417.5),
    (r"H100 PCIe", 756.0, 378.0),
    (r"H100 80GB HBM3", 989.5, 494.5),
    (r"A100[ -].*", 312.0, 156.0),
    (r"L40S", 362.05, 183.0),
    (r"L4", 121.0, 60.0),
    (r"A10", 125.0, 62.5),
    (r"GeForce RTX 4090", 165.2, 82.6),
    (r"GeForce RTX 3090", 71.0, 35.6),
)


def resolve_device(device: str) -> torch.device:
    """Return the torch device for a name such as `cpu`, `cuda:1` or `auto`.

    `auto` is a CUDA device if there is one, else Apple's `mps`, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
        MissingDependencyError: torch is not installed.
    """
    torch = need_torch()
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch's message may list all of its backends in up to 2,000 characters.
        reason = first_line(error).partition(". ")[0]
        detail = f" ({reason})" if len(reason) <= 100 else ""
        raise ConfigError(f"no device {device!r} here{detail}; try cpu or auto") from error
    return resolved


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; `auto` is bfloat16 if the device supports it natively.

    Raises:
        ConfigError: the precision is unknown.
    """
    torch = need_torch()
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    if precision not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"precision is auto, float32, bfloat16 or float16, not {precision!r}")
    return getattr(torch, precision)


def peak_operations(name: str, precision: str) -> float | None:
    """Return the operations per second that a GPU reaches at most, by its data sheet.

    Args:
        name: the device's, as torch gives it.
        precision: the dtype to compute in; `float32` means TF32, in which torch computes
            convolutions by default.

    Returns:
        None for a device whose peak is not known here.
    """
    for pattern, half, tf32 in _PEAKS:
        if re.fullmatch(rf"NVIDIA {pattern}", name) and "MIG" not in name:
            return (tf32 if precision == "float32" else half) * 1e12
    return None


def check_threads(count: int | None) -> None:
    """Refuse an unreasonable number of threads.

    Raises:
        ConfigError: `count` is above 1,024.
        ValueError: `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    if count is not None and count > MAX_THREADS:
        raise ConfigError(
            f"threads is {count:,}; the maximum is {MAX_THREADS:,}, and the number of cores "
            f"({cores()}) is usually the best"
        )


def set_threads(count: int) -> None:
    """Set the number of CPU threads that torch uses in this process.

    Raises:
        ConfigError, ValueError: see `check_threads`.
        MissingDependencyError: torch is not installed.
    """
    check_threads(count)
    need_torch().set_num_threads(count)


def _has_bfloat16(device: torch.device) -> bool:
    torch = need_torch()
    if device.type == "cuda":
        # Native on AMD GPUs and on NVIDIA GPUs since Ampere; emulated, slowly, on older ones.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bfloat16()


@functools.lru_cache(maxsize=1)
def _cpu_has_bfloat16() -> bool:
    # torch's own checks differ between versions, and there is none for ARM.
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
    return has_bfloat16_flag(text)


def has_bfloat16_flag(cpuinfo: str) -> bool:
    """Return whether the text of /proc/cpuinfo lists bfloat16 arithmetic."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def is_installed(package: str) -> bool:
    """Return whether a package is installed; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook or a stand-in refuses
        return False


def has_torch() -> bool:
    """Return whether torch is installed; it is not imported."""
    return is_installed("torch")


def need_torch() -> Any:
    """Import and return torch.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"running models needs torch: {how_to_install('train')}"
        ) from error
    return torch


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
