"""Files and folders are written whole; what is not ours, or in use, stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pocketclip.errors import PocketclipError
from pocketclip.storage import local as files
from pocketclip.storage import locks, temporary
from pocketclip.storage.local import check_writable, recover, write_whole, write_whole_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def told(error_type, do, *args):
    with pytest.raises(error_type) as caught:
        do(*args)
    return str(caught.value)


def run(code, *args, prefix=()):
    """Run Python in a process of its own, without torch; return how it ended."""
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, check=False, timeout=60).returncode


KILLED = -signal.SIGKILL
KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
KILLED_IN_A_FILE = f"""
    import sys
    from pathlib import Path
    from pocketclip.storage.local import write_whole
    with write_whole(sys.argv[1]) as temporary:
        temporary.write_bytes(b"half")
        {KILL}
"""


@pytest.fixture(params=["atomic swap", "two steps"])
def mode(request, monkeypatch):
    if request.param == "two steps":
        monkeypatch.setattr(files, "atomic_swap", lambda *_: False)
    return request.param


def fill(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


# --- before the work, and errors


def test_check_writable(tmp_path):
    (tmp_path / "there.npy").write_bytes(b"old")
    (tmp_path / "folder.npy").mkdir()
    check_writable(tmp_path / "there.npy")
    check_writable(tmp_path / "new.npy")
    check_writable(tmp_path / ("x" * 251 + ".npy"))
    for bad in ("no/such.npy", "there.npy/x.npy", "folder.npy", "x" * 300 + ".npy"):
        with pytest.raises(OSError, match=r"Errno") as caught:
            check_writable(tmp_path / bad)
        assert caught.value.filename == str(tmp_path / bad)
    assert names(tmp_path) == ["folder.npy", "there.npy"]
    assert (tmp_path / "there.npy").read_bytes() == b"old"


def test_a_name_of_the_longest_kind_is_written(tmp_path):
    for name in ("x" * 255, "é" * 127):
        with write_whole(tmp_path / name) as temporary:
            temporary.write_bytes(b"1")
        with write_whole_folder(tmp_path / f"d{name[:-1]}") as folder:
            fill(folder, a="1")
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("place", ["gone/x.npy", "taken"])
def test_errors_name_the_target(tmp_path, place):
    (tmp_path / "taken").mkdir()

    def write():
        with write_whole(tmp_path / place) as temporary:
            temporary.write_bytes(b"1")

    message = told(OSError, write)
    assert str(tmp_path / place) in message
    assert ".tmp" not in message
    assert "->" not in message
    assert names(tmp_path) == ["taken"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_names_the_target(tmp_path):
    def write() -> None:
        with write_whole_folder(tmp_path / "a"), Path("/dev/full").open("wb", 0) as stream:
            stream.write(b"x")  # its error has no path

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert caught.value.filename == str(tmp_path / "a")


def test_errors_of_other_libraries_name_the_target(tmp_path):
    target = tmp_path / "model.pt"

    def write(error):
        with write_whole(target) as temporary:
            raise error(temporary)

    found = told(RuntimeError, write, lambda p: RuntimeError(f"{p}: failed finding central"))
    assert found == f"{target}: failed finding central"
    assert str(target) in told(OSError, write, lambda p: OSError(28, "No space", p))
    elsewhere = told(OSError, write, lambda _: OSError(2, "No such file", "/other/.x.tmp"))
    assert "/other/.x.tmp" in elsewhere

    def inside():
        with write_whole_folder(tmp_path / "folder") as folder:
            (folder / "no" / "a.txt").write_text("1")

    assert str(tmp_path / "folder" / "no" / "a.txt") in told(OSError, inside)
    assert names(tmp_path) == []


# --- only what is ours is replaced


def test_a_folder_is_replaced_if_everything_in_it_is_ours(tmp_path, mode):
    def write(**given):
        with write_whole_folder(target, **given) as folder:
            fill(folder, a="new")

    target = fill(tmp_path / "out", a="old")
    write()
    assert (target / "a").read_text() == "new"
    fill(target, b="old")
    write(own_files=lambda _: {"a", "b"})
    assert names(target) == ["a"]
    assert names(tmp_path) == ["out"], mode


@pytest.mark.parametrize("other", ["thesis.txt", "sub/a", ".hidden", "empty/", "a.lnk@", "a/a"])
@pytest.mark.parametrize("own", [{"a"}, None])
def test_a_folder_with_anything_else_stays(tmp_path, other, own):
    target = fill(tmp_path / "out")
    path = target / other.rstrip("/@")
    if other.endswith("@"):
        path.symlink_to(fill(tmp_path / "elsewhere", a="mine"))
    elif other.endswith("/"):
        path.mkdir()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    if not (target / "a").exists():
        fill(target, a="old")
    before = sorted(str(p) for p in target.rglob("*"))

    def write():
        with write_whole_folder(target, own_files=None if own is None else lambda _: own) as new:
            fill(new, a="new")

    assert "holds other files" in told(PocketclipError, write)
    assert sorted(str(p) for p in target.rglob("*")) == before
    assert "out" in names(tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_files_added_meanwhile_stay(tmp_path):
    target = fill(tmp_path / "out", a="old")

    def write():
        with write_whole_folder(target, own_files=lambda _: {"a"}) as new:
            fill(new, a="new")
            fill(target, thesis="mine")

    assert "thesis" in told(PocketclipError, write)
    assert names(target) == ["a", "thesis"]
    assert names(tmp_path) == ["out"]


def test_a_file_is_no_folder_to_replace(tmp_path):
    (tmp_path / "out").write_text("mine")

    def write():
        with write_whole_folder(tmp_path / "out") as new:
            fill(new, a="new")

    assert "is a file" in told(PocketclipError, write)
    assert (tmp_path / "out").read_text() == "mine"


def test_folders_that_cannot_be_replaced_are_refused_before_the_work(tmp_path, monkeypatch):
    def write(path):
        with write_whole_folder(path, own_files=lambda _: {"a"}):
            raise AssertionError("the work has begun")

    monkeypatch.chdir(tmp_path)
    assert "current folder" in told(PocketclipError, write, ".")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    assert "mount point" in told(PocketclipError, write, tmp_path / "disk")
    assert names(tmp_path) == ["disk"]


# --- killed in the window

REPLACE = """
    import os, signal, sys
    from pathlib import Path
    from pocketclip import files

    target, mode, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if mode == "two steps":
        files.atomic_swap = lambda *_: False
    real, calls = Path.rename, []

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def rename(self, to):
        calls.append(to)
        if len(calls) > moment:
            die()
        return real(self, to)

    Path.rename = rename
    if mode == "atomic swap":
        swap = files.atomic_swap
        if moment:
            files.atomic_swap = lambda *paths: (swap(*paths), die())
        else:
            files.atomic_swap = die
    if moment == 2:
        files.shutil.rmtree = die
    with files.write_whole_folder(target) as folder:
        (folder / "a").write_text("new")
    die()
