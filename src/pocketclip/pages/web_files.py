"""The files of the web pages, for a server and for a static site: the same paths in both.

    site = web_files()
    site.page("camera", server=True)           # HTML
    site.files["assets/3f2a.../app/camera/main.js"]

Modules, style sheets and icons are below `assets/HASH/`, where HASH changes with any of them, so
that browsers may keep them for ever and never mix two versions.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip._version import __version__
from pocketclip.errors import ConfigError
from pocketclip.pages.render import render

PAGES = ("index", "camera", "search", "classify")
"""The pages, by their names without `.html`."""
ASSETS = ("app", "styles", "icons")
"""The folders of hashed assets."""
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
"""Media types by suffix; `application/octet-stream` otherwise."""
POLICY = (
    "default-src 'none'",
    "script-src 'self' 'wasm-unsafe-eval'",
    "worker-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "media-src 'self' blob:",
    "connect-src 'self'",
    "manifest-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
)
"""The content security policy of pages and workers. A server adds `frame-ancestors`, which a page
cannot say of itself."""
NO_VENDOR = (
    "this pocketclip was built without npm, so that its pages cannot run a model: install it from "
    "a wheel, or run `python hatch_build.py` in a checkout, where npm is installed"
)
_WEBGPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs",
           "ort-wasm-simd-threaded.asyncify.wasm")  # fmt: skip
_FOR_SERVERS = ("app/search/", "app/start/", "styles/search.css")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WebFiles:
    """What a site has beside its models."""

    assets: str
    """`assets/HASH/`."""
    vendor: str | None
    """`vendor/HASH/`; None: the package was built without npm."""
    vendor_files: Mapping[str, Mapping[str, Any]]
    """By name: SHA-256, bytes, and what travels."""
    files: Mapping[str, Path]
    """Every file but the pages and what `pages.offline` makes, by its path in the site."""
    made: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, which are not on disk as they are sent."""
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """What `vendor_files` would be if all files were there."""
    ort_version: str | None = None
    """Of onnxruntime-web."""

    @property
    def has_webgpu(self) -> bool:
        """Whether there is a runtime for WebGPU, which wheels do not carry."""
        return _WEBGPU[0] in self.vendor_files

    def content(self, path: str) -> bytes:
        """Return a file by its path in the site.

        Raises:
            KeyError: there is no such file.
            OSError: it cannot be read.
        """
        found = self.made.get(path)
        return self.files[path].read_bytes() if found is None else found

    def without_server(self, *, webgpu: bool) -> WebFiles:
        """Return the files that a site without a server of ours needs.

        Args:
            webgpu: whether the runtime for WebGPU is among them, if it is here.
        """
        needless = tuple(self.assets + name for name in _FOR_SERVERS)
        files = {name: path for name, path in self.files.items() if not name.startswith(needless)}
        site = dataclasses.replace(self, files=files)
        if self.vendor is None or webgpu or not self.has_webgpu:
            return site
        kept = {
            path.name: path
            for name, path in files.items()
            if name.startswith(self.vendor) and path.name.removesuffix(".gz") not in _WEBGPU
        }
        plain = {name: path for name, path in files.items() if not name.startswith(self.vendor)}
        return dataclasses.replace(site, files=plain)._with_vendor(kept, {})

    def page(self, name: str, *, server: bool) -> str:
        """Return the HTML of a page.

        Args:
            name: one of `PAGES`.
            server: whether a server of ours answers at the same origin.
        """
        return render(
            f"{name}.html", "pocketclip.web", page=name, assets=self.assets,
            config=self.config(server=server), server=server, policy="; ".join(POLICY),
        )  # fmt: skip

    def _with_vendor(self, paths: Mapping[str, Path], made: Mapping[str, bytes]) -> WebFiles:
        """Return it with these files of onnxruntime-web and tokenizers, by their names."""
        content = {name: path.read_bytes() for name, path in paths.items()} | dict(made)
        vendor = f"vendor/{_digest(content)}/"
        facts = {
            name: {**facts, "download_bytes": len(content[name])}
            for name, facts in self.known.items()
            if name in content
        }
        return dataclasses.replace(
            self, vendor=vendor, vendor_files=facts,
            files={**self.files, **{vendor + served(name): path for name, path in paths.items()}},
            made={vendor + served(name): data for name, data in made.items()},
        )  # fmt: skip

    def config(self, *, server: bool) -> dict[str, Any]:
        """Return what the pages' modules know of their site; see `app/shared/config.js`."""
        vendor = None
        if self.vendor is not None:
            files = {
                name.removesuffix(".gz"): {
                    "name": served(name),
                    "url": self.vendor + served(name),
                    "encoding": "gzip" if name.endswith(".gz") else None,
                    **about,
                }
                for name, about in self.vendor_files.items()
            }
            vendor = {"path": self.vendor, "files": files, "webgpu": self.has_webgpu}
        return {
            "version": __version__, "assets": self.assets, "vendor": vendor, "server": server,
        }  # fmt: skip


