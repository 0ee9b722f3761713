"""Where thumbnails are kept: the library's `derived` folder, by the hash of the photograph's bytes.

    store = ThumbnailStore(location)
    store.keep({digest: jpeg})
    store.read(digest)

For the user only. The folder has a limit, and the disk keeps room for what matters more. A
thumbnail appears whole or not at all; it is not flushed to the disk, for a damaged one is noticed
and made again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pocketclip.errors import ImageError, PocketclipError
from pocketclip.search.store.location import Location
from pocketclip.search.thumbnail_image import SIDE
from pocketclip.storage.private import private_folder
from pocketclip.storage.temporary import TemporaryFolder, remove_abandoned

MOST_BYTES = 1 << 18
"""Of one thumbnail."""
FOLDER_BYTES = 4 << 30
"""Of all thumbnails of a library, about 300,000: no more are kept then."""
FREE_BYTES = 1 << 29
"""That the disk must have free for a thumbnail to be kept."""
_CHECKED = 4 << 20  # bytes written between two looks at the disk and the folder
_SAMPLED = 16  # folders of 256 whose files are counted; hashes fill all of them evenly
_END = b"\xff\xd9"  # of a JPEG


class ThumbnailStore:
    """The thumbnails of a library; several threads may use it.

    Args:
        location: of the library.
    """

    def __init__(self, location: Location) -> None:
        self.folder = location.derived / "thumbnails"
        self.is_full = False
        """Whether thumbnails are not kept for now: the folder or the disk has no room."""
        self._unchecked: int | None = None  # bytes written since the last look

    def file(self, digest: bytes) -> Path:
        """Return where the thumbnail of a content is kept."""
        name = digest.hex()
        return self.folder / name[:2] / f"{name}.jpg"

    def has(self, digest: bytes) -> bool:
        """Return whether there is a thumbnail of a content, perhaps a damaged one."""
        return self.file(digest).exists()

    def read(self, digest: bytes) -> bytes | None:
        """Return a thumbnail; None if there is none, or it is damaged."""
        from pocketclip.images import open_image

        try:
            with self.file(digest).open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES or not data.endswith(_END):
                return None
            if max(open_image(data, max_pixels=SIDE**2).size) > SIDE:
                return None
        except (OSError, ImageError):
            return None
        return data

    def keep(self, made: Mapping[bytes, bytes]) -> int:
        """Keep thumbnails by the hash of their photograph, as many as there is room for.

        Returns:
            How many were kept; fewer also if the folder cannot be written to.
        """
        kept = 0
        with contextlib.suppress(OSError, PocketclipError):
            private_folder(self.folder)
            if self._unchecked is None:
                remove_abandoned(self.folder)
            temporary = TemporaryFolder(self.folder, ".new")
            try:
                for digest, data in made.items():
                    if not self._has_room(len(data)):
                        break
                    self._write(temporary.path, digest, data)
                    kept += 1
            finally:
                temporary.remove()
        return kept

    def _write(self, folder: Path, digest: bytes, data: bytes) -> None:
        target = self.file(digest)
        temporary = folder / target.name
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - it is open
            stream.write(data)
        private_folder(target.parent)
        temporary.replace(target)

    def remove(self, digest: bytes) -> bool:
        """Remove the thumbnail of a content; return whether there was one."""
        try:
            self.file(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def _has_room(self, count: int) -> bool:
        if self._unchecked is None or self._unchecked >= _CHECKED or self.is_full:
            self._unchecked = 0
            free = shutil.disk_usage(self.folder).free
            self.is_full = free < FREE_BYTES or self._bytes() > FOLDER_BYTES
        self._unchecked += count
        return not self.is_full and count <= MOST_BYTES

    def _bytes(self) -> int:
        """Return about how many bytes all thumbnails have, from a part of their folders."""
        step, total = 256 // _SAMPLED, 0
        for number in range(0, 256, step):
            with contextlib.suppress(OSError), os.scandir(self.folder / f"{number:02x}") as entries:
                total += sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        return total * step
