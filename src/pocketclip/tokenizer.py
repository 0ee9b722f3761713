"""CLIP's tokenizer: texts to rows of byte-pair ids, and back.

    ids = Tokenizer()(["a photo of a dog", "a cat"])  # int64 (2, 77)

A text is cleaned (mojibake repaired, HTML entities resolved, white space collapsed, lower case),
cut into words by CLIP's pattern, and each word is split into byte pairs by the `tokenizers`
library; words already seen come from a cache. Vocabulary and scheme: CLIP (arXiv 2103.00020).

Shapes: B batch, T tokens (the context length).
"""

from __future__ import annotations

import bisect
import functools
import gzip
import hashlib
import html
import itertools
import operator
import os
import re
import threading
import warnings
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketclip.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import models

CONTEXT_LENGTH = 77
PAD = 0
"""The id that fills a row behind its text."""

_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # the file lists more than CLIP uses
_END_OF_WORD = "</w>"
_START, _END = "<start_of_text>", "<end_of_text>"
# Part of the fingerprint; raise it when a change to this file changes ids.
_CLEANING = "lower-1"

# Applied to lower-case text with single spaces.
_WORD = re.compile(rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")

# Bounded, as a server would leak memory otherwise; long words rarely repeat.
_CACHE_WORDS = 1 << 17
_CACHE_WORD_LENGTH = 64
# Of longer texts only the beginning is split, though each word takes longer then.
_LONG = 1000
# The library's model is 20 times faster, but building it takes as long as some thousand words.
_FEW_WORDS = 500
_SHORT_WORD = 32


def clean(text: str) -> str:
    """Return `text` repaired, unescaped, in lower case and with single spaces."""
    import ftfy  # rarely needed, and half of the import time of this module

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def is_plain(text: str) -> bool:
    """Return whether cleaning `text` only changes its case and white space.

    True only for printable ASCII in which no ampersand can begin an HTML entity: other repairs of
    ftfy concern control characters and non-ASCII text.
    """
    return (
        text.isascii()
        and text.isprintable()
        and ("&" not in text or "&" not in text.replace("& ", ""))
    )


class _Classes(dict[int, str]):
    """Maps a code point to an ASCII character that the word pattern treats the same way.

    This makes the pattern independent of Python's Unicode version. Filled on demand.
    """

    def __init__(self) -> None:
        super().__init__({code: chr(code) for code in range(128)})
        # The published pattern ignores case: the long s counts as an s, and the combining iota is
        # neither inside nor outside the class of letters, so it is skipped like a space.
        self.update({ord("ſ"): "s", 0x345: " "})
        self._bounds: list[int] = []
        self._kinds: list[str] = []
        lines = _data("unicode_classes.txt").decode().splitlines()
        # z is in no contraction and no special token, so it can represent any letter.
        kind = {"[letters]": "z", "[numbers]": "0"}
        spans = []
        for line in lines:
            if line.startswith("["):
                current = kind[line]
            elif not line.startswith("#"):
                for span in line.split():
                    first, _, last = span.partition("-")
                    spans.append((int(first, 16), int(last or first, 16), current))
        for low, high, name in sorted(spans):
            self._bounds += [low, high + 1]
            self._kinds += [name, "!"]

    def __missing__(self, code: int) -> str:
        span = bisect.bisect_right(self._bounds, code) - 1
        kind = self[code] = self._kinds[span] if span >= 0 else "!"
        return kind


def _data(name: str) -> bytes:
    return (resources.files("pocketclip") / "data" / name).read_bytes()


def _byte_symbols() -> list[str]:
    """Return the character that represents each byte: itself if visible, else one from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


class _Vocabulary(dict[str, tuple[int, ...]]):
    """The ids of words: a cache for the byte-pair model, shared by all tokenizers."""

    def __init__(self) -> None:
        # Uses operations on whole lists, as every short command waits for this.
        lines = gzip.decompress(_data(_FILE)).decode().split("\n", _MERGES + 1)
        self.merges = lines[1:-1]  # after the version line; each is "a b"
        bytes_ = _byte_symbols()
        self.byte_symbols = dict(enumerate(bytes_))
        # Ids count the visible bytes first, then the others, in the order of their symbols.
        bytes_ = sorted(bytes_)
        joined = [line.replace(" ", "", 1) for line in self.merges]
        self.symbols = [*bytes_, *(s + _END_OF_WORD for s in bytes_), *joined]
        self.ids = dict(zip(self.symbols, range(len(self.symbols)), strict=True))
        self.ranks = dict(zip(self.merges, range(len(self.merges)), strict=True))
        self.start, self.end = len(self.ids), len(self.ids) + 1
        self.classes = _Classes()
        self.few = _FEW_WORDS
        super().__init__({_START: (self.start,), _END: (self.end,)})

    @functools.cached_property
    def model(self) -> models.BPE:
        """The byte-pair model of the `tokenizers` library, which is slow to build."""
        from tokenizers import models  # a command with few labels does without

        merges = [(a, b) for a, b in (line.split(" ") for line in self.merges)]
        return models.BPE(vocab=self.ids, merges=merges, end_of_word_suffix=_END_OF_WORD)

    def __missing__(self, word: str) -> tuple[int, ...]:
        symbols = word.encode().decode("latin-1").translate(self.byte_symbols)
        if self.few > 0 and len(symbols) <= _SHORT_WORD:
            self.few -= 1
            ids = self.merged(symbols)
        else:
            ids = tuple([token.id for token in self.model.tokenize(symbols)])
        if len(word) <= _CACHE_WORD_LENGTH and len(self) < _CACHE_WORDS:
            self[word] = ids
        return ids

    def merged(self, symbols: str) -> tuple[int, ...]:
        """Return the ids of a word by repeatedly merging the pair of the lowest rank."""
        parts = [*symbols[:-1], symbols[-1] + _END_OF_WORD]
        never = len(self.ranks)
        while len(parts) > 1:
            pairs = [self.ranks.get(f"{a} {b}", never) for a, b in itertools.pairwise(parts)]
            best = min(pairs)
            if best == never:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return tuple([self.ids[part] for part in parts])

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each id; the end of a word is a space."""
        values = {symbol: byte for byte, symbol in self.byte_symbols.items()}
        out = []
        for symbol in self.symbols:
            stem = symbol.removesuffix(_END_OF_WORD)
            out.append(bytes(values[c] for c in stem) + b" " * (stem != symbol))
        return [*out, _START.encode(), _END.encode()]

    def words(self, text: str, most: int | None = None) -> list[str]:
        """Split a text into words.

        Args:
            text: any text.
            most: number of words after which the rest of a long text may be left out.
        """
        if is_plain(text):
            return _find_words(text.lower(), most)  # skips any number of spaces
        text = clean(text)
        if text.isascii():
            return _find_words(text, most)
        classes = text.translate(self.classes)  # character for character
        return [text[m.start() : m.end()] for m in itertools.islice(_WORD.finditer(classes), most)]


def _find_words(text: str, most: int | None) -> list[str]:
    if most is None or len(text) < _LONG:
        return _WORD.findall(text)
    return [m.group() for m in itertools.islice(_WORD.finditer(text), most)]


_vocabulary = functools.lru_cache(maxsize=1)(_Vocabulary)


@functools.lru_cache(maxsize=1)
def fingerprint() -> str:
    """Return a short hash of vocabulary and cleaning, without building the vocabulary."""
    return hashlib.sha256(_data(_FILE) + _CLEANING.encode()).hexdigest()[:16]


_counting = threading.Lock()


def _renew_lock() -> None:
    global _counting
    _counting = threading.Lock()


# After a fork while another thread counts, nobody would release the lock in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Tokenizer:
    """CLIP's byte-pair tokenizer, equal id for id to the published one.

    Instances share the vocabulary, so all but the first are cheap. They can be used from several
    threads and after a fork, and can be pickled. The `tokenizers` library is called word by word
    and starts no threads, so TOKENIZERS_PARALLELISM has no effect.

    Args:
        warn: warn the first time that a text is truncated.

    Attributes:
        truncated: number of texts truncated to the context length so far.
    """

    def __init__(self, *, warn: bool = True) -> None:
        self.truncated = 0
        self._warned = not warn
        _vocabulary()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[()], dict[str, Any]]:
        return Tokenizer, (), dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint!r})"

    @property
    def vocab_size(self) -> int:
        """The number of ids, including the two special tokens (49408)."""
        return self.end_id + 1

    @property
    def start_id(self) -> int:
        """The id of the start token (49406)."""
        return _vocabulary().start

    @property
    def end_id(self) -> int:
        """The id of the end token (49407), the highest id."""
        return _vocabulary().end

    @property
    def fingerprint(self) -> str:
        """A short hash of vocabulary and cleaning: part of an embedding space's identity."""
        return fingerprint()

    def __call__(
        self, texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH
    ) -> NDArray[np.int64]:
        """Return the ids of one text or several, int64 (B, T), each row padded with zeros.

        A row is the start token, the text and the end token. A text that is too long is truncated
        before the end token; each tokenizer warns the first time.

        Raises:
            TokenizerError: an item is not a string, or `context_length` is below 3.
        """
        length = _checked_length(context_length)
        texts = _checked_texts(texts)
        vocabulary = _vocabulary()
        start, end = vocabulary.start, vocabulary.end
        flat: list[int] = []
        lengths = []
        truncated = 0
        for text in texts:
            ids = [start]
            for word in vocabulary.words(text, length):  # each has one id at least
                ids += vocabulary[word]
            if len(ids) >= length:
                del ids[length - 1 :]
                truncated += 1
            ids.append(end)
            flat += ids
            lengths.append(len(ids))
        out = np.full((len(texts), length), PAD, np.int64)
        out[np.arange(length) < np.array(lengths, np.int64)[:, None]] = flat
        if truncated:
            self._count(truncated, len(texts), length)
        return out

    def _count(self, truncated: int, total: int, length: int) -> None:
        with _counting:
            self.truncated += truncated
            first, self._warned = not self._warned, True
        if first:
            warnings.warn(
                f"{truncated} of {total} texts exceed the context length of {length} tokens and "
                "were truncated (shown once; see Tokenizer.truncated)",
                stacklevel=3,
            )

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without truncation, start token and end token.

        Raises:
            TokenizerError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"a text must be a string, not {type(text).__name__}")
        vocabulary = _vocabulary()
        return [i for word in vocabulary.words(text) for i in vocabulary[word]]

    @overload
    def decode(self, ids: Sequence[int]) -> str: ...
    @overload
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...
    @overload
    def decode(self, ids: ArrayLike) -> str | list[str]: ...
    def decode(self, ids: Any) -> str | list[str]:
        """Return the text of one row of ids (T,), or the texts of a batch (B, T).

        Reads up to the first end token. The text stays in lower case with single spaces; bytes that
        are not UTF-8 (a truncated character) become U+FFFD.

        Raises:
            TokenizerError: an id is not a whole number from 0 to 49407.
        """
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        if not isinstance(rows, Iterable):
            raise TokenizerError(f"ids must be one row or a batch of rows, not {rows!r}")
        rows = list(rows)
        if (rows and isinstance(rows[0], Iterable)) or getattr(ids, "ndim", 1) == 2:
            return [self._decode_row(row) for row in rows]
        return self._decode_row(rows)

    def _decode_row(self, row: Iterable[int]) -> str:
        vocabulary = _vocabulary()
        pieces = vocabulary.pieces
        try:
            ids = [operator.index(i) for i in row]
        except TypeError as error:
            raise TokenizerError(f"ids must be whole numbers: {error}") from None
        invalid = next((i for i in ids if not 0 <= i < len(pieces)), None)
        if invalid is not None:
            raise TokenizerError(f"id {invalid} is not in the vocabulary of {len(pieces)} ids")
        if vocabulary.end in ids:
            del ids[ids.index(vocabulary.end) :]
        # Zero is the id of an exclamation mark within a word, and never ends a text.
        while ids and ids[-1] == 0:
            ids.pop()
        text = b"".join([pieces[i] for i in ids if i != vocabulary.start])
        return text.decode(errors="replace").strip()


