"""The files of the web pages, for a server and for a static site: the same paths in both.

    site = web_files()
    site.page("camera", server=True)           # HTML
    site.content("assets/3f2a.../app/camera/main.js")

Modules, style sheets and icons are below `assets/HASH/`, where HASH changes with any of them, so
that browsers may keep them for ever and never mix two versions. What the hash was made of is what
is handed out, though the package is replaced meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip._version import __version__
from pocketclip.errors import ConfigError
from pocketclip.pages.render import render
from pocketclip.storage.local import FileStamp, file_stamp

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


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is too large to be held in memory."""

    path: Path
    stamp: FileStamp
    """As it was when its hash was made."""

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """Return a file as it is now."""
        return cls(path, file_stamp(path.stat()))

    def is_it(self, about: os.stat_result) -> bool:
        """Return whether an opened file is this one."""
        return file_stamp(about) == self.stamp

    def read(self) -> bytes:
        """Return its content.

        Raises:
            ConfigError: it is another file by now, or none.
        """
        try:
            with self.path.open("rb") as stream:
                if self.is_it(os.fstat(stream.fileno())):
                    return stream.read()
        except OSError:
            pass
        raise ConfigError(
            f"the file {self.path.name} of the web pages was replaced since this process read it: "
            "start it again"
        )


Content = bytes | StoredFile
"""Of a file of a site."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WebFiles:
    """What a site has beside its models."""

    assets: str
    """`assets/HASH/`."""
    vendor: str | None
    """`vendor/HASH/`; None: the package was built without npm."""
    vendor_files: Mapping[str, Mapping[str, Any]]
    """By name: SHA-256, bytes, and what travels."""
    files: Mapping[str, Content]
    """Every file but the pages and what `pages.offline` makes, by its path in the site."""
    vendored: Mapping[str, Content] = field(default_factory=dict, repr=False)
    """Those of `vendor` again, by their names in the package."""
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
            ConfigError: it is another one by now.
        """
        return _read(self.files[path])

    def without_server(self, *, webgpu: bool) -> WebFiles:
        """Return the files that a site without a server of ours needs.

        Args:
            webgpu: whether the runtime for WebGPU is among them, if it is here.
        """
        needless = tuple(self.assets + name for name in _FOR_SERVERS)
        files = {path: one for path, one in self.files.items() if not path.startswith(needless)}
        site = dataclasses.replace(self, files=files)
        if self.vendor is None or webgpu or not self.has_webgpu:
            return site
        return site._with_vendor(
            {k: one for k, one in self.vendored.items() if k.removesuffix(".gz") not in _WEBGPU}
        )

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

    def _with_vendor(self, vendored: Mapping[str, Content]) -> WebFiles:
        """Return it with these files of onnxruntime-web and tokenizers, by their names."""
        content = {name: _read(one) for name, one in vendored.items()}
        vendor = f"vendor/{_digest(content)}/"
        facts = {
            name: {**facts, "download_bytes": len(content[name])}
            for name, facts in self.known.items()
            if name in content
        }
        others = {path: one for path, one in self.files.items() if not path.startswith("vendor/")}
        return dataclasses.replace(
            self, vendor=vendor, vendor_files=facts, vendored=vendored,
            files={**others, **{vendor + served(name): one for name, one in vendored.items()}},
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
    if Path(name).name.startswith("LICENSE."):
        return TYPES[".txt"]
    return TYPES.get(Path(name).suffix, "application/octet-stream")


@functools.cache
def web_files() -> WebFiles:
    """Return the files of the installed package; they are read once per process."""
    return read_web_files(Path(str(resources.files("pocketclip.web"))))


def read_web_files(root: Path) -> WebFiles:
    """Return the files of a folder laid out as `pocketclip.web`."""
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in ASSETS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }
    assets = f"assets/{_digest(found)}/"
    files = {assets + name: content for name, content in found.items()}
    try:
        raw = json.loads((root / "vendor" / "vendor.json").read_text("utf-8"))
    except FileNotFoundError:
        return WebFiles(assets=assets, vendor=None, vendor_files={}, files=files)
    vendored = {
        path.name: StoredFile.of(path) if path.suffix == ".gz" else path.read_bytes()
        for path in sorted((root / "vendor").iterdir())
        if path.name != "vendor.json"
    }
    return WebFiles(
        assets=assets, files=files, vendor=None, vendor_files={}, known=raw["files"],
        ort_version=raw["packages"]["onnxruntime-web"],
    )._with_vendor(vendored)  # fmt: skip


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
    made = dict(site.vendored)
    for name in _WEBGPU:
        stored = f"{name}.gz" if name.endswith(".wasm") else name
        try:
            data = without_source_map(name, (folder / name).read_bytes())
        except OSError as error:
            raise _not_runtime(site, folder, f"{name}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != site.known[stored]["sha256"]:
            raise _not_runtime(site, folder, f"{name} is another file")
        made[stored] = gzip.compress(data, level, mtime=0) if stored.endswith(".gz") else data
    return site._with_vendor(made)


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


def _read(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read()


def _digest(files: Mapping[str, bytes]) -> str:
    """Return a hash over the names and contents of files."""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]
