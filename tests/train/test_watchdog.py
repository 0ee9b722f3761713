"""Processes that train together end together, and say why: two of them, by gloo."""

from __future__ import annotations

import json
import multiprocessing
import re
import socket

import pytest

from tests.shards.making import folder, sample
from tests.train import failing_ranks

pytestmark = pytest.mark.xdist_group("failing ranks")  # one pair of processes for all
_SCORES = {"eval/error", "eval/main_metric"}
LIMIT = 120.0  # seconds for everything; without the watchdog it would be hours


def _ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """How each case ended on both ranks, and the exit codes of the processes."""
    root = tmp_path_factory.mktemp("failing")
    (root / "dr").mkdir()
    shards = str(folder(root / "dr", [[sample(i) for i in range(16)]]))
    multiprocessing.set_forkserver_preload(["tests.train.failing_ranks"])  # torch is loaded once
    context = multiprocessing.get_context("forkserver")
    ports = _ports(len(failing_ranks.CASES))
    processes = [
        context.Process(target=failing_ranks.run, args=(rank, ports, shards, str(root)))
        for rank in range(failing_ranks.RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return [json.loads((root / f"{r}.json").read_text()) for r in range(2)], codes, root


def test_a_failing_evaluation_ends_nothing(outcome):
    ranks, _, root = outcome
    for rank in ranks:
        assert rank["evaluation"] | {"seconds": 0} == {"step": 4, "failed": 1, "seconds": 0}
    log = (root / "evaluation" / "log.jsonl").read_text().splitlines()
    records = {line["step"]: line for line in map(json.loads, log) if line.keys() & _SCORES}
    assert records[2] == {"step": 2, "eval/error": "KeyError: 'no such column'"}
    assert records[4] == {"step": 4, "eval/main_metric": 0.5}


@pytest.mark.parametrize(
    ("case", "failing", "own", "told"),
    [
        ("main rank", 0, "TypeError", "process 0 of the training failed: TypeError: cannot be"),
        ("other rank", 1, "MemoryError", "process 1 of the training failed: MemoryError: no mem"),
        ("data", 1, "StorageError|DataError", "process 1 of the training failed: .*nowhere"),
    ],
)
def test_all_end_with_the_cause_when_one_fails(outcome, case, failing, own, told):
    ranks, _, _ = outcome
    assert re.fullmatch(own, ranks[failing][case]["error"])
    other = ranks[1 - failing][case]
    assert other["error"] == "TrainingError"
    assert re.match(told, other["text"])
    assert "\n" not in other["text"]


def test_a_process_that_is_stuck_while_another_failed_is_ended(outcome):
    ranks, codes, _ = outcome
    assert ranks[1]["stuck"]["error"] == "MemoryError"
    assert "stuck" not in ranks[0]
    assert codes == [2, 0]
