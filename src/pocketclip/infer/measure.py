"""How fast an encoder is, and how much memory its process took.

    figures = measure(load("laptop/"), seconds=2)
    figures["image"]["median_ms"], figures["throughput"]["images_per_s"], figures["memory_bytes"]

Memory is the process's highest: measure each model in a process of its own, as `pocketclip bench`
does, or the figures mix.

Shapes: B batch, H W height and width.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.checkpoint.resolve import ModelSource, resolve_model

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

BATCHES = (1, 2, 4, 8, 16, 32)
PHOTO_SHAPE = (480, 640, 3)
"""Of the photograph (H, W, 3), noise, that is encoded."""
LEAST_CALLS = 5
_FALLS = 2  # this many batches in a row without a gain end the search for the best one

Say = Callable[[str], None]


def first_answer(encoder: Encoder) -> None:
    """Encode a photograph and a caption, loading both towers at once as `classify` does."""
    encoder.preload("image", "text")
    encoder.encode_image(photo())
    encoder.encode_text(next(captions()))


def measure(
    encoder: Encoder, *, seconds: float = 2.0, say: Say = lambda _text: None
) -> dict[str, Any]:
    """Measure latency, throughput and memory.

    Args:
        encoder: what to measure.
        seconds: how long each figure may take; slow models take as long as a few calls need.
        say: is told what is being measured.

    Returns:
        `image`: latency of the image tower on one prepared photograph; `text`: of one new caption,
        tokenised and encoded, and its `tokens`; both with `median_ms`, `p95_ms` and `calls`.
        `throughput`: `images_per_s` of the image tower at its best `batch`, and at every batch
        tried. `memory_bytes`: the process's peak up to here with batches of one;
        `memory_at_best_batch_bytes`: with the batches up to the best one. None where the system
        does not tell.
    """
    prepared = encoder.prepare(photo())
    say("image tower")
    image = latency(lambda: encoder.encode_pixels(prepared[None]), seconds)
    say("text tower")
    texts = captions()
    text = latency(lambda: encoder.encode_text(next(texts)), seconds)
    text["tokens"] = token_count(encoder, next(texts))
    memory = peak_memory()
    say("throughput")
    rates, best, best_memory = throughput(encoder, prepared, seconds)
    return {
        "image": image,
        "text": text,
        "throughput": {
            "images_per_s": rates[best],
            "batch": best,
            "by_batch": {str(batch): rate for batch, rate in rates.items()},
        },
        "memory_bytes": memory,
        "memory_at_best_batch_bytes": best_memory,
    }


def latency(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Return median and 95th percentile of a call's milliseconds, and of how many calls."""
    times = 1e3 * np.array(timed(call, seconds))
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "calls": len(times),
    }


def timed(call: Callable[[], object], seconds: float, *, least: int = LEAST_CALLS) -> list[float]:
    """Return the seconds of each of at least `least` calls, made for `seconds`.

    Two calls before are not counted: runtimes make ready for a shape when it first comes.
    """
    for _ in range(2):
        call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < until:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return times


def throughput(
    encoder: Encoder, prepared: NDArray[Any], seconds: float
) -> tuple[dict[int, float], int, int | None]:
    """Return images per second by batch, the best batch, and the peak memory up to that.

    Batches double until two in a row give no more than the best.

    Args:
        encoder: what to measure.
        prepared: what `Encoder.prepare` made of one photograph.
        seconds: how long one batch size may take.
    """
    rates: dict[int, float] = {}
    best, best_memory, falls = 1, peak_memory(), 0
    for batch in BATCHES if takes_batches(encoder) else BATCHES[:1]:
        pixels = np.repeat(prepared[None], batch, axis=0)
        call = functools.partial(encoder.encode_pixels, pixels)
        times = timed(call, seconds, least=3)
        rates[batch] = batch / float(np.median(times))
        if rates[batch] >= rates[best]:
            best, best_memory, falls = batch, peak_memory(), 0
        else:
            falls += 1
        if falls == _FALLS:
            break
    return rates, best, best_memory


def takes_batches(encoder: Encoder) -> bool:
    """Return whether the image tower takes more than one image at a time."""
    return encoder.bundle is None or bool(encoder.bundle.towers["image"]["dynamic_batch"])


def photo() -> NDArray[np.uint8]:
    """Return noise in the form of a photograph (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, PHOTO_SHAPE, np.uint8)


def captions() -> Iterator[str]:
    """Yield captions without end, each new (embeddings of texts are remembered), equally long."""
    for number in itertools.count():
        # Digits are tokens of their own, so that the length stays.
        yield f"a photo of a red bicycle beside the canal, number {number % 1_000_000:06}"


def token_count(encoder: Encoder, text: str) -> int:
    """Return the tokens of a text, those of its beginning and end included."""
    return int(encoder.tokenizer([text], encoder.config.text.context_length)[0].argmax()) + 1


def peak_memory() -> int | None:
    """Return the most memory that this process ever held at once, in bytes, or None.

    Pages of files that are mapped into memory count when they were read.
    """
    try:  # Linux; its `ru_maxrss` would count what the parent held when it started this process
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def disk_bytes(source: str | ModelSource, encoder: Encoder) -> int | None:
    """Return what a model takes on disk, or None where it is not there (random weights).

    Args:
        source: what `encoder` was loaded from.
        encoder: what was loaded.
    """
    if encoder.bundle is not None:
        return encoder.bundle.bytes
    from pocketclip import checkpoint
    from pocketclip.checkpoint import hub

    if not isinstance(source, ModelSource):
        source = resolve_model(source)
    if source.path is not None:
        parts = [source.path]
        if source.kind == "checkpoint":
            parts = [source.path / name for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)]
        return sum(part.stat().st_size for part in parts)
    found = (hub.cached(repository, revision=source.revision) for repository in source.repos)
    return next((file.path.stat().st_size for file in found if file is not None), None)
