"""Probes on data whose answer is known, beside a loop over definitions and scikit-learn itself."""

from __future__ import annotations

import logging
import math
import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip.errors import ConfigError, DataError, MissingDependencyError
from pocketclip.evaluate.metrics import scores as scores_module
from pocketclip.evaluate.probe import knn, linear_probe

Set = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _blobs(seed: int, per_class: int, *, classes: int = 6, spread: float = 0.1) -> Set:
    """Samples around one centre per class; the centres are the same for every seed."""
    centres = np.random.default_rng(99).standard_normal((classes, 16))
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    features = centres[labels] + spread * random.standard_normal((len(labels), 16))
    order = random.permutation(len(labels))
    return features[order].astype(np.float32), labels[order]


def _unit(rows: Any) -> Any:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- neighbours


def test_knn_by_hand() -> None:
    # cosine similarities with the test sample (1, 0): 1, 0.8, 0.6, 0
    train = np.array([[2, 0], [4, 3], [3, 4], [0, 5]], np.float64)
    test = np.array([[7.0, 0.0]])
    # votes with k = 3, temperature 1: e for class 1, e^0.8 + e^0.6 for class 0
    labels = np.array([1, 0, 0, 2])
    assert knn(train, labels, test, np.array([0]), k=3, temperature=1.0)["knn_acc1"] == 1.0
    # with temperature 0.1: e^10 for class 1 outvotes e^8 + e^6
    assert knn(train, labels, test, np.array([1]), k=3, temperature=0.1)["knn_acc1"] == 1.0
    # the single nearest
    assert knn(train, labels, test, np.array([1]), k=1, temperature=1.0)["knn_acc1"] == 1.0
    actual = knn(train, labels, test, np.array([0]), k=3, temperature=1.0)
    assert list(actual.items()) == [
        ("knn_acc1", 1.0),
        ("knn_acc5", None),
        ("knn_mean_per_class_recall", 1.0),
    ]


def test_a_class_nobody_votes_for_is_not_among_the_five_best() -> None:
    train, labels = np.eye(6), np.arange(6)
    # every one of six classes is tested with the first axis, whose neighbours are 0 and 1
    test = np.tile(np.eye(6)[0], (6, 1))
    actual = knn(train, labels, test, labels, k=2)
    assert actual["knn_acc1"] == pytest.approx(1 / 6)
    assert actual["knn_acc5"] == pytest.approx(2 / 6)
    # with all as neighbours five classes are among the five best; the last comes sixth
    assert knn(train, labels, test, labels, k=6)["knn_acc5"] == pytest.approx(5 / 6)
    assert knn(train, labels, test, labels, k=100) == knn(train, labels, test, labels, k=6)


def test_equal_neighbours_and_equal_votes_go_to_the_lower_index() -> None:
    train = np.repeat([[3.0, 4.0]], 5, axis=0)  # five copies, so all are equally near
    labels = np.array([2, 1, 1, 0, 0])
    test = np.array([[1.0, 1.0]])

    def predicted(k: int) -> int:
        right = [
            label for label in range(3) if knn(train, labels, test, [label], k=k)["knn_acc1"] == 1.0
        ]
        assert len(right) == 1
        return right[0]

    # k = 1: sample 0. k = 2: one vote each for 2 and 1. k = 3: two for 1. k = 5: 2, 2 and 1.
    assert [predicted(k) for k in range(1, 6)] == [2, 1, 1, 1, 0]


def test_copies_are_equal_neighbours_whatever_the_product_rounds() -> None:
    random = np.random.default_rng(0)
    train = np.repeat(random.standard_normal((1, 512)).astype(np.float32), 301, axis=0)
    labels = np.arange(301)
    test = random.standard_normal((50, 512)).astype(np.float32)
    actual = knn(train, labels, test, np.zeros(50, int), k=1)
    assert actual["knn_acc1"] == 1.0


