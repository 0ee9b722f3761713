from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.inside import run

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
MODEL = ["--model", "random:coca-tiny", "--length", 7]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PHOTOS / "coffee.jpg", folder / "a\x1b[31m.jpg")
    (folder / "b.jpg").write_bytes(b"no image")
    return folder


def test_it_prints_captions_and_names_what_it_could_not_open(photos):
    done = run("caption", photos, *MODEL, "--captions", 2)
    assert done.returncode == 1
    name, *texts = done.stdout.splitlines()
    assert name == f"{photos}/a\\x1b[31m.jpg"
    assert len(texts) == 2
    assert all(text.startswith("  ") for text in texts)
    assert f"left out: {photos}/b.jpg: not an image" in done.stderr
    one = run("caption", photos / "a\x1b[31m.jpg", *MODEL, "--json")
    assert one.returncode == 0
    facts = json.loads(one.stdout)
    assert (facts["images"], facts["bad"]) == (1, [])
    assert facts["results"][0]["path"] == f"{photos}/a\x1b[31m.jpg"
    assert run("caption", photos / "b.jpg", *MODEL).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "random:tiny"], "tiny cannot write captions: use a captioner (coca-vit-"),
        (["--model", "mobileclip2-s0"], "mobileclip2-s0 cannot write captions: use a captioner"),
        (["--model", "coca-vit-l41"], "coca-vit-l14"),
        ([*MODEL, "--method", "best"], "sampling: method is one of nucleus, top_k, greedy, beam"),
        ([*MODEL, "--top-p", "2"], "top_p"),
        ([*MODEL, "--out", "captions.txt"], ".jsonl"),
        ([*MODEL, "--where", "x"], "COLUMN=VALUE"),
    ],
)
def test_mistakes_are_one_line(photos, arguments, says):
    done = run("caption", photos, *arguments, cwd=photos)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in photos.iterdir()) == ["a\x1b[31m.jpg", "b.jpg"]


@pytest.mark.slow
def test_control_c_leaves_a_table_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(150):
        shutil.copy(PHOTOS / "coffee.jpg", folder / f"{number:03d}.jpg")
    # The table is written at once, so that it shows when the work has begun.
    soon = (
        "from pocketclip.reinforce import caption_table; caption_table.SECONDS = 0.1; "
        "from pocketclip.cli.main import main; main()"
    )
    command = [sys.executable, "-c", soon, "caption", str(folder), *map(str, MODEL)]
    command += ["--batch-size", "1", "--out"]
    out, whole = tmp_path / "c.jsonl", tmp_path / "whole.jsonl"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, text=True)
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert f"{out} holds the captions so far" in said
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert 0 < len(rows) < 150
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
