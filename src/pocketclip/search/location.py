"""Where a library is: its file by name, who may read it, and where it must not be.

A library is one SQLite file, `NAME.sqlite`. Beside it are `NAME.lock`, which one writer holds, and
`NAME.derived/`, with what can be made from the file again: the matrix and the thumbnails.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pocketclip.errors import LibraryError
from pocketclip.storage.user_data import user_data

DEFAULT_NAME = "photos"
SUFFIX = ".sqlite"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}")
# File systems on which locks, or the memory that SQLite's readers share, are not reliable.
_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|afpfs|9p|ceph|glusterfs|lustre|beegfs|gpfs|webdav|davfs2?"
    r"|fuse\.(sshfs|rclone|s3fs|goofys|gcsfuse|glusterfs|davfs2?|ceph|curlftpfs|smbnetfs|juicefs))"
)


@dataclass(frozen=True, slots=True)
class Location:
    """The files of a library."""

    file: Path

    @property
    def name(self) -> str:
        """The library's name: its file name without the suffix."""
        return self.file.name.removesuffix(SUFFIX)

    @property
    def lock(self) -> Path:
        """The file that the one writer locks."""
        return self.file.with_name(f"{self.name}.lock")

    @property
    def derived(self) -> Path:
        """The folder of what can be made again."""
        return self.file.with_name(f"{self.name}.derived")

    @property
    def backup(self) -> Path:
        """The copy that is made before a migration."""
        return self.file.with_name(f"{self.name}.backup{SUFFIX}")


def locate(library: str | os.PathLike[str] | None = None) -> Location:
    """Return where a library is, or would be.

    Args:
        library: a name, for a file in the user's data folder; a path, which has a slash or ends in
            `.sqlite`; None for the library `photos`.

    Raises:
        LibraryError: it is neither a name nor a path.
        StorageError: the user has no data folder.
    """
    text = os.fspath(library) if library is not None else DEFAULT_NAME
    if text.endswith(SUFFIX) or "/" in text or os.sep in text:
        path = Path(text).expanduser().absolute()
        if path.suffix != SUFFIX:
            raise LibraryError(
                f"{text}: a library is a file that ends in {SUFFIX}, or a name without slashes"
            )
        return Location(path.parent.resolve() / path.name)
    if not _NAME.fullmatch(text):
        raise LibraryError(
            f"{text!r} is no name of a library: use letters, digits, spaces, '-', '_' and '.', "
            f"or a path that ends in {SUFFIX}"
        )
    return Location(user_data("libraries").resolve() / f"{text}{SUFFIX}")


def libraries() -> list[Location]:
    """Return the libraries in the user's data folder, by name."""
    folder = user_data("libraries").resolve()
    if not folder.is_dir():
        return []
    found = sorted(folder.glob(f"*{SUFFIX}"))
    return [Location(file) for file in found if not file.name.endswith(f".backup{SUFFIX}")]


def private_folder(folder: Path) -> None:
    """Create a folder that only the user can enter (0700), and its missing parents likewise.

    Raises:
        OSError: it cannot be created.
    """
    missing = [folder, *folder.parents]
    for parent in reversed([path for path in missing if not path.exists()]):
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)


def private_file(file: Path) -> None:
    """Create an empty file that only the user can read (0600), if it does not exist.

    Raises:
        OSError: it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def refuse_network(file: Path) -> None:
    """Refuse a library on a network file system; photographs may be on one.

    Raises:
        LibraryError: the file system of `file`, or of its nearest existing parent, is one.
    """
    kind = file_system_of(file)
    if kind is not None and _NETWORK.fullmatch(kind):
        raise LibraryError(
            f"{file} is on a network file system ({kind}), where SQLite loses data: choose another "
            "place with --library PATH.sqlite, or POCKETCLIP_DATA (photographs may be on a network)"
        )


def file_system_of(path: Path) -> str | None:
    """Return the type of the file system of a path (`ext4`, `nfs4`); None if it is unknown."""
    resolved = path.resolve()
    best, kind = -1, None
    for mount, name in _mounts():
        inside = resolved == mount or mount in resolved.parents
        # A later mount at the same place covers an earlier one.
        if inside and len(mount.parts) >= best:
            best, kind = len(mount.parts), name
    return kind


def _mounts() -> list[tuple[Path, str]]:
    """Return mount points and their types, in the order of mounting."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(
                ["/sbin/mount"], capture_output=True, check=True, timeout=5
            ).stdout.decode("utf-8", "surrogateescape")
            lines = re.findall(r"^.* on (/.*) \((\w+)[,)]", listed, re.MULTILINE)
            return [(Path(point), kind) for point, kind in lines]
        return []
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    found = []
    for line in lines.splitlines():
        fields, _, rest = line.partition(" - ")
        # Spaces and backslashes of a mount point are written as three octal digits.
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split(" ")[4])
        found.append((Path(point), rest.split(" ")[0]))
    return found
