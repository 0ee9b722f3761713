"""Print the lowest version of each package that the base install accepts, as pip's constraints.

    python tests/lowest.py > lowest.txt && pip install -c lowest.txt .

They are taken from pyproject.toml, so that what is declared is what is tested.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def base_requirements() -> list[Requirement]:
    """Return what the base install declares, for the Python that runs this."""
    declared = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["dependencies"]
    found = map(Requirement, declared)
    return [one for one in found if one.marker is None or one.marker.evaluate()]


def lowest(requirements: Iterable[Requirement]) -> list[str]:
    """Return `name==version` per requirement.

    Raises:
        ValueError: one does not say its lowest version.
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
