"""What the verbs show, on every terminal, pipe and file."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import itertools
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pocketclip.cli import main, output
from pocketclip.cli._options import check_output_file
from pocketclip.cli._progress import progress
from pocketclip.cli.output import Bold, Column, LostOutputError
from pocketclip.errors import PocketclipError
from tests.cli import inside

CLI = Path(main.__file__).parent
HARMFUL = "a\x1b[31m\x9b\u202e\n:dog:[red]x[/red]\udcff"
SHOWN = "a\\x1b[31m\\x9b\\u202e\\n:dog:[red]x[/red]\\udcff"
COLUMNS = (Column("name", folds=True), Column("value", right=True))


class Terminal(io.StringIO):
    """A terminal that is as wide as COLUMNS says."""

    encoding = "utf-8"

    def isatty(self):
        return True


class Failing(io.StringIO):
    """Standard output that cannot be written."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        if text:
            raise OSError(self.number, os.strerror(self.number))
        return 0


@pytest.fixture
def environment(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


def on_a_terminal(print_something):
    """Return the lines that are printed, without bold and dim."""
    with contextlib.redirect_stdout(Terminal()) as terminal:
        print_something()
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def test_verbs_print_through_this_module_only():
    for path in sorted(CLI.glob("*.py")):
        if path.name == "output.py":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, (ast.Call, ast.ImportFrom)) else ""
            for other in ("print(", "sys.stdout.", "sys.stderr.write", "typer.echo", "Console("):
                assert not text.startswith(other), f"{path.name} line {node.lineno}: {text}"
            assert not text.startswith(("from rich.console", "from rich.table", "from rich.text"))


def test_a_call_is_a_line(capsys):
    output.say(HARMFUL)
    output.note(HARMFUL)
    shown = capsys.readouterr()
    assert shown.out == shown.err == SHOWN + "\n"


def test_the_log_and_warnings_are_shown_alike(capsys):
    handler = output._Notes()
    handler.handle(logging.makeLogRecord({"levelname": "warning", "msg": HARMFUL}))
    output._note_warning(UserWarning(HARMFUL))
    assert capsys.readouterr().err == f"warning: {SHOWN}\n" * 2


def test_tables_in_files_are_as_wide_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    long = "x" * 300
    output.print_table(COLUMNS, [(long, "1"), (HARMFUL, Bold("22")), ("猫🐶", "3")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "value"], [long, "1"], [SHOWN, "22"], ["猫🐶", "3"]
    ]  # fmt: skip


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("columns", [0, 1, -5, "abc", "", "٣", "9" * 30, 30, 200])
def test_tables_on_a_terminal_fold_and_lose_nothing(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "y" * 150
    lines = on_a_terminal(lambda: output.print_table(COLUMNS, [(text, "12345")]))
    assert max(map(len, lines)) <= (columns if columns in (30, 200) else 80)
    assert "".join(line.partition(" ")[0] for line in lines[1:]) == text
    assert "12345" in lines[1]
    wide = [Column(title, right=True) for title in "abcdefgh"]
    lines = on_a_terminal(lambda: output.print_table(wide, [["123456789"] * 8]))
    assert lines[1].split() == ["123456789"] * 8  # it cannot be folded


@pytest.mark.usefixtures("environment")
def test_markup_and_emoji_of_names_are_none():
    name = ":dog: [bold]b[/bold] [link=x]"
    lines = on_a_terminal(lambda: output.print_table(COLUMNS, [(name, Bold("[/]"))]))
    assert lines[1].split("  ")[0] == name
    assert lines[1].endswith("[/]")
    assert on_a_terminal(lambda: output.say("[red]:cat:", dim=True)) == ["[red]:cat:"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_json_on_any_stream(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors="strict"))
    value = {"photo": HARMFUL, "label": "naïve 🐶"}
    output.print_json(value)
    assert json.loads(raw.getvalue()) == value


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 2), (errno.EPIPE, 141)])
def test_output_that_is_lost_is_no_success(monkeypatch, capsys, number, code):
    monkeypatch.setattr(sys, "argv", ["pocketclip", "models", "--json"])
    monkeypatch.setattr(sys, "stdout", Failing(number))
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == code
    wanted = "error: standard output: No space left on device\n" if code == 2 else ""
    assert capsys.readouterr().err == wanted


def test_a_closed_standard_output_is_an_error_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pocketclip", "embed", "gone.jpg", "-o", "x.npy"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 2
    assert capsys.readouterr().err.startswith("error: standard output: closed")


def test_a_message_that_cannot_be_shown_does_not_end_the_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Failing(errno.ENOSPC))
    output.note("skipped")
    monkeypatch.setattr(sys, "stdout", Failing(errno.ENOSPC))
    with pytest.raises(LostOutputError):
        output.say("answer")


def test_without_standard_error_nothing_else_reaches_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(logging.root, "handlers", [])
    try:
        output.set_up()
        output.note("a note")
        logging.getLogger("x").warning("a warning")
    finally:
        with contextlib.suppress(AttributeError):
            sys.stderr.close()
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("environment")
def test_progress_on_a_terminal_shows_titles_as_they_are(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal), progress(3, "images", HARMFUL) as advance:
        advance(1)
        output.say("an answer")
        output.note("a note")
    assert SHOWN in terminal.getvalue()
    assert "a note" in terminal.getvalue()
    assert HARMFUL[:6] not in terminal.getvalue()
    assert capsys.readouterr().out == "an answer\n"


def test_errors_are_one_line_whatever_they_name(tmp_path):
    folder = tmp_path / HARMFUL.replace("/", "-")
    done = inside.run("audit", folder)
    assert done.returncode == 2
    assert done.stderr.isprintable() or done.stderr.removesuffix("\n").isprintable()
    assert "\\x1b[31m" in done.stderr
    done = inside.run("models", "--\x1b[31m")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr


def test_a_terminal_without_a_locale():
    """In a process: the streams are made when Python starts."""
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    text = ascii("naïve \U0001f436")
    code = (
        "from pocketclip.cli import output; output.set_up(); "
        f"output.say({text} + chr(0xdcff)); output.note({text}); output.print_json([{text}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.decode("ascii").splitlines()
    assert first == "na\\xefve \\U0001f436\\udcff"
    assert json.loads("".join(rest)) == ["naïve \U0001f436"]
    assert done.stderr == b"na\\xefve \\U0001f436\n"


@pytest.mark.parametrize("verb", ["", *main.VERBS])
def test_help_fits_a_terminal_and_has_examples(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["pocketclip", *filter(None, [verb]), "--help"])
    with pytest.raises(SystemExit) as done:
        main.main()
    assert not done.value.code
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.lstrip().startswith(f"pocketclip {verb}") for line in lines)
    assert "..." not in "".join(lines).partition("Commands:")[2]
    for line, following in itertools.pairwise(lines):
        assert not line.endswith("\\") or following.startswith("      ")


def test_output_files_are_checked_before_the_work(tmp_path):
    new = tmp_path / "new" / "page.png"
    with pytest.raises(PocketclipError, match=r"--out .*: there is no folder"):
        check_output_file("--out", new, (".png",))
    check_output_file("--out", new, (".png",), creates_folder=True)
    check_output_file("--out", tmp_path / "page.png", (".png",), creates_folder=True)
    with pytest.raises(PocketclipError, match=r"give a file that ends in \.png or \.jpg"):
        check_output_file("--out", tmp_path / "page.gif", (".png", ".jpg"), creates_folder=True)
    assert list(tmp_path.iterdir()) == []
