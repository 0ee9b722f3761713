from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from pocketclip import tokenizer as module
from pocketclip.errors import TokenizerError
from pocketclip.tokenizer import Tokenizer, clean, is_plain

GOLDEN = Path(__file__).parent / "golden" / "tokenizer"
LONG = "word " * 100


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer()


def _cases() -> list[Any]:
    # cases.json: ordinary captions; extra.json: hostile ones. Both are open_clip 3.3's answers.
    out = []
    for name in ("cases.json", "extra.json"):
        cases = json.loads((GOLDEN / name).read_text())
        out += [pytest.param(c["text"], c["ids"], id=f"{name}-{i}") for i, c in enumerate(cases)]
    return out


@pytest.mark.filterwarnings("ignore:.*context length")
@pytest.mark.parametrize(("text", "ids"), _cases())
def test_ids_equal_the_published_ones(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    row = tokenizer(text)[0].tolist()
    assert row == ids + [0] * (77 - len(ids))


def test_a_row_is_start_ids_end_and_zeros(tokenizer: Tokenizer) -> None:
    out = tokenizer(["a photo of a dog", ""], 10)
    assert out.dtype == np.int64
    assert out.tolist() == [
        [49406, 320, 1125, 539, 320, 1929, 49407, 0, 0, 0],
        [49406, 49407, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_shapes(tokenizer: Tokenizer) -> None:
    assert tokenizer("one").shape == (1, 77)
    assert tokenizer(("one", "two")).shape == (2, 77)
    assert tokenizer([], 9).shape == (0, 9)


def test_facts(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)
    assert tokenizer.fingerprint == "4bc0f39bfab1a748"  # a change is another embedding space


def test_encode_has_no_specials_and_no_limit(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a dog") == [320, 1929]
    assert len(tokenizer.encode(LONG)) == 100
    assert tokenizer.truncated == 0


# --- the fast path and the byte-pair model are exact


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x80), max_size=40))
def test_plain_text_needs_no_cleaning(text: str) -> None:
    if is_plain(text):
        assert ftfy.fix_text(text) == text
        assert clean(text) == " ".join(text.split()).lower()


@given(st.lists(st.sampled_from(["&", " ", ";", "#", "x41", "65", "amp", "lt", "<", "a"])))
def test_plain_text_has_no_entities(pieces: list[str]) -> None:
    text = "".join(pieces)
    if is_plain(text):
        assert clean(text) == " ".join(text.split()).lower()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_fast_and_slow_path_give_equal_ids(text: str) -> None:
    tokenizer = Tokenizer()
    fast = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "is_plain", lambda _text: False)
        assert tokenizer.encode(text) == fast


def test_plain_captions_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: str) -> str:
        raise AssertionError("cleaned")

    monkeypatch.setattr(module, "clean", refuse)
    Tokenizer()(["A dog (brown), 100% good!", "Tom & Jerry & Co"])


@pytest.mark.parametrize("text", ["é", "a\nb", "a\tb", "&amp;", "R&D", "&", "\x7f", "&& "])
def test_other_text_takes_the_slow_path(text: str) -> None:
    assert not is_plain(text)


def test_merges_build_on_earlier_merges_only() -> None:
    # Every symbol has one derivation, from symbols made before it. So a merge can never open
    # the way to an earlier one, and merging by a queue, as the library does, gives the same as
    # merging all occurrences of the best pair in turn, as was published.
    vocabulary = module._Vocabulary()
    assert len(set(vocabulary.symbols)) == 49406
    _, merges = _merges()
    known = set(vocabulary.symbols[:512])
    for first, second in merges:
        assert {first, second} <= known
        assert first + second not in known
        known.add(first + second)


def _merges() -> tuple[dict[tuple[str, str], int], list[tuple[str, str]]]:
    import gzip

    lines = gzip.decompress(module._data(module._FILE)).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 1]]
    return {pair: i for i, pair in enumerate(merges)}, merges  # type: ignore[return-value, misc]


