"""Without torch, a model is converted once and kept; then it answers as a bundle."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import pocketclip
from pocketclip import checkpoint, devices
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DriftError,
    HubError,
    MissingDependencyError,
    PocketclipError,
    StorageError,
)
from pocketclip.infer import comparison, convert, model_cache, ready
from pocketclip.infer.bundle import read
from pocketclip.infer.license import license_of_bundle
from pocketclip.infer.ready import open_ready
from pocketclip.license import License
from pocketclip.progress import ProgressReporter
from tests.hub_server import HubServer
from tests.infer import slim

REPO = "owner/slim"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two weight files of the same model, with other weights."""
    folder = tmp_path_factory.mktemp("weights")
    return [slim.weight_file(folder, seed) for seed in (0, 1)]


@pytest.fixture
def repo(hub: HubServer, files: list[Path]) -> HubServer:
    hub.repos[REPO] = {"README.md": b"# it", slim.NAME: files[0]}
    return hub


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in an install without torch and with ONNX Runtime only."""
    monkeypatch.setenv("POCKETCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "has_torch", lambda: False)
    monkeypatch.setattr(comparison, "is_installed", lambda name: name == "onnxruntime")
    return tmp_path / "cache" / "models"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was converted: the title of each."""
    done: list[str] = []
    honest = ready.convert_weights

    def counted(weights, folder, *args, **kwargs):
        done.append(weights.place.title)
        return honest(weights, folder, *args, **kwargs)

    monkeypatch.setattr(ready, "convert_weights", counted)
    return done


class Remarks(ProgressReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def remark(self, text: str) -> None:
        self.texts.append(text)


def bundles_in(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.glob("*/*/bundle.json"))


def leftovers(cache: Path) -> list[str]:
    """Return what is neither a bundle nor a record nor a lock."""
    known = ("refs.json", ".lock")
    return [
        path.name
        for path in cache.glob("*/*")
        if not (path / "bundle.json").is_file() and not path.name.endswith(known)
    ]


# --- from the hub


def test_the_first_use_converts_and_the_second_answers(repo, cache, conversions, files, caplog):
    caplog.set_level(logging.INFO, "pocketclip")
    encoder = pocketclip.load(REPO, backend="onnxruntime")
    (folder,) = bundles_in(cache)
    assert folder == cache / "owner--slim" / repo.commit(REPO)
    assert f"converting {REPO} for ONNX Runtime, once: it will be in " in caplog.text
    asked = len(repo.requests)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = pocketclip.Encoder(REPO, "onnxruntime")
    assert (conversions, len(repo.requests)) == ([REPO], asked)
    # It is the model that torch computes.
    model = checkpoint.load(files[0])
    assert encoder.space_id == again.space_id == model.space_id
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    reference = pocketclip.Encoder(model)
    for theirs, ours in (
        (reference.encode_image(photo), again.encode_image(photo)),
        (reference.encode_text(["a dog", "a cat"]), again.encode_text(["a dog", "a cat"])),
    ):
        assert np.abs(theirs - ours).max() < 1e-5
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    # The bundle says what it is made of, and what it was compared with.
    found = read(folder)
    assert found.source == {
        "repo": REPO, "revision": repo.commit(REPO), "file": slim.NAME,
        "bytes": files[0].stat().st_size, "converter": model_cache.CONVERTER,
    }  # fmt: skip
    checked = found.verification
    assert (checked["verified"], checked["photographs"], checked["captions"]) == (True, 4, 12)
    assert "unfused towers" in checked["compared_with"]
    assert checked["backends"]["onnxruntime"]["image"]["max_abs_error"] < 1e-5
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["bundle.json", *found.files]
    )  # the unfused towers are gone


@pytest.mark.usefixtures("cache")
def test_the_licence_of_the_weights_is_fetched_with_them(repo):
    repo.repos[REPO]["LICENSE"] = b"For birds only.\n"
    repo.cards[REPO] = {"license": "other", "license_name": "birds"}
    known = license_of_bundle(pocketclip.load(REPO).bundle)
    assert known == License(name="birds", url=f"{repo.url}/{REPO}", text="For birds only.\n")
    assert known.restricted


def test_offline(repo, cache, conversions):
    with pytest.raises(HubError, match="the network is off"):
        pocketclip.load(REPO, offline=True)
    assert (repo.requests, conversions) == ([], [])
    checkpoint.hub.fetch(REPO)
    asked = len(repo.requests)
    assert pocketclip.load(REPO, offline=True).bundle.folder in bundles_in(cache)
    shutil.rmtree(os.environ["HF_HUB_CACHE"])
    pocketclip.load(REPO, offline=True)
    pocketclip.load(REPO)  # neither needs the weights any more
    assert (len(repo.requests), conversions) == (asked, [REPO])


