"""Pages open without a network after a first visit, in one version, and no answer is kept."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import expect

import make_icons
from pocketclip.pages.offline import offline_files, pages_of
from pocketclip.pages.web_files import WebFiles, media_type, read_web_files, web_files

KEY = "a-key-of-16-letters"
KEPT = """async () => {
    const found = [];
    for (const name of await caches.keys())
        for (const one of await (await caches.open(name)).keys())
            found.push([name, new URL(one.url).pathname]);
    return found;
}"""
WHOLE = """async ([assets, count]) => {
    const {installing, waiting, active} = await navigator.serviceWorker.getRegistration();
    if (installing !== null || waiting !== null || active.state !== "activated") return false;
    for (const name of await caches.keys()) {
        const kept = await (await caches.open(name)).keys();
        if (kept.some((one) => one.url.includes(assets))) return kept.length === count;
    }
    return false;
}"""
ENCODE = """async () => {
    const module = document.querySelector("script[type=module]").src;
    const take = (name) => import(new URL(`../inference/${name}.js`, module).href);
    const {ImageEncoder} = await take("image_encoder");
    const [model] = await (await take("models")).listModels();
    const encoder = await ImageEncoder.open(model, {runtime: "wasm"});
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 64;
    canvas.getContext("2d").fillRect(8, 8, 30, 20);
    const {embedding} = await encoder.encode(canvas);
    encoder.close();
    return [...embedding];
}"""
READY = """async () => {
    const module = document.querySelector("script[type=module]").src;
    const shared = new URL("../shared/offline.js", module).href;
    return (await import(shared)).offlineState();
}"""


@pytest.fixture
def page(open_page: Any) -> Any:
    """A page whose service worker may work."""
    return open_page(service_workers="allow")


def opened(page: Any, url: str) -> dict[str, Any]:
    """Open a page, and wait until it is known whether it opens without a network."""
    page.goto(url)
    return page.evaluate(READY)


def let_in(page, running_server):
    """Open a server with a key by a link, until its pages are kept; return it and the token."""
    server = running_server(api_key=KEY)
    token = server.services.sessions.new_token()
    state = opened(page, f"{server.url}/#token={token}")
    assert state == {"ready": True, "sentence": "These pages open without a network too."}
    page.get_by_text("These pages open without a network too.").wait_for()
    page.get_by_role("button", name="Leave").wait_for()
    return server, token


def test_the_worker_and_the_manifest_name_what_is_there() -> None:
    site = web_files()
    made = offline_files(site, server=True)
    first, source = made["sw.js"].split(b"\n", 1)
    about = json.loads(first.removeprefix(b"self.SITE = ").removesuffix(b";"))
    assert source == (resources.files("pocketclip.web") / "sw.js").read_bytes()
    assert about["pages"] == ["index", "camera", "search", "classify"]
    assert about["files"] == sorted(name for name in site.files if not name.endswith(".gz"))
    assert f"{site.assets}app/camera/main.js" in about["files"]
    manifest = json.loads(made["manifest.webmanifest"])
    for icon in manifest["icons"][:-1]:
        with Image.open(io.BytesIO(site.content(icon["src"]))) as image:
            assert "{}x{}".format(*image.size) == icon["sizes"]
    assert {icon["purpose"] for icon in manifest["icons"]} == {"any", "maskable"}
    assert manifest["icons"][-1]["src"] in site.files
    assert pages_of(server=False) == ("index", "camera", "classify")
    assert offline_files(site, server=False)["sw.js"] != made["sw.js"]


def test_the_icons_are_those_of_the_script() -> None:
    folder = Path(str(resources.files("pocketclip.web") / "icons"))
    assert (folder / "icon.svg").read_text("utf-8") == make_icons.svg()
    for name, (size, outline) in make_icons.PNGS.items():
        if size < 500:
            with Image.open(folder / name) as stored:
                mode = stored.mode
                drawn = make_icons.png(size, outline).convert(mode)
                difference = ImageChops.difference(stored, drawn)
            assert max(ImageStat.Stat(difference).mean) < 1


@pytest.mark.slow
def test_pages_behind_a_key_open_when_the_server_is_gone(page, running_server) -> None:
    page.expected += ["ERR_INTERNET_DISCONNECTED", "ERR_CONNECTION_REFUSED", "ERR_FAILED"]
    server, _token = let_in(page, running_server)
    page.reload()  # the worker answers from now on
    assert page.evaluate("fetch('models.json').then((answer) => answer.status)") == 200
    assert any(path == "/models.json" for _name, path in page.evaluate(KEPT))
    page.get_by_role("button", name="Leave").click()
    page.get_by_label("Key").wait_for()
    assert not any(path == "/models.json" for _name, path in page.evaluate(KEPT))
    page.context.set_offline(True)
    server.stop()
    page.reload()
    page.get_by_text("The server does not answer.").wait_for()
    assert page.evaluate("crossOriginIsolated")
    # The other ones were never visited.
    for name in ("camera", "classify", "search", "index"):
        page.goto(f"{server.url}/{name}.html")
        assert page.locator("h1").first.is_visible()
        assert page.evaluate("crossOriginIsolated")
    assert page.evaluate("fetch('info').then(() => 'an answer', () => 'none')") == "none"


def test_answers_of_the_server_are_never_kept(page, offering_server) -> None:
    opened(page, f"{offering_server.url}/")
    page.reload()  # the worker answers from now on
    assert page.evaluate("navigator.serviceWorker.controller !== null")
    statuses = page.evaluate(
        """async () => {
            const json = {method: "POST", headers: {"Content-Type": "application/json"}};
            const found = (await (await fetch("search", {
                ...json, body: JSON.stringify({query: "a photo"}),
            })).json()).hits[0];
            const asked = ["info", "session", "models.json", "label-sets", found.photo,
                           found.thumbnail, "openapi.json", "v1/models"];
            return Promise.all(asked.map(async (path) => (await fetch(path)).status));
        }"""
    )
    assert set(statuses) == {200}
    kept = {path for _name, path in page.evaluate(KEPT)}
    others = {path for path in kept if not path.startswith(("/assets/", "/vendor/"))}
    assert others == {"/", "/camera.html", "/search.html", "/classify.html", "/models.json"}
    assert not any(path.endswith(".gz") for path in kept)


class Host:
    """A host of static files, below a path, that can be changed and switched off."""

    def __init__(self) -> None:
        host = self
        self.files: dict[str, bytes] = {}
        self.status = 200
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/demo/")
                host.asked.append(path)
                # As some hosts do, it has its pages without ".html" too, and prefers that.
                if host.status == 200 and path.endswith(".html"):
                    self.send_response(308)
                    self.send_header("Location", f"/demo/{path.removesuffix('.html')}")
                    self.end_headers()
                    return
                found = host.files.get(path or "index.html", host.files.get(f"{path}.html"))
                data = b"" if found is None or host.status != 200 else found
                self.send_response(404 if found is None else host.status)
                name = path if "." in path else "x.html"
                self.send_header("Content-Type", media_type(name))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/demo/"

    def offer(self, site: WebFiles, models: str = "[]") -> None:
        self.files = {path: site.content(path) for path in site.files}
        self.files |= offline_files(site, server=False)
        for name in pages_of(server=False):
            self.files[f"{name}.html"] = site.page(name, server=False).encode()
        self.files["models.json"] = f'{{"version": 1, "models": {models}}}'.encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def other_site(folder: Path, text: str) -> WebFiles:
    """Return the site of another version, whose start page's module says so."""
    root = Path(str(resources.files("pocketclip.web")))
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("vendor", "__pycache__"))
    module = folder / "app" / "shared" / "capability_texts.js"
    source = module.read_text()
    changed = source.replace(
        "const problems = [];", f'const problems = [{{name: "secure", sentence: "{text}"}}];'
    )
    assert changed != source
    module.write_text(changed)
    return read_web_files(folder)


