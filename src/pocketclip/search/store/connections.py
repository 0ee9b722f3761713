"""SQLite's connections to one file: every thread has its own.

A connection that a thread uses must not be closed by another one: that ends the process. In a
forked process, those of its parent must be neither used nor closed: closing can remove the log that
the parent writes to.
"""

from __future__ import annotations

import contextlib
import ctypes
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator


class Connections:
    """The connections of the threads of a process.

    Args:
        connect: returns a new connection.
        closed: returns the error for a use after `close`.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], closed: Callable[[], Exception]
    ) -> None:
        self._connect, self._closed_error = connect, closed
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._guard = threading.Lock()
        self._own = threading.local()
        self._all: weakref.WeakSet[_Held] = weakref.WeakSet()

    @property
    def are_closed(self) -> bool:
        """Whether all are closed, for good."""
        return self._closed and not self._all

    def own(self) -> sqlite3.Connection:
        """Return this thread's connection; to be used within `using`."""
        return self._held().connection

    def _held(self) -> _Held:
        held: _Held | None = getattr(self._own, "held", None)
        if held is None or held.is_closed:
            if self._closed:
                raise self._closed_error()
            held = _Held(self._connect())
            with self._guard:
                self._own.held = held
                self._all.add(held)
        return held

    @contextlib.contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection, which no other thread closes meanwhile."""
        held = self._held()
        with self._guard:
            if self._closed and not held.uses:
                self._close(held)
                raise self._closed_error()
            held.uses += 1
        try:
            yield held.connection
        finally:
            with self._guard:
                held.uses -= 1
                if self._closed and not held.uses:
                    self._close(held)

    def _close(self, held: _Held) -> None:
        self._all.discard(held)
        held.close()

    def close(self) -> None:
        """Close all; one that is in use, when its thread is done with it."""
        with self._guard:
            self._closed = True
            for held in list(self._all):
                if not held.uses:
                    self._close(held)

    def leave_to_parent(self) -> None:
        """Begin without connections, in a forked process; its parent's stay open, unused."""
        for held in list(self._all):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        self._begin()


class _Held:
    """A thread's connection, which is closed when the thread ends."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.uses = 0
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    __del__ = close