def test_words_equal_a_plain_byte_pair_encoding() -> None:
    ranks, _ = _merges()
    rng = random.Random(0)
    alphabets = ("ab", "aeinorst", "abcdefghijklmnopqrstuvwxyz", "!?.-='")
    vocabulary = module._Vocabulary()
    for _ in range(300):
        word = "".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 40)))
        parts = [*word[:-1], word[-1] + "</w>"]
        while True:
            pairs = set(itertools.pairwise(parts)) & ranks.keys()
            if not pairs:
                break
            first, second = min(pairs, key=ranks.__getitem__)
            merged, i = [], 0
            while i < len(parts):
                here = parts[i : i + 2] == [first, second]
                merged.append(first + second if here else parts[i])
                i += 2 if here else 1
            parts = merged
        assert [vocabulary.symbols[i] for i in vocabulary[word]] == parts


def test_the_word_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = module._Vocabulary()
    monkeypatch.setattr(module, "_CACHE_WORDS", 4)
    for word in ("one", "two", "three", "four", "one"):
        assert vocabulary[word]
    assert len(vocabulary) == 4
    assert len(vocabulary["a" * 1000]) == len(vocabulary["a" * 1000]) > 100


# --- hostile text


@given(st.text(st.characters(), max_size=60))  # surrogates included
def test_any_text_gives_a_row(text: str) -> None:
    out = Tokenizer()(text + "\ud800", 100_000)
    assert 0 <= out.min() <= out.max() == 49407


def test_special_tokens_are_found_only_where_a_word_may_begin(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<start_of_text>") == [49406]
    assert tokenizer.encode("a <END_OF_TEXT>s") == [320, 49407, 338]
    assert 49406 not in tokenizer.encode(",<start_of_text>")
    assert 49406 not in tokenizer.encode("<ſtart_of_text>")


# --- truncation


def test_truncation_keeps_the_end_token_and_warns_once(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match="2 of 3 texts exceed the context length of 8 tokens"):
        out = tokenizer([LONG, "short", LONG], 8)
    assert out[:, 0].tolist() == [49406] * 3
    assert out[0, -1] == out[2, -1] == 49407
    assert out[0, 1:7].tolist() == tokenizer.encode(LONG)[:6]
    tokenizer(LONG)  # a second warning would be an error here
    assert tokenizer.truncated == 3
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        Tokenizer()(LONG)


@pytest.mark.parametrize(
    "words", ["it's 1,000 dogs! ", "Ein Überblick: 猫猫 2024! ", "&amp;é<b> ", "é\n"]
)
def test_the_rest_of_a_long_text_changes_nothing(words: str) -> None:
    text = words * 700
    tokenizer = Tokenizer(warn=False)
    for length in (3, 77, 500):
        whole = tokenizer.encode(text)
        assert tokenizer(text, length)[0].tolist() == [
            tokenizer.start_id, *whole[: length - 2], tokenizer.end_id
        ]  # fmt: skip
        assert tokenizer.truncated
        tokenizer.truncated = 0


def test_the_warning_points_at_the_caller(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match="truncated") as caught:
        tokenizer(LONG)
    assert caught[0].filename == __file__


def test_a_text_that_just_fits_is_not_truncated(tokenizer: Tokenizer) -> None:
    assert tokenizer("a " * 6, 8)[0].tolist() == [49406, *[320] * 6, 49407]
    assert tokenizer("a", 3)[0].tolist() == [49406, 320, 49407]
    assert tokenizer.truncated == 0


# --- decoding


def test_decode_a_row_and_a_batch(tokenizer: Tokenizer) -> None:
    texts = ["a crème brûlée , 2020 !", "", "日本語 🐶"]
    rows = tokenizer(texts)
    assert tokenizer.decode(rows) == ["a crème brûlée , 2 0 2 0 !", "", "日本語 🐶"]
    assert tokenizer.decode(rows.tolist()) == tokenizer.decode(rows)
    assert tokenizer.decode(rows[0]) == "a crème brûlée , 2 0 2 0 !"
    assert tokenizer.decode(tokenizer.encode("it's")) == "it 's"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(np.zeros((0, 77), np.int64)) == []


def test_decode_tells_padding_from_exclamation_marks(tokenizer: Tokenizer) -> None:
    text = "!?!?-!!!?!-!"
    ids = tokenizer.encode(text)
    assert 0 in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, 0, 0]) == text


def test_decode_replaces_cut_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("🫠")[:1]) == "\ufffd"


@given(st.text(st.characters(codec="utf-8", categories=["Ll", "Lo"]), min_size=1, max_size=20))
def test_words_survive_encode_and_decode(word: str) -> None:
    cleaned = clean(word)
    decoded = Tokenizer().decode(Tokenizer().encode(word))
    assert decoded.replace(" ", "") == cleaned.replace(" ", "").replace("\u0345", "")


