"""Faults, through the real command line: kills, a second writer, full disks, drives away, renames.

The scenarios run small here; the long ones carry the mark `slow`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketclip.errors import LibraryError
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate
from tests.search.faults import BATCH, Place, Servers, until

LONG_AGO = 1_700_000_000
"""Seconds: the time of generated files. A file of this moment is read again by the next run."""


@pytest.fixture(scope="module")
def servers():
    with Servers() as running:
        yield running


@pytest.fixture
def place(tmp_path, bundle, servers):
    return Place(tmp_path, bundle, servers)


def photograph(path, seed, *, when=LONG_AGO):
    """Write a small photograph of coloured blocks; every seed gives other bytes and another one."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (5, 7, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize((40, 30), Image.Resampling.BILINEAR).save(path, quality=90)
    os.utime(path, (when + seed, when + seed))
    return path


def photographs(folder, count, *, first=0):
    return [
        photograph(folder / f"{seed // 100:03}" / f"IMG_{seed:05}.jpg", seed)
        for seed in range(first, first + count)
    ]


def calm_state(place, folder=None):
    """Return the state that an undisturbed run gives in a library of its own."""
    calm = place.folder / "calm.sqlite"
    place.run("index", folder or place.photos, library=calm)
    return place.state(calm)


# Kills and interrupts.


def kill_at_random_moments(place, kills, count, seed):
    photographs(place.photos, count)
    expected = calm_state(place)
    moments = random.Random(seed)
    done = finished = 0
    spent, before = place.encodings(), place.encodings()
    while done < kills:
        process = place.start("index", place.photos)
        kept = place.vectors()
        begun = time.monotonic()
        if moments.random() < 0.3:  # at any moment
            delay = moments.uniform(0, 1.5)
            until(lambda begun=begun, delay=delay: time.monotonic() > begun + delay, process)
        else:  # while it encodes
            until(lambda spent=spent: place.encodings() > spent, process)
            time.sleep(moments.uniform(0, 0.3))
        killed = process.poll() is None
        process.send(signal.SIGKILL)
        ended = place.wait(process)
        assert ended.code in (0, -signal.SIGKILL), ended
        done += killed
        now = place.vectors()
        assert now >= kept, "a vector was lost that had been committed"
        # What was encoded and not committed is at most a batch.
        assert place.encodings() - spent - (now - kept) <= BATCH
        spent = place.encodings()
        if ended.code == 0:
            finished += 1
            place.sound()
            assert place.state() == expected
            assert spent - before <= count + done * BATCH
            shutil.rmtree(place.file.parent)
            before = spent
    place.run("index", place.photos)
    place.sound()
    assert place.state() == expected
    with place.encodes(0):
        place.run("index", place.photos)
    return finished


def test_a_few_kills(place):
    kill_at_random_moments(place, kills=2, count=100, seed=1)


@pytest.mark.slow
def test_a_hundred_kills(place):
    kill_at_random_moments(place, kills=100, count=1200, seed=2)


def interrupt_at_random_moments(place, rounds, count, seed, number=signal.SIGINT, code=130):
    photographs(place.photos, count)
    expected = calm_state(place)
    moments = random.Random(seed)
    stopped = 0
    for _ in range(rounds):
        kept, spent = place.vectors(), place.encodings()
        process = place.start("index", place.photos, pause=0.005)
        until(lambda spent=spent: place.encodings() > spent, process)
        time.sleep(moments.uniform(0, 0.3))
        process.send(number)
        ended = place.wait(process)
        assert ended.code in (0, code), ended
        stopped += ended.code == code
        assert place.vectors() - kept == place.encodings() - spent, "an encoded one was not kept"
        place.sound()
        if ended.code == 0:
            assert place.state() == expected
            shutil.rmtree(place.file.parent)
    place.run("index", place.photos)
    assert place.state() == expected
    return stopped


