"""Print the lowest version of each package that the base install accepts, as pip's constraints.

    python tests/lowest.py > lowest.txt && pip install -c lowest.txt .

They are taken from pyproject.toml, so that the tests cover what is declared.
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


def toml() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads(PYPROJECT.read_text("utf-8"))


def base_requirements() -> list[Requirement]:
    """Return the requirements of the base install, for the Python that runs this."""
    declared = map(Requirement, toml()["project"]["dependencies"])
    return [one for one in declared if one.marker is None or one.marker.evaluate()]


def lowest(requirements: Iterable[Requirement]) -> list[str]:
    """Return `name==version` per requirement.

    Raises:
        ValueError: a requirement has no lowest version.
    """
    pins = []
    for one in requirements:
        floors = [part.version for part in one.specifier if part.operator == ">="]
        if len(floors) != 1:
            raise ValueError(f"{one}: declare the lowest version, as in {one.name}>=1.2")
        pins.append(f"{one.name}=={floors[0]}")
    return pins


if __name__ == "__main__":
    print(*lowest(base_requirements()), sep="\n")
