"""The grammar of a query, and the vector that it becomes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pocketclip.errors import QueryError
from pocketclip.search.query import (
    Part,
    combine,
    describe_parts,
    doubtful_sign,
    embed_parts,
    make_parts,
    parse_query,
)


def read(query):
    return [(part.weight, part.text or str(part.photo)) for part in parse_query(query)]


@pytest.mark.parametrize(
    "text",
    [
        "t-shirt", "C++", "black-and-white", "time: 10:30", "10:30 on a clock", "16:9 wide",
        "-5 degrees", "+1 sign", 'a 5" screen', "plage à l’été", "the \"rock + roll\" sign",
        "Nan: my grandmother", "beach -people", "a – b", "2:2 dogs",
    ],
)  # fmt: skip
def test_a_sign_within_a_word_and_a_colon_within_a_text_are_text(text):
    assert read(text) == [(1, text)]


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("beach + sunset - people", [(1, "beach"), (1, "sunset"), (-1, "people")]),
        ("x-ray - person", [(1, "x-ray"), (-1, "person")]),
        ("2:beach + .5:sea - 1.5: a dog", [(2, "beach"), (0.5, "sea"), (-1.5, "a dog")]),
        ("-people + beach", [(-1, "people"), (1, "beach")]),
        ("- people + beach", [(-1, "people"), (1, "beach")]),
        ("+ beach", [(1, "beach")]),
        ("-2:people + beach", [(-2, "people"), (1, "beach")]),
        ("beach + -5 degrees", [(1, "beach"), (1, "-5 degrees")]),
        ('2:"rock + roll" - "a - b"', [(2, "rock + roll"), (-1, "a - b")]),
        ('-"a + b" + c', [(-1, "a + b"), (1, "c")]),
        ('"./b.jpg"', [(1, "./b.jpg")]),
        ("  海 \u3000-\u3000 人 ", [(1, "海"), (-1, "人")]),
        ("2: 2 dogs", [(2, "2 dogs")]),
    ],
)
def test_parts(query, parts):
    assert read(query) == parts


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "empty"), ("   ", "empty"), ("beach +", "part 2 of the query is empty"),
        ("beach - - a", "empty"), ('""', "empty"), ('a + " "', "empty"), ("2: ", "empty"),
        ("0:beach", "over 0"), ("1001:beach", "at most 1000"), ("1e999:beach", "at most 1000"),
        ("nan:beach", "a number over 0"), ("inf:beach", "a number over 0"),
        ("a + -2:beach", "second sign"), ("beach + -people", "second sign"),
        ("caf\udce9", "not UTF-8"), ("./nothing.jpg", "no photograph ./nothing.jpg"),
        ("nothing.jpg", "no photograph"), ("https://example.org/a.jpg", "not fetched"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(query, message):
    with pytest.raises(QueryError, match=message):
        parse_query(query)


@pytest.mark.parametrize("query", ["- people", "-people", "- a - b"])
def test_something_to_look_for_is_needed(query):
    with pytest.raises(QueryError, match=r"every part is to be avoided.*--text"):
        make_parts(query)
    with pytest.raises(QueryError, match="every part is to be avoided"):
        make_parts(unlike=["a.jpg"])
    with pytest.raises(QueryError, match="nothing to search for"):
        make_parts()


def test_a_literal_query_is_one_text():
    [part] = make_parts("-2:rock + roll - ./a.jpg", literal=True)
    assert (part.weight, part.text) == (1, "-2:rock + roll - ./a.jpg")


def test_photographs_are_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (b"b.jpg", b"caf\xe9.jpg", b"c - d.jpg"):
        (tmp_path / name.decode("utf-8", "surrogateescape")).touch()
    assert read("sea + 2:./b.jpg") == [(1, "sea"), (2, "b.jpg")]
    assert read("b.jpg - caf\udce9.jpg") == [(1, "b.jpg"), (-1, "caf\udce9.jpg")]
    assert read("~/b.jpg") == [(1, str(tmp_path / "b.jpg"))]
    parts = make_parts("sea", like=["c - d.jpg"], unlike=["b.jpg"])
    assert [part.weight for part in parts] == [1, 1, -1]
    assert describe_parts(parts) == '"sea" + c - d.jpg - b.jpg'


def test_what_is_said_of_a_query():
    assert describe_parts(parse_query("beach")) is None
    assert describe_parts(parse_query("300: the movie")) == '300 x "the movie"'
    assert doubtful_sign(parse_query("beach -people")) == "-people"
    assert doubtful_sign(parse_query("t-shirt - a -5 b")) is None


def test_the_vector_of_a_query(encoder, photos):
    def embedded(parts):
        return combine(embed_parts(parts, encoder), [part.weight for part in parts])

    a, b = encoder.encode_text(["a red circle", "a blue square"])
    expected = 2 * a - b
    found = embedded(parse_query("2:a red circle - a blue square"))
    assert found.dtype == np.float32
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    expected = a + encoder.encode_image(photos / "a.jpg")[0]
    found = embedded(make_parts("a red circle", like=[photos / "a.jpg"]))
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    with pytest.raises(QueryError, match="cancel each other"):
        embedded(parse_query("a red circle - a red circle"))


def test_any_query_has_parts_or_is_refused():
    rng = np.random.default_rng(0)
    pieces = ["+", "-", " ", '"', ":", "2", ".5", "a", "b.jpg", "./", "\udce9", "\u3000", "ä", "e9"]
    for _ in range(2000):
        query = "".join(rng.choice(pieces, rng.integers(0, 12)))
        try:
            parts = make_parts(query)
        except QueryError:
            continue
        assert all(part.text for part in parts), query
        assert all(part.text == part.text.strip() for part in parts), query
        [literal] = make_parts(query, literal=True)
        assert literal.text == query.strip()


@pytest.mark.parametrize(
    "query",
    [
        "./a.jpg",
        "../a",
        "/etc/passwd",
        "~/x",
        "a.jpg",
        "sunset - /etc/hosts",
        "2:a.heic",
        "- /a + b",
    ],
)
def test_a_query_of_others_names_no_file(query, photos, monkeypatch):
    monkeypatch.chdir(photos)
    with pytest.raises(QueryError, match="files of this machine are not read") as caught:
        make_parts(query, files=False)
    assert re.match("part [12] of the query names a file", caught.value.reason)
    for word in ("etc", "jpg", "heic", "~"):
        assert word not in caught.value.reason
    [part] = make_parts(query, literal=True, files=False)
    assert part.text == query
    [part] = make_parts(f'"{query}"', files=False)
    assert part.text == query


@pytest.mark.parametrize("query", ["a + + b", "inf:beach", "1e9:beach", "https://beach/", "\udce9"])
def test_the_reason_does_not_repeat_the_query(query):
    with pytest.raises(QueryError) as caught:
        parse_query(query)
    assert caught.value.reason
    assert not any(word in caught.value.reason for word in ("beach", "inf:", "1e9", "\udce9"))


def test_a_known_vector_is_not_computed(encoder, monkeypatch):
    a, b = encoder.encode_text(["a red circle", "a blue square"])
    monkeypatch.setattr(encoder, "encode_text", pytest.fail)
    parts = [Part(1.0, "a red circle", vector=a), Part(-1.0, photo=b"x", vector=b)]
    assert np.array_equal(embed_parts(parts, encoder), [a, b])
