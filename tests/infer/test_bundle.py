"""Bundles: what was changed, damaged or is of something else is refused in one clear line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pocketclip import Encoder
from pocketclip.errors import BundleError, ChangedBundleError, PocketclipError
from pocketclip.formats.json_text import digest_json
from pocketclip.infer import bundle as module
from pocketclip.infer.bundle import is_bundle, read
from pocketclip.storage.local import refuse_others
from tests.bundles import manifest, model, rewritten

PHOTO = module.Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"


@pytest.fixture
def folder(exported, tmp_path):
    """A bundle to be damaged."""
    return exported.copy(tmp_path / "bundle")


def _use(folder):
    encoder = Encoder(folder, threads=1)
    return encoder.encode_image(PHOTO), encoder.encode_text("a cat")


def _signed(folder, **changes):
    """Change fields of the manifest as someone would who also writes its hash anew."""
    raw = manifest(folder) | changes
    del raw["sha256"]
    raw = {key: value for key, value in raw.items() if value is not None}
    raw["sha256"] = digest_json(raw)
    (folder / "bundle.json").write_text(json.dumps(raw), "utf-8")


def test_a_bundle_says_what_it_is(exported):
    folder = exported()
    assert is_bundle(folder)
    bundle = read(folder, space_id=model().space_id)
    assert bundle.config == model().config
    assert bundle.path("image") == folder / "image.onnx"
    encoder = Encoder(folder)
    assert encoder.space_id == bundle.space_id == model().space_id
    assert encoder.embed_dim == 64
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    with pytest.raises(BundleError, match="no model in torch"):
        _ = encoder.model


@pytest.mark.parametrize("name", ["image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_file_that_is_not_the_exported_one(folder, name, harm):
    file = folder / name
    data = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if harm == "flip" else data[:-10])
    with pytest.raises(ChangedBundleError, match="is missing" if harm == "gone" else "its hash"):
        _use(folder)
    with pytest.raises(ChangedBundleError, match=name):
        read(folder).check()


def test_check_covers_the_tokenizer_too(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ChangedBundleError, match=r"tokenizer\.json"):
        read(folder).check()
    with pytest.raises(ChangedBundleError, match=r"tokenizer\.json"):
        _use(folder)


@pytest.mark.parametrize("field", ["logit_scale", "space_id", "normalized", "precision"])
def test_a_changed_manifest(folder, field):
    raw = manifest(folder)
    raw[field] = 3.0
    (folder / "bundle.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(ChangedBundleError, match=r"bundle\.json is not the file"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2.*reads version 1: update pocketclip"),
        ({"format": "zip"}, "was not written by `pocketclip export`"),
        ({"tokenizer": "0" * 16}, "another tokenizer"),
        ({"tokenizer": None}, "damaged"),
        ({"space_id": None}, "damaged"),
        ({"image": None}, "damaged"),
        ({"logit_scale": "much"}, "damaged"),
        ({"model": {"name": "x", "nothing": 1}}, "damaged"),
        ({"files": [1, 2]}, "damaged"),
    ],
)
def test_a_manifest_of_something_else(folder, changes, message):
    _signed(folder, **changes)
    with pytest.raises(BundleError, match=message):
        read(folder)


def _frame(**changes):
    """Return what changes the stored frame of a manifest; None removes a field."""

    def change(raw):
        check = raw["check"] | changes
        return {"check": {key: value for key, value in check.items() if value is not None}}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"check": [1]}, "check is not an object"),
        (_frame(pixels="../check.rgb"), r"not the file check\.rgb"),
        (_frame(pixels="image.onnx"), r"not the file check\.rgb"),
        (_frame(pixels=None), r"not the file check\.rgb"),
        (_frame(width=32), "not 64 x 64"),
        (_frame(height=64.0), "not 64 x 64"),
        (_frame(embedding=None), "not a list of 64"),
        (_frame(embedding=[1.0] + [0.0] * 62), "not a list of 64"),
        (_frame(embedding=[float("nan")] + [0.0] * 63), "damaged"),
        (_frame(embedding=["1"] + [0.0] * 63), "numbers from -1 to 1"),
        (_frame(embedding=[True] + [0.0] * 63), "numbers from -1 to 1"),
        (_frame(embedding=[0.5] + [0.0] * 63), "length 1"),
        (lambda raw: {"files": {k: v for k, v in raw["files"].items() if k != "check.rgb"}},
         r"not the file check\.rgb"),
        (lambda raw: {"files": raw["files"] | {"check.rgb": {"sha256": "0" * 64, "bytes": 9}}},
         "does not hold 64 x 64"),
        (lambda _: {"licence": "mit"}, "licence is not an object"),
        (lambda _: {"licence": {"name": 3}}, "name of the licence"),
        (lambda _: {"licence": {"name": "a\nb"}}, "name of the licence"),
        (lambda _: {"licence": {"url": "javascript:alert(1)"}}, "no web page"),
        (lambda _: {"licence": {"file": "../LICENCE.txt"}}, "file of the licence"),
        (lambda _: {"licence": {"file": "tokenizer.json"}}, "file of the licence"),
        (lambda _: {"licence": {"file": "LICENCE.txt"}}, r"LICENCE\.txt is not one of its files"),
    ],
)  # fmt: skip
def test_a_damaged_frame_or_licence(folder, change, message):
    _signed(folder, **change(manifest(folder)))
    with pytest.raises(BundleError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"preprocessing": True, "normalize": True}])
def test_the_stored_frame_is_a_photograph_with_its_embedding(exported, options):
    bundle = read(exported(**options))
    frame = bundle.check_frame
    pixels = np.fromfile(bundle.folder / frame.pixels, np.uint8).reshape(64, 64, 3)
    assert (frame.width, frame.height) == (64, 64)
    assert pixels.std() > 20  # a photograph, not a plain colour
    embedding = Encoder(bundle.folder, "onnxruntime").encode_image(pixels)[0]
    assert np.abs(embedding - np.array(frame.embedding)).max() < 1e-6
    # By what a device does with the file alone, without any code of ours.
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.path("image"))
    rows = pixels[None]
    if bundle.image_input == "preprocessed":
        rows = (rows.transpose(0, 3, 1, 2) / 255).astype(np.float32)  # of this model: no mean
    found = session.run(None, {session.get_inputs()[0].name: rows})[0][0]
    assert found @ np.array(frame.embedding) / np.linalg.norm(found) > 0.9999


def test_bundles_without_frame_and_licence_are_read(folder):
    """Earlier ones; and those with both are the same export as without."""
    before = read(folder)
    names = [name for name in before.files if name != "check.rgb"]
    (folder / "check.rgb").unlink()
    raw = manifest(folder)
    del raw["check"]
    (folder / "bundle.json").write_text(json.dumps(raw), "utf-8")
    bundle = read(rewritten(folder, names=names))
    assert (bundle.check_frame, bundle.licence) == (None, None)
    assert bundle.variant == before.variant
    bundle.check()


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", '{"format"', "\xff\xfe"])
def test_a_manifest_that_is_none(folder, text):
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        BundleError, match=r"bundle.json (is damaged: its text is|was not)"
    ) as caught:
        read(folder)
    assert str(caught.value).count("bundle.json") == 1
    assert "export" in str(caught.value)  # what to do next
    assert "Error(" not in str(caught.value)


def test_a_manifest_without_an_entry(folder):
    _signed(folder, logit_scale=None)
    with pytest.raises(BundleError, match='is damaged: "logit_scale" is missing; copy'):
        read(folder)


def test_no_bundle_at_all(tmp_path):
    assert not is_bundle(tmp_path)
    for path in (tmp_path, tmp_path / "nothing", PHOTO):
        with pytest.raises(BundleError, match="no bundle"):
            read(path)


def test_another_embedding_space(folder):
    with pytest.raises(BundleError, match=rf"space {model().space_id}, not mine"):
        read(folder, space_id="mine")


@pytest.mark.slow  # a runtime may leave a damaged heap behind, and later tests crash
@pytest.mark.parametrize("harm", ["noise", "cut", "empty", "weights cut"])
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_corrupted_model_whose_hash_is_right(exported, tmp_path, target, harm):
    """The runtime's own errors come out as one of ours."""
    folder = exported.copy(tmp_path / "bundle", target=target)
    weights = {"onnx": "image.onnx.data", "openvino": "image.bin"}[target]
    file = folder / (weights if harm == "weights cut" else manifest(folder)["image"]["file"])
    data = file.read_bytes()
    file.write_bytes(
        {"noise": bytes(range(256)) * 64, "empty": b""}.get(harm, data[: len(data) // 2])
    )
    rewritten(folder)
    with pytest.raises(BundleError, match=r"cannot load it: .") as caught:
        _use(folder)
    assert "\n" not in str(caught.value)


def test_a_bundle_for_devices_is_not_run_here(folder):
    _signed(folder, target="coreml")
    with pytest.raises(
        BundleError, match=r"coreml bundle, which runs on devices.*--format openvino"
    ):
        Encoder(folder)
    assert issubclass(BundleError, PocketclipError)


def _moved(folder, tower, file):
    """Let a tower's file, and its hash, have another name."""
    raw = manifest(folder)
    files = {file if n == raw[tower]["file"] else n: e for n, e in raw["files"].items()}
    _signed(folder, files=files, **{tower: raw[tower] | {"file": file}})


@pytest.mark.parametrize(
    "name",
    ["../image.onnx", "a/../../image.onnx", "/etc/passwd", "..", "a//b", "./image.onnx",
     "..\\image.onnx", "C:\\image.onnx", "C:image.onnx", "\\\\host\\share", "image.onnx\0", ""],
)  # fmt: skip
def test_a_file_outside_of_the_bundle_is_refused(folder, name):
    _moved(folder, "image", name)
    with pytest.raises(BundleError, match="outside of the bundle"):
        read(folder)
    # nor without a hash
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    raw = manifest(other)
    _signed(other, files={n: e for n, e in raw["files"].items() if n != name})
    with pytest.raises(BundleError, match="not one of its files"):
        read(other)


def test_a_link_out_of_the_bundle_is_refused(folder, tmp_path):
    (folder / "image.onnx").rename(tmp_path / "image.onnx")
    (folder / "image.onnx").symlink_to(tmp_path / "image.onnx")
    with pytest.raises(BundleError, match=r"'image\.onnx', which is outside of the bundle"):
        read(folder)
    (folder / "image.onnx").unlink()
    (folder / "deep").mkdir()
    (tmp_path / "image.onnx").rename(folder / "deep" / "image.onnx")
    (folder / "image.onnx").symlink_to("deep/image.onnx")  # within it
    (tmp_path / "link").symlink_to(folder)  # to it
    assert read(tmp_path / "link").path("image").is_file()


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    read(snapshot).check()


@pytest.mark.parametrize("file", ["text.onnx", "image.onnx.data.more", 3, None, ["image.onnx"]])
def test_a_tower_without_a_file_of_its_own(folder, file):
    _signed(folder, image=manifest(folder)["image"] | {"file": file})
    with pytest.raises(BundleError, match="is not one of its files"):
        read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_scale": float("nan")}, {"logit_scale": float("inf")}, {"logit_scale": 0},
        {"logit_scale": -3}, {"image_input": "film"}, {"image_input": ["photo"]},
        {"verification": {"backends": {"onnxruntime": {"ms": "fast"}}}},
        {"verification": {"backends": {"onnxruntime": 3}}},
        {"verification": {"backends": {"onnxruntime": {"ms": float("nan")}}}},
        {"verification": {"backends": 3}},
        {"files": {"image.onnx": {"bytes": "1", "sha256": "0"}}},
        {"files": {"image.onnx": {"bytes": 1}}},
    ],
)  # fmt: skip
def test_values_that_make_no_sense(folder, changes):
    _signed(folder, **changes)
    with pytest.raises(BundleError, match="is damaged"):
        read(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("std", [0, 1, 1]), ("std", [1, float("nan"), 1]), ("std", [1, 1, -1]), ("std", [1e-30] * 3),
     ("std", [float("inf")] * 3), ("mean", [float("nan"), 0, 0]), ("size", 10**9), ("size", 0)],
)  # fmt: skip
def test_preprocessing_that_makes_no_sense(folder, field, value):
    about = manifest(folder)["model"]
    _signed(folder, model=about | {"preprocess": about["preprocess"] | {field: value}})
    # JSON itself has neither NaN nor infinity.
    reason = f"preprocess.{field} cannot be|(NaN|Infinity) is not a JSON number"
    with pytest.raises(BundleError, match=f"is damaged.*({reason})"):
        read(folder)