"""


@pytest.mark.parametrize(
    ("how", "moment", "found"),
    [
        ("atomic swap", 0, "old"), ("atomic swap", 1, "new"),
        ("two steps", 0, "old"), ("two steps", 1, "old"), ("two steps", 2, "new"),
    ],
)  # fmt: skip
def test_killed_while_a_folder_is_replaced(tmp_path, how, moment, found):
    target = fill(tmp_path / "out", a="old")
    assert run(REPLACE, target, how, moment) == KILLED
    assert target.exists() == ((how, moment) != ("two steps", 1))
    recover(target)  # as readers do
    assert (target / "a").read_text() == found
    with write_whole_folder(target) as folder:
        fill(folder, a="next")
    assert (target / "a").read_text() == "next"
    assert names(tmp_path) == ["out"]


def test_a_writer_puts_the_old_one_back_before_it_begins(tmp_path):
    target = fill(tmp_path / "out", a="old", thesis="mine")
    target.rename(tmp_path / ".out.0123abcd-89abcdef.old")

    def write():
        with write_whole_folder(target) as folder:
            fill(folder, a="next")

    assert "thesis" in told(PocketclipError, write)
    assert names(target) == ["a", "thesis"]


def test_recover_takes_the_newest_and_nothing_of_another_name(tmp_path, caplog):
    recover(tmp_path / "no" / "such")
    recover("a\0b")
    for name in (".out.v2.0123abcd-89abcdef.old", ".outer.12.ab.old", ".out.old", ".out.mine.old"):
        fill(tmp_path / name, a="not it")
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for text, name in (("first", ".out.12.ab01.old"), ("last", ".out.0123abcd-89abcdef.old")):
        fill(tmp_path / f"{text}.tmp", a=text).rename(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    recover(tmp_path / "link")
    assert (tmp_path / "out" / "a").read_text() == "last"
    assert "was restored" in caplog.text


def test_a_reader_in_the_window_does_not_stop_the_writer(tmp_path, monkeypatch):
    target = fill(tmp_path / "out", a="old")
    monkeypatch.setattr(files, "atomic_swap", lambda *_: False)
    real, read = Path.rename, []

    def rename(self, to):
        real(self, to)
        if str(to).endswith(".old") and len(read) < 3:
            recover(target)
            read.append((target / "a").read_text())

    monkeypatch.setattr(Path, "rename", rename)
    with write_whole_folder(target) as folder:
        fill(folder, a="new")
    assert read == ["old"] * 3
    assert (target / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failure_in_the_window_puts_the_old_one_back(tmp_path, monkeypatch, error):
    target = fill(tmp_path / "out", a="old")
    monkeypatch.setattr(files, "atomic_swap", lambda *_: False)
    real = Path.rename

    def rename(self, to):
        if to == target and self.name == "out":
            raise error
        return real(self, to)

    def write():
        with write_whole_folder(target) as folder:
            fill(folder, a="new")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        write()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


# --- what killed processes leave, and what living ones use


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    target = tmp_path / "x.npy"
    target.write_bytes(b"old")
    assert run(KILLED_IN_A_FILE, target) == KILLED
    assert len(names(tmp_path)) == 2
    with write_whole(target) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["x.npy"]


def _can_unshare():
    return run("", prefix=("unshare", "--pid", "--fork", "--mount-proc")) == 0


def test_in_containers_every_process_is_number_1(tmp_path):
    """What number 1 left is removed by number 1, and what number 1 uses is not."""
    prefix = ("unshare", "--pid", "--fork", "--mount-proc")
    try:
        able = _can_unshare()
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("this system lets no process have a number 1 of its own")
    run(KILLED_IN_A_FILE.replace(KILL, "import os; os._exit(0)"), tmp_path / "left", prefix=prefix)
    assert len(names(tmp_path)) == 1
    code = """
        import os, sys
        from pocketclip.storage.local import remove_abandoned
        assert os.getpid() == 1
        remove_abandoned(sys.argv[1])
    """
    with write_whole(tmp_path / "living") as temporary:
        temporary.write_bytes(b"1")
        assert run(code, tmp_path, prefix=prefix) == 0
        assert temporary.read_bytes() == b"1"
    assert names(tmp_path) == ["living"]


def test_what_a_living_process_uses_stays(tmp_path, monkeypatch):
    code = (
        "import sys; from pocketclip.storage.local import remove_abandoned; "
        "remove_abandoned(sys.argv[1])"
    )
    with write_whole(tmp_path / "a") as one, write_whole_folder(tmp_path / "b") as two:
        fill(two, c="1")
        one.write_text("1")
        assert run(code, tmp_path) == 0
        files.remove_abandoned(tmp_path)  # nor does its own process
        monkeypatch.setattr(locks, "host", lambda: "another")
        files.remove_abandoned(tmp_path)
        assert (one.is_file(), names(two)) == (True, ["c"])
    assert names(tmp_path) == ["a", "b"]


def test_what_another_machine_left_stays_and_a_restarted_one_removes_its_own(tmp_path, monkeypatch):
    assert run(KILLED_IN_A_FILE, tmp_path / "x") == KILLED
    (left,) = names(tmp_path)
    monkeypatch.setattr(temporary, "KERNEL", "0" * 8)
    real = locks.host
    monkeypatch.setattr(locks, "host", lambda: "another")
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == [left]
    monkeypatch.setattr(locks, "host", real)
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_foreign_temporaries_stay(tmp_path, monkeypatch):
    kept = [".x.tmp", ".x.123.abcd.tmp", "x.0123abcd-89abcdef.tmp", ".x.0123abcd-89abcdef.tmp"]
    for name in kept[:-1]:
        fill(tmp_path / name, a="1")
    fill(tmp_path / kept[-1], a="no lock")
    (tmp_path / ".y.0123abcd-89abcdef.tmp").write_text("a file")
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted([*kept, ".y.0123abcd-89abcdef.tmp"])
    assert run(KILLED_IN_A_FILE, tmp_path / "z") == KILLED
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    files.remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == len(kept) + 2


def test_a_scratch_folder_is_removed_by_its_process_or_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with temporary.scratch_folder("join") as place:
        fill(place, a="1")
        assert place.parent == tmp_path
    assert names(tmp_path) == []
    code = f"""
        from pocketclip.storage.temporary import TemporaryFolder
        (TemporaryFolder.scratch("scans").path / "a").write_text("1")
        {KILL}
    """
    assert run(code) == KILLED
    assert len(names(tmp_path)) == 1
    with temporary.scratch_folder("join"):
        assert [name.partition(".")[0] for name in names(tmp_path)] == ["pocketclip-join"]
    assert names(tmp_path) == []


def test_a_forked_process_removes_nothing_and_holds_no_lock(tmp_path):
    folder = temporary.TemporaryFolder(tmp_path, ".x")
    pid = os.fork()
    if pid == 0:
        folder.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert folder.path.is_dir()
    folder.remove()
    assert names(tmp_path) == []


# --- a folder for one process at a time


def test_a_claimed_folder_is_refused_to_others_until_its_process_ends(tmp_path):
    out = tmp_path / "run"
    code = f"""
        import sys, time
        from pathlib import Path
        from pocketclip import locks
        with locks.claim(Path(sys.argv[1]), "a training"):
            if os.fork() == 0:  # a worker that outlives its parent
                time.sleep(20)
                os._exit(0)
            {KILL}
    """
    assert run("import os" + code.replace("\n        ", "\n"), out) == KILLED
    with locks.claim(out, "a training"):
        found = told(PocketclipError, lambda: locks.claim(out, "a training").__enter__())
        assert f"process {os.getpid()}" in found
        assert "a training is running there" in found
        fill(out, a="1")
    assert names(out) == ["a"]


def test_a_claim_leaves_no_folder_if_nothing_was_written(tmp_path):
    with locks.claim(tmp_path / "a" / "b", "a training"):
        pass
    assert names(tmp_path / "a") == []


def test_where_there_are_no_locks_the_work_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.claim(tmp_path, "a training"), write_whole(tmp_path / "x") as temporary:
        temporary.write_text("1")
        files.remove_abandoned(tmp_path)
    assert names(tmp_path) == ["x"]
    assert "cannot be locked" in caplog.text


def test_a_lock_file_with_arbitrary_content(tmp_path):
    (tmp_path / locks.LOCK).write_bytes(b"\x1b[31m\xff" + b"x" * 10**6)
    machine, process = locks.signature(tmp_path / locks.LOCK)
    assert "\x1b" not in machine
    assert len(machine) <= 500
    assert process == ""


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    kept, link = tmp_path / "there" / "kept", tmp_path / "link"
    kept.write_text("old")
    link.symlink_to(kept)
    check_writable(link)
    with write_whole(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert kept.read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "link", "there"]


def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (check_writable, lambda path: write_whole(path).__enter__()):
        with pytest.raises(OSError, match=r"not replaced by a file.*pipe"):
            write(pipe)
    assert pipe.is_fifo()
