"""The licence of a bundle's weights is said where it is known, and asked for where it restricts."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from pocketclip import checkpoint
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import read_stored
from pocketclip.errors import ChangedBundleError, ConfigError
from pocketclip.export.job import export
from pocketclip.infer.bundle import own_files, read
from pocketclip.infer.convert import convert
from pocketclip.infer.license import license_of_bundle, license_of_source, require_accepted
from pocketclip.license import UNKNOWN, License
from tests.bundles import model, with_license

HUB = "https://huggingface.co"


@pytest.fixture
def of(exported, monkeypatch):
    """Returns an earlier bundle, without a licence, that was made of weights as given."""
    monkeypatch.setattr("pocketclip.checkpoint.weight_license.get_endpoint", lambda: HUB)
    bundle = read(exported("tiny"))
    return lambda **source: dataclasses.replace(bundle, source=source)


def test_the_hub_said_it(of):
    known = license_of_bundle(of(repo="apple/MobileCLIP2-S0", license="apple-amlr"))
    assert known == License(name="apple-amlr", url=f"{HUB}/apple/MobileCLIP2-S0")
    assert str(known) == f"apple-amlr, see {HUB}/apple/MobileCLIP2-S0"


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("timm/MobileCLIP2-S0-OpenCLIP", "apple-amlr"),
        ("apple/MobileCLIP-B-LT", "apple-amlr"),
        ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "mit"),
    ],
)
def test_published_weights_are_known_by_their_repository(of, repo, name):
    known = license_of_bundle(of(repo=repo))
    assert (known.name, known.restricted) == (name, name == "apple-amlr")


def test_a_model_of_ones_own_is_not_apples_whatever_its_architecture(of):
    known = license_of_bundle(of(repo="somebody/mobileclip2-s0-birds"))
    assert known == License(url=f"{HUB}/somebody/mobileclip2-s0-birds")
    assert (known.is_known, known.restricted) == (False, False)
    assert str(known) == f"not known, see {HUB}/somebody/mobileclip2-s0-birds"


def test_weights_from_elsewhere(of):
    assert license_of_bundle(of()) == license_of_bundle(of(file="mine.pt")) == UNKNOWN
    assert str(UNKNOWN) == "not known"


def test_the_text_is_a_file_of_the_bundle(exported, tmp_path):
    text, page = "For birds only.\n", "https://birds.example"
    folder = with_license(exported(), tmp_path / "bundle", {"name": "birds", "url": page}, text)
    known = license_of_bundle(read(folder))
    assert known == License(name="birds", url=page, text=text)
    assert license_of_source(resolve_model(folder)) == known
    assert own_files(folder) >= {"LICENCE.txt", "check.rgb"}
    (folder / "LICENCE.txt").write_text("For cats only!\n", "utf-8")
    with pytest.raises(ChangedBundleError, match=r"LICENCE\.txt is not the file"):
        license_of_bundle(read(folder))
    assert license_of_bundle(read(folder), with_text=False).name == "birds"


def test_an_export_inherits_it(tmp_path):
    made = copy.copy(model())
    made.license = License(name="birds", url="https://birds.example", text="For birds only.\n")
    assert license_of_bundle(export(made, tmp_path / "onnx", target="onnx")) == made.license
    checkpoint.save(made, tmp_path / "saved")
    source = resolve_model(tmp_path / "saved")
    assert license_of_source(source) == made.license
    converted = convert(read_stored(source), tmp_path / "converted")
    assert license_of_bundle(converted) == made.license
    assert converted.check_frame is not None


def test_what_may_be_forbidden_is_asked_for():
    page = "https://hub.example/apple/it"
    amlr = License(name="apple-amlr", url=page)
    with pytest.raises(ConfigError) as caught:
        require_accepted(amlr, accepted=False, doing="answering other machines")
    assert str(caught.value) == (
        "the weights have the licence apple-amlr, which may forbid answering other machines: read "
        f"it at {page}, and give --accept-licence if it allows that"
    )
    require_accepted(amlr, accepted=True, doing="answering other machines")
    for allowed in (UNKNOWN, License(url=page), License(name="MIT"), License(name="apache-2.0")):
        require_accepted(allowed, accepted=False, doing="answering other machines")
    for foreign in (License(name="birds"), License(name="other"), License(text="For birds only.")):
        with pytest.raises(ConfigError, match="--accept-licence"):
            require_accepted(foreign, accepted=False, doing="answering other machines")
