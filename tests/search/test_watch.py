"""Watching roots: what is indexed again, and when."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pocketclip.errors import LibraryError
from pocketclip.search.indexing import watch as watch_module
from pocketclip.search.indexing.watch import Times, changed_folders, watch
from tests.search.conftest import draw_photo

QUICK = Times(settle=0.05, settle_at_most=1, check=0.1, listing=0.1, all=3600, retry=0.1)


class Watched:
    """Watches in a thread; `runs` are the folders of each run."""

    def __init__(self, roots, **options):
        self.roots, self.options = roots, options
        self.runs, self.remarks, self.stop = [], [], threading.Event()
        self.errors = []
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        with contextlib.suppress(KeyboardInterrupt):
            watch(
                self.roots, self._run, remark=self.remarks.append, stop=self.stop, times=QUICK,
                **self.options,
            )  # fmt: skip

    def _run(self, folders):
        self.runs.append(folders)
        if self.errors:
            raise self.errors.pop()

    def __enter__(self):
        self.thread.start()
        self.until(1)  # once the system reports changes
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def until(self, count):
        self.wait_for(lambda: len(self.runs) >= count)

    def wait_for(self, condition):
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError(f"runs: {self.runs}, remarks: {self.remarks}")

    def folders(self):
        """Return the folders of all runs since the last call."""
        found = {folder for run in self.runs for folder in run}
        self.runs.clear()
        return found


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "trip").mkdir(parents=True)
    return folder


def test_a_change_indexes_its_folder(root):
    pytest.importorskip("watchfiles")
    with Watched([root]) as watched:
        assert watched.folders() == {root}
        (root / "trip" / "notes.txt").write_bytes(b"1")
        (root / ".hidden.jpg").write_bytes(b"1")
        (root / "trip" / "a.jpg").write_bytes(b"1")
        watched.until(1)
        assert watched.folders() == {root / "trip"}
        watched.errors.append(LibraryError("another process writes"))
        (root / "trip" / "a.jpg").unlink()
        watched.until(2)
        assert watched.folders() == {root / "trip"}
        assert watched.remarks == ["another process writes; trying again in 0.1 s"]


def test_a_name_that_is_not_utf8_indexes_the_root(root):
    pytest.importorskip("watchfiles")
    with Watched([root]) as watched:
        watched.folders()
        Path(os.fsdecode(os.fsencode(root) + b"/trip/caf\xe9.jpg")).write_bytes(b"1")
        watched.until(2)  # and once more when it is watched again
        assert watched.folders() == {root}
        (root / "trip" / "b.jpg").write_bytes(b"1")
        watched.wait_for(lambda: [root / "trip"] in watched.runs)


@pytest.mark.parametrize("installed", [True, False])
def test_a_root_that_vanishes_and_comes_back(root, tmp_path, monkeypatch, installed):
    if installed:
        pytest.importorskip("watchfiles")
    else:
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    with Watched([root]) as watched:
        root.rename(tmp_path / "away")
        watched.wait_for(lambda: any("is not there now" in text for text in watched.remarks))
        watched.folders()
        (tmp_path / "away").rename(root)
        watched.until(2)  # and once more when it is watched again
        assert watched.folders() == {root}
        (root / "trip" / "a.jpg").write_bytes(b"1")
        watched.wait_for(lambda: [root / "trip" if installed else root] in watched.runs)
    assert any("pip install 'pocketclip[search]'" in text for text in watched.remarks) != installed


def test_a_network_is_listed_again_and_again(root, monkeypatch):
    monkeypatch.setattr(watch_module, "network_of", lambda _path: "nfs4")
    with Watched([root]) as watched:
        watched.until(4)
        assert watched.folders() == {root}
        assert ["(nfs4)" in text for text in watched.remarks] == [True]


def test_without_room_for_watching_it_lists_instead(root, monkeypatch):
    watchfiles = pytest.importorskip("watchfiles")

    def full(*_, **__):
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr(watchfiles, "watch", full)
    with Watched([root]) as watched:
        watched.until(4)
        assert watched.folders() == {root}
        assert ["watch limit reached" in text for text in watched.remarks] == [True]


def test_an_interrupted_run_ends_it(root):
    def run(_folders):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch([root], run, times=QUICK)


def test_folders_of_changes(root):
    (root / "trip" / "deep").mkdir()
    (root / "trip" / "a.jpg").write_bytes(b"1")
    (root / "a.txt").write_bytes(b"1")

    def of(*names):
        found = changed_folders([str(root / name) for name in names], [root])
        return {str(folder.relative_to(root)) for folder in found}

    assert of("a.txt", ".b.jpg", ".thumbs/a.jpg", "x.sqlite-wal", "x.derived/t.jpg") == set()
    assert of("trip/a.jpg", "trip/deep") == {"trip"}
    assert of("gone/deep/a.jpg", "trip/deep/gone") == {"."}
    assert of("trip/.nomedia") == of("trip/.pocketclipignore") == {"trip"}
    assert of(*[f"trip/gone{n}/a.jpg" for n in range(99)]) == {"trip"}
    assert changed_folders(["/elsewhere/a.jpg"], [root]) == set()


def test_a_library_is_kept_up_to_date(library, encoder, photos, monkeypatch):
    monkeypatch.setattr(watch_module, "_TIMES", QUICK)
    reports, exact, stop, index = [], set(), threading.Event(), library.index

    def noted(*args, **options):
        exact.add(options["exact"])
        return index(*args, **options)

    monkeypatch.setattr(library, "index", noted)
    thread = threading.Thread(
        target=lambda: library.watch(
            [photos], encoder=encoder, exclude=["no/"], exact=True, on_report=reports.append,
            stop=stop,
        )
    )  # fmt: skip
    thread.start()

    def wait_for(count):
        for _ in range(1000):
            if len(reports) >= count:
                return reports[-1]
            time.sleep(0.02)
        raise AssertionError(reports)

    try:
        assert wait_for(2).unchanged == 6
        draw_photo(photos / "no" / "left-out.jpg", 1)
        draw_photo(photos / "trip" / "new.jpg", 77)
        assert (wait_for(3).encoded, reports[-1].unchanged) == (1, 2)
        for path in (photos / "trip").iterdir():
            path.unlink()
        assert wait_for(4).absent == 3
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert exact == {True}  # in every run


@pytest.mark.slow
def test_an_interrupt_ends_the_command(bundle, photos, tmp_path):
    command = [sys.executable, "-m", "pocketclip", "index", str(photos), "--watch"]
    command += ["--model", str(bundle), "--library", str(tmp_path / "l.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "encoded 6 photographs" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
