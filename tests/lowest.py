"""Print the lowest version of each package that the base install accepts, as pip's constraints.

    python tests/lowest.py [3.13] > lowest.txt && pip install -c lowest.txt .

They are taken from pyproject.toml, so that the tests cover what is declared. Python 3.13 is younger
than some of them: there, the first version with a wheel for it counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
FIRST_WHEELS = {
    (3, 13): {
        "numpy": "2.1.0",
        "onnxruntime": "1.20.0",
        "pillow": "10.4.0",
        "safetensors": "0.4.4",
        "tokenizers": "0.20.2",
    },
}


def toml() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads(PYPROJECT.read_text("utf-8"))


def base_requirements() -> list[Requirement]:
    """Return the requirements of the base install, for the Python that runs this."""
    declared = map(Requirement, toml()["project"]["dependencies"])
    return [one for one in declared if one.marker is None or one.marker.evaluate()]


def lowest(
    requirements: Iterable[Requirement], python: tuple[int, int] = sys.version_info[:2]
) -> list[str]:
    """Return `name==version` per requirement, for a version of Python.

    Raises:
        ValueError: a requirement has no lowest version.
    """
    pins = []
    for one in requirements:
        floors = [part.version for part in one.specifier if part.operator == ">="]
        if len(floors) != 1:
            raise ValueError(f"{one}: declare the lowest version, as in {one.name}>=1.2")
        version = FIRST_WHEELS.get(python, {}).get(one.name, floors[0])
        pins.append(f"{one.name}=={version}")
    return pins


if __name__ == "__main__":
    version = tuple(map(int, sys.argv[1].split("."))) if sys.argv[1:] else sys.version_info
    print(*lowest(base_requirements(), (version[0], version[1])), sep="\n")
