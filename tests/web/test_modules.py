"""The pages' modules that need no page, tested by Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.web.module_cases import WRITERS

FOLDER = Path(__file__).parent
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="there is no node")
def test_modules(tmp_path):
    for write in WRITERS:
        folder = tmp_path / write.__name__.removeprefix("write_")
        folder.mkdir()
        write(folder)
    files = sorted(path.as_uri() for path in FOLDER.glob("*.test.mjs"))
    assert files
    # In one process: `node --test` starts one for each file.
    imports = "".join(f"import {json.dumps(file)};" for file in files)
    run = subprocess.run(
        [str(NODE), "--input-type=module", "-e", imports],
        env={**os.environ, "POCKETCLIP_CASES": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5_000:]