def _by_loop(train: Set, test: Set, k: int, temperature: float, classes: int) -> Any:
    features, queries = _unit(train[0]), _unit(test[0])
    first, five, per_class = [], [], {}
    for query, label in zip(queries, test[1], strict=True):
        similar = [float(np.dot(row, query)) for row in features]
        near = sorted(range(len(similar)), key=lambda i: (-similar[i], i))[:k]
        votes = dict.fromkeys(range(classes), 0.0)
        for neighbour in near:
            votes[int(train[1][neighbour])] += math.exp(similar[neighbour] / temperature)
        best = sorted((c for c in votes if votes[c]), key=lambda c: (-votes[c], c))
        first.append(best[0] == label)
        five.append(label in best[:5])
        per_class.setdefault(int(label), []).append(best[0] == label)
    return {
        "knn_acc1": float(np.mean(first)),
        "knn_acc5": float(np.mean(five)) if classes >= 5 else None,
        "knn_mean_per_class_recall": float(np.mean([np.mean(v) for v in per_class.values()])),
    }


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([0.03, 0.07, 1.0]),
)
def test_knn_equals_a_loop(seed: int, count: int, classes: int, k: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    train = random.standard_normal((count, 5)), random.integers(0, classes, count)
    test = random.standard_normal((13, 5)), random.integers(0, classes, 13)
    actual = knn(*train, *test, k=k, temperature=temperature, classes=classes)
    assert actual == pytest.approx(_by_loop(train, test, k, temperature, classes))


def test_knn_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = _blobs(0, 30, spread=2.0), _blobs(1, 50, spread=2.0)
    whole = knn(*train, *test)
    monkeypatch.setattr(scores_module, "_CHUNK", 1)
    monkeypatch.setattr(scores_module, "_MIN_QUERIES", 7)
    assert knn(*train, *test) == whole
    assert 0.3 < whole["knn_acc1"] < 0.95  # type: ignore[operator]


def test_a_tiny_temperature_neither_overflows_nor_loses_the_nearest() -> None:
    train, test = _blobs(0, 10), _blobs(1, 10)
    assert knn(*train, *test, temperature=1e-6)["knn_acc1"] == 1.0


# --- both


def _probe(train: Set, test: Set, **options: Any) -> dict[str, float | None]:
    return knn(*train, *test, **options) | linear_probe(*train, *test, **options)


@pytest.fixture
def sklearn() -> Any:
    return pytest.importorskip("sklearn", reason="scikit-learn is not installed")


@pytest.mark.usefixtures("sklearn")
def test_separable_classes_are_separated() -> None:
    actual = _probe(_blobs(0, 20), _blobs(1, 10))
    assert actual.pop("lp_C") is not None
    assert actual == dict.fromkeys(
        [
            *("knn_acc1", "knn_acc5", "knn_mean_per_class_recall"),
            *("lp_acc1", "lp_acc5", "lp_mean_per_class_recall"),
        ],
        1.0,
    )
    assert "lp_C" in linear_probe(*_blobs(0, 20), *_blobs(1, 10))


@pytest.mark.usefixtures("sklearn")
def test_random_labels_are_guessed() -> None:
    random = np.random.default_rng(5)
    train, test = (
        (random.standard_normal((count, 8)), random.integers(0, 4, count)) for count in (200, 2000)
    )
    actual = _probe(train, test)
    for name in ("knn_acc1", "lp_acc1", "knn_mean_per_class_recall", "lp_mean_per_class_recall"):
        assert actual[name] == pytest.approx(1 / 4, abs=0.05), name  # 5 standard deviations
    assert actual["knn_acc5"] is actual["lp_acc5"] is None


@pytest.mark.usefixtures("sklearn")
def test_one_class() -> None:
    train, test = _blobs(0, 12, classes=1), _blobs(1, 5, classes=1)
    assert _probe(train, test) == {
        **{"knn_acc1": 1.0, "knn_acc5": None, "knn_mean_per_class_recall": 1.0},
        **{"lp_acc1": 1.0, "lp_acc5": None, "lp_mean_per_class_recall": 1.0, "lp_C": None},
    }


@pytest.mark.usefixtures("sklearn")
def test_a_class_that_was_not_trained_on_is_wrong() -> None:
    features, labels = _blobs(0, 20)
    for absent in (0, 3, 5):  # the first, one between, the last
        known = labels != absent
        actual = _probe((features[known], labels[known]), _blobs(1, 10))
        for name in ("knn_acc1", "lp_acc1", "lp_mean_per_class_recall", "lp_acc5"):
            assert actual[name] == pytest.approx(5 / 6), (absent, name)
        # 20 neighbours are all of other classes, and a class without a vote is no hit
        assert actual["knn_acc5"] == pytest.approx(5 / 6)


@pytest.mark.usefixtures("sklearn")
def test_a_class_without_test_samples_does_not_count() -> None:
    features, labels = _blobs(1, 10)
    actual = _probe(_blobs(0, 20), (features[labels < 4], labels[labels < 4]))
    assert actual["knn_mean_per_class_recall"] == actual["lp_mean_per_class_recall"] == 1.0


@pytest.mark.usefixtures("sklearn")
def test_the_number_of_classes_can_be_set() -> None:
    train, test = _blobs(0, 20, classes=3), _blobs(1, 10, classes=3)
    assert _probe(train, test)["lp_acc5"] is None
    assert _probe(train, test, classes=5)["lp_acc5"] == 1.0
    assert _probe(train, test, classes=5)["knn_acc5"] == 1.0


# --- the linear probe


def _plain(train: Any, test: Any, strength: float) -> np.ndarray[Any, Any]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000)
    return np.asarray(model.fit(_unit(train[0]), train[1]).predict(_unit(test[0])))


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("per_class", [4, 40])
def test_linear_probe_equals_scikit_learn(classes: int, per_class: int) -> None:
    train = _blobs(0, per_class, classes=classes, spread=1.2)
    test = _blobs(1, 60, classes=classes, spread=1.2)
    train, test = ((rows.astype(np.float64), labels) for rows, labels in (train, test))
    actual = linear_probe(*train, *test)
    strength = actual["lp_C"]
    assert strength is not None
    right = _plain(train, test, strength) == test[1]
    assert actual["lp_acc1"] == pytest.approx(right.mean(), abs=1e-6)
    recalls = [right[test[1] == label].mean() for label in range(classes)]
    assert actual["lp_mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert 1 / classes < right.mean() < 1


@pytest.mark.usefixtures("sklearn")
def test_top5_of_the_linear_probe_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import top_k_accuracy_score

    train, test = (_blobs(seed, 15, classes=9, spread=2.0) for seed in (0, 1))
    actual = linear_probe(*train, *test)
    model = LogisticRegression(C=actual["lp_C"], max_iter=1000)
    scores = model.fit(_unit(train[0]), train[1]).decision_function(_unit(test[0]))
    assert actual["lp_acc5"] == pytest.approx(top_k_accuracy_score(test[1], scores, k=5))
    assert actual["lp_acc1"] < actual["lp_acc5"] < 1  # type: ignore[operator]


@pytest.mark.usefixtures("sklearn")
def test_the_penalty_is_the_best_on_the_validation_data_and_the_fit_takes_both() -> None:
    train, val, test = (_blobs(seed, 10, spread=2.0) for seed in (0, 1, 2))
    actual = linear_probe(*train, *test, val=val[0], val_labels=val[1])
    strength = actual["lp_C"]
    assert strength is not None

    def right(value: float) -> float:
        return float((_plain(train, val, value) == val[1]).mean())

    # no coarse value and no neighbour at the finest step is better; no smaller is as good
    for power in np.arange(-6.0, 7.0, 2.0):
        assert right(10.0**power) <= right(strength)
    assert right(strength * 10**0.125) <= right(strength)
    assert right(strength / 10**0.125) < right(strength)
    both = np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]])
    expected = (_plain(both, test, strength) == test[1]).mean()
    assert actual["lp_acc1"] == pytest.approx(expected, abs=1e-6)
    assert expected != (_plain(train, test, strength) == test[1]).mean()


