"""Whether anything fits a query. Shapes: D embedding, N photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import no_match
from pocketclip.infer.encoder import Encoder
from pocketclip.search import background
from pocketclip.search.background import (
    FITS,
    NEUTRAL_TEXTS,
    SAMPLE,
    Verdict,
    judge,
    load_neutral,
    sample_rows,
    store_neutral,
)
from pocketclip.search.library import Library
from pocketclip.types import Embeddings

SHARED = Path(__file__).parents[3] / "shared" / "data"
DIM = 64
SCALE = 100.0
_GAP = 40  # photographs have no part of this axis, texts have
_BASE = 41  # the part that all photographs share with all texts


def unit(rows: Embeddings) -> Embeddings:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def text(subject: int, seed: int = 0) -> Embeddings:
    """Return the embedding (D,) of a text about a subject, 0 to 39; -1: about none."""
    out = 0.03 * np.random.default_rng(seed).standard_normal(DIM)
    out[_GAP], out[_BASE] = 0.9, 0.2
    if subject >= 0:
        out[subject] += 0.35
    return unit(out)


def photos(subjects: list[int], seed: int = 1) -> Embeddings:
    """Return the embeddings (N, D) of photographs with these subjects.

    The cosine similarity to their own text is about 0.32, to others 0.11 with a standard deviation
    of 0.03.
    """
    out = 0.06 * np.random.default_rng(seed).standard_normal((len(subjects), DIM))
    out[:, _GAP], out[:, _BASE] = 0, 0.5
    out[np.arange(len(subjects)), subjects] += 0.5
    return unit(out)


NEUTRAL = np.stack(
    [text(-1 if row < 8 else 30 + row % 10, 100 + row) for row in range(len(NEUTRAL_TEXTS))]
)


def verdict(subject: int, library: Embeddings, *, scale: float = SCALE, keep: int = 10) -> Verdict:
    query = text(subject)
    best = library[np.argsort(-(library @ query), kind="stable")[:keep]]
    rows = sample_rows(len(library))
    return judge(query, best, library[rows], NEUTRAL, logit_scale=scale, searched=len(library))


@pytest.mark.parametrize("each", [1, 5, 60])
def test_what_is_there_is_answered_and_what_is_not_is_refused(each: int) -> None:
    library = photos([subject for subject in range(20) for _ in range(each)])
    answers = [verdict(subject, library).fits for subject in range(30)]
    assert answers[:20].count(True) >= 18
    assert answers[20:].count(False) >= 7


@pytest.mark.skipif(not SHARED.is_dir(), reason="the grocery set is not here")
def test_products_that_did_not_set_the_threshold():
    with (SHARED / "grocery" / "pairs.csv").open(encoding="utf-8") as table:
        space = no_match.teachers(SHARED, list(csv.DictReader(table)))
    rng = np.random.default_rng(0)
    answered, refused = [], []
    for each in [(1, 1), (1, 30), (30, 60)] * 5:
        order = rng.permutation(np.arange(1, 81, 2))  # those of even number set it
        library = no_match.draw(rng, space, order[:20], each)
        fits = [no_match.package_lead(space, library, space.queries[k]) >= FITS for k in order]
        answered.append(sum(fits[:20]))
        refused.append(20 - sum(fits[20:]))
    assert min(answered) >= 18
    assert np.median(refused) >= 18
    assert np.mean(np.array(refused) >= 15) >= 0.9


def test_one_photograph_among_many_is_found() -> None:
    rng = np.random.default_rng(0)
    library = photos([*rng.integers(0, 20, 30_000), 25])
    assert verdict(25, library).fits is True
    assert verdict(26, library).fits is False


def test_a_uniform_library_answers_its_own_query_alone() -> None:
    library = photos([3] * 50)
    assert verdict(3, library).fits is True
    assert [verdict(subject, library).fits for subject in range(10, 30)].count(False) >= 14


def test_a_small_library_answers_too() -> None:
    twelve = photos(list(range(12)))
    assert [verdict(subject, twelve).fits for subject in range(12)].count(True) >= 10
    assert verdict(5, photos([5])).fits is True
    assert verdict(6, photos([5])).fits is not True


def test_near_misses_in_a_small_library_are_left_open() -> None:
    base = verdict_of_lead(FITS - 0.5, searched=background._FEW - 1)
    assert base.fits is None
    assert "chance" in base.reason
    assert base.lead == pytest.approx(FITS - 0.5, abs=0.01)
    worse = verdict_of_lead(-1.0, searched=50)
    assert (
        worse.reason
        == "nothing fits well: texts about other things fit photographs here even better"
    )
    assert verdict_of_lead(FITS - 0.5, searched=background._FEW).fits is False
    assert verdict_of_lead(FITS - 2.5, searched=background._FEW - 1).fits is False
    assert verdict_of_lead(FITS + 0.01, searched=1).fits is True


def verdict_of_lead(lead: float, *, searched: int) -> Verdict:
    """Judge a query whose similarity is above that of all neutral texts by `lead` logits."""
    photo = np.eye(1, DIM, dtype=np.float32)
    query = np.eye(1, DIM, 1, dtype=np.float32)[0] + (0.2 + lead / SCALE) * photo[0]
    neutral = np.tile(np.eye(1, DIM, 2, dtype=np.float32) + 0.2 * photo, (len(NEUTRAL_TEXTS), 1))
    # The others are far away for all texts, and the best ten are the same for both sides.
    library = np.concatenate([photo, np.tile(-photo, (searched - 1, 1))])
    return judge(query, library[:1], library, neutral, logit_scale=SCALE, searched=searched)


def test_offset_and_temperature_of_a_space_do_not_matter() -> None:
    """Cosine similarities a * x + b with a logit scale of c / a give the same answers."""
    library = photos([subject for subject in range(20) for _ in range(5)])
    # A further axis adds the same to every similarity; halving all is undone by the scale.
    offset = 0.3
    rows = np.pad(0.5 * library, ((0, 0), (0, 1)), constant_values=1.0)
    neutral = np.pad(NEUTRAL, ((0, 0), (0, 1)), constant_values=offset)
    length = np.sqrt(np.float32(1 + offset**2))
    neutral /= length
    for subject in range(0, 40, 4):
        query = np.append(text(subject), np.float32(offset)) / length
        best = rows[np.argsort(-(rows @ query), kind="stable")[:10]]
        other = judge(
            query, best, rows, neutral, logit_scale=2 * SCALE * length, searched=len(rows)
        )
        assert other.fits == verdict(subject, library).fits


def test_photographs_that_are_all_equal_are_no_fault() -> None:
    library = np.repeat(photos([3]), 500, axis=0)
    assert verdict(3, library).fits is True
    assert verdict(20, library).fits is False


def test_a_query_that_says_nothing_cannot_be_judged() -> None:
    library = photos([1, 2, 3])
    answer = judge(NEUTRAL[0], library, library, NEUTRAL, logit_scale=SCALE, searched=len(library))
    assert answer.fits is None
    assert NEUTRAL_TEXTS[0] in answer.reason


def test_a_neutral_text_about_something_can_be_searched_for() -> None:
    library = photos([30, 1, 2, 3])  # "a chess board", say, is in the library
    answer = judge(NEUTRAL[10], library[:1], library, NEUTRAL, logit_scale=SCALE, searched=4)
    assert answer.fits is True


def test_nothing_searched() -> None:
    none = np.empty((0, DIM), np.float32)
    answer = judge(text(1), none, none, NEUTRAL, logit_scale=SCALE, searched=0)
    assert answer.fits is None


def test_the_sample_is_fixed_and_within_the_filters() -> None:
    assert sample_rows(5).tolist() == [0, 1, 2, 3, 4]
    allowed = np.arange(100_000) % 3 == 1
    rows = sample_rows(len(allowed), allowed)
    assert len(rows) == SAMPLE
    assert allowed[rows].all()
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 1
    assert rows[-1] == np.flatnonzero(allowed)[-1]
    assert (rows == sample_rows(len(allowed), allowed)).all()


def test_neutral_texts_are_kept_in_the_library(
    library: Library, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder.encode_text(NEUTRAL_TEXTS)
    first = load_neutral(library.database, encoder)
    assert first == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(Encoder, "encode_text", None)  # not called from here on
    store_neutral(library.database, encoder)
    assert (load_neutral(library.database, encoder) == first).all()


def test_neutral_texts_of_another_model_are_not_used(
    library: Library, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_neutral(library.database, encoder)
    monkeypatch.setattr(Encoder, "space_id", "space-of-another-model")
    encoded = np.ones((len(NEUTRAL_TEXTS), encoder.embed_dim), np.float32)
    monkeypatch.setattr(Encoder, "encode_text", lambda *_: encoded)
    assert (load_neutral(library.database, encoder) == 1).all()
    store_neutral(library.database, encoder)
    monkeypatch.setattr(Encoder, "encode_text", None)
    assert (load_neutral(library.database, encoder) == 1).all()
