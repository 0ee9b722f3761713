"""What the package's build puts beside the web pages, without npm."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

from pocketclip.pages.web_files import media_type, read_web_files

_PATH = Path(__file__).parents[1] / "hatch_build.py"


def test_licences_stand_beside_what_they_are_of(tmp_path):
    spec = importlib.util.spec_from_file_location("hatch_build", _PATH)
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    packages, root = tmp_path / "node_modules", tmp_path / "web"
    root.mkdir()
    for path in (*hatch_build.WASM_FILES, *hatch_build.WEBGPU_FILES):
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).write_bytes(b"code\n//# sourceMappingURL=x.map")
    for package, version in (("onnxruntime-web", "1.2.3"), ("@huggingface/tokenizers", "4.5.6")):
        (packages / package / "package.json").write_text(json.dumps({"version": version}))
    (packages / "@huggingface/tokenizers/LICENSE").write_text("Apache License")
    hatch_build._copy(packages, root / "vendor", "made of", hatch_build.WASM_FILES)
    site = read_web_files(root).without_server(webgpu=False)
    assert sorted(name.removeprefix(site.vendor) for name in site.files) == [
        "LICENSE.onnxruntime-web", "LICENSE.tokenizers", "ort-wasm-simd-threaded.js",
        "ort-wasm-simd-threaded.wasm.gz", "ort.wasm.min.js", "tokenizers.min.js",
    ]  # fmt: skip
    license_of_ort = site.content(f"{site.vendor}LICENSE.onnxruntime-web").decode()
    assert "Copyright (c) Microsoft Corporation" in license_of_ort
    assert "Permission is hereby granted" in license_of_ort
    assert "/v1.2.3/ThirdPartyNotices.txt" in license_of_ort
    assert media_type("vendor/1/LICENSE.onnxruntime-web").startswith("text/plain")
    packed = site.content(f"{site.vendor}ort-wasm-simd-threaded.wasm.gz")
    assert gzip.decompress(packed).startswith(b"code")
    assert site.content(f"{site.vendor}ort.wasm.min.js") == b"code"