@pytest.mark.usefixtures("sklearn")
def test_few_samples() -> None:
    test = _blobs(1, 20)
    one = linear_probe(*_blobs(0, 1), *test)  # nothing can be held out
    assert one["lp_C"] == 1.0
    assert one["lp_acc1"] == 1.0
    for per_class in (2, 3):
        assert linear_probe(*_blobs(0, per_class), *test)["lp_acc1"] == 1.0
    features, labels = _blobs(0, 8)
    rare = (labels > 0) | (np.cumsum(labels == 0) == 1)  # class 0 has one sample
    assert linear_probe(features[rare], labels[rare], *test)["lp_acc1"] > 0.8  # type: ignore[operator]


@pytest.mark.usefixtures("sklearn")
def test_the_seed_chooses_what_is_held_out_and_nothing_else_is_random() -> None:
    from pocketclip.evaluate.probe import _held_out

    labels = np.array([0] * 10 + [1] * 4 + [2] * 2 + [3])
    held = _held_out(labels, 0)
    assert np.bincount(labels[held], minlength=4).tolist() == [2, 1, 1, 0]
    assert held.tolist() == _held_out(labels, 0).tolist()
    assert held.tolist() != _held_out(labels, 1).tolist()
    train, test = _blobs(0, 10, spread=2.0), _blobs(1, 20, spread=2.0)
    assert linear_probe(*train, *test, seed=3) == linear_probe(*train, *test, seed=3)