@pytest.mark.slow
def test_an_interrupt_keeps_all_that_was_encoded(place):
    assert interrupt_at_random_moments(place, 1, 200, seed=3)


@pytest.mark.slow
def test_interrupts_at_random_moments(place):
    assert interrupt_at_random_moments(place, 40, 800, seed=4) >= 20


@pytest.mark.slow
def test_being_told_to_end(place):
    """SIGTERM may cost a batch, as SIGKILL does, and nothing else."""
    photographs(place.photos, 800)
    expected = calm_state(place)
    for _ in range(5):
        kept, spent = place.vectors(), place.encodings()
        process = place.start("index", place.photos)
        until(lambda spent=spent: place.encodings() > spent, process)
        process.send(signal.SIGTERM)
        place.wait(process)
        assert place.encodings() - spent - (place.vectors() - kept) <= BATCH
        place.sound()
    place.run("index", place.photos)
    assert place.state() == expected


# Several processes.


@pytest.mark.slow
def test_one_writer_and_readers_that_never_wait(place):
    photographs(place.photos, 20)
    place.run("index", place.photos)
    more = photographs(place.photos, 150, first=1000)
    writer = place.start("index", place.photos, pause=0.1)
    assert until(lambda: place.encodings() > 20, writer)
    refused = place.run("index", place.photos, codes=(2,))
    assert "another process writes" in refused.err
    assert str(writer.pid) in refused.err
    found = []
    while writer.poll() is None:
        found.append(len(place.found()))
    assert found, "the index was done before the first search"
    assert found == sorted(found)
    assert found[0] >= 20
    assert place.wait(writer).code == 0
    assert len(place.found()) == 20 + len(more)
    place.sound()


@pytest.mark.slow
def test_many_processes_at_once(place):
    """Five writers again and again, one of which wins, and readers, over one growing folder."""
    photographs(place.photos, 300)
    place.run("index", place.photos)
    refused = written = 0
    for turn in range(6):
        photographs(place.photos, 150, first=1000 * (turn + 1))
        writers = [place.start("index", place.photos) for _ in range(5)]
        readers = [place.start("search", "a circle", "--min-score", -1) for _ in range(3)]
        for reader in readers:
            assert place.wait(reader).code == 0
        for ended in [place.wait(writer) for writer in writers]:
            assert ended.code in (0, 2), ended
            refused += ended.code == 2
            written += ended.code == 0
            assert ended.code == 0 or "another process writes" in ended.err
    assert refused
    assert written >= 6
    place.run("index", place.photos)
    place.sound()
    assert place.state() == calm_state(place)


@pytest.mark.slow
def test_two_libraries_of_one_folder(place):
    photographs(place.photos, 60)
    other = place.folder / "other.sqlite"
    both = [place.start("index", place.photos), place.start("index", place.photos, library=other)]
    assert [place.wait(process).code for process in both] == [0, 0]
    assert place.state() == place.state(other)


# Full disks.


