"""Writing parquet files, with pyarrow.

pa, parquet = import_pyarrow()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import MissingDependencyError, how_to_install
from pocketclip.formats.escaping import escape_surrogates

PREFIX = "pocketclip."
"""Of the keys of facts in a file's metadata."""


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


def vector_table(
    before: Mapping[str, Sequence[str]],
    vectors: NDArray[Any],
    after: Mapping[str, Sequence[str]],
    facts: Mapping[str, Any],
) -> Any:
    """Return a table with a column `embedding`, and facts in its metadata.

    Bytes of a text that are not UTF-8, and so are lone surrogates, become six characters.

    Args:
        before: columns of N texts by name, in front of the vectors.
        vectors: (N, D), in the dtype to store.
        after: further columns.
        facts: what is known of the vectors; the keys get a prefix.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pa, _ = import_pyarrow()
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    rows = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    columns = {
        name: column
        if name == "embedding"
        else pa.array([escape_surrogates(text) for text in column], pa.string())
        for name, column in {**before, "embedding": rows, **after}.items()
    }
    stored = {f"{PREFIX}{key}": escape_surrogates(str(value)) for key, value in facts.items()}
    return pa.table(columns).replace_schema_metadata(stored)
