"""The values of the steps since the last record, kept on the device until they are read.

    values = StepValues(device)
    diverged = values.add(terms, norm, step=7)  # bool (), on the device
    values.read()                               # the one place where the host waits

Shapes: n values of a step: the loss, its terms, the norm of its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GRAD_NORM = "grad_norm"


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first value that was not finite."""

    step: int
    name: str
    value: float


class StepValues:
    """Sums of the steps' values, and the first step with one that is not finite.

    Args:
        device: where the values are computed.
        overflows: gradients may be infinite at times, in float16: such a step has not diverged.
    """

    def __init__(self, device: torch.device, *, overflows: bool = False) -> None:
        self._overflows = overflows
        # Apple's GPUs have no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._names: list[str] = []
        self._step = torch.zeros((), dtype=self._dtype, device=device)  # 0: none diverged
        self._at_step = self._sums = self._counts = self._step.new_zeros(0)  # (n,) each

    @property
    def diverged(self) -> Tensor:
        """Whether a step has diverged, bool () on the device."""
        return self._step > 0

    @torch.no_grad()
    def add(self, terms: Mapping[str, Tensor], norm: Tensor, step: int) -> Tensor:
        """Add a step and return `diverged`.

        Args:
            terms: of its loss, () each; the same names in each step.
            norm: of its gradient, ().
            step: its number, from 1.
        """
        names = ["loss", *terms, GRAD_NORM]
        parts = torch.stack([value.to(self._dtype) for value in (*terms.values(), norm)])
        row = torch.cat([parts[:-1].sum(0, keepdim=True), parts])
        if not self._names:
            self._names = names
            self._at_step = self._sums = self._counts = torch.zeros_like(row)
        if names != self._names:
            raise ValueError(f"a step's values are {names}; those before it had {self._names}")
        finite = row.isfinite()
        wrong = ~(finite[:-1] if self._overflows else finite).all()
        first = wrong & ~self.diverged
        self._at_step = torch.where(first, row, self._at_step)
        self._step = self._step + first.to(self._dtype) * step
        self._sums = self._sums + row.masked_fill(~finite, 0.0)
        self._counts = self._counts + finite
        return self.diverged

    def read(self) -> tuple[dict[str, float], Divergence | None]:
        """Return the mean of each value over the steps since `restart`, and what diverged first.

        A mean leaves out what is not finite; it is 0 if nothing is left, since all processes need
        the same names.
        """
        size = len(self._names)
        numbers = torch.cat([self._sums, self._counts, self._at_step, self._step[None]]).tolist()
        sums, counts, row = (numbers[k * size : (k + 1) * size] for k in range(3))
        means = {
            name: total / count if count else 0.0
            for name, total, count in zip(self._names, sums, counts, strict=True)
        }
        if not numbers[-1]:
            return means, None
        checked = zip(self._names[:-1] if self._overflows else self._names, row, strict=False)
        name, value = next(pair for pair in checked if not math.isfinite(pair[1]))
        return means, Divergence(int(numbers[-1]), name, value)

    def restart(self) -> None:
        """Begin new means; a step that diverged is not forgotten."""
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
