"""The top-1 on labelled photographs, as export and bench compare it."""

from __future__ import annotations

import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate import top1
from tests.evaluate.dummy import COLOURS, ColourEncoder
from tests.evaluate.sets import colour_photo, write_table


@pytest.fixture
def table(tmp_path):
    """Four photographs of train, four of test, one label of the latter wrong."""
    names = list(COLOURS)[:4]
    rows = [
        {"file": f"{name}.png", "what": name, "split": split, "caption": name}
        for split in ("train", "test")
        for name in names
    ]
    rows[-1]["what"] = names[0]
    photos = {f"{name}.png": colour_photo(COLOURS[name]) for name in names}
    write_table(tmp_path / "shelf.csv", rows, photos)
    return str(tmp_path / "shelf.csv")


def test_python_measures_in_one_call(table):
    encoder = ColourEncoder()
    options = {"label_column": "what", "templates": ["{}"]}
    assert top1(table, **options)(encoder) == pytest.approx(100 * 7 / 8)
    assert top1(table, where={"split": "test"}, **options)(encoder) == pytest.approx(75)
    assert top1(table, where=[("split", "train")], **options)(encoder) == pytest.approx(100)


def test_what_has_no_labels_is_said_before_any_model(table, tmp_path):
    with pytest.raises(DataError, match="no data for nowhere"):
        top1(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no column 'label'"):
        top1(table, label_column="label")
