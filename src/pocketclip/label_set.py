"""A label set: a linear classifier of image embeddings, which stands in place of label names.

    labels = read_label_set("labels.json")      # written by `pocketclip fit`
    labels.check_space(encoder.space_id)
    labels.probabilities(encoder.encode_image(["photo.jpg"]))

The file is JSON. The weights are the base64 text of L x D little-endian float32 values, row by row:
exact, a third of the size of decimal numbers, and `new Float32Array(buffer)` in a web page.

Shapes: B images, D embedding, L labels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import check_finite, image_name, rank_probabilities
from pocketclip.errors import DataError, ParseError
from pocketclip.formats.fields import field as value_of
from pocketclip.formats.fields import items
from pocketclip.formats.json_text import load_json
from pocketclip.storage.local import write_whole
from pocketclip.types import Embeddings

FORMAT = "pocketclip label set"
VERSION = 1
MAX_BYTES = 512 << 20
"""Limit on the size of a file: 100,000 labels of width 768."""
MAX_LABELS = 100_000
MAX_WIDTH = 65_536
SCORES = ("probability", "logit")
_BEGINNING = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneOfThese:
    """The rule by which an image counts as none of the labels."""

    score: str
    """What is compared: the best label's `probability`, or its `logit`."""
    below: float
    """A lower score means none of the labels."""
    error: float
    """The share of held-out images with one of the labels that was allowed to score lower."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelSet:
    """Labels with a linear classifier of unit image embeddings.

    Logits are `embeddings @ weights.T + biases`; probabilities are the softmax of
    `logits / temperature`.

    Raises:
        DataError: the parts do not fit each other, or a value is not finite or out of range.
    """

    labels: Sequence[str]
    weights: Embeddings
    """(L, D), float32."""
    biases: Embeddings
    """(L,), float32."""
    space_id: str
    """The embedding space that the weights are of."""
    model: str
    """The model's name, for messages."""
    temperature: float = 1.0
    none: NoneOfThese | None = None
    """None: every image has one of the labels."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, as plain JSON types: see docs/reference/formats.md."""

    def __post_init__(self) -> None:
        """Check the parts."""
        repeated = [label for label, count in Counter(self.labels).items() if count > 1]
        if repeated:
            raise DataError(f"the label {repeated[0]!r} is there twice")
        if not all(label.strip() for label in self.labels):
            raise DataError("a label is empty")
        if not self.labels or len(self.labels) > MAX_LABELS:
            raise DataError(f"{len(self.labels):,} labels; there must be 1 to {MAX_LABELS:,}")
        if self.weights.ndim != 2 or self.weights.shape[0] != len(self.labels):
            raise DataError(f"weights {self.weights.shape} for {len(self.labels)} labels")
        if self.biases.shape != (len(self.labels),):
            raise DataError(f"biases {self.biases.shape} for {len(self.labels)} labels")
        for name, values in (("weights", self.weights), ("biases", self.biases)):
            if not np.isfinite(values).all():
                raise DataError(f"the {name} hold NaN or an infinity")
        if not 0 < self.temperature < math.inf:
            raise DataError(f"the temperature is {self.temperature}; it must be above 0")
        if self.none is not None and self.none.score not in SCORES:
            raise DataError(f"the score {self.none.score!r} is not one of {', '.join(SCORES)}")
        if self.none is not None and not math.isfinite(self.none.below):
            raise DataError(f'"none" is below {self.none.below}; it must be finite')
        if self.none is not None and not 0 <= self.none.error <= 1:
            raise DataError(f'the error of "none" is {self.none.error}; it must be 0 to 1')

    @property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        return int(self.weights.shape[1])

    @property
    def digest(self) -> str:
        """The identity of the classifier: a hash of all that decides its answers."""
        about = [list(self.labels), self.temperature, self.space_id]
        if self.none is not None:
            about += [self.none.score, self.none.below]
        text = json.dumps(about).encode("utf-8", "surrogatepass")
        weights = (
            np.ascontiguousarray(self.weights, "<f4"),
            np.ascontiguousarray(self.biases, "<f4"),
        )
        return hashlib.sha256(b"\0".join([text, *(w.tobytes() for w in weights)])).hexdigest()[:16]

    def check_space(
        self, space_id: str, what: str = "the label set", *, embed_dim: int | None = None
    ) -> None:
        """Refuse a model of another embedding space than the weights are of.

        Args:
            space_id: of the model.
            what: the label set's file, for the message.
            embed_dim: of the model; None: it is not compared.

        Raises:
            DataError: the spaces differ; the message names both. Or the widths differ.
        """
        if space_id != self.space_id:
            raise DataError(
                f"{what} was fitted to {self.model} ({self.space_id}), and this model's embedding "
                f"space is {space_id}: use that model, or run `pocketclip fit` with this one"
            )
        if embed_dim not in (None, self.embed_dim):
            raise DataError(
                f"{what} has weights of width {self.embed_dim}, and the model's embeddings have "
                f"{embed_dim}: the file is damaged; run `pocketclip fit` again"
            )

    def logits(self, embeddings: Embeddings) -> NDArray[np.float64]:
        """Return the logits (B, L) of unit image embeddings (B, D), without the temperature.

        Raises:
            EmbeddingError: an embedding is not finite.
            ValueError: the embeddings have another width.
        """
        embeddings = check_finite(embeddings, lambda row: image_name(None, row))
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embed_dim:
            raise ValueError(f"embeddings {embeddings.shape}; expected (B, {self.embed_dim})")
        product = embeddings.astype(np.float64) @ self.weights.T.astype(np.float64)
        return np.asarray(product + self.biases)

    def probabilities(self, embeddings: Embeddings) -> NDArray[np.float64]:
        """Return each label's probability (B, L); arguments and errors as for `logits`."""
        return self._softmax(self.logits(embeddings))

    def is_none(self, embeddings: Embeddings) -> NDArray[np.bool_]:
        """Return, per image (B,), whether it is none of the labels, by the rule `none`."""
        logits = self.logits(embeddings)
        if self.none is None:
            return np.zeros(len(logits), bool)
        scores = logits if self.none.score == "logit" else self._softmax(logits)
        return np.asarray(scores.max(axis=1) < self.none.below)

    def classify(self, embeddings: Embeddings) -> list[str | None]:
        """Return the best label per image (B, D); None for an image that is none of them."""
        best = self.logits(embeddings).argmax(axis=1).tolist()
        none = self.is_none(embeddings).tolist()
        return [None if n else self.labels[b] for b, n in zip(best, none, strict=True)]

    def rank(self, embeddings: Embeddings, top: int | None = None) -> list[dict[str, float]]:
        """Return, per image (B, D), the probabilities of the `top` labels or all, highest first."""
        return rank_probabilities(self.probabilities(embeddings), self.labels, top)

    def _softmax(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        below = logits - logits.max(axis=1, keepdims=True)
        with np.errstate(over="ignore"):  # at a tiny temperature, to a probability of 0
            exponentials = np.exp(below / self.temperature)
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file, see docs/reference/formats.md."""
        none = None
        if self.none is not None:
            none = {"score": self.none.score, "below": self.none.below, "error": self.none.error}
        weights = np.ascontiguousarray(self.weights, "<f4").tobytes()
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "space_id": self.space_id,
            "embed_dim": self.embed_dim,
            "labels": list(self.labels),
            "weights": base64.b64encode(weights).decode("ascii"),
            "biases": [float(bias) for bias in self.biases],
            "temperature": self.temperature,
            "none": none,
            "made": dict(self.made),
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=True, allow_nan=False)
        with write_whole(path) as temporary:
            temporary.write_text(text + "\n", "ascii")


def is_label_set(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a label set rather than a text with one label per line.

    Decided by its beginning: a JSON object. A file with an object of another kind counts too, so
    that `read_label_set` says what is wrong with it.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as stream:
        beginning = stream.read(_BEGINNING)
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"{") and text[1:].lstrip().startswith((b'"', b"}"))


def read_label_set(path: str | os.PathLike[str]) -> LabelSet:
    """Return the label set in a file.

    Raises:
        ParseError: the file is damaged, too large, not a label set, or of another version.
        OSError: it cannot be read.
    """
    what = str(path)
    with Path(path).open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    raw = load_json(data, what=what, max_bytes=MAX_BYTES, surrogates=True)
    if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
        raise ParseError(
            f'{what} is not a label set, whose "format" is "{FORMAT}": `pocketclip fit` writes one'
        )
    version = value_of(raw, "version", int, what=what)
    if version != VERSION:
        raise ParseError(
            f"{what} has version {version} of the format, and this pocketclip reads version "
            f"{VERSION}: update it, or run `pocketclip fit` again"
        )
    labels = items(raw, "labels", str, what=what)
    width = value_of(raw, "embed_dim", int, what=what)
    if not 0 < width <= MAX_WIDTH:
        raise ParseError(f'{what}: "embed_dim" is {width}; it must be 1 to {MAX_WIDTH:,}')
    biases = items(raw, "biases", float, what=what)
    weights = _weights(value_of(raw, "weights", str, what=what), len(labels), width, what)
    try:
        return LabelSet(
            labels=tuple(labels),
            weights=weights,
            biases=_float32(biases),
            space_id=value_of(raw, "space_id", str, what=what),
            model=value_of(raw, "model", str, what=what),
            temperature=value_of(raw, "temperature", float, what=what),
            none=_none(raw, what),
            made=value_of(raw, "made", dict, what=what, default={}),
        )
    except DataError as error:
        raise ParseError(f"{what}: {error}") from error


def _float32(values: Sequence[float]) -> Embeddings:
    with np.errstate(over="ignore"):  # the infinity is refused
        return np.array(values, np.float64).astype(np.float32)


def _weights(text: str, labels: int, width: int, what: str) -> Embeddings:
    size = 4 * labels * width
    if len(text) != 4 * math.ceil(size / 3):
        raise ParseError(
            f'{what}: "weights" has {len(text):,} characters, and {labels} labels of width {width} '
            f"need {4 * math.ceil(size / 3):,}: the file is damaged"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ParseError(f'{what}: "weights" is not base64: the file is damaged') from error
    if len(data) != size:
        raise ParseError(f'{what}: "weights" has {len(data):,} bytes, not {size:,}')
    return np.frombuffer(data, "<f4").reshape(labels, width).astype(np.float32)


def _none(raw: Mapping[str, Any], what: str) -> NoneOfThese | None:
    rule = value_of(raw, "none", dict, what=what, default=None)
    if rule is None:
        return None
    where = f'{what}: "none"'
    return NoneOfThese(
        score=value_of(rule, "score", str, what=where),
        below=value_of(rule, "below", float, what=where),
        error=value_of(rule, "error", float, what=where),
    )
