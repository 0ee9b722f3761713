"""`pocketclip bench` as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pocketclip import checkpoint
from pocketclip.checkpoint import operations
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.measure import size_of
from pocketclip.nn.upcycle import upcycle
from tests import bundles
from tests.cli import inside

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
ENVIRONMENT = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
COMMAND = [sys.executable, "-m", "pocketclip.cli.main", "bench"]


def run(*args, cwd=None):
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=cwd
    )


@pytest.fixture(scope="module")
def bundle(exported):
    return exported("tiny", "onnx")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for label, photo in (("cat", "chelsea"), ("cup", "coffee"), ("rocket", "rocket")):
        (folder / label).mkdir()
        shutil.copy(PHOTOS / f"{photo}.jpg", folder / label)
    return folder


@pytest.fixture(scope="module")
def several(bundle, labelled, tmp_path_factory):
    """A bundle, a checkpoint and a damaged bundle, measured in one run."""
    folder = tmp_path_factory.mktemp("several")
    checkpoint.save(bundles.model(), folder / "checkpoint")
    shutil.copytree(bundle, folder / "damaged")
    with (folder / "damaged" / "image.onnx").open("r+b") as file:
        file.write(b"\xff" * 16)
    done = run(
        bundle, folder / "damaged", folder / "checkpoint", "--seconds", "0.02", "--threads", "1",
        "--json", "--plot", folder / "plot.svg", "--labelled", labelled, "--backend", "onnxruntime",
    )  # fmt: skip
    return done, folder


def test_figures(several, bundle, labelled):
    model = bundles.model()
    done, folder = several
    facts = json.loads(done.stdout)
    ours, torchs = facts["models"]
    assert (ours["source"], torchs["source"]) == (str(bundle), str(folder / "checkpoint"))
    assert (ours["backend"], torchs["backend"]) == ("onnxruntime", "torch")
    assert ours["space_id"] == torchs["space_id"] == model.space_id
    for row in (ours, torchs):
        assert row["model"] == "tiny"
        assert row["threads"] == 1
        for tower in ("image", "text"):
            assert 0 < row[tower]["median_ms"] <= row[tower]["p95_ms"]
            assert row[tower]["median_ms"] < 1e3 * row["startup_s"]
        best = row["throughput"]
        assert best["by_batch"][str(best["batch"])] == best["images_per_s"] > 0
        assert row["memory_bytes"] <= row["memory_at_best_batch_bytes"]
        size, counted = row["size"], operations.measure(model.config)
        assert size["params_million"] == size["active_params_million"] == counted.params_million
        assert size["gflop"] == counted.gflop
        forward = size["forward"]
        # This text tower is not causal: padding is computed too.
        assert forward["text_tokens"] == model.config.text.context_length
        assert 0 < forward["image_gflop"] + forward["text_gflop"] < size["gflop"]
    # Each has its own process: what torch takes does not stand with the bundle.
    assert 20e6 < ours["memory_bytes"] < torchs["memory_bytes"] - 50e6
    files = sum(f.stat().st_size for f in bundle.iterdir() if f.name != "bundle.json")
    assert ours["disk_bytes"] == files
    assert torchs["disk_bytes"] == sum(f.stat().st_size for f in (folder / "checkpoint").iterdir())

    from pocketclip.evaluate import top1
    from pocketclip.infer.encoder import Encoder

    assert ours["top1"] == torchs["top1"] == top1(str(labelled))(Encoder(model))


def test_a_bad_model_is_named_and_the_others_are_measured(several):
    done, folder = several
    assert done.returncode == 1
    (failed,) = json.loads(done.stdout)["failed"]
    assert failed["source"] == str(folder / "damaged")
    assert "image.onnx" in failed["reason"]
    last = done.stderr.splitlines()[-1]
    assert last == f"failed: {failed['source']}: {failed['reason']}"
    assert "Traceback" not in done.stderr
    assert f"{folder / 'checkpoint'}: model 3 of 3" in done.stderr


def test_the_plot_stands_alone_and_has_the_figures(several):
    done, folder = several
    root = ElementTree.parse(folder / "plot.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    points = root.findall(".//svg:g[@class='point']", space)
    rows = json.loads(done.stdout)["models"]
    assert len(points) == len(rows) == 2
    for point, row in zip(points, rows, strict=True):
        assert row["source"] in point.get("data-name")
        assert float(point.get("data-x")) == pytest.approx(row["image"]["median_ms"], abs=1e-3)
        assert float(point.get("data-y")) == pytest.approx(row["top1"], abs=1e-3)
    marks = {path.get("transform") for path in root.findall(".//svg:g/svg:path", space)}
    assert len(marks) == 2
    assert "top-1" in (folder / "plot.svg").read_text()


def test_table(bundle, tmp_path):
    done = run(bundle.name, "--seconds", "0", "--plot", tmp_path / "p.svg", cwd=bundle.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    times, sizes = (line for line in lines if line.split()[:1] == [bundle.name])
    assert times.count("(") == 3
    size = operations.measure(bundles.model().config)
    assert sizes.split()[1:4] == [f"{value:.3g}" for value in (
        size.params_million, size.active_params_million, size.gflop
    )]  # fmt: skip
    assert max(map(len, lines[lines.index("") :])) <= 80
    assert "photographs per second" in (tmp_path / "p.svg").read_text()


def test_a_sparse_model_has_its_own_size():
    dense = bundles.model("mobileclip-b")
    sparse = upcycle(dense, experts=4, top_k=2)
    facts, before = (size_of(Encoder(model), tokens=9) for model in (sparse, dense))
    assert facts["params_million"] > facts["active_params_million"] > before["params_million"]
    assert facts["gflop"] > before["gflop"]
    assert facts["forward"]["text_tokens"] == before["forward"]["text_tokens"] == 9
    assert facts["forward"]["text_gflop"] < facts["gflop"]


def test_nothing_measured_is_2(tmp_path):
    plot, bad = tmp_path / "p.svg", tmp_path / "bad"
    bad.mkdir()
    (bad / "bundle.json").write_text("{}")
    done = run(bad, "--plot", plot)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"failed: {bad}: ")
    assert not plot.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "p.png"], "a file that ends in .svg"),
        (["--plot", "missing/p.svg"], "there is no folder"),
        (["--label-column", "x"], "go with --labelled DATA"),
        (["--labelled", "missing"], "missing"),
    ],
)
def test_bad_options_are_refused_before_any_work(arguments, message, tmp_path):
    done = inside.run("bench", "random:tiny", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_crash_is_told(monkeypatch):
    from pocketclip.cli import bench

    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert "ended with code 1" in bench._measure_in_process({"source": "x"})["error"]


def test_interrupting_leaves_nothing(bundle, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, str(bundle), "--seconds", "60", "--plot", str(tmp_path / "p.svg")],
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    seen = ""
    while "image tower" not in seen:
        seen = process.stderr.readline()
        assert seen
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and child
    _, stderr = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert stderr == "interrupted; no partial files were left\n"
    # ONNX Runtime leaves a file of its own there.
    assert [path.name for path in tmp_path.iterdir() if path.name != ".ses"] == []


def test_help_has_examples():
    done = inside.run("bench", "--help")
    assert done.returncode == 0
    assert "\n  pocketclip bench " in done.stdout
    assert "within one run" in " ".join(done.stdout.split())
