"""Which file system a path is on: a library must not be on a network."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# File systems on which locks, or the memory that SQLite's readers share, are not reliable.
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|afpfs|coda|9p|ceph|glusterfs|lustre|beegfs|gpfs|gfs2?|ocfs2"
    r"|orangefs|pvfs2|webdav|davfs2?|ftp|vboxsf|vmhgfs|prl_fs"
    r"|fuse\.(sshfs|rclone|s3fs|goofys|gcsfuse|glusterfs|davfs2?|ceph(-fuse)?|cephfs|curlftpfs"
    r"|smbnetfs|juicefs|geesefs|mfs|moosefs|seaweedfs|gvfsd-fuse|kio-fuse|vmhgfs-fuse|grpcfuse"
    r"|google-drive-ocamlfuse|onedriver|mount-s3|blobfuse2?)"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system."""

    point: Path
    kind: str
    """Its type: `ext4`, `nfs4`, ..."""
    device: str | None = None
    """Its device as `major:minor`, which every file on it reports; None if unknown."""


def network_of(path: Path) -> str | None:
    """Return the type of the network file system of a path; None if it is not on one.

    Args:
        path: it, or some of its parents, need not exist.
    """
    kind = file_system_of(path)
    return kind if kind is not None and _NETWORK.fullmatch(kind) else None


def file_system_of(path: Path) -> str | None:
    """Return the type of the file system of a path (`ext4`, `nfs4`); None if it is unknown."""
    resolved = path.resolve()
    device = _device_of(resolved)  # before the mounts are listed: looking may mount it
    mounts = _mounts()
    inside = [mount for mount in mounts if _is_inside(resolved, mount.point)]
    # A mount can be hidden by a later one above it; what the file itself reports tells them apart.
    # Some file systems report another device than they are listed with (btrfs): all are candidates.
    same = [mount for mount in inside if mount.device is not None and mount.device == device]
    best = None
    for mount in same or inside:
        # A later mount at the same place covers an earlier one.
        if best is None or len(mount.point.parts) >= len(best.point.parts):
            best = mount
    return None if best is None else best.kind


def _is_inside(path: Path, point: Path) -> bool:
    parts, above = path.parts, point.parts
    if sys.platform == "darwin":  # names there are usually the same in both cases
        parts, above = tuple(map(str.casefold, parts)), tuple(map(str.casefold, above))
    return parts[: len(above)] == above


def _device_of(path: Path) -> str | None:
    for existing in (path, *path.parents):
        with contextlib.suppress(OSError):
            number = existing.stat().st_dev
            return f"{os.major(number)}:{os.minor(number)}"
    return None


def _mounts() -> list[Mount]:
    """Return what is mounted, in the order of mounting."""
    if sys.platform == "darwin":
        try:
            listed = subprocess.run(["/sbin/mount"], capture_output=True, check=True, timeout=5)
        except (OSError, subprocess.SubprocessError):
            return []
        return _parse_mount(listed.stdout)
    try:
        return _parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    except OSError:
        return []


def _parse_mount(listed: bytes) -> list[Mount]:
    """Parse the output of macOS's `mount`: `SOURCE on POINT (TYPE, OPTION, ...)`."""
    text = listed.decode("utf-8", "surrogateescape")
    lines = re.findall(r"^.*? on (/.*) \(([\w.]+)(?:, [^()]*)?\)$", text, re.MULTILINE)
    return [Mount(Path(point), kind) for point, kind in lines]


def _parse_mountinfo(table: bytes) -> list[Mount]:
    """Parse Linux's /proc/self/mountinfo, see proc(5)."""
    found = []
    for line in table.split(b"\n"):
        fields, separator, rest = line.partition(b" - ")
        columns = fields.split(b" ")
        if not separator or len(columns) < 5:
            continue
        # Spaces and backslashes of a mount point are written as three octal digits.
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 255]), columns[4])
        kind = rest.split(b" ")[0].decode("ascii", "replace")
        found.append(Mount(Path(os.fsdecode(point)), kind, columns[2].decode("ascii", "replace")))
    return found
