"""Which class name a label means."""

from __future__ import annotations

import unicodedata

import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.classes import ClassList, indexed_names, match_classes, whole_number

TWELVE = [f"name {i}" for i in range(12)]


def matched(labels, lines, **options):
    """Return the name that each label gets."""
    listed = None if lines is None else ClassList(lines, "names.txt")
    names, number = match_classes(dict.fromkeys(labels, "row 9"), listed, "set", **options)
    return {label: names[position] for label, position in number.items()}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7), ("007", 7), (" 7 ", 7), ("7.0", 7), ("7.", 7), ("+7", 7), ("-1", -1), ("7e0", 7),
        ("1.5e1", 15), ("1.5", None), ("", None), ("seven", None), ("nan", None), ("1_0", None),
        ("0x7", None), ("\u0667", None), ("7e-1", None), ("1e99", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_whole_numbers(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize("form", ["{}", "{:02d}", "{:03d}", "{}.0"])
def test_folders_of_numbers_are_in_the_order_of_the_numbers(form):
    labels = [form.format(i) for i in range(12)]
    assert matched(sorted(labels), TWELVE) == dict(zip(labels, TWELVE, strict=True))
    assert matched(sorted(labels), ["\t".join((str(i), n)) for i, n in enumerate(TWELVE)]) == dict(
        zip(labels, TWELVE, strict=True)
    )


def test_numbers_from_1():
    assert matched(["1", "10", *"23456789"], TWELVE[:10])["10"] == "name 9"
    assert matched(["10", "20", "100"], ["ten", "twenty", "hundred"])["100"] == "hundred"


def test_numbers_that_count_the_names():
    assert matched(["0", "2", "10"], TWELVE) == {"0": "name 0", "2": "name 2", "10": "name 10"}
    assert matched(["11", "3.0", "007"], TWELVE, indices=True) == {
        "11": "name 11", "3.0": "name 3", "007": "name 7",
    }  # fmt: skip


@pytest.mark.parametrize("labels", [["1", "2", "5"], ["1", "12"], ["0", "12"], ["-1", "0", "1"]])
def test_numbers_that_could_count_from_0_or_from_1_are_refused(labels):
    with pytest.raises(DataError, match=r"has 12 class names, and set has . classes, numbers from"):
        matched(labels, TWELVE)


def test_negative_numbers_are_no_classes():
    with pytest.raises(DataError, match="numbers from -1 to 1"):
        matched(["-1", "0", "1"], TWELVE[:3])


def test_labels_out_of_range():
    for label in ("12", "-1", "12.0"):
        with pytest.raises(DataError, match=r"row 9 \(names\.txt\): the label .* is out of range"):
            matched(["0", label], TWELVE, indices=True)


def test_a_list_of_numbers():
    labels = [f"{i:02d}" for i in range(12)]
    assert matched(labels, [str(i) for i in range(12)])["10"] == "10"
    assert matched(["0", "1", "2"], ["2", "0", "1"]) == {"0": "0", "1": "1", "2": "2"}
    with pytest.raises(DataError, match="the label 0 may mean this line or"):
        matched(["0", "1", "2"], ["2", "0", "1"], indices=True)
    with pytest.raises(DataError, match="the label 1 may mean this line"):
        matched(["1", "2"], ["1", "2", "3"], indices=True)
    assert matched(["0", "1"], ["0", "1"], indices=True) == {"0": "0", "1": "1"}


def test_numbers_without_a_list():
    names, number = match_classes(dict.fromkeys(["10", "2", "2.0"], ""), None, "set")
    assert names == ["2", "10"]
    assert number == {"10": 1, "2": 0, "2.0": 0}


def test_an_order_that_could_be_two_is_refused():
    labels = [f"class{i}" for i in range(12)]
    with pytest.raises(DataError, match=r"'class10' before 'class2'.*label<TAB>name"):
        matched(labels, TWELVE)
    arabic = [str(i).translate({48 + k: 0x660 + k for k in range(10)}) for i in range(12)]
    with pytest.raises(DataError, match="or of the numbers in them"):
        matched(arabic, TWELVE)
    padded = [f"class{i:02d}" for i in range(12)]
    assert matched(padded, TWELVE)["class10"] == "name 10"
    assert matched([f"n0{i}" for i in range(9)], TWELVE[:9])["n03"] == "name 3"  # WordNet's


def test_letter_case_and_unicode_forms():
    cafe = unicodedata.normalize("NFD", "Café")
    assert matched(["pear", "apple", cafe], ["Apple", "CAFÉ", "Pear"]) == {
        "pear": "Pear", "apple": "Apple", cafe: "CAFÉ",
    }  # fmt: skip
    assert matched([cafe, "tea"], ["Tea\tthé", "Café\tcoffee"]) == {cafe: "coffee", "tea": "thé"}
    composed = unicodedata.normalize("NFC", cafe)
    assert matched([cafe, composed], None) == {cafe: composed, composed: composed}
    with pytest.raises(DataError, match="line 1 matches both 'Apple' and 'apple'"):
        matched(["Apple", "apple"], ["apple", "pear"])
    assert matched(["Apple", "apple"], ["apple", "Apple"]) == {"Apple": "Apple", "apple": "apple"}
    with pytest.raises(DataError, match="line 1: 'Pear' is at the position of 'apple'"):
        matched(["apple", "pear"], ["Pear", "Orange"])


def test_a_name_that_comes_twice():
    assert matched(["a", "b"], ["a", "x", "x", "b"]) == {"a": "a", "b": "b"}
    with pytest.raises(DataError, match="line 3: 'a' occurs twice, and 'a' could be either"):
        matched(["a", "b"], ["a", "b", "a"])
    with pytest.raises(DataError, match=r"line 2: '3\.0' occurs twice"):
        matched(["3", "4"], ["3\tx", "3.0\ty", "4\tz"])


def test_blank_names_are_names():
    lines = ["near", "", "far", ""]
    assert matched(["0", "1", "2"], lines, indices=True) == {"0": "near", "1": "", "2": "far"}
    assert matched(["0", "3"], lines, indices=True)["3"] == ""
    assert matched(["a", "b", "c", "d"], lines)["d"] == ""
    assert matched(["a", "b", "c"], lines) == {"a": "near", "b": "", "c": "far"}
    assert matched(["a", "b"], ["b\t", "a\tA"]) == {"a": "A", "b": ""}
    with pytest.raises(DataError, match="holds only blank lines"):
        matched(["0"], ["", " "], indices=True)


def test_folders_without_images_have_names_too():
    labels = ["n1", "n2", "n4"]
    assert matched(labels, ["a", "b", "c", "d"], unused=["n3"])["n4"] == "d"
    assert matched(labels, ["a", "b", "c"], unused=["tmp"])["n4"] == "c"
    assert matched(["1", "2", "4"], ["a", "b", "c", "d"], unused=["3"])["4"] == "d"
    with pytest.raises(DataError, match="has 4 class names, and set has 3 classes"):
        matched(["1", "2", "4"], ["a", "b", "c", "d"], unused=["tmp"])


def test_labels_that_are_no_numbers_among_numbers():
    with pytest.raises(DataError, match="row 9: the label is nan, but the others are numbers"):
        matched(["0", "nan", "1"], TWELVE, indices=True)
    assert matched(["nan", "roti"], None) == {"nan": "nan", "roti": "roti"}  # both are bread
    assert matched(["1.5", "2"], None) == {"1.5": "1.5", "2": "2"}


def test_bytes_that_are_not_utf_8():
    assert matched(["caf\udce9"], None) == {"caf\udce9": "caf\\udce9"}
    assert matched(["caf\udce9"], ["caf\\udce9\tcoffee"]) == {"caf\udce9": "coffee"}


def test_names_counted_from_0():
    def names(lines, highest=-1):
        return indexed_names(ClassList(lines, "names.txt"), lambda: highest)

    assert names(["a", " b ", "", "d"]) == ["a", "b", "", "d"]
    assert names(["", "b"]) == ["", "b"]
    assert names(["a", "", ""], highest=1) == ["a", ""]
    assert names(["a", "", ""]) == ["a"]
    assert names(["2\tc", "0\ta", "1\t"]) == ["a", "", "c"]
    with pytest.raises(DataError, match="has no name for the class '1'"):
        names(["2\tc", "0\ta", "3\td"])