@pytest.mark.usefixtures("repo")
def test_weights_that_were_damaged_since_their_download(cache):
    file = checkpoint.hub.fetch(REPO).path.resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"hash differs\): remove it"):
        pocketclip.load(REPO)
    assert (bundles_in(cache), leftovers(cache)) == ([], [])
    file.unlink()
    assert pocketclip.load(REPO).bundle.folder in bundles_in(cache)


@pytest.mark.parametrize(
    ("step", "fault", "message"),
    [
        ("api", {"status": 404, "code": "RepoNotFound"}, "was not found"),
        ("api", {"status": 401, "code": "GatedRepo"}, "gated"),
        ("api", {"status": 403, "code": "GatedRepo"}, "gated"),
        ("api", {"status": 500}, "try again"),
        ("get", {"cut": "half"}, "try again"),
    ],
)
def test_hub_errors_keep_nothing(repo, cache, conversions, step, fault, message):
    repo.fail(step, **fault)
    with pytest.raises(HubError, match=message) as caught:
        pocketclip.load(REPO)
    assert "\n" not in str(caught.value)
    assert (bundles_in(cache), leftovers(cache), conversions) == ([], [], [])


def test_a_changed_revision_is_converted_anew(repo, cache, conversions, files):
    first = pocketclip.load(REPO).bundle.folder
    repo.repos[REPO][slim.NAME] = files[1]
    assert pocketclip.load(REPO).bundle.folder == first  # nobody asked the hub
    checkpoint.hub.download(checkpoint.hub.ask(REPO))  # now its cache has another commit
    said = Remarks()
    second = pocketclip.load(REPO, reporter=said)
    assert bundles_in(cache) == [second.bundle.folder] != [first]
    assert second.space_id == checkpoint.load(files[1]).space_id
    (line,) = said.texts
    assert line.startswith(f"{REPO} has changed (main was {first.name[:8]}, and is ")
    assert "converting it for ONNX Runtime, once" in line
    # A commit that is asked for by its name is kept beside it.
    by_name = pocketclip.load(REPO, revision=first.name, offline=True)
    assert by_name.bundle.folder == first
    assert bundles_in(cache) == sorted([first, second.bundle.folder])
    assert pocketclip.load(REPO, revision=first.name[:8]).bundle.folder == first
    assert len(conversions) == 3


def test_the_name_that_the_weights_must_fit_is_part_of_the_key(repo, cache):
    pocketclip.load(REPO)
    with pytest.raises(CheckpointError, match="does not fit mobileclip2-s3"):
        pocketclip.load(f"mobileclip2-s3={REPO}")
    with pytest.raises(CheckpointError, match="does not fit mobileclip2-s3"):
        pocketclip.load(REPO, "mobileclip2-s3")
    assert (len(bundles_in(cache)), leftovers(cache)) == (1, [])
    pocketclip.load(f"tiny={REPO}")
    assert [path.name for path in bundles_in(cache)] == [
        repo.commit(REPO), f"{repo.commit(REPO)}.tiny",
    ]  # fmt: skip


def test_a_file_that_the_hub_might_not_name_is_known_as_a_file(repo, conversions, files):
    """Another library stored its own file of the same commit in the hub's cache."""
    from huggingface_hub import hf_hub_download

    repo.repos[REPO] = {"model.safetensors": files[0], slim.NAME: files[1]}
    hf_hub_download(REPO, "model.safetensors", endpoint=os.environ["HF_ENDPOINT"],
                    cache_dir=os.environ["HF_HUB_CACHE"])  # fmt: skip
    for _ in range(2):
        found = pocketclip.load(REPO, offline=True).bundle
        assert found.folder.parent.name == "local"
        assert found.source["file"] == "model.safetensors"
    assert pocketclip.load(REPO).space_id == checkpoint.load(files[1]).space_id
    assert len(conversions) == 2


# --- from a file or folder here


