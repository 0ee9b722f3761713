"""Our metrics beside scikit-learn's and clip-benchmark's, on random and adversarial matrices.

pip install scikit-learn && pip install --no-deps clip-benchmark==1.6.2 tqdm

clip-benchmark imports torchvision and open_clip; its metrics, of which each is one file, need
neither, so the files are loaded alone.

`torch.topk` orders equal values as it likes (ten equal ones come as 8, 6, 7, 5, 9), while here the
lowest index comes first. So clip-benchmark is run as it is where equal values do not straddle the
k-th place, and with a stable sort in the place of `torch.topk` where they may.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketclip.evaluate.metrics import (
    ClassificationCounts,
    choice_hits,
    choice_metrics,
    jaccard,
    predictions,
    retrieval_metrics,
    top_hits,
)

sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
torch = pytest.importorskip("torch", reason="clip-benchmark needs torch")

EXACT = 1e-6


def _peer(name: str) -> Any:
    """Load one file of clip-benchmark without its package."""
    try:
        distribution = importlib.metadata.distribution("clip-benchmark")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip-benchmark is not installed: pip install --no-deps clip-benchmark==1.6.2")
    path = Path(str(distribution.locate_file(f"clip_benchmark/metrics/{name}.py")))
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # It calls `float` on an array of one element, which numpy 2.4 refuses.
    module.__dict__["float"] = lambda value: float(np.asarray(value, np.float64).reshape(()))
    return module


@pytest.fixture
def stable_topk(monkeypatch: pytest.MonkeyPatch) -> None:
    def topk(values: Any, k: int, dim: int = -1, *_flags: bool, **_more: Any) -> Any:
        assert k <= values.shape[dim]
        ordered = torch.sort(values, dim=dim, descending=True, stable=True)
        return ordered.values.narrow(dim, 0, k), ordered.indices.narrow(dim, 0, k)

    monkeypatch.setattr(torch, "topk", topk)
    monkeypatch.setattr(torch.Tensor, "topk", topk)


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """scikit-learn warns of the very cases that are wanted here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", "A single label was found")
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield


# --- classification: name -> scores, labels


def _cases() -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    random = np.random.default_rng(0)

    def noise(rows: int, classes: int) -> np.ndarray[Any, Any]:
        return random.standard_normal((rows, classes)).astype(np.float32)

    def few(rows: int, classes: int, levels: int) -> np.ndarray[Any, Any]:
        return random.integers(0, levels, (rows, classes)).astype(np.float32)

    def labels(rows: int, classes: int) -> np.ndarray[Any, Any]:
        return random.integers(0, classes, rows)

    cases = {
        f"random_{rows}x{classes}": (noise(rows, classes), labels(rows, classes))
        for rows, classes in ((1, 2), (7, 5), (50, 3), (200, 10), (300, 100), (40, 1000))
    }
    return cases | {
        "one_class": (noise(9, 1), np.zeros(9, int)),
        "one_sample": (noise(1, 8), np.array([3])),
        "one_sample_of_one_class": (noise(1, 1), np.array([0])),
        "class_without_samples": (noise(60, 9), labels(60, 6)),
        "first_class_without_samples": (noise(60, 9), labels(60, 5) + 3),
        "only_one_class_occurs": (noise(30, 7), np.full(30, 4)),
        "never_predicted": (noise(30, 7) - 9 * np.eye(7, dtype=np.float32)[2], labels(30, 7)),
        "all_right": (np.eye(8, dtype=np.float32)[np.arange(40) % 8], np.arange(40) % 8),
        "all_wrong": (-np.eye(8, dtype=np.float32)[np.arange(40) % 8], np.arange(40) % 8),
        "rare_class": (noise(101, 6), np.array([5] + [0] * 100)),
        "all_equal": (np.ones((40, 10), np.float32), labels(40, 10)),
        "two_levels": (few(200, 10, 2), labels(200, 10)),
        "three_levels_of_fewer_than_five": (few(100, 4, 3), labels(100, 4)),
        "equal_classifiers": (np.tile(noise(80, 5), 2), labels(80, 10)),
        "half_precision": (
            (25 + noise(300, 200) / 8).astype(np.float16).astype(np.float32),
            labels(300, 200),
        ),
        "huge_and_tiny": (noise(50, 12) * np.float32(1e30), labels(50, 12)),
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
def test_classification_equals_scikit_learn(name: str) -> None:
    scores, labels = CASES[name]
    classes = scores.shape[1]
    counts = ClassificationCounts(classes, confusion=True)
    for begin in range(0, len(labels), 17):
        counts.add(scores[begin : begin + 17], labels[begin : begin + 17])
    predicted, actual, macro = predictions(scores), counts.metrics(), counts.macro()
    there = np.unique(labels)  # WILDS averages over the classes that occur
    over = {"labels": there, "average": "macro", "zero_division": 0}
    assert predicted.tolist() == scores.argmax(1).tolist()
    expected = {
        "acc1": sk.accuracy_score(labels, predicted),
        "mean_per_class_recall": sk.balanced_accuracy_score(labels, predicted),
        "acc_avg": sk.accuracy_score(labels, predicted),
        "recall-macro_all": sk.recall_score(labels, predicted, **over),
        "F1-macro_all": sk.f1_score(labels, predicted, **over),
    }
    assert {key: (actual | macro)[key] for key in expected} == pytest.approx(expected, abs=EXACT)
    matrix = sk.confusion_matrix(labels, predicted, labels=np.arange(classes))
    assert counts.confusion is not None
    assert counts.confusion.tolist() == matrix.tolist()


# Of no ties, and not of two classes, which scikit-learn takes as one column of scores.
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (scores, _) in CASES.items()
        if name.startswith(("random", "huge")) and scores.shape[1] > 2
    ],
)
def test_top_k_equals_scikit_learn(name: str) -> None:
    scores, labels = CASES[name]
    classes = scores.shape[1]
    for k in {1, 2, 5, classes - 1} & set(range(1, classes)):
        expected = sk.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes))
        assert top_hits(scores, labels, k).mean() == pytest.approx(expected, abs=EXACT), k


