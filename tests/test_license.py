"""Licences are told apart by their names and words; those not known to be open restrict."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketclip.errors import ConfigError
from pocketclip.license import UNKNOWN, License, choose_file, find_text, name_of_text

ROOT = Path(__file__).parents[1]
MIT = (
    "MIT License\n\nCopyright (c) 2020 Somebody\n\nPermission is hereby granted, free of charge, "
    "to any person\nobtaining a copy of this software"
)


@pytest.mark.parametrize(
    ("known", "restricted"),
    [
        (License(name="apple-amlr"), True),
        (License(name="apple-ascl"), True),
        (License(name="other"), True),
        (License(name="cc-by-nc-4.0"), True),
        (License(name="cc"), True),
        (License(text="Ask me first."), True),
        (License(name="MIT", text=MIT), False),
        (License(name="cc-by-4.0"), False),
        (License(url="https://hub.example/owner/name"), False),
        (UNKNOWN, False),
    ],
)
def test_which_restrict(known, restricted):
    assert known.restricted is restricted


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {"name": "a\nb"}, {"name": "a" * 101}, {"url": "javascript:alert(1)"}],
)
def test_what_no_manifest_could_hold(wrong):
    with pytest.raises(ConfigError, match="licence"):
        License(**wrong)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (MIT, "mit"),
        (f"{MIT}, for non-commercial use", None),
        (f"Terms.\n{'Ask me first. ' * 100}\nParts: {MIT}", None),
        (MIT + " and more" * 400, None),
        ("(c) X\nDisclaimer: IMPORTANT: This Apple Machine Learning Research Model", "apple-amlr"),
        ("Creative Commons Attribution 4.0 International", "cc-by-4.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", None),
        ("Ask me first.", None),
    ],
)  # fmt: skip
def test_well_known_texts(text, name):
    assert name_of_text(text) == name


def test_the_text_of_this_package():
    assert name_of_text((ROOT / "LICENSE").read_text("utf-8")) == "apache-2.0"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["README.md", "LICENSE", "model.bin"], "LICENSE"),
        (["LICENSE", "LICENSE_weights_data"], "LICENSE_weights_data"),
        (["LICENSE", "LICENSE_MODELS"], "LICENSE_MODELS"),
        (["LICENSE-CODE", "license.txt"], "license.txt"),
        (["LICENCE.md"], "LICENCE.md"),
        (["LICENSE-CODE", "license.py", "licenses"], None),
    ],
)
def test_which_file_it_is(names, chosen):
    assert choose_file(names) == chosen


def test_a_text_that_is_none_is_not_taken(tmp_path):
    assert find_text(tmp_path / "none") is None
    (tmp_path / "LICENSE").write_bytes(b" \n")
    assert find_text(tmp_path) is None
    (tmp_path / "LICENSE").write_bytes(b"a" * (256 << 10) + b"b")
    assert find_text(tmp_path) is None
    (tmp_path / "LICENSE").write_bytes("Für Vögel.\r\n".encode())
    assert find_text(tmp_path) == "Für Vögel.\n"
