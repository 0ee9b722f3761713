from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pocketclip.errors import ParseError
from pocketclip.formats.fields import field, items
from pocketclip.formats.json_text import MAX_DEPTH, load_json, read_json, read_json_lines
from pocketclip.formats.lines import load_lines, split_lines
from pocketclip.formats.yaml_text import dump_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),
        ("\ufeffa\nb", ["a", "b"]),
        ("\ufeff", []),
        ("a\u2028b\u2029c\x85d\ne\x0bf\x0cg\x1c", ["a\u2028b\u2029c\x85d", "e\x0bf\x0cg\x1c"]),
        ("a\rb\nc", ["a\rb", "c"]),
        (" a \n\tb", [" a ", "\tb"]),
    ],
)  # fmt: skip
def test_lines_end_at_newlines_only(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": [1, 2.5, true, null, "\\ud83d\\ude00"]}', {"a": [1, 2.5, True, None, "😀"]}),
        (b"\xef\xbb\xbf[1]", [1]),
        ("\ufeff[1]", [1]),
        ('{"a": "\u00e9"}'.encode("utf-16"), {"a": "\u00e9"}),
        ('{"a": "\u00e9"}'.encode("utf-16-le"), {"a": "\u00e9"}),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b'"' + b"[" * 1000 + b'"', "[" * 1000),
        (b'["\\"[' + b"[" * 1000 + b'", "]"]', ['"[' + "[" * 1000, "]"]),
        (b"[" + b"9" * 308 + b"]", [int("9" * 308)]),
        ('["' + "9" * 5000 + '"]', ["9" * 5000]),
        (b'["1e999", 1e300]', ["1e999", 1e300]),
    ],
)  # fmt: skip
def test_valid_json(text: bytes | str, value: Any) -> None:
    loaded = load_json(text)
    assert value is None or loaded == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "1e999 is too large"),
        (b"[-1E+400]", "too large"),
        (b"[" + b"9" * 400 + b".0]", "too large"),
        (b"[" + b"9" * 400 + b"]", "too large"),
        (b"[" + b"9" * 5_000 + b"]", "too large"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
        (b'["cut \\ud83d"]', "half of a surrogate pair"),
        ('["\udcff"]', "half of a surrogate pair"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "100 levels"),
        (b'{"a":' * 100_000, "100 levels"),
        (b'[{"":' * 60 + b"1" + b"}]" * 60, "100 levels"),
        (b'["]", "[", ' + b"[" * 101 + b"]" * 101 + b"]", "100 levels"),
        (b'["\\\\", "\\"' + b"]" * 200 + b'", ' + b"[" * 101 + b"]" * 102, "100 levels"),
        (b'"' + b"a" * (64 << 20) + b'"', "larger than"),
        (b"[" + b"{}," * 3_000_000 + b"{}]", "too many values"),
        (b"[" + b"1," * 6_000_000 + b"1]", "too many values"),
    ],
)
def test_invalid_json_is_refused(text: bytes | str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason) as error:
        load_json(text, what="x.json")
    assert str(error.value).startswith("x.json ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * 10_000_000 + b"{}]",  # 30 MB: 700 MB of objects
        b"[" + b'"ab",' * 6_000_000 + b'"ab"]',
    ],
    ids=["objects", "texts"],
)
def test_json_is_refused_before_it_is_built(text: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ParseError, match="too many values"):
            load_json(text)
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["," * 7_000_000, r"\"[," * 2_000_000, "\\,{:"])
def test_what_is_within_texts_is_not_counted_as_values(text: str) -> None:
    memory = len(text) * 2 + 2_000
    assert load_json(json.dumps([text, "", text[:9]]), max_memory=memory) == [text, "", text[:9]]


def test_deep_json_is_refused_where_little_recursion_is_left() -> None:
    depth = 200_000  # from Python 3.12 on, C code has a limit of its own

    def within(levels: int) -> None:
        if levels:
            within(levels - 1)
        else:
            with pytest.raises(ParseError, match=r"too deeply|levels"):
                load_json(b"[" * depth + b"]" * depth, max_depth=10**6)

    within(sys.getrecursionlimit() // 3)


def test_constants_and_surrogates_on_request() -> None:
    values = load_json(b"[NaN, Infinity, 1e999]", constants=True)
    assert values[0] != values[0]
    assert values[1:] == [float("inf")] * 2
    assert load_json(json.dumps("\udcff.jpg"), surrogates=True) == "\udcff.jpg"
    assert load_json('"\udcff.jpg"', surrogates=True) == "\udcff.jpg"


def test_json_files_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(ParseError, match=r"a\.json is larger than the limit of 4 bytes"):
        read_json(path, max_bytes=4)
    lines = '\ufeff{"a": "x\u2028y"}\r\n\n[2]\n{'.encode()
    rows = read_json_lines(lines, what="l")
    assert [next(rows), next(rows)] == [(1, {"a": "x\u2028y"}), (3, [2])]
    with pytest.raises(ParseError, match="l line 4 is not JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 1\nb: [1.5, x, null, ~, true]", {"a": 1, "b": [1.5, "x", None, None, True]}),
        ("a: NO\nb: on\nc: y", {"a": "NO", "b": "on", "c": "y"}),
        ("a: 2020-01-01\nb: 1:30\nc: 12:30:45", {"a": "2020-01-01", "b": "1:30", "c": "12:30:45"}),
        ("a: 010\nb: 0o17\nc: 0x1F\nd: 1_000", {"a": 10, "b": 15, "c": 31, "d": 1000}),
        ("a: 1e-3\nb: 5E2\nc: .5\nd: -1.", {"a": 0.001, "b": 500.0, "c": 0.5, "d": -1.0}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}),
        ("a: {<<: [{k: 1}, {k: 2, l: 2}]}", {"a": {"k": 1, "l": 2}}),
        ("a: !!str 1", {"a": "1"}),
        (b"\xef\xbb\xbfa: \xc3\xa9", {"a": "\u00e9"}),
        ("a: \u00e9".encode("utf-16"), {"a": "\u00e9"}),
    ],
)  # fmt: skip
def test_valid_yaml(text: str | bytes, value: Any) -> None:
    loaded = load_yaml(text)
    assert loaded == value
    assert repr(loaded) == repr(value)  # True is not 1
    assert load_yaml(dump_yaml(value)) == value


