"""Time the web pages in Chromium: frames, first visit, first label; and native ONNX Runtime beside.

    python benchmarks/web.py BUNDLE --photos ../shared/data/grocery
    python benchmarks/web.py BUNDLE --photos PHOTOS --parts frames --frames 1000 --threads 1

| part | measures |
|---|---|
| `frames` | frames named per second on the camera page, from a fake camera that plays PHOTOS, and the memory of all of Chromium's processes over them; the encoder's milliseconds beside those of native ONNX Runtime on one thread, before and after, in the same run |
| `visits` | first paint, and the first label, of a visit with everything cached |
| `site` | bytes of the first visit of the static site on `http.server`, until the first label |

The page has one thread of WebAssembly where it is not isolated, and with `--threads 1`, which takes
the isolation from the server's answers. BUNDLE is what phones would get: int8. PHOTOS are files or
a folder. Medians of the rounds; the last line is JSON.
"""  # noqa: E501

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import io
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.images import open_image
from pocketclip.infer import bundle as bundles
from pocketclip.storage.photos import find_photographs
from serve_process import Server, free_port, ours, running

PARTS = ["frames", "visits", "site"]
CHROMIUM = os.environ.get("POCKETCLIP_CHROMIUM", "chromium")
_PATIENCE = 120_000.0  # milliseconds


def write_camera(photos: list[Path], folder: Path, side: tuple[int, int] = (640, 480)) -> Path:
    """Write what the fake camera plays: JPEGs one after another, each for a second."""
    path = folder / "camera.mjpeg"
    with path.open("wb") as stream:
        for photo in photos:
            image = open_image(photo)
            scale = max(side[0] / image.width, side[1] / image.height)
            image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
            buffer = io.BytesIO()
            image.crop((0, 0, *side)).save(buffer, "JPEG", quality=90)
            for _ in range(20):
                stream.write(buffer.getvalue())
    return path


