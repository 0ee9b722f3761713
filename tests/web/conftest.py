"""A real Chromium, and a real server with the pages.

    def test_it(page, server):
        page.goto(f"{server.url}/camera.html")

Chromium is the system's: `POCKETCLIP_CHROMIUM` names another one. Every error on a page's console,
every uncaught exception and every violation of the content security policy fails the test, unless
it is named by `page.expected.append("a part of it")`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from pocketclip.pages.web_files import web_files
from tests.serve.conftest import (  # noqa: F401, fixtures
    make_services,
    offering_server,
    on_loop,
    running_server,
    server,
)

sync_api = pytest.importorskip("playwright.sync_api")
sync_api.expect.set_options(timeout=30_000)  # as long as a locator waits: machines are busy

CHROMIUM = os.environ.get("POCKETCLIP_CHROMIUM") or shutil.which("chromium")
_FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP phone.test 127.0.0.1",  # an origin that is not secure
]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    """Drives browsers; its event loop would be in the way of other modules' `asyncio.run`."""
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def launch(playwright: Any) -> Iterator[Callable[..., Any]]:
    """Starts a browser with more flags: `launch("--use-file-for-fake-video-capture=a.mjpeg")`."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    started: dict[tuple[str, ...], Any] = {}

    def start(*flags: str) -> Any:
        if flags not in started:
            started[flags] = playwright.chromium.launch(
                executable_path=CHROMIUM, args=[*_FLAGS, *flags]
            )
        return started[flags]

    yield start
    for browser in started.values():
        browser.close()


@pytest.fixture
def open_page(launch: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Opens a page in a profile of its own: `open_page(flags=(...), **options of new_context)`.

    The pages' service worker is blocked, so that `page.route` sees every request; with
    `service_workers="allow"` it is not.
    """
    opened: list[Any] = []

    def open_one(*, flags: tuple[str, ...] = (), **options: Any) -> Any:
        usual: dict[str, Any] = {"permissions": ["camera"], "service_workers": "block"}
        context = launch(*flags).new_context(**{**usual, **options})
        page = context.new_page()
        page.expected, page.errors = [], []
        page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        opened.append(page)
        return page

    yield open_one
    unexpected = []
    for page in opened:
        unexpected += [e for e in page.errors if not any(part in e for part in page.expected)]
        page.context.close()
    assert not unexpected, unexpected


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """A page in a profile of its own."""
    return open_page()


@pytest.fixture(scope="session")
def vendor() -> Path:
    """The folder of onnxruntime-web and tokenizers; the test is skipped without it."""
    if web_files().vendor is None:
        pytest.skip("the package was built without npm: python hatch_build.py")
    return Path(str(resources.files("pocketclip.web"))) / "vendor"


AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="session")
def violations() -> Callable[[Any], list[Any]]:
    """Finds what keeps people out of a page, by axe-core: rules, and what breaks them."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci")
    script = AXE.read_text("utf-8")

    def find(page: Any) -> list[Any]:
        page.evaluate(script)
        page.wait_for_timeout(250)  # colours may still be on their way
        broken = page.evaluate("axe.run().then(found => found.violations)")
        return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in broken]

    return find
