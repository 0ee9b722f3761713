"""Retrieval, caption choice and associations, with encoders whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import Example, TaskData
from pocketclip.evaluate.datasets.find import find
from pocketclip.evaluate.retrieval import (
    cue_prompt,
    run_association,
    run_caption_choice,
    run_retrieval,
)
from pocketclip.evaluate.stream import RunOptions
from pocketclip.evaluate.suite import evaluate
from pocketclip.evaluate.tasks import Task, find_task, published_results
from tests.evaluate.dummy import COLOURS, ColourEncoder
from tests.evaluate.sets import (
    captioned,
    colour_photo,
    write_sugarcrepe,
    write_table,
    write_wds,
    write_winogavil,
)

OPTIONS = RunOptions(cache=None, batch_size=2)


def _photo(name):
    return colour_photo(COLOURS[name])


def test_recall_with_several_captions(tmp_path):
    write_wds(tmp_path, "retrieval/flickr_1k_test_image_text_retrieval", [
        captioned(_photo("red"), ["a red door", "yes, red"]),
        captioned(_photo("green"), ["a blue frog", "a red frog", "a green frog"]),
        captioned(_photo("blue"), ["the yellow sky"]),
        captioned(_photo("yellow"), ["yellow"]),
    ])  # fmt: skip
    task = find_task("flickr")
    result, _ = evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)
    metrics = result.metrics
    # Text to image, 7 texts: both reds, the green one and `yellow` find theirs.
    assert metrics["image_retrieval_recall@1"] == pytest.approx(4 / 7)
    # Image to text: red finds `a red door` (of equals the first), green its third, yellow first
    # the sky's caption, which comes before its own and is equal, blue the blue frog.
    assert metrics["text_retrieval_recall@1"] == pytest.approx(2 / 4)
    assert metrics["main_metric"] == pytest.approx((4 / 7 + 2 / 4) / 2)
    assert metrics["text_retrieval_recall@10"] == 1
    assert list(metrics) == [*published_results()["mobileclip-b"][task.key]]
    assert result.about["samples"] == 4


def test_retrieval_does_not_depend_on_the_batch_size(tmp_path):
    names = list(COLOURS)
    rows = [(names[i % 6], [f"{names[i % 5]} {i}", names[(i * 7) % 6]]) for i in range(23)]
    write_wds(tmp_path, "urban", [captioned(_photo(n), c) for n, c in rows], shards=3)
    task = Task(key="urban", dataset="urban")
    data = find(task, str(tmp_path))
    assert data.kind == "retrieval"
    metrics = [
        evaluate(ColourEncoder(), task, data, RunOptions(batch_size=size))[0].metrics
        for size in (1, 4, 100)
    ]
    assert metrics[0] == metrics[1] == metrics[2]


def test_captions_of_a_bad_image_go_with_it(tmp_path):
    rows = [{"image": f"{n}.png", "captions": [n, f"very {n}"]} for n in ("red", "green", "blue")]
    images = {"red.png": _photo("red"), "green.png": b"broken", "blue.png": _photo("blue")}
    write_table(tmp_path / "cards.csv", rows, images)
    task = Task(key="cards", dataset="cards")
    data = find(task, str(tmp_path))
    with pytest.raises(DataError, match=r"1 unreadable image: .*cards.csv row 3 .*green.png"):
        evaluate(ColourEncoder(), task, data, OPTIONS)
    options = RunOptions(cache=None, skip_bad=True)
    result, outcome = evaluate(ColourEncoder(), task, data, options)
    assert (result.about["samples"], result.about["skipped"]) == (2, 1)
    assert result.metrics["mean_recall@1"] == 1
    assert "cards.csv row 3" in outcome.skipped[0].name


def test_captions_of_one_text_are_equal_to_the_bit(tmp_path):
    """In whichever batch they stand: the first of equals is found, as a known answer needs."""

    class Noisy(ColourEncoder):
        """Rounds a text by where it stands and with what, as models do."""

        def encode_text(self, texts):
            self.calls = getattr(self, "calls", 0) + 1
            positions = np.arange(len(texts), dtype=np.float32)[:, None] + self.calls
            return super().encode_text(texts) * (1 + 1e-6 * positions * [1, -1, 1, -1])

    rows = [("red", ["red"]), ("green", ["red"]), ("blue", ["red"]), ("red", ["red", "red"])]
    write_wds(tmp_path, "cards", [captioned(_photo(n), c) for n, c in rows])
    task = Task(key="cards", dataset="cards")
    data = find(task, str(tmp_path))
    for size in (1, 2, 4):
        encoder = Noisy()
        options = RunOptions(cache=None, batch_size=size)
        metrics = evaluate(encoder, task, data, options)[0].metrics
        assert encoder.texts == 1
        # All five texts find the first image; all four images find the first text.
        assert metrics["image_retrieval_recall@1"] == 1 / 5
        assert metrics["text_retrieval_recall@1"] == 1 / 4


def test_embeddings_of_captions_that_are_no_numbers_name_row_and_text(tmp_path):
    rows = [{"image": f"{n}.png", "captions": [n, f"very {n}"]} for n in ("red", "green", "blue")]
    write_table(tmp_path / "cards.csv", rows, {row["image"]: _photo(row["captions"][0])
                                               for row in rows})  # fmt: skip
    task = Task(key="cards", dataset="cards")
    data = find(task, str(tmp_path))
    why = r"cards.csv row 4, caption 2 \('very blue'\): its embedding is not finite"
    with pytest.raises(DataError, match=why):
        evaluate(ColourEncoder(poison="very blue"), task, data, OPTIONS)
    with pytest.raises(DataError, match=r"cards.csv row 3: its embedding is not finite"):
        evaluate(ColourEncoder(poison="green"), task, data, OPTIONS)


def test_an_image_without_captions_is_refused_whoever_reads_it():
    samples = [Example(name="mine row 0", image=_photo("red"))]
    data = TaskData(path="mine", kind="retrieval", samples=lambda: iter(samples), identity="x")
    for run in (run_retrieval, run_caption_choice):
        with pytest.raises(DataError, match=r"^mine row 0: the list of captions is empty"):
            run(ColourEncoder(), Task(key="mine", dataset="mine"), data, OPTIONS)
    with pytest.raises(DataError, match=r"^mine holds images, not puzzles"):
        run_association(ColourEncoder(), Task(key="mine", dataset="mine"), data, OPTIONS)


@pytest.mark.parametrize("key", ["flickr", "sugarcrepe_add_att"])
def test_nothing_to_score_is_an_error(tmp_path, key):
    task = find_task(key)
    write_wds(tmp_path, task.key, [{"png": b"broken", "txt": b"a\nb"}] * 3)
    options = RunOptions(cache=None, skip_bad=True)
    with pytest.raises(DataError, match=r"no image to score: 3 were skipped, .*s0000000 \(not an"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), options)


def test_caption_choice_from_both_forms(tmp_path):
    entries = [
        ("a.png", "a red cat", "a blue cat"),
        ("b.png", "a green cat", "a red cat"),
        ("c.png", "a yellow cat", "a blue cat"),  # the photograph is blue: wrong
        ("d.png", "a cat", "a cat"),  # equal: the first is chosen, as was published
    ]
    images = dict(zip("abcd", ("red", "green", "blue", "red"), strict=True))
    write_sugarcrepe(tmp_path / "own", "add_att", entries,
                     {f"{k}.png": _photo(v) for k, v in images.items()})  # fmt: skip
    write_wds(tmp_path / "tars", "comp/sugarcrepe_add_att",
              [captioned(_photo(images[name[0]]), both) for name, *both in entries])  # fmt: skip
    task = find_task("sugarcrepe_add_att")
    for root in ("own", "tars"):
        data = find(task, str(tmp_path / root))
        metrics = evaluate(ColourEncoder(), task, data, OPTIONS)[0].metrics
        assert metrics == {"image_acc": 1, "text_acc": 3 / 4, "acc": 3 / 4, "main_metric": 3 / 4}
        assert list(metrics) == [*published_results()["mobileclip2-s0"][task.key]]


def test_one_caption_is_no_choice(tmp_path):
    write_wds(tmp_path, "comp/sugarcrepe_add_att", [captioned(_photo("red"), ["a red cat"])])
    task = find_task("sugarcrepe_add_att")
    with pytest.raises(DataError, match=r"s0000000 has one caption"):
        evaluate(ColourEncoder(), task, find(task, str(tmp_path)), OPTIONS)


def test_associations_by_size(tmp_path):
    names = list(COLOURS)
    five, ten = names[:5], [*names, *(f"{name}2" for name in names[:4])]
    images = {name: _photo(name.rstrip("2")) for name in ten}
    write_winogavil(tmp_path, [
        ("red", five, ["red", "green"]),            # chosen: red, then of the rest one more
        ("Blue", five, ["blue"]),                   # right: 1
        ("yellow", ten, ["yellow", "yellow2"]),     # right: 1
        ("violet", ten, ["green", "green2"]),       # none right: 0
    ], images)  # fmt: skip
    task = find_task("winogavil")
    encoder = ColourEncoder()
    result, _ = evaluate(encoder, task, find(task, str(tmp_path)), OPTIONS)
    metrics = result.metrics
    assert metrics["main_metric"] == metrics["jaccard_score_10-12"] == 1 / 2
    # `red` is nearest to red, then yellow (255, 255, 0): one of two right, 1 of 3 together
    assert metrics["jaccard_score_5-6"] == pytest.approx((1 / 3 + 1) / 2)
    assert metrics["jaccard_score_12"] is None
    assert list(metrics) == [*published_results()["mobileclip-b"]["misc/winogavil"]]
    assert result.about["samples"] == 4
    assert encoder.images == 10  # each image once


def test_a_puzzle_with_a_bad_image_is_left_out(tmp_path):
    images = {"red": _photo("red"), "blue": _photo("blue"), "green": b""}
    puzzles = [("red", ["red", "blue"], ["red"]), ("red", ["red", "green"], ["red"])]
    write_winogavil(tmp_path, puzzles, images)
    task = find_task("winogavil")
    data = find(task, str(tmp_path))
    with pytest.raises(DataError, match=r"test.csv row 3: .*green.jpg"):
        evaluate(ColourEncoder(), task, data, OPTIONS)
    result, _ = evaluate(ColourEncoder(), task, data, RunOptions(skip_bad=True))
    assert (result.about["samples"], result.about["skipped"]) == (1, 1)


def test_puzzles_say_which_cue_has_no_embedding(tmp_path):
    images = {"red": _photo("red"), "blue": _photo("blue")}
    puzzles = [(cue, ["red", "blue"], ["red"]) for cue in ("red", "Owl")]
    write_winogavil(tmp_path, puzzles, images)
    task = find_task("winogavil")
    data = find(task, str(tmp_path))
    with pytest.raises(DataError, match=r"test.csv row 3, cue 'Owl': its embedding is not"):
        evaluate(ColourEncoder(poison="An owl"), task, data, OPTIONS)
    images["red"] = b""
    write_winogavil(tmp_path, puzzles, images)
    with pytest.raises(DataError, match=r"no image to score: 1 were skipped"):
        evaluate(ColourEncoder(), task, data, RunOptions(skip_bad=True))


def test_cues():
    assert [cue_prompt(cue) for cue in ("Owl", "hour", "Unit")] == ["An owl", "A hour", "An unit"]
