"""Latency, throughput, memory and size of an encoder.

    figures = measure(load("laptop/"), seconds=2)
    figures["image"]["median_ms"], figures["throughput"]["images_per_s"], figures["memory_bytes"]

Memory is the peak of the process: measure each model in its own process, as `pocketclip bench`
does.

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

from pocketclip._deprecated import renamed_arguments
from pocketclip.checkpoint.operations import forward_operations
from pocketclip.checkpoint.operations import measure as measure_size
from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.progress import ProgressReporter, as_reporter

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

BATCHES = (1, 2, 4, 8, 16, 32)
PHOTO_SHAPE = (480, 640, 3)
"""Shape (H, W, 3) of the encoded photograph, which is noise."""
MIN_CALLS = 5
_MAX_FALLS = 2  # consecutive batch sizes without a gain that end the search


def first_answer(encoder: Encoder) -> None:
    """Encode a photograph and a caption, loading both towers at once as `classify` does."""
    encoder.preload("image", "text")
    encoder.encode_image(photo())
    encoder.encode_text(next(captions()))


@renamed_arguments(say="reporter")
def measure(
    encoder: Encoder,
    *,
    seconds: float = 2.0,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure latency, throughput and memory, and count parameters and operations.

    Args:
        encoder: the encoder to measure.
        seconds: time per figure; a slow model takes as long as the minimum number of calls.
        reporter: receives a stage per figure; a function receives its text.

    Returns:
        `image`: latency of the image tower for one prepared photograph; `text`: for one new
        caption, tokenised and encoded, with its `tokens`; both with `median_ms`, `p95_ms` and
        `calls`.
        `throughput`: `images_per_s` of the image tower at its best `batch`, and at each batch
        size tried. `memory_bytes`: the process's peak with batches of one;
        `memory_at_best_batch_bytes`: with batches up to the best one; None if the system does not
        report it. `size`: as `size_of` returns it.
    """
    report = as_reporter(reporter).stage
    prepared = encoder.prepare(photo())
    report("image tower")
    image = latency(lambda: encoder.encode_pixels(prepared[None]), seconds)
    report("text tower")
    texts = captions()
    text = latency(lambda: encoder.encode_text(next(texts)), seconds)
    text["tokens"] = token_count(encoder, next(texts))
    memory = peak_memory()
    report("throughput")
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
        "size": size_of(encoder, tokens=text["tokens"]),
    }


def size_of(encoder: Encoder, *, tokens: int) -> dict[str, Any]:
    """Return an encoder's parameters and operations, see `pocketclip.checkpoint.operations`.

    Args:
        encoder: the encoder.
        tokens: the number of the text's tokens, start and end included.

    Returns:
        `params_million` and `active_params_million`, which differ for a sparse model only;
        `gflop` for one image and one text of the whole context, every token through every block,
        as published; `forward`: `image_gflop` and `text_gflop` of what this encoder computes, the
        latter for the text of `text_tokens` tokens.
    """
    size = measure_size(encoder.config)
    # In graphs of onnx and openvino too, an expert multiplies only the tokens that chose it.
    count = forward_operations(encoder.config, tokens=tokens)
    return {
        "params_million": size.params_million,
        "active_params_million": size.active_params_million,
        "gflop": size.gflop,
        "forward": {
            "image_gflop": count.image / 1e9,
            "text_gflop": count.text / 1e9,
            "text_tokens": count.tokens,
        },
    }


def latency(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Return median and 95th percentile of a call's milliseconds, and the number of calls."""
    times = 1e3 * np.array(timed(call, seconds))
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "calls": len(times),
    }


def timed(call: Callable[[], object], seconds: float, *, min_calls: int = MIN_CALLS) -> list[float]:
    """Return the seconds of each call, for `seconds` and at least `min_calls` calls.

    Two earlier calls are not counted, since runtimes prepare for a new shape at its first use.
    """
    for _ in range(2):
        call()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < min_calls or time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def throughput(
    encoder: Encoder, prepared: NDArray[Any], seconds: float
) -> tuple[dict[int, float], int, int | None]:
    """Return images per second by batch size, the best batch size, and its peak memory.

    The batch size doubles until two in a row give no gain.

    Args:
        encoder: the encoder to measure.
        prepared: the result of `Encoder.prepare` for one photograph.
        seconds: time per batch size.
    """
    rates: dict[int, float] = {}
    best, best_memory, falls = 1, peak_memory(), 0
    for batch in BATCHES if takes_batches(encoder) else BATCHES[:1]:
        pixels = np.repeat(prepared[None], batch, axis=0)
        call = functools.partial(encoder.encode_pixels, pixels)
        times = timed(call, seconds, min_calls=3)
        rates[batch] = batch / float(np.median(times))
        if rates[batch] >= rates[best]:
            best, best_memory, falls = batch, peak_memory(), 0
        else:
            falls += 1
        if falls == _MAX_FALLS:
            break
    return rates, best, best_memory


def takes_batches(encoder: Encoder) -> bool:
    """Return whether the image tower takes more than one image at a time."""
    return encoder.bundle is None or bool(encoder.bundle.towers["image"]["dynamic_batch"])


def photo() -> NDArray[np.uint8]:
    """Return a photograph of noise (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, PHOTO_SHAPE, np.uint8)


def captions() -> Iterator[str]:
    """Yield an endless sequence of distinct captions (encoders cache texts) of equal length."""
    for number in itertools.count():
        # Each digit is a token, so the length stays the same.
        yield f"a photo of a red bicycle beside the canal, number {number % 1_000_000:06}"


def token_count(encoder: Encoder, text: str) -> int:
    """Return the number of tokens of a text, start and end included."""
    return int(encoder.tokenizer([text], encoder.config.text.context_length)[0].argmax()) + 1


def peak_memory() -> int | None:
    """Return this process's peak memory in bytes, or None if the system does not report it.

    Pages of memory-mapped files count once they are read.
    """
    try:  # Linux, whose `ru_maxrss` includes the memory of the parent when it forked
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
    """Return the size of a model on disk, or None if it has no files (random weights).

    Args:
        source: the MODEL argument that `encoder` was loaded from.
        encoder: the loaded encoder.
    """
    if encoder.bundle is not None:
        return encoder.bundle.bytes
    from pocketclip import checkpoint
    from pocketclip.checkpoint import hub

    if not isinstance(source, ModelSource):
        source = resolve_model(source)
    if source.path is not None:
        files = [source.path]
        if source.kind == "checkpoint":
            files = [source.path / name for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)]
        return sum(file.stat().st_size for file in files)
    cached = (hub.cached(repository, revision=source.revision) for repository in source.repos)
    return next((file.path.stat().st_size for file in cached if file is not None), None)