@pytest.mark.parametrize("name", ["image.onnx", "tokenizer.json", "bundle.json"])
def test_a_pointer_of_git_lfs_is_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BundleError, match=rf"{name} is a git-LFS pointer.*git lfs pull"):
        read(folder).check()


def test_a_bundle_that_a_killed_process_moved_aside_is_read(exported, tmp_path, caplog):
    shutil.copytree(exported(), tmp_path / ".b.123.abcd.old")
    assert is_bundle(tmp_path / "b")
    assert read(tmp_path / "b").folder == tmp_path / "b"
    assert "was restored" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("other", ["thesis.txt", "notes/", "image.onnx.bak"])
def test_a_folder_with_anything_but_a_bundle_is_not_replaced(exported, tmp_path, other):
    target = tmp_path / "b"
    shutil.copytree(exported(), target)
    refuse_others(target, module.own_files)
    if other.endswith("/"):
        (target / other).mkdir()
    else:
        (target / other).write_text("mine")
    with pytest.raises(PocketclipError, match=r"holds other files.*would be lost"):
        refuse_others(target, module.own_files)
    assert (target / other).exists()


def test_a_manifest_that_is_no_json_is_said_in_words(folder):
    (folder / "bundle.json").write_text("")
    with pytest.raises(BundleError, match=r"is damaged: .* is not JSON") as caught:
        read(folder)
    assert "ParseError(" not in str(caught.value)
