"""What is searched for: texts and photographs, with weights and signs.

    parse_query("2:beach + sunset - people")   # three parts with the weights 2, 1 and -1
    combine(embed_parts(parts, encoder), [part.weight for part in parts])  # one vector (D,)

    query  = [sign] part { space sign space part }
    part   = [weight ":"] ( text | photograph )

- A sign is `+` or `-` between spaces, or at the start: `t-shirt`, `C++` and `x-ray` are texts.
  Directly before a digit it belongs to the number (`-5 degrees`), unless that is a weight.
- A weight is a number over 0, up to 1000, before a colon that no digit follows: `0.5:beach`, but
  not `10:30` or `16:9`.
- A photograph begins with `./`, `../`, `/` or `~/`, or ends in the suffix of an image.
- Within double quotes around a whole part, everything is text: `"rock + roll" - people`.

Shapes: P parts, D embedding.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pocketclip.errors import QueryError
from pocketclip.formats.escaping import argument_text
from pocketclip.search.arguments import listed
from pocketclip.storage.photos import is_photograph

if TYPE_CHECKING:
    from pocketclip.images import ImageSource
    from pocketclip.types import Embeddings, Encoder

MAX_WEIGHT = 1000.0
_QUOTED = re.compile(r'(?<![^\s:])"[^"]*"(?!\S)')
_BETWEEN = re.compile(r"(?<!\S)[+-](?!\S)")
_WEIGHT = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?):(?![0-9])\s*")
_LEADING = re.compile(rf"\s*([+-])(?:(?![\d.])|(?={_WEIGHT.pattern}))")
_NO_NUMBER = re.compile(r"(nan|inf|infinity):\S", re.IGNORECASE)
_LOOSE_SIGN = re.compile(r"(?<=\s)-[^\W\d][\w-]*")
_URL = re.compile(r"https?://", re.IGNORECASE)
_LITERALLY = "to search for it as it is, use --text"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to look for, or to avoid."""

    weight: float
    """Negative: to avoid."""
    text: str | None = None
    photo: ImageSource | None = None
    """A path, or anything else that `pocketclip.images.open_image` takes; None: it is a text."""
    vector: Embeddings | None = field(default=None, compare=False)
    """The unit vector (D,) of the text or photograph, if it is known."""

    def __str__(self) -> str:
        sign, factor = "-" if self.weight < 0 else "+", abs(self.weight)
        times = "" if factor == 1 else f"{factor:g} x "
        if self.text is not None:
            return f'{sign} {times}"{self.text}"'
        is_path = isinstance(self.photo, (str, os.PathLike))
        return f"{sign} {times}{os.fspath(self.photo) if is_path else 'a photograph'}"  # type: ignore[arg-type]


def parse_query(query: str, *, files: bool = True) -> list[Part]:
    """Return the parts of a query, see the module.

    Args:
        query: the text.
        files: whether a photograph may be named by its path. False, for queries of others: such a
            part is refused, and nothing is looked up.

    Raises:
        QueryError: a part is empty, a weight is out of range, or a text is not UTF-8.
    """
    leading = _LEADING.match(query)
    begin = leading.end() if leading else 0
    signs = [leading[1] if leading else "+"]
    # Signs within quotes do not count. What stands for them here has the same length.
    masked = " " * begin + _QUOTED.sub(lambda found: "x" * len(found[0]), query[begin:])
    pieces = []
    for found in _BETWEEN.finditer(masked):
        pieces.append(query[begin : found.start()])
        signs.append(found[0])
        begin = found.end()
    pieces.append(query[begin:])
    return [
        _part(piece, sign, position, files=files)
        for position, (piece, sign) in enumerate(zip(pieces, signs, strict=True))
    ]


def text_part(text: str) -> Part:
    """Return a part with the whole of a text, whatever is in it.

    Raises:
        QueryError: it is empty, or not UTF-8.
    """
    decoded = argument_text(text)
    if decoded is None:
        raise _not_utf8(text)
    if not decoded.strip():
        raise QueryError("the text to search for is empty")
    return Part(1.0, decoded.strip())


def make_parts(
    query: str | Sequence[Part] | None = None,
    *,
    image: ImageSource | None = None,
    like: str | os.PathLike[str] | Iterable[ImageSource] = (),
    unlike: str | os.PathLike[str] | Iterable[ImageSource] = (),
    literal: bool = False,
    files: bool = True,
) -> list[Part]:
    """Return the parts of a query and of photographs beside it.

    Args:
        query: see the module; or its parts.
        image: a photograph that others should be like.
        like: more of them.
        unlike: photographs that others should not be like.
        literal: take `query` as one text.
        files: whether `query` may name photographs by their paths, see `parse_query`.

    Raises:
        QueryError: there is nothing to look for, or `query` cannot be understood.
    """
    if isinstance(query, str):
        parts = [text_part(query)] if literal else parse_query(query, files=files)
    else:
        parts = [*(query or ())]
        if not all(isinstance(part, Part) for part in parts):
            raise QueryError("a query is a text, or a list of pocketclip.search.query.Part")
    parts += [Part(1.0, photo=one) for one in [image, *listed(like)] if one is not None]
    parts += [Part(-1.0, photo=one) for one in listed(unlike)]
    if not parts:
        raise QueryError("there is nothing to search for: give a text or a photograph")
    for part in parts:
        if not 0 < abs(part.weight) <= MAX_WEIGHT:  # False for NaN
            raise QueryError(
                f"the weight {part.weight} of a part is not over 0, up to {MAX_WEIGHT:g}"
            )
    if all(part.weight < 0 for part in parts):
        raise QueryError(
            'every part is to be avoided: add one to look for, such as "photo - people"; or, for '
            "a text that begins with a sign, use --text"
        )
    return parts


