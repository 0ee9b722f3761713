"""What the base install costs: its size, and what a short command imports.

    python tests/base_facts.py BUNDLE PHOTO

In an install without torch. Sizes are the bytes of all files that pip lists, those in
`__pycache__` included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

LIMIT = 270e6
NOT_OURS = {"pip", "setuptools", "wheel"}
UNUSED = {
    "google", "huggingface_hub", "jinja2", "yaml", "ftfy", "wcwidth", "pydantic", "httpx",
    "requests", "tokenizers", "fsspec", "concurrent.futures.process", "sqlite3",
}  # fmt: skip
"""What `classify` on a bundle has no use for."""
PRINT_MODULES = (
    "import json, sys; from pocketclip.cli.main import main\n"
    "try: main()\n"
    "except SystemExit as error: assert not error.code, error.code\n"
    "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
)


def sizes() -> dict[str, int]:
    """Return the bytes of each installed package."""
    out = {}
    for package in distributions():
        files = {Path(str(file.locate())) for file in package.files or ()}
        size = sum(file.stat().st_size for file in files if file.is_file())
        out[package.metadata["Name"]] = size
    return out


def modules(*command: str) -> set[str]:
    """Return the modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_MODULES, *command], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def main(bundle: str, photo: str) -> None:
    packages = {name: size for name, size in sizes().items() if name.lower() not in NOT_OURS}
    for name, size in sorted(packages.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:7.1f} MB  {name}")
    total = sum(packages.values())
    print(f"{total / 1e6:7.1f} MB  in all")
    assert total < LIMIT, f"the base install is {total / 1e6:.0f} MB"
    imported = modules("classify", photo, "--labels", "a cat,a dog", "--model", bundle)
    assert "onnxruntime" in imported
    assert not imported & UNUSED, f"classify imports {sorted(imported & UNUSED)}"


if __name__ == "__main__":
    main(*sys.argv[1:])
