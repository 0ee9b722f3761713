"""Live teachers: models that embed a step's images and captions while the student trains.

Shapes: B images or texts, S side of an image, D the sum of the teachers' dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pocketclip.types import Encoder


@runtime_checkable
class TensorEncoder(Protocol):
    """What an `Encoder` may offer besides: torch's tensors in and out, which stay on its device.

    Training asks live teachers in this way, so that the host need not wait for a GPU. An embedding
    that is not finite, or is zero, is NaN, which ends the run with an error.
    """

    def encode_image_tensors(self, images: Tensor) -> Tensor:
        """Return unit embeddings, float32 (B, D), of uint8 images (B, 3, H, W)."""
        ...

    def encode_text_tensors(self, texts: Sequence[str]) -> Tensor:
        """Return unit embeddings, float32 (B, D), of texts."""
        ...


class LiveTeachers:
    """Several encoders whose embeddings stand side by side.

    Those of a `TensorEncoder` stay on its device. Other encoders take and return arrays, for which
    the host waits.

    Args:
        teachers: one or more.
        device: where the student is.
    """

    def __init__(self, teachers: Sequence[Encoder], device: torch.device) -> None:
        self._teachers, self._device = teachers, device

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of uint8 images (B, 3, S, S), on the student's device."""
        views: list[np.ndarray] = []

        def from_arrays(teacher: Encoder) -> np.ndarray:
            if not views:
                views.extend(np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy()))
            return teacher.encode_image(views)

        return self._side_by_side(lambda one: one.encode_image_tensors(images), from_arrays)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit embeddings (B, D) of texts, on the student's device."""
        return self._side_by_side(
            lambda one: one.encode_text_tensors(texts), lambda one: one.encode_text(texts)
        )

    def _side_by_side(
        self,
        on_device: Callable[[TensorEncoder], Tensor],
        from_arrays: Callable[[Encoder], np.ndarray],
    ) -> Tensor:
        parts = [
            on_device(one)
            if isinstance(one, TensorEncoder)
            else torch.from_numpy(np.ascontiguousarray(from_arrays(one)))
            for one in self._teachers
        ]
        return torch.cat([part.to(self._device, non_blocking=True) for part in parts], 1)
