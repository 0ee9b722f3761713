from __future__ import annotations

import pytest

from pocketclip.cli.quickstart import ConsoleReporter
from tests.cli import inside


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_options_of_pairs_need_pairs(tmp_path):
    done = inside.run("quickstart", "--teacher", "random:tiny")
    assert done.returncode == 2
    assert "--teacher goes with --pairs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_not_there(tmp_path):
    done = inside.run("quickstart", "--pairs", "none.csv")
    assert done.returncode == 2
    assert "none.csv" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_minutes_are_for_pairs_and_scale_is_for_scenes(tmp_path):
    done = inside.run("quickstart", "--minutes", "5")
    assert done.returncode == 2
    assert "--minutes goes with --pairs" in done.stderr
    done = inside.run("quickstart", "--pairs", "none.csv", "--scale", "0.5")
    assert "with --pairs this is --minutes 5" in done.stderr
    done = inside.run("quickstart", "--pairs", "none.csv", "--scale", "0.5", "--minutes", "3")
    assert "give one of them" in done.stderr
    done = inside.run("quickstart", "--pairs", "none.csv", "--minutes", "1000")
    assert done.returncode == 2
    assert "it must be from 0.2 to 600" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_whole_way():
    done = inside.run("quickstart", "--help")
    assert done.returncode == 0
    assert "--pairs" in done.stdout


def test_stages_are_written_in_order(capsys):
    reporter = ConsoleReporter()
    reporter.stage("drawing")
    reporter.progress(1, 2, "scenes")
    reporter.stage("training")
    reporter.end()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["drawing", "training"]
