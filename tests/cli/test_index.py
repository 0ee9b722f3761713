"""The command `index`: how it ends."""

from __future__ import annotations

import signal

from pocketclip.cli._index_output import IndexProgress, print_report
from pocketclip.cli.index import _interrupt_at_termination
from pocketclip.search.records import IndexReport


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with _interrupt_at_termination():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_without_photographs_is_said_to_have_none(capsys):
    print_report(IndexReport(passed_over={"file that is not a photograph": 2}), "photos")
    assert "no photograph was found there" in capsys.readouterr().out
    print_report(IndexReport(unchanged=1), "photos")
    assert "no photograph" not in capsys.readouterr().out


def test_a_remark_above_the_bar_cannot_write_to_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with IndexProgress() as reporter:
        reporter.stage("reading \x1b]0;title\x07")
        reporter.remark("a\x1b]0;title\x07.jpg")
    written = capsys.readouterr().err
    assert "a\\x1b]0;title\\x07.jpg" in written
    assert "\x1b]0;" not in written