def wait_until_kept(page: Any, site: WebFiles) -> None:
    """Wait until the worker of a version answers; the browser looks for it after each load."""
    count = len(site.files) + len(pages_of(server=False))
    for _ in range(100):
        if page.evaluate(WHOLE, [site.assets, count]):
            return
        page.wait_for_timeout(100)
    raise AssertionError("it was not kept")


@pytest.mark.slow
def test_another_version_is_taken_whole_at_the_next_load(page, host, tmp_path) -> None:
    page.expected += ["503", "404"]
    first = other_site(tmp_path / "1", "the first version")
    second = other_site(tmp_path / "2", "the second version")
    third = other_site(tmp_path / "3", "the third version")
    host.offer(first)
    assert opened(page, host.url)["ready"]
    page.get_by_text("the first version").wait_for()
    old = page.context.new_page()  # stays open
    old.goto(f"{host.url}camera.html")

    host.offer(second)  # and has no file of the first one any more
    page.reload()
    page.get_by_text("the second version").wait_for()
    # The page that is open goes on with its own modules.
    assert "first version" in old.evaluate(
        "(path) => import(path).then((it) => it.problemsOf({}, {})[0].sentence)",
        f"/demo/{first.assets}app/shared/capability_texts.js",
    )
    wait_until_kept(page, second)
    host.status = 503
    page.reload()
    page.get_by_text("the second version").wait_for()
    modules = page.evaluate(
        "performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)"
    )
    own = [path for path in modules if "/assets/" in path]
    assert own
    assert all(path.startswith(f"/demo/{second.assets}") for path in own)

    host.status = 200
    host.offer(third)
    page.reload()
    page.get_by_text("the third version").wait_for()
    wait_until_kept(page, third)
    sites = {name for name, _path in page.evaluate(KEPT) if name.startswith("pocketclip-site")}
    paths = {path for _name, path in page.evaluate(KEPT)}
    assert len(sites) == 2  # that of the page that was open before stays
    assert not any(first.assets in path for path in paths)


