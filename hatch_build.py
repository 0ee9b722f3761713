"""Puts into the package, when it is built, what its web pages run on.

`npm ci` brings the packages that `package-lock.json` names with their hashes; the files that pages
load are copied to `src/pocketclip/web/vendor/`, with `vendor.json`, their SHA-256 and sizes.
Without npm the package is built without them, and its pages say so and use the server.

    python hatch_build.py             # in a checkout
    python hatch_build.py --webgpu    # and the runtime for WebGPU, which no wheel carries: 27 MB

`POCKETCLIP_WEB` is `auto` (the default), `skip`, or `require`: then the build fails without them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # as a script, in an environment that builds nothing
    BuildHookInterface = object  # type: ignore[assignment, misc]

ROOT = Path(__file__).parent
VENDOR = Path("src", "pocketclip", "web", "vendor")
_ORT = "onnxruntime-web"
_TOKENIZERS = "@huggingface/tokenizers"
WASM_FILES = (
    f"{_ORT}/dist/ort.wasm.min.mjs",
    f"{_ORT}/dist/ort-wasm-simd-threaded.mjs",
    f"{_ORT}/dist/ort-wasm-simd-threaded.wasm",
    f"{_TOKENIZERS}/dist/tokenizers.min.mjs",
)
"""What a wheel carries."""
WEBGPU_FILES = (
    f"{_ORT}/dist/ort.webgpu.min.mjs",
    f"{_ORT}/dist/ort-wasm-simd-threaded.asyncify.mjs",
    f"{_ORT}/dist/ort-wasm-simd-threaded.asyncify.wasm",
)
"""What WebGPU needs beside it."""
_LICENSES = (f"{_TOKENIZERS}/LICENSE",)
_ORT_LICENSE = """\
onnxruntime-web {version}, whose npm package has no copy of its licence

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.

Notices of the software that it contains:
https://github.com/microsoft/onnxruntime/blob/v{version}/ThirdPartyNotices.txt
"""
_PATIENCE = 300.0  # seconds
_SOURCES = ("package.json", "package-lock.json", "hatch_build.py")


class CustomBuildHook(BuildHookInterface):
    """Runs before a wheel, or an editable install, is made."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the folder, and let the wheel carry its part although git ignores it."""
        del version
        if self.target_name == "wheel":
            build_vendor(Path(self.root), say=self.app.display_info)
            carried = ("vendor.json", "LICENSE.*", *map(stored_name, WASM_FILES))
            artifacts = build_data.setdefault("artifacts", [])
            artifacts += [f"/{VENDOR.as_posix()}/{name}" for name in carried]


def build_vendor(root: Path = ROOT, *, webgpu: bool = False, say: Any = print) -> None:
    """Bring the pages' packages with npm, and copy what pages load.

    Nothing is done if the folder was made by the same lock file.

    Args:
        root: the checkout.
        webgpu: whether the runtime for WebGPU is copied too.
        say: prints a line.

    Raises:
        RuntimeError: npm failed, or is absent, and `POCKETCLIP_WEB` is `require`.
    """
    wish = os.environ.get("POCKETCLIP_WEB", "auto")
    if wish == "skip":
        return
    made_of = hashlib.sha256(b"".join((root / one).read_bytes() for one in _SOURCES)).hexdigest()
    wanted = (*WASM_FILES, *(WEBGPU_FILES if webgpu else ()))
    if _is_made(root / VENDOR, made_of, wanted):
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            packages = _fetch_packages(root, Path(folder))
            _copy(packages, root / VENDOR, made_of, wanted)
    except (OSError, subprocess.SubprocessError) as error:
        if wish == "require":
            raise RuntimeError(f"the web pages need npm's packages: {error}") from error
        say(f"the package is built without what its web pages run on: {error}")


def _fetch_packages(root: Path, folder: Path) -> Path:
    """Return a folder with npm's packages; those of a checkout are left alone."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(root / name, folder / name)
    command = [npm, "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund"]
    subprocess.run(
        [*command, "--fetch-retries=1"], cwd=folder, check=True, stdout=sys.stderr,
        timeout=_PATIENCE,
    )  # fmt: skip
    return folder / "node_modules"


def _is_made(vendor: Path, made_of: str, wanted: tuple[str, ...]) -> bool:
    try:
        stored = json.loads((vendor / "vendor.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    there = all((vendor / stored_name(one)).is_file() for one in wanted)
    return bool(stored["made_of"] == made_of and there)


def stored_name(path: str) -> str:
    """Return the name of a file in the folder; WebAssembly is compressed, by a factor of four."""
    name = Path(path).name
    return f"{name}.gz" if name.endswith(".wasm") else name


def _copy(packages: Path, target: Path, made_of: str, wanted: tuple[str, ...]) -> None:
    """Write the folder beside its place, and move it there when it is whole."""
    temporary = Path(tempfile.mkdtemp(prefix=".vendor-", dir=target.parent))
    try:
        files = {}  # those of WebGPU too, so that a copy from elsewhere can be verified
        for one in (*WASM_FILES, *WEBGPU_FILES):
            files[stored_name(one)] = _copy_one(packages / one, temporary)
            if one not in wanted:
                (temporary / stored_name(one)).unlink()
        for one in _LICENSES:
            shutil.copyfile(packages / one, temporary / f"LICENSE.{Path(one).parent.name}")
        license_of_ort = _ORT_LICENSE.format(version=_version(packages / _ORT))
        (temporary / f"LICENSE.{_ORT}").write_text(license_of_ort, "utf-8")
        versions = {Path(one).name: _version(packages / one) for one in (_ORT, _TOKENIZERS)}
        about = {"made_of": made_of, "packages": versions, "files": files}
        (temporary / "vendor.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        temporary.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _version(package: Path) -> str:
    return str(json.loads((package / "package.json").read_text("utf-8"))["version"])


def _copy_one(source: Path, folder: Path) -> dict[str, Any]:
    """Copy a file, without the address of a source map that is not there; return what it is."""
    data = source.read_bytes()
    if source.suffix == ".mjs":
        data = b"\n".join(line for line in data.split(b"\n") if b"sourceMappingURL=" not in line)
    stored = folder / stored_name(source.name)
    packed = gzip.compress(data, 9, mtime=0) if stored.suffix == ".gz" else data
    stored.write_bytes(packed)
    return {
        "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
        "download_bytes": len(packed),
    }  # fmt: skip


if __name__ == "__main__":
    build_vendor(webgpu="--webgpu" in sys.argv[1:])
