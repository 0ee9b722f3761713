"""Forty SIGKILLs at random moments: the results are the same bytes, and nothing is left over."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.shards.making import folder, sample
from tests.train.making_shards import photo

pytestmark = pytest.mark.slow
KILLS = 40
LONGEST = 600
"""Seconds until a process that does not end counts as hanging."""


@pytest.fixture
def root(tmp_path):
    """A folder with a temporary folder and caches of its own."""
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()
    return tmp_path


SERVER = """
import json, os, sys

import torch

import pocketclip.reinforce.job
import pocketclip.train.loop
from pocketclip.cli.main import main

# All that takes seconds to load, once for all processes below.
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.zeros(1)
torch.optim.AdamW([weight]).step()
torch.utils.data.DataLoader([0])

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        told = os.open("told.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        answers = os.dup(1)
        os.set_inheritable(answers, False)
        os.dup2(told, 1)
        os.dup2(told, 2)
        os.close(answers)
        sys.argv = ["pocketclip", *json.loads(line)]
        main()
        sys.exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Process:
    """A `pocketclip` command in a process of its own, forked from one that has torch."""

    def __init__(self, server, command):
        self._server = server
        server.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        server.stdin.flush()
        self._pid = int(server.stdout.readline())
        self._code = None

    def poll(self):
        if self._code is None and select.select([self._server.stdout], [], [], 0)[0]:
            self._code = int(self._server.stdout.readline())
        return self._code

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def wait(self):
        deadline = time.monotonic() + LONGEST
        while self.poll() is None:
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.005)
        return self._code


@pytest.fixture
def start(root):
    """Starts a command, with a temporary folder and caches of its own."""
    environ = {
        **os.environ,
        "TMPDIR": str(root / "tmp"),
        "XDG_CACHE_HOME": str(root / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environ, cwd=root,
    ) as server:  # fmt: skip
        yield lambda command: Process(server, command)
        server.stdin.close()


def complete(start, root, command, code=0):
    assert start(command).wait() == code, (root / "told.txt").read_text()


def kill_at_random_moments(start, root, command_for, progress, check, *, seed, code=0):
    """Kill forty processes; each folder that is finished meanwhile is checked, and a new begun.

    Args:
        start: see the fixture, like the next.
        root: the folder that holds everything.
        command_for: the command line for an output folder.
        progress: what changes with an output folder's progress.
        check: takes a finished output folder, and removes it.
        seed: of the moments.
        code: with which the command ends.
    """
    moments = random.Random(seed)
    kills, number = 0, 0
    out = root / "out0"
    while kills < KILLS:
        process = start(command_for(out))
        begun, before = time.monotonic(), progress(out)
        # One in four at any moment, the others once it has come further: half of these at once.
        anywhere = moments.random() < 0.25
        delay = moments.uniform(0, 3) if anywhere else moments.choice([0, moments.uniform(0, 1)])
        while process.poll() is None and time.monotonic() < begun + LONGEST:
            if (anywhere and time.monotonic() > begun + delay) or (
                not anywhere and progress(out) != before
            ):
                break
            time.sleep(0.002)
        if not anywhere:
            time.sleep(delay)
        if process.poll() is None:
            process.kill()
            kills += 1
        ended = process.wait()
        assert ended in (code, -signal.SIGKILL), (root / "told.txt").read_text()
        if ended == code:
            check(out)
            number += 1
            out = root / f"out{number}"
    complete(start, root, command_for(out), code)
    check(out)
    deadline = time.monotonic() + 30  # workers notice within seconds that their parent is gone
    while (left := left_over(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def left_over(root):
    """Return what is in the temporary folder and the caches; torch makes a folder in any case."""
    files = [*(root / "tmp").iterdir(), *(root / "cache").rglob("*")]
    return [path for path in files if not path.name.startswith("torchinductor")]


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_reinforce(start, root):
    (root / "raw").mkdir()
    with (root / "pairs.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "caption"])
        for number in range(32):
            (root / "raw" / f"{number}.jpg").write_bytes(photo(number))
            rows.writerow([f"raw/{number}.jpg", f"photograph number {number}"])
        rows.writerow(["raw/none.jpg", "a file that is missing"])

    def command(out):
        return [
            *("reinforce", root / "pairs.csv", "--teacher", "random:tiny", "--precision"),
            *("float32", "--captioner", "random:coca-tiny", "--captions", 2, "--augmentations", 4),
            *("--shard-size", 2, "--batch-size", 2, "--workers", 1, "--out", out),
        ]

    calm = root / "calm"
    complete(start, root, command(calm), code=1)  # one bad pair
    expected = contents(calm)
    assert len(list(calm.glob("*.tar"))) == 17

    def check(out):
        assert contents(out) == expected
        shutil.rmtree(out)

    def progress(out):
        return len(list(out.glob("*.json*")))

    kill_at_random_moments(start, root, command, progress, check, seed=12, code=1)


def test_train(start, root):
    (root / "dr").mkdir()
    source = folder(root / "dr", [[sample(i) for i in range(k, k + 9)] for k in (0, 9, 18)])
    recipe = {
        "model": {
            "name": "tiny",
            "overrides": {
                "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
                "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
                "drop_path": 0.1,
            },
        },
        "data": {"source": str(source), "workers": 1},
        "loss": {"weights": [0.5, 0.5]},
        "schedule": {"warmup": 2},
        "steps": 60,
        "batch_size": 8,
        "ema": 0.9,
        "precision": "float32",
        "log_every": 1,
        "checkpoint": {"every_steps": 3, "every_minutes": None, "keep_last": 2},
        "tensorboard": False,
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def command(out):
        return ["train", root / "recipe.yaml", "--out", out, "--device", "cpu"]

    def lines(out):
        timed = ("seconds", "seconds_left", "samples_per_second", "data_wait")
        text = (out / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(t).items() if k not in timed} for t in text]

    def facts(out):
        files = contents(out)
        for name in ("log.jsonl", "run.json"):  # times, and a line for each start
            del files[name]
        return files

    complete(start, root, command(root / "calm"))
    expected, log = facts(root / "calm"), lines(root / "calm")
    assert [line["step"] for line in log] == list(range(1, 61))
    assert not [name for name in expected if Path(name).name.startswith(".")]

    def check(out):
        assert facts(out).keys() == expected.keys()
        assert facts(out) == expected
        assert lines(out) == log
        shutil.rmtree(out)

    def progress(out):
        return sorted(p.name for p in (out / "checkpoints").glob("*")) if out.exists() else []

    kill_at_random_moments(start, root, command, progress, check, seed=21)
