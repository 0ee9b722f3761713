"""A command in the tests' own process: soon done, for the many that only fail."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

from pocketclip.cli.main import main


@contextlib.contextmanager
def _folder(path):
    before = Path.cwd()
    os.chdir(path or before)
    try:
        yield
    finally:
        os.chdir(before)


def run(*args, cwd=None):
    """Return how it ended, as `subprocess.run` does."""
    argv = ["pocketclip", *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    terminated = signal.getsignal(signal.SIGTERM)  # which `export` replaces
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        mock.patch.object(warnings, "showwarning", warnings.showwarning),  # which `main` replaces
        warnings.catch_warnings(),
        _folder(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("default")
        try:
            main()
        except SystemExit as done:
            return subprocess.CompletedProcess(argv, done.code, out.getvalue(), err.getvalue())
        finally:
            signal.signal(signal.SIGTERM, terminated)
    raise AssertionError("main always exits")
