"""Training by two torchrun agents, of which one is killed and comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from pocketclip import checkpoint
from pocketclip.train.distributed import World
from pocketclip.train.logs import read
from pocketclip.train.recipe import load_recipe
from pocketclip.train.setup import open_loader
from tests.train import elastic_rank
from tests.train.making_shards import sample, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("elastic")]
STEPS, BATCH = 12, 8
NO_SHARED_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it, torch 2.13's agent that comes back waits in vain for the leader's address."""
LIMIT = 300.0
"""Seconds until something that does not come counts as lost."""
MODEL = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    shards = write_shards(home, [[sample(i) for i in range(k, k + 30)] for k in (0, 30)])
    return load_recipe(
        {
            "model": {"name": "tiny", "overrides": MODEL},
            "data": {"source": shards, "workers": 0},
            "loss": {"weights": [0.5, 0.5]},
            "steps": STEPS,
            "batch_size": BATCH,
            "precision": "float32",
            "log_every": 1,
            "checkpoint": {"every_steps": 3, "every_minutes": None, "keep_last": 9},
            "tensorboard": False,
        }
    )


class Agents:
    """Torchrun agents with one process each, which meet at a port."""

    def __init__(self, folder, recipe, nodes, **environ):
        self.folder, self.nodes, self.environ = folder, nodes, environ
        for name in ("seen", "hold"):
            (folder / name).mkdir()
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        self.run = folder / "run"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, *, host=True, processes=1):
        number = len(self.agents)
        limits = "last_call_timeout=1,keep_alive_interval=2,keep_alive_max_attempt=5"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
            *("--nnodes", self.nodes, "--max-restarts", "3", "--monitor-interval", "0.2"),
            *("--rdzv-id", "elastic", "--rdzv-backend", "c10d", "--local-addr", "127.0.0.1"),
            *("--rdzv-endpoint", f"127.0.0.1:{self.port}"),
            *("--rdzv-conf", f"is_host={int(host)},join_timeout={LIMIT:g},{limits}"),
            *(str(Path(elastic_rank.__file__)), str(self.folder)),
            *(str(self.folder / "recipe.yaml"), "--out", str(self.run), "--device", "cpu"),
        ]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"} | self.environ
        with (self.folder / f"told-{number}.txt").open("wb") as told:
            agent = subprocess.Popen(
                command, stdout=told, stderr=told, start_new_session=True, env=environ
            )
        self.agents.append(agent)
        return agent

    def told(self):
        parts = [path.read_text("utf-8", "replace") for path in self.folder.glob("told-*.txt")]
        return "\n=====\n".join(parts)

    def hold(self, world, step):
        (self.folder / "hold" / f"{world}-{step}").touch()

    def release(self, world, step):
        (self.folder / "hold" / f"{world}-{step}").unlink()

    def seen(self):
        """Return what the steps saw, in the order of their processes."""
        records = []
        for path in sorted((self.folder / "seen").iterdir(), key=lambda p: p.stat().st_mtime_ns):
            lines = path.read_text().split("\n")
            records += [json.loads(line) | {"pid": int(path.stem)} for line in lines[:-1]]
        return records

    def wait_for(self, condition, what):
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come: {self.told()}"
            time.sleep(0.05)

    def wait_for_step(self, world, step):
        """Wait until all processes of a world are before a step."""
        self.wait_for(
            lambda: sum(r["world"] == world and r["step"] == step for r in self.seen()) >= world,
            f"step {step} of {world} processes",
        )

    def kill(self, agent):
        """Kill an agent and its process at once, as a machine that loses its power does."""
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        own = [int(pid) for pid in children if int(pid) in {r["pid"] for r in self.seen()}]
        assert len(own) == 1
        for pid in (agent.pid, *own):
            os.kill(pid, signal.SIGKILL)
        agent.wait()

    def finish(self):
        for agent in self.agents:
            assert agent.wait(LIMIT) in (0, -signal.SIGKILL), self.told()

    def close(self):
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)  # ends its process too
                try:
                    agent.wait(60)
                except subprocess.TimeoutExpired:
                    agent.kill()
                    agent.wait()