def served(name: str) -> str:
    """Return the name of a file of vendors in a site.

    Many hosts do not know the type of `.mjs`, and browsers run no module of another type.
    """
    return f"{name.removesuffix('.mjs')}.js" if name.endswith(".mjs") else name


def media_type(name: str) -> str:
    """Return the media type of a file of a site."""
    return TYPES.get(Path(name).suffix, "application/octet-stream")


@functools.cache
def web_files() -> WebFiles:
    """Return the files of the installed package; they are read once per process."""
    return read_web_files(Path(str(resources.files("pocketclip.web"))))


def read_web_files(root: Path) -> WebFiles:
    """Return the files of a folder laid out as `pocketclip.web`."""
    found = {
        path.relative_to(root).as_posix(): path
        for folder in ASSETS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }
    assets = f"assets/{_digest({name: path.read_bytes() for name, path in found.items()})}/"
    files = {assets + name: path for name, path in found.items()}
    try:
        raw = json.loads((root / "vendor" / "vendor.json").read_text("utf-8"))
    except FileNotFoundError:
        return WebFiles(assets=assets, vendor=None, vendor_files={}, files=files)
    found = {path.name: path for path in sorted((root / "vendor").iterdir())}
    del found["vendor.json"]
    return WebFiles(
        assets=assets, files=files, vendor=None, vendor_files={}, known=raw["files"],
        ort_version=raw["packages"]["onnxruntime-web"],
    )._with_vendor(found, {})  # fmt: skip


def with_webgpu(site: WebFiles, folder: Path, *, level: int = 6) -> WebFiles:
    """Return a site with the runtime for WebGPU, which no wheel carries.

    Args:
        site: without it; one that has it is returned as it is.
        folder: `dist` of the npm package onnxruntime-web, of the version that the site has.
        level: of compression.

    Raises:
        ConfigError: the files are others, or the site has no runtime at all.
    """
    if site.vendor is None:
        raise ConfigError(NO_VENDOR)
    if site.has_webgpu:
        return site
    made = {}
    for name in _WEBGPU:
        stored = f"{name}.gz" if name.endswith(".wasm") else name
        try:
            data = without_source_map(name, (folder / name).read_bytes())
        except OSError as error:
            raise _not_runtime(site, folder, f"{name}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != site.known[stored]["sha256"]:
            raise _not_runtime(site, folder, f"{name} is another file")
        packed = gzip.compress(data, level, mtime=0) if stored.endswith(".gz") else data
        made[stored] = packed
    there = {path.name: path for name, path in site.files.items() if name.startswith(site.vendor)}
    plain = {name: path for name, path in site.files.items() if not name.startswith("vendor/")}
    return dataclasses.replace(site, files=plain)._with_vendor(there, made)


def without_source_map(name: str, data: bytes) -> bytes:
    """Return a module without the address of a source map, as `hatch_build.py` copies it."""
    if not name.endswith(".mjs"):
        return data
    return b"\n".join(line for line in data.split(b"\n") if b"sourceMappingURL=" not in line)


def _not_runtime(site: WebFiles, folder: Path, why: str) -> ConfigError:
    version = site.ort_version
    return ConfigError(
        f"{folder} is not the folder dist of the npm package onnxruntime-web {version} ({why}): "
        f"get it by `npm install onnxruntime-web@{version}`, and give "
        "node_modules/onnxruntime-web/dist"
    )


def _digest(files: Mapping[str, bytes]) -> str:
    """Return a hash over the names and contents of files."""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]
