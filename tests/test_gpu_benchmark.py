"""What `benchmarks/gpu.py` reports, and that it ends in time; every path of it, in small."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch

import gpu
import gpu_bench
import gpu_rows
from gpu_bench import Bench, Clock
from processor import describe_processor

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(tmp_path):
    def make(seconds: float, *, quick: bool = True) -> Bench:
        return Bench(
            device=torch.device("cpu"), dtype=torch.float32, quick=quick, folder=tmp_path,
            clock=Clock(seconds, time.monotonic()), batch=2, workers=0,
        )  # fmt: skip

    return make


def row(name, seconds=0.0, *, may_wait=False, measure=None):
    return gpu_rows.Row(name, measure or (lambda _bench: {"done": name}), seconds, may_wait)


def run(rows, bench, tmp_path):
    report = gpu.Report(tmp_path / "gpu.json", {}, [one.name for one in rows])
    gpu.run_rows(rows, bench, report)
    assert json.loads(report.out.read_text()) == report.content
    return report.content


@pytest.mark.parametrize(
    "options", [["--minutes", "nan"], ["--minutes", "-1"], ["--batch", "0"], ["--rows", "nosuch"]]
)
def test_bad_options_leave_an_earlier_file_alone(options, tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text("earlier")
    with pytest.raises(SystemExit) as ended:
        gpu.main([*options, "--quick", "--device", "cpu", "--out", str(out)])
    assert ended.value.code not in (0, None)
    assert out.read_text() == "earlier"


def test_rows_that_do_not_fit_are_unreached_and_smaller_ones_are_measured(bench, tmp_path):
    content = run([row("a", 1), row("b", 1_000), row("c", 1)], bench(300), tmp_path)
    assert list(content["rows"]) == ["a", "c"]
    assert list(content["unreached"]) == ["b"]
    assert content["unreached"]["b"].startswith("takes about 1000 s, ")


def test_a_long_row_comes_last_unless_there_is_time_for_all(bench, tmp_path):
    rows = [row("a", 1), row("compile", 600, may_wait=True), row("b", 500)]
    assert list(run(rows, bench(1_000), tmp_path)["rows"]) == ["a", "b", "compile"]
    assert list(run(rows, bench(9_000), tmp_path)["rows"]) == ["a", "compile", "b"]


def test_a_row_that_fails_says_why_in_one_line_and_the_next_is_measured(bench, tmp_path):
    def fail(_bench):
        raise ValueError("no such thing\nand a long story")

    rows = run([row("a", measure=fail), row("b")], bench(30), tmp_path)["rows"]
    assert rows["a"]["failed"] == "ValueError: no such thing"
    assert rows["b"]["done"] == "b"


def test_a_row_is_stopped_at_the_end_of_the_time(bench, tmp_path):
    content = run([row("a", measure=lambda _: time.sleep(60))], bench(0.3), tmp_path)
    assert content["rows"]["a"]["failed"] == "stopped at the end of the time"


def test_an_inner_limit_leaves_the_outer_one_in_force():
    clock, ended = Clock(100, time.monotonic()), []

    def wait() -> None:
        with pytest.raises(gpu_bench.OutOfTimeError), clock.limit(0.05):
            time.sleep(10)
        ended.append("inner")
        time.sleep(10)

    with pytest.raises(gpu_bench.OutOfTimeError), clock.limit(0.5):
        wait()
    assert ended == ["inner"]


def test_a_variant_that_cannot_be_made_in_time_is_left_out(bench):
    ours = gpu_bench.Variant(lambda: None, 1)
    made, left_out = bench(100).build({"ours": lambda: ours, "absent": lambda: None}, 20)
    assert list(made) == ["ours"]
    assert left_out["absent"].startswith("not to be had here")
    with pytest.raises(RuntimeError, match="ours: needs about 200 s, "):
        bench(100).build({"ours": lambda: ours}, 200)


def test_cosines_are_the_lowest():
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert gpu_bench.lowest_cosine([one, None], [other, one]) == pytest.approx(0.5**0.5, abs=1e-6)


def test_aims_are_judged_by_compiled_steps_and_the_fastest_tower():
    def tower(ours, timm):
        return {
            "batch": 1,
            "variants": {"image": {"samples_per_s": ours}, "timm": {"samples_per_s": timm}},
        }

    rows = {
        "train/b/eager": {"ratios": {"plain, all tokens over open_clip": 9.0}},
        "train/b/compiled": {
            "ratios": {"plain over open_clip": 2.0, "plain, all tokens over open_clip": 1.2}
        },
        "feed/exact": {"share_of_waiting": 0.2},
        "feed/device": {"share_of_waiting": 0.01},
        "inference/b/eager": {"batches": [tower(10.0, 10.0)]},
        "inference/b/compiled": {"batches": [tower(16.0, 20.0)]},
        "tests": {"failed": "TimeoutError"},
    }
    training, inference, waiting = gpu.judge(rows).values()
    assert training == "missed (train/b/compiled: 1.2)"
    assert inference == "reached (b at 1: 1.6)"  # over timm's eager tower
    assert waiting == "reached (feed/exact: 0.2, feed/device: 0.01)"
    assert set(gpu.judge({}).values()) == {"not measured"}


def test_rows_of_an_earlier_run_are_kept_unless_they_failed(tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"rows": {"a": {"variants": {}}, "b": {"failed": "memory"}}}))
    assert list(gpu.measured(out)) == ["a"]


def test_the_tests_that_need_a_gpu_are_run(bench, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["cuda"]\n')
    (tmp_path / "tests" / "test_one.py").write_text(
        "import pytest\n@pytest.mark.cuda\ndef test_a(): assert False\ndef test_b(): assert False\n"
    )
    (tmp_path / "tests" / "test_two.py").write_text("def test_c(): assert False\n")
    monkeypatch.setattr(gpu_rows, "ROOT", tmp_path)
    on_gpu = bench(60)
    on_gpu.device = torch.device("cuda")
    result = gpu_rows.run_tests(on_gpu)
    assert result["files"] == ["test_one.py"]
    assert result["exit_code"] == 1
    assert result["summary"].startswith("1 failed, 1 deselected")
    assert result["failures"][0].startswith("FAILED tests/test_one.py::test_a")
    assert gpu_rows.run_tests(bench(60)) == {"skipped": "there is no GPU"}


def test_packages_of_a_folder_of_wheels_come_last(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_package/__init__.py", "value = 3")
        wheel.writestr("pytest.py", "raise ImportError")
    gpu.add_wheels(tmp_path)
    import carried_package

    assert carried_package.value == 3
    assert importlib.util.find_spec("pytest").origin == pytest.__file__


@pytest.mark.parametrize(
    ("flags", "bf16", "vnni", "amx"),
    [
        ("fpu avx2", False, False, False),
        ("fpu avx512f avx512_vnni", False, True, False),
        ("fpu avx2 avx_vnni", False, True, False),
        ("avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", True, True, True),
    ],
)
def test_the_processor_is_described(flags, bf16, vnni, amx):
    facts = describe_processor(f"processor: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: {flags}\n")
    assert facts["name"] == "Some CPU @ 2 GHz"
    assert (facts["bf16"], facts["vnni"], facts["amx"]) == (bf16, vnni, amx)


def test_a_processor_that_says_nothing_is_not_called_slow():
    facts = describe_processor("")
    assert facts["name"]
    assert facts["bf16"] is facts["vnni"] is facts["amx"] is None


def test_the_quick_run_measures_every_row(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", "--device", "cpu"]
    ended = subprocess.run(
        [*command, "--minutes", "30", "--out", "gpu.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    content = json.loads(ended.stdout.splitlines()[-1])
    assert content == json.loads((tmp_path / "gpu.json").read_text())
    assert content["unreached"] == {}
    rows = content["rows"]
    failed = {name: one["failed"] for name, one in rows.items() if "failed" in one}
    assert failed == {}
    for mode in ("eager", "compiled"):
        step, towers = rows[f"train/s0/{mode}"], rows[f"inference/s0/{mode}"]["batches"][0]
        assert {"plain", "reinforced"} <= set(step["variants"])
        assert "reinforced over plain" in step["ratios"]
        assert {"image", "text"} <= set(towers["variants"])
    for figures in variants(rows):
        assert figures["cosine_to_fp32"] > 0.99
        assert figures["samples_per_s"] > 0
    for way in ("exact", "device", "materialised"):
        assert rows[f"feed/{way}"]["loader_samples_per_s"] > 0
        assert 0 <= rows[f"feed/{way}"]["share_of_waiting"] <= 1
    assert rows["resumed"]["bit_equal"]  # on a CPU
    assert rows["synchronisations"]["steps"] == 3
    assert set(skipped(rows)) <= {"tests", "resumed/deterministic"}


def variants(rows):
    """Return the figures of all variants."""
    for one in rows.values():
        for each in one.get("batches", [one]):
            yield from each.get("variants", {}).values()


def skipped(rows):
    """Return why rows were skipped."""
    return {name: one["skipped"] for name, one in rows.items() if "skipped" in one}
