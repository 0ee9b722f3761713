"""Measure how well a library says that nothing fits, on groceries that are there and that are not.

    python benchmarks/no_match.py --data ../shared/data --model runs/student

Of the 81 products of the grocery set, 41 set a threshold, the other 40 test it. A library holds
photographs of 20 of the 40; all 40 are searched for by `a photo of NAME.` At least 18 of the 20
that are there should be answered, at least 15 of the 20 that are not should be refused. Statistics
other than the package's are compared on the same libraries. The spaces are the stored embeddings of
the teachers (training photographs, one augmented view each; they have no text tower here, so the
neutral texts are the useless alt-texts that are stored with them), and of each MODEL all 5,421
photographs, and the test photographs alone.

It also measures libraries of one photograph, of twelve, of one product, of 100,000 photographs with
a single right one, and queries that have nothing to do with groceries. The last line is JSON.

Shapes: N photographs, Q queries, P neutral texts, D embedding.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import shards
from pocketclip.infer.encoder import load
from pocketclip.search.background import (
    FITS,
    NEUTRAL_TEXTS,
    judge,
    lead_over_neutral,
    sample_rows,
)
from pocketclip.types import Embeddings

Floats = NDArray[np.float64]
SIZES = {"1 each": (1, 1), "1 to 30 each": (1, 30), "all": (10_000, 10_000)}
ANSWERED, REFUSED = 0.9, 0.75
LARGE = 100_000
UNRELATED = (
    "a dog on a beach", "a red car in the snow", "my grandmother", "a screenshot of a chat",
    "skiing in the alps", "a group of people at a party", "sunset over the sea", "a blue truck",
    "a wedding couple", "a cat asleep on a sofa", "the Eiffel tower", "a newborn baby",
    "a football match", "a birthday cake with candles", "an aeroplane at the airport",
    "a mountain lake", "a street at night", "a guitar player", "a horse in a field", "a passport",
)  # fmt: skip


@dataclass(slots=True)
class Space:
    """Photographs, names and neutral texts in one embedding space."""

    name: str
    photos: Embeddings  # (N, D)
    product: NDArray[np.int64]  # (N,)
    queries: Embeddings  # (81, D)
    neutral: Embeddings  # (P, D)
    scale: float
    unrelated: Embeddings | None = None  # (U, D)


def unit(rows: NDArray[Any]) -> Embeddings:
    """Return rows at unit length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def teachers(data: Path, rows: Sequence[dict[str, str]]) -> Space:
    """Return the stored embeddings: the first view of each photograph, and `a photo of NAME.`."""
    config = json.loads((data / "grocery-dr" / "config.json").read_text("utf-8"))
    photos, product = [], []
    neutral: dict[str, Embeddings] = {}
    queries: dict[int, Embeddings] = {}
    for sample in shards.read(str(data / "grocery-dr")):
        row = rows[int(sample.uid)]
        photos.append(sample.embeddings["image_emb"][0])
        product.append(int(row["class_id"]))
        assert sample.captions["syn_text"][0] == f"a photo of {row['caption']}."
        queries[product[-1]] = sample.embeddings["syn_text_emb"][0]
        # Names of files ("IMG_1681.JPG") would be most of the texts, and nearly equal.
        if row["alt_kind"] == "useless" and not row["alt_text"].startswith(("IMG", "DSC")):
            neutral[row["alt_text"]] = sample.embeddings["text_emb"][0]
    return Space(
        "teachers", unit(np.stack(photos)), np.array(product),
        unit(np.stack([queries[key] for key in sorted(queries)])),
        unit(np.stack(list(neutral.values()))), float(np.mean(config["teacher_logit_scale"])),
    )  # fmt: skip


def students(model: str, data: Path, rows: Sequence[dict[str, str]]) -> list[Space]:
    """Return a model's embeddings of all photographs, and of the test photographs alone."""
    encoder = load(model)
    photos = encoder.encode_image([data / "grocery" / row["filepath"] for row in rows])
    product = np.array([int(row["class_id"]) for row in rows])
    names = {int(row["class_id"]): row["caption"] for row in rows}
    texts = encoder.encode_text([f"a photo of {names[key]}." for key in sorted(names)])
    neutral, unrelated = encoder.encode_text(NEUTRAL_TEXTS), encoder.encode_text(UNRELATED)
    held_out = np.array([row["split"] == "test" for row in rows])
    name = Path(model).name
    return [
        Space(
            f"{name}, {which}", photos[kept], product[kept], texts, neutral, encoder.logit_scale,
            unrelated,
        )
        for which, kept in (("all", np.ones(len(rows), bool)), ("test photographs", held_out))
    ]  # fmt: skip


