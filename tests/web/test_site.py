"""A static site, below a path of a plain file server, in a real browser."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from pocketclip.export import web

_ENCODE = """async ([assets, photo]) => {
  const at = (name) => new URL(`${assets}app/inference/${name}.js`, document.baseURI).href;
  const {listModels} = await import(at("models"));
  const {ImageEncoder} = await import(at("image_encoder"));
  const {openFile} = await import(at("files"));
  const [model] = await listModels();
  const encoder = await ImageEncoder.open(model, {runtime: "wasm"});
  const bytes = Uint8Array.from(atob(photo), (letter) => letter.charCodeAt(0));
  const found = await encoder.encode(new Blob([bytes], {type: "image/png"}), {exact: true});
  const presets = JSON.parse(new TextDecoder().decode(await openFile(model.presets)));
  return {
    embedding: [...found.embedding], check: encoder.check, notes: encoder.notes,
    threads: encoder.threads, prompts: presets.prompts.length, variant: encoder.variant.precision,
  };
}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(vendor, bundle, tmp_path_factory):  # noqa: ARG001, it skips
    """The address of a site with a small model, below a path."""
    root = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "_LEVEL", 1)  # nine takes a second
        web.export_site([bundle], root / "some where" / "site")
    handler = functools.partial(_Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/some%20where/site"
    server.shutdown()
    thread.join()
    server.server_close()


def photograph():
    """A PNG of more pixels than the model reads."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    data = io.BytesIO()
    small.resize((360, 270)).save(data, "PNG")
    return data.getvalue()


def test_the_model_runs_from_plain_files(page, site, encoder):
    photo = photograph()
    page.goto(f"{site}/")
    assets = page.evaluate("JSON.parse(document.getElementById('config').textContent).assets")
    found = page.evaluate(_ENCODE, [assets, base64.b64encode(photo).decode()])
    expected = encoder.encode_image([photo])[0]
    assert float(np.dot(found["embedding"], expected)) > 0.99999
    assert found["check"]["passed"]
    assert (found["threads"], found["variant"]) == (1, "fp32")
    assert found["prompts"] > 14


@pytest.mark.slow
def test_the_camera_starts_after_one_question(page, site):
    asked = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(site)))
    page.goto(f"{site}/")
    start = page.get_by_role("button", name="Start")
    start.wait_for()
    assert not any("model-files" in path and ".onnx" in path for path in asked)
    start.click()
    page.get_by_text("frames/s").wait_for()
    page.get_by_text("stapler").first.wait_for()
    assert any("image.onnx.data" in path for path in asked)
    assert not any("text.onnx" in path or "tokenizer.json" in path for path in asked)


@pytest.mark.slow
def test_pages_need_no_server(page, site):
    for name in ("index", "camera", "classify"):
        page.goto(f"{site}/{name}.html")
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").first.is_visible()
        assert page.get_by_role("link", name="Search", exact=True).count() == 0