def test_a_replaced_file_is_never_answered_by_an_old_bundle(tmp_path, cache, conversions, files):
    mine = tmp_path / "mine.safetensors"
    shutil.copy2(files[0], mine)
    first = pocketclip.load(mine)
    assert pocketclip.load(str(mine)).space_id == first.space_id
    assert len(conversions) == 1
    # The same size, name and times, and another inode.
    assert files[0].stat().st_size == files[1].stat().st_size
    shutil.copy2(files[1], tmp_path / "new")
    os.utime(tmp_path / "new", ns=(mine.stat().st_atime_ns, mine.stat().st_mtime_ns))
    (tmp_path / "new").replace(mine)
    said = Remarks()
    second = pocketclip.load(mine, reporter=said)
    assert second.space_id == checkpoint.load(files[1]).space_id != first.space_id
    (line,) = said.texts
    assert line.startswith(f"{mine} was changed since it was converted; converting it for ONNX")
    # Written into in place: the same inode.
    with mine.open("rb+") as stream:
        stream.write(files[0].read_bytes())
    assert pocketclip.load(mine).space_id == first.space_id
    assert len(bundles_in(cache)) == 1
    mine.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        pocketclip.load(mine)


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, cache, files, monkeypatch):
    mine = Path(shutil.copy(files[0], tmp_path / "mine.safetensors"))
    honest = convert.embed_by_weights

    def slow(*args):
        os.utime(mine)
        return honest(*args)

    monkeypatch.setattr(convert, "embed_by_weights", slow)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        pocketclip.load(mine)
    assert (bundles_in(cache), leftovers(cache)) == ([], [])


def test_a_checkpoint_and_a_fused_one(tmp_path, conversions):
    from pocketclip.nn.reparam import fuse

    for name, model in (("plain", slim.model()), ("fused", fuse(slim.model()))):
        checkpoint.save(model, tmp_path / name)
        for _ in range(2):
            found = pocketclip.load(tmp_path / name)
            assert found.space_id == slim.model().space_id
    compared = {b.source["file"]: b.verification["compared_with"] for b in model_cache.list_ready()}
    assert "unfused" in compared["plain"]
    assert "unfused" not in compared["fused"]
    config = tmp_path / "plain" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"tiny"', '"mini"'), "utf-8")
    with pytest.raises(PocketclipError, match="changed after it was saved"):
        pocketclip.load(tmp_path / "plain")
    assert len(conversions) == 3


# --- several processes, and those that were ended


@pytest.mark.usefixtures("repo")
def test_one_converts_and_the_other_waits(conversions, monkeypatch):
    waiting, said = threading.Event(), Remarks()
    said.remark = lambda text: (said.texts.append(text), waiting.set())  # type: ignore[method-assign]
    honest = convert.convert

    def slow(*args, **kwargs):
        second.start()
        assert waiting.wait(30)
        return honest(*args, **kwargs)

    found: list[object] = []
    source = resolve_model(REPO)
    second = threading.Thread(target=lambda: found.append(open_ready(source, reporter=said)))
    monkeypatch.setattr(convert, "convert", slow)
    first = open_ready(source)
    second.join(30)
    assert found == [first]
    assert conversions == [REPO]
    assert said.texts == [f"another process is converting {REPO}: waiting for it"]


