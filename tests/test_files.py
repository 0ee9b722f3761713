"""Files and folders are written whole; what is not ours stays."""

from __future__ import annotations

import pytest

from pocketclip.files import check_writable


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    (tmp_path / "there.npy").write_bytes(b"old")
    (tmp_path / "folder.npy").mkdir()
    check_writable(tmp_path / "there.npy")
    check_writable(tmp_path / "new.npy")
    for bad in ("no/such.npy", "there.npy/x.npy", "folder.npy", "x" * 300 + ".npy"):
        with pytest.raises(OSError, match=r"Errno") as caught:
            check_writable(tmp_path / bad)
        assert caught.value.filename == str(tmp_path / bad)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.npy", "there.npy"]
    assert (tmp_path / "there.npy").read_bytes() == b"old"
