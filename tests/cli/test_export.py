"""`pocketclip export`, and the verbs on what it makes, with and without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from pocketclip import Encoder, checkpoint
from pocketclip.pages.web_files import web_files
from tests.bundles import model as small
from tests.cli.inside import run
from tests.cli.test_cli import ENVIRONMENT, PHOTOS
from tests.evaluate.sets import photo, write_table

PHOTO = PHOTOS / "chelsea.jpg"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(small(), folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    rows = [{"file": f"{i}.jpg", "what": f"kind {i % 3}"} for i in range(9)]
    write_table(folder / "shelf.csv", rows, {f"{i}.jpg": photo(i) for i in range(9)})
    return folder / "shelf.csv"


def without_torch(*args):
    """Run a verb where torch cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx'): sys.modules[name] = None\n"
        "from pocketclip.cli.main import main\n"
        "main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--captions", "--labelled"])
def test_missing_inputs_are_named_before_the_model_is_loaded(tmp_path, option):
    done = run("export", "mobileclip2-s0", "--offline", "--out", tmp_path / "phone",
               option, tmp_path / "missing.txt")  # fmt: skip
    assert done.returncode == 2
    assert "missing.txt" in done.stderr


def test_a_model_is_exported_verified_and_compared(model, table, tmp_path):
    out = tmp_path / "phone"
    done = run("export", model, "--format", "openvino", "--out", out, "--labelled", table,
               "--label-column", "what", "--verify-with", PHOTO, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "verifying" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["space_id"] == small().space_id
    assert (facts["target"], facts["precision"]) == ("openvino", "fp32")
    assert (
        facts["bytes"]
        == sum(p.stat().st_size for p in out.iterdir()) - (out / "bundle.json").stat().st_size
    )
    found = facts["verification"]
    assert found["backends"]["openvino"]["image"]["count"] == 5
    assert found["accuracy"]["top1"] == found["accuracy"]["model_top1"]
    done = run("classify", PHOTO, "--labels", "a cat,a dog", "--model", out, "--json")
    assert json.loads(done.stdout)["space_id"] == facts["space_id"]


def test_a_site_is_written_without_torch(model, tmp_path):
    if web_files().vendor is None:
        pytest.skip("the package was built without npm: python hatch_build.py")
    site = tmp_path / "site"
    done = without_torch("export", model, "--format", "web", "--precision", "fp16", "--out", site)
    assert done.returncode == 0, done.stderr
    assert "first visit, on the processor" in done.stdout
    assert (site / "index.html").exists()


def test_options_of_another_format_are_refused(exported, tmp_path):
    for options, message in (
        (["--format", "web", "--normalize"], "web has no option --normalize"),
        (["--with", exported()], "onnx has no option --with: it is for --format web"),
    ):
        done = run("export", exported(), "--out", tmp_path / "out", *options)
        assert done.returncode == 2
        assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_classify_without_torch(exported, backend):
    done = without_torch("classify", PHOTO, "--labels", "a cat,a dog", "--model", exported(),
                         "--backend", backend, "--threads", "1", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["space_id"] == small().space_id
    (wanted,) = Encoder(small()).classify(PHOTO, ["a cat", "a dog"])
    assert found["results"][0]["labels"] == pytest.approx(wanted, abs=1e-4)


def test_export_without_torch_says_what_writes_a_bundle(tmp_path):
    done = without_torch("export", "mobileclip2-s0", "--out", tmp_path / "new")
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "pip install 'pocketclip[train]'" in done.stderr
    assert "`pocketclip pull MODEL --out DIR`" in done.stderr


def test_embed_without_torch(exported, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\na dog on the beach\n")
    for given, wanted in (
        (PHOTOS, Encoder(small()).encode_image(sorted(PHOTOS.glob("*.jpg")))),
        (texts, Encoder(small()).encode_text(["a cat", "a dog on the beach"])),
    ):
        out = tmp_path / "out.npy"
        done = without_torch("embed", given, "--out", out, "--model", exported())
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(out), wanted, atol=1e-4)


def test_eval_without_torch(exported, table, model):
    options = ("--data", table, "--label-column", "what", "--json", "--no-cache")
    done = without_torch("eval", exported(), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["results"][0]
    assert found["pocketclip"]["form"].startswith("onnx fp32 ")
    wanted = json.loads(run("eval", model, *options).stdout)["results"][0]
    assert "form" not in wanted["pocketclip"]
    assert found["metrics"] == pytest.approx(wanted["metrics"], nan_ok=True)


def test_results_of_the_model_are_not_taken_for_those_of_its_export(exported, table, tmp_path):
    out = tmp_path / "results.jsonl"
    options = ("--data", table, "--label-column", "what", "--no-cache", "--out", out)
    assert run("eval", exported(), *options).returncode == 0
    before = out.read_bytes()
    assert run("eval", exported(), *options).returncode == 0
    assert out.read_bytes() == before
    done = run("eval", exported(target="openvino"), *options)
    assert done.returncode == 2
    assert "export onnx fp32" in done.stderr
    assert "export openvino fp32" in done.stderr
    assert "write to another file" in done.stderr
    assert out.read_bytes() == before


def test_mistakes_are_one_line(exported, model, tmp_path):
    bundle = exported.copy(tmp_path / "bundle")
    with (bundle / "text.onnx.data").open("ab") as file:
        file.write(b"x")
    for args, message in (
        (("classify", PHOTO, "--labels", "a,b", "-m", bundle), "text.onnx.data is not the file"),
        (("classify", PHOTO, "--labels", "a,a", "-m", exported()), "'a' is given twice"),
        (("classify", PHOTO, "--labels", "a,b", "-m", exported(), "--backend", "x"), "'x' cannot"),
        (
            ("classify", PHOTO, "--labels", "a,b", "-m", model, "--backend", "openvino"),
            "is not one",
        ),
        (("export", model, "--format", "tflite", "-o", tmp_path / "n"), "unknown format 'tflite'"),
        (("export", model, "--precision", "int8", "-o", tmp_path / "n"), "--calibration FOLDER"),
        (("export", model, "--where", "a=b", "-o", tmp_path / "n"), "go with --labelled"),
        (("export", model, "-o", PHOTO), "is a file"),
        (("export", model, "-o", PHOTOS), "other files"),
        (("export", exported(), "-o", tmp_path / "n"), "is a bundle"),
    ):
        done = run(*args)
        assert done.returncode == 2, (args, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, (args, done.stderr)
        assert message in lines[0]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "n").exists()


def test_a_missing_package_names_the_extra(model, tmp_path):
    code = (
        "import sys\nsys.modules['openvino'] = None\nfrom pocketclip.cli.main import main\nmain()"
    )
    args = ("export", model, "--format", "openvino", "--out", tmp_path / "n")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'pocketclip[openvino]'" in done.stderr


@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_nothing(model, tmp_path, sent):
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketclip.cli.main", "export", str(model), "-o",
         str(tmp_path / "new")],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while "writing the image tower" not in (seen := process.stderr.readline()):
        assert seen
    process.send_signal(sent)
    process.communicate(timeout=60)
    expected = {signal.SIGTERM: (143,), signal.SIGINT: (130, -signal.SIGINT)}[sent]
    assert process.returncode in expected
    assert list(tmp_path.iterdir()) == []
