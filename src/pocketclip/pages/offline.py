"""What lets browsers install a site of web pages, and open it without a network.

    offline_files(web_files(), server=True)["sw.js"]

The service worker (`web/sw.js`) gets a first line with everything that it keeps. So it is another
script as soon as a page or a file is another one, and browsers take the new set, whole.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip.pages.web_files import PAGES, WebFiles

_ICONS = {"icon-192.png": "any", "icon-512.png": "any", "icon-maskable-512.png": "maskable"}


def offline_files(site: WebFiles, *, server: bool) -> dict[str, bytes]:
    """Return the service worker and the manifest of a site, by their paths in it.

    Args:
        site: the files beside the pages.
        server: whether a server of ours answers at the same origin; see `WebFiles.page`.
    """
    manifest = json.dumps(_manifest(site), indent=1) + "\n"
    return {"sw.js": _worker(site, server=server), "manifest.webmanifest": manifest.encode()}


def pages_of(*, server: bool) -> tuple[str, ...]:
    """Return the names of the pages that a site has; a search needs a server."""
    return tuple(name for name in PAGES if server or name != "search")


def _worker(site: WebFiles, *, server: bool) -> bytes:
    source = (resources.files("pocketclip.web") / "sw.js").read_bytes()
    # WebAssembly is kept by the pages, inflated and verified, as the models are.
    kept = [path for path in sorted(site.files) if not path.endswith(".gz")]
    pages = pages_of(server=server)
    digest = hashlib.sha256(source + "\n".join(kept).encode())
    for name in pages:
        digest.update(site.page(name, server=server).encode())
    about = {
        "version": digest.hexdigest()[:16], "assets": site.assets, "pages": pages, "files": kept,
    }  # fmt: skip
    return f"self.SITE = {json.dumps(about)};\n".encode() + source


def _manifest(site: WebFiles) -> dict[str, Any]:
    icons = [
        {
            "src": f"{site.assets}icons/{name}", "type": "image/png", "purpose": purpose,
            "sizes": "{0}x{0}".format(Path(name).stem.rpartition("-")[2]),
        }
        for name, purpose in _ICONS.items()
    ]  # fmt: skip
    icons.append({"src": f"{site.assets}icons/icon.svg", "type": "image/svg+xml", "sizes": "any",
                  "purpose": "any"})  # fmt: skip
    return {
        "id": "./",
        "name": "pocketclip",
        "short_name": "pocketclip",
        "description": "Names what a camera sees and sorts images, on the device itself.",
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#0a58b5",
        "theme_color": "#0a58b5",
        "icons": icons,
        "shortcuts": [{"name": "Camera", "url": "camera.html"},
                      {"name": "Classify", "url": "classify.html"}],
    }  # fmt: skip
