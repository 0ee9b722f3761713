"""Patterns of `--exclude` and of ignore files; the expected values are what git says."""

from __future__ import annotations

import unicodedata

import pytest

from pocketclip.search.indexing.rules import anchored, as_text, compile_patterns, leaves_out


def out(patterns, path):
    """Return whether a file is left out, by itself or with a folder that it is in."""
    parts = path.split("/")
    folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return any(leaves_out(patterns, folder, folder=True) for folder in folders) or leaves_out(
        patterns, path, folder=False
    )


@pytest.mark.parametrize(
    ("lines", "yes", "no"),
    [
        ("*.png", ["a.png", "a/b/c.png"], ["a.PNG", "a.png.jpg"]),
        ("shots/", ["shots/a.jpg", "a/shots/b"], ["shots", "a/shots"]),
        ("/2019", ["2019", "2019/a"], ["a/2019"]),
        ("2019/raw", ["2019/raw", "2019/raw/a"], ["a/2019/raw"]),
        ("**/tmp", ["tmp", "a/tmp", "a/b/tmp/c"], ["tmp2"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["b", "x/a/b"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "x/a/b"]),
        ("a/*/c", ["a/b/c"], ["a/c", "a/b/b/c"]),
        ("a?c*e", ["abcde", "abcee"], ["a/cde", "ace", "abcd"]),
        ("[a-c]x[!1-3]", ["axz", "bx4"], ["dxz", "ax2", "ax/"]),
        ("*.jpg\n!best.jpg", ["a.jpg", "x/b.jpg"], ["best.jpg", "x/best.jpg"]),
        ("x/\n!x/best.jpg", ["x/best.jpg"], []),
        ("# no\n\n\\#a\n\\!b", ["#a", "!b"], ["# no", "a"]),
        ("c\\*\r\nd  \ne\\ ", ["c*", "d", "e "], ["cx", "e"]),
        ("**\n!*.jpg", ["a.png", "x/a.jpg"], ["a.jpg"]),
    ],
)
def test_patterns_mean_what_they_mean_to_git(lines, yes, no):
    patterns = compile_patterns(lines.split("\n"))
    assert [path for path in (*yes, *no) if out(patterns, path)] == yes


def test_a_deeper_ignore_file_decides_and_is_for_its_folder():
    patterns = compile_patterns(["*.png"]) + compile_patterns(["!/a.png", "b.jpg"], b"deep")
    assert [path for path in ("a.png", "deep/a.png", "deep/x/a.png", "b.jpg", "deep/b.jpg")
            if out(patterns, path)] == ["a.png", "deep/x/a.png", "deep/b.jpg"]  # fmt: skip


def test_composed_and_decomposed_names_are_equal():
    patterns = compile_patterns([unicodedata.normalize("NFD", "été?/")])
    assert leaves_out(patterns, as_text(unicodedata.normalize("NFD", "étéé").encode()), folder=True)
    assert leaves_out(patterns, as_text("été".encode() + b"\xff"), folder=True)


@pytest.mark.parametrize(
    ("pattern", "moved"),
    [
        ("*.png", "/a\\[b\\*/**/*.png"),
        ("/x/y", "/a\\[b\\*/x/y"),
        ("!x/", "!/a\\[b\\*/**/x/"),
        ("x/**", "/a\\[b\\*/x/**"),
    ],
)
def test_a_pattern_for_a_subfolder(pattern, moved):
    assert anchored(pattern, b"a[b*") == moved
    for path in ("a[b*/x/y", "a[b*/c/d.png", "x/y", "a[bc/x/y"):
        inner = path.startswith("a[b*/") and out(
            compile_patterns([pattern.removeprefix("!")]), path.removeprefix("a[b*/")
        )
        assert out(compile_patterns([moved.removeprefix("!")]), path) == inner


def test_no_pattern_takes_long():
    name = "a" * 200
    patterns = compile_patterns(["*a" * 30 + "*b", "**/" + "*a*a/**/" * 30 + "b"])
    assert not leaves_out(patterns, "/".join([name] * 15), folder=False)
