"""Batches on their way to the device."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from pocketclip.errors import DataError
from pocketclip.train.batch_types import Batch
from pocketclip.train.device_feed import feed, one_ahead


def _batch(number: int = 0, samples: int = 2) -> Batch:
    images = torch.full((samples, 4, 4, 3), number, dtype=torch.uint8).permute(0, 3, 1, 2)
    ids = torch.full((samples, 5), number)
    return Batch(
        images=images,
        captions=[ids, ids + 1],
        uids=[f"{number}-{k}" for k in range(samples)],
        teacher_image=torch.full((samples, 3), float(number)),
        teacher_captions=[None, torch.full((samples, 3), float(number))],
        too_small=number,
    )


def _tensors(batch: Batch) -> list[Tensor]:
    """Return every tensor of the batch, whichever field holds it."""
    found = []
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        found += value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, Tensor)]


def test_all_tensors_of_a_batch_move() -> None:
    batch = _batch(3)
    moved = batch.to("meta")
    assert len(_tensors(moved)) == len(_tensors(batch)) == 5
    assert all(rows.device.type == "meta" for rows in _tensors(moved))
    assert moved.images.stride() == batch.images.stride()  # still channels-last
    assert moved.teacher_captions[0] is None
    assert (moved.uids, moved.too_small) == (batch.uids, 3)
    assert all(rows.is_cpu for rows in _tensors(batch))


def test_a_batch_on_the_device_is_returned_as_it_is() -> None:
    batch = _batch()
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("cpu"), non_blocking=True) is batch


class _Copies:
    """Stands in for a copy stream: notes what is done, and moves batches to the meta device."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.closed = 0

    def __call__(self, batch: Batch):
        number = batch.too_small
        self.events.append(("copy", number))

        def finish() -> Batch:
            self.events.append(("use", number))
            return batch.to("meta")

        return finish

    def source(self, *items: Batch | BaseException):
        try:
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.closed += 1


def test_batches_come_in_order_each_after_the_next_one_was_started() -> None:
    copies = _Copies()
    numbers = []
    for batch in one_ahead(copies.source(*(_batch(k) for k in range(3))), copies):
        assert batch.images.device.type == "meta"
        copies.events.append(("step", batch.too_small))
        numbers.append(batch.too_small)
    assert numbers == [0, 1, 2]
    assert copies.events == [
        ("copy", 0),
        *[("copy", 1), ("use", 0), ("step", 0)],
        *[("copy", 2), ("use", 1), ("step", 1)],
        *[("use", 2), ("step", 2)],  # the last batch has none after it
    ]
    assert copies.closed == 1
    assert list(one_ahead(copies.source(), copies)) == []


def test_an_error_comes_in_the_place_of_its_batch() -> None:
    copies = _Copies()
    batches = one_ahead(copies.source(_batch(0), _batch(1), DataError("bad shard")), copies)
    assert [next(batches).too_small, next(batches).too_small] == [0, 1]
    with pytest.raises(DataError, match="bad shard"):
        next(batches)
    assert copies.closed == 1
    with pytest.raises(DataError, match="at once"):
        next(one_ahead(copies.source(DataError("at once")), copies))


def test_an_interruption_is_not_held_back() -> None:
    copies = _Copies()
    batches = one_ahead(copies.source(_batch(0), KeyboardInterrupt()), copies)
    with pytest.raises(KeyboardInterrupt):
        next(batches)  # the second Ctrl-C, while batch 1 is read
    assert copies.closed == 1


def test_closing_ends_the_source() -> None:
    copies = _Copies()
    batches = one_ahead(copies.source(*(_batch(k) for k in range(9))), copies)
    assert next(batches).too_small == 0
    batches.close()
    assert copies.closed == 1
    assert copies.events == [("copy", 0), ("copy", 1), ("use", 0)]


def test_other_devices_get_the_batches_as_they_are() -> None:
    source = _Copies().source(_batch(0))
    assert feed(source, torch.device("cpu")) is source


@pytest.mark.cuda
def test_a_copy_stream_delivers_what_was_pinned() -> None:
    device = torch.device("cuda")
    pinned = (_batch(k % 250, samples=256).pin_memory() for k in itertools.count())
    sums = []
    for number, batch in enumerate(feed(pinned, device)):
        assert all(rows.is_cuda for rows in _tensors(batch))
        # Slow kernels, so that copies would overwrite what is still read if they could.
        torch.cuda._sleep(2_000_000)
        sums.append(batch.images.sum(dtype=torch.int64) / batch.images.numel())
        assert batch.captions[1].is_cuda
        if number == 200:
            break
    assert torch.stack(sums).tolist() == list(range(201))
