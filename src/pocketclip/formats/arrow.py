"""Writing parquet files, with pyarrow.

pa, parquet = import_pyarrow()
"""

from __future__ import annotations

from typing import Any

from pocketclip.errors import MissingDependencyError, how_to_install


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its module of parquet.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"writing parquet needs pyarrow: {how_to_install('parquet')}"
        ) from error
    return pyarrow, pyarrow.parquet