def package_lead(space: Space, library: Embeddings, query: Embeddings) -> float:
    """Return the package's statistic."""
    return lead_over_neutral(*inputs(space, library, query), logit_scale=space.scale,
                             searched=len(library))  # fmt: skip


def inputs(
    space: Space, library: Embeddings, query: Embeddings
) -> tuple[Embeddings, Embeddings, Embeddings, Embeddings]:
    """Return what `judge` is given: the query, its best hits, the sample, the neutral texts."""
    best = np.argsort(-(library @ query), kind="stable")[:10]
    return query, library[best], library[sample_rows(len(library))], space.neutral


def statistics(space: Space, library: Embeddings, queries: Embeddings) -> dict[str, Floats]:
    """Return every statistic that is compared, for queries (Q, D)."""
    scores = queries @ library.T  # (Q, N)
    best = scores.argmax(axis=1)
    top, mean, deviation = scores.max(axis=1), scores.mean(axis=1), scores.std(axis=1) + 1e-6
    middle = np.median(scores, axis=1)
    spread = 1.4826 * np.median(abs(scores - middle[:, None]), axis=1) + 1e-6
    apart = library[best] @ library.T < 0.9  # (Q, N): no near duplicates of the best
    count = np.maximum(apart.sum(axis=1), 2)
    others = np.where(apart, scores, 0).sum(axis=1) / count
    width = np.sqrt(np.where(apart, (scores - others[:, None]) ** 2, 0).sum(axis=1) / count) + 1e-6
    neutral = library @ space.neutral.T  # (N, P)
    at_best, highest = space.scale * neutral[best], neutral.max(axis=0)
    found = {
        PACKAGE: np.array([package_lead(space, library, query) for query in queries]),
        "raw cosine": top,
        "z over the library": (top - mean) / deviation,
        "robust z (median, MAD)": (top - middle) / spread,
        "z less sqrt(2 ln N)": (top - mean) / deviation - np.sqrt(2 * np.log(max(len(library), 2))),
        "z without near duplicates": (top - others) / width,
        "top less mean, logits": space.scale * (top - mean),
        "less neutral, same photograph": space.scale * top - at_best.mean(axis=1),
        "softmax against neutral": space.scale * top - np.log(np.exp(at_best).sum(axis=1)),
        "best less neutral's best, logits": space.scale * (top - np.median(highest)),
        "the same over their deviation": (top - highest.mean()) / (highest.std() + 1e-6),
    }
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


PACKAGE = "lead over neutral texts (package)"
RULE = "logistic of three"
_COMBINED = (
    PACKAGE, "less neutral, same photograph", "z over the library",
)  # fmt: skip


def draw(
    rng: np.random.Generator, space: Space, products: Iterable[int], each: tuple[int, int]
) -> Embeddings:
    """Return a library with `each` photographs, lowest and highest number, of the products."""
    chosen = []
    for key in products:
        own = rng.permutation(np.flatnonzero(space.product == key))
        chosen.append(own[: rng.integers(each[0], each[1] + 1)])
    return space.photos[np.concatenate(chosen)]


@dataclass(slots=True)
class Answers:
    """Statistics of the queries of some libraries, and which products were there."""

    there: NDArray[np.bool_]  # (libraries, queries)
    values: dict[str, Floats]  # name: (libraries, queries)


