"""The processor that a benchmark runs on: figures mean nothing without its name."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from pocketclip.devices import has_bfloat16_flag

CPUINFO = Path("/proc/cpuinfo")


def describe_processor(cpuinfo: str | None = None) -> dict[str, Any]:
    """Return the processor's name, and whether it has what fast models of fewer bits need.

    Where the system does not say what it has, as outside Linux, the answers are None.

    Args:
        cpuinfo: the text of /proc/cpuinfo; None: this machine's.
    """
    if cpuinfo is None:
        cpuinfo = CPUINFO.read_text("utf-8", "replace") if CPUINFO.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    facts: dict[str, Any] = {
        "name": name[1] if name else platform.processor() or platform.machine(),
        "simd": [],
        "bf16": None, "vnni": None, "amx": None,
    }  # fmt: skip
    if found:
        flags = set(found[1].split())
        facts["simd"] = [flag for flag in ("avx2", "avx512f", "asimd") if flag in flags]
        # `asimddp` is the dot product of 8-bit integers on Arm.
        facts["bf16"] = has_bfloat16_flag(cpuinfo)
        facts["vnni"] = bool(flags & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimddp"})
        facts["amx"] = bool(flags & {"amx_tile", "amx_int8", "amx_bf16"})
    return facts
