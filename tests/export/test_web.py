"""A static site: its files, what it replaces, and what is refused. See tests/web/test_site.py."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import pocketclip
from pocketclip.errors import (
    BundleError,
    ChangedBundleError,
    ConfigError,
    DataError,
    ExportError,
)
from pocketclip.export import web
from pocketclip.export.web import export_site, export_web
from pocketclip.infer.bundle import read, write_manifest
from pocketclip.pages.presets import preset_prompts, prompts_of
from pocketclip.pages.web_files import read_web_files, web_files, with_webgpu
from tests.search.conftest import draw_photo
from tests.serve.test_models import files_of, fruit

PACKAGE = Path(pocketclip.__file__).parent
_WEBGPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs")


@pytest.fixture(scope="module", autouse=True)
def _fast():
    if web_files().vendor is None:
        pytest.skip("the package was built without npm: python hatch_build.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "_LEVEL", 1)  # nine takes a second per site
        yield


@pytest.fixture(scope="module")
def labels(tmp_path_factory, encoder):
    """A label set of the small model."""
    path = tmp_path_factory.mktemp("labels") / "Ein Regal.json"
    fruit(encoder).write(path)
    return path


@pytest.fixture(scope="module")
def site(bundle, exported, labels, tmp_path_factory):
    """A site with one model in two precisions and a label set; not to be changed."""
    folder = tmp_path_factory.mktemp("site") / "site"
    further = exported("teacher-a", precision="fp16")
    made = export_site([bundle, further], folder, label_sets={"Ein Regal": labels})
    assert made.bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return made


def entry_of(folder):
    (model,) = json.loads((folder / "models.json").read_text("utf-8"))["models"]
    return model


def test_every_file_inflates_to_what_its_entry_says(site):
    files = files_of(entry_of(site.folder))
    assert len(files) == 2 * 6 + 2
    for file in files:
        stored = (site.folder / file["url"]).read_bytes()
        data = gzip.decompress(stored)
        assert (file["encoding"], file["download_bytes"]) == ("gzip", len(stored))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        assert stored[4:8] == b"\0\0\0\0"  # no time: the same bundles give the same site


def test_the_variants_are_of_one_model(site, bundle):
    model = entry_of(site.folder)
    assert [one["precision"] for one in model["variants"]] == ["fp32", "fp16"]
    assert model["variants"][0]["variant"] == read(bundle).variant
    assert [(one["name"], one["label_count"]) for one in model["label_sets"]] == [("Ein Regal", 2)]
    file = site.folder / model["label_sets"][0]["file"]["url"]
    assert json.loads(gzip.decompress(file.read_bytes()))["made"] == {}


def test_presets_are_embedded_by_the_most_precise_variant(site, encoder):
    file = entry_of(site.folder)["presets"]
    raw = json.loads(gzip.decompress((site.folder / file["url"]).read_bytes()))
    assert raw["prompts"] == list(preset_prompts())
    rows = np.frombuffer(base64.b64decode(raw["embeddings"]), "<f4")
    expected = encoder.encode_text(raw["prompts"])
    np.testing.assert_allclose(rows.reshape(expected.shape), expected, atol=1e-6)


def test_pages_name_no_address_of_their_own(site):
    assert (site.folder / "index.html").read_text() == (site.folder / "camera.html").read_text()
    assert not (site.folder / "search.html").exists()
    for name in ("index", "classify"):
        html = (site.folder / f"{name}.html").read_text("utf-8")
        links = re.findall(r'(?:href|src)="([^"]*)"', html)
        assert not [link for link in links if link.startswith(("/", "http:"))]
        for link in links:
            assert link.startswith("#") or (site.folder / link).exists(), link
        config = json.loads(re.search(r'id="config">(.*?)</script>', html)[1])
        assert config["server"] is False
        for file in config["vendor"]["files"].values():
            stored = (site.folder / file["url"]).read_bytes()
            data = gzip.decompress(stored) if file["encoding"] else stored
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert not file["url"].endswith(".mjs")
        assert "script-src &#39;self&#39; &#39;wasm-unsafe-eval&#39;;" in html


def test_a_first_visit_is_counted_without_the_text_tower(site):
    variant = entry_of(site.folder)["variants"][1]
    runtime = web_files().vendor_files["ort-wasm-simd-threaded.wasm.gz"]["download_bytes"]
    image = sum(file["download_bytes"] for file in variant["image"]["files"])
    assert image + runtime < site.first_visit["wasm"] < image + runtime + 1_000_000


def test_a_damaged_bundle_leaves_no_site(bundle, tmp_path):
    own = shutil.copytree(bundle, tmp_path / "own")
    file = own / "text.onnx.data"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ChangedBundleError, match="its hash differs"):
        export_site([own], tmp_path / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_what_browsers_cannot_run_is_refused(exported, tmp_path):
    with pytest.raises(BundleError, match="bundle for openvino, which browsers cannot run"):
        export_site([exported("teacher-a", "openvino")], tmp_path / "site")


def test_a_label_set_of_another_model_is_refused(bundle, encoder, tmp_path):
    fruit(encoder, space_id="another").write(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"a was fitted to .* not among the models"):
        export_site([bundle], tmp_path / "site", label_sets={"a": tmp_path / "a.json"})


def test_a_restricted_licence_has_to_be_accepted(bundle, tmp_path):
    own = shutil.copytree(bundle, tmp_path / "own")
    raw = json.loads((own / "bundle.json").read_text("utf-8"))
    text = "Apple Machine Learning Research Model is licensed under terms\n"
    (own / "LICENCE.txt").write_text(text, "utf-8")
    about = {k: v for k, v in raw.items() if k not in ("files", "sha256", "tokenizer", "format")}
    licence = {"name": "apple-amlr", "url": "https://example.org/l", "file": "LICENCE.txt"}
    write_manifest(own, {**about, "licence": licence}, [*raw["files"], "LICENCE.txt"])
    for function in (export_site, export_web):
        given = [own] if function is export_site else own
        with pytest.raises(ConfigError, match=r"licence apple-amlr.*--accept-licence"):
            function(given, tmp_path / "site")
    made = export_site([own], tmp_path / "site", accept_license=True)
    licence = entry_of(made.folder)["licence"]
    assert (licence["name"], licence["restricted"]) == ("apple-amlr", True)
    assert (made.folder / licence["text"]).read_text("utf-8") == text


def test_a_checkpoint_is_converted_to_int8_and_a_copy_for_webgpu(tmp_path, site):
    """And an older site is replaced, but not what was added to it."""
    photos = [draw_photo(tmp_path / f"{seed}.jpg", seed) for seed in range(16)]
    checkpoint = PACKAGE / "data" / "quickstart" / "teacher-a"
    folder = shutil.copytree(site.folder, tmp_path / "site")
    with pytest.raises(ExportError, match="give at least 16 with --calibration FOLDER, or take "):
        export_web(checkpoint, folder, calibration=photos[:15])
    export_web(checkpoint, folder, calibration=photos, webgpu_precision="fp16")
    variants = entry_of(folder)["variants"]
    assert [(one["precision"], one["runtimes"]) for one in variants] == [
        ("int8", ["wasm"]), ("fp16", ["webgpu", "wasm"]),
    ]  # fmt: skip
    assert list(folder.glob("vendor/*/ort.wasm.min.js"))
    assert list(folder.glob("assets/*/app/camera/main.js"))
    assert not list(folder.glob("assets/*/app/search"))
    (folder / "CNAME").write_text("photos.example.org")
    with pytest.raises(ExportError, match=r"holds other files \('CNAME'\)"):
        export_web(checkpoint, folder, precision="fp16")
    assert (folder / "index.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "unknown precision"),
        ({"precision": "fp16", "webgpu_precision": "int8"}, "WebGPU cannot run"),
        ({"precision": "fp16", "calibration": [0] * 16}, "for int8: leave them out"),
    ],
)
def test_precisions_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export_web(PACKAGE / "data" / "quickstart" / "teacher-a", tmp_path / "site", **options)


def test_a_bundle_is_copied_as_it_is(bundle, tmp_path):
    with pytest.raises(ExportError, match="is a bundle, which is copied as it is"):
        export_web(bundle, tmp_path / "site", precision="int8")


# The runtime for WebGPU


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The pages as a wheel has them, and the folder that the runtime for WebGPU comes from."""
    root = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE / "web", root / "web", ignore=shutil.ignore_patterns("__pycache__"))
    about = json.loads((root / "web" / "vendor" / "vendor.json").read_text("utf-8"))
    dist = root / "dist"
    dist.mkdir()
    for name in _WEBGPU:
        data = f"// {name}\n".encode()
        (dist / name).write_bytes(data + b"//# sourceMappingURL=x.map\n")
        (root / "web" / "vendor" / name).unlink(missing_ok=True)
        about["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    wasm = "ort-wasm-simd-threaded.asyncify.wasm"
    (dist / wasm).write_bytes(b"wasm")
    (root / "web" / "vendor" / f"{wasm}.gz").unlink(missing_ok=True)
    about["files"][f"{wasm}.gz"] = {"sha256": hashlib.sha256(b"wasm").hexdigest(), "bytes": 4}
    (root / "web" / "vendor" / "vendor.json").write_text(json.dumps(about), "utf-8")
    return read_web_files(root / "web"), dist


def test_the_runtime_for_webgpu_is_added(plain):
    site, dist = plain
    assert not site.has_webgpu
    full = with_webgpu(site, dist)
    assert full.has_webgpu
    assert full.vendor != site.vendor
    files = full.config(server=True)["vendor"]["files"]
    assert files["ort.webgpu.min.mjs"]["url"] == f"{full.vendor}ort.webgpu.min.js"
    for file in files.values():
        content = full.content(file["url"])
        data = gzip.decompress(content) if file["encoding"] else content
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        assert file["download_bytes"] == len(content)


def test_a_site_without_a_model_for_webgpu_has_no_runtime_for_it(plain):
    site, dist = plain
    less = with_webgpu(site, dist).without_server(webgpu=False)
    assert not less.has_webgpu
    assert less.vendor == site.vendor
    assert not any("webgpu" in name or "asyncify" in name for name in less.files)
    assert with_webgpu(site, dist).without_server(webgpu=True).has_webgpu


def test_another_runtime_for_webgpu_is_refused(plain, tmp_path):
    site, dist = plain
    other = shutil.copytree(dist, tmp_path / "dist")
    (other / "ort.webgpu.min.mjs").write_bytes(b"another version")
    with pytest.raises(ConfigError, match=r"ort.webgpu.min.mjs is another file\): .*npm install"):
        with_webgpu(site, other)
    with pytest.raises(ConfigError, match="No such file"):
        with_webgpu(site, tmp_path)


def test_without_npm_there_is_no_site(bundle, tmp_path, plain, monkeypatch):
    bare = tmp_path / "web"
    shutil.copytree(PACKAGE / "web", bare, ignore=shutil.ignore_patterns("vendor"))
    without = read_web_files(bare)
    monkeypatch.setattr(web, "web_files", lambda: without)
    with pytest.raises(ExportError, match="built without npm"):
        export_site([bundle], tmp_path / "site")
    with pytest.raises(ConfigError, match="built without npm"):
        with_webgpu(without, plain[1])
    assert without.config(server=True)["vendor"] is None


def test_prompts_are_made_as_in_the_pages():
    preset = {"prefix": "A photo of", "suffix": "", "labels": ["pen"], "templates": []}
    assert prompts_of(preset) == ["A photo of pen"]
    assert prompts_of({**preset, "suffix": "on a desk"}) == ["A photo of pen on a desk"]
    assert prompts_of({**preset, "prefix": ""}) == ["pen"]
    assert prompts_of({**preset, "templates": ["a {}", "two {}"]}) == ["a pen", "two pen"]
    assert prompts_of({**preset, "labels": []}) == []
