"""Similarities of many vectors to a few queries, by numpy or by numkong.

numpy is fast with float32 only; with float16, as stored, it takes 5 to 15 times as long. numkong
(the kernels that usearch's exact search uses) reads float16: half the file, and on two cores about
as fast as numpy with float32. The engines' scores differ in the last digits; `error_bound` says by
how much, and `engines.search_matrix` computes those that matter again.

Shapes: N vectors, Q queries, D embedding.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.devices import cores
from pocketclip.errors import LibraryError, MissingDependencyError, how_to_install

NUMPY = "numpy"
NUMKONG = "numkong"
DTYPES = {NUMPY: "<f4", NUMKONG: "<f2"}
"""What the vectors of an engine's matrix are stored as."""
NUMPY_UP_TO = 200_000
"""The number of vectors up to which numpy is used where numkong is installed too."""
_THREADS = 4  # more wait for the memory
# Up to 20,000 vectors of 512 one thread takes 2 ms. Several are faster only on an idle machine: on
# a busy one they wait 20 ms for each other.
_SMALL = 20_000 * 512
_Vectors = NDArray[Any]
log = logging.getLogger(__name__)


def choose_engine(engine: str | None, count: int) -> str:
    """Return the engine for a number of vectors.

    Args:
        engine: `numpy`, `numkong`, or None for the one that fits.
        count: the number of vectors.

    Raises:
        LibraryError: there is no such engine.
        MissingDependencyError: numkong is asked for and not installed, or does not work here.
    """
    if engine is None:
        return NUMKONG if count > NUMPY_UP_TO and _numkong() is not None else NUMPY
    if engine not in DTYPES:
        raise LibraryError(f"there is no engine {engine!r}: use {NUMPY} or {NUMKONG}")
    if engine == NUMKONG and _numkong() is None:
        raise MissingDependencyError(f"the engine numkong needs: {how_to_install('search')}")
    return engine


def dot_products(
    vectors: _Vectors, queries: NDArray[np.float32], engine: str
) -> NDArray[np.float32]:
    """Return the dot products (Q, N) of queries (Q, D), of at most unit length, with vectors."""
    if not len(vectors):
        return np.empty((len(queries), 0), np.float32)
    is_small = vectors.size <= _SMALL
    if engine == NUMPY:
        if is_small and len(queries) == 1:
            return np.asarray(np.einsum("nd,d->n", vectors, queries[0])[None], np.float32)
        return np.asarray(queries @ vectors.T, np.float32)
    out = np.empty((len(vectors), len(queries)), np.float32)
    # With results in float32 it computes up to four queries in the time of one, and uses threads.
    threads = 1 if is_small else min(cores(), _THREADS)
    _numkong().cdist(vectors, queries.astype(np.float16), "dot", out=out, threads=threads)
    return out.T


def error_bound(queries: NDArray[np.float32], engine: str, longest: float) -> NDArray[np.float64]:
    """Return how far `dot_products` can be from the exact ones, at most, (Q,).

    Args:
        queries: (Q, D), of at most unit length.
        engine: the engine.
        longest: the length of the longest vector.
    """
    # Rounding of D float32 products and sums in any order; twice that for what comes before and
    # after, such as a query's own rounding.
    rounding = 2 * (queries.shape[1] + 2) * 2.0**-24
    bound = np.full(len(queries), rounding)
    if engine == NUMKONG:
        lost = queries.astype(np.float64) - queries.astype(np.float16)
        bound += np.linalg.norm(lost, axis=1)
    return bound * longest


@functools.cache
def _numkong() -> Any:
    """Return the module, or None if it is not installed or computes something else."""
    try:
        import numkong
    except ImportError:
        return None
    try:
        return numkong if _is_right(numkong) else None
    except Exception as error:
        log.warning("numkong does not work here (%s): numpy is used", error)
        return None


def _is_right(numkong: Any) -> bool:
    rows = np.random.default_rng(0).uniform(-0.3, 0.3, (67, 83)).astype(np.float16)
    out = np.empty((67, 2), np.float32)
    numkong.cdist(rows, rows[:2].copy(), "dot", out=out)
    right = bool(np.allclose(out, rows.astype(np.float64) @ rows[:2].astype(np.float64).T, 0, 1e-4))
    if not right:
        log.warning("numkong %s computes wrong values here: numpy is used", numkong.__version__)
    return right
