"""Join and audit of 100,000 samples, each in a process of its own whose memory is measured."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pocketclip.shards.tar import ending, entry
from tests.shards.making import folder, sample

SAMPLES, PER_SHARD = 100_000, 5_000
SCRIPT = """
import json, re, sys
from pathlib import Path
from pocketclip import shards
what, *places = sys.argv[1:]
if what == "join":
    report = shards.join(*places)
    out = [report.samples, report.complete]
else:
    report = shards.audit(*places)
    out = [report.samples, report.clean]
# Not ru_maxrss, which begins with that of the process that started this one.
peak = re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())
print(json.dumps([*out, int(peak[1])]))
"""


def measured(*args):
    """Return samples, whether all is well, and the greatest resident memory in MiB."""
    command = [sys.executable, "-c", SCRIPT, *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    samples, well, kib = json.loads(done.stdout)
    return samples, well, kib / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_samples_in_less_than_a_gigabyte(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    image = buffer.getvalue() + bytes(8_000)  # 13 kB each: 1.3 GB in all
    (tmp_path / "pairs").mkdir()
    one = sample(0, image=False)
    del one.captions["text"]
    dims, shards = (8, 4), []
    for first in range(0, SAMPLES, PER_SHARD):
        uids = [f"{number:08d}" for number in range(first, first + PER_SHARD)]
        parts = []
        for uid in uids:
            parts += [entry(f"{uid}.jpg", image), entry(f"{uid}.txt", b"a caption")]
        data = b"".join(parts)
        (tmp_path / "pairs" / f"{first:08d}.tar").write_bytes(data + ending(len(data)))
        # In the opposite order, so that neighbours are far apart.
        shards.append([replace(one, uid=uid) for uid in reversed(uids)])
    folder(tmp_path / "dr", reversed(shards), dtype="float16", teacher_dims=dims)
    out = tmp_path / "out"
    joined = measured("join", tmp_path / "dr", f"{tmp_path}/pairs/*.tar", out)
    assert joined[:2] == (SAMPLES, True)
    audited = measured("audit", out)
    assert audited[:2] == (SAMPLES, True)
    print(f"peak MiB: join {joined[2]:.0f}, audit {audited[2]:.0f}")
    assert joined[2] < 1000
    assert audited[2] < 1000