def answers(
    rng: np.random.Generator, space: Space, products: NDArray[np.int64], libraries: int,
    each: tuple[int, int],
) -> Answers:  # fmt: skip
    """Search libraries of a random half of the products for all of them."""
    rows, there = [], []
    for _ in range(libraries):
        order = rng.permutation(products)
        library = draw(rng, space, order[: len(order) // 2], each)
        rows.append(statistics(space, library, space.queries[order]))
        there.append(np.arange(len(order)) < len(order) // 2)
    values = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Answers(np.array(there), values)


def threshold(values: Floats, there: NDArray[np.bool_]) -> float:
    """Return the threshold with the best smaller margin over both aims; of equals, the middle."""
    ordered = np.unique(values)
    cuts = (ordered[1:] + ordered[:-1]) / 2
    answered = 1 - np.searchsorted(np.sort(values[there]), cuts) / there.sum()
    refused = np.searchsorted(np.sort(values[~there]), cuts) / (~there).sum()
    margin = np.minimum(answered - ANSWERED, refused - REFUSED)
    best = np.flatnonzero(margin >= margin.max() - 1e-9)
    return float(cuts[best[len(best) // 2]])


def add_rule(known: Answers, tested: Answers) -> None:
    """Add the logistic rule over three statistics, fitted on the known products."""

    def features(of: Answers) -> Floats:
        return np.stack([*(of.values[name] for name in _COMBINED), np.ones(of.there.shape)], -1)

    x = features(known).reshape(-1, len(_COMBINED) + 1)
    centre, width = x[:, :-1].mean(0), x[:, :-1].std(0)
    x[:, :-1] = (x[:, :-1] - centre) / width
    y, weights = known.there.reshape(-1), np.zeros(x.shape[1])
    for _ in range(20):  # Newton's steps, with a little decay
        p = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (p - y) + 0.1 * weights
        weights -= np.linalg.solve(
            (x * (p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(len(weights)), slope
        )
    for of in (known, tested):
        rows = features(of)
        rows[..., :-1] = (rows[..., :-1] - centre) / width
        of.values[RULE] = rows @ weights


def area(values: Floats, there: NDArray[np.bool_]) -> float:
    """Return how often a product that is there has the higher value (ROC area)."""
    high, low = values[there], np.sort(values[~there])
    return float(np.searchsorted(low, high).mean() / len(low))


def compare(
    spaces: Sequence[Space], splits: int, libraries: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, per space and size of libraries, each statistic's figures over random splits."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for space in spaces:
        for size, each in SIZES.items():
            rng = np.random.default_rng(seed)
            found: dict[str, list[tuple[float, int, int, float]]] = {}
            for _ in range(splits):
                order = rng.permutation(81)
                known = answers(rng, space, order[:41], libraries, each)
                tested = answers(rng, space, order[41:], libraries, each)
                add_rule(known, tested)
                for name, values in tested.values.items():
                    cut = threshold(known.values[name], known.there)
                    _count(found, name, values, tested.there, cut)
                name = f"package, at {FITS}"
                values = tested.values[PACKAGE]
                _count(found, name, values, tested.there, FITS)
            out[f"{space.name}: {size}"] = {name: _summary(rows) for name, rows in found.items()}
            _show(f"{space.name}: {size}", out[f"{space.name}: {size}"])
    return out


def _count(
    found: dict[str, list[tuple[float, int, int, float]]], name: str, values: Floats,
    there: NDArray[np.bool_], cut: float,
) -> None:  # fmt: skip
    for row, inside in zip(values, there, strict=True):
        answered, refused = int((row[inside] >= cut).sum()), int((row[~inside] < cut).sum())
        found.setdefault(name, []).append((cut, answered, refused, area(row, inside)))


def _summary(rows: Sequence[tuple[float, int, int, float]]) -> dict[str, Any]:
    cut, answered, refused, auc = np.array(rows).T
    return {
        "threshold": [round(float(cut.mean()), 3), round(float(cut.std()), 3)],
        "area": round(float(auc.mean()), 3),
        "answered": round(float(answered.mean()), 2),
        "answered_5%": float(np.percentile(answered, 5)),
        "refused": round(float(refused.mean()), 2),
        "refused_5%": float(np.percentile(refused, 5)),
        "both": round(float(((answered >= 18) & (refused >= 15)).mean()), 3),
    }


def _show(title: str, figures: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n")
    print("| statistic | threshold | ROC area | answered of 20 | refused of 20 | both aims |")
    print("|---|---|---|---|---|---|")
    for name, f in figures.items():
        low, spread = f["threshold"]
        print(
            f"| {name} | {low} ± {spread} | {f['area']} | {f['answered']} ({f['answered_5%']:.0f}) "
            f"| {f['refused']} ({f['refused_5%']:.0f}) | {100 * f['both']:.0f} % |",
            flush=True,
        )


def fixed_split(spaces: Sequence[Space], libraries: int, seed: int) -> dict[str, Any]:
    """Return what the package's constant comes from: products of even number set it.

    Every space gives a threshold for its libraries; the constant lies among them. The products of
    odd number are then judged with the constant.
    """
    out: dict[str, Any] = {}
    for space in spaces:
        for size, each in SIZES.items():
            rng = np.random.default_rng(seed)
            known = answers(rng, space, np.arange(0, 81, 2), libraries, each)
            tested = answers(rng, space, np.arange(1, 81, 2), libraries, each)
            found: dict[str, list[tuple[float, int, int, float]]] = {}
            _count(found, "package", tested.values[PACKAGE], tested.there, FITS)
            out[f"{space.name}: {size}"] = {
                "threshold_of_41": round(threshold(known.values[PACKAGE], known.there), 2),
                **_summary(found["package"]),
            }
            print(f"{space.name}: {size}: {out[f'{space.name}: {size}']}", flush=True)
    return out


def odd_libraries(space: Space, repeats: int, seed: int) -> dict[str, dict[str, float]]:
    """Return how often queries are answered and refused by libraries that are unlike a real one."""
    rng = np.random.default_rng(seed)
    kinds: dict[str, tuple[int, tuple[int, int], Callable[[Embeddings], Embeddings]]] = {
        "one photograph": (1, (1, 1), lambda x: x),
        "one product, 30 photographs": (1, (30, 30), lambda x: x),
        "twelve products, 12 photographs": (12, (1, 1), lambda x: x),
        "three products, 12 photographs": (3, (4, 4), lambda x: x),
        "20 products, each photograph 30 times, nearly alike": (
            20, (3, 3), lambda x: jittered(rng, np.repeat(x, 30, axis=0), 0.99),
        ),
        "one photograph 500 times": (1, (1, 1), lambda x: np.repeat(x, 500, axis=0)),
    }  # fmt: skip
    out = {}
    for name, (count, each, change) in kinds.items():
        said: dict[bool, list[bool | None]] = {True: [], False: []}
        for _ in range(repeats if count < 20 else max(1, repeats // 5)):
            order = rng.permutation(81)
            library = change(draw(rng, space, order[:count], each))
            for position, key in enumerate(order[: count + 10]):
                said[position < count].append(ask(space, library, space.queries[key]))
        out[name] = {
            "there_answered": round(said[True].count(True) / len(said[True]), 3),
            "there_open": round(said[True].count(None) / len(said[True]), 3),
            "not_there_refused": round(said[False].count(False) / len(said[False]), 3),
            "not_there_open": round(said[False].count(None) / len(said[False]), 3),
        }
        print(f"{space.name}: {name}: {out[name]}", flush=True)
    return out


def jittered(rng: np.random.Generator, rows: Embeddings, cosine: float) -> Embeddings:
    """Return rows moved so that their similarity to the original is about `cosine`."""
    noise = unit(rng.standard_normal(rows.shape, np.float32))
    return unit(cosine * rows + np.sqrt(1 - cosine**2) * noise)


def ask(space: Space, library: Embeddings, query: Embeddings) -> bool | None:
    """Return the package's verdict."""
    given = inputs(space, library, query)
    return judge(*given, logit_scale=space.scale, searched=len(library)).fits


def large(space: Space, seed: int) -> dict[str, float]:
    """Return how often a single right photograph among 100,000 is found and others are refused.

    The library is made of 40 products' photographs, each many times and moved to a similarity of
    0.95, so it has 40 clusters. The 41 other products are searched for with one photograph of
    theirs in it, and without.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(81)
    base = np.flatnonzero(np.isin(space.product, order[:40]))
    library = jittered(rng, space.photos[rng.choice(base, LARGE)], 0.95)
    found, refused, took, right = [], [], [], []
    for key in order[40:]:
        query = space.queries[key]
        refused.append(ask(space, library, query) is False)
        own = rng.permutation(np.flatnonzero(space.product == key))[:3]
        for row in own:
            library[LARGE // 2] = space.photos[row]
            given = inputs(space, library, query)
            begin = time.perf_counter()
            verdict = judge(*given, logit_scale=space.scale, searched=LARGE)
            took.append(time.perf_counter() - begin)
            found.append(verdict.fits is True)
            right.append(bool((given[1][0] == space.photos[row]).all()))
        library[LARGE // 2] = library[0]
    first = np.array(right)
    return {
        "found": round(float(np.mean(found)), 3),
        "right_photograph_first": round(float(first.mean()), 3),
        "found_where_first": round(float(np.array(found)[first].mean()), 3),
        "not_there_refused": round(float(np.mean(refused)), 3),
        "milliseconds": round(1000 * float(np.median(took)), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", action="append", default=[], help="a trained student")
    parser.add_argument("--splits", type=int, default=25)
    parser.add_argument("--libraries", type=int, default=4, help="per split")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with (options.data / "grocery" / "pairs.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    spaces = [teachers(options.data, rows)]
    for model in options.model:
        spaces += students(model, options.data, rows)
    fixed = fixed_split(spaces, 10 * options.libraries, options.seed)
    compared = compare(spaces, options.splits, options.libraries, options.seed)
    odd, many, unrelated = {}, {}, {}
    for space in spaces:
        odd[space.name] = odd_libraries(space, 100, options.seed)
        many[space.name] = large(space, options.seed)
        print(f"{space.name}: one of {LARGE}: {many[space.name]}", flush=True)
        if space.unrelated is not None:
            said = [ask(space, space.photos, query) for query in space.unrelated]
            unrelated[space.name] = round(said.count(False) / len(said), 3)
            print(f"{space.name}: unrelated queries refused: {unrelated[space.name]}")
    result = {
        "threshold": FITS, "fixed_split": fixed, "random_splits": compared, "libraries": odd,
        "one_in_100000": many, "unrelated_refused": unrelated,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
