"""Repeating what failed for a reason that may pass, a bounded number of times."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 5
"""How often something is tried in all."""
RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status of answers that may be better the next time."""
_T = TypeVar("_T")


def pause_after(attempt: int) -> float:
    """Return the seconds to wait after the failed attempt of this number, from 0: 0.1 to 2.7.

    They differ by up to a third, so that processes that failed together do not come back together.
    """
    return float(0.1 * 3**attempt * random.uniform(2 / 3, 4 / 3))


def patiently(
    call: Callable[[], _T],
    may_pass: Callable[[Exception], bool],
    *,
    pause: Callable[[Exception, int], float] = lambda _, attempt: pause_after(attempt),
) -> _T:
    """Return what `call` returns; it is repeated after errors that may pass.

    Args:
        call: called up to `ATTEMPTS` times.
        may_pass: whether to try again after an error.
        pause: the seconds to wait after an error and the number of its attempt, from 0.

    Raises:
        Exception: the error of the last attempt, or one that does not pass.
    """
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            if attempt + 1 >= ATTEMPTS or not may_pass(error):
                raise
            time.sleep(pause(error, attempt))
        attempt += 1