@pytest.mark.parametrize("ids", [[49408], [-1], [1.5], ["a"], "abc", 5, [[1], [99999]], [None]])
def test_decode_refuses_invalid_ids(tokenizer: Tokenizer, ids: Any) -> None:
    with pytest.raises(TokenizerError):
        tokenizer.decode(ids)


# --- errors


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 3], "text 1 must be a string, not int"),
        ([None], "text 0 must be a string, not NoneType"),
        ([["a"]], "text 0 must be a string, not list"),
        ([b"a"], "text 0 must be a string, not bytes"),
        (b"abc", "not bytes"),
        (None, "not NoneType"),
        (7, "not int"),
    ],
)
def test_texts_must_be_strings(tokenizer: Tokenizer, texts: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer(texts)


def test_encode_needs_a_string(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="not list"):
        tokenizer.encode(["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [2, 0, -5, 7.0, None, "77"])
def test_context_length_is_checked(tokenizer: Tokenizer, length: Any) -> None:
    with pytest.raises(TokenizerError, match="context_length"):
        tokenizer("a", length)


# --- processes and threads


def test_pickle_and_copy_keep_the_count(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match="truncated"):
        tokenizer(LONG)
    for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert other.truncated == 1
        assert other("a dog").tolist() == tokenizer("a dog").tolist()
    assert len(pickle.dumps(tokenizer)) < 500  # the vocabulary stays behind


def test_threads_agree() -> None:
    tokenizer = Tokenizer()
    texts = [f"photo {i} of a {w}" for i in range(50) for w in ("dög", "cat")] + [LONG]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = tokenizer(texts)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: tokenizer(texts), range(40)))
    assert all(np.array_equal(r, expected) for r in results)
    assert tokenizer.truncated == 41


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_works_after_a_fork() -> None:
    code = (
        "import os\n"
        "from pocketclip.tokenizer import Tokenizer\n"
        "t = Tokenizer(); before = t(['a dog'] * 100).tolist()\n"
        "child = os.fork()\n"
        "after = t(['a dog'] * 100).tolist()\n"
        "if not child: os._exit(after != before)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")


@functools.lru_cache(maxsize=1)
def _portable() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(module.portable())


def test_the_portable_tokenizer_gives_the_same_ids() -> None:
    """Of every ordinary caption; it repairs neither mojibake nor HTML entities, as documented."""
    cases = json.loads((GOLDEN / "cases.json").read_text())
    needs_no_repair = [c for c in cases if " ".join(c["text"].lower().split()) == clean(c["text"])]
    assert len(needs_no_repair) > 0.8 * len(cases)
    for case in needs_no_repair:
        ids = _portable().encode(case["text"]).ids
        assert ids == case["ids"] + [0] * (77 - len(case["ids"])), case["text"]


@pytest.mark.filterwarnings("ignore:.*context length")
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<&")))
def test_the_portable_tokenizer_on_plain_text(text: str) -> None:
    assert _portable().encode(text).ids == Tokenizer()(text)[0].tolist()


def test_the_portable_tokenizer_cuts_and_pads_to_the_context() -> None:
    assert _portable().encode("").ids == [49406, 49407] + [0] * 75
    assert _portable().encode(LONG).ids == [49406] + [2653] * 75 + [49407]
    short = tokenizers.Tokenizer.from_str(module.portable(10))
    assert short.encode("a photo of a dog").ids == [
        49406,
        320,
        1125,
        539,
        320,
        1929,
        49407,
        0,
        0,
        0,
    ]
    assert len(short.encode(LONG).ids) == 10


def test_few_words_are_merged_as_the_library_does() -> None:
    vocabulary = module._vocabulary()
    cases = json.loads((GOLDEN / "cases.json").read_text())
    words = {word for case in cases for word in vocabulary.words(case["text"])}
    assert len(words) > 100
    for word in [*words, "supercalifragilistic", "aaaaaaaaaaaa", "🌸🌸", "x" * 32]:
        symbols = word.encode().decode("latin-1").translate(vocabulary.byte_symbols)
        expected = tuple(token.id for token in vocabulary.model.tokenize(symbols))
        assert vocabulary.merged(symbols) == expected, word
