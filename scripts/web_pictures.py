"""Take pictures of the web pages, at three widths, light and dark, for the docs and for reviews.

    python scripts/web_pictures.py [--out docs/images/web] [--only camera]

It serves a small trained model and a library of drawn scenes, opens every page in Chromium as a
user would, with a fake camera that plays scenes, and writes PAGE-WIDTH-SCHEME.webp. The pages need
npm's packages: `python hatch_build.py` first.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.infer.encoder import load
from pocketclip.infer.ready import open_ready
from pocketclip.quickstart.collection import jpeg
from pocketclip.search.library import Library
from serve_process import free_port, ours, running

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src" / "pocketclip" / "data" / "quickstart" / "teacher-a"
SIZES = {320: 640, 768: 1024, 1280: 800}
"""Height of the window by its width."""
LABELS = ("blue triangle", "red star", "green tree", "yellow moon", "purple heart")


def start(page: Any, url: str) -> None:
    """Show the start page."""
    page.goto(f"{url}/")
    page.locator("#facts dd").first.wait_for()
    page.locator("#device li").first.wait_for()


def camera(page: Any, url: str) -> None:
    """Name what the fake camera sees, with labels of the scenes."""
    page.goto(f"{url}/camera.html")
    add_labels(page)
    page.get_by_role("button", name="Start").first.click()
    page.locator("#results li").first.wait_for(timeout=60_000)
    page.wait_for_timeout(2500)
    page.evaluate("scrollTo(0, 0)")


def add_labels(page: Any) -> None:
    """Write a list of labels of one's own."""
    page.get_by_role("button", name="Custom").click()
    field = page.get_by_placeholder("Add a label")
    for label in LABELS:
        field.fill(label)
        field.press("Enter")


def search(page: Any, url: str) -> None:
    """Search the library by words."""
    page.goto(f"{url}/search.html")
    page.locator("#query").fill("a red star")
    page.locator("#grid img").first.wait_for()
    page.wait_for_timeout(1500)


def details(page: Any, url: str) -> None:
    """Open one photograph of the library."""
    search(page, url)
    page.locator("#grid img").first.click()
    page.wait_for_timeout(1500)


def duplicates(page: Any, url: str) -> None:
    """Look for files of the same shot."""
    page.goto(f"{url}/search.html")
    page.locator("#view-duplicates").click()
    page.locator("#kind-near").click()
    page.locator("#duplicate-groups img").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)


def labels(page: Any, url: str) -> None:
    """Share a list of labels of one's own."""
    page.goto(f"{url}/camera.html")
    add_labels(page)
    page.get_by_text("Share, import and more").click()
    page.get_by_role("button", name="Share…").click()
    page.locator("#share-link").wait_for()
    page.wait_for_timeout(500)


def picker(page: Any, url: str) -> None:
    """Choose a model."""
    page.goto(f"{url}/camera.html")
    page.locator("#model-button").click()
    page.locator(".model-option").first.wait_for()
    page.wait_for_timeout(500)


def key(page: Any, url: str) -> None:
    """Open a page of a server that asks for its key, without a link."""
    page.route(
        "**/session",
        lambda route: route.fulfill(json={"required": True, "active": False}),
    )
    page.goto(f"{url}/camera.html")
    page.locator("#key").wait_for()


def classify(page: Any, url: str) -> None:
    """Sort scenes into labels."""
    page.goto(f"{url}/classify.html")
    add_labels(page)
    files = [
        {"name": f"scene {i}.jpg", "mimeType": "image/jpeg", "buffer": scene(i)} for i in range(8)
    ]
    page.locator("#file-input").set_input_files(files)
    page.get_by_role("button", name="Start").first.click()
    page.locator("#images .best").nth(7).wait_for(timeout=60_000)
    page.locator("#results").scroll_into_view_if_needed()
    page.wait_for_timeout(1000)


PAGES: dict[str, Callable[[Any, str], None]] = {
    "start": start, "camera": camera, "labels": labels, "picker": picker, "search": search,
    "details": details, "duplicates": duplicates, "classify": classify, "key": key,
}  # fmt: skip


def scene(index: int) -> bytes:
    """Return a scene as a JPEG."""
    return jpeg("test", seed=7, index=index)


def make_library(folder: Path, bundle: Path) -> Path:
    """Return the file of a library of scenes."""
    (folder / "Scenes").mkdir()
    for index in range(120):
        (folder / "Scenes" / f"scene {index:03d}.jpg").write_bytes(scene(index))
    for index in range(1, 120, 17):
        with Image.open(io.BytesIO(scene(index))) as image:
            image.save(folder / "Scenes" / f"scene {index:03d} again.jpg", quality=60)
    path = folder / "scenes.sqlite"
    with Library.open(path, create=True) as library:
        library.index([folder / "Scenes"], encoder=load(bundle))
    return path


def make_camera(folder: Path) -> Path:
    """Return a file for Chromium's fake camera: one scene, at the size of a camera's frame."""
    path = folder / "camera.mjpeg"
    image = Image.open(io.BytesIO(scene(3))).convert("RGB").resize((480, 480))
    frame = Image.new("RGB", (640, 480), image.getpixel((2, 2)))
    frame.paste(image, (80, 0))
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=92)
    path.write_bytes(buffer.getvalue() * 30)
    return path


def save(png: bytes, path: Path) -> None:
    """Write a screenshot as WebP."""
    Image.open(io.BytesIO(png)).convert("RGB").save(path, "WEBP", quality=82, method=6)


def main() -> None:
    """Take the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "web")
    parser.add_argument("--only", nargs="+", choices=list(PAGES), default=list(PAGES))
    parser.add_argument("--widths", nargs="+", type=int, choices=list(SIZES), default=list(SIZES))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        bundle = open_ready(resolve_model(str(MODEL))).folder
        library = make_library(folder, bundle)
        port = free_port()
        command = ours(bundle, port, "--library", library)
        chromium = playwright.chromium.launch(
            executable_path=os.environ.get("POCKETCLIP_CHROMIUM") or shutil.which("chromium"),
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-video-capture={make_camera(folder)}",
            ],
        )
        with running(command, port, "/readyz", folder / "log"):
            for width in asked.widths:
                for scheme in ("light", "dark"):
                    for title in asked.only:
                        context = chromium.new_context(
                            viewport={"width": width, "height": SIZES[width]},
                            color_scheme=scheme, permissions=["camera"],
                            device_scale_factor=2 if width == 320 else 1,
                        )  # fmt: skip
                        page = context.new_page()
                        PAGES[title](page, f"http://127.0.0.1:{port}")
                        path = asked.out / f"{title}-{width}-{scheme}.webp"
                        save(page.screenshot(), path)
                        print(path)
                        context.close()
        chromium.close()


if __name__ == "__main__":
    main()
