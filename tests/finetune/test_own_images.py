from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import DataOptions
from pocketclip.finetune.own_images import read_images
from pocketclip.finetune.tables import generic_captions, write_tables
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pairs.split import hold_out
from tests.finetune.conftest import draw_square


def write_table(path: Path, head: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([head, *rows])
    return path


def test_a_folder_by_class_has_labels_and_prompts(squares):
    own = read_images(str(squares))
    assert own.kind == "labels"
    assert len(own) == 18
    assert own.classes == ["green thing", "grey", "red thing"]
    assert own.captions[own.names.index("grey/0.png")] == ["a photo of grey."]


def test_a_table_has_the_column_that_is_named(squares, tmp_path):
    rows = [
        [str(path), path.parent.name, f"picture {path.stem} of {path.parent.name}"]
        for path in sorted(squares.glob("*/*.png"))
    ]
    table = write_table(tmp_path / "t.csv", ["image", "label", "caption"], rows)
    assert read_images(str(table)).kind == "labels"
    own = read_images(str(table), DataOptions(caption_column="caption"))
    assert own.kind == "captions"
    assert own.labels is None
    assert len(own) == 18
    assert own.captions[0] == ["picture 0 of green thing"]


def test_captions_that_repeat_are_classes(squares, tmp_path):
    rows = [[str(p), f"a {p.parent.name} on the wall"] for p in sorted(squares.glob("*/*.png"))]
    own = read_images(str(write_table(tmp_path / "t.csv", ["image", "caption"], rows)))
    assert own.kind == "captions"
    assert own.templates == ["{}"]
    assert len(own.classes) == 3
    assert own.labels is not None


def test_several_captions_of_an_image_stay_together(squares, tmp_path):
    paths = sorted(squares.glob("*/*.png"))
    rows = [[str(path), f"{path.name} {number} of {path.parent.name}"] for path in paths
            for number in (1, 2)]  # fmt: skip
    own = read_images(str(write_table(tmp_path / "t.csv", ["image", "caption"], rows)))
    assert len(own) == 18
    assert all(len(texts) == 2 for texts in own.captions)
    count = write_tables(tmp_path / "data", own, hold_out(own.names), 0)
    assert count == 2 * 16


def test_texts_beside_images_are_captions(tmp_path):
    for number in range(4):
        draw_square(tmp_path / "in" / f"{number}.png", (9, 9, 9), number)
        (tmp_path / "in" / f"{number}.txt").write_text(f"number {number}")
    own = read_images(str(tmp_path / "in"))
    assert own.kind == "captions"
    assert own.captions[0] == ["number 0"]


def test_a_plain_folder_has_no_texts(tmp_path):
    for number in range(3):
        draw_square(tmp_path / f"{number}.png", (9, 9, 9), number)
    own = read_images(str(tmp_path))
    assert own.kind == "none"
    assert own.names == ["0.png", "1.png", "2.png"]


def test_names_of_folders_may_be_ignored(squares):
    own = read_images(str(squares), unlabelled=True)
    assert own.kind == "none"
    assert "grey/0.png" in own.names


def test_photographs_beside_folders_are_refused(tmp_path):
    draw_square(tmp_path / "shelf" / "loose.png", (9, 9, 9), 0)
    draw_square(tmp_path / "shelf" / "label" / "0.png", (9, 9, 9), 0)
    with pytest.raises(DataError, match="beside its folders"):
        read_images(str(tmp_path / "shelf"))


def test_urls_are_refused(tmp_path):
    rows = [["https://example.com/a.jpg", "one"], ["https://example.com/b.jpg", "two"]]
    with pytest.raises(DataError, match="is a URL"):
        read_images(str(write_table(tmp_path / "t.csv", ["image", "caption"], rows)))


def test_tables_name_the_files_and_copy_none(squares, tmp_path):
    own = read_images(str(squares))
    held_out = hold_out(own.names, own.labels.tolist(), share=0.2)
    rows = write_tables(tmp_path, own, held_out, seed=0)
    assert rows == 15
    assert held_out.sum() == 3
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert written == [
        "train.csv", "validation/classnames.txt", "validation/test.csv",
        "validation/zeroshot_classification_templates.txt",
    ]  # fmt: skip
    options = PairOptions(image_column="image", caption_columns=("caption", "generic_1"))
    pairs = [pair for shard in open_pairs(str(tmp_path / "train.csv"), options) for pair in shard]
    assert len(pairs) == 15
    assert all(pair.image for pair in pairs)
    assert {pair.captions["text"][0] for pair in pairs} == {
        "a photo of grey.", "a photo of green thing.", "a photo of red thing."
    }  # fmt: skip


def test_the_written_validation_set_has_all_classes(squares, tmp_path):
    own = read_images(str(squares))
    held_out = np.zeros(len(own), bool)
    held_out[[own.names.index("red thing/1.png"), own.names.index("red thing/2.png")]] = True
    write_tables(tmp_path, own, held_out, seed=0)
    from pocketclip.evaluate.datasets.find import find, own_task

    folder = str(tmp_path / "validation")
    data = find(own_task(folder), folder)
    assert data.classes == own.classes
    assert [example.label for example in data] == [2, 2]


def test_no_generic_caption_has_a_label_in_it(squares):
    own = read_images(str(squares))
    own.classes[:] = ["Bread", "car", "x"]
    texts = {text for row in generic_captions(own, 400, seed=1) for text in row}
    words = {word for text in texts for word in text.split()}
    assert len(texts) > 50
    assert not {"bread", "car"} & words
    assert "sports" not in words  # "sports car"


def test_generic_captions_are_used_equally(squares):
    rows = generic_captions(read_images(str(squares)), 300, seed=1)
    flat = [text for row in rows for text in row]
    counts = {text: flat.count(text) for text in flat}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(len(set(row)) == len(row) for row in rows[:20])