@pytest.mark.slow
def test_the_list_of_models_is_the_newest_one_or_the_last(page, host) -> None:
    page.expected.append("503")
    host.offer(web_files(), '["one"]')
    opened(page, host.url)
    page.reload()
    ask = (
        "fetch('models.json', {cache: 'no-store'}).then((it) => it.json()).then((it) => it.models)"
    )
    assert page.evaluate(ask) == ["one"]
    host.files["models.json"] = b'{"models": ["two"]}'
    assert page.evaluate(ask) == ["two"]
    host.status = 503
    assert page.evaluate(ask) == ["two"]
    host.status = 200
    del host.files["models.json"]
    page.expected.append("404")
    assert page.evaluate("fetch('models.json').then((it) => it.status)") == 404
    assert not any(path.endswith("models.json") for _name, path in page.evaluate(KEPT))


def test_where_the_address_is_not_secure_the_page_says_what_to_do(page, running_server) -> None:
    page.expected.append("Cross-Origin-Opener-Policy")  # which is for secure addresses
    server = running_server(allow_hosts=("phone.test",))
    state = opened(page, server.url.replace("127.0.0.1", "phone.test"))
    assert not state["ready"]
    assert "over https" in state["sentence"]
    assert not page.evaluate("'serviceWorker' in navigator")
    expect(page.locator("#device li")).to_have_count(5)
    shown = page.locator("#device li").all_inner_texts()
    assert shown[0] == (
        "The camera needs https: start the server with --tls and open its https address. "
        "Photographs can be taken here too."
    )
    assert sum("https" in text for text in shown) == len(shown) == 5


@pytest.mark.slow
def test_a_set_that_cannot_be_kept_whole_is_not_used(page, host) -> None:
    page.expected.append("404")
    host.offer(web_files())
    del host.files[f"{web_files().assets}app/labels/presets.json"]
    state = opened(page, host.url)
    assert not state["ready"]
    assert "could not keep them" in state["sentence"]
    assert page.evaluate("navigator.serviceWorker.controller") is None


@pytest.mark.usefixtures("vendor")
def test_pages_and_a_model_that_was_used_work_when_the_server_is_gone(page, running_server) -> None:
    page.expected += ["ERR_INTERNET_DISCONNECTED", "ERR_CONNECTION_REFUSED", "ERR_FAILED"]
    server, token = let_in(page, running_server)
    # The page asked for the list before it had a worker.
    assert "/models.json" in {path for _name, path in page.evaluate(KEPT)}
    assert token not in page.url
    before = page.evaluate(ENCODE)
    assert len(before) == server.services.engine.encoder.embed_dim
    page.context.set_offline(True)
    server.stop()
    page.reload()
    page.get_by_text("The server does not answer.").wait_for()
    assert page.evaluate(ENCODE) == before
    # The other ones were never visited.
    for name in ("camera", "classify", "search", "index"):
        page.goto(f"{server.url}/{name}.html")
        assert page.locator("h1").first.is_visible()
        assert page.evaluate("crossOriginIsolated")
    assert page.evaluate("fetch('info').then(() => 'an answer', () => 'none')") == "none"


def test_over_the_servers_own_certificate_all_but_the_worker_works(
    page, running_server, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("POCKETCLIP_DATA", str(tmp_path))
    page.expected += ["SSL certificate error", "ERR_CERT_AUTHORITY_INVALID"]
    server = running_server(tls=True)
    with pytest.raises(Exception, match="ERR_CERT_AUTHORITY_INVALID"):
        page.goto(f"{server.url}/")
    for _ in range(20):  # the warning needs a moment until it listens
        page.keyboard.type("thisisunsafe")  # as people go on behind Chromium's warning
        page.wait_for_timeout(500)
        if "pocketclip" in page.title():
            break
    expect(page.locator("#device li")).to_have_text(
        [
            "These pages do not open without a network: the browser refuses to keep them, as it "
            "does for a certificate it does not know."
        ]
    )
    assert page.evaluate("crossOriginIsolated && crypto.subtle !== undefined")
    assert page.evaluate("caches.open('it').then(() => true)")
    camera = "navigator.mediaDevices.getUserMedia({video: true}).then((it) => it.active)"
    assert page.evaluate(camera)
