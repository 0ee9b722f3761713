"""Check what a wheel and an sdist hold.

    python tests/distributions.py dist/*

The wheel has the package with its data and types, and nothing else. The sdist also has what the
tests, the documentation and `.ci/full` read.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "pocketclip"
SDIST = (
    "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt", "justfile",
    "mkdocs.yml", "pyproject.toml", ".ci/full", ".ci/run", ".github/workflows/ci.yml",
    "benchmarks/encode.py", "examples/own_images.py", "examples/photos/chelsea.jpg",
    "tests/conftest.py", "tests/golden/landing22/run/log.jsonl",
)  # fmt: skip


def package_files() -> set[str]:
    """Return the package's files, as the wheel is to name them."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    return {
        f"pocketclip/{path.relative_to(PACKAGE).as_posix()}"
        for path in files
        if "__pycache__" not in path.parts
    }


def problems(path: Path) -> list[str]:
    """Return what is missing from a distribution, and what does not belong into it."""
    expected = package_files()
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        return sorted(f"unexpected: {name}" for name in names - expected) + sorted(
            f"missing: {name}" for name in expected - names
        )
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"src/{name}" for name in expected} | set(SDIST)
    return sorted(f"missing: {name}" for name in wanted - names)


def main(paths: list[str]) -> int:
    """Print the problems of each file; return how many there are."""
    found = [f"{path}: {problem}" for path in paths for problem in problems(Path(path))]
    print(*found, sep="\n", end="\n" if found else "")
    return len(found)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