def _clip_benchmark(
    scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> dict[str, float | None]:
    """What clip-benchmark's `evaluate` makes of logits."""
    module = _peer("zeroshot_classification")
    logits, target = torch.from_numpy(scores), torch.from_numpy(labels)
    enough = scores.shape[1] >= 5
    actual = module.accuracy(logits, target, topk=(1, 5) if enough else (1,))
    recall = module.balanced_accuracy_score(target, logits.argmax(axis=1))
    return {
        "acc1": actual[0],
        "acc5": actual[1] if enough else None,
        "mean_per_class_recall": recall,
    }


def _ours(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float | None]:
    counts = ClassificationCounts(scores.shape[1])
    counts.add(scores, labels)
    return counts.metrics()


@pytest.mark.usefixtures("stable_topk")
@pytest.mark.parametrize("name", CASES)
def test_classification_equals_clip_benchmark_with_a_stable_order(name: str) -> None:
    assert _ours(*CASES[name]) == pytest.approx(_clip_benchmark(*CASES[name]), abs=EXACT)


def _straddles(scores: np.ndarray[Any, Any], k: int) -> bool:
    """Whether in some row the k-th best and the next are equal."""
    ordered = -np.sort(-scores, axis=1)
    return scores.shape[1] > k and bool((ordered[:, k - 1] == ordered[:, k]).any())


UNAMBIGUOUS = [
    name
    for name, (scores, _) in CASES.items()
    if not _straddles(scores, 1) and not _straddles(scores, 5)
]


@pytest.mark.parametrize("name", UNAMBIGUOUS)
def test_classification_equals_clip_benchmark_as_it_is(name: str) -> None:
    assert _ours(*CASES[name]) == pytest.approx(_clip_benchmark(*CASES[name]), abs=EXACT)


def test_ties_that_do_not_straddle_leave_clip_benchmark_no_choice() -> None:
    # one best, four equal behind it, and all others lower: the five best are a set
    random = np.random.default_rng(1)
    order = np.array([9, 5, 5, 5, 5, 1, 1, 0, 0, 0], np.float32)
    scores = np.stack([random.permutation(order) for _ in range(200)])
    labels = random.integers(0, 10, 200)
    assert len(UNAMBIGUOUS) > 10
    assert not _straddles(scores, 1)
    assert not _straddles(scores, 5)
    assert _ours(scores, labels) == pytest.approx(_clip_benchmark(scores, labels), abs=EXACT)


class _Model:
    """Embeddings that stand for themselves: images are theirs, texts are the rows' numbers."""

    def __init__(self, texts: Any) -> None:
        self.texts = torch.from_numpy(texts)

    def encode_image(self, images: Any) -> Any:
        return images.flatten(1)

    def encode_text(self, tokens: Any) -> Any:
        return self.texts[tokens]


def _tokens(texts: list[str]) -> Any:
    return torch.tensor([int(text) for text in texts])


class _Batches(list[Any]):
    dataset: Any = None


def _unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_whole_evaluation_equals_clip_benchmarks() -> None:
    module = _peer("zeroshot_classification")
    random = np.random.default_rng(2)
    classes, templates = 7, ["{c}"]
    texts = random.standard_normal((classes, 16)).astype(np.float32)
    images = random.standard_normal((90, 16)).astype(np.float32) + texts[np.arange(90) % classes]
    labels = np.arange(90) % classes
    batches = _Batches(
        (torch.from_numpy(images[i : i + 32]), torch.from_numpy(labels[i : i + 32]))
        for i in range(0, 90, 32)
    )
    batches.dataset = type("Dataset", (), {"classes": list(range(classes))})
    names = [str(number) for number in range(classes)]
    expected = module.evaluate(_Model(texts), batches, _tokens, names, templates, "cpu", amp=False)
    assert _ours(_unit(images) @ _unit(texts).T, labels) == pytest.approx(expected, abs=EXACT)
    assert 0.2 < expected["acc1"] < 1


# --- retrieval: name -> texts x images, image of each text


def _tables() -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    random = np.random.default_rng(3)

    def noise(texts: int, images: int) -> np.ndarray[Any, Any]:
        return random.standard_normal((texts, images)).astype(np.float32)

    def few(texts: int, images: int, levels: int) -> np.ndarray[Any, Any]:
        return random.integers(0, levels, (texts, images)).astype(np.float32)

    five = np.repeat(np.arange(30), 5)
    return {
        "one_each": (noise(40, 40), np.arange(40)),
        "five_each": (noise(150, 30) + 2 * np.eye(30, dtype=np.float32)[five], five),
        "any_number_each": (noise(120, 25), np.sort(random.integers(0, 25, 120))),
        "not_in_order": (noise(120, 25), random.integers(0, 25, 120)),
        "images_without_texts": (noise(60, 50), random.integers(0, 20, 60) * 2),
        "first_and_last_image_without_texts": (noise(60, 12), 1 + np.arange(60) % 10),
        "all_of_one_image": (noise(20, 15), np.full(20, 6)),
        "duplicate_texts": (np.repeat(few(50, 30, 9), 3, axis=0), np.repeat(np.arange(30), 5)),
        "duplicate_images": (np.repeat(noise(60, 15), 2, axis=1), np.repeat(np.arange(30), 2)),
        "everything_duplicate": (np.ones((60, 20), np.float32), np.repeat(np.arange(20), 3)),
        "two_levels": (few(80, 20, 2), np.repeat(np.arange(20), 4)),
        "five_levels": (few(80, 20, 5), np.repeat(np.arange(20), 4)),
        "all_right": (np.eye(12, dtype=np.float32), np.arange(12)),
        "all_wrong": (-np.eye(12, dtype=np.float32), np.arange(12)),
        "one_image": (noise(12, 1), np.zeros(12, int)),
        "one_pair": (noise(1, 1), np.array([0])),
        "small": (few(6, 4, 3), np.array([0, 1, 1, 2, 3, 3])),
    }


TABLES = _tables()


def _recalls(scores: Any, image_of: Any, ks: tuple[int, ...]) -> dict[str, float]:
    """clip-benchmark's recalls; it cannot take more than there are."""
    module = _peer("zeroshot_retrieval")
    matrix = torch.from_numpy(scores)
    positive = torch.zeros_like(matrix, dtype=torch.bool)
    positive[torch.arange(len(matrix)), torch.from_numpy(image_of)] = True
    metrics = {}
    for k in ks:
        for name, values, right in (
            ("image", matrix, positive),
            ("text", matrix.T, positive.T),
        ):
            some = min(k, values.shape[1])
            # an image without texts divides 0 by 0, and NaN is not above 0
            hits = module.batchify(module.recall_at_k, values, right, 16, "cpu", k=some) > 0
            metrics[f"{name}_retrieval_recall@{k}"] = hits.float().mean().item()
    both = metrics["image_retrieval_recall@1"] + metrics["text_retrieval_recall@1"]
    return metrics | {"mean_recall@1": both / 2}


@pytest.mark.usefixtures("stable_topk")
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", TABLES)
def test_retrieval_equals_clip_benchmark_with_a_stable_order(name: str, chunk: int | None) -> None:
    scores, image_of = TABLES[name]
    texts = np.eye(len(scores), dtype=np.float32)  # texts @ images.T is the matrix, exactly
    actual = retrieval_metrics(scores.T, texts, image_of, chunk=chunk)
    assert actual == pytest.approx(_recalls(scores, image_of, (1, 5, 10)), abs=EXACT)


CLEAR = [
    name
    for name, (scores, _) in TABLES.items()
    if not any(_straddles(scores, k) or _straddles(scores.T, k) for k in (1, 5, 10))
]


@pytest.mark.parametrize("name", CLEAR)
def test_retrieval_equals_clip_benchmark_as_it_is(name: str) -> None:
    assert len(CLEAR) >= 8
    scores, image_of = TABLES[name]
    actual = retrieval_metrics(scores.T, np.eye(len(scores), dtype=np.float32), image_of)
    assert actual == pytest.approx(_recalls(scores, image_of, (1, 5, 10)), abs=EXACT)


def test_the_whole_retrieval_equals_clip_benchmarks() -> None:
    module = _peer("zeroshot_retrieval")
    random = np.random.default_rng(4)
    images = random.standard_normal((45, 24)).astype(np.float32)
    counts = random.integers(0, 6, 45)  # texts per image, none for some
    image_of = np.repeat(np.arange(45), counts)
    texts = random.standard_normal((len(image_of), 24)).astype(np.float32) + images[image_of]
    numbers = iter(range(len(texts)))
    captions = [[str(next(numbers)) for _ in range(count)] for count in counts]
    batches = [(torch.from_numpy(images[i : i + 8]), captions[i : i + 8]) for i in range(0, 45, 8)]
    expected = module.evaluate(
        _Model(texts), batches, _tokens, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    actual = retrieval_metrics(_unit(images), _unit(texts), image_of)
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=EXACT)
    assert (counts == 0).any()
    assert 0.2 < expected["text_retrieval_recall@1"] < 1


# --- choices and associations


@pytest.mark.parametrize(("images", "texts"), [(1, 2), (2, 2), (2, 3), (3, 2), (2, 1), (1, 1)])
def test_choices_equal_clip_benchmarks(images: int, texts: int) -> None:
    module = _peer("image_caption_selection")
    random = np.random.default_rng(images * 10 + texts)
    puzzles = 60
    # Of few values and so often equal; of unit length, so that nothing is rounded by scaling.
    axes = np.eye(4, dtype=np.float32)
    found_images = axes[random.integers(0, 4, (puzzles, images))]
    found_texts = axes[random.integers(0, 4, puzzles * texts)]
    numbers = np.arange(puzzles * texts).reshape(puzzles, texts)
    pixels = torch.from_numpy(found_images).reshape(puzzles, images, 4, 1, 1)
    pixels = pixels[:, 0] if images == 1 else pixels  # as SugarCrepe comes
    batches = [
        (pixels[i : i + 16], [[str(n) for n in row] for row in numbers[i : i + 16]])
        for i in range(0, puzzles, 16)
    ]
    expected = module.evaluate(_Model(found_texts), batches, _tokens, "cpu", amp=False)
    hits = [choice_hits(found_images[i] @ found_texts[numbers[i]].T) for i in range(puzzles)]
    assert choice_metrics(hits) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("levels", [1, 2, 1000])
def test_jaccard_equals_scikit_learn(levels: int) -> None:
    random = np.random.default_rng(levels)
    for size in (1, 5, 6, 10, 12, 30):
        for positives in range(1, size + 1):
            scores = random.integers(0, levels, size).astype(np.float32)
            truth = np.zeros(size, bool)
            truth[random.permutation(size)[:positives]] = True
            chosen = np.zeros(size, bool)
            chosen[np.argsort(-scores, kind="stable")[:positives]] = True
            expected = sk.jaccard_score(truth, chosen)
            assert jaccard(scores, truth) == pytest.approx(expected, abs=EXACT)
