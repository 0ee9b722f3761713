"""The folder that one job writes a set of shards to: claimed for it, then finished.

folder = OutputFolder(path="out", state="join.json", job="join")
finished = folder.finished(identity)  # the report of an earlier run, or None
folder.claim(identity)
folder.finish(identity, report)
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.formats.json_text import load_json


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The folder of one kind of job."""

    path: str
    """A local folder, or one of an object store."""
    state: str
    """Name of the file that says for what the folder is claimed, and holds the report."""
    job: str
    """What the job is called, for messages."""
    others: tuple[str, ...] = ()
    """Endings of the files that a new folder may not hold; empty: it must be empty."""

    def finished(self, identity: str) -> dict[str, Any] | None:
        """Return the report if this job is finished, or None if it is not.

        Args:
            identity: a hash of everything that decides the result.

        Raises:
            DataError: the folder holds another job's files.
            StorageError: it cannot be written to.
        """
        path = storage.join(self.path, self.state)
        storage.remove_abandoned(self.path)
        state: dict[str, Any] = {}
        if storage.exists(path):
            with contextlib.suppress(ValueError):
                state = load_json(storage.read_bytes(path), what=path, surrogates=True)
        elif files := storage.list_files(self.path, self.others):
            raise DataError(
                f"{self.path} holds files that no {self.job} wrote ({files[0]}): choose another "
                "--out"
            )
        if state and state.get("config_hash") != identity:
            raise DataError(
                f"{self.path} holds a {self.job} of other sets or settings: choose another --out, "
                "or delete it"
            )
        report: dict[str, Any] | None = state.get("report")
        return report

    def claim(self, identity: str) -> None:
        """Record what the folder is for, so that no other job writes there."""
        self._write(identity, None)

    def finish(self, identity: str, report: dict[str, Any]) -> None:
        """Record that the job is finished."""
        self._write(identity, report)

    def _write(self, identity: str, report: dict[str, Any] | None) -> None:
        text = json.dumps({"config_hash": identity, "report": report}, ensure_ascii=False, indent=1)
        storage.write_bytes(
            storage.join(self.path, self.state), text.encode("utf-8", "backslashreplace") + b"\n"
        )
