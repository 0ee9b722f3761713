"""The report page: what it says, for labels and captions, and with hostile names."""

from __future__ import annotations

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from pocketclip.finetune.report import class_scores, confusions, doubts, finetune_page

HOSTILE = '<script>alert("x")</script> \x00 & \ud800 "quoted"'
TRUTH, BEFORE, AFTER = (np.array(x) for x in ([0, 0, 0, 1, 1], [0, 1, 1, 0, 1], [0, 0, 1, 1, 1]))


def _result(**changes):
    line = [{"a": i / 4, "validation": 0.4 + 0.1 * i, "retention": 1 - 0.02 * i} for i in range(5)]
    return {
        "model": "mobileclip2-s0",
        "data": "shelf/",
        "out": "runs/shelf",
        "task": "captions",
        "metric": "retrieval, mean recall@1",
        "retention": {"name": "agreement with the start", "least": 0.95},
        "candidates": [
            {"name": "start", "validation": 0.4, "retention": 1.0},
            {"name": "between", "validation": 0.6, "retention": 0.96, "chosen": True},
        ],
        "line": line,
        "chosen": {"a": 0.5},
        **changes,
    }


def _jpeg(colour="red"):
    data = io.BytesIO()
    Image.new("RGB", (400, 300), colour).save(data, "JPEG")
    return data.getvalue()


def _text(page):
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_page_of_captions_shows_the_line_and_what_was_chosen():
    result = _result(
        verdict="half of the way",
        warnings=["few images"],
        training={"preset": "full", "steps": 40, "teachers": []},
        counts={"train": 1200, "validation": 80, "left_out": 0, "rows": 1200},
        seconds={"train": 12.34},
        next=["pocketclip eval runs/shelf"],
    )
    result["candidates"][1]["retention"] = 0.9499  # less than is to be kept
    page = finetune_page(result)
    text = _text(page)
    assert "runs/shelf/model is half of the way" in text
    assert "few images." in text
    assert "1,200 to train on, 80 for validation." in text
    assert "between 60.0 94.9" in text
    assert "teachers none" in text
    assert "train 12.3" in text
    assert "pocketclip eval runs/shelf" in text
    for word in ("Accuracy per class", "doubts", "confusions", "test, %"):
        assert word not in text
    filled = re.findall(
        r'data-name="(\w+ \d+)"[^>]*><title>[^<]*</title><path class="mark v\d"', page
    )
    assert set(filled) == {"validation 50", "retention 50"}
    assert "chosen: 60.0 %" in page
    assert "to be kept: 95 %" in page


def test_the_page_of_labels_shows_classes_doubts_and_confusions():
    classes = ["pear", "apple", "unused"]
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.05, 0.95, 0], [0.4, 0.6, 0], [0, 1, 0], [0.9, 0.1, 0]]
    )
    result = _result(
        task="labels",
        classes=class_scores(BEFORE, AFTER, TRUTH, classes, [10, 5, 0]),
        confusions=confusions(AFTER, TRUTH, classes),
        doubts=doubts(probabilities, TRUTH, classes, list("abcde"), [_jpeg()] * 4 + [b"broken"]),
    )  # fmt: skip
    result["candidates"][0]["test"] = 0.35
    text = _text(finetune_page(result))
    assert "pear 10 3 33.3 66.7 +33.3 apple 5 2 50.0 100.0 +50.0" in text
    assert "unused" not in text
    assert "pear apple 1 33.3" in text
    assert "start 40.0 35.0 100.0" in text
    assert [doubt["name"] for doubt in result["doubts"]] == ["b", "e", "c"]
    assert result["doubts"][1]["thumbnail"] == ""
    picture = Image.open(io.BytesIO(base64.b64decode(
        result["doubts"][0]["thumbnail"].removeprefix("data:image/jpeg;base64,"))))  # fmt: skip
    assert picture.size == (160, 120)
    assert "label pear (5.0 %) model apple (95.0 %) b" in text


def test_a_class_without_validation_images_is_last_and_has_no_accuracy():
    rows = class_scores(BEFORE[:3], AFTER[:3], TRUTH[:3], ["pear", "apple"], [10, 1])
    assert rows[1] == {"name": "apple", "train": 1, "count": 0, "before": None, "after": None}
    assert "pear 10 3 33.3 66.7 +33.3 apple 1 0 - - -" in _text(
        finetune_page(_result(classes=rows))
    )


def test_no_doubt_and_no_confusion_where_all_is_right():
    assert confusions(TRUTH, TRUTH, ["pear", "apple"]) == []
    assert doubts(np.eye(2)[TRUTH], TRUTH, ["pear", "apple"], list("abcde"), [b""] * 5) == []
    none = np.empty(0, np.int64)
    assert doubts(np.empty((0, 2)), none, ["pear", "apple"], [], []) == []


def test_the_doubts_and_confusions_are_few():
    truth, said = np.zeros(40, np.int64), np.arange(40) % 20 + 1
    probabilities = np.eye(21)[said]
    names = [f"class {i}" for i in range(21)]
    assert len(doubts(probabilities, truth, names, ["x"] * 40, [b""] * 40)) == 12
    assert len(confusions(said, truth, names)) == 10


@pytest.mark.parametrize("field", ["model", "data", "out", "metric", "verdict"])
def test_hostile_texts_are_shown_as_text(field):
    classes = [HOSTILE, "pear"]
    result = _result(
        task="labels",
        classes=class_scores(BEFORE, AFTER, TRUTH, classes, [1, 1]),
        confusions=confusions(AFTER, TRUTH, classes),
        doubts=[{"name": HOSTILE, "label": HOSTILE, "says": 500 * "x", "probability": 0.9,
                 "label_probability": 0.1, "thumbnail": "https://example.org/x.png"}],
        warnings=[HOSTILE], next=[HOSTILE], training={HOSTILE: HOSTILE}, seconds={HOSTILE: 1.0},
        retention={"name": HOSTILE, "least": 0.95},
    )  # fmt: skip
    result["candidates"][0] |= {"name": HOSTILE, "note": HOSTILE}
    result[field] = HOSTILE
    page = finetune_page(result)
    assert "<script" not in page
    assert "https://example.org" not in page
    assert "\x00" not in page
    page.encode("utf-8")
    assert (
        page.count(
            html.escape('<script>alert("x")</script>', quote=True).replace("&quot;", "&#34;")
        )
        > 8
    )
    assert 201 * "x" not in page


def test_a_line_of_one_point_has_no_chart():
    assert "<svg" not in finetune_page(_result(line=[]))
