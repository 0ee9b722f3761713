"""Training on a CUDA device gives what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch

import train_step
from pocketclip.nn.build import create_model
from pocketclip.train.sections import LossSection
from pocketclip.train.step import Stepper


def gradients(device: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model("tiny").train()
    model.to(device)
    stepper = Stepper(
        model, model, LossSection(weights=(0.25, 0.75)), teacher_dims=train_step.TEACHERS,
        teacher_scales=(100.0, 100.0), device=torch.device(device),
    )  # fmt: skip
    stepper.backward([train_step.make_batch("tiny", 8).to(device)])
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.cuda
def test_the_gradients_of_a_step_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected, actual = gradients("cpu"), gradients("cuda")
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-7,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
