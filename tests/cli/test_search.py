"""`pocketclip search`, and the pictures that it draws in a terminal."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from pocketclip.cli import _terminal_images as pictures
from pocketclip.cli._terminal_images import Terminal, detect, draw
from pocketclip.search import Library, background
from tests.cli.inside import run
from tests.search.conftest import *  # noqa: F403 - fixtures
from tests.search.conftest import draw_photo


@pytest.fixture
def indexed(photos, encoder, bundle):
    """The default library, with six photographs."""
    with Library.open(create=True) as library:
        library.index([photos], encoder=encoder, model=bundle)
    return photos


def test_a_table(indexed):
    done = run("search", "a red circle", "--top", 3, cwd=indexed)
    assert done.returncode in (0, 1)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"\s+score\s+taken\s+photograph\s*", lines[0])
    assert len(lines) == 4
    assert re.match(r"1  0\.\d{3}  20\d\d-\d\d-\d\d \d\d:\d\d \(file\)  /.*/photos/", lines[1])
    assert "\x1b" not in done.stdout


@pytest.mark.usefixtures("indexed")
def test_json():
    done = run("search", "2:a red circle - a square", "--json", "--in", "trip")
    found = json.loads(done.stdout)
    assert 'searched for: 2 x "a red circle" - "a square"' in done.stderr
    assert found["parts"] == [
        {"weight": 2.0, "text": "a red circle"}, {"weight": -1.0, "text": "a square"}
    ]  # fmt: skip
    assert [Path(hit["path"]).name for hit in found["hits"]] in (
        ["e.jpg", "f.jpg"], ["f.jpg", "e.jpg"],
    )  # fmt: skip
    assert found["searched"] == 2
    assert found["hits"][0]["time_from"] == "file"


def test_paths_for_pipes_keep_their_bytes(indexed, encoder):
    odd = os.fsdecode(b"-caf\xe9\n.jpg")
    draw_photo(indexed / "new.jpg", 30).rename(indexed / odd)
    with Library.open() as library:
        library.index(encoder=encoder)
    command = [sys.executable, "-m", "pocketclip", "search", "--image", indexed / odd, "--top", "1"]
    done = subprocess.run([*command, "-0"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(indexed / odd) + b"\0"
    done = subprocess.run([*command, "--paths"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(indexed / odd) + b"\n"
    assert b"line break in its name: use -0" in done.stderr


@pytest.mark.usefixtures("indexed")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["beach +"], "part 2 of the query is empty"),
        ([], "nothing to search for"),
        (["-people"], "every part is to be avoided"),
        (["x", "--since", "soon"], "'soon' is no date"),
        (["x", "--in", "nowhere"], "no photographs of the folder 'nowhere'"),
        (["red", "car"], 'no folder car; put several words in quotes: "red car"'),
        (["--image", "nowhere.jpg"], "no photograph nowhere.jpg"),
        (["x", "--json", "--paths"], "choose one of --json and --paths"),
        (["x", "--html", "page.txt"], "ends in .html"),
        (["x", "--library", "none"], "no library none"),
        (["caf\udce9"], "not UTF-8"),
    ],
)
def test_what_cannot_be_done_is_one_line(args, message):
    done = run("search", "--", *args) if args == ["-people"] else run("search", *args)
    assert done.returncode == 2
    assert not done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.usefixtures("indexed")
def test_nothing_left_says_which_filter_removed_what():
    done = run("search", "x", "--in", "trip", "--camera", "leica")
    assert done.returncode == 1
    assert not done.stdout
    assert "4 photographs are in other folders" in done.stderr
    assert "2 photographs are of other cameras, or name none" in done.stderr
    done = run("search", "x", "--min-score", 2)
    assert (done.returncode, done.stderr.strip()) == (1, "no photograph reaches --min-score")


def test_a_folder_that_is_not_in_the_library_is_indexed_first(indexed, tmp_path, bundle):
    new = tmp_path / "new"
    draw_photo(new / "x.jpg", 40)
    done = run("search", "a circle", new, "--json", "--min-score", -1)
    assert "is not in the library photos yet: it is indexed first" in done.stderr
    assert [hit["path"] for hit in json.loads(done.stdout)["hits"]] == [str(new / "x.jpg")]
    done = run("search", "a circle", new / ".", "--json", "--min-score", -1)
    assert "indexed first" not in done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 1
    done = run("search", "a circle", indexed / "trip", "--json", "--min-score", -1)
    assert "indexed first" not in done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 2
    done = run("search", "a circle", new, "--library", "another", "--model", bundle, "--json")
    assert "is not in the library another yet" in done.stderr
    (tmp_path / "empty").mkdir()
    done = run("search", "a circle", tmp_path / "empty")
    assert (done.returncode, "holds no photographs" in done.stderr) == (2, True)
    for wrong, reason in ((new / "x.jpg", "is a file: give the folder"), ("", "an empty path")):
        done = run("search", "a circle", wrong)
        assert (done.returncode, reason in done.stderr) == (2, True)
        assert "indexed first" not in done.stderr
    done = run("search", "a circle", "--in", new / "x.jpg")
    assert (done.returncode, "is a file: give the folder" in done.stderr) == (2, True)


def test_a_folder_of_a_drive_that_is_away(indexed, tmp_path):
    done = run("search", "x", indexed / "nothing")
    assert (done.returncode, "there is no folder" in done.stderr) == (2, True)
    indexed.rename(tmp_path / "elsewhere")
    done = run("search", "x", indexed / "trip")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{indexed} is not there now: its photographs are left out" in done.stderr


def test_a_page(indexed, encoder, tmp_path):
    hostile = indexed / "<img src=x onerror=alert(1)>\" '\u202e&.jpg"
    draw_photo(indexed / "new.jpg", 30).rename(hostile)
    with Library.open() as library:
        library.index(encoder=encoder)
    page = tmp_path / "page.html"
    done = run("search", "a <b> & \u202e 'c'", "--html", page)
    assert f"{page}: 7 photographs" in done.stderr
    text = page.read_text("utf-8")
    assert text.count('src="data:image/jpeg;base64,') == 7
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert "<b> &" not in text
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg|file:///)', text), "self-contained"
    assert "prefers-color-scheme: dark" in text
    links = [unquote(urlsplit(link).path) for link in re.findall(r'href="(file:[^"]*)"', text)]
    assert str(hostile) in links


def test_the_viewer_gets_whole_paths(indexed, encoder, tmp_path, monkeypatch):
    draw_photo(indexed / "new.jpg", 30).rename(indexed / "-rf.jpg")
    with Library.open() as library:
        library.index(encoder=encoder)
    log = tmp_path / "log"
    name = "open" if sys.platform == "darwin" else "xdg-open"
    viewer = tmp_path / "bin" / name
    viewer.parent.mkdir()
    viewer.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\n')
    viewer.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{viewer.parent}:{os.environ['PATH']}")
    done = run("search", "--image", "./-rf.jpg", "--top", 2, "--open", cwd=indexed)
    assert done.returncode == 0
    opened = log.read_text().splitlines()
    assert len(opened) == 2
    assert opened[0] == str(indexed / "-rf.jpg")
    run("search", "x", "--html", "page.html", "--open", cwd=tmp_path)
    assert log.read_text().splitlines()[2:] == [str(tmp_path / "page.html")]
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("search", "--image", "b.jpg", "--open", cwd=indexed)
    assert f"--open needs the command {name}" in done.stderr


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "UTF-8"

    def isatty(self):
        return True

    def fileno(self):
        raise OSError


TRUE = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"), ({"TERM": "xterm-ghostty"}, "kitty"),
        ({**TRUE, "KONSOLE_VERSION": "230804"}, "kitty"),
        ({**TRUE, "KONSOLE_VERSION": "x"}, "24-bit"),
        ({**TRUE, "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({**TRUE, "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-kitty", "TMUX": "x", "COLORTERM": "truecolor"}, "24-bit"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "256"),
        ({"TERM": "screen.xterm-256color", "COLORTERM": "truecolor"}, "256"),
        (TRUE, "24-bit"), ({"TERM": "xterm-256color"}, "256"), ({"TERM": "xterm"}, None),
        ({**TRUE, "TERM": "dumb"}, None), ({**TRUE, "NO_COLOR": "1"}, None), ({}, None),
    ],
)  # fmt: skip
def test_what_a_terminal_can_draw(environment, protocol):
    found = detect(Screen(), environment)
    assert (None if found is None else found.protocol) == protocol
    assert detect(io.StringIO(), environment) is None
    latin = Screen()
    latin.encoding = "ISO-8859-1"
    assert detect(latin, environment) is None


def picture(width, height, *, noise=0):
    """Return a JPEG: its left half red, its right half blue."""
    pixels = np.random.default_rng(0).integers(0, noise + 1, (height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def colours(code):
    """Return the colours of each half block of each line."""
    out = []
    for line in code.split("\n"):
        cells, now = [], None
        for found in re.finditer(r"\x1b\[([\d;]*)m|(.)", line):
            now = found[1] if found[2] is None else now
            if found[2] == "▀":
                cells.append(now)
        out.append(cells)
    return out


@pytest.mark.parametrize(("protocol", "red", "blue"), [
    ("24-bit", r"38;2;25\d;0;0;48;2;25\d;0;0", r"38;2;0;0;25\d;48;2;0;0;25\d"),
    ("256", "38;5;196;48;5;196", "38;5;21;48;5;21"),
])  # fmt: skip
def test_half_blocks(protocol, red, blue):
    text = draw([picture(320, 240), None], ["1", "2"], Terminal(protocol), width=80).decode()
    lines = [cells for cells in colours(text) if cells]
    assert len(lines) == 9
    for cells in lines:
        assert len(cells) == 24
        assert re.fullmatch(red, cells[0])
        assert re.fullmatch(blue, cells[-1])
    assert text.count("\x1b[0m") == 9, "the colours end with each line"
    assert text.split("\n")[9].split() == ["1", "2"]


@pytest.mark.parametrize("size", [(320, 240), (100, 320), (320, 4), (3, 2)])
def test_pictures_keep_their_proportions(size):
    lines = [row for row in colours(
        draw([picture(*size)], ["1"], Terminal("24-bit"), width=80).decode()) if row]  # fmt: skip
    columns, rows = len(lines[0]), 2 * len(lines)
    assert columns <= 24
    assert rows <= 18
    assert columns == 24 or rows == 18
    assert (
        abs(columns / rows - size[0] / size[1]) < 0.15 * size[0] / size[1]
        or min(columns, rows) <= 2
    )


def test_kitty():
    data = picture(320, 240, noise=20)
    text = draw([data], ["1"], Terminal("kitty", (8, 16)), width=80).decode()
    commands = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert commands[0][0].startswith("a=T,f=100,q=2,C=1,c=24,r=9,m=")
    assert all(len(data) <= 4096 for _, data in commands)
    assert [keys[-3:] for keys, _ in commands] == ["m=1"] * (len(commands) - 1) + ["m=0"] or len(
        commands
    ) == 1
    image = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in commands))))
    assert (image.format, image.size) == ("PNG", (320, 240))


def test_iterm2():
    data = picture(320, 240)
    text = draw([data, data], ["1", "2"], Terminal("iterm2", (8, 16)), width=80).decode()
    found = re.findall(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=24;height=9;[^:]*:([^\a]*)\a", text
    )
    assert [(int(size), base64.b64decode(code)) for size, code in found] == [(len(data), data)] * 2
    assert text.count("\x1b7") == text.count("\x1b8") == 2


@pytest.mark.usefixtures("indexed")
def test_the_terminal_gets_the_first_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "detect", lambda _stream: Terminal("24-bit"))
    monkeypatch.setattr("pocketclip.cli.output.write_bytes", lambda data: drawn.append(data))
    drawn = []
    run("search", "a circle", "--min-score", -1, "--top", 6)
    assert drawn[0].count("▀".encode()) > 24
    assert b"\n" in drawn[0]
    assert re.findall(rb"\d", drawn[0].split(b"\n")[9]) == [b"1", b"2", b"3"]
    drawn.clear()
    run("search", "a circle", "--no-preview")
    assert not drawn


def test_nothing_fits_well(indexed, tmp_path, monkeypatch):
    verdict = background.Verdict(False, "nothing fits well: the best score is 0.1")
    monkeypatch.setattr(background, "judge", lambda *_args, **_options: verdict)
    done = run("search", "a circle", "--top", 2, "--html", tmp_path / "page.html")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    assert "nothing fits well: the best score is 0.1; these are the closest" in done.stderr
    assert "nothing fits well" in (tmp_path / "page.html").read_text("utf-8")
    found = json.loads(run("search", "a circle", "--json").stdout)
    assert (found["fits"], len(found["hits"])) == (False, 6)
    code = (
        "import pocketclip.search.background as b\n"
        "b.judge = lambda *_args, **_options: b.Verdict(False, 'nothing fits well: x')\n"
        "from pocketclip.cli.main import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "search", "a circle", "-0"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing fits well: x; to have the closest ones all the same" in done.stderr
    done = subprocess.run([*command, "--min-score", "-1"], capture_output=True, check=True)
    assert done.stdout.count(b"\0") == 6
    assert os.fsencode(indexed / "b.jpg") in done.stdout.split(b"\0")