def portable(context_length: int = CONTEXT_LENGTH) -> str:
    """Return the tokenizer as JSON in the format of the `tokenizers` library.

    For phones and browsers: it lowers case, truncates, pads and adds the special tokens like
    `Tokenizer`, but repairs neither mojibake nor HTML entities.
    """
    import tokenizers
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

    vocabulary = _vocabulary()
    model = vocabulary.model
    out = tokenizers.Tokenizer(model)
    out.add_special_tokens([_START, _END])
    out.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    out.decoder = decoders.ByteLevel()
    out.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(_START, vocabulary.start), (_END, vocabulary.end)],
    )
    out.enable_truncation(context_length)
    out.enable_padding(length=context_length, pad_id=PAD, pad_token="!")
    return out.to_str()


def _checked_length(context_length: int) -> int:
    try:
        length = operator.index(context_length)
    except TypeError:
        kind = type(context_length).__name__
        raise TokenizerError(f"context_length must be a whole number, not {kind}") from None
    if length < 3:
        raise TokenizerError(f"context_length must be at least 3 (start, text, end), not {length}")
    return length


def _checked_texts(texts: Any) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        kind = type(texts).__name__
        raise TokenizerError(f"texts must be a string or a list of strings, not {kind}")
    out = list(texts)
    for position, text in enumerate(out):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise TokenizerError(f"text {position} must be a string, not {kind}")
    return out
