"""DataComp's layout: tars beside lists of class names and prompts."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.find import DataOptions, Example, find
from pocketclip.evaluate.tasks import Task, find_task
from tests.evaluate.sets import (
    captioned,
    colour_photo,
    labelled,
    npy,
    photo,
    upload,
    write_lines,
    write_tar,
    write_wds,
)

CLASSES = ["red", "green", "blue"]
OWN = Task(key="own", dataset="own")
PIXEL = colour_photo((255, 0, 0), (1, 1))


def examples(count):
    return [labelled(photo(i), i % 3) for i in range(count)]


def read(data):
    examples = list(data)
    assert all(isinstance(example, Example) for example in examples)
    return examples


def test_a_classification_set_is_read_in_order_and_again(tmp_path):
    write_wds(tmp_path, "vtab/cifar100", examples(7), CLASSES, ["a {c}.", "the {}."], shards=3)
    data = find(find_task("cifar100"), str(tmp_path))
    all_examples = read(data)
    assert data.kind == "classification"
    assert data.classes == CLASSES
    assert data.templates == ["a {c}.", "the {}."]
    assert [example.label for example in all_examples] == [0, 1, 2, 0, 1, 2, 0]
    assert [example.image for example in all_examples] == [photo(i) for i in range(7)]
    assert all_examples[-1].name.endswith("2.tar: s0000006")
    again = read(data)
    assert [example.name for example in again] == [example.name for example in all_examples]


def test_ten_tars_are_read_in_the_order_of_their_numbers(tmp_path):
    for nshards in (True, False):
        root = tmp_path / str(nshards)
        write_wds(root, "own", examples(12), CLASSES, shards=12, nshards=nshards)
        all_examples = read(find(OWN, str(root)))
        assert [example.image for example in all_examples] == [photo(i) for i in range(12)]


def test_captions_stand_by_line(tmp_path):
    write_wds(tmp_path, "own", [captioned(photo(0), [" one ", "", "twö"])], shards=1)
    (example,) = read(find(OWN, str(tmp_path)))
    assert example.captions == ("one", "twö")
    assert example.label is None


@pytest.mark.parametrize(
    ("declared", "kind"),
    [("retrieval", "retrieval"), ("image_caption_selection", "caption_choice")],
)
def test_the_kind_that_a_set_declares(tmp_path, declared, kind):
    rows = [captioned(photo(0), ["right", "wrong"])]
    write_wds(tmp_path, "own", rows, dataset_type=declared, shards=1)
    assert find(OWN, str(tmp_path)).kind == kind


def test_an_unknown_declared_kind_is_an_error(tmp_path):
    write_wds(tmp_path, "own", examples(1), dataset_type="detection", shards=1)
    with pytest.raises(DataError, match=r"dataset_type\.txt.*'detection'"):
        find(OWN, str(tmp_path))


def test_metadata(tmp_path):
    write_wds(tmp_path, "own", [labelled(photo(0), 1, metadata=[5, 0, 7])], CLASSES, shards=1)
    (example,) = read(find(OWN, str(tmp_path)))
    assert example.metadata.tolist() == [5, 0, 7]
    assert example.metadata.dtype == np.int64


def test_a_single_number_is_metadata_of_one_field(tmp_path):
    write_wds(tmp_path, "own", [labelled(photo(0), 1) | {"npy": npy(3.0)}], CLASSES, shards=1)
    (example,) = read(find(OWN, str(tmp_path)))
    assert example.metadata.tolist() == [3]


def test_another_split(tmp_path):
    folder = write_wds(tmp_path, "own", examples(2), CLASSES, shards=1)
    write_wds(tmp_path, "own", examples(5), CLASSES, shards=1, split="train")
    assert folder.name == "wds_own_test"
    assert len(read(find(OWN, str(tmp_path), DataOptions(split="train")))) == 5


def test_lists_of_the_user_win(tmp_path):
    write_wds(tmp_path, "own", examples(3), CLASSES, ["a {}."], shards=1)
    write_lines(tmp_path / "names.txt", ["rouge", "vert", "bleu"])
    write_lines(tmp_path / "prompts.txt", ["un {c}"])
    options = DataOptions(
        classes_file=str(tmp_path / "names.txt"), templates_file=str(tmp_path / "prompts.txt")
    )
    data = find(OWN, str(tmp_path), options)
    assert data.classes == ["rouge", "vert", "bleu"]
    assert data.templates == ["un {c}"]
    assert find(OWN, str(tmp_path), DataOptions(templates=("x {}",))).templates == ["x {}"]


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        ({"cls": b"3"}, "label 3 is out of range.*3 classes"),
        ({"cls": b"-1"}, "label -1 is out of range"),
        ({"cls": b"red"}, "label 'red' is not a whole number"),
        ({"cls": b"1.5"}, r"label '1\.5' is not a whole number"),
        ({"cls": b"1_0"}, "label '1_0' is not a whole number"),
        ({"cls": b""}, "label '' is not a whole number"),
        ({"cls": b"\xff\xfe"}, "UTF-8"),
        ({"cls": None}, "no .cls"),
        ({"jpg": None}, "no image"),
        ({"npy": b""}, "npy"),
        ({"npy": b"PK\x03\x04 no zip"}, "npy"),
        ({"npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8'\n"}, "npy"),
        ({"npy": npy([1, 2])[:-3]}, "npy"),
        ({"npy": npy(np.array([{"a": 1}], object))}, "npy"),
        ({"npy": npy([[1, 2]])}, "npy"),
        ({"npy": npy([1.5])}, "npy"),
        ({"npy": npy([np.nan])}, "npy"),
        ({"npy": npy(["a"])}, "npy"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, member, problem):
    good = labelled(photo(0), 0)
    bad = {key: value for key, value in {**good, **member}.items() if value is not None}
    write_wds(tmp_path, "own", [good, good, good, bad], CLASSES)
    with pytest.raises(DataError, match=rf"test.1\.tar: s0000003.*{problem}"):
        list(find(OWN, str(tmp_path)))


def test_npy_of_more_numbers_than_there_is_memory_for(tmp_path):
    head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }"
    head = head.ljust(117) + b"\n"
    bad = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    write_wds(tmp_path, "own", [labelled(photo(0), 0) | {"npy": bad}], CLASSES, shards=1)
    with pytest.raises(DataError, match=r"0\.tar: s0000000.*npy"):
        list(find(OWN, str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "no .txt"), (b" \n", "empty"), (b"\xff", "UTF-8")]
)
def test_bad_captions_are_named(tmp_path, text, problem):
    good = captioned(photo(0), ["a"])
    bad = {"jpg": photo(1)} | ({} if text is None else {"txt": text})
    write_wds(tmp_path, "own", [good, bad], shards=1)
    with pytest.raises(DataError, match=rf"0\.tar: s0000001.*{problem}"):
        list(find(OWN, str(tmp_path)))


def test_a_missing_tar_is_named(tmp_path):
    folder = write_wds(tmp_path, "own", examples(6), CLASSES, shards=3)
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"test.1\.tar of the 3 tars"):
        find(OWN, str(tmp_path))


def test_a_tar_too_many_is_named(tmp_path):
    folder = write_wds(tmp_path, "own", examples(6), CLASSES, shards=3)
    write_lines(folder / "test" / "nshards.txt", ["2"])
    with pytest.raises(DataError, match=r"2\.tar.*nshards\.txt"):
        find(OWN, str(tmp_path))


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5"])
def test_a_bad_number_of_tars(tmp_path, text):
    folder = write_wds(tmp_path, "own", examples(2), CLASSES)
    write_lines(folder / "test" / "nshards.txt", [text])
    with pytest.raises(DataError, match=rf"nshards\.txt.*{text!r}"):
        find(OWN, str(tmp_path))


@pytest.mark.parametrize("keep", [0, 700, 2000, -1024])
def test_a_cut_tar_is_named(tmp_path, keep):
    folder = write_wds(tmp_path, "own", examples(6), CLASSES)
    tar = folder / "test" / "1.tar"
    whole = tar.read_bytes()
    # The last: the end of the archive and its padding are gone, all members are whole.
    size = keep if keep >= 0 else len(whole.rstrip(b"\0")) // 512 * 512 + 512
    tar.write_bytes(whole[:size])
    with pytest.raises(DataError, match=r"test.1\.tar"):
        list(find(OWN, str(tmp_path)))


def test_no_samples(tmp_path):
    write_wds(tmp_path, "own", [], CLASSES)
    with pytest.raises(DataError, match=r"0\.tar: the tar holds no samples"):
        list(find(OWN, str(tmp_path)))


def test_class_names_are_needed(tmp_path):
    folder = write_wds(tmp_path, "own", examples(2), CLASSES)
    (folder / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"classnames\.txt is missing"):
        find(Task(key="own", dataset="own", kind="classification"), str(tmp_path))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("\n \n", "holds only blank lines"),
        ("", "is empty"),
    ],
)
def test_a_bad_list_of_classes(tmp_path, lines, problem):
    folder = write_wds(tmp_path, "own", examples(2), CLASSES)
    (folder / "classnames.txt").write_text(lines)
    with pytest.raises(DataError, match=rf"classnames\.txt {problem}"):
        find(OWN, str(tmp_path))


def test_blank_class_names_are_kept(tmp_path):
    """As clip-benchmark has one for the task of distances in CLEVR."""
    folder = write_wds(tmp_path, "own", examples(3), ["near", "", "far"])
    assert find(OWN, str(tmp_path)).classes == ["near", "", "far"]
    for text, classes in (
        ("\nb\r\nc\n", ["", "b", "c"]),
        ("a\nb\n\n\n\n", ["a", "b", ""]),  # the highest label is 2
        ("a\nb\nc\n \n", ["a", "b", "c"]),
        ("2\tc\n0\ta\n1\t\n", ["a", "", "c"]),
        ("a\u2028b\n\x0c\n d \x85", ["a\u2028b", "", "d"]),
    ):
        (folder / "classnames.txt").write_bytes(text.encode())
        assert find(OWN, str(tmp_path)).classes == classes, text


@pytest.mark.parametrize("text", [b"2", b" 2\n", b"002", b"2.0", b"2e0", b"\xef\xbb\xbf2"])
def test_ways_to_write_a_class_number(tmp_path, text):
    write_wds(tmp_path, "own", [{"jpg": photo(0), "cls": text}], CLASSES, shards=1)
    assert [example.label for example in find(OWN, str(tmp_path))] == [2]


def test_captions_end_where_lines_end(tmp_path):
    text = "one\u2028still one\r\ntwo\x0cstill two\x85\n\n three\x1c and\x1dmore\x1e\n"
    write_wds(tmp_path, "own", [captioned(photo(0), [text])], shards=1)
    (example,) = find(OWN, str(tmp_path))
    assert example.captions == (
        "one\u2028still one", "two\x0cstill two", "three\x1c and\x1dmore",
    )  # fmt: skip


def test_a_list_that_is_not_utf_8(tmp_path):
    folder = write_wds(tmp_path, "own", examples(2), CLASSES)
    (folder / "classnames.txt").write_bytes("rot\ngrün\n".encode("latin1"))
    with pytest.raises(DataError, match=r"classnames\.txt is not UTF-8 text \(byte 6\)"):
        find(OWN, str(tmp_path))


def test_a_prompt_without_a_placeholder_for_the_class(tmp_path):
    write_wds(tmp_path, "own", examples(2), CLASSES, ["a {c}.", "a photo."])
    with pytest.raises(DataError, match=r"templates\.txt line 2: .*'a photo\.'"):
        find(OWN, str(tmp_path))


def test_identity_says_what_the_set_is(tmp_path):
    def identity(folder, *args, **kwargs):
        write_wds(tmp_path / folder, "own", *args, **kwargs)
        return find(OWN, str(tmp_path / folder)).identity

    same = identity("a", examples(6), CLASSES)
    assert identity("b", examples(6), CLASSES) == same
    assert identity("c", examples(12), CLASSES) != same
    assert identity("d", examples(6), [*CLASSES, "grey"]) != same
    assert identity("e", examples(6), CLASSES, ["the {}"]) != same
    assert identity("f", examples(6), CLASSES, shards=1) != same
    assert find(OWN, str(tmp_path / "a"), DataOptions(templates=("one {}",))).identity != same


def test_memory_does_not_grow_with_the_set(tmp_path):
    def peak(count):
        root = tmp_path / str(count)
        write_tar(
            root / "wds_own_test" / "test" / "0.tar",
            [(f"s{i:07d}", {"png": PIXEL + bytes(2000), "cls": b"0"}) for i in range(count)],
        )
        write_lines(root / "wds_own_test" / "classnames.txt", CLASSES)
        tracemalloc.start()
        try:
            assert sum(1 for _ in find(OWN, str(root))) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # imports and caches
    assert peak(1500) < peak(150) + 50_000


def test_only_what_is_asked_for_is_read(tmp_path):
    folder = write_wds(tmp_path, "own", examples(6), CLASSES)
    (folder / "test" / "1.tar").write_bytes(b"broken")
    all_examples = itertools.islice(find(OWN, str(tmp_path)), 3)
    assert [example.label for example in all_examples] == [0, 1, 2]


def test_in_an_object_store(s3, tmp_path):
    write_wds(tmp_path, "vtab/cifar100", examples(7), CLASSES, ["a {}"], shards=2)
    root = upload(s3, tmp_path, "bucket/sets")
    data = find(find_task("vtab/cifar100"), root)
    here = find(find_task("vtab/cifar100"), str(tmp_path))
    assert data.path == "s3://bucket/sets/wds_vtab-cifar100_test"
    assert data.identity == here.identity
    assert [e.image for e in data] == [e.image for e in here]
    assert next(iter(data)).name.startswith("s3://bucket/sets/wds_vtab-cifar100_test/test/0.tar: ")
    s3.put("bucket/sets/wds_vtab-cifar100_test/test/nshards.txt", b"3")
    with pytest.raises(DataError, match=r"s3://.*test/2\.tar of the 3 tars"):
        find(find_task("vtab/cifar100"), root)


def test_on_a_web_server(web, tmp_path):
    pytest.importorskip("aiohttp")
    folder = write_wds(tmp_path, "own", examples(4), CLASSES)
    for path in folder.rglob("*.*"):
        web.files[f"/sets/{path.relative_to(tmp_path).as_posix()}"] = path.read_bytes()
    data = find(OWN, f"{web.url}/sets")
    assert data.classes == CLASSES
    assert [e.label for e in data] == [0, 1, 2, 0]
