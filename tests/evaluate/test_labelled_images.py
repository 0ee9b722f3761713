"""Labelled photographs of a folder or table, and labels that nothing can be learnt from."""

import pytest
from PIL import Image

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.evaluate.datasets.labelled_images import check_classes, read_labelled


@pytest.fixture
def shelf(tmp_path):
    for label, count in (("apple", 3), ("pear", 2)):
        (tmp_path / "shelf" / label).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / "shelf" / label / f"{k}.png")
    return tmp_path / "shelf"


def test_a_folder_by_class(shelf):
    read = read_labelled(str(shelf))
    assert read.classes == ["apple", "pear"]
    assert read.names == ["apple/0.png", "apple/1.png", "apple/2.png", "pear/0.png", "pear/1.png"]
    assert read.labels.tolist() == [0, 0, 0, 1, 1]
    assert read.counts().tolist() == [3, 2]


def test_a_table_names_photographs_as_the_folder_does(shelf, caplog, monkeypatch):
    rows = ["apple/0.png,apple", "pear/1.png,pear", "apple/0.png,apple", "apple/1.png,apple"]
    rows += ["apple/1.png,pear"]
    (shelf / "t.csv").write_text("\n".join(["image,label", *rows]))
    read = read_labelled(str(shelf / "t.csv"))
    assert read.names == ["apple/0.png", "pear/1.png"]
    assert "several labels: 1 photograph, apple/1.png" in caplog.text
    monkeypatch.chdir(shelf)
    assert read_labelled("t.csv").names == read.names


def test_captions_are_no_labels(shelf):
    (shelf / "t.csv").write_text("image,caption\napple/0.png,an apple\npear/0.png,a pear\n")
    with pytest.raises(DataError, match=r"no labels.*--label-column"):
        read_labelled(str(shelf / "t.csv"))
    (shelf / "u.csv").write_text("image,kind\napple/0.png,x\npear/0.png,x\n")
    with pytest.raises(DataError, match="only one label, 'x'"):
        read_labelled(str(shelf / "u.csv"), DataOptions(label_column="kind"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": 3, "b": 0}, "only one label, 'a'"),
        ({"a": 0}, "no label has photographs"),
        ({"Apple": 3, "pear": 2, "apple": 1}, r"'Apple' \(3 photographs\) and 'apple' \(1"),
        ({"red  apple": 3, "red apple": 2}, "one spelling"),
        ({f"photo {k}": 1 for k in range(10_000)}, "10,000 distinct labels for 10,000"),
        ({"a": 2, "b" * 200: 2}, "has 200 characters: .*captions"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        check_classes("t.csv", list(labels), list(labels.values()))


def test_many_small_classes_and_single_photographs_are_fine():
    check_classes("t", [f"c{k}" for k in range(10_000)], [2] * 10_000)
    check_classes("t", [f"c{k}" for k in range(20)], [1] * 20)
    check_classes("folder", [f"c{k}" for k in range(100)], [1] * 100, deliberate=True)
