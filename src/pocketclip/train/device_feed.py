"""Batches on their way to the device: on CUDA, the next one is copied while the last one computes.

    with contextlib.closing(feed(loader.batches(start), device)) as batches:
        batch = next(batches)  # on the device

The data loader leaves batches in pinned memory, which a GPU reads without the host. A stream of its
own copies them, so that the copy and the step's kernels run side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from pocketclip.train.batch_types import Batch
from pocketclip.train.phases import phase

StartCopy = Callable[[Batch], Callable[[], Batch]]
"""Starts to copy a batch; what it returns is called once, when the batch is needed, and gives it on
the device."""


def feed(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """Return the batches in the same order, on CUDA on the device and copied one ahead.

    Closing the result closes `batches`. An error of `batches` is raised in the place of the batch
    that it hit, after those before it.

    Args:
        batches: from the data loader, in pinned memory for CUDA.
        device: where the model is. If it is no CUDA device, the result is `batches` itself.
    """
    if device.type != "cuda":
        return batches
    return one_ahead(batches, _CopyStream(device))


def one_ahead(
    batches: Generator[Batch, None, None], start_copy: StartCopy
) -> Generator[Batch, None, None]:
    """Yield each batch after the copy of the next one was started; see `feed`."""
    with contextlib.closing(batches):
        ready: Callable[[], Batch] | None = None
        while True:
            following: Callable[[], Batch] | None = None
            problem: Exception | None = None
            try:
                batch = next(batches, None)
                following = None if batch is None else start_copy(batch)
            except Exception as error:  # raised below, in its place
                problem = error
            if ready is not None:
                yield ready()
            if problem is not None:
                raise problem
            if following is None:
                return
            ready = following


class _CopyStream:
    """Copies batches on a CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Callable[[], Batch]:
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
            # Not the whole stream: the batch after this one may be on its way when this is needed.
            done = self._stream.record_event()

        def finish() -> Batch:
            current = torch.cuda.current_stream(self._device)
            with phase("copy"):
                current.wait_event(done)

            def record(rows: Tensor) -> Tensor:
                # The memory belongs to the copying stream, which must not write the next batch
                # into it while kernels of this one may still read it.
                rows.record_stream(current)
                return rows

            return copied.with_tensors(record)

        return finish