@pytest.mark.slow
def test_a_file_that_cannot_grow(place):
    """What was committed is kept, the message says so, and the next run goes on."""
    photographs(place.photos, 200)
    expected = calm_state(place)
    ended = place.run("index", place.photos, file_limit=120_000, codes=(1, 2))
    assert "full" in ended.err, ended.err
    place.sound()
    place.run("index", place.photos)
    assert place.state() == expected


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of a given size."""
    folder = tmp_path / "library"
    folder.mkdir()

    def mount(size):
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder],
            capture_output=True, check=False,
        )  # fmt: skip
        if made.returncode:
            pytest.skip("a file system cannot be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


@pytest.mark.parametrize("size", [60_000, 120_000, 150_000])
def test_a_library_that_does_not_fit_is_not_created(small_disk, size):
    folder = small_disk(size)
    with contextlib.suppress(LibraryError):
        Database.create(locate(folder / "photos.sqlite")).close()
    subprocess.run(["mount", "-o", "remount,size=10m", folder], check=True)
    Database.create(locate(folder / "photos.sqlite")).close()  # what is there is whole
    assert {path.name for path in folder.iterdir()} <= {"photos.sqlite", "photos.lock"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 60_000, 150_000, 300_000, 700_000])
def test_a_full_disk(place, small_disk, size):
    """Wherever the space ends: in the tables, while indexing, or in what is made from the file."""
    folder = small_disk(size)
    photographs(place.photos, 400)
    expected = calm_state(place)
    ended = place.run("index", place.photos, codes=(0, 1, 2))
    if ended.code:
        assert "full" in ended.err or "space" in ended.err, ended.err
    if place.vectors():
        place.sound()
        searched = place.run("search", "a circle", "--min-score", -1, codes=(0, 2))
        assert searched.code == 0 or "full" in searched.err or "space" in searched.err
    subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
    place.run("index", place.photos)
    place.sound()
    assert place.state() == expected
    assert len(place.found()) == 400


# Damage.


@pytest.fixture
def indexed(place):
    photographs(place.photos, 60)
    place.run("index", place.photos)
    return place


def harm(data, kind, rng):
    """Return damaged bytes."""
    if kind == "empty":
        return b""
    if kind == "foreign":
        return rng.integers(0, 256, len(data), np.uint8).tobytes()
    if kind == "cut":
        return data[: rng.integers(1, len(data))]
    if kind == "longer":
        return data + data[:100]
    broken = bytearray(data)
    for place in rng.integers(0, len(data), 1 if kind == "flipped" else 50):
        broken[place] ^= 1 << int(rng.integers(8))
    return bytes(broken)


DAMAGE = ["empty", "foreign", "cut", "longer", "flipped", "many flipped"]


def test_a_damaged_matrix_is_made_again(indexed):
    damaged_matrix(indexed, "cut", seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_of_the_matrix(indexed, kind):
    damaged_matrix(indexed, kind, seeds=3)


def damaged_matrix(place, kind, seeds):
    """No search crashes, and after a check every answer is that of before."""
    before = place.found()
    assert place.derived()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for path in place.derived():
            data = path.read_bytes()
            path.write_bytes(harm(data, kind, rng))
            after = place.found()
            if "flipped" not in kind:
                assert after == before, path
            place.run("index", "--check", codes=(0, 1))
            assert place.found() == before, path


def damaged_database(place, kind, seeds):
    """Every command says what is wrong in a sentence; after `--repair` an index gives the same.

    SQLite has no checksums, so a flipped bit within a vector is not noticed: it changes that one.
    """
    expected = place.state()
    place.run("index", place.photos)
    good = place.file.read_bytes()
    for seed in range(seeds):
        for path in place.file.parent.glob(f"{place.file.name}*"):
            path.unlink()
        place.file.write_bytes(harm(good, kind, np.random.default_rng(seed)))
        searched = place.run("search", "a circle", "--min-score", -1, codes=(0, 2))
        assert searched.code == 0 or "error: " in searched.err
        ended = place.run("index", place.photos, codes=(0, 1, 2))
        assert ended.code == 0 or "error: " in ended.err, ended
        if place.run("index", "--check", codes=(0, 1, 2)).code:
            repaired = place.run("index", "--repair", codes=(0, 1, 2))
            if repaired.code == 2:
                assert "move it away" in repaired.err
                place.file.rename(place.folder / "moved away")
            place.run("index", place.photos)
            place.run("index", "--check")
        place.sound()
        state = place.state()
        if "flipped" not in kind:
            assert state == expected
        elif kind == "flipped":
            assert len(set(state) - set(expected)) <= 1
            assert len(state) == len(expected)


def test_a_damaged_database_is_repaired(indexed):
    damaged_database(indexed, "cut", seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_of_the_database(indexed, kind):
    damaged_database(indexed, kind, seeds=12)


# Drives, renames, names, clocks, rights.


def test_a_drive_away_and_back(place):
    photographs(place.photos / "drive", 110)
    place.run("index", place.photos / "drive")
    state, found = place.state(), place.found()
    drive, away = place.photos / "drive", place.folder / "away"
    with place.encodes(0):
        drive.rename(away)
        place.run("index", codes=(0, 1))  # gone
        assert place.state() == state
        assert place.found() == []
        drive.mkdir()
        place.run("index", codes=(0, 1))  # only the empty mount point
        assert place.state() == state
        assert place.found() == []
        drive.rmdir()
        away.rename(drive)
        assert place.found() == found
        (drive / "000").rename(away)  # a folder of it
        place.run("index")
        assert len(place.state()) == 10
        assert len(place.found()) == 10
        away.rename(drive / "000")
        place.run("index")
    assert place.state() == state
    assert place.found() == found


def rename_all(place, count):
    before = photographs(place.photos, count)
    place.run("index", place.photos)
    digests = Counter(row[4] for row in place.state())
    for number, path in enumerate(before):  # other names, other folders, and another order
        target = place.photos / f"new {number % 7}" / f"{count - number}.jpeg"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    with place.encodes(0):
        place.run("index", place.photos)
    assert Counter(row[4] for row in place.state()) == digests
    assert len(place.rows("SELECT 1 FROM files WHERE absent = 0")) == count
    assert all(Path(path).exists() for path in place.found())
    with place.encodes(0):
        place.run("index", place.photos)


@pytest.mark.slow
def test_renames_encode_nothing(place):
    rename_all(place, 60)


@pytest.mark.slow
def test_ten_thousand_renames(place):
    rename_all(place, 10_000)


NAMES = [
    b"latin \xe9.jpg", b"bad \xff\xfe.jpg", "näme ü.jpg".encode(), "na\u0308me.jpg".encode(),
    b"line\nbreak.jpg", b"tab\tand\rreturn.jpg", b"\x1b[31mred.jpg", b"'quote\" $(x) `y`.jpg",
    b"-rf.jpg", b"--library.jpg", b" leading and trailing .jpg", b"%s %00 {}.jpg",
    b"x" * 251 + b".jpg", "日本語🏖️.jpg".encode(), b"back\\slash.jpg", b"LOUD.JPG",
    "\u202egpj.exe.jpg".encode(), b"star*?[a].jpg",
]  # fmt: skip


def test_names_of_any_bytes(place):
    place.photos.mkdir()
    root = os.fsencode(place.photos)
    for seed, name in enumerate([*NAMES, *(b"sub \xe9\n/" + name for name in NAMES[:6])]):
        target = Path(os.fsdecode(os.path.join(root, name)))  # noqa: PTH118
        photograph(place.folder / "one.jpg", seed)
        target.parent.mkdir(exist_ok=True)
        (place.folder / "one.jpg").rename(target)
    count = len(NAMES) + 6
    place.run("index", place.photos)
    assert len(place.state()) == count
    asked = ("search", "a circle", "--top", 100, "--min-score", -1)
    paths = os.fsencode(place.run(*asked, "-0").out).split(b"\0")
    assert paths.pop() == b""
    assert all(os.path.exists(path) for path in paths)  # noqa: PTH110
    assert len(set(place.found())) == count
    shown = place.run(*asked)
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
    with place.encodes(0):
        place.run("index", place.photos)


@pytest.mark.slow
def test_a_path_as_long_as_paths_may_be(place):
    folder = place.photos
    while len(os.fsencode(folder)) < 3700:
        folder = folder / ("d" * 200)
    photograph(folder / "deep.jpg", 1)
    place.run("index", place.photos)
    assert place.found() == [str(folder / "deep.jpg")]


@pytest.mark.slow
def test_a_clock_that_is_set_back(indexed):
    """A changed photograph is seen whatever its time is, and files of the future are as others."""
    day = 86_400
    paths = sorted(indexed.photos.rglob("*.jpg"))
    size = paths[0].stat().st_size
    photograph(paths[0], 1001, when=LONG_AGO - 400 * day)  # changed by a clock that was wrong
    photograph(paths[1], 1002, when=LONG_AGO + 4000 * day)
    data = bytearray(paths[2].read_bytes())
    data[-20] ^= 1
    before = paths[2].stat()
    paths[2].write_bytes(data)  # the same size, an earlier time
    os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns - 1))
    assert size
    with indexed.encodes(3):
        indexed.run("index", indexed.photos, clock_ns=-(10**9) * day * 3000)
    with indexed.encodes(0):
        indexed.run("index", indexed.photos, clock_ns=10**9 * day)
        indexed.run("index", indexed.photos)
    assert indexed.state() == calm_state(indexed)


@pytest.mark.skipif(os.geteuid() != 0, reason="the harness takes the superuser's rights away")
def test_what_may_not_be_read(indexed):
    """What is known of it is kept; it is read as soon as it may be."""
    state = indexed.state()
    locked = indexed.photos / "more"
    photographs(locked, 5, first=500)
    secret = photograph(indexed.photos / "secret.jpg", 600)
    secret.chmod(0)
    (indexed.photos / "000").chmod(0)
    ended = indexed.run("index", indexed.photos, plain_user=True, codes=(1,))
    assert "ermission" in ended.out + ended.err
    kept = {row[1] for row in state}
    assert kept <= {row[1] for row in indexed.state()}, "a folder that cannot be listed is kept"
    assert "secret.jpg" in indexed.run("index", "--status", plain_user=True, codes=(0, 1)).out
    secret.chmod(0o600)
    (indexed.photos / "000").chmod(0o700)
    with indexed.encodes(1):
        indexed.run("index", indexed.photos, plain_user=True)
    assert indexed.state() == calm_state(indexed)


# A folder that changes meanwhile.


def mutate(folder, stop, seed):
    """Rewrite, replace, rename, delete and add photographs until told to stop."""
    rng = random.Random(seed)
    number = 100_000 * seed
    while not stop.is_set():
        paths = [path for path in folder.rglob("*.jpg") if path.is_file()]
        number += 1
        try:
            action = rng.randrange(6)
            path = rng.choice(paths)
            if action == 0:
                photograph(folder / f"new{number % 9}" / f"{number}.jpg", number, when=time.time())
            elif action == 1:
                path.unlink()
            elif action == 2:
                path.rename(path.with_name(f"moved {number}.jpg"))
            elif action == 3:  # in place, half of it for a moment
                data = photograph(folder.parent / "next.jpg", number).read_bytes()
                path.write_bytes(data[: len(data) // 2])
                time.sleep(0.002)
                path.write_bytes(data)
            elif action == 4 and rng.random() < 0.2:
                target = folder / f"folder {number}"
                path.parent.rename(target) if path.parent != folder else None
            else:
                shutil.copy(path, path.with_name(f"copy {number}.jpg"))
        except (OSError, IndexError):
            pass  # it was its own doing
        time.sleep(0.003)


def index_a_changing_folder(place, rounds, count):
    photographs(place.photos, count)
    stop = threading.Event()
    thread = threading.Thread(target=mutate, args=(place.photos, stop, 1))
    thread.start()
    try:
        for _ in range(rounds):
            place.run("index", place.photos, codes=(0, 1))
            place.sound()
    finally:
        stop.set()
        thread.join()
    for path in place.photos.rglob("*.jpg"):
        os.utime(path, (LONG_AGO, LONG_AGO))  # so that the last run stores all times
    place.run("index", place.photos)
    assert place.state() == calm_state(place)
    with place.encodes(0):
        place.run("index", place.photos)


@pytest.mark.slow
def test_a_folder_that_changes_meanwhile(place):
    index_a_changing_folder(place, rounds=2, count=200)


@pytest.mark.slow
def test_a_folder_that_changes_all_the_time(place):
    index_a_changing_folder(place, rounds=25, count=500)
