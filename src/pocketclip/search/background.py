"""Whether a library has anything that fits a text: its best hits against texts that say nothing.

    neutral = load_neutral(database, encoder)
    rows = sample_rows(len(ids), allowed)
    verdict = judge(query, vectors[hits], vectors[rows], neutral, logit_scale=encoder.logit_scale,
                    searched=int(allowed.sum()))

A cosine similarity means little by itself: models differ in their scale, and texts and photographs
in what they give whatever is in them. So the same photographs are also scored for 48 neutral
texts, which fit any photograph ("a photo") or hardly one ("an x-ray of a hand"). The query fits if
its best photographs score clearly higher than the best ones of a typical neutral text. Scores are
logits: cosine similarities times the model's logit scale. One photograph that stands out is
enough, and several that agree count a little more: the score of a text is the soft maximum of its
best ten photographs. Both sides are computed over the same photographs, so the rule holds for few
and for many, and where all are alike. How it was chosen and measured is in
docs/internals/no-match.md.

Shapes: N photographs that the filters left, S of them as a sample, K hits, P neutral texts,
D embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import LibraryError, count_of
from pocketclip.search.store.database import Database
from pocketclip.types import Embeddings, Encoder

_GENERIC = (
    *("a photo", "a picture", "an image", "a photograph of something", "untitled", "a snapshot"),
    *("IMG_2041", "a scene"),
)
NEUTRAL_TEXTS = (
    *_GENERIC,
    *("an x-ray of a hand", "the surface of the moon", "a circuit board", "a medieval manuscript"),
    *("cells under a microscope", "a stained glass window", "a submarine", "an oil rig"),
    *("a page of sheet music", "a penguin on the ice", "a dentist at work", "a tractor in a field"),
    *("a chess board", "a bar chart", "a suit of armour", "an astronaut in space"),
    *("a nuclear power station", "a steam locomotive", "a beehive with a beekeeper"),
    *("a camel in the desert", "a fighter jet", "a blacksmith at the anvil"),
    *("a coral reef with fish", "a ballet dancer on stage", "a volcano erupting"),
    *("a welder with a mask", "a sewing machine", "a giraffe", "a boxing match"),
    *("a lighthouse in a storm", "a hospital operating room", "a printed tax form"),
    *("an ancient Egyptian statue", "a wind tunnel", "a pile of gold bars"),
    *("a crane at a container port", "a spider in its web", "a skeleton in a museum"),
    *("a typewriter", "a rocket launch"),
)
"""Texts that fit any photograph, or hardly one. Those that do fit some do little harm."""
SAMPLE = 4096
"""Photographs, at most, over which the neutral texts are scored."""
FITS = 2.0
"""Logits by which the query must be above the neutral texts: the median of the thresholds that 41
of the 81 products of the grocery set give, for teachers' embeddings and a trained student."""
_UNSURE = 1.5
"""Logits below `FITS` within which nothing is said of a library of fewer than `_FEW` photographs:
the more photographs, the less the best score of a text depends on chance."""
_FEW = 20
_BEST = 10  # photographs in a soft maximum
_SHARPNESS = 2.0  # of the soft maximum, in logits: ten equal scores raise it by ln(10) / 2
_SAME_TEXT = 0.98  # cosine similarity of a query that says as little as a neutral text
_GROWTH = 0.25  # power of ln N with which the best score grows
_FACT = "neutral_texts"


class Verdict(NamedTuple):
    """Whether the library has anything that fits, and why."""

    fits: bool | None
    """None: that cannot be said."""
    reason: str
    """One sentence for people."""
    lead: float | None = None
    """Logits by which the best hits are above those of unrelated texts; `FITS` are enough."""


NOT_TEXT = Verdict(
    None, "whether anything fits well is only judged for queries of text without photographs"
)
"""For a query that is, or contains, a photograph to be like."""


