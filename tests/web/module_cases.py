"""Cases that the tests of the web pages' modules compare with: what Python makes of the same input.

Each function fills a folder, which `node --test` finds by the variable `POCKETCLIP_CASES`.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import PIL

from pocketclip.infer.zero_shot import average_prompts, rank_labels
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import CONTEXT_LENGTH, Tokenizer, portable
from pocketclip.zoo import CLIP_MEAN, CLIP_STD, PreprocessConfig

_GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizer"
# What only Python does, besides mending wrong encodings: the long s in a contraction, special
# tokens behind punctuation, rare entities, letters that no version of Unicode has.
_RARE = re.compile(
    r"ſ|[^\s\w]<(start|end)_of_text|&(?!(amp|euro);|#)|[\U00030000-\U0003ffff]", re.I
)

# width, height, side: smaller and larger than the side, one axis as it is, halves of both kinds,
# tall ones (heights first), and lines of which only the crop is computed.
_PIXELS = (
    *((1, 1, 16), (7, 1, 16), (1, 7, 16), (31, 33, 64), (64, 64, 64), (64, 65, 64), (67, 64, 64)),
    *((97, 65, 64), (300, 256, 256), (640, 480, 256), (480, 640, 256), (127, 383, 64)),
    *((383, 127, 64), (100, 200, 50), (100, 201, 50), (117, 253, 64), (20, 900, 64)),
    *((3, 2000, 256), (2000, 3, 256), (2, 9000, 64)),
)


def write_pixels(folder: Path) -> None:
    """Write images, and the square of each as `Preprocess` makes it."""
    noise = np.random.RandomState(0)
    cases: list[dict[str, Any]] = []
    for width, height, side in _PIXELS:
        if height > 2 * width and int(PIL.__version__.partition(".")[0]) < 13:
            continue  # older versions resize the widths of tall images first
        for interpolation in ("bilinear", "bicubic"):
            config = PreprocessConfig(
                size=side, interpolation=interpolation, mean=CLIP_MEAN, std=CLIP_STD
            )
            rgba = noise.randint(0, 256, (height, width, 4)).astype(np.uint8)
            half = rgba[: height // 2, : width // 2]  # black and white, where bicubic overshoots
            half[...] = (half > 127) * np.uint8(255)
            preprocess = Preprocess(config)
            name = str(len(cases))
            rgba.tofile(folder / f"{name}.rgba")
            preprocess.to_uint8(rgba[..., :3]).tofile(folder / f"{name}.square")
            preprocess(rgba[..., :3]).tofile(folder / f"{name}.tensor")
            cases.append(
                {
                    **{"name": name, "width": width, "height": height, "size": side},
                    **{"interpolation": interpolation, "mean": CLIP_MEAN, "std": CLIP_STD},
                }
            )
    (folder / "pixels.json").write_text(json.dumps(cases), "utf-8")


def write_zero_shot(folder: Path) -> None:
    """Write unit embeddings of prompts and images, classifiers and ranked labels."""
    noise = np.random.RandomState(1)
    cases = []
    for labels, prompts, width, scale in ((1, 1, 8, 100.0), (9, 3, 512, 100.0), (200, 7, 64, 13.4)):
        texts, images = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (noise.randn(labels * prompts, width), noise.randn(5, width))
        )
        texts, images = texts.astype(np.float32), images.astype(np.float32)
        names = [f"label {position}" for position in range(labels)]
        classifier = average_prompts(texts, names)
        ranked = rank_labels(images, classifier, names, scale)
        cases.append(
            {
                **{"labels": names, "prompts": prompts, "scale": scale, "texts": texts.tolist()},
                **{"images": images.tolist(), "classifier": classifier.tolist()},
                "ranked": [[[label, p] for label, p in one.items()] for one in ranked],
            }
        )
    (folder / "zero_shot.json").write_text(json.dumps(cases), "utf-8")


def write_tokens(folder: Path) -> None:
    """Write texts and their ids, and the tokenizer's file."""
    texts = [
        case["text"]
        for name in ("cases", "extra")
        for case in json.loads((_GOLDEN / f"{name}.json").read_text("utf-8"))
    ]
    texts += _texts(random.Random(0))
    texts = [text for text in texts if ftfy.fix_encoding(text) == text and not _RARE.search(text)]
    tokenizer = Tokenizer(warn=False)
    cases = [
        {"text": text, "ids": row, "cut": len(tokenizer.encode(text)) > CONTEXT_LENGTH - 2}
        for text, row in zip(texts, tokenizer(texts).tolist(), strict=True)
    ]
    (folder / "tokens.json").write_text(json.dumps(cases), "utf-8")
    (folder / "tokenizer.json").write_text(portable(), "utf-8")


def _texts(chance: random.Random) -> list[str]:
    texts = [
        *("", "   ", "it’s a dog’s “bone”", "Ａ　ｐｈｏｔｏ", "ﬁne ﬂower ﬀ ﬃ ﬅ ﬆ ĳs Ǆ ǆ ŉ"),
        *("tom &amp; jerry", "&amp;amp; &#39; &#x27; &#8217; &#128; &#0; &#xD800;", "<b> &amp; x"),
        *("\x1b[31mred\x1b[0m", "a\x00b\x07c\x0bd\x0ce\x1cf\x7fh", "a\x80b\x93c\x94\x85d"),
        *("\ufeffa\ufeff b", "a\u2028b\u2029c\r\nd\re", "a\ud800b \udc00c", "\u200ba\u200db"),
        *(
            "e\u0301 é",
            "İstanbul I ı",
            "ΑΣ ΟΔΟΣ",
            "Straße",
            "عربي نص",
            "日本語のテキスト",
            "한국어",
        ),
        *("हिन्दी", "ไทย", "\u202eabc\u202c", "👩‍👩‍👧‍👦 🇩🇪 ✊🏽", "DON'T we'll they've"),
        *("a_b-c/d\\e", "a\u3000b\u00a0c", "a\u0345b", "<START_OF_TEXT> a <end_of_text>"),
        *("½ ² Ⅷ ৪ 1234567890", "ｶﾀｶﾅ ￥１００", "«‚„»‹›…—", "&euro;"),
        *("a" * 4000, "ab " * 1300, "🎉" * 2000, "x y " * 50_000, "word " * 75, "word " * 76),
    ]
    spans = [(0x20, 0x7E), (0xA1, 0x17F), (0x384, 0x3FF), (0x400, 0x52F), (0x620, 0x64A)]
    spans += [(0x905, 0x939), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)]
    spans += [(0x1F300, 0x1F5FF), (0x2010, 0x2027), (0xFF01, 0xFF9F), (0x2190, 0x21FF)]
    for _ in range(400):
        several = chance.sample(spans, 3)
        count = chance.randint(1, 40)
        letters = [chr(chance.randint(*chance.choice(several))) for _ in range(count)]
        texts.append("".join(letter if chance.random() < 0.85 else " " for letter in letters))
    return texts


WRITERS = (write_pixels, write_zero_shot, write_tokens)
