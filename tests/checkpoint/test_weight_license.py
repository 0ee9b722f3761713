"""The licence of weights: kept by our checkpoints, and found beside other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketclip import checkpoint
from pocketclip.checkpoint import hub
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.stored import read_stored
from pocketclip.checkpoint.weight_license import license_of_file
from pocketclip.errors import CheckpointError
from pocketclip.infer.license import license_of_source
from pocketclip.license import UNKNOWN, License
from pocketclip.nn.clip import CLIP
from tests.hub_server import HubServer
from tests.infer import slim

REPO = "owner/slim"
BIRDS = License(name="birds", url="https://birds.example", text="For birds only.\n")
CARD = b"---\nlicense: other\nlicense_name: cats\ntags: [a]\n---\n# It\n"


def licensed(license: License = BIRDS) -> CLIP:
    made = slim.model.__wrapped__()
    made.license = license
    return made


def license_of(path: Path | str) -> License:
    return read_stored(resolve_model(path)).license


def test_a_checkpoint_keeps_it_also_when_it_is_fused_and_saved_again(tmp_path):
    checkpoint.save(licensed(), tmp_path / "one")
    assert checkpoint.load(tmp_path / "one").license == BIRDS
    fused = checkpoint.load(tmp_path / "one", fuse=True)
    checkpoint.save(fused, tmp_path / "two")
    assert license_of(tmp_path / "two") == BIRDS
    assert checkpoint.own_files(tmp_path / "two") == {
        "config.json", "model.safetensors", "LICENCE.txt",
    }  # fmt: skip
    # Another model takes its place with all of its files, and has none.
    checkpoint.save(slim.model(), tmp_path / "two")
    assert not (tmp_path / "two" / "LICENCE.txt").exists()
    assert "licence" not in json.loads((tmp_path / "two" / "config.json").read_text())
    assert license_of(tmp_path / "two") == UNKNOWN


def test_a_text_that_was_changed_is_refused(tmp_path):
    checkpoint.save(licensed(), tmp_path / "one")
    text = tmp_path / "one" / "LICENCE.txt"
    text.write_text("For all.\n")
    with pytest.raises(CheckpointError, match=r"LICENCE\.txt is not the licence that was saved"):
        checkpoint.load(tmp_path / "one")
    text.unlink()
    with pytest.raises(CheckpointError, match="copy the checkpoint again"):
        checkpoint.load(tmp_path / "one")


def test_files_with_the_names_of_others(tmp_path, caplog):
    checkpoint.save(licensed(), tmp_path / "a.safetensors", naming="openclip")
    assert license_of(tmp_path / "a.safetensors") == BIRDS
    assert not caplog.records
    for value in ("[]", '{"text": " "}', json.dumps({"text": "x" * (256 << 10) + "x"})):
        with pytest.raises(CheckpointError, match="damaged metadata"):
            license_of_file(
                resolve_model(tmp_path / "a.safetensors"), tmp_path, {"pocketclip_licence": value}
            )
    checkpoint.save(licensed(), tmp_path / "tiny.bin", naming="openclip")
    assert "no room for the licence of its weights (birds" in caplog.text


def test_a_licence_beside_a_file(tmp_path):
    file = slim.weight_file(tmp_path)
    assert license_of(file) == UNKNOWN
    (tmp_path / "LICENSE").write_text("For birds only.\n")
    assert license_of(file) == License(text="For birds only.\n")
    (tmp_path / "README.md").write_bytes(CARD)
    assert license_of(file) == License(name="cats", text="For birds only.\n")
    (tmp_path / "README.md").write_bytes(b"---\n: [\n---\n")
    assert license_of(file) == License(text="For birds only.\n")


def test_apples_published_files_are_known_by_name(tmp_path):
    file = slim.weight_file(tmp_path)
    for name, repo in (
        ("mobileclip_s0", "apple/MobileCLIP-S0"), ("mobileclip_blt", "apple/MobileCLIP-B-LT"),
        ("mobileclip2_s4", "apple/MobileCLIP2-S4"),
    ):  # fmt: skip
        found = license_of_file(resolve_model(file), tmp_path / f"{name}.pt", {})
        assert (found.name, found.restricted) == ("apple-amlr", True)
        assert str(found.url).endswith(repo)
        # We wrote this one: a model of one's own.
        ours = {"pocketclip": "{}"}
        assert license_of_file(resolve_model(file), tmp_path / f"{name}.pt", ours) == UNKNOWN


@pytest.fixture
def repo(hub: HubServer, tmp_path: Path) -> HubServer:
    (tmp_path / "files").mkdir()
    hub.repos[REPO] = {
        "README.md": CARD, "LICENSE": b"For cats only.\n",
        slim.NAME: slim.weight_file(tmp_path / "files"),
    }  # fmt: skip
    hub.cards[REPO] = {"license": "other", "license_name": "cats"}
    return hub


def test_the_hub_has_it_and_the_cache_keeps_it(repo):
    expected = License(name="cats", url=f"{repo.url}/{REPO}", text="For cats only.\n")
    source = resolve_model(REPO)
    assert license_of_source(source) == License(url=f"{repo.url}/{REPO}")  # not fetched yet
    assert repo.requests == []
    assert checkpoint.load(REPO).license == expected
    asked = len(repo.requests)
    assert checkpoint.load(REPO, offline=True).license == expected  # now by the card
    assert license_of_source(source) == expected
    (snapshot,) = hub.cached(REPO).path.parents[:1]
    assert license_of(snapshot / slim.NAME) == expected  # by its path
    assert len(repo.requests) == asked


def test_weights_are_fetched_although_the_licence_cannot_be(repo):
    repo.repos[REPO]["LICENSE"] = b"x"
    del repo.repos[REPO]["README.md"]
    honest = repo._content
    repo._content = lambda name, file: b"" if file == "LICENSE" else honest(name, file)
    assert checkpoint.load(REPO).license == License(name="cats", url=f"{repo.url}/{REPO}")


def test_published_weights_are_known_before_they_are_fetched(hub):
    known = license_of_source(resolve_model("mobileclip2-s0"))
    assert known == License(name="apple-amlr", url=f"{hub.url}/apple/MobileCLIP2-S0")
    assert hub.requests == []
