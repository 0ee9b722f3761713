"""The files of the web pages, for a server and for a static site: the same paths in both.

    site = web_files()
    site.page("camera", server=True)           # HTML
    site.files["assets/3f2a.../app/camera/main.js"]

Modules, style sheets and icons are below `assets/HASH/`, where HASH changes with any of them, so
that browsers may keep them for ever and never mix two versions.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip._version import __version__
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFiles:
    """What a site has beside its models."""

    assets: str
    """`assets/HASH/`."""
    vendor: str | None
    """`vendor/HASH/`; None: the package was built without npm."""
    vendor_files: Mapping[str, Mapping[str, Any]]
    """By name: SHA-256, bytes, and what travels."""
    files: Mapping[str, Path]
    """Every file but the pages, by its path in the site."""

    @property
    def has_webgpu(self) -> bool:
        """Whether there is a runtime for WebGPU, which wheels do not carry."""
        return "ort.webgpu.min.mjs" in self.vendor_files

    def page(self, name: str, *, server: bool) -> str:
        """Return the HTML of a page.

        Args:
            name: one of `PAGES`.
            server: whether a server of ours answers at the same origin.
        """
        return render(
            f"{name}.html", "pocketclip.web", page=name, assets=self.assets,
            config=self.config(server=server), server=server,
        )  # fmt: skip

    def config(self, *, server: bool) -> dict[str, Any]:
        """Return what the pages' modules know of their site; see `app/shared/config.js`."""
        vendor = None
        if self.vendor is not None:
            files = {
                name.removesuffix(".gz"): {
                    "name": name,
                    "url": self.vendor + name,
                    "encoding": "gzip" if name.endswith(".gz") else None,
                    **about,
                }
                for name, about in self.vendor_files.items()
            }
            vendor = {"path": self.vendor, "files": files, "webgpu": self.has_webgpu}
        return {
            "version": __version__, "assets": self.assets, "vendor": vendor, "server": server,
        }  # fmt: skip


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
    assets = f"assets/{_digest(found)}/"
    files = {assets + name: path for name, path in found.items()}
    for name in ("sw.js", "manifest.webmanifest"):
        if (root / name).is_file():
            files[name] = root / name
    vendor, about = None, dict[str, Any]()
    try:
        about = json.loads((root / "vendor" / "vendor.json").read_text("utf-8"))["files"]
    except FileNotFoundError:
        pass
    else:
        paths = {path.name: path for path in sorted((root / "vendor").iterdir())}
        about = {name: facts for name, facts in about.items() if name in paths}
        vendor = f"vendor/{_digest(paths)}/"
        files |= {vendor + name: path for name, path in paths.items() if name != "vendor.json"}
    return WebFiles(assets=assets, vendor=vendor, vendor_files=about, files=files)


def _digest(files: Mapping[str, Path]) -> str:
    """Return a hash over the names and contents of files."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]
