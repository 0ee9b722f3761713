"""`pull` fetches, converts and keeps a model; what is there already is left as it is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import pocketclip
from pocketclip import checkpoint, devices
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import (
    CheckpointError,
    ConfigError,
    DriftError,
    ExportError,
    HubError,
    PocketclipError,
)
from pocketclip.export import pull as module
from pocketclip.infer import comparison, convert
from pocketclip.infer.bundle import read
from pocketclip.infer.comparison import compare, own_photos
from pocketclip.infer.ready import open_ready
from pocketclip.progress import ProgressReporter
from tests.cli import inside
from tests.hub_server import HubServer
from tests.infer import slim

REPO = "owner/slim"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return [slim.weight_file(folder, seed) for seed in (0, 1)]


@pytest.fixture
def repo(hub: HubServer, files) -> HubServer:
    hub.repos[REPO] = {slim.NAME: files[0]}
    hub.cards[REPO] = {"license": "other", "license_name": "apple-amlr"}
    return hub


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("POCKETCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(comparison, "is_installed", lambda name: name == "onnxruntime")
    return tmp_path / "cache" / "models"


class Remarks(ProgressReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.stages: list[str] = []

    def remark(self, text: str) -> None:
        self.texts.append(text)

    def stage(self, text: str) -> None:
        self.stages.append(text)


def pull(*args, **options):
    """Return the bundle, what was said, and whether anything was converted."""
    said = Remarks()
    bundle = pocketclip.pull(*args, reporter=said, **options)
    return bundle, said.texts, "writing the image tower" in said.stages


def test_it_is_pulled_once_and_used(repo, cache, files, monkeypatch):
    bundle, _, converted = pull(REPO)  # with torch installed, as without
    assert (converted, bundle.folder.parents[1]) == (True, cache)
    assert bundle.space_id == checkpoint.load(files[0]).space_id
    again, said, converted = pull(REPO)
    assert (again.folder, converted, said) == (
        bundle.folder, False, [f"{REPO} is ready already, in fp32"],
    )  # fmt: skip
    asked = len(repo.requests)
    monkeypatch.setattr(devices, "has_torch", lambda: False)
    assert pocketclip.load(REPO).bundle.folder == bundle.folder
    assert len(repo.requests) == asked


@pytest.mark.usefixtures("repo")
def test_another_precision_replaces_it(cache, monkeypatch):
    whole, _, _ = pull(REPO)
    half, said, _ = pull(REPO, precision="fp16")
    assert said[0] == f"this replaces {REPO} in fp32"
    assert half.folder == whole.folder
    assert read(half.folder).precision == "fp16"
    assert half.verification["gate"]["image"] == {"min_cosine": 0.9995, "max_abs_error": None}
    assert half.bytes < whole.bytes
    assert len(list(cache.glob("*/*/bundle.json"))) == 1
    # Damaged, it is made again as it was.
    (half.folder / "text.onnx").write_bytes(b"")
    monkeypatch.setattr(devices, "has_torch", lambda: False)
    encoder = pocketclip.load(REPO)
    assert encoder.encode_text("a dog").shape == (1, 64)
    assert encoder.bundle.precision == "fp16"


def test_out(repo, cache, tmp_path):
    out = tmp_path / "app" / "model"
    first, _, converted = pull(REPO, out=out)
    assert (first.folder, converted, cache.exists()) == (out, True, False)
    _, said, converted = pull(REPO, out=out)
    assert (said, converted) == ([f"{REPO} is in {out} already, in fp32"], False)
    # What is ready is copied.
    pull(REPO, precision="fp16")
    copied, _, converted = pull(REPO, precision="fp16", out=out)
    assert (read(out).precision, converted) == ("fp16", False)
    copied.check()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    asked = len(repo.requests)
    with pytest.raises(ExportError, match="holds other files"):
        pull(REPO, out=tmp_path / "mine")
    assert len(repo.requests) == asked


def test_an_older_bundle_stays_if_the_file_changes_meanwhile(files, tmp_path, monkeypatch):
    mine, out = Path(shutil.copy(files[0], tmp_path / "mine.safetensors")), tmp_path / "model"
    before, _, _ = pull(mine, out=out)
    shutil.copy(files[1], mine)
    honest = convert.embed_by_weights
    monkeypatch.setattr(
        convert, "embed_by_weights", lambda *args: (os.utime(mine), honest(*args))[1]
    )
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        pull(mine, out=out)
    assert read(out) == before
    before.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors", "model"]


def test_the_whole_transform_and_unit_embeddings_in_the_graph(repo, cache, tmp_path):
    out, options = tmp_path / "model", {"preprocessing": True, "normalize": True}
    plain, _, _ = pull(REPO)
    whole, _, converted = pull(REPO, out=out, **options)
    assert (converted, whole.image_input, whole.normalized) == (True, "photo", True)
    embeddings = pocketclip.Encoder(whole).encode_image(own_photos(), normalize=False)
    assert np.abs(np.linalg.norm(embeddings, axis=1) - 1).max() < 1e-5
    repo.stop()  # all that is needed is here
    assert not pull(REPO, out=out, offline=True, **options)[2]
    assert pull(REPO, out=out, offline=True, normalize=True)[2]
    found, _, converted = pull(REPO, out=out, offline=True)  # copied
    assert (converted, found.image_input, found.normalized) == (False, "preprocessed", False)
    assert [path.parent for path in cache.glob("*/*/bundle.json")] == [plain.folder]


def test_a_revision_that_moved(repo, files):
    old, _, _ = pull(REPO)
    repo.repos[REPO][slim.NAME] = files[1]
    new, said, converted = pull(REPO)
    assert converted
    assert new.space_id == checkpoint.load(files[1]).space_id != old.space_id
    assert f"main was {old.folder.name[:8]}, and is {new.folder.name[:8]}" in said[0]
    # A commit by its name, which then also is what `main` means.
    shutil.rmtree(new.folder.parent)
    assert pull(REPO, revision=new.folder.name)[2]
    assert not pull(REPO)[2]
    shutil.rmtree(os.environ["HF_HUB_CACHE"])
    repo.stop()
    assert pull(REPO)[0].folder == new.folder


def test_a_hub_that_does_not_answer(repo, monkeypatch):
    with pytest.raises(HubError, match="network is off"):
        pull(REPO, offline=True)
    repo.fail("api", status=500)
    with pytest.raises(HubError, match="try again"):
        pull(REPO)
    repo.heal()
    checkpoint.hub.fetch(REPO)
    repo.fail("api", status=500)
    bundle, said, converted = pull(REPO)  # the weights are here
    assert converted
    assert said[0].startswith("using what is here, which may not be the latest: cannot fetch")
    _, said, converted = pull(REPO)  # and now the bundle
    assert (len(said), converted) == (2, False)
    assert pull(REPO, offline=True)[1] == [f"{REPO} is ready already, in fp32"]
    shutil.rmtree(os.environ["HF_HUB_CACHE"])
    with pytest.raises(HubError, match="try again"):
        pull(REPO, precision="fp16")
    assert read(bundle.folder).precision == "fp32"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not pull(REPO)[2]


def test_of_two_repositories_with_the_same_weights_the_one_that_is_here(hub, files):
    copies = ("other/slim", REPO)
    for repo in copies:
        hub.repos[repo] = {slim.NAME: files[0]}
    pull(REPO)
    source = dataclasses.replace(resolve_model(REPO), repos=copies)
    assert open_ready(source).source["repo"] == REPO
    with mock.patch.object(module, "resolve_model", return_value=source):
        assert pull("either")[1] == [f"{REPO} is ready already, in fp32"]
        del hub.repos[REPO]  # it was withdrawn
        assert pull("either")[0].source["repo"] == "other/slim"


def test_a_file_here(files, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()  # the folder is read, not the model of that name; it is said once
    shutil.copy(files[0], "tiny/open_clip_model.safetensors")
    assert "random:tiny" in pull("tiny")[1][0]
    assert caplog.text == ""
    mine = Path(shutil.copy(files[0], tmp_path / "mine.safetensors"))
    assert pull(mine)[2]
    assert pull(mine)[1] == [f"{mine} is ready already, in fp32"]
    _, said, _ = pull(mine, precision="fp16")
    assert said[0] == f"this replaces {mine} in fp32"
    assert said[1].startswith(f"converting {mine} for ONNX")
    shutil.copy(files[1], mine)
    assert pull(mine)[1][0].startswith(f"{mine} was changed since it was converted; ")


@pytest.mark.usefixtures("repo")
def test_int8(cache, tmp_path, monkeypatch):
    photos = own_photos() * 4
    honest, tried = convert.check, []

    def check(bundle, reference):
        figures = honest(bundle, reference)
        tried.append(bundle.towers["image"]["quantisation"]["min_cosine"])
        if len(tried) == 1:
            raise DriftError("beyond the gate")
        return figures

    monkeypatch.setattr(convert, "check", check)
    bundle, _, _ = pull(REPO, precision="int8", calibration=photos)
    assert len(tried) == 2  # with more layers in higher precision the second time
    assert bundle.towers["image"]["quantisation"]["min_cosine"] >= 0.997
    assert bundle.verification["gate"]["image"]["min_cosine"] == 0.99
    assert bundle.source["calibration"]["photographs"] == 16
    assert {path.name for path in bundle.folder.iterdir()} == {"bundle.json", *bundle.files}
    assert pocketclip.Encoder(bundle, "onnxruntime").encode_text("a dog").shape == (1, 64)
    for number, photo in enumerate(photos):
        (tmp_path / f"{number:02}.jpg").write_bytes(photo)
    paths = sorted(tmp_path.glob("*.jpg"))
    assert not pull(REPO, precision="int8", calibration=paths)[2]  # the same photographs
    said = pull(REPO, precision="int8", calibration=[*paths[1:], paths[1]])[1]
    assert said[0] == f"this replaces {REPO} in int8 with other photographs"
    paths[0].write_bytes(b"")
    with pytest.raises(ExportError, match="give at least 16"):
        pull(REPO, precision="int8", calibration=paths)
    assert [path.name for path in cache.glob("*/*/float-*")] == []
    out = tmp_path / "model"
    whole, _, _ = pull(
        REPO, precision="int8", calibration=photos, out=out, preprocessing=True, normalize=True
    )
    assert (whole.image_input, whole.normalized, whole.precision) == ("photo", True, "int8")
    assert whole.towers["image"]["quantisation"]["quantised"] > 0
    found = pocketclip.Encoder(whole).encode_image(own_photos(), normalize=False)
    wanted = pocketclip.Encoder(bundle, "onnxruntime").encode_image(own_photos())
    # The photographs' embeddings by this model are 3e-3 apart.
    assert compare(found, wanted)["max_abs_error"] < 1e-4
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("random:tiny",), {}, ConfigError, "not models of random"),
        (("transformers:a/b",), {}, ConfigError, "not models of transformers"),
        (("tiny",), {}, PocketclipError, "random:tiny"),
        ((REPO,), {"precision": "bf16"}, ExportError, "fp32, fp16, int8"),
        ((REPO,), {"precision": "int8"}, ExportError, "give at least 16"),
        ((REPO,), {"calibration": ["x.jpg"]}, ExportError, "--precision int8"),
        ((REPO,), {"preprocessing": True}, ExportError, "--out DIR"),
        ((REPO,), {"normalize": True}, ExportError, "--out DIR"),
        ((REPO,), {"out": "a\udcff"}, ExportError, "paths in UTF-8"),
    ],
)
def test_what_cannot_be_pulled(hub, arguments, options, error, message):
    with pytest.raises(error, match=message):
        pull(*arguments, **options)
    assert hub.requests == []


def test_a_bundle_is_one_already(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a bundle already"):
        pull(tmp_path)


def test_the_command(repo, cache, tmp_path, monkeypatch):
    done = inside.run("pull", REPO, "--precision", "fp16")
    assert done.returncode == 0, done.stderr
    (folder,) = (path.parent for path in cache.glob("*/*/bundle.json"))
    assert f"tiny is ready: {folder}" in done.stdout
    for line in (
        r"weights: owner/slim at \w{8}, \d\.\d MB",
        r"bundle: onnx, fp16, \d\.\d MB; \d+\.\d s",
        "fp16 saves space, not time",
        r"compared with the unfused towers.*: cosine at least [01]\.\d{6}",
        f"licence of the weights: apple-amlr, see {repo.url}/{REPO}",
    ):
        assert re.search(line, done.stdout), line
    facts = json.loads(inside.run("pull", REPO, "--precision", "fp16", "--json").stdout)
    assert facts["bundle"] == str(folder)
    assert facts["license"].startswith("apple-amlr")
    assert facts["source"]["revision"] == repo.commit(REPO)
    assert facts["verification"]["captions"] == 12
    done = inside.run("pull", REPO, "--preprocessing", "--normalize")
    assert done.returncode == 2
    assert "give --out DIR" in done.stderr
    options = ("--out", tmp_path / "app", "--preprocessing", "--normalize", "--json")
    facts = json.loads(inside.run("pull", REPO, *options).stdout)
    assert (facts["image_input"], facts["normalized"]) == ("photo", True)
    # `models` shows what is ready.
    assert "ready, fp16: owner/slim@" in inside.run("models").stdout
    rows = json.loads(inside.run("models", "--json").stdout)
    assert rows[-1]["name"] == f"{REPO}@{repo.commit(REPO)}"
    assert rows[-1]["ready"]["precision"] == "fp16"
    # Errors, and a standard output that cannot be written.
    repo.stop()
    done = inside.run("pull", "other/slim")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr.splitlines()[-1]
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("POCKETCLIP_CACHE", str(blocked))
    done = inside.run("pull", REPO)
    assert done.returncode == 2
    assert "POCKETCLIP_CACHE, or write it elsewhere" in done.stderr
