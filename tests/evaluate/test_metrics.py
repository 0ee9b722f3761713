"""Every metric against matrices written by hand, and against its definition on made-up ones."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip.errors import DataError
from pocketclip.evaluate.metrics import (
    ClassificationCounts,
    GroupCounts,
    association_metrics,
    choice_hits,
    choice_metrics,
    jaccard,
    predictions,
    retrieval_metrics,
    top_hits,
)
from pocketclip.evaluate.tasks import TASKS, published_results

SEEDS = st.integers(0, 2**32 - 1)


def _scores(seed: int, rows: int, columns: int, levels: int) -> np.ndarray[Any, Any]:
    """Integers of few levels, so that most rows tie."""
    random = np.random.default_rng(seed)
    return random.integers(0, levels, (rows, columns)).astype(np.float32)


# --- classification

# six classes, of which 3 and 4 never occur
SCORES = np.array(
    [
        [6, 5, 4, 3, 2, 1],  # of class 0: taken for 0
        [1, 6, 5, 4, 3, 2],  # of class 0: taken for 1, and 0 comes sixth
        [1, 6, 5, 4, 3, 2],  # of class 1: taken for 1
        [2, 6, 5, 4, 3, 1],  # of class 2: taken for 1, and 2 comes second
        [1, 1, 1, 1, 1, 1],  # of class 5: taken for 0, the first of the equals; 5 comes sixth
    ],
    np.float32,
)
LABELS = np.array([0, 0, 1, 2, 5])


def test_classification_by_hand() -> None:
    counts = ClassificationCounts(6, confusion=True)
    counts.add(SCORES, LABELS)
    assert counts.count == 5
    assert counts.metrics() == {
        "acc1": 2 / 5,
        "acc5": 3 / 5,
        # of classes 0, 1, 2, 5: 1 of 2, 1 of 1, 0 of 1, 0 of 1
        "mean_per_class_recall": (1 / 2 + 1 + 0 + 0) / 4,
    }
    # F1 is 2 right / (true + predicted): 2 / (2 + 2), 2 / (1 + 3), 0, 0
    assert counts.macro() == {
        "acc_avg": 2 / 5,
        "recall-macro_all": 0.375,
        "F1-macro_all": (2 / 4 + 2 / 4 + 0 + 0) / 4,
    }
    expected = np.zeros((6, 6), int)
    expected[[0, 0, 1, 2, 5], [0, 1, 1, 1, 0]] = 1
    assert counts.confusion is not None
    assert counts.confusion.tolist() == expected.tolist()
    assert list(counts.metrics()) == ["acc1", "acc5", "mean_per_class_recall"]
    assert ClassificationCounts(6).confusion is None


def test_the_published_iwildcam_has_these_keys_in_this_order() -> None:
    counts = ClassificationCounts(6)
    counts.add(SCORES, LABELS)
    actual = [*counts.metrics(), *counts.macro(), "main_metric"]
    for results in published_results().values():
        assert list(results["wilds/iwildcam"]) == actual


@pytest.mark.parametrize(("k", "hits"), [(1, "10100"), (2, "10100"), (3, "10110"), (6, "11111")])
def test_top_hits_by_hand(k: int, hits: str) -> None:
    # row 3: 6 (class 1), 5 (class 2) are the first two; class 2 has 5
    scores = SCORES.copy()
    scores[3] = [6, 5, 4, 3, 2, 1]  # class 2 comes third
    assert top_hits(scores, LABELS, k).tolist() == [h == "1" for h in hits]


def test_equal_scores_are_taken_from_the_lowest_index_on() -> None:
    row = np.array([[3, 7, 7, 1, 7, 3]], np.float32)  # order: 1, 2, 4, 0, 5, 3
    rank_of = {1: 1, 2: 2, 4: 3, 0: 4, 5: 5, 3: 6}
    for label, first in rank_of.items():
        for k in range(1, 9):
            assert top_hits(row, np.array([label]), k).tolist() == [k >= first], (label, k)
    assert predictions(row).tolist() == [1]


def test_k_above_the_number_of_classes_takes_all() -> None:
    assert top_hits(SCORES, LABELS, 100).all()


def test_everything_right_and_everything_wrong() -> None:
    right, wrong = ClassificationCounts(5), ClassificationCounts(6)
    right.add(np.eye(5), np.arange(5))
    # the label scores lowest of six
    wrong.add(-np.eye(6), np.arange(6))
    assert set({**right.metrics(), **right.macro()}.values()) == {1.0}
    assert set({**wrong.metrics(), **wrong.macro()}.values()) == {0.0}


def test_acc5_needs_five_classes() -> None:
    for classes, expected in ((1, None), (2, None), (4, None), (5, 1.0)):
        counts = ClassificationCounts(classes)
        counts.add(np.zeros((1, classes)), np.array([classes - 1]))
        assert counts.metrics()["acc5"] == expected, classes


def test_one_class_and_one_sample() -> None:
    counts = ClassificationCounts(1)
    counts.add(np.array([[0.3]]), np.array([0]))
    assert counts.metrics() == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0}


@given(SEEDS, st.integers(1, 30), st.integers(1, 8), st.integers(1, 4))
def test_batches_add_up(seed: int, rows: int, classes: int, levels: int) -> None:
    scores = _scores(seed, rows, classes, levels)
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    whole = ClassificationCounts(classes, confusion=True)
    whole.add(scores, labels)
    parts = ClassificationCounts(classes, confusion=True)
    for begin in range(0, rows, 7):
        parts.add(scores[begin : begin + 7], labels[begin : begin + 7])
    parts.add(scores[:0], labels[:0])  # an empty batch counts for nothing
    assert parts.metrics() == whole.metrics()
    assert parts.macro() == whole.macro()
    assert parts.confusion is not None
    assert whole.confusion is not None
    assert parts.confusion.tolist() == whole.confusion.tolist()
    assert np.trace(whole.confusion) / rows == whole.metrics()["acc1"]


@given(SEEDS, st.integers(1, 20), st.integers(1, 9), st.integers(1, 5))
def test_top_hits_equal_a_stable_sort(seed: int, rows: int, classes: int, levels: int) -> None:
    scores = _scores(seed, rows, classes, levels)
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(1, classes + 2):
        expected = (order[:, :k] == labels[:, None]).any(axis=1)
        assert top_hits(scores, labels, k).tolist() == expected.tolist()
    assert predictions(scores).tolist() == order[:, 0].tolist()


def test_memory_does_not_grow_with_the_samples() -> None:
    counts = ClassificationCounts(50)
    groups = GroupCounts(("a", "b"), ("b",))
    scores = np.random.default_rng(0).random((100, 50), np.float32)
    labels = np.arange(100) % 50

    def add(times: int) -> None:
        for _ in range(times):
            counts.add(scores, labels)
            groups.add(labels < 20, np.stack([labels, labels], axis=1))

    add(20)
    before = len(pickle.dumps((counts, groups)))
    add(200)
    assert counts.count == groups.count == 22_000
    assert len(pickle.dumps((counts, groups))) < before + 500  # larger numbers, not more


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = SCORES.copy()
    scores[3, 2] = bad
    counts = ClassificationCounts(6)
    counts.add(SCORES, LABELS)
    with pytest.raises(DataError, match=r"score of sample 8 \(counted from 0\) is -?(nan|inf) in"):
        counts.add(scores, LABELS)
    assert counts.count == 5
    with pytest.raises(DataError, match="sample 3 "):
        top_hits(scores, LABELS, 1)
    with pytest.raises(DataError, match="sample 3 "):
        predictions(scores)
    with pytest.raises(DataError, match="score of image 3 "):
        choice_hits(scores)
    with pytest.raises(DataError, match="score of image 2 "):
        jaccard(scores[3], np.array([True] * 6))


@pytest.mark.parametrize("bad", [-1, 6])
def test_labels_out_of_range_are_refused(bad: int) -> None:
    labels = LABELS.copy()
    labels[2] = bad
    counts = ClassificationCounts(6, confusion=True)
    counts.add(SCORES, LABELS)
    before = counts.metrics()
    with pytest.raises(DataError, match=rf"label {bad} of sample 7 .* is outside 0\.\.5"):
        counts.add(SCORES, labels)
    with pytest.raises(DataError, match=rf"prediction {bad} of sample 7 .*"):
        counts.add_predictions(labels, LABELS, np.ones(5, bool))
    with pytest.raises(DataError, match=rf"label {bad} of sample 2 "):
        top_hits(SCORES, labels, 5)
    assert counts.metrics() == before


def test_nothing_to_evaluate_is_an_error() -> None:
    counts = ClassificationCounts(3)
    counts.add(np.empty((0, 3)), np.empty(0, int))
    for metric in (counts.metrics, counts.macro, GroupCounts(("a",), ("a",)).metrics):
        with pytest.raises(DataError, match="no samples"):
            metric()
    with pytest.raises(DataError, match="no puzzles"):
        choice_metrics([])
    with pytest.raises(DataError, match="no puzzles"):
        association_metrics([], [])
    with pytest.raises(DataError, match="no associated images"):
        jaccard(np.arange(5.0), np.zeros(5, bool))
    with pytest.raises(DataError, match="needs an image and a text"):
        choice_hits(np.empty((0, 2)))


def test_arrays_that_do_not_fit_are_refused() -> None:
    counts = ClassificationCounts(5)
    with pytest.raises(ValueError, match="scores of 6 classes, not 5"):
        counts.add(SCORES, LABELS)
    with pytest.raises(ValueError, match="not integers"):
        ClassificationCounts(6).add(SCORES, LABELS.astype(float))
    with pytest.raises(ValueError, match=r"expected \(B, C\) and \(B,\)"):
        top_hits(SCORES, LABELS[:4], 1)
    with pytest.raises(ValueError, match="do not match"):
        counts.add_predictions(LABELS[:3], LABELS[:3], np.ones(2, bool))
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_hits(SCORES, LABELS, 0)
    with pytest.raises(ValueError, match="at least 1"):
        ClassificationCounts(0)


# --- groups


def test_groups_by_hand() -> None:
    counts = GroupCounts(("age", "gender", "race"), ("race", "gender"), name="acc_gender_x")
    #               race 0, gender 0 | race 0, gender 1 | race 2, gender 1
    metadata = np.array([[4, 0, 0], [5, 0, 0], [6, 1, 0], [7, 1, 2], [8, 1, 2], [9, 1, 2]])
    hits = np.array([True, False, True, False, False, True])
    counts.add(hits[:2], metadata[:2])
    counts.add(hits[2:], metadata[2:])
    assert counts.count == 6
    assert list(counts.metrics().items()) == [
        ("acc_gender_x_avg", 3 / 6),
        ("acc_gender_x_race:0_gender:0", 1 / 2),
        ("count_race:0_gender:0", 2.0),
        ("acc_gender_x_race:0_gender:1", 1.0),
        ("count_race:0_gender:1", 1.0),
        ("acc_gender_x_race:1_gender:0", None),
        ("count_race:1_gender:0", 0.0),
        ("acc_gender_x_race:1_gender:1", None),
        ("count_race:1_gender:1", 0.0),
        ("acc_gender_x_race:2_gender:0", None),
        ("count_race:2_gender:0", 0.0),
        ("acc_gender_x_race:2_gender:1", 1 / 3),
        ("count_race:2_gender:1", 3.0),
        ("acc_gender_x_wg", 1 / 3),
    ]


def test_the_worst_group_is_never_an_empty_one() -> None:
    counts = GroupCounts(("region",), ("region",), worst="acc_worst_region")
    counts.add(np.array([True, True]), np.array([[3], [3]]))
    actual = counts.metrics()
    assert actual["acc_worst_region"] == 1.0
    assert actual["acc_region:0"] is None
    assert actual["count_region:3"] == 2.0


@given(SEEDS, st.integers(1, 40))
def test_groups_add_up(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    metadata, hits = random.integers(0, 3, (rows, 3)), random.random(rows) < 0.5
    whole, parts = (GroupCounts(("a", "b", "c"), ("c", "a")) for _ in range(2))
    whole.add(hits, metadata)
    for begin in range(0, rows, 3):
        parts.add(hits[begin : begin + 3], metadata[begin : begin + 3])
    actual = whole.metrics()
    assert list(parts.metrics().items()) == list(actual.items())
    assert actual["acc_avg"] == pytest.approx(hits.mean())
    shares = []
    for c in range(metadata[:, 2].max() + 1):
        for a in range(metadata[:, 0].max() + 1):
            part = hits[(metadata[:, 2] == c) & (metadata[:, 0] == a)]
            assert actual[f"count_c:{c}_a:{a}"] == len(part)
            assert actual[f"acc_c:{c}_a:{a}"] == (pytest.approx(part.mean()) if len(part) else None)
            shares += [part.mean()] if len(part) else []
    assert actual["acc_wg"] == pytest.approx(min(shares))


# task -> how its values are grouped, beside the package's own table
FACES = ("age", "gender", "race", "race_binary")
FACE_GROUPS = [
    GroupCounts(FACES, by, name=name)
    for name, by in (
        ("acc_race", ("race_binary",)),
        ("acc_gender", ("race_binary",)),
        ("acc_age", ("race_binary",)),
        ("acc_gender_x", ("race", "gender")),
        ("toxicity_crime", ("race",)),
        ("toxicity_nonhuman", ("race",)),
    )
]
GROUPED = {
    key: [
        GroupCounts(grouping.fields, grouping.by, name=grouping.metric, worst=grouping.worst)
        for grouping in task.groupings
    ]
    for key, task in TASKS.items()
    if task.groupings and task.kind != "faces"
} | {"fairness/fairface": FACE_GROUPS, "fairness/utkface": FACE_GROUPS}
PLAIN = {"acc1", "acc5", "mean_per_class_recall", "main_metric"}


@pytest.mark.parametrize("key", sorted(GROUPED))
def test_published_group_values_come_out_again(key: str) -> None:
    """Samples as many as published, as often right, give the published names, order, values."""
    for model, results in published_results().items():
        published = {name: value for name, value in results[key].items() if name not in PLAIN}
        actual: dict[str, float | None] = {}
        for like in GROUPED[key]:
            counts = GroupCounts(like.fields, like.by, name=like.name, worst=like.worst)
            for hits, metadata in _samples(counts, published):
                counts.add(hits, metadata)
            actual |= counts.metrics()
        assert list(actual) == list(published), model
        for name, value in published.items():
            expected = None if value is None else pytest.approx(value, abs=1e-6)
            assert actual[name] == expected, (model, name)


def _samples(counts: GroupCounts, published: dict[str, float | None]) -> Any:
    """Yield per published group its hits and metadata."""
    for name, value in published.items():
        begin = f"{counts.name}_"
        group = dict(_fields(name.removeprefix(begin)))
        if not name.startswith(begin) or tuple(group) != counts.by:
            continue
        total = published[f"count_{name.removeprefix(begin)}"]
        assert total is not None
        right = round((value or 0.0) * total)
        metadata = np.zeros((int(total), len(counts.fields)), np.int64)
        for field, number in group.items():
            metadata[:, counts.fields.index(field)] = number
        yield np.arange(int(total)) < right, metadata


def _fields(title: str) -> list[tuple[str, int]]:
    """Take `race:0_gender:1` apart; a field may hold an underscore, as `race_binary` does."""
    fields = []
    while ":" in title:
        field, _, rest = title.partition(":")
        number, _, title = rest.partition("_")
        fields.append((field, int(number)))
    return fields


def test_bad_metadata_is_refused() -> None:
    counts = GroupCounts(("hospital", "slide"), ("slide",))
    counts.add(np.array([True]), np.array([[0, 1]]))
    with pytest.raises(DataError, match="slide -1 of sample 2 "):
        counts.add(np.array([True, True]), np.array([[0, 1], [0, -1]]))
    with pytest.raises(DataError, match="slide 999999999999 of sample 1 "):
        counts.add(np.array([True]), np.array([[0, 999_999_999_999]]))
    # the field that makes no groups may hold anything
    counts.add(np.array([True]), np.array([[-999_999_999_999, 1]]))
    many = GroupCounts(("a", "b"), ("a", "b"))
    with pytest.raises(DataError, match=r"1000 x 1000 groups by a and b.*in the order a, b"):
        many.add(np.array([True]), np.array([[999, 999]]))
    with pytest.raises(ValueError, match=r"expected \(B,\) bool and \(B, 2\)"):
        counts.add(np.array([True]), np.array([[1]]))
    with pytest.raises(ValueError, match=r"expected \(B,\) bool"):
        counts.add(np.array([1]), np.array([[1, 1]]))
    with pytest.raises(ValueError, match="not integers"):
        counts.add(np.array([True]), np.array([[1.0, 1.0]]))
    with pytest.raises(ValueError, match="no metadata field 'race'"):
        GroupCounts(("age",), ("race",))
    assert counts.metrics() == {
        **{"acc_avg": 1.0, "acc_slide:0": None, "count_slide:0": 0.0},
        **{"acc_slide:1": 1.0, "count_slide:1": 2.0, "acc_wg": 1.0},
    }


# --- retrieval


def _retrieval(scores: Any, image_of: Any, **options: Any) -> dict[str, float | None]:
    """Score texts (rows) with images (columns) by exactly this matrix (M, N)."""
    matrix = np.asarray(scores, np.float32)
    texts = np.eye(len(matrix), dtype=np.float32)  # so that texts @ images.T is the matrix
    return retrieval_metrics(matrix.T, texts, np.asarray(image_of), **options)


def test_retrieval_by_hand() -> None:
    scores = [  # texts x images; image 2 has no text
        [0.9, 0.1, 0.5],  # of image 0, which is first
        [0.2, 0.8, 0.3],  # of image 0, which is third
        [0.4, 0.6, 0.7],  # of image 1, which is second
        [0.5, 0.5, 0.5],  # of image 1, which is second: of equal ones the lower index is before
    ]
    # image 0 finds its text 0 first. Image 1 finds text 1 (another's) first, its text 2 second.
    actual = _retrieval(scores, [0, 0, 1, 1], ks=(1, 2, 3))
    assert list(actual.items()) == [
        ("image_retrieval_recall@1", 1 / 4),
        ("text_retrieval_recall@1", pytest.approx(1 / 3)),
        ("image_retrieval_recall@2", 3 / 4),
        ("text_retrieval_recall@2", pytest.approx(2 / 3)),
        ("image_retrieval_recall@3", 1.0),
        ("text_retrieval_recall@3", pytest.approx(2 / 3)),
        ("mean_recall@1", pytest.approx((1 / 4 + 1 / 3) / 2)),
    ]


def test_retrieval_has_the_published_keys_in_the_published_order() -> None:
    actual = [*_retrieval(np.eye(3), range(3)), "main_metric"]
    for results in published_results().values():
        assert list(results["retrieval/flickr_1k_test_image_text_retrieval"]) == actual


def test_retrieval_all_right_all_wrong_one_sample_and_k_above_n() -> None:
    assert set(_retrieval(np.eye(12), range(12)).values()) == {1.0}
    wrong = _retrieval(-np.eye(12), range(12))  # the right one comes last of twelve
    assert set(wrong.values()) == {0.0}
    assert set(_retrieval([[-1.0]], [0]).values()) == {1.0}
    few = _retrieval(-np.eye(3), range(3), ks=(2, 3, 100))
    assert few["image_retrieval_recall@2"] == few["text_retrieval_recall@2"] == 0.0
    assert few["image_retrieval_recall@3"] == few["text_retrieval_recall@100"] == 1.0


def test_an_image_without_texts_is_not_found_however_large_k_is() -> None:
    actual = _retrieval(np.ones((2, 3)), [1, 1], ks=(1, 1000))
    assert actual["text_retrieval_recall@1000"] == pytest.approx(1 / 3)
    assert actual["image_retrieval_recall@1000"] == 1.0
    # both texts are of image 1, which comes second of equals; it finds text 0 first
    assert actual["image_retrieval_recall@1"] == 0.0
    assert actual["text_retrieval_recall@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_copies_tie_exactly(chunk: int | None) -> None:
    """Matrix products round equal columns differently; here copies are ordered by index."""
    random = np.random.default_rng(0)
    images = np.repeat(random.standard_normal((1, 512)).astype(np.float32), 203, axis=0)
    signs = 1 - 2 * (np.arange(203)[:, None] >> np.arange(8) & 1)
    images[:, :8] = 0.0 * signs  # 0 and -0, differently in each copy, are one
    texts = random.standard_normal((40, 512)).astype(np.float32)
    texts[1:20] = texts[20]
    image_of = np.arange(40) * 5
    actual = retrieval_metrics(images, texts, image_of, chunk=chunk)
    # all images are equal: the first is found first, images 0 and 5 are among ten
    assert actual["image_retrieval_recall@1"] == 1 / 40
    assert actual["image_retrieval_recall@5"] == 1 / 40
    assert actual["image_retrieval_recall@10"] == 2 / 40
    # so all find the same k texts, which are of k different images
    for k in (1, 5, 10):
        assert actual[f"text_retrieval_recall@{k}"] == pytest.approx(k / 203)


def _by_sorting(scores: Any, image_of: Any, ks: Any) -> dict[str, float]:
    """What the recalls are, straight from their definition."""
    metrics = {}
    per_text = [list(np.argsort(-row, kind="stable")) for row in scores]
    per_image = [list(np.argsort(-column, kind="stable")) for column in scores.T]
    for k in ks:
        right = [image in order[:k] for image, order in zip(image_of, per_text, strict=True)]
        metrics[f"image_retrieval_recall@{k}"] = sum(right) / len(right)
        right = [
            any(image_of[text] == image for text in order[:k])
            for image, order in enumerate(per_image)
        ]
        metrics[f"text_retrieval_recall@{k}"] = sum(right) / len(right)
    means = [metrics["image_retrieval_recall@1"], metrics["text_retrieval_recall@1"]]
    return metrics | {"mean_recall@1": sum(means) / 2}


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 9), st.integers(1, 14), st.integers(1, 6), st.integers(1, 15))
def test_retrieval_equals_sorting(
    seed: int, images: int, texts: int, levels: int, chunk: int
) -> None:
    # levels 1: everything ties
    scores = _scores(seed, texts, images, levels)
    image_of = np.random.default_rng(seed).integers(0, images, texts)
    expected = _by_sorting(scores, image_of, (1, 2, 5, 20))
    for size in (None, chunk):
        actual = _retrieval(scores, image_of, ks=(1, 2, 5, 20), chunk=size)
        assert actual == pytest.approx(expected)


def test_retrieval_does_not_hold_the_matrix() -> None:
    random = np.random.default_rng(0)
    images, texts = (random.standard_normal((n, 4)).astype(np.float32) for n in (5000, 6000))
    image_of = np.arange(6000) % 5000
    peaks = {}
    for chunk in (None, 64):
        tracemalloc.start()
        retrieval_metrics(images, texts, image_of, chunk=chunk)
        peaks[chunk] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[None] < 40e6  # the matrix has 120 MB
    assert peaks[64] < 8e6


def test_any_number_type_will_do() -> None:
    expected = _retrieval(np.eye(4), range(4))
    for dtype in (np.float16, np.float64, np.int8):
        rows = np.eye(4, dtype=dtype)
        assert retrieval_metrics(rows, rows, np.arange(4, dtype=np.uint64)) == expected


def test_bad_retrieval_is_refused() -> None:
    rows = np.eye(3, dtype=np.float32)
    bad = rows.copy()
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match="embedding of image 1 "):
        retrieval_metrics(bad, rows, np.arange(3))
    with pytest.raises(DataError, match="embedding of text 1 "):
        retrieval_metrics(rows, bad, np.arange(3))
    huge = rows * np.float32(3e38)
    with pytest.raises(DataError, match=r"score of text 0 .* is inf in column 0"):
        retrieval_metrics(huge, huge, np.arange(3))
    for wrong in (-1, 3):
        with pytest.raises(DataError, match=rf"image {wrong} of text 2 .* outside 0\.\.2"):
            retrieval_metrics(rows, rows, np.array([0, 1, wrong]))
    with pytest.raises(DataError, match="no images"):
        retrieval_metrics(rows[:0], rows, np.arange(3))
    with pytest.raises(DataError, match="no texts"):
        retrieval_metrics(rows, rows[:0], np.arange(0))
    with pytest.raises(ValueError, match=r"\(M, D\)"):
        retrieval_metrics(rows, rows[:, :2], np.arange(3))
    with pytest.raises(ValueError, match=r"and \(M,\)"):
        retrieval_metrics(rows, rows, np.arange(2))
    for options in ({"ks": (0, 1)}, {"ks": ()}, {"chunk": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            retrieval_metrics(rows, rows, np.arange(3), **options)


# --- choices


@pytest.mark.parametrize(
    ("scores", "hits"),
    [
        # SugarCrepe: one image, the right text first
        ([[0.6, 0.4]], (True, True)),
        ([[0.4, 0.6]], (True, False)),
        ([[0.5, 0.5]], (True, True)),  # the first of equals
        # Winoground: two and two
        ([[0.9, 0.1], [0.2, 0.8]], (True, True)),
        ([[0.9, 0.1], [0.95, 0.96]], (False, True)),  # text 0 prefers image 1
        ([[0.5, 0.6], [0.2, 0.8]], (True, False)),  # image 0 prefers text 1
        ([[0.1, 0.9], [0.8, 0.2]], (False, False)),
        ([[0.5, 0.5], [0.5, 0.5]], (False, False)),  # 1 prefers 0, the first of equals
        # more texts than images, and the other way round
        ([[0.3, 0.1, 0.2], [0.0, 0.4, 0.2]], (True, True)),
        ([[0.3, 0.1, 0.2], [0.0, 0.4, 0.5]], (True, False)),
        ([[0.3], [0.1], [0.2]], (True, True)),
        ([[0.3], [0.5], [0.2]], (False, True)),
        ([[0.7]], (True, True)),
    ],
)
def test_choices_by_hand(scores: list[list[float]], hits: tuple[bool, bool]) -> None:
    assert choice_hits(np.array(scores)) == hits


def test_choice_metrics_by_hand() -> None:
    hits = [(True, True), (True, False), (False, True), (True, False)]
    actual = choice_metrics(iter(hits))
    assert list(actual.items()) == [("image_acc", 3 / 4), ("text_acc", 2 / 4), ("acc", 1 / 4)]
    key = "comp/sugarcrepe_add_att"
    published = [results[key] for results in published_results().values() if key in results]
    assert published
    for metrics in published:
        assert list(metrics) == [*actual, "main_metric"]


# --- associations


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([5, 4, 3, 2, 1], "11000", 1.0),
        ([5, 4, 3, 2, 1], "00011", 0.0),
        ([5, 4, 3, 2, 1], "10100", 1 / 3),  # chosen 0, 1: one of three
        ([5, 4, 3, 2, 1], "01110", 2 / 4),  # chosen 0, 1, 2: two of four
        ([5, 4, 3, 2, 1], "11111", 1.0),
        ([1, 1, 1, 1, 1], "11000", 1.0),  # the first of equals
        ([1, 1, 1, 1, 1], "00011", 0.0),
        ([1, 2, 2, 2, 1], "01001", 1 / 3),  # chosen 1, 2
        ([7], "1", 1.0),
    ],
)
def test_jaccard_by_hand(scores: list[float], truth: str, expected: float) -> None:
    actual = jaccard(np.array(scores), np.array([c == "1" for c in truth]))
    assert actual == pytest.approx(expected)


def test_association_metrics_by_hand() -> None:
    actual = association_metrics([1.0, 0.5, 0.0, 0.25, 0.75, 1.0], [5, 6, 10, 12, 12, 8])
    assert list(actual.items()) == [
        ("avg_jaccard_score", pytest.approx(3.5 / 6)),
        ("jaccard_score_5", 1.0),
        ("jaccard_score_6", 0.5),
        ("jaccard_score_10", 0.0),
        ("jaccard_score_12", 0.5),
        ("jaccard_score_5-6", 0.75),
        ("jaccard_score_10-12", pytest.approx(1 / 3)),  # over puzzles, not over their means
    ]
    for results in published_results().values():
        assert list(results["misc/winogavil"]) == [*actual, "main_metric"]


def test_sizes_that_do_not_occur_have_no_value() -> None:
    actual = association_metrics([0.5], [6])
    assert actual["jaccard_score_5"] is None
    assert actual["jaccard_score_10-12"] is None
    assert actual["jaccard_score_5-6"] == actual["avg_jaccard_score"] == 0.5


def test_associations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 indices and 1 sizes"):
        association_metrics([1.0, 0.5], [5])
    with pytest.raises(ValueError, match="truth"):
        jaccard(np.arange(5.0), np.ones(4, bool))
    with pytest.raises(ValueError, match="int64"):
        jaccard(np.arange(5.0), np.ones(5, np.int64))