def sample_rows(count: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return the rows (S,), ascending, over which `judge` scores the neutral texts.

    They are evenly spaced, so the same library and filters always have the same sample.

    Args:
        count: rows of the matrix.
        allowed: (count,), the rows that the filters leave; None for all.
    """
    rows = np.arange(count) if allowed is None else np.flatnonzero(allowed)
    if len(rows) <= SAMPLE:
        return rows
    return np.asarray(rows[np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64)])


def judge(
    query: Embeddings,
    best: Embeddings,
    sample: Embeddings,
    neutral: Embeddings,
    *,
    logit_scale: float,
    searched: int,
) -> Verdict:
    """Say whether the best hits of a text fit it.

    Args:
        query: (D,), unit length: the embedding of the text; of a combined query, that of the texts
            with a positive weight alone. A negative part moves a query away from all texts, so its
            similarities cannot be compared with theirs.
        best: (K, D), the vectors of the best hits, one per content; ten are enough.
        sample: (S, D), the vectors at `sample_rows`.
        neutral: (P, D), from `load_neutral`.
        logit_scale: the model's multiplier of cosine similarities.
        searched: N.
    """
    if not searched or not len(best) or not len(sample):
        return Verdict(None, "no photograph was searched")
    same = neutral[: len(_GENERIC)] @ np.asarray(query, np.float32)
    if same.max() >= _SAME_TEXT:
        return Verdict(
            None, f"the query says as little as “{_GENERIC[int(same.argmax())]}”: it fits any "
            "photograph"
        )  # fmt: skip
    lead = lead_over_neutral(
        query, best, sample, neutral, logit_scale=logit_scale, searched=searched
    )
    if not math.isfinite(lead):
        return Verdict(None, "the scores are not finite numbers")
    if lead >= FITS:
        reason = "the query fits its best photographs clearly better than unrelated texts fit any"
        return Verdict(True, reason, lead)
    nearly = "even better" if lead < 0 else "nearly as well"
    unrelated = f"texts about other things fit photographs here {nearly}"
    if searched < _FEW and lead >= FITS - _UNSURE:
        few = f"among {count_of(searched, 'photograph')} that may be chance"
        return Verdict(None, f"{unrelated}, and {few}", lead)
    return Verdict(False, f"nothing fits well: {unrelated}", lead)


def lead_over_neutral(
    query: Embeddings,
    best: Embeddings,
    sample: Embeddings,
    neutral: Embeddings,
    *,
    logit_scale: float,
    searched: int,
) -> float:
    """Return by how many logits a query's best hits are above those of a typical neutral text.

    Args: as `judge`.
    """
    score = _soft_maximum((best @ query)[None], logit_scale)[0]
    similarities = neutral @ sample.T  # (P, S)
    expected = _soft_maximum(similarities, logit_scale)
    if searched > len(sample) > 1:
        # The best of more photographs is better. For independent ones with normal scores the lead
        # over the mean grows as the square root of ln N; of photographs in groups of like ones,
        # about half of that was measured.
        means = logit_scale * similarities.mean(axis=1)
        growth = (math.log(searched) / math.log(len(sample))) ** _GROWTH
        expected = means + (expected - means) * growth
    # The mean of the middle half: a library has photographs of some of the neutral texts.
    expected.sort()
    quarter = len(expected) // 4
    return float(score - expected[quarter : len(expected) - quarter].mean())


def _soft_maximum(similarities: Embeddings, logit_scale: float) -> NDArray[np.float64]:
    """Return, per row of (texts, photographs), the soft maximum of the best ones, in logits."""
    if similarities.shape[1] > _BEST:
        similarities = np.partition(similarities, -_BEST, axis=1)[:, -_BEST:]
    logits = logit_scale * similarities.astype(np.float64)
    top = logits.max(axis=1)
    sums = np.exp(_SHARPNESS * (logits - top[:, None])).sum(axis=1)
    return np.asarray(top + np.log(sums) / _SHARPNESS)


def load_neutral(database: Database, encoder: Encoder) -> Embeddings:
    """Return the embeddings (P, D) of the neutral texts: stored ones, else of the encoder.

    They are stored if that is possible now: they take a second or two.

    Raises:
        LibraryError: the library cannot be read.
        PocketclipError: the texts cannot be encoded.
    """
    stored = stored_neutral(database, encoder)
    if stored is not None:
        return stored
    return keep_neutral(database, encoder, encoder.encode_text(NEUTRAL_TEXTS))


def keep_neutral(database: Database, encoder: Encoder, rows: Embeddings) -> Embeddings:
    """Store the embeddings (P, D) of the neutral texts if possible; return them as stored.

    Args:
        database: the library.
        encoder: whose embeddings they are.
        rows: of `NEUTRAL_TEXTS`.
    """
    rounded = rows.astype(np.float16)
    with contextlib.suppress(LibraryError):  # read-only, or another process writes: next time
        _store(database, encoder, rounded)
    return rounded.astype(np.float32)  # rounded as if they had been stored


def store_neutral(database: Database, encoder: Encoder) -> None:
    """Keep the embeddings of the neutral texts in the library, unless it has them.

    A search in a new process then encodes the query alone.

    Raises:
        LibraryError: another process writes, or the library cannot be written.
        PocketclipError: the texts cannot be encoded.
    """
    if stored_neutral(database, encoder) is None:
        _store(database, encoder, encoder.encode_text(NEUTRAL_TEXTS).astype(np.float16))


def stored_neutral(database: Database, encoder: Encoder) -> Embeddings | None:
    """Return the stored embeddings (P, D), if they are of these texts and this model."""
    stored, key = database.fact(_FACT), _key(encoder)
    size = 2 * len(NEUTRAL_TEXTS) * encoder.embed_dim
    if not isinstance(stored, bytes) or stored[: len(key)] != key:
        return None
    if len(stored) != len(key) + size:
        return None
    rows = np.frombuffer(stored, "<f2", offset=len(key)).astype(np.float32)
    return rows.reshape(len(NEUTRAL_TEXTS), encoder.embed_dim)


def _store(database: Database, encoder: Encoder, rows: NDArray[Any]) -> None:
    with database.writing(), database.transaction():
        database.set_fact(_FACT, _key(encoder) + rows.astype("<f2").tobytes())


def _key(encoder: Encoder) -> bytes:
    """Return what the stored embeddings depend on, hashed: the texts and the embedding space."""
    return hashlib.sha256("\n".join([encoder.space_id, *NEUTRAL_TEXTS]).encode()).digest()