@contextlib.contextmanager
def browser(profile: Path, camera: Path) -> Iterator[Any]:
    """Start Chromium with a fake camera and a profile that stays."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=_chromium(),
            permissions=["camera"],
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-video-capture={camera}",
            ],
        )
        try:
            yield context
        finally:
            context.close()


def _chromium() -> str:
    import shutil

    found = shutil.which(CHROMIUM)
    if found is None:
        raise SystemExit("there is no chromium: install it, or set POCKETCLIP_CHROMIUM")
    return found


def start_camera(page: Any, url: str, *, threads: int | None = None) -> None:
    """Open the camera page, and agree to the download if it asks."""
    if threads == 1:
        page.route(url, _without_isolation)
    page.goto(url)
    first = page.locator("#results li").first
    begin = page.get_by_role("button", name="Start")
    first.or_(begin).first.wait_for(timeout=_PATIENCE)
    if begin.count():
        begin.first.click()
    first.wait_for(timeout=_PATIENCE)


def _without_isolation(route: Any) -> None:
    answer = route.fetch()
    headers = {k: v for k, v in answer.headers.items() if not k.startswith("cross-origin-")}
    route.fulfill(response=answer, headers=headers)


def browser_megabytes(profile: Path) -> float:
    """Return the memory of the browser's processes; what they share counts by halves (PSS)."""
    total = 0.0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            if str(profile).encode() not in command and not _is_child(process, profile):
                continue
            for line in (process / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1000
    return total


def _is_child(process: Path, profile: Path) -> bool:
    """Return whether an ancestor of a process has the profile in its command."""
    for _ in range(6):
        parent = int((process / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        if parent <= 1:
            return False
        process = Path("/proc", str(parent))
        if str(profile).encode() in (process / "cmdline").read_bytes():
            return True
    return False


def native_milliseconds(bundle: bundles.Bundle, rounds: int = 20) -> float:
    """Return the median time of the image tower in native ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(bundle.path("image")), options, providers=["CPUExecutionProvider"]
    )
    side = bundle.config.image_size
    rng = np.random.default_rng(0)
    given = {session.get_inputs()[0].name: rng.normal(size=(1, 3, side, side)).astype(np.float32)}
    times = []
    for _ in range(rounds + 3):
        begin = time.perf_counter()
        session.run(None, given)
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[3:])


def time_frames(
    context: Any, url: str, profile: Path, bundle: bundles.Bundle, frames: int, threads: int | None
) -> dict[str, Any]:
    """Return the frame rate, the encoder's times and the memory over many frames."""
    before = native_milliseconds(bundle)
    page = context.new_page()
    start_camera(page, url, threads=threads)

    def figures() -> dict[str, float]:
        return page.evaluate(
            "Object.fromEntries(Object.entries(document.getElementById('figures').dataset)"
            ".map(([name, value]) => [name, Number(value)]))"
        )

    while figures()["frames"] < 10:
        time.sleep(0.2)
    first, begin = figures()["frames"], time.perf_counter()
    memory, rates = [browser_megabytes(profile)], []
    while (now := figures())["frames"] < first + frames:
        time.sleep(5)
        memory.append(browser_megabytes(profile))
        rates.append(now["rate"])
    seconds = time.perf_counter() - begin
    done = figures()["frames"] - first
    isolated = page.evaluate("crossOriginIsolated")
    page.close()
    after = native_milliseconds(bundle)
    quarter = max(1, len(memory) // 4)
    return {
        "frames": int(done),
        "frames_per_second": round(done / seconds, 2),
        "isolated": isolated,
        "encoder_ms": {"median": now["median"], "p95": now["p95"]},
        "native_one_thread_ms": round(statistics.mean([before, after]), 1),
        "encoder_over_native": round(now["median"] / statistics.mean([before, after]), 2),
        "megabytes": {
            "first_quarter": round(statistics.median(memory[:quarter])),
            "last_quarter": round(statistics.median(memory[-quarter:])),
            "most": round(max(memory)),
        },
    }


def time_visits(context: Any, url: str, rounds: int) -> dict[str, Any]:
    """Return when a visit with a warm cache paints first, and when it shows the first label."""
    page = context.new_page()
    start_camera(page, url)
    paints, labels = [], []
    for _ in range(rounds):
        page.goto("about:blank")
        begin = time.perf_counter()
        start_camera(page, url)
        labels.append(time.perf_counter() - begin)
        paints.append(
            page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        )
    page.close()
    return {
        "first_paint_s": round(statistics.median(paints) / 1e3, 3),
        "first_label_s": round(statistics.median(labels), 2),
        "rounds": rounds,
    }


class _Counter(http.server.SimpleHTTPRequestHandler):
    """Serves files as `python -m http.server` does, and counts bytes."""

    sent: dict[str, int]

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        self.sent[self.path] = self.sent.get(self.path, 0) + len(data)
        outputfile.write(data)

    def log_message(self, *_args: object) -> None:
        pass


def measure_site(context: Any, bundle: bundles.Bundle, folder: Path) -> dict[str, Any]:
    """Return the bytes of the first visit of a static site."""
    from pocketclip.export.web import export_site

    site = folder / "site"
    export_site([bundle], site, accept_license=True)
    sent: dict[str, int] = {}
    handler = type("Handler", (_Counter,), {"sent": sent})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = context.new_page()
        start_camera(page, f"http://127.0.0.1:{server.server_address[1]}/")
        page.wait_for_timeout(3000)  # the service worker fetches the pages
        page.close()
    finally:
        server.shutdown()
        server.server_close()
    largest = sorted(sent.items(), key=lambda item: -item[1])[:5]
    return {
        "first_visit_megabytes": round(sum(sent.values()) / 1e6, 2),
        "requests": len(sent),
        "largest": {Path(path).name: size for path, size in largest},
    }


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", nargs="+", required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, choices=[1], help="without isolation: one thread")
    asked = parser.parse_args()
    bundle = bundles.read(asked.bundle)
    photos = find_photographs(asked.photos).paths[:20]
    result: dict[str, Any] = {
        "model": bundle.config.name, "variant": bundle.variant, "cores": os.cpu_count(),
        "machine": platform.machine(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        camera = write_camera([Path(one) for one in photos], folder)
        port = free_port()
        with (
            running(ours(asked.bundle, port), port, "/readyz", folder / "log") as server,
            browser(folder / "profile", camera) as context,
        ):
            url = _camera_url(server)
            if "frames" in asked.parts:
                result["frames"] = time_frames(
                    context, url, folder / "profile", bundle, asked.frames, asked.threads
                )
                print(f"frames: {result['frames']}", flush=True)
            if "visits" in asked.parts:
                result["visits"] = time_visits(context, url, asked.rounds)
                print(f"visits: {result['visits']}", flush=True)
        if "site" in asked.parts:
            with browser(folder / "other", camera) as context:
                result["site"] = measure_site(context, bundle, folder)
                print(f"site: {result['site']}", flush=True)
    print(json.dumps(result))


def _camera_url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/camera.html"


if __name__ == "__main__":
    main()