@pytest.mark.usefixtures("sklearn")
def test_a_fit_that_does_not_converge_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = _blobs(0, 10, spread=2.0), _blobs(1, 10, spread=2.0)
    with caplog.at_level(logging.WARNING):
        linear_probe(*train, *test)
        assert not caplog.messages
        monkeypatch.setattr(import_module("pocketclip.evaluate.probe"), "_ITERATIONS", 1)
        linear_probe(*train, *test)
    assert len(caplog.messages) == 1
    assert "did not converge (C = " in caplog.messages[0]


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    train, test = _blobs(0, 3), _blobs(1, 3)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pocketclip\[evaluate\]'"):
        linear_probe(*train, *test)
    assert knn(*train, *test)["knn_acc1"] == 1.0


# --- bad input

METHODS = [pytest.param(knn, id="knn"), pytest.param(linear_probe, id="linear_probe")]


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_refused(method: Any) -> None:
    train, labels = _blobs(0, 3)
    test, test_labels = _blobs(1, 3)

    def changed(rows: Any, value: Any, index: Any) -> Any:
        rows = rows.copy()
        rows[index] = value
        return rows

    nothing = train[:0], labels[:0]
    for arguments, message in [
        ((changed(train, np.nan, (2, 5)), labels, test, test_labels), "training sample 2 .* nan"),
        ((train, labels, changed(test, np.inf, (4, 0)), test_labels), "of test sample 4 .* inf"),
        ((train, labels, changed(test, 0, 7), test_labels), "of test sample 7 .* is zero"),
        ((train, changed(labels, -1, 3), test, test_labels), "label -1 of training sample 3 "),
        ((*nothing, test, test_labels), "no training samples"),
        ((train, labels, *nothing), "no test samples"),
    ]:
        with pytest.raises(DataError, match=message):
            method(*arguments)
    with pytest.raises(DataError, match=r"label 5 of test sample \d+ .* outside 0\.\.4"):
        method(train % 1 + 1, labels % 5, test, test_labels, classes=5)
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(N,\)"):
        method(train, labels[:-1], test, test_labels)
    with pytest.raises(ValueError, match="not integers"):
        method(train, labels + 0.0, test, test_labels)
    with pytest.raises(ValueError, match="width 16 and 15"):
        method(train, labels, test[:, 1:], test_labels)


@pytest.mark.usefixtures("sklearn")
def test_bad_validation_data_are_refused() -> None:
    train, test = _blobs(0, 3), _blobs(1, 3)
    with pytest.raises(ValueError, match="both val and val_labels"):
        linear_probe(*train, *test, val=train[0])
    with pytest.raises(DataError, match="no validation samples"):
        linear_probe(*train, *test, val=train[0][:0], val_labels=train[1][:0])
    with pytest.raises(ValueError, match="width 16 and 3"):
        linear_probe(*train, *test, val=train[0][:, :3], val_labels=train[1])


def test_bad_options_are_refused() -> None:
    train, test = _blobs(0, 3), _blobs(1, 3)
    for options in ({"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError, match="must be above 0"):
            knn(*train, *test, **options)  # type: ignore[arg-type]
