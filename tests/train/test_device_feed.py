"""Batches on their way to the device."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pocketclip.train.batch_types import Batch


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
