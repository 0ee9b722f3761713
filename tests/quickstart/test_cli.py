from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from pocketclip.cli.main import build
from pocketclip.cli.quickstart import ConsoleReporter

app = build()


def pocketclip(*args, cwd):
    command = [sys.executable, "-m", "pocketclip", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_options_of_pairs_need_pairs(tmp_path):
    done = pocketclip("quickstart", "--teacher", "random:tiny", cwd=tmp_path)
    assert done.returncode == 2
    assert "--teacher goes with --pairs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_not_there(tmp_path):
    done = pocketclip("quickstart", "--pairs", "none.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "none.csv" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_whole_way():
    shown = CliRunner().invoke(app, ["quickstart", "--help"])
    assert shown.exit_code == 0
    assert "--pairs" in shown.output


def test_stages_are_written_in_order(capsys):
    reporter = ConsoleReporter()
    reporter.stage("drawing")
    reporter.progress(1, 2, "scenes")
    reporter.stage("training")
    reporter.end()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["drawing", "training"]
