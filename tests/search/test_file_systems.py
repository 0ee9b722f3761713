"""Which file system a path is on, from what Linux and macOS list."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.store import file_systems
from pocketclip.search.store.location import locate, refuse_network

MOUNTINFO = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/my\040photos\134\011x rw - nfs4 nas:/photos rw,vers=4.2
31 22 8:1 /srv/data /home/bound rw shared:2 master:1 - ext4 /dev/sda1 rw
32 22 0:41 / /net rw - autofs /etc/auto.net rw
33 32 0:42 / /net/nas rw - nfs nas:/ rw
34 22 0:43 / /media/usb rw - cifs //server/share rw
35 22 8:17 / /media/usb rw - exfat /dev/sdb1 rw
36 22 0:44 / /home/u/sshfs rw,nosuid - fuse.sshfs u@host: rw
37 36 8:33 / /home/u/sshfs/local rw - ext4 /dev/sdc1 rw
38 22 0:50 / /caf\303\251 rw - cifs //server/x rw
39 22 0:51 / /raw\377 rw - smb3 //server/y rw

cut line
"""


def kind_of(path, mounts, device=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_systems, "_mounts", lambda: mounts)
        patch.setattr(file_systems, "_device_of", lambda _: device)
        return file_systems.file_system_of(Path(path))


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/home/u/x.sqlite", "ext4", False),
        ("/mnt/my photos\\\tx/deep/x.sqlite", "nfs4", True),
        ("/mnt/my photos", "ext4", False),
        ("/home/bound/x.sqlite", "ext4", False),
        ("/net/x", "autofs", False),
        ("/net/nas/x", "nfs", True),
        ("/media/usb/x", "exfat", False),  # the later of two mounts
        ("/home/u/sshfs/x", "fuse.sshfs", True),
        ("/home/u/sshfs/local/x", "ext4", False),
        ("/home/u/sshfs-other/x", "ext4", False),
        ("/café/x", "cifs", True),
        (os.fsdecode(b"/raw\xff/x"), "smb3", True),
    ],
)
def test_linux(path, kind, network):
    mounts = file_systems._parse_mountinfo(MOUNTINFO)
    assert len(mounts) == 11
    assert kind_of(path, mounts) == kind
    assert bool(file_systems._NETWORK.fullmatch(kind)) == network


def test_a_mount_that_another_one_hides_does_not_count():
    table = b"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /a/b rw - nfs4 nas:/x rw
31 22 8:9 / /a rw - xfs /dev/sdd1 rw
"""
    mounts = file_systems._parse_mountinfo(table)
    assert kind_of("/a/b/x", mounts, "8:9") == "xfs"
    assert kind_of("/a/b/x", mounts, "0:40") == "nfs4"
    assert kind_of("/a/b/x", mounts, "0:99") == "nfs4"  # a device that is not listed, as of btrfs


def test_macos(monkeypatch):
    listed = b"""/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
//guest:@nas._smb._tcp.local/My%20Share on /Volumes/My Share (old) (smbfs, nodev, mounted by me)
nas:/export on /Volumes/export on nas (nfs)
"""
    mounts = file_systems._parse_mount(listed)
    assert [(str(mount.point), mount.kind) for mount in mounts] == [
        ("/", "apfs"), ("/dev", "devfs"), ("/System/Volumes/Data/home", "autofs"),
        ("/Volumes/My Share (old)", "smbfs"), ("/Volumes/export on nas", "nfs"),
    ]  # fmt: skip
    assert kind_of("/Volumes/My Share (old)/x", mounts) == "smbfs"
    assert kind_of("/volumes/MY share (old)/x", mounts) == "apfs"
    monkeypatch.setattr(sys, "platform", "darwin")  # where names are the same in both cases
    assert kind_of("/volumes/MY share (old)/x", mounts) == "smbfs"


def test_what_this_machine_lists_is_understood(tmp_path):
    assert file_systems.file_system_of(tmp_path / "not" / "there") is not None
    assert file_systems.network_of(Path("/proc/self")) is None
    assert file_systems.file_system_of(Path("/proc/self")) == "proc"


def test_the_folder_of_derived_files_is_looked_at_too(tmp_path, monkeypatch):
    (tmp_path / "share").mkdir()
    (tmp_path / "photos.derived").symlink_to(tmp_path / "share")
    mounts = [file_systems.Mount(tmp_path / "share", "cifs")]
    monkeypatch.setattr(file_systems, "_mounts", lambda: mounts)
    monkeypatch.setattr(file_systems, "_device_of", lambda _: None)
    with pytest.raises(LibraryError, match=r"photos.derived is on a network file system \(cifs\)"):
        refuse_network(locate(tmp_path / "photos.sqlite"))
    refuse_network(locate(tmp_path / "other.sqlite"))
