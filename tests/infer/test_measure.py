from __future__ import annotations

import itertools
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from pocketclip import checkpoint
from pocketclip.infer import measure
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.build import random_model


class Clock:
    """Counts what takes time, instead of waiting for it."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


class Slow:
    """An encoder whose time per batch is known."""

    bundle = None

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.batches = clock, seconds, []

    def encode_pixels(self, pixels):
        self.batches.append(len(pixels))
        self.clock.now += self.seconds[len(pixels)]


def test_latency_is_of_the_calls_after_the_warm_up(clock):
    durations = itertools.chain([5.0, 5.0], [0.010] * 18, [0.030] * 2, itertools.repeat(9.0))

    def call():
        clock.now += next(durations)

    figures = measure.latency(call, 0.235)
    assert figures["calls"] == 20  # 18 x 10 ms and 2 x 30 ms are 240 ms
    assert figures["median_ms"] == pytest.approx(10)
    assert figures["p95_ms"] == pytest.approx(30)


def test_slow_calls_are_made_a_few_times_all_the_same(clock):
    def call():
        clock.now += 60.0

    assert len(measure.timed(call, 0.1)) == measure.MIN_CALLS


def test_the_best_batch_is_found_past_one_that_gives_less(clock):
    slow = Slow(clock, {1: 0.10, 2: 0.21, 4: 0.20, 8: 0.41, 16: 0.90, 32: 0.1})
    rates, best, _ = measure.throughput(slow, np.zeros((3, 4, 4), np.float32), 0.0)
    assert best == 4
    assert rates[4] == pytest.approx(20)
    assert list(rates) == [1, 2, 4, 8, 16]  # two without a gain, and no 32
    assert 32 not in slow.batches


def test_a_tower_of_batch_one_is_measured_with_no_other(clock):
    slow = Slow(clock, {1: 0.1})
    slow.bundle = types.SimpleNamespace(towers={"image": {"dynamic_batch": False}})
    rates, best, _ = measure.throughput(slow, np.zeros((3, 4, 4), np.float32), 0.0)
    assert (list(rates), best, set(slow.batches)) == ([1], 1, {1})


@pytest.fixture(scope="module")
def encoder():
    return Encoder(random_model("tiny", seed=0))


def test_captions_are_new_and_equally_long(encoder):
    several = list(itertools.islice(measure.captions(), 0, 2000, 37))
    assert len(set(several)) == len(several)
    counts = {measure.token_count(encoder, text) for text in several}
    assert len(counts) == 1
    assert measure.token_count(encoder, "a cat") == 4


def test_an_encoder(encoder):
    said = []
    begun = time.perf_counter()
    figures = measure.measure(encoder, seconds=0.01, reporter=said.append)
    whole = 1e3 * (time.perf_counter() - begun)
    for tower in ("image", "text"):
        assert 0 < figures[tower]["median_ms"] <= figures[tower]["p95_ms"] < whole
        assert figures[tower]["calls"] >= measure.MIN_CALLS
    rates = figures["throughput"]["by_batch"]
    assert figures["throughput"]["images_per_s"] == max(rates.values())
    assert rates[str(figures["throughput"]["batch"])] == max(rates.values())
    assert said == ["image tower", "text tower", "throughput"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_memory_is_of_this_process_and_rises_with_what_it_holds():
    code = (
        "from pocketclip.infer.measure import peak_memory\n"
        "before = peak_memory()\n"
        "held = b'1' * 300_000_000\n"
        "del held\n"
        "print(before, peak_memory())"
    )
    held = b"1" * 400_000_000  # what the parent holds is none of the child's
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    del held
    before, after = map(int, done.stdout.split())
    assert 5e6 < before < 200e6
    assert 290e6 < after - before < 320e6


def test_size_on_disk(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert measure.disk_bytes("random:tiny", encoder) is None
    folder = tmp_path / "run"
    checkpoint.save(encoder.model, folder / "model")
    (folder / "trainer.pt").write_bytes(b"x" * 5000)
    expected = sum(file.stat().st_size for file in (folder / "model").iterdir())
    assert expected > 1e6
    assert measure.disk_bytes(str(folder), encoder) == expected
    assert measure.disk_bytes(str(folder / "model"), encoder) == expected
    weights = folder / "model" / checkpoint.WEIGHTS
    assert measure.disk_bytes(str(weights), encoder) == weights.stat().st_size
