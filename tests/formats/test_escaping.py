"""Text from elsewhere: no control sequence in it takes effect, and JSON preserves it."""

from __future__ import annotations

import json
import os

import pytest

from pocketclip.formats.escaping import (
    argument_text,
    dump_json,
    escape_controls,
    escape_surrogates,
    name_text,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat.jpg", "a cat.jpg"),
        ("naïve 猫 🐶 \U0001f468‍\U0001f469", "naïve 猫 🐶 \U0001f468‍\U0001f469"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nb\rc\td\x00\x08\x7f", "a\\nb\\rc\\td\\x00\\x08\\x7f"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("\u202egpj.exe\u2066\u200f\u061c", "\\u202egpj.exe\\u2066\\u200f\\u061c"),
        ("a\u2028b\u2029\ufeff", "a\\u2028b\\u2029\\ufeff"),
        (os.fsdecode(b"caf\xe9\xff"), "caf\\udce9\\udcff"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_what_is_shown_is_one_plain_line(text, shown):
    assert escape_controls(text) == shown
    shown.encode()


def test_only_surrogates():
    assert escape_surrogates("a\n\x1b\udcff é") == "a\n\x1b\\udcff é"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_is_safe_to_show_and_comes_back(ascii_only):
    names = [
        *map(chr, range(0x2100)),
        "\ufeff",
        "\ud800",
        os.fsdecode(b"\xe9\xff\n"),
        "🐶",
        "\\udcff",
    ]
    for value in (names, {name: name for name in names}):
        text = dump_json(value, ascii_only=ascii_only)
        assert json.loads(text) == value
        assert escape_controls(text) == text
        assert text.isascii() == ascii_only
        text.encode()


def test_json_has_no_numbers_that_are_none():
    text = dump_json({"a": [float("nan"), (float("inf"), -float("inf"))], "b": 1.5}, indent=1)
    assert json.loads(text) == {"a": [None, [None, None]], "b": 1.5}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_are_the_same_in_every_locale(encoding, monkeypatch):
    raw = "café".encode() + b"\xff\xe9.jpg"
    path = raw.decode(encoding, "surrogateescape")  # as that locale's Python gets it
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode(encoding, "surrogateescape"))
    assert name_text(path) == raw.decode("utf-8", "surrogateescape")


def test_arguments_of_a_terminal_without_a_locale(monkeypatch):
    assert argument_text("ein Café") == "ein Café"
    assert argument_text(os.fsdecode(b"caf\xe9")) is None
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii", "surrogateescape"))
    assert argument_text("ein Café".encode().decode("ascii", "surrogateescape")) == "ein Café"
