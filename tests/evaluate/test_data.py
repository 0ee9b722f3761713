"""Where a set is looked for, and sets in folders by class."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.find import DataOptions, find, own_task
from pocketclip.evaluate.tasks import Task, find_task
from tests.evaluate.sets import (
    captioned,
    labelled,
    photo,
    upload,
    write_folder,
    write_lines,
    write_table,
    write_wds,
)

GROCERY = Path(__file__).parents[3] / "shared" / "data" / "grocery"
OWN = Task(key="own", dataset="own")
CIFAR = find_task("cifar100")
FRUIT = {"pear": [photo(0)], "apple": [photo(1), photo(2)], "Fig": [photo(3)]}


def pairs(data):
    return [(data.classes[e.label], Path(e.image).parent.name) for e in data]


@pytest.mark.parametrize("key", ["vtab/cifar100", "vtab-cifar100", "cifar100", "wds_vtab-cifar100"])
def test_the_names_of_a_folder(tmp_path, key):
    write_folder(tmp_path, key, FRUIT)
    data = find(CIFAR, str(tmp_path))
    assert data.classes == ["Fig", "apple", "pear"]


@pytest.mark.parametrize(
    "name",
    ["cifar100.csv", "vtab-cifar100.tsv", "cifar100/test.jsonl", "vtab/cifar100/data.csv"],
)
def test_the_names_of_a_table(tmp_path, name):
    write_table(tmp_path / name, [{"image": "a.jpg", "label": "apple"}])
    assert find(CIFAR, str(tmp_path)).classes == ["apple"]


def test_the_root_may_be_the_set(tmp_path):
    table = write_table(tmp_path / "x.csv", [{"image": "a.jpg", "label": "apple"}])
    assert find(CIFAR, str(table)).path == str(table)
    shelf = write_folder(tmp_path, "shelf", FRUIT)
    assert find(OWN, str(shelf)).total == 4
    wds = write_wds(tmp_path / "sets", "vtab/cifar100", [labelled(photo(0), 0)], ["a"], shards=1)
    assert find(CIFAR, str(wds)).path == str(wds)
    with pytest.raises(DataError, match="no data for vtab/cifar100"):
        find(CIFAR, str(shelf))  # whatever it is, it is not CIFAR-100


def test_the_names_of_the_sets_that_clip_benchmark_publishes(tmp_path):
    folder = write_wds(tmp_path, "flickr30k", [captioned(photo(0), ["a"])], shards=1)
    folder.rename(tmp_path / "wds_flickr30k")
    assert find(find_task("flickr"), str(tmp_path)).path == str(tmp_path / "wds_flickr30k")


def test_a_table_beside_folders_of_images(tmp_path):
    rows = [{"image": "shelf/a.jpg", "label": "apple"}]
    write_table(tmp_path / "own.csv", rows, {"shelf/a.jpg": photo(0)})
    assert find(OWN, str(tmp_path)).classes == ["apple"]  # not "shelf"


def test_every_path_that_was_tried_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        find(CIFAR, str(tmp_path / "sets"))
    for name in (
        "wds_vtab-cifar100_test",
        "wds_vtab-cifar100",
        "vtab/cifar100",
        "vtab-cifar100",
        "cifar100",
        "vtab-cifar100.csv",
        "cifar100.jsonl",
    ):
        assert str(tmp_path / "sets" / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_there_but_of_no_use_is_reported(tmp_path):
    write_folder(tmp_path, "own", FRUIT, split="train")
    write_folder(tmp_path, "own", FRUIT, split="val")
    with pytest.raises(DataError, match=r"'test'.*own exists.*only the folders train, val\)"):
        find(OWN, str(tmp_path))
    assert find(OWN, str(tmp_path), DataOptions(split="val")).total == 4


@pytest.mark.parametrize("split", ["test", None])
def test_folders_by_class(tmp_path, split):
    write_folder(tmp_path, "own", FRUIT, split=split)
    data = find(OWN, str(tmp_path))
    assert data.kind == "classification"
    assert data.total == 4
    assert pairs(data) == [("Fig", "Fig"), ("apple", "apple"), ("apple", "apple"), ("pear", "pear")]
    assert pairs(data) == pairs(data)
    assert all(e.name == e.image and Path(e.image).is_file() for e in data)


def test_folders_without_images_and_other_files_are_passed_over(tmp_path):
    folder = write_folder(tmp_path, "own", FRUIT)
    (folder / "test" / "empty").mkdir()
    (folder / "test" / ".hidden").mkdir()
    (folder / "test" / ".hidden" / "0.jpg").write_bytes(photo(0))
    (folder / "test" / "apple" / "notes.txt").write_text("green")
    data = find(OWN, str(tmp_path))
    assert (data.total, len(data.classes)) == (4, 3)
    assert sum(1 for _ in data) == 4


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        (["a fig", "an apple", "a pear"], ["a fig", "an apple", "a pear"]),  # as they are sorted
        (["pear", "apple", "Fig"], ["pear", "apple", "Fig"]),
        (["pear", "plum", "apple", "Fig"], ["pear", "plum", "apple", "Fig"]),
        (["pear\tbirne", "Fig\tfeige", "apple\tapfel"], ["birne", "feige", "apfel"]),
    ],
)
def test_names_for_the_folders(tmp_path, lines, classes):
    folder = write_folder(tmp_path, "own", FRUIT)
    write_lines(folder / "classnames.txt", lines)
    data = find(OWN, str(tmp_path))
    assert data.classes == classes
    german = {"feige": "Fig", "apfel": "apple", "birne": "pear"}
    assert all(german.get(n, n).rpartition(" ")[2].lower() == f.lower() for n, f in pairs(data))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["fig", "apple"], r"names\.txt has 2 class names, and .*own.test has 3 classes"),
        (["a", "b", "c", "d"], r"names\.txt has 4 class names, and .* has 3 classes"),
        (["apple", "fig", "birne"], r"names\.txt line 1: 'apple' is at the position of 'Fig'"),
        (["Fig\tfeige", "apple\tapfel"], r"own.test.pear: .*names\.txt has no name .*'pear'"),
        (["Fig\tfeige", "apple", "pear\tb"], r"names\.txt line 2: not label<TAB>name"),
        (["Fig\tfeige", "Fig\tb", "pear\tb"], r"names\.txt line 2: 'Fig' occurs twice"),
    ],
)
def test_names_that_do_not_fit(tmp_path, lines, problem):
    write_folder(tmp_path, "own", FRUIT)
    write_lines(tmp_path / "names.txt", lines)
    options = DataOptions(classes_file=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match=problem):
        find(OWN, str(tmp_path), options)


def test_folders_of_numbers_beside_a_list(tmp_path):
    """Sorted as text, `10` would be the third class."""
    words = [*("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
             *("ten", "eleven")]  # fmt: skip
    shelf = write_folder(tmp_path, "own", {str(i): [photo(i)] for i in range(12)})
    write_lines(shelf / "classnames.txt", words)
    data = find(OWN, str(tmp_path))
    assert {folder: name for name, folder in pairs(data)} == {
        str(i): word for i, word in enumerate(words)
    }
    assert data.classes == words
    (shelf / "test" / "7" / "0.jpg").unlink()  # an empty folder keeps its place
    assert ("nine", "9") in pairs(find(OWN, str(tmp_path)))


def test_what_computers_leave_in_folders_is_no_class(tmp_path):
    shelf = write_folder(tmp_path, "own", FRUIT)
    write_folder(shelf, "test", {"@eaDir": [photo(0)], "__MACOSX": [photo(0)]}, split=None)
    write_folder(shelf / "test", "apple", {"@eaDir": [photo(0)]}, split=None)
    (shelf / "test" / "apple" / "._1.jpg").write_bytes(b"resource fork")
    (shelf / "test" / "apple" / "2.JFIF").write_bytes(photo(3))
    (shelf / "test" / "loop").symlink_to(shelf / "test")
    os.mkfifo(shelf / "test" / "apple" / "pipe.jpg")
    data = find(OWN, str(tmp_path))
    assert data.classes == ["Fig", "apple", "pear"]
    assert [Path(e.image).name for e in data] == ["0.jpg", "0.jpg", "1.jpg", "2.JFIF", "0.jpg"]


def test_images_that_lie_elsewhere_are_counted(tmp_path, caplog):
    shelf = write_folder(tmp_path, "own", FRUIT)
    assert find(OWN, str(tmp_path)).total == 4
    assert not caplog.text
    write_folder(shelf / "test", "apple", {"old/er": [photo(0), photo(1)]}, split=None)
    (shelf / "test" / "loose.jpg").write_bytes(photo(0))
    assert find(OWN, str(tmp_path)).total == 4
    assert (
        "own/test: 3 images are not read, as they are not directly in a class folder" in caplog.text
    )


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path):
    shelf = write_folder(tmp_path, "own", FRUIT)
    (shelf / "test" / "pear" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert find(OWN, str(tmp_path)).total == 5


def test_a_folder_that_is_called_like_a_table(tmp_path):
    shelf = write_folder(tmp_path, "photos.csv", FRUIT)
    assert find(OWN, str(shelf)).total == 4
    assert own_task(str(shelf)).key == "photos.csv"


@pytest.mark.parametrize(
    ("root", "key"),
    [
        ("shelf.v1", "shelf.v1"), ("shelf.v1/", "shelf.v1"), ("./in/../shelf.v2", "shelf.v2"),
        (".", "here.now"), ("..", "up"), ("a/pairs.v2.csv", "pairs.v2"), ("X.JSONL", "X"),
        (".csv", ".csv"), ("s3://bucket/sets/shelf.v1/", "shelf.v1"), ("s3://b/a.b.tsv", "a.b"),
        ("file:///tmp/shelf.v1", "shelf.v1"), ("/", "data"),
        ("flowers", "flowers"), ("vtab/cifar100", "cifar100"), ("imagenet", "imagenet"),
        ("imagenet1k", "own/imagenet1k"), ("cifar10.csv", "own/cifar10"),
        ("caf\udce9", "caf\\udce9"),
    ],
)  # fmt: skip
def test_a_set_of_ones_own_has_its_own_name(tmp_path, monkeypatch, root, key):
    (tmp_path / "up" / "here.now").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "up" / "here.now")
    task = own_task(root)
    assert task.key == key
    assert task.dataset == key.removeprefix("own/")
    assert (task.kind, task.main_metric, task.in_average) == (None, None, False)


def test_names_that_are_not_utf_8(tmp_path):
    shelf = write_folder(tmp_path, "own", {"caf\udce9": [photo(0)], "tea": [photo(1)]})
    (shelf / "test" / "tea" / "\udcff.jpg").write_bytes(photo(2))
    data = find(OWN, str(tmp_path))
    assert data.classes == ["caf\\udce9", "tea"]
    assert [Path(e.image).is_file() for e in data] == [True] * 3
    write_lines(shelf / "classnames.txt", ["coffee", "tea"])
    assert pairs(find(OWN, str(tmp_path)))[0] == ("coffee", "caf\udce9")


def test_prompts_beside_the_folders(tmp_path):
    folder = write_folder(tmp_path, "own", FRUIT)
    assert find(OWN, str(tmp_path)).templates == ["a photo of {c}."]
    write_lines(folder / "zeroshot_classification_templates.txt", ["{} on a shelf"])
    assert find(OWN, str(tmp_path)).templates == ["{} on a shelf"]


def test_folders_are_no_retrieval_set(tmp_path):
    write_folder(tmp_path, "flickr_1k_test_image_text_retrieval", FRUIT)
    with pytest.raises(DataError, match="no data for retrieval/flickr"):
        find(find_task("flickr"), str(tmp_path))


def test_identity_changes_with_the_files_and_not_with_the_path(tmp_path):
    write_folder(tmp_path / "a", "own", FRUIT)
    write_folder(tmp_path / "b", "own", FRUIT)
    first = find(OWN, str(tmp_path / "a")).identity
    assert find(OWN, str(tmp_path / "b")).identity == first
    (tmp_path / "b" / "own" / "test" / "pear" / "1.jpg").write_bytes(photo(9))
    assert find(OWN, str(tmp_path / "b")).identity != first


def test_memory_does_not_grow_with_the_folders(tmp_path):
    def peak(classes):
        root = tmp_path / str(classes)
        write_folder(root, "own", {f"c{i:03d}": [b"x"] for i in range(classes)})
        for class_folder in (root / "own" / "test").iterdir():
            for number in range(100):
                (class_folder / f"some-long-name-of-a-photograph-{number:04d}.jpg").write_bytes(b"")
        tracemalloc.start()
        try:
            assert sum(1 for _ in find(OWN, str(root))) == 101 * classes
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    # Some hundred bytes per class; a list of the paths alone would be 180 bytes per image.
    assert peak(60) < peak(10) + 100 * 1_000


@pytest.mark.slow
def test_folders_in_an_object_store(s3, tmp_path):
    write_folder(tmp_path, "own", FRUIT)
    root = upload(s3, tmp_path, "bucket/sets")
    data = find(OWN, root)
    assert data.path == "s3://bucket/sets/own/test"
    assert (data.total, data.classes) == (4, ["Fig", "apple", "pear"])
    assert [e.label for e in data] == [0, 1, 1, 2]
    assert next(e.image for e in data) == "s3://bucket/sets/own/test/Fig/0.jpg"
    assert data.identity == find(OWN, str(tmp_path)).identity
    with pytest.raises(DataError, match=r"s3://bucket/sets/wds_other_test"):
        find(Task(key="other", dataset="other"), root)


@pytest.mark.skipif(not GROCERY.is_dir(), reason="needs ../shared/data/grocery")
def test_the_grocery_photographs():
    table = str(GROCERY / "pairs.csv")
    fine = DataOptions(label_column="class_name", where=(("split", "test"),))
    data = find(OWN, table, fine)
    assert (data.total, len(data.classes)) == (2485, 81)
    counts = Counter((data.classes[e.label], Path(e.image).parent.name) for e in data)
    assert counts.total() == 2485
    assert all(label == folder for label, folder in counts)
    coarse = find(OWN, table, DataOptions(label_column="coarse_class", where=(("split", "test"),)))
    assert (coarse.total, sum(1 for _ in coarse)) == (2485, 2485)
    assert "Apple" in coarse.classes
    folders = find(OWN, str(GROCERY / "test"))
    assert (folders.total, folders.classes) == (2485, data.classes)
    assert find(OWN, str(GROCERY)).identity == folders.identity
    numbers = Counter(e.label for e in folders)
    assert numbers == Counter(e.label for e in data)
