"""The licence of a bundle's weights is said where it is known, and nowhere else."""

from __future__ import annotations

import dataclasses

import pytest

from pocketclip.infer.bundle import read
from pocketclip.infer.license import APPLE, license_name, license_of, license_page

HUB = "https://huggingface.co"


@pytest.fixture
def of(exported, monkeypatch):
    """Returns a bundle that was made of weights as given."""
    monkeypatch.setattr("pocketclip.infer.license.get_endpoint", lambda: HUB)
    bundle = read(exported("tiny"))
    return lambda **source: dataclasses.replace(bundle, source=source)


def test_the_hub_said_it(of):
    bundle = of(repo="apple/MobileCLIP2-S0", license="apple-amlr")
    assert license_name(bundle) == "apple-amlr"
    assert license_page(bundle) == f"{HUB}/apple/MobileCLIP2-S0"
    assert license_of(bundle) == f"apple-amlr, see {HUB}/apple/MobileCLIP2-S0"


def test_apples_weights_are_known_by_their_repository(of):
    bundle = of(repo="timm/MobileCLIP2-S0-OpenCLIP")
    assert license_name(bundle) == APPLE
    assert license_of(bundle).startswith(APPLE)


def test_a_model_of_ones_own_is_not_apples_whatever_its_architecture(of):
    bundle = of(repo="somebody/mobileclip2-s0-birds")
    assert license_name(bundle) is None
    assert license_of(bundle) == f"see {HUB}/somebody/mobileclip2-s0-birds"


def test_nothing_is_known_of_an_exported_checkpoint(of):
    assert license_name(of()) is None
    assert license_page(of()) is None
    assert license_of(of(file="mine.pt")) == "that of the weight file"