def embed_parts(parts: Sequence[Part], encoder: Encoder) -> Embeddings:
    """Return the unit vectors (P, D) of the parts of a query, without their weights.

    Only parts without a vector are encoded.

    Raises:
        ImageError: a photograph cannot be opened.
        EmbeddingError: see `Encoder.encode_text`.
    """
    import numpy as np

    out = np.empty((len(parts), encoder.embed_dim), np.float32)
    unknown = (part.text for part in parts if part.vector is None and part.text is not None)
    texts = list(dict.fromkeys(unknown))
    vectors = dict(zip(texts, encoder.encode_text(texts), strict=True)) if texts else {}
    for row, part in enumerate(parts):
        if part.vector is not None:
            out[row] = part.vector
        elif part.text is not None:
            out[row] = vectors[part.text]
        else:
            out[row] = encoder.encode_image([part.photo])[0]
    return out


def combine(vectors: Embeddings, weights: Sequence[float]) -> Embeddings:
    """Return the unit vector (D,) of unit vectors (P, D), weighted and added.

    Raises:
        QueryError: they cancel each other.
    """
    import numpy as np

    factors = np.asarray(weights, np.float64)
    total = factors @ vectors.astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < 1e-4 * float(np.abs(factors).sum()):
        raise QueryError("the parts of the query cancel each other: nothing is left to search for")
    return np.asarray(total / length, np.float32)


def describe_parts(parts: Sequence[Part]) -> str | None:
    """Return how a query was read; None for one part without a weight."""
    if len(parts) == 1 and parts[0].weight == 1:
        return None
    return " ".join(map(str, parts)).removeprefix("+ ")


def doubtful_sign(parts: Sequence[Part]) -> str | None:
    """Return a word such as `-people` within a text, which was perhaps meant to be avoided."""
    found = (_LOOSE_SIGN.search(part.text or "") for part in parts)
    return next((match[0] for match in found if match), None)


def _part(piece: str, sign: str, position: int, *, files: bool) -> Part:
    piece, place = piece.strip(), f"part {position + 1} of the query"
    weight, rest = _split_weight(piece, place)
    if not rest:
        raise QueryError(
            f"{place} is empty: write a text or a photograph after each sign or weight; "
            f"{_LITERALLY}"
        )
    signed = -weight if sign == "-" else weight
    if _QUOTED.fullmatch(rest):
        if not rest.strip('"').strip():
            raise QueryError(f"{place} is empty: {rest}")
        return Part(signed, _decoded(rest[1:-1].strip()))
    if _LEADING.match(rest):
        raise _refusal(
            repr(rest), place, f"begins with a second sign: write one sign per part; {_LITERALLY}"
        )
    if _URL.match(rest):
        raise _refusal(rest, place, "is not fetched: download it, and search for the file")
    if _is_path(rest):
        if not files:
            raise _refusal(
                rest, place, "names a file, and files of this machine are not read: send the "
                f"photograph itself, or put the text in double quotes; {_LITERALLY}"
            )  # fmt: skip
        path = Path(rest).expanduser()
        if not path.is_file():
            raise QueryError(
                f"there is no photograph {rest}; to search for this text, put it in double quotes "
                "or use --text"
            )
        return Part(signed, photo=path)
    return Part(signed, _decoded(rest))


def _refusal(words: str, place: str, trouble: str) -> QueryError:
    return QueryError(f"{words} {trouble}", f"{place} {trouble}")


def _split_weight(piece: str, place: str) -> tuple[float, str]:
    found = _WEIGHT.match(piece)
    if not found:
        if _NO_NUMBER.match(piece):
            trouble = f"a weight is a number over 0; {_LITERALLY}"
            raise QueryError(f"{piece!r}: {trouble}", f"{place}: {trouble}")
        return 1.0, piece
    weight = float(found[1])
    if not 0 < weight <= MAX_WEIGHT or not math.isfinite(weight):
        trouble = (
            f"must be over 0 and at most {MAX_WEIGHT:g} (to avoid something, "
            f'write "- text"); {_LITERALLY}'
        )
        raise _refusal(f"the weight {found[1]}", f"the weight of {place}", trouble)
    return weight, piece[found.end() :]


def _is_path(text: str) -> bool:
    begins = ("./", "../", "/", "~/", *((".\\", "..\\") if os.sep == "\\" else ()))
    return text.startswith(begins) or Path(text).is_absolute() or is_photograph(text)


def _decoded(text: str) -> str:
    decoded = argument_text(text)
    if decoded is None:
        raise _not_utf8(text)
    return decoded


def _not_utf8(text: str) -> QueryError:
    trouble = "is not UTF-8: check the terminal's locale"
    return QueryError(f"the text {text!r} {trouble}", "a text of the query is not UTF-8")
