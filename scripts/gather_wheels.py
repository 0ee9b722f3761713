"""Gather the wheels that `benchmarks/gpu.py` needs on a machine without a package index.

    python scripts/gather_wheels.py wheels --python 3.12

The machine has torch, numpy and Pillow. pip downloads the other packages for 64-bit Linux, and
their sizes are printed: with the source they should stay below 64 MB. `--peers` adds open_clip and
timm, which need a torchvision that fits the machine's torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WITH_REQUIREMENTS = ("ftfy", "pydantic", "pyyaml", "safetensors", "tokenizers")
ALONE = ("simplejpeg",)  # it requires numpy, which the machine has
PEERS = ("open_clip_torch", "regex", "timm")  # torchvision: the machine's, or none
GLIBC = ("_2_28", "_2_17", "2014", "1")
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def pip_download(folder: Path, python: str) -> list[str]:
    """Return the command that downloads wheels for another machine; names follow."""
    platforms = (word for tag in GLIBC for word in ("--platform", f"manylinux{tag}_x86_64"))
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, "--dest", str(folder), *platforms,
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Download, and print the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    parser.add_argument("--peers", action="store_true", help="also open_clip and timm")
    options = parser.parse_args(arguments)
    alone = [*ALONE, *(PEERS if options.peers else ())]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        lines = CONSTRAINTS.read_text("utf-8").splitlines()
        constraints.write("\n".join(line for line in lines if not line.startswith("torch")))
        constraints.flush()
        for names in (
            ["--constraint", constraints.name, *WITH_REQUIREMENTS],
            ["--no-deps", *alone],
        ):
            subprocess.run([*pip_download(options.folder, options.python), *names], check=True)
    total = 0
    for wheel in sorted(options.folder.glob("*.whl")):
        total += wheel.stat().st_size
        print(f"{wheel.stat().st_size / 1e6:8.2f} MB  {wheel.name}")
    print(f"{total / 1e6:8.2f} MB  together")


if __name__ == "__main__":
    main()
