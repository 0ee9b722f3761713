"""Time the tokenizer against open_clip's on generated captions.

    python benchmarks/tokenizer.py [--captions 10000] [--rounds 5] [--mix all|plain|accented]

Both run in turn in one process; the result is the median over rounds. Where open_clip cannot be
imported, only ours is timed. The captions are the same on every machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

from peers import import_open_clip
from pocketclip.tokenizer import Tokenizer

SUBJECTS = (
    "a golden retriever", "two children", "the old lighthouse", "a bowl of ramen", "an espresso",
    "vintage T-shirt (size XL)", "a red Volkswagen Beetle", "my grandmother's garden", "a kite",
    "Nikon D750 24-120mm kit", "abstract watercolour", "the 14th-century manuscript", "a bride",
)  # fmt: skip
ACTIONS = (
    "running on the beach", "standing in front of", "on a wooden table", "seen from above",
    "for sale - free shipping!", "at sunset, 2019", "playing with", "parked next to", "isn't it?",
    "in the rain", "stock photo, royalty free", "(close-up)", "#travel #photography",
)  # fmt: skip
PLACES = (
    "Central Park, New York", "the kitchen", "a snowy mountain", "London", "Lake Tahoe", "Route 66",
    "a crowded street market", "room 101", "the museum's main hall", "Yosemite National Park",
)  # fmt: skip
ACCENTED = (
    "crème brûlée", "São Paulo", "piñata", "Café de Flore", "Straße in München", "日本語の看板",
    "l’été à la plage", "“best” of 2020", "Привет, мир", "naïve façade – №7", "Ελλάδα",
)  # fmt: skip
EMOJI = ("🐶", "❤️", "👍🏽", "🎉🎉", "🇫🇷", "☕")
ENTITIES = ("Tom &amp; Jerry", "&quot;hello&quot;", "5&nbsp;km", "it&#39;s", "&eacute;clair")


def caption(rng: random.Random, kind: str) -> str:
    """Return one caption: `plain` ASCII, `accented` (beyond ASCII) or with an `entity`."""
    parts = [rng.choice(SUBJECTS), rng.choice(ACTIONS), rng.choice(PLACES)]
    if kind == "accented":
        parts.insert(rng.randrange(4), rng.choice(ACCENTED if rng.random() < 0.7 else EMOJI))
    elif kind == "entity":
        parts.insert(rng.randrange(4), rng.choice(ENTITIES))
    # The number and the word of random letters keep a cache of whole captions from helping.
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9)))
    parts.append(f"{word} {rng.randrange(1000)}" if rng.random() < 0.3 else rng.choice(ACTIONS))
    text = " ".join(parts)
    return text.capitalize() if rng.random() < 0.5 else text


def captions(count: int, mix: str) -> list[str]:
    """Return `count` captions; the mix `all` is about 80% plain."""
    rng = random.Random(0)
    weights = {"all": (80, 15, 5), "plain": (1, 0, 0), "accented": (0, 1, 0)}[mix]
    kinds = rng.choices(("plain", "accented", "entity"), weights, k=count)
    return [caption(rng, kind) for kind in kinds]


def peer() -> Callable[[list[str]], Any] | None:
    """Return open_clip's tokenizer, or None where it cannot be imported."""
    open_clip = import_open_clip()
    return None if open_clip is None else open_clip.tokenizer.SimpleTokenizer()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mix", choices=("all", "plain", "accented"), default="all")
    args = parser.parse_args()
    texts = captions(args.captions, args.mix)
    warnings.filterwarnings("ignore", message=".*context length")

    began = time.perf_counter()
    runs: dict[str, Callable[[list[str]], Any]] = {"ours": Tokenizer()}
    construction = time.perf_counter() - began
    other = peer()
    if other is not None:
        runs["open_clip"] = other

    results = {name: run(texts) for name, run in runs.items()}  # also fills both word caches
    equal = None
    if other is not None:
        equal = bool((results["ours"] == results["open_clip"].numpy()).all())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(texts)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}

    print(f"{'tokenizer':<12}{'seconds':>10}{'us/caption':>12}")
    for name, value in median.items():
        print(f"{name:<12}{value:>10.3f}{value / len(texts) * 1e6:>12.1f}")
    summary = {
        "captions": len(texts),
        "mix": args.mix,
        "construction_s": round(construction, 4),
        "ours_s": round(median["ours"], 4),
        "open_clip_s": round(median["open_clip"], 4) if other else None,
        "ratio": round(median["open_clip"] / median["ours"], 2) if other else None,
        "ids_equal": equal,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