@pytest.fixture
def agents(recipe, tmp_path):
    made = []

    def make(nodes, **environ):
        folder = tmp_path / f"agents-{len(made)}"
        folder.mkdir()
        made.append(Agents(folder, recipe, nodes, **environ))
        return made[-1]

    yield make
    for one in made:
        one.close()


def expected_samples(recipe, world, step):
    """The samples of a step, each process's in its order."""
    found = []
    for rank in range(world):
        place = World(rank, world, rank, torch.device("cpu"))
        with open_loader(recipe, place, BATCH // world, None) as loader:
            batches = loader.batches(step)
            found.append(next(batches).uids)
            batches.close()
    return found


def check_samples(recipe, records):
    """Check that each step saw what its world sees at that step, whatever came before."""
    for record in records:
        expected = expected_samples(recipe, record["world"], record["step"])
        assert record["uids"] == expected[record["rank"]], record


def check_whole(agents, starts):
    """Check that the log has each step once, and the steps and processes of the starts."""
    assert [record["step"] for record in read(agents.run / "log.jsonl")] == [*range(1, STEPS + 1)]
    facts = json.loads((agents.run / "run.json").read_text())["starts"]
    assert [(start["step"], start["processes"]) for start in facts] == starts


def weights(run):
    return checkpoint.load(run / "model").state_dict()


def test_a_killed_process_is_started_again_with_the_others(recipe, agents):
    one = agents("1")
    one.hold(2, 5)
    one.start(processes=2)
    one.wait_for_step(2, 5)
    [victim] = {record["pid"] for record in one.seen() if record["rank"] == 1}
    os.kill(victim, signal.SIGKILL)
    one.release(2, 5)
    one.finish()
    check_whole(one, [(0, 2), (3, 2)])
    check_samples(recipe, one.seen())


@pytest.mark.skipif(sys.platform != "linux", reason="finds an agent's process in /proc")
def test_a_killed_agent_that_comes_back_changes_nothing(recipe, agents):
    both = agents("2", **NO_SHARED_STORE)
    both.hold(2, 5)
    both.start(host=True)
    second = both.start(host=False)
    both.wait_for_step(2, 5)  # the last checkpoint is that of step 3
    both.kill(second)
    both.release(2, 5)
    both.wait_for(lambda: "died" in both.told(), "the end of the process that is left")
    both.start(host=False)
    both.finish()

    check_whole(both, [(0, 2), (3, 2)])
    records = both.seen()
    assert {(r["step"], r["rank"]) for r in records} == {
        (step, rank) for step in range(STEPS) for rank in (0, 1)
    }
    check_samples(recipe, records)

    calm = agents("2", **NO_SHARED_STORE)
    calm.start(host=True)
    calm.start(host=False)
    calm.finish()
    undisturbed = weights(calm.run)
    for name, value in weights(both.run).items():
        assert torch.equal(value, undisturbed[name]), name


@pytest.mark.skipif(sys.platform != "linux", reason="finds an agent's process in /proc")
def test_the_agent_that_is_left_goes_on_alone_until_the_other_comes_back(recipe, agents):
    pair = agents("1:2", **NO_SHARED_STORE)
    pair.hold(2, 5)
    pair.hold(1, 7)
    pair.start(host=True)
    second = pair.start(host=False)
    pair.wait_for_step(2, 5)
    pair.kill(second)
    pair.release(2, 5)
    pair.wait_for_step(1, 7)  # alone, from the checkpoint of step 3 on
    pair.start(host=False)  # torchrun ends the one that trains, which saves step 8 first
    pair.finish()

    check_whole(pair, [(0, 2), (3, 1), (8, 2)])
    records = pair.seen()
    steps = [(r["world"], r["rank"], r["step"]) for r in records]
    assert sorted(set(steps)) == sorted(
        [(2, rank, step) for rank in (0, 1) for step in (*range(6), *range(8, STEPS))]
        + [(1, 0, step) for step in range(3, 8)]
    )
    check_samples(recipe, records)
    assert "seen twice" in pair.told()
    for name, value in weights(pair.run).items():
        assert torch.isfinite(value.float()).all(), name
