"""Sets in tables: labels, captions, WinoGAViL's and SugarCrepe's own files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from pocketclip.errors import DataError, PocketclipError
from pocketclip.evaluate.datasets.find import DataOptions, Puzzle, find
from pocketclip.evaluate.tasks import Task, find_task
from tests.evaluate.sets import (
    photo,
    upload,
    write_lines,
    write_sugarcrepe,
    write_table,
    write_winogavil,
)

OWN = Task(key="own", dataset="own")
ROWS = [
    {"image": "a.jpg", "label": "pear", "split": "train"},
    {"image": "in/b.jpg", "label": "apple", "split": "test"},
    {"image": "c.jpg", "label": "Fig", "split": "test"},
]


def labels(data):
    return [(Path(e.image).name, data.classes[e.label]) for e in data]


def find_in(tmp_path, name, rows, options=None, task=OWN):
    return find(task, str(write_table(tmp_path / name, rows)), options or DataOptions())


@pytest.mark.parametrize("name", ["own.csv", "own.tsv", "own.jsonl"])
def test_labels_that_are_names(tmp_path, name):
    data = find_in(tmp_path, name, ROWS)
    assert data.kind == "classification"
    assert data.classes == ["Fig", "apple", "pear"]
    assert data.total == 3
    assert labels(data) == [("a.jpg", "pear"), ("b.jpg", "apple"), ("c.jpg", "Fig")]
    assert labels(data) == labels(data)
    assert [e.image for e in data][1] == str(tmp_path / "in" / "b.jpg")
    last = list(data)[-1].name
    assert last == f"{tmp_path / name} row {3 if name.endswith('jsonl') else 4}"


def test_only_some_rows(tmp_path):
    data = find_in(tmp_path, "own.csv", ROWS, DataOptions(where=(("split", "test"),)))
    assert labels(data) == [("b.jpg", "apple"), ("c.jpg", "Fig")]
    assert data.total == 2
    with pytest.raises(DataError, match=r"own\.csv has no rows with split=val"):
        find_in(tmp_path, "own.csv", ROWS, DataOptions(where=(("split", "val"),)))
    with pytest.raises(DataError, match=r"own\.csv row 2 has no column 'fold'"):
        find_in(tmp_path, "own.csv", ROWS, DataOptions(where=(("fold", "1"),)))
    flags = [{"image": "a.jpg", "label": "x", "good": True}]
    assert find_in(tmp_path, "own.jsonl", flags, DataOptions(where=(("good", "true"),))).total == 1


def test_labels_that_are_numbers(tmp_path):
    rows = [{"image": "a.jpg", "label": 2}, {"image": "b.jpg", "label": 0}]
    with pytest.raises(DataError, match=r"own\.csv: .*'label' are numbers.*--classes-file"):
        find_in(tmp_path, "own.csv", rows)
    write_lines(tmp_path / "classnames.txt", ["red", "green", "blue"])
    assert [e.label for e in find_in(tmp_path, "own.csv", rows)] == [2, 0]
    write_lines(tmp_path / "classnames.txt", ["0\tred", "2\tblue"])
    data = find_in(tmp_path, "own.csv", rows)
    assert labels(data) == [("a.jpg", "blue"), ("b.jpg", "red")]


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_labels_that_are_one_number_in_several_ways(tmp_path, name):
    write_lines(tmp_path / "classnames.txt", [f"name {i}" for i in range(12)])
    written = [3.0, "3", " 3 ", "003", "3.0", 11, "11.0", 0.0]
    rows = [{"image": f"{i}.jpg", "label": label} for i, label in enumerate(written)]
    data = find_in(tmp_path, name, rows)
    assert [e.label for e in data] == [3, 3, 3, 3, 3, 11, 11, 0]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("NaN", "label is nan, not a name or a number"),
        ("Infinity", "label is inf"),
        ('"nan"', r"label is nan, but the others are numbers"),
        ("[1]", r"label is \[1\], not a name"),
        ('{"a": 1}', "label is .*, not a name"),
        ("2.5", r"has 3 class names, and .*own\.jsonl has 2 classes"),
    ],
)
def test_labels_that_are_none(tmp_path, value, why):
    write_lines(tmp_path / "classnames.txt", ["a", "b", "c"])
    text = f'{{"image": "a.jpg", "label": 1}}\n{{"image": "b.jpg", "label": {value}}}\n'
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(DataError, match=why):
        find(OWN, str(tmp_path / "own.jsonl"))


@pytest.mark.parametrize("value", ["NaN", "true", '{"a": "b"}', "3", '["a", NaN]', '"[NaN]"'])
def test_captions_that_are_none(tmp_path, value):
    text = f'{{"image": "a.jpg", "caption": "x"}}\n{{"image": "b.jpg", "caption": {value}}}\n'
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"own\.jsonl row 2: the captions are not text"):
        find(OWN, str(tmp_path / "own.jsonl"))


def test_a_caption_of_deep_brackets_is_a_text(tmp_path):
    deep = "[" * 100_000
    data = find_in(tmp_path, "own.jsonl", [{"image": "a.jpg", "caption": deep}])
    assert [e.captions for e in data] == [(deep,)]


def test_headings_in_any_letter_case_and_with_spaces(tmp_path):
    rows = [{" Image ": "a.jpg", "Label": "apple", "SPLIT ": "test"},
            {" Image ": "b.jpg", "Label": "pear", "SPLIT ": "train"}]  # fmt: skip
    data = find_in(tmp_path, "own.csv", rows, DataOptions(where=(("split", "test"),)))
    assert labels(data) == [("a.jpg", "apple")]
    named = DataOptions(image_column="IMAGE", label_column=" label")
    assert labels(find_in(tmp_path, "own.csv", rows, named))[1] == ("b.jpg", "pear")
    captions = [{"Filepath": "a.jpg", "Caption": "x", "Negative_Caption": "y"}]
    (example,) = find_in(tmp_path, "choice.csv", captions)
    assert example.captions == ("x", "y")
    geode = [{"image": "a.jpg", "label": "x", "Region": 3, " country": "11"}]
    (example,) = find_in(tmp_path, "geode.csv", geode, task=find_task("geode"))
    assert example.metadata.tolist() == [3, 11]
    puzzles = [{"Cue": "x", "Candidates": ["a.png", "b.png"], "ASSOCIATIONS": ["b.png"]}]
    (puzzle,) = find_in(tmp_path, "puzzles.jsonl", puzzles)
    assert puzzle.associated == (False, True)
    twice = [{"image": "a.jpg", "Label": "apple", "LABEL": "pear"}]
    with pytest.raises(DataError, match=r"no column 'label' for the labels"):
        find_in(tmp_path, "twice.csv", twice, DataOptions(label_column="label"))
    assert labels(find_in(tmp_path, "twice.csv", twice, DataOptions(label_column="LABEL"))) == [
        ("a.jpg", "pear")
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.csv", "image;label\na.jpg;x, y\n"),
        ("own.csv", "image\tlabel\na.jpg\tx, y\n"),
        ("own.csv", 'sep=;\r\n"image";label\r\na.jpg;"x, y"\r\n'),
        ("own.csv", "a,b|Image|label\n1|a.jpg|x, y\n"),
        ("own.tsv", 'image,label\na.jpg,"x, y"\n'),
        ("own.csv", 'image,label;\na.jpg,"x, y"\n'),
    ],
)
def test_what_separates_the_columns_is_seen(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    options = DataOptions(label_column="label;" if ";" in text[:13] and "," in text[:7] else None)
    assert labels(find(OWN, str(tmp_path / name), options)) == [("a.jpg", "x, y")]


def test_names_for_the_labels(tmp_path):
    names = tmp_path / "names.txt"
    options = DataOptions(classes_file=str(names))
    write_lines(names, ["a fig", "an apple", "a pear"])
    assert labels(find_in(tmp_path, "own.csv", ROWS, options))[0] == ("a.jpg", "a pear")
    write_lines(names, ["pear", "Fig", "apple"])
    data = find_in(tmp_path, "own.csv", ROWS, options)
    assert data.classes == ["pear", "Fig", "apple"]
    assert labels(data)[1:] == [("b.jpg", "apple"), ("c.jpg", "Fig")]
    write_lines(names, ["pear\ta pear", "Fig\ta fig"])
    with pytest.raises(DataError, match=r"own\.csv row 3: .*names\.txt has no name .*'apple'"):
        find_in(tmp_path, "own.csv", ROWS, options)
    write_lines(names, ["one", "two"])
    with pytest.raises(DataError, match=r"names\.txt has 2 class names, .*own\.csv has 3 classes"):
        find_in(tmp_path, "own.csv", ROWS, options)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"image": "a", "label": 0}, {"image": "b", "label": 3}], r"row 3 .*label 3 is out of"),
        ([{"image": "a", "label": 0}, {"image": "b", "label": -1}], r"row 3 .*label -1 is out"),
        ([{"image": "a", "label": "x"}, {"image": "b", "label": ""}], r"row 3: the label is empty"),
        ([{"image": "a", "label": "x"}, {"image": " ", "label": "x"}], r"row 3: the image's path"),
        ([{"image": "a", "label": "x"}, {"image": 'q"', "label": "x"}], None),
    ],
)
def test_a_bad_row_is_named(tmp_path, rows, problem):
    if rows[0]["label"] == 0:
        write_lines(tmp_path / "classnames.txt", ["a", "b", "c"])
    if problem is None:
        assert sum(1 for _ in find_in(tmp_path, "own.csv", rows)) == 2
        return
    with pytest.raises(DataError, match=rf"own\.csv {problem}"):
        list(find_in(tmp_path, "own.csv", rows))


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.csv", b"", r"a\.csv has no rows"),
        ("a.csv", b"image,label\n", r"a\.csv has no rows"),
        ("a.csv", b"image,label\na.jpg,x\nb.jpg\n", r"a\.csv row 3 has 1 columns, the header 2"),
        ("a.csv", b"image,label\na.jpg,x,y\n", r"a\.csv row 2 has 3 columns, the header 2"),
        ("a.csv", b'image,label\na.jpg,"x\n', r"a\.csv row 2 is not valid csv"),
        ("a.csv", b"image,label\na.jpg,gr\xfcn\n", r"a\.csv after row 1 is not UTF-8"),
        ("a.csv", "image,label\na,b\n".encode("utf-16"), r"a\.csv .*is not UTF-8"),
        ("a.csv", b"image,label,label\na.jpg,x,y\n", r"a\.csv has two columns 'label'"),
        ("a.csv", b"image,size\na.jpg,3\n", r"no column of labels or captions.*image, size"),
        ("a.csv", b"picture,label\na.jpg,x\n", r"no column of images.*picture, label"),
        ("a.jsonl", b'{"image": "a", "label": "x"}\n{"im', r"a\.jsonl row 2 is not JSON"),
        ("a.jsonl", b'{"image": "a", "label": "x"}\n[1]\n', r"a\.jsonl row 2 is not a JSON obj"),
        ("a.jsonl", b'{"image": "a", "label": "x"}\n{"image": "b"}\n', r"row 2: the label is empt"),
        ("a.jsonl", b'{"image": "a", "label": null}\n', r"row 1: the label is empty"),
        ("a.jsonl", b'{"image": 3, "label": "x"}\n', r"row 1: the image's path is empty"),
        ("a.jsonl", b'{"image": "a", "label": "\xff"}\n', r"a\.jsonl row 1"),
        ("a.json", b"[1]", r"a\.json is not an object of objects"),
        ("a.json", b'{"0": {"filename": "x", "caption": "y"}}', r"a\.json row 0 lacks"),
        ("a.json", b"{", r"a\.json is not JSON"),
    ],
)
def test_a_bad_table_is_named(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=problem):
        list(find(OWN, str(tmp_path / name)))


@pytest.mark.parametrize("field", ["image_column", "label_column", "caption_column"])
def test_a_column_that_is_not_there(tmp_path, field):
    with pytest.raises(DataError, match=r"own\.csv has no column 'x'.*image, label, split"):
        find_in(tmp_path, "own.csv", ROWS, DataOptions(**{field: "x"}))


def test_a_byte_order_mark_and_quoted_lines(tmp_path):
    text = '﻿image,label\na.jpg,"a ""big""\napple, green"\nb.jpg,x\n'
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    data = find(OWN, str(tmp_path / "own.csv"))
    assert labels(data)[0] == ("a.jpg", 'a "big"\napple, green')


def test_absolute_paths(tmp_path):
    rows = [
        {"image": str(tmp_path / "x" / "a.jpg"), "label": "x"},
        {"image": f"file://{tmp_path}/b.jpg", "label": "x"},
    ]
    data = find_in(tmp_path / "elsewhere", "own.csv", rows)
    assert [e.image for e in data] == [str(tmp_path / "x" / "a.jpg"), str(tmp_path / "b.jpg")]


def test_a_table_in_the_working_folder(tmp_path, monkeypatch):
    write_table(tmp_path / "own.csv", ROWS, {"a.jpg": photo(0)})
    monkeypatch.chdir(tmp_path)
    assert Path(next(iter(find(OWN, "own.csv"))).image).is_file()
    assert Path(next(iter(find(OWN, "."))).image).is_file()


def test_metadata_from_columns(tmp_path):
    task = find_task("geode")
    rows = [{"image": "a.jpg", "label": "x", "region": 3, "country": "11"}]
    (example,) = find_in(tmp_path, "a.csv", rows, task=task)
    assert example.metadata.tolist() == [3, 11]
    with pytest.raises(DataError, match=r"own\.csv has no column 'region'.*region, country"):
        find_in(tmp_path, "own.csv", ROWS, task=task)
    rows[0]["region"] = 3.0  # as pandas writes it where another row has none
    (example,) = find_in(tmp_path, "c.csv", rows, task=task)
    assert example.metadata.tolist() == [3, 11]
    rows[0]["region"] = "Asia"
    with pytest.raises(DataError, match=r"b\.csv row 2: region is 'Asia'"):
        list(find_in(tmp_path, "b.csv", rows, task=task))


CAPTIONS = [
    {"image": "a.jpg", "caption": "one"},
    {"image": "a.jpg", "caption": "[two] in brackets"},
    {"image": "b.jpg", "caption": "three"},
]


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_captions_of_one_image_in_several_rows(tmp_path, name):
    data = find_in(tmp_path, name, CAPTIONS)
    assert data.kind == "retrieval"
    assert data.total == 2
    assert [(Path(e.image).name, e.captions) for e in data] == [
        ("a.jpg", ("one", "[two] in brackets")),
        ("b.jpg", ("three",)),
    ]


@pytest.mark.parametrize("name", ["own.csv", "own.tsv", "own.jsonl"])
def test_captions_in_a_list(tmp_path, name):
    data = find_in(tmp_path, name, [{"filepath": "a.jpg", "captions": ["öne", " two ", ""]}])
    assert [e.captions for e in data] == [("öne", "two")]


def test_captions_of_one_image_that_stand_apart(tmp_path):
    with pytest.raises(DataError, match=r"own\.csv row 5 has the same image as .*own\.csv row 2,"):
        find_in(tmp_path, "own.csv", [*CAPTIONS, {"image": "a.jpg", "caption": "four"}])


@pytest.mark.parametrize("value", ["", " ", "[]", '[""]', "[1]"])
def test_no_captions(tmp_path, value):
    rows = [CAPTIONS[0], {"image": "b.jpg", "caption": value}]
    with pytest.raises(DataError, match=r"own\.csv row 3: .*captions"):
        list(find_in(tmp_path, "own.csv", rows))


def test_the_options_decide_what_a_table_is(tmp_path):
    rows = [{"image": "a.jpg", "label": "x", "caption": "y", "other": "z"}]
    assert find_in(tmp_path, "a.csv", rows).kind == "classification"
    (example,) = find_in(tmp_path, "b.csv", rows, DataOptions(caption_column="other"))
    assert example.captions == ("z",)


def test_a_choice_of_captions(tmp_path):
    rows = [
        {"image": "a.jpg", "caption": "right", "negative_caption": "wrong"},
        {"image": "a.jpg", "caption": "true", "negative_caption": "false"},
    ]
    data = find_in(tmp_path, "own.csv", rows)
    assert data.kind == "caption_choice"
    assert [e.captions for e in data] == [("right", "wrong"), ("true", "false")]


def test_sugarcrepe_as_it_is_published(tmp_path):
    entries = [("1.jpg", "right", "wrong"), ("1.jpg", "true", "false"), ("2.jpg", "a", "b")]
    write_sugarcrepe(tmp_path, "add_att", entries, {"1.jpg": photo(1), "2.jpg": photo(2)})
    data = find(find_task("sugarcrepe_add_att"), str(tmp_path))
    assert data.kind == "caption_choice"
    assert [e.captions for e in data] == [("right", "wrong"), ("true", "false"), ("a", "b")]
    assert [Path(e.image).read_bytes() for e in data] == [photo(1), photo(1), photo(2)]


PUZZLES = [
    ("fire", ["log", "ice"], ["log"]),
    ("ok", ["ice", "log", "it's"], ["it's", "ice"]),
]
NAMES = {name: photo(i) for i, name in enumerate(["log", "ice", "it's"])}


def test_winogavil(tmp_path):
    write_winogavil(tmp_path, PUZZLES, NAMES)
    data = find(find_task("winogavil"), str(tmp_path))
    assert data.kind == "association"
    first, second = data
    assert isinstance(first, Puzzle)
    assert (first.cue, first.associated) == ("fire", (True, False))
    assert second.associated == (True, False, True)
    assert [Path(path).read_bytes() for path in second.images] == [photo(1), photo(0), photo(2)]


def test_winogavil_with_whole_file_names_beside_the_table(tmp_path):
    rows = [{"cue": "x", "candidates": ["a.png", "st. b"], "associations": ["st. b"]}]
    table = write_table(tmp_path / "own.jsonl", rows, {"a.png": photo(0)})
    (puzzle,) = find(OWN, str(table))
    assert puzzle.images == (str(tmp_path / "a.png"), str(tmp_path / "st. b.jpg"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"candidates": "log, ice"}, "candidates is not a list"),
        ({"candidates": "[]"}, "candidates is not a list of names"),
        ({"candidates": "[1, 2]"}, "candidates is not a list of names"),
        ({"candidates": "__import__('os')"}, "candidates is not a list"),
        ({"associations": ["fog"]}, "'fog' is not a candidate"),
        ({"associations": []}, "associations is not a list of names"),
        ({"cue": ""}, "the cue is empty"),
    ],
)
def test_a_bad_puzzle_is_named(tmp_path, change, problem):
    good = {"cue": "x", "candidates": ["log", "ice"], "associations": ["log"]}
    with pytest.raises(DataError, match=rf"own\.csv row 3: {problem}"):
        list(find_in(tmp_path, "own.csv", [good, {**good, **change}]))


def peak_of_reading(path, count):
    """Return the bytes that finding and reading a set of `count` samples needs at most."""
    tracemalloc.start()
    try:
        assert sum(1 for _ in find(OWN, str(path))) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [8_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_rows(tmp_path, count):
    path = tmp_path / "own.csv"

    def peak(rows):
        with path.open("w") as stream:
            stream.write("image,label\n")
            stream.writelines(f"photos/{i:07d}.jpg,class{i % 50}\n" for i in range(rows))
        return peak_of_reading(path, rows)

    peak(10)  # imports and caches
    assert peak(count) < peak(1_000) + 10_000


def test_memory_of_captions(tmp_path):
    path = tmp_path / "own.jsonl"
    count = 4_000
    with path.open("w") as stream:
        for i in range(count):
            stream.write(json.dumps({"image": f"{i}.jpg", "caption": f"number {i} of many"}) + "\n")
    # 64 bits of a hash per image, twice for a moment; the captions alone would be 280 kB.
    assert peak_of_reading(path, count) < 20 * count + 120_000


def test_a_table_in_an_object_store(s3, tmp_path):
    images = {"a.jpg": photo(0), "in/b.jpg": photo(1), "c.jpg": photo(2)}
    write_table(tmp_path / "own.csv", ROWS, images)
    root = upload(s3, tmp_path, "bucket/sets")
    data = find(OWN, root)
    assert data.path == "s3://bucket/sets/own.csv"
    assert [e.image for e in data][1] == "s3://bucket/sets/in/b.jpg"
    assert next(iter(data)).name == "s3://bucket/sets/own.csv row 2"
    assert data.total == 3


@pytest.mark.parametrize("name", ["large.jsonl", "large.json", "large.csv"])
def test_tables_that_are_one_long_line(tmp_path, name):
    with (tmp_path / name).open("wb") as stream:
        if name.endswith("csv"):
            stream.write(b"image,label\n")
        stream.truncate(2 << 30)  # takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(PocketclipError, match="larger than"):
            find(OWN, str(tmp_path / name), DataOptions())
        assert tracemalloc.get_traced_memory()[1] < 600 << 20
    finally:
        tracemalloc.stop()


def test_numbers_to_choose_rows_by(tmp_path):
    rows = [{"image": f"{i}.jpg", "label": "x", "n": n} for i, n in enumerate([3, 3.0, "3.0", 4])]
    for name in ("own.jsonl", "own.csv"):
        data = find_in(tmp_path, name, rows, DataOptions(where=(("n", "3"),)))
        assert data.total == 3
