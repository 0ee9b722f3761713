"""The examples run offline, from any folder, and print results that one can check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each prints, with a figure that must not be worse.
RESULTS = {
    "app_developer": (r"first picture right: (\d+)%", 50),
    "own_images": (r"pictures finds (\d+) of the 24 wrong labels", 12),
    "researcher": (r"distillation +(\d+)\.\d%", 20),
}


def test_every_example_is_run():
    assert sorted(RESULTS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_example(name, tmp_path):
    environ = {**os.environ, "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1",
               "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pattern, least = RESULTS[name]
    match = re.search(pattern, done.stdout)
    assert match, done.stdout
    assert int(match[1]) >= least