CODE = """
import sys, time
sys.modules["torch"] = None
from pocketclip.infer import convert
from pocketclip.cli.main import main

honest = convert.embed_by_weights
def slow(*args):
    print("towers written", file=sys.stderr, flush=True)
    time.sleep(60)
convert.embed_by_weights = slow
sys.argv = ["pocketclip", "embed", sys.argv[2], "--out", "x.npy", "--model", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_conversion_leaves_nothing_that_counts(
    files, cache, conversions, tmp_path, sent
):
    photo = ROOT / "examples" / "photos" / "chelsea.jpg"
    with subprocess.Popen(
        [sys.executable, "-c", CODE, files[0], photo], stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "towers written" not in (seen := process.stderr.readline()):
            assert seen
        assert leftovers(cache)
        process.send_signal(sent)
        process.communicate(timeout=60)
    assert process.returncode in {signal.SIGKILL: (-9,), signal.SIGINT: (130, -2)}[sent]
    assert bundles_in(cache) == []
    if sent == signal.SIGINT:
        assert leftovers(cache) == []
    said = Remarks()
    pocketclip.load(files[0], reporter=said)
    assert len(conversions) == len(said.texts) == 1  # it waited for nobody
    assert leftovers(cache) == []


# --- what can go wrong with the cache


@pytest.mark.usefixtures("repo")
def test_a_damaged_bundle_is_made_again(cache, conversions, caplog):
    pocketclip.load(REPO)
    (folder,) = bundles_in(cache)
    for name, damage in (
        ("image.onnx.data", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("text.onnx", lambda _: None),
        ("bundle.json", lambda data: data[:100]),
    ):
        file, before = folder / name, len(conversions)
        new = damage(file.read_bytes())
        file.unlink()
        if new is not None:
            file.write_bytes(new)
        encoder = pocketclip.load(REPO, offline=True)
        assert encoder.encode_text("a dog").shape == (1, 64)
        assert encoder.encode_image(np.zeros((16, 16, 3), np.uint8)).shape == (1, 64)
        assert len(conversions) == before + 1
    assert caplog.text.count("is damaged; it is made again") == 2
    # Concurrent removal.
    encoder = pocketclip.load(REPO)
    shutil.rmtree(cache)
    encoder.encode_text("a dog")
    # Without the weights it says so.
    (folder / "text.onnx").write_bytes(b"")
    shutil.rmtree(os.environ["HF_HUB_CACHE"])
    with pytest.raises(
        BundleError, match=r"damaged, and it cannot be converted again: .*no weights"
    ):
        pocketclip.load(REPO, offline=True).encode_text("a dog")


def test_a_bundle_of_another_converter_is_made_again(files, cache, conversions):
    pocketclip.load(files[0])
    (folder,) = bundles_in(cache)
    whole = json.loads((folder / "bundle.json").read_text("utf-8"))
    for other in (model_cache.CONVERTER - 1, model_cache.CONVERTER + 1, "1", None):
        about = {**whole, "source": {**whole["source"], "converter": other}}
        (folder / "bundle.json").write_text(json.dumps(about), "utf-8")
        assert model_cache.find(resolve_model(files[0]), None) is None
        assert model_cache.list_ready() == []
    pocketclip.load(files[0])
    assert len(conversions) == 2
    assert [bundle.folder for bundle in model_cache.list_ready()] == [folder]


def test_a_full_disk_and_a_cache_that_cannot_be_written(files, cache, tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="make room, choose another cache") as caught:
            pocketclip.load(files[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "POCKETCLIP_CACHE" in str(caught.value)
    assert "--out DIR" in str(caught.value)
    assert (bundles_in(cache), leftovers(cache)) == ([], [])
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("POCKETCLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="POCKETCLIP_CACHE"):
        pocketclip.load(files[0])
    monkeypatch.setenv("POCKETCLIP_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(StorageError, match="set POCKETCLIP_CACHE"):
        pocketclip.load(files[0])


# --- what is not kept, and what is refused


def test_a_conversion_that_computes_something_else_is_refused(files, cache, monkeypatch):
    honest = convert.write_tower

    def write_tower(weights, config, kind, path, *, fuse=True, **options):
        if fuse and kind == "image":
            weights = {**weights, "image.head.bias": weights["image.head.bias"] + 1}
        return honest(weights, config, kind, path, fuse=fuse, **options)

    monkeypatch.setattr(convert, "write_tower", write_tower)
    with pytest.raises(DriftError, match=r"nothing was kept: onnxruntime: image tower: the small"):
        pocketclip.load(files[0])
    assert (bundles_in(cache), leftovers(cache)) == ([], [])


def test_what_needs_torch_is_refused_before_the_conversion(files, conversions, monkeypatch):
    for options, error, message in (
        ({"device": "cuda"}, ConfigError, "without torch.* runs on the CPU"),
        ({"precision": "fp16"}, ConfigError, "without torch.* leave out precision 'fp16'"),
        ({"backend": "coreml"}, BundleError, "backend 'coreml'"),
    ):
        with pytest.raises(error, match=message):
            pocketclip.load(files[0], **options)
    monkeypatch.setitem(sys.modules, "torch", None)
    for arguments in (("random:tiny",), (files[0], None)):
        options = {} if len(arguments) == 1 else {"backend": "torch"}
        with pytest.raises(MissingDependencyError, match="needs torch"):
            pocketclip.load(*arguments, **options)
    assert conversions == []


REFUSES = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "openvino", "onnx", "onnxscript", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def test_verbs_in_a_process_without_torch(repo, tmp_path):
    photo = ROOT / "examples" / "photos" / "chelsea.jpg"
    (tmp_path / "sitecustomize.py").write_text(REFUSES)  # for the processes of a verb too

    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "pocketclip", *map(str, args)], capture_output=True, text=True,
            check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"},
        )  # fmt: skip

    done = run("classify", photo, "--labels", "a dog,a cat", "--model", REPO, "--threads", 1)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"converting {REPO} for ONNX Runtime, once: it will be in ")
    repo.stop()
    again = run("classify", photo, "--labels", "a dog,a cat", "--model", REPO)
    assert (again.stdout, again.stderr, again.returncode) == (done.stdout, "", 0)
    figures = run("bench", REPO, "--seconds", "0", "--json")
    (row,) = json.loads(figures.stdout)["models"]
    assert (row["backend"], row["precision"]) == ("onnxruntime", "fp32")
    (tmp_path / "photos").mkdir()
    for number in range(16):
        shutil.copy(photo, tmp_path / "photos" / f"{number}.jpg")
    int8 = ("--precision", "int8", "--calibration", "photos", "--offline", "--json")
    pulled = run("pull", REPO, *int8)
    assert json.loads(pulled.stdout)["precision"] == "int8", pulled.stderr