def _aliases(first: str, template: str) -> str:
    lines = [f"a0: &a0 {first}"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} " + template.format(", ".join([f"*a{i - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_aliases("[1, 1]", "[{}]"), "values"),
        (_aliases("{k: 1}", "{{<<: [{}]}}"), "values"),
        ("a: &a [*a]", "levels"),
        ("a: &a {<<: *a}", "levels"),
        ("[" * 50_000, "levels"),
        ("{" * 1_000, "levels"),
        ("- " * 3_000, "levels"),
        ("? " * 3_000, "levels"),
        ("x: !!python/object/apply:os.system [x]", "tag"),
        ("x: !!binary aGk=", "tag"),
        ("x: !!timestamp 2020-01-01", "tag"),
        ("x: !!set {a, b}", "tag"),
        ("x: !mine 3", "tag"),
        ("x: !!map [1]", "tag"),
        ("x: !!bool abc", "true or false"),
        ("x: !!int abc", "number"),
        ("x: .inf", "finite"),
        ("x: -.INF", "finite"),
        ("x: .nan", "finite"),
        ("x: 1e999", "finite"),
        ("x: " + "9" * 5_000, "finite"),
        ("a: 1\na: 2", "twice"),
        ("1: a", "not text"),
        ("true: a", "not text"),
        ("? [a]\n: b", "not text"),
        ("<<: 3", "merges"),
        ("---\na: 1\n---\nb: 1", "document"),
        ("x: *nowhere", "alias"),
        ("x: @", "line 1 column 4"),
        ("\x00", "not YAML"),
        (b"a: \xe9", "not UTF-8"),
        ('x: "\\ud83d"', "half of a surrogate pair"),
        ("x: " + "a" * 300_000, "larger than"),
    ],
)
def test_invalid_yaml_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ParseError, match=reason) as error:
        load_yaml(text, what="x.yaml")
    assert str(error.value).startswith("x.yaml ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0o17", "1e5", "09", "1:30", "NO", "true", "", "~", "<<", ".5"])
def test_text_stays_text_in_yaml(text: str) -> None:
    assert load_yaml(dump_yaml({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("raw", "kind", "reason"),
    [
        ({"a": 3}, list, 'x: "a" should be a list, not the number 3'),
        ({"a": True}, int, 'x: "a" should be a whole number, not true'),
        ({"a": False}, float, 'x: "a" should be a number, not false'),
        ({"a": 1.5}, int, 'x: "a" should be a whole number, not the number 1.5'),
        ({"a": "1"}, float, "x: \"a\" should be a number, not the text '1'"),
        ({"a": float("nan")}, float, 'x: "a" should be a number, not nan'),
        ({"a": 10**400}, float, 'x: "a" should be a number, not a huge number'),
        ({"a": None}, dict, 'x: "a" should be an object, not null'),
        ({"a": []}, str, 'x: "a" should be text, not a list'),
        ({}, str, 'x: "a" is missing'),
        ([1], str, "x should be an object with 'a', not a list"),
        (None, str, "x should be an object with 'a', not null"),
    ],
)
def test_fields_of_other_types(raw: object, kind: type[Any], reason: str) -> None:
    with pytest.raises(ParseError) as error:
        field(raw, "a", kind, what="x")
    assert str(error.value) == reason


def test_fields() -> None:
    assert field({"a": 3}, "a", float) == 3.0
    assert type(field({"a": 3}, "a", float)) is float
    assert field({}, "a", int, default=7) == 7
    assert field({"a": None}, "a", int, default=None) is None
    assert items({"a": ["x", "y"]}, "a", str) == ["x", "y"]
    with pytest.raises(ParseError, match=r'"a"\[1\] should be text, not the number 2'):
        items({"a": ["x", 2]}, "a", str)


def test_lines_have_a_memory_limit():
    assert load_lines(b"\xef\xbb\xbfa\r\nb\x0c\n") == ["a", "b\x0c"]
    assert load_lines(b"a\n" * 100, max_memory=7_000) == ["a"] * 100
    with pytest.raises(ParseError, match=r"x.txt holds too many lines; split"):
        load_lines(b"a\n" * 100, what="x.txt", max_memory=6_999)
    with pytest.raises(ParseError, match="not UTF-8"):
        load_lines(b"\xff")
    blank = b"\n" * (20 << 20)  # 1.2 GB as lines
    with pytest.raises(ParseError, match="too many lines"):
        load_lines(blank)
